//! A certificate authority of a test, and receivers over TLS that demand certificates of it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postrider_common::task::Group;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, crypto::ring};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, in PEM, and what receivers see of it.
pub struct Identity {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub private_key: String,
    /// DER.
    pub shown: Vec<u8>,
}

/// The certificate that each request came with, in order of arrival.
pub type Shown = Arc<Mutex<Vec<Vec<u8>>>>;

impl Authority {
    /// A new authority.
    #[allow(clippy::new_without_default, reason = "every one is different")]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are no bad names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be made");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate can be made"))
    }

    /// Its own certificate in PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate of this authority for a name or an address.
    pub fn certify(&self, name: &str) -> Identity {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("the name is good");
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate can be made");
        Identity {
            certificate: certificate.pem(),
            private_key: key.serialize_pem(),
            shown: certificate.der().to_vec(),
        }
    }

    /// Answers 204 to every request that comes to `listener`, a socket of 127.0.0.1, with a certificate of this authority. Others get no answer.
    pub fn demand(&self, group: &Group, listener: TcpListener) -> Shown {
        let shown = Shown::default();
        let (log, acceptor, connections) = (Arc::clone(&shown), self.acceptor(), group.clone());
        group.spawn("accept", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, acceptor) = (Arc::clone(&log), acceptor.clone());
                connections.spawn("connection", async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let peer = stream.get_ref().1.peer_certificates();
                    let peer = peer
                        .and_then(<[_]>::first)
                        .map_or_else(Vec::new, |first| first.to_vec());
                    let service = service_fn(move |_: Request<Incoming>| {
                        log.lock().unwrap_or_else(PoisonError::into_inner).push(peer.clone());
                        let answer = Response::builder().status(204).body(Full::<Bytes>::default());
                        async move { Ok::<_, Infallible>(answer.expect("the answer is valid")) }
                    });
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        shown
    }

    fn acceptor(&self) -> TlsAcceptor {
        let own = self.certify("127.0.0.1");
        let key = KeyPair::from_pem(&own.private_key).expect("the key was just made");
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("the authority is one");
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .expect("there is a root");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring knows them")
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![own.shown.into()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .expect("the key is the certificate's");
        TlsAcceptor::from(Arc::new(config))
    }
}
