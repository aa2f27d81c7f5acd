//! TLS: whom the sender believes, and that nothing goes out in clear.

use postrider_common::model::auth::place;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::*;

/// A certificate authority of the test.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server with a certificate for these names, after `change`.
    pub(super) fn acceptor(
        &self,
        names: &[&str],
        alpn: &[&[u8]],
        change: impl FnOnce(&mut CertificateParams),
    ) -> TlsAcceptor {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        acceptor(certificate.der().clone(), &key, alpn)
    }
}

impl Authority {
    /// A server for `a.example.com` that demands certificates of this authority.
    fn demanding(&self, alpn: &[&[u8]]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["a.example.com".to_owned()])
            .unwrap()
            .signed_by(&key, &self.0)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// The authentication of `hook` by a certificate of this authority, and that certificate.
    fn mtls(&self, hook: &Webhook) -> (Auth, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let (ring, entropy) = keyring();
        let context = Webhook::seal_context(&hook.account, &hook.uid, place::PRIVATE_KEY);
        let auth = Auth::Mtls {
            certificate: certificate.pem(),
            private_key: ring.seal(key.serialize_pem().as_bytes(), &context, &entropy),
        };
        (auth, certificate.der().to_vec())
    }
}

fn acceptor(certificate: CertificateDer<'static>, key: &KeyPair, alpn: &[&[u8]]) -> TlsAcceptor {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// Sends to `https://HOST:port/` where `acceptor` listens. Gives the outcome, and whether a request came through.
async fn outcome_with(acceptor: TlsAcceptor, authority: &Authority, host: &str) -> (Outcome, bool) {
    let group = Group::default();
    let (told, mut requests) = mpsc::unbounded_channel();
    let address = serve(&group, move |_, stream| {
        let (acceptor, told) = (acceptor.clone(), told.clone());
        async move {
            let mut first = [0];
            stream.peek(&mut first).await.unwrap();
            assert_eq!(first, [22], "a TLS handshake record");
            if let Ok(mut stream) = acceptor.accept(stream).await {
                while read_request(&mut stream).await.is_some() {
                    let _ = told.send(());
                    stream.write_all(OK).await.unwrap();
                }
            }
        }
    })
    .await;
    let bench = Bench::with(
        Names::loopback(),
        loopback(),
        authority.pem().as_bytes(),
        Limits::default(),
    );
    let hook = Arc::new(webhook(&format!("https://{host}:{}/", address.port())));
    let outcome = bench.send(&hook).await;
    if outcome == delivered(200) {
        assert_eq!(bench.send(&hook).await, delivered(200));
        assert_eq!(bench.dialer.dialled().len(), 1, "the connection is reused");
    }
    (outcome, requests.try_recv().is_ok())
}

#[tokio::test]
async fn a_certificate_for_the_host_by_a_believed_authority_is_accepted() {
    let authority = Authority::new();
    for (host, name) in [
        ("hooks.example.com", "hooks.example.com"),
        ("127.0.0.1", "127.0.0.1"),
        ("a.example.com", "*.example.com"),
    ] {
        for alpn in [&[][..], &[b"http/1.1".as_slice()]] {
            let acceptor = authority.acceptor(&[name], alpn, |_| ());
            assert_eq!(
                outcome_with(acceptor, &authority, host).await,
                (delivered(200), true),
                "{host}"
            );
        }
    }
}

#[tokio::test]
async fn no_other_certificate_is_accepted_and_nothing_is_sent() {
    let authority = Authority::new();
    let expired = authority.acceptor(&["a.example.com"], &[], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1)
    });
    let not_yet = authority.acceptor(&["a.example.com"], &[], |params| {
        params.not_before = rcgen::date_time_ymd(4000, 1, 1)
    });
    let other_host = authority.acceptor(&["b.example.com"], &[], |_| ());
    let stranger = Authority::new().acceptor(&["a.example.com"], &[], |_| ());
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["a.example.com".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let self_signed = acceptor(own.der().clone(), &key, &[]);
    for acceptor in [expired, not_yet, other_host, stranger, self_signed] {
        assert_eq!(
            outcome_with(acceptor, &authority, "a.example.com").await,
            (failed(Reason::Tls), false)
        );
    }
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_gets_no_request() {
    let group = Group::default();
    let (told, mut seen) = mpsc::unbounded_channel();
    let address = serve(&group, move |_, mut stream| {
        let told = told.clone();
        async move {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            let _ = told.send(all);
        }
    })
    .await;
    let bench = Bench::new();
    let hook = Arc::new(webhook(&format!("https://{address}/secret-path")));
    assert_eq!(bench.send(&hook).await, failed(Reason::Tls));
    let seen = timeout(SOON, seen.recv()).await.unwrap().unwrap();
    assert!(seen.is_empty() || seen[0] == 22);
    assert!(!seen.windows(6).any(|window| window == b"secret"));
}

#[tokio::test]
async fn a_handshake_that_stalls_or_breaks_off_fails_in_time() {
    let group = Group::default();
    let stalled = serve(&group, |_, mut stream| async move {
        let mut sink = Vec::new();
        let _ = stream.read_to_end(&mut sink).await;
    })
    .await;
    let mut hook = webhook(&format!("https://{stalled}/"));
    hook.timeout = Some(Duration::from_millis(300));
    assert_eq!(Bench::new().send(&Arc::new(hook)).await, failed(Reason::Timeout));
    let closed = serve(&group, |_, mut stream| async move {
        let _ = stream.read_u8().await;
    })
    .await;
    let hook = Arc::new(webhook(&format!("https://{closed}/")));
    assert_eq!(Bench::new().send(&hook).await, failed(Reason::Tls));
}

#[test]
fn extra_authorities_must_be_certificates() {
    assert!(client_config(Roots::BuiltIn, b"").is_ok());
    assert!(client_config(Roots::BuiltIn, Authority::new().pem().as_bytes()).is_ok());
    assert!(client_config(Roots::BuiltIn, b"hello").is_err());
    assert!(
        client_config(
            Roots::BuiltIn,
            b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n"
        )
        .is_err()
    );
}

#[tokio::test]
async fn a_server_that_demands_a_certificate_of_us_gets_no_request() {
    let authority = Authority::new();
    let (outcome, came) = outcome_with(authority.demanding(&[]), &authority, "a.example.com").await;
    // The server's alert comes after our part of the handshake; its reset can overtake it.
    assert!(
        [failed(Reason::Tls), failed(Reason::Disconnected)].contains(&outcome),
        "{outcome:?}"
    );
    assert!(!came);
}

#[tokio::test]
async fn each_client_certificate_is_shown_on_its_own_connections_only() {
    let authority = Authority::new();
    let group = Group::default();
    let (told, mut seen) = mpsc::unbounded_channel();
    let acceptor = authority.demanding(&[]);
    let address = serve(&group, move |number, stream| {
        let (acceptor, told) = (acceptor.clone(), told.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
            while read_request(&mut stream).await.is_some() {
                let _ = told.send((number, shown.clone()));
                stream.write_all(OK).await.unwrap();
            }
        }
    })
    .await;
    let pem = authority.pem();
    let bench = Bench::with(Names::loopback(), loopback(), pem.as_bytes(), Limits::default());
    let mut hook = webhook(&format!("https://a.example.com:{}/", address.port()));
    let ((first, first_shown), (second, second_shown)) = (authority.mtls(&hook), authority.mtls(&hook));
    let auths = [(1, &first), (2, &second), (3, &first), (4, &second)];
    for (generation, auth) in auths {
        hook.generation = generation;
        hook.auth = auth.clone();
        assert_eq!(bench.send(&Arc::new(hook.clone())).await, delivered(200));
    }
    let mut all = Vec::new();
    while let Ok(one) = seen.try_recv() {
        all.push(one);
    }
    let expected = [
        (0, first_shown.clone()),
        (1, second_shown.clone()),
        (0, first_shown),
        (1, second_shown),
    ];
    assert_eq!(all, expected);
    hook.generation = 5;
    hook.auth = Auth::None;
    let outcome = bench.send(&Arc::new(hook)).await;
    assert!(
        [failed(Reason::Tls), failed(Reason::Disconnected)].contains(&outcome),
        "without one none is shown: {outcome:?}"
    );
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn where_no_certificate_can_be_shown_nothing_is_sent() {
    let authority = Authority::new();
    let mut hook = webhook("http://127.0.0.1:8080/");
    hook.auth = authority.mtls(&hook).0;
    let bench = Bench::new();
    assert_eq!(bench.send(&Arc::new(hook)).await, failed(Reason::Protocol));
    assert_eq!(bench.dialer.dialled(), []);
}
