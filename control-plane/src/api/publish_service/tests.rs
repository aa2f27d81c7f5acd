//! Tests of the service through a real server and client.

use std::time::Duration;

use bytes::Bytes;
use postrider_common::store::memory::{Fault, MemoryStore};
use postrider_common::task::Group;
use postrider_proto::v1::publish_service_client::PublishServiceClient;
use postrider_proto::v1::publish_stream_response::Result as Answered;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::Code;
use tonic::transport::{Channel, Server};
use tonic_types::StatusExt as _;

use super::*;
use crate::publish::tests::{Bench, put_webhook};

/// Longer than anything here takes, short enough to end a test that hangs.
const DEADLINE: Duration = Duration::from_secs(30);

struct Face {
    bench: Bench,
    server: Group,
    client: PublishServiceClient<Channel>,
}

async fn face() -> Face {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["A", "C*"]).await;
    put_webhook(&store, "y", &["A"]).await;
    let bench = Bench::new(&store, 1).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Group::default();
    let service = Service::server(bench.publisher.clone());
    let stop = server.token().clone();
    server.spawn("server", async move {
        let incoming = TcpListenerStream::new(listener);
        let serve = Server::builder().add_service(service);
        serve
            .serve_with_incoming_shutdown(incoming, stop.cancelled())
            .await
            .unwrap();
    });
    let client = PublishServiceClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    Face { bench, server, client }
}

fn event(name: &str, body: impl Into<Bytes>) -> v1::Event {
    v1::Event {
        event_name: name.into(),
        body: Some(v1::event::Body::DataJson(body.into())),
        ..v1::Event::default()
    }
}

fn request(events: Vec<v1::Event>) -> v1::PublishRequest {
    v1::PublishRequest {
        parent: "accounts/a".into(),
        events,
        ..v1::PublishRequest::default()
    }
}

const JSON: &str = "events[2].data_json";

const REQUEST_ID: &str = "7c1f0a52-3f64-4b52-9d6a-0d5f3f6f7a11";

#[tokio::test]
async fn a_request_is_answered_with_ids_and_matches_and_its_repetition_alike() {
    let mut face = face().await;
    let request = v1::PublishRequest {
        request_id: REQUEST_ID.into(),
        ..request(vec![event("A", "1"), event("COURSE", "{}"), event("B", "[]")])
    };
    let first = face.client.publish(request.clone()).await.unwrap().into_inner();
    let matched: Vec<i32> = first.events.iter().map(|event| event.matched_webhooks).collect();
    assert_eq!(matched, [2, 1, 0]);
    assert!(first.events.iter().all(|event| event.event_id.len() == 36));
    let time = first.publish_time.unwrap();
    assert_eq!((time.seconds, time.nanos, first.duplicate), (1_727_414_643, 0, false));
    let again = face.client.publish(request.clone()).await.unwrap().into_inner();
    assert_eq!(
        again,
        v1::PublishResponse {
            duplicate: true,
            ..first
        }
    );
    let mut other = request.clone();
    other.events.pop();
    let status = face.client.publish(other).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(status.get_details_error_info().unwrap().reason, "REQUEST_ID_REUSED");
    assert_eq!(status.get_details_resource_info().unwrap().resource_name, "accounts/a");
    // The same id in another account is another request.
    let elsewhere = v1::PublishRequest {
        parent: "accounts/b".into(),
        ..request
    };
    assert!(!face.client.publish(elsewhere).await.unwrap().into_inner().duplicate);
}

