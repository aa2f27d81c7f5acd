//! What attempts tell besides their outcome: how far they got, how long it took, what was said; and no secrets.

use http::Version;
use postrider_common::model::auth::place;

use super::tls::Authority;
use super::*;
use crate::attempt::evidence::{BODY_BYTES, Evidence};

fn answer(status: &str, headers: &str, body: &str) -> Bytes {
    format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into()
}

async fn evidence_of(answer: impl Into<Bytes>) -> Evidence {
    let group = Group::default();
    let (address, _requests) = answering(&group, answer).await;
    Bench::new().make(&to(address)).await.evidence
}

#[tokio::test]
async fn a_delivery_is_timed_and_nothing_of_its_answer_is_kept() {
    let group = Group::default();
    let (address, _requests) = answering(&group, OK).await;
    let bench = Bench::new();
    let Made { outcome, evidence } = bench.make(&to(address)).await;
    assert_eq!(outcome, delivered(200));
    assert_eq!(evidence.address, Some(address));
    assert_eq!(evidence.version, Some(Version::HTTP_11));
    assert_eq!(evidence.status, Some(200));
    assert_eq!((evidence.said, evidence.detail), (None, None));
    let phases = evidence.phases;
    assert_eq!((phases.resolve, phases.tls), (None, None), "an address, in clear");
    let parts = phases.connect.unwrap() + phases.first_byte.unwrap();
    assert!(parts > Duration::ZERO && parts <= evidence.duration, "{parts:?}");
    let again = bench.make(&to(address)).await.evidence;
    assert_eq!(again.address, Some(address), "known of a connection in use too");
    assert!(again.phases.connect.is_none() && again.phases.first_byte.is_some());
}

#[tokio::test]
async fn a_receiver_that_does_not_take_it_is_quoted() {
    let said = evidence_of(answer("400 Bad Request", "x-why: because\r\n", "no \u{1f4a9} here"));
    let said = said.await.said.unwrap();
    let expected = [("x-why", "because"), ("content-length", "12")];
    assert_eq!(
        said.headers,
        expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
    assert_eq!((said.body.as_str(), said.body_cut), ("no \u{1f4a9} here", false));
    assert!(!said.headers_cut);
}

#[tokio::test]
async fn a_long_answer_is_cut() {
    let headers = format!("x-long: {}\r\nx-short: 1\r\n", "x".repeat(5000));
    let said = evidence_of(answer("500 Oh", &headers, &"y".repeat(10_000)))
        .await
        .said
        .unwrap();
    assert!(said.headers_cut && said.headers[0].0 == "x-short");
    assert_eq!((said.body.len(), said.body_cut), (BODY_BYTES, true));
    let stalled = evidence_of("HTTP/1.1 500 Oh\r\ncontent-length: 100\r\n\r\nthe beginning").await;
    let said = stalled.said.unwrap();
    assert_eq!((said.body.as_str(), said.body_cut), ("the beginning", true));
}

#[tokio::test]
async fn how_far_a_failed_attempt_got_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let Made { outcome, evidence } = Bench::new().make(&to(closed)).await;
    assert_eq!(outcome, failed(Reason::Connect));
    assert_eq!((evidence.address, evidence.status), (Some(closed), None));
    assert!(evidence.phases.connect.is_some() && evidence.phases.first_byte.is_none());
    assert!(evidence.detail.unwrap().contains("refused"));

    let group = Group::default();
    let silent = serve(&group, |_, mut stream| async move {
        let mut sink = Vec::new();
        let _ = stream.read_to_end(&mut sink).await;
    });
    let limit = Duration::from_millis(200);
    let Made { outcome, evidence } = Bench::new().make(&within(silent.await, limit)).await;
    assert_eq!(outcome, failed(Reason::Timeout));
    assert!(evidence.phases.first_byte.unwrap() > limit / 2 && evidence.duration >= limit);
    assert!(evidence.detail.unwrap().contains("the request was sent"));
}

