//! Tests of webhooks look closer than attempts do, and share nothing with them.

use postrider_common::model::testing::TestOutcome;

use super::http2::{answer, serve_http2};
use super::oauth::{all, endpoint, granting, hook};
use super::tls::Authority;
use super::*;

#[tokio::test]
async fn a_test_has_a_connection_of_its_own_and_gives_it_to_nobody() {
    let group = Group::default();
    let (bench, hook) = serve_http2(&group, |_, mut connection| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            answer(&mut respond, 200);
        }
    })
    .await;
    for _ in 0..2 {
        let transcript = bench.test(&hook).await;
        assert_eq!(transcript.outcome, TestOutcome::Delivered);
        assert_eq!(transcript.answered.unwrap().version, "HTTP/2");
        let tls = transcript.tls.unwrap();
        assert_eq!((tls.version.as_str(), tls.alpn.as_str()), ("TLSv1.3", "h2"));
        assert!(!tls.leaf.is_empty() && tls.verification_error.is_empty() && !tls.client_certificate_requested);
        let phases = transcript.phases;
        assert!(
            [phases.resolve, phases.connect, phases.tls, phases.first_byte]
                .iter()
                .all(Option::is_some)
        );
        assert_eq!(transcript.resolved, [IpAddr::from([127, 0, 0, 1])]);
    }
    assert_eq!(bench.dialer.dialled().len(), 2);
    for _ in 0..2 {
        assert_eq!(bench.send(&hook).await, delivered(200));
    }
    assert_eq!(
        bench.dialer.dialled().len(),
        3,
        "deliveries do not go on a test's connection"
    );
    bench.test(&hook).await;
    assert_eq!(bench.dialer.dialled().len(), 4, "nor tests on a delivery's");
}

#[tokio::test]
async fn a_certificate_that_is_not_accepted_is_shown() {
    let authority = Authority::new();
    let expired = authority.acceptor(&["a.example.com"], &[], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1)
    });
    let group = Group::default();
    let address = serve(&group, move |_, stream| {
        let accepting = expired.accept(stream);
        async move {
            let _ = accepting.await;
        }
    });
    let hook = Arc::new(webhook(&format!("https://a.example.com:{}/", address.await.port())));
    let bench = Bench::with(
        Names::loopback(),
        loopback(),
        authority.pem().as_bytes(),
        Limits::default(),
    );
    let transcript = bench.test(&hook).await;
    assert_eq!(transcript.outcome, TestOutcome::Failed("TLS".to_owned()));
    let tls = transcript.tls.unwrap();
    assert!(
        !tls.leaf.is_empty() && tls.verification_error.contains("expired"),
        "{tls:?}"
    );
    assert_eq!((tls.version, tls.cipher_suite), (String::new(), String::new()));
    assert!(transcript.sent.is_some() && transcript.answered.is_none());
}

#[tokio::test]
async fn a_token_is_asked_for_anew_and_what_its_endpoint_does_is_told() {
    let group = Group::default();
    let refusal = Bytes::from_static(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 6\r\n\r\nsecret");
    let (tokens, mut asked) = endpoint(&group, move |number| match number {
        0..3 => granting(&format!("token-{number}"), 3600),
        _ => refusal.clone(),
    })
    .await;
    let (receiver, mut requests) = answering(&group, OK).await;
    let (bench, hook) = (Bench::new(), hook(receiver, &format!("http://{tokens}/token")));
    assert_eq!(bench.send(&hook).await, delivered(200));
    for number in 1..3 {
        let transcript = bench.test(&hook).await;
        assert_eq!(transcript.outcome, TestOutcome::Delivered);
        assert!(transcript.token.contains("granted a token"), "{}", transcript.token);
        let (_, request) = all(&mut requests).pop().unwrap();
        assert_eq!(
            request.header("authorization"),
            Some(format!("Bearer token-{number}").as_str())
        );
        assert!(!format!("{transcript:?}").contains(&format!("token-{number}")));
    }
    let transcript = bench.test(&hook).await;
    assert_eq!(transcript.outcome, TestOutcome::Failed("TOKEN".to_owned()));
    assert_eq!(transcript.token, "the token endpoint answered 403");
    assert!(transcript.sent.is_none() && !format!("{transcript:?}").contains("secret"));
    assert_eq!(bench.send(&hook).await, delivered(200), "deliveries keep their token");
    assert_eq!(all(&mut asked).len(), 4);
}

#[tokio::test]
async fn an_answer_that_names_the_event_as_failed_is_a_delivery_all_the_same() {
    let group = Group::default();
    let said = "{\"failed\":[\"evt_1\"]}";
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{said}", said.len());
    let (receiver, _requests) = answering(&group, answer).await;
    let transcript = Bench::new().test(&to(receiver)).await;
    assert_eq!(
        transcript.outcome,
        TestOutcome::Delivered,
        "as of a delivery of one event"
    );
    assert_eq!(transcript.answered.unwrap().said.body, said);
}