#[tokio::test]
async fn bad_input_is_refused_with_the_path_and_reason_of_each_mistake_and_stores_nothing() {
    let mut face = face().await;
    let before = face
        .bench
        .publisher
        .counters()
        .transactions
        .load(std::sync::atomic::Ordering::Relaxed);
    let with = |change: fn(&mut v1::PublishRequest)| {
        let mut bad = request(vec![event("A", "1"); 3]);
        change(&mut bad);
        bad
    };
    let body = |text: &[u8]| {
        let text = Bytes::copy_from_slice(text);
        let mut bad = request(vec![event("A", "1"); 3]);
        bad.events[2].body = Some(v1::event::Body::DataJson(text));
        bad
    };
    let cases: Vec<(v1::PublishRequest, &[(&str, &str)])> = vec![
        (
            v1::PublishRequest::default(),
            &[("parent", "REQUIRED"), ("events", "REQUIRED")],
        ),
        (
            with(|bad| bad.parent = "accounts/a/b".into()),
            &[("parent", "MALFORMED")],
        ),
        (
            with(|bad| bad.parent = "accounts/..".into()),
            &[("parent", "MALFORMED")],
        ),
        (with(|bad| bad.request_id = "1".into()), &[("request_id", "MALFORMED")]),
        (
            with(|bad| bad.events = vec![event("A", "1"); 1001]),
            &[("events", "TOO_MANY")],
        ),
        (
            with(|bad| bad.events[1].event_name = ".x".into()),
            &[("events[1].event_name", "MALFORMED")],
        ),
        (
            with(|bad| bad.events[1].event_id = "a.b".into()),
            &[("events[1].event_id", "MALFORMED")],
        ),
        (with(|bad| bad.events[2].body = None), &[("events[2].data", "REQUIRED")]),
        (body(b""), &[(JSON, "INVALID_JSON")]),
        (body(b"{\"a\":}"), &[(JSON, "INVALID_JSON")]),
        (body(b"{} {}"), &[(JSON, "INVALID_JSON")]),
        (body(b"[NaN]"), &[(JSON, "INVALID_JSON")]),
        (body(b"\xef\xbb\xbf1"), &[(JSON, "INVALID_JSON")]),
        (body(b"\"\xc3\""), &[(JSON, "INVALID_JSON")]),
        (body(b"\"\\uDEAD\""), &[(JSON, "INVALID_JSON")]),
        (body("[".repeat(100_000).as_bytes()), &[(JSON, "INVALID_JSON")]),
        (
            body(("[".repeat(128) + &"]".repeat(128)).as_bytes()),
            &[(JSON, "TOO_DEEP")],
        ),
        (body(&vec![b'1'; (256 << 10) + 1]), &[(JSON, "TOO_LARGE")]),
        (
            with(|bad| {
                bad.parent = "A".into();
                bad.events[0].event_name = "1".into();
                bad.events[2].expire_time = Some(prost_types::Timestamp::default());
                bad.events[2].ordering_key = "é".into();
            }),
            &[
                ("parent", "MALFORMED"),
                ("events[0].event_name", "MALFORMED"),
                ("events[2].expire_time", "NOT_IN_FUTURE"),
                ("events[2].ordering_key", "MALFORMED"),
            ],
        ),
    ];
    for (bad, expected) in cases {
        let status = face.client.publish(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{expected:?}");
        assert_eq!(status.get_details_error_info().unwrap().domain, "postrider");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        let named: Vec<(&str, &str)> = violations
            .iter()
            .map(|violation| {
                (
                    violation.field.as_str(),
                    violation.description.split(':').next().unwrap(),
                )
            })
            .collect();
        assert_eq!(named, expected);
    }
    let after = face
        .bench
        .publisher
        .counters()
        .transactions
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(before, after);
}

#[tokio::test]
async fn validate_only_answers_what_would_be_and_stores_nothing() {
    let mut face = face().await;
    let mut preview = request(vec![event("A", "1")]);
    preview.validate_only = true;
    preview.request_id = REQUEST_ID.into();
    let answer = face.client.publish(preview.clone()).await.unwrap().into_inner();
    assert_eq!(answer.events[0].matched_webhooks, 2);
    preview.validate_only = false;
    assert!(!face.client.publish(preview).await.unwrap().into_inner().duplicate);
}

#[tokio::test]
async fn a_store_that_is_full_is_said_with_the_time_to_try_again() {
    let mut face = face().await;
    face.bench.store.inject(Box::new(|_| Some(Fault::Full)));
    let status = face.client.publish(request(vec![event("A", "1")])).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_details_error_info().unwrap().reason, "STORE_FULL");
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
}

fn on_stream(parent: &str, events: Vec<v1::Event>) -> v1::PublishStreamRequest {
    v1::PublishStreamRequest {
        parent: parent.into(),
        events,
        request_id: String::new(),
    }
}

type Answers = Streaming<v1::PublishStreamResponse>;

async fn open(face: &mut Face, ahead: usize) -> (mpsc::Sender<v1::PublishStreamRequest>, Answers) {
    let (requests, receiver) = mpsc::channel(ahead);
    let answers = face.client.publish_stream(ReceiverStream::new(receiver)).await.unwrap();
    (requests, answers.into_inner())
}

async fn next(answers: &mut Answers) -> Option<Result<v1::PublishStreamResponse, Status>> {
    tokio::time::timeout(DEADLINE, answers.next()).await.unwrap()
}

#[tokio::test]
async fn a_stream_is_answered_in_order_and_a_bad_request_does_not_end_it() {
    let mut face = face().await;
    let (requests, mut answers) = open(&mut face, 10).await;
    for request in [
        on_stream("", vec![event("A", "1")]),
        on_stream("accounts/a", vec![event("A", "1")]),
        on_stream("", vec![event("B", "1"), event("1", "{")]),
        on_stream("", vec![event("COURSE", "1")]),
        on_stream("accounts/A", vec![event("A", "1")]),
        on_stream("", vec![event("A", "1")]),
        on_stream("accounts/other", vec![event("A", "1")]),
    ] {
        requests.send(request).await.unwrap();
    }
    drop(requests);
    let mut told = Vec::new();
    while let Some(answer) = next(&mut answers).await {
        let answer = answer.unwrap();
        assert_eq!(answer.sequence, i64::try_from(told.len()).unwrap() + 1);
        told.push(match answer.result.unwrap() {
            Answered::Response(response) => format!("{}", response.events[0].matched_webhooks),
            Answered::Error(error) => {
                assert_eq!((error.code, error.reason.as_str()), (3, "INVALID_REQUEST"));
                let fields = error.field_violations.into_iter();
                fields
                    .map(|violation| format!("{} {};", violation.field, violation.reason))
                    .collect()
            }
        });
    }
    assert_eq!(
        told,
        [
            "parent REQUIRED;",
            "2",
            "events[1].event_name MALFORMED;events[1].data_json INVALID_JSON;",
            "1",
            "parent MALFORMED;",
            "parent MALFORMED;",
            "0",
        ]
    );
}

