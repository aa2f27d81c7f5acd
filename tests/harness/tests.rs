//! Tests of the harness itself: what the scenarios trust must be able to fail.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::etcd::Etcd;
use crate::process::{Process, listening_on};
use crate::receiver::{Answer, Proof, Receiver};

const SOON: Duration = Duration::from_secs(10);

async fn post(receiver: &Receiver, path: &str, headers: &[(&str, &str)], body: &'static [u8]) -> Option<StatusCode> {
    let stream = TcpStream::connect(receiver.address()).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let mut request = Request::post(path).header("host", "receiver");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from_static(body))).unwrap();
    tokio::select! {
        answer = sender.send_request(request) => Some(answer.ok()?.status()),
        _ = connection => None,
    }
}

#[tokio::test]
async fn a_receiver_records_answers_and_comes_back_at_the_same_address() {
    let mut receiver = Receiver::start();
    receiver.script(
        "/a",
        [Answer::status(StatusCode::BAD_GATEWAY), Answer::status(StatusCode::OK)],
    );
    assert_eq!(
        post(&receiver, "/a", &[("webhook-id", "1")], b"x").await,
        Some(StatusCode::BAD_GATEWAY)
    );
    assert_eq!(receiver.log().distinct(), 0, "a refused event has not arrived");
    receiver.down().await;
    assert_eq!(post(&receiver, "/a", &[("webhook-id", "1")], b"x").await, None);
    receiver.up();
    for _ in 0..2 {
        assert_eq!(
            post(&receiver, "/a", &[("webhook-id", "1")], b"x").await,
            Some(StatusCode::OK)
        );
    }
    assert_eq!(
        post(&receiver, "/b", &[("webhook-id", "1")], b"y").await,
        Some(StatusCode::NO_CONTENT)
    );
    receiver
        .until("four requests", SOON, |log| log.requests().len() == 4)
        .await;
    let log = receiver.log();
    assert_eq!((log.distinct(), log.repeats(), log.of("/a").len()), (2, 1, 3));
    assert!(log.has("/b", "1") && !log.has("/b", "2"));
}

#[tokio::test]
#[should_panic(expected = "waiting for the impossible: 0 requests arrived")]
async fn waiting_for_what_does_not_come_fails() {
    Receiver::start()
        .until("the impossible", Duration::from_millis(1), |log| log.distinct() == 1)
        .await;
}

#[tokio::test]
async fn a_receiver_tells_good_proofs_from_bad_ones() {
    let receiver = Receiver::start();
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let basic = Proof::Basic {
        username: "user".into(),
        password: "pass:word".into(),
    };
    receiver.expect("/none", Proof::None);
    receiver.expect("/basic", basic);
    receiver.expect("/signed", Proof::Signature(secret.into()));
    let now = postrider_common::time::Clock::now(&postrider_common::time::SystemClock).as_millis() / 1000;
    let signer = standardwebhooks::Webhook::new(secret).unwrap();
    let signature = signer.sign("id", now, b"body").unwrap();
    let signed = |signature| {
        [
            ("webhook-id", "id"),
            ("webhook-timestamp", ""),
            ("webhook-signature", signature),
        ]
    };
    let now = now.to_string();
    let mut good = signed(signature.as_str());
    good[1].1 = &now;
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'static [u8], bool);
    let cases: [Case<'_>; 9] = [
        ("/none", &[], b"", true),
        ("/none", &[("authorization", "Basic eA==")], b"", false),
        ("/basic", &[("authorization", "Basic dXNlcjpwYXNzOndvcmQ=")], b"", true),
        ("/basic", &[("authorization", "Basic dXNlcjpwYXNz")], b"", false),
        (
            "/basic",
            &[("authorization", "Bearer dXNlcjpwYXNzOndvcmQ=")],
            b"",
            false,
        ),
        ("/basic", &[], b"", false),
        ("/signed", &good, b"body", true),
        ("/signed", &good, b"Body", false),
        ("/signed", &[], b"body", false),
    ];
    for (index, (path, headers, body, valid)) in cases.into_iter().enumerate() {
        post(&receiver, path, headers, body).await;
        assert_eq!(receiver.log().requests()[index].proof.is_ok(), valid, "case {index}");
    }
    assert_eq!(receiver.log().unproven(), 6);
}

#[tokio::test]
async fn etcd_of_three_members_serves_without_one_of_them_and_takes_it_back() {
    let mut etcd = Etcd::start(3).await;
    etcd.client(0).put("a", Bytes::from_static(b"1")).await.unwrap();
    etcd.kill(0).await;
    let written = crate::wait::until("a write without the member", SOON, async || {
        etcd.client(1).put("b", Bytes::from_static(b"2")).await.ok()
    });
    assert!(written.await > 1);
    etcd.restart(0).await;
    let (_, entries) = etcd.client(0).everything(false).await.unwrap();
    let entries: Vec<(&[u8], &[u8])> = entries.iter().map(|entry| (&*entry.key, &*entry.value)).collect();
    assert_eq!(entries, [(&b"a"[..], &b"1"[..]), (b"b", b"2")]);
    assert_eq!(etcd.client(2).keys_with("b").await.unwrap(), ["b"]);
}

#[tokio::test]
async fn programs_are_watched_signalled_and_killed() {
    let folder = tempfile::tempdir().unwrap();
    let script = "echo listening on 127.0.0.1:7 '(grpc)'; echo listening on 127.0.0.1:8; trap 'echo stopping; exit 3' TERM; while :; do sleep 0.05; done";
    let mut process = Process::start(Path::new("/bin/sh"), "shell", ["-c", script], folder.path());
    let addresses = process.listening(2).await;
    assert_eq!(
        addresses,
        ["127.0.0.1:7".parse().unwrap(), "127.0.0.1:8".parse().unwrap()]
    );
    // The trap is set after the last line was printed.
    crate::wait::until("the shell to stop", SOON, async || {
        if !process.has_ended() {
            process.signal("TERM").await;
        }
        process.has_ended().then_some(())
    })
    .await;
    assert!(!process.ended(SOON).await.success());

    let mut sleeper = Process::start(Path::new("/bin/sh"), "sleeper", ["-c", "sleep 60"], folder.path());
    assert!(!sleeper.has_ended());
    sleeper.kill().await;
    assert!(sleeper.has_ended());
}

#[test]
fn lines_that_name_an_address_are_understood_and_others_are_not() {
    let cases = [
        ("listening on 127.0.0.1:41234 (grpc)", Some("127.0.0.1:41234")),
        ("INFO listening on http://127.0.0.1:80", Some("127.0.0.1:80")),
        ("listening on [::1]:80", Some("[::1]:80")),
        ("listening on port 80", None),
        ("listening", None),
    ];
    for (line, address) in cases {
        assert_eq!(
            listening_on(line),
            address.map(|address| address.parse().unwrap()),
            "{line}"
        );
    }
}