#[tokio::test]
async fn addresses_that_are_not_allowed_are_not_told() {
    let private = Arc::new(Names(Ok(vec![IpAddr::from([10, 1, 2, 3])])));
    let bench = Bench::with(private, Policy::default(), b"", Limits::default());
    let Made { outcome, evidence } = bench.make(&Arc::new(webhook("https://a.example.com/"))).await;
    assert_eq!(outcome, failed(Reason::BlockedAddress));
    assert!(evidence.address.is_none() && evidence.phases.resolve.is_some());
    assert!(!evidence.detail.unwrap().contains("10."));
    let evidence = Bench::new()
        .make(&Arc::new(webhook("http://a.example.com/")))
        .await
        .evidence;
    assert_eq!(evidence.detail.as_deref(), Some("the name has no address"));
    let evidence = bench.make(&Arc::new(webhook("http://127.0.0.1/"))).await.evidence;
    assert!(evidence.detail.is_some(), "refused before it was tried");
}

#[tokio::test]
async fn a_certificate_that_is_not_accepted_is_explained() {
    let group = Group::default();
    let stranger = Authority::new().acceptor(&["a.example.com"], &[], |_| ());
    let address = serve(&group, move |_, stream| {
        let accepting = stranger.accept(stream);
        async move {
            let _ = accepting.await;
        }
    });
    let hook = webhook(&format!("https://a.example.com:{}/", address.await.port()));
    let bench = Bench::with(Names::loopback(), loopback(), b"", Limits::default());
    let Made { outcome, evidence } = bench.make(&Arc::new(hook)).await;
    assert_eq!(outcome, failed(Reason::Tls));
    assert!(evidence.phases.resolve.is_some() && evidence.phases.tls.is_some());
    assert!(evidence.detail.unwrap().contains("UnknownIssuer"));
}

/// An answer that repeats the request's head, and more.
async fn echo(group: &Group, more: &'static str) -> SocketAddr {
    serve(group, move |_, mut stream| async move {
        while let Some(request) = read_request(&mut stream).await {
            let value = request
                .header("authorization")
                .or(request.header("x-key"))
                .unwrap_or_default();
            let body = format!("{value} {more} {:?}", request.headers);
            let headers = format!("x-echo: {value}\r\n");
            let _ = stream.write_all(&answer("401 Unauthorized", &headers, &body)).await;
        }
    })
    .await
}

#[tokio::test]
async fn secrets_that_a_receiver_repeats_are_hidden() {
    let group = Group::default();
    let (ring, entropy) = keyring();
    let mut hook = webhook(&format!("http://{}/", echo(&group, "hunter2 YTpodW50ZXIy").await));
    let seal = |hook: &Webhook, field: &str| {
        let context = Webhook::seal_context(&hook.account, &hook.uid, field);
        ring.seal(b"hunter2", &context, &entropy)
    };
    let auths = [
        Auth::Basic {
            username: "a".to_owned(),
            password: seal(&hook, place::PASSWORD),
        },
        Auth::Bearer {
            token: seal(&hook, place::TOKEN),
        },
        Auth::ApiKey {
            header: "x-key".to_owned(),
            value: seal(&hook, place::API_KEY),
        },
    ];
    for (generation, auth) in (1..).zip(auths) {
        hook.auth = auth;
        hook.generation = generation;
        let said = Bench::new().make(&Arc::new(hook.clone())).await.evidence.said.unwrap();
        let all = format!("{said:?}");
        assert!(!all.contains("hunter2"), "{all}");
        assert!(generation != 1 || !all.contains("YTpodW50ZXIy"), "{all}");
        assert!(all.matches("[redacted]").count() >= 3, "{all}");
    }
}

#[tokio::test]
async fn the_secrets_that_signed_are_named_and_hidden() {
    let group = Group::default();
    let (ring, entropy) = keyring();
    // The base64 of the secret, as a receiver that prints its settings would.
    let mut hook = webhook(&format!(
        "http://{}/",
        echo(&group, "whsec_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB").await
    ));
    let context = Webhook::seal_context(&hook.account, &hook.uid, "signing/s1");
    hook.auth = Auth::Signature {
        algorithm: postrider_common::signature::Algorithm::HmacSha256,
        headers: postrider_common::model::auth::SignatureHeaders::default(),
        secrets: vec![SigningSecret {
            id: "s1".to_owned(),
            secret: ring.seal(&[1; 24], &context, &entropy),
            create_time: Timestamp::default(),
            expire_time: None,
        }],
    };
    let evidence = Bench::new().make(&Arc::new(hook)).await.evidence;
    assert_eq!(evidence.signers, [Arc::from("s1")]);
    let body = evidence.said.unwrap().body;
    assert!(
        body.contains("whsec_[redacted]") && !body.contains("AQEBAQEB"),
        "{body}"
    );
}