#[tokio::test]
async fn many_requests_of_one_stream_are_answered_one_for_one_and_none_is_lost() {
    let mut face = face().await;
    let (requests, mut answers) = open(&mut face, 64).await;
    let send = async {
        for _ in 0..2_000 {
            requests
                .send(on_stream("accounts/a", vec![event("A", "{\"x\":1}")]))
                .await
                .unwrap();
        }
        drop(requests);
    };
    let receive = async {
        let mut count = 0;
        while let Some(answer) = next(&mut answers).await {
            count += 1;
            let answer = answer.unwrap();
            assert_eq!(answer.sequence, count);
            assert!(matches!(answer.result, Some(Answered::Response(_))));
        }
        count
    };
    let (count, ()) = tokio::join!(receive, send);
    assert_eq!(count, 2_000);
    let counters = face.bench.publisher.counters();
    assert_eq!(counters.deliveries.load(std::sync::atomic::Ordering::Relaxed), 4_000);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_read_no_further_ahead_than_its_window_and_nothing_of_it_is_lost() {
    const ALL: usize = 1_024;
    let mut face = face().await;
    // For now nothing is stored, and so nothing answered.
    face.bench.store.inject(Box::new(|_| Some(Fault::LostRequest)));
    let (requests, mut answers) = open(&mut face, ALL).await;
    for _ in 0..ALL {
        let request = on_stream("accounts/a", vec![event("A", "1")]);
        requests.send(request).await.unwrap();
    }
    drop(requests);
    let counters = face.bench.publisher.counters().clone();
    // The catalogue holds no types: each event is counted when it is taken.
    let taken = || counters.unknown_type_events.load(std::sync::atomic::Ordering::Relaxed);
    // The clock stands still as long as something runs: nothing is given up meanwhile.
    let busy = async {
        loop {
            tokio::task::yield_now().await;
        }
    };
    let read_on = async {
        for _ in 0..50 {
            let preview = v1::PublishRequest {
                validate_only: true,
                ..request(vec![event("A", "1")])
            };
            face.client.publish(preview).await.unwrap();
        }
    };
    tokio::select! {
        () = busy => {}
        () = read_on => {}
    }
    assert_eq!(taken(), 256);
    tokio::time::resume();
    face.bench.store.heal();
    for sequence in 1..=1_024 {
        let answer = next(&mut answers).await.unwrap().unwrap();
        assert_eq!(answer.sequence, sequence);
        assert!(matches!(answer.result, Some(Answered::Response(_))), "{answer:?}");
    }
    assert!(next(&mut answers).await.is_none());
    assert_eq!(counters.deliveries.load(std::sync::atomic::Ordering::Relaxed), 2_048);
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_a_stream_after_the_answers_to_what_came_before() {
    let mut face = face().await;
    let (requests, mut answers) = open(&mut face, 10).await;
    let good = on_stream("accounts/a", vec![event("A", "1")]);
    requests.send(good).await.unwrap();
    let large = on_stream(&"x".repeat(MAX_MESSAGE_BYTES), Vec::new());
    requests.send(large).await.unwrap();
    let first = next(&mut answers).await.unwrap().unwrap();
    assert!(matches!(first.result, Some(Answered::Response(_))));
    let status = next(&mut answers).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_details_error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
}

#[tokio::test]
async fn a_stop_ends_a_stream_after_the_answers_to_what_was_taken() {
    let mut face = face().await;
    let (requests, mut answers) = open(&mut face, 10).await;
    requests
        .send(on_stream("accounts/a", vec![event("A", "1")]))
        .await
        .unwrap();
    assert!(matches!(
        next(&mut answers).await.unwrap().unwrap().result,
        Some(Answered::Response(_))
    ));
    face.bench.group.token().cancel();
    let status = next(&mut answers).await.unwrap().unwrap_err();
    assert_eq!(
        (status.code(), status.get_details_error_info().unwrap().reason.as_str()),
        (Code::Unavailable, "STOPPING")
    );
    assert!(next(&mut answers).await.is_none());
    let refused = face.client.publish(request(vec![event("A", "1")])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    drop((requests, answers, face.client));
    face.server.shut_down(DEADLINE).await;
}
