//! Events reach their listeners, with each kind of proof, byte for byte; failures are tried again.

use std::time::Duration;

use http::StatusCode;
use postrider_common::time::{Clock as _, SystemClock};
use postrider_proto::v1::{Event, RotateSigningSecretRequest, event as event_body};
use postrider_tests::client::{basic, event, no_auth, signature, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Proof, Receiver};

use crate::{ACCOUNT, SOON};

/// The request body that the API contract shows.
const SAMPLE: &str = include_str!("../samples/course_enrollment_batch.json");

/// JSON text without the white space between its parts.
fn compact(json: &str) -> String {
    let mut inside = false;
    let mut escaped = false;
    let keep = |&character: &char| {
        if inside {
            inside = escaped || character != '"';
            escaped = !escaped && character == '\\';
            return true;
        }
        inside = character == '"';
        !character.is_whitespace()
    };
    json.chars().filter(keep).collect()
}

/// The sample's event, with its body as exact JSON text.
fn sample_event(sample: &str) -> Event {
    let (_, data) = sample.split_once("\"data\":").unwrap();
    let data = data.strip_suffix("}]}").unwrap();
    Event {
        timestamp: Some(prost_types::Timestamp {
            seconds: 1_727_414_643,
            nanos: 0,
        }),
        event_info: "1727414643000-047210-84242-0".to_owned(),
        ..event(
            "d5fb7071-10a9-46b2-9f9e-79dde346c052",
            "COURSE_ENROLLMENT_BATCH",
            data.to_owned(),
        )
    }
}

/// Every request has the headers that the contract names and the right proof, and none came twice.
fn assert_sent_once_as_documented(receiver: &Receiver) {
    let log = receiver.log();
    let unproven: Vec<&String> = log
        .requests()
        .iter()
        .filter_map(|request| request.proof.as_ref().err())
        .collect();
    assert!(unproven.is_empty(), "{unproven:?}");
    assert_eq!(log.repeats(), 0);
    for request in log.requests() {
        assert_eq!(request.method, "POST");
        assert_eq!(request.header("content-type"), "application/json");
        assert!(
            request.header("user-agent").starts_with("Postrider/"),
            "{}",
            request.header("user-agent")
        );
        assert_eq!(request.header("webhook-attempt"), "1");
        assert!(request.header("webhook-timestamp").parse::<u64>().is_ok());
    }
}

#[tokio::test]
async fn events_arrive_once_with_each_kind_of_proof_and_secrets_stay_secret() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let (creator, publisher) = (cluster.client(0), cluster.client(1));
    let password = "canary-password-5f1c";
    for (id, method) in [
        ("none", no_auth()),
        ("basic", basic("ada", password)),
        ("signed", signature()),
        ("unset", None),
    ] {
        let wanted = webhook(&receiver.url(&format!("/{id}")), &["COURSE_*"], method);
        let created = creator.create_webhook(ACCOUNT, id, wanted).await;
        assert!(
            !format!("{created:?}").contains(password),
            "a password is never read back"
        );
    }
    let secret = creator
        .signing_secret(&format!("accounts/{ACCOUNT}/webhooks/signed"))
        .await;
    receiver.expect("/none", Proof::None);
    receiver.expect("/unset", Proof::None);
    receiver.expect("/signed", Proof::Signature(secret.clone()));
    let (username, password) = ("ada".to_owned(), password.to_owned());
    let proof = Proof::Basic {
        username,
        password: password.clone(),
    };
    receiver.expect("/basic", proof);

    cluster.matching(ACCOUNT, "COURSE_COMPLETED", 4).await;
    let mut events: Vec<Event> = (0..50)
        .map(|n| event(&format!("e{n}"), "COURSE_COMPLETED", format!("{{\"n\":{n}}}")))
        .collect();
    events.push(event("other", "CI_STATS", "{}"));
    let answer = publisher.publish(ACCOUNT, events).await;
    let matched: Vec<i32> = answer.events.iter().map(|event| event.matched_webhooks).collect();
    assert_eq!(matched, [vec![4; 50], vec![0]].concat());
    receiver
        .until("50 events at 4 webhooks", SOON, |log| log.distinct() == 200)
        .await;
    cluster.drained(SOON).await;

    assert_sent_once_as_documented(&receiver);

    let (_, entries) = cluster.etcd.client(0).everything(false).await.unwrap();
    let raw = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        secret.strip_prefix("whsec_").unwrap(),
    )
    .unwrap();
    let canaries = [password.as_bytes(), secret.as_bytes(), &raw];
    for entry in entries {
        let found = canaries
            .iter()
            .any(|canary| entry.value.windows(canary.len()).any(|window| window == *canary));
        assert!(
            !found,
            "a secret stands in clear under {}",
            String::from_utf8_lossy(&entry.key)
        );
    }
    let output = cluster.output();
    assert!(
        !output.contains(&password) && !output.contains(&secret),
        "a secret stands in a log"
    );
}

#[tokio::test]
async fn a_request_is_byte_for_byte_what_the_contract_shows() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    client
        .create_webhook(
            ACCOUNT,
            "sample",
            webhook(&receiver.url("/sample"), &["COURSE_ENROLLMENT_BATCH"], None),
        )
        .await;
    let sample = compact(SAMPLE);
    let mut exact = sample_event(&sample);
    client.publish(ACCOUNT, vec![exact.clone()]).await;
    receiver.until("the sample", SOON, |log| log.distinct() == 1).await;
    assert_eq!(std::str::from_utf8(&receiver.log().requests()[0].body).unwrap(), sample);

    // JSON text that no parser would print like this again.
    let odd = r#"{ "b" : 1.50,  "a":[1e3, 30000000000000000000000000000001],"a":"é\u00e9\/" }"#;
    exact.event_id = "odd".to_owned();
    exact.body = Some(event_body::Body::DataJson(odd.into()));
    client.publish(ACCOUNT, vec![exact.clone()]).await;
    receiver
        .until("the odd event", SOON, |log| log.has("/sample", "odd"))
        .await;
    let body = receiver.log().requests()[1].body.clone();
    assert!(
        std::str::from_utf8(&body)
            .unwrap()
            .ends_with(&format!("\"data\":{odd}}}]}}"))
    );

    // The same body as a Struct, as people send it with grpcurl: numbers that are integers print as integers.
    exact.event_id = "struct".to_owned();
    let fields = serde_json::from_str::<serde_json::Value>(SAMPLE).unwrap()["events"][0]["data"].clone();
    let fields = fields.as_object().unwrap().iter().map(|(name, value)| {
        let kind = match value {
            serde_json::Value::Number(number) => prost_types::value::Kind::NumberValue(number.as_f64().unwrap()),
            other => prost_types::value::Kind::StringValue(other.as_str().unwrap().to_owned()),
        };
        (name.clone(), prost_types::Value { kind: Some(kind) })
    });
    let data = prost_types::Struct {
        fields: fields.collect(),
    };
    exact.body = Some(event_body::Body::Data(data));
    client.publish(ACCOUNT, vec![exact]).await;
    receiver
        .until("the event as a Struct", SOON, |log| log.has("/sample", "struct"))
        .await;
    let mut wanted: serde_json::Value = serde_json::from_str(SAMPLE).unwrap();
    wanted["events"][0]["eventId"] = "struct".into();
    assert_eq!(receiver.log().requests()[2].json(), wanted);
}

#[tokio::test]
async fn a_receiver_that_was_down_or_failing_gets_everything_once_it_is_back() {
    let cluster = Cluster::start().await;
    let mut receiver = Receiver::start();
    let client = cluster.client(0);
    for id in ["down", "failing"] {
        client
            .create_webhook(
                ACCOUNT,
                id,
                webhook(&receiver.url(&format!("/{id}")), &["*"], signature()),
            )
            .await;
        let secret = client
            .signing_secret(&format!("accounts/{ACCOUNT}/webhooks/{id}"))
            .await;
        receiver.expect(&format!("/{id}"), Proof::Signature(secret));
    }
    // Such an answer says nothing against the receiver as a whole: the breaker lets the others through.
    let failures = std::iter::repeat_n(Answer::status(StatusCode::NOT_FOUND), 40);
    receiver.script("/failing", failures.chain([Answer::status(StatusCode::OK)]));
    receiver.down().await;
    let events = (0..30).map(|n| event(&format!("e{n}"), "A", "{}")).collect();
    let answer = client.publish(ACCOUNT, events).await;
    assert!(answer.events.iter().all(|event| event.matched_webhooks == 2));
    // Failed deliveries are parked in the store: then the receiver is known to have been tried.
    postrider_tests::wait::until("failed deliveries to be parked", SOON, async || {
        let parked = cluster.etcd.client(0).keys_with("/parked/").await.ok()?;
        (!parked.is_empty()).then_some(())
    })
    .await;
    receiver.up();
    receiver
        .until("30 events at both webhooks", Duration::from_secs(60), |log| {
            log.distinct() == 60
        })
        .await;
    cluster.drained(SOON).await;
    let log = receiver.log();
    assert_eq!(
        (log.repeats(), log.unproven()),
        (0, 0),
        "what was refused was not delivered, so nothing came twice"
    );
    assert_eq!(log.of("/failing").len(), 70, "40 failures and 30 successes, none more");
    let attempts = log
        .requests()
        .iter()
        .map(|request| request.header("webhook-attempt").parse::<u32>().unwrap());
    assert!(attempts.max().unwrap() > 1, "attempts are counted");
    for request in log.of("/failing") {
        let ids: Vec<&str> = log.of("/down").iter().map(|other| other.header("webhook-id")).collect();
        assert!(ids.contains(&request.header("webhook-id")), "a retry keeps its id");
    }
}

#[tokio::test]
async fn a_receiver_takes_a_new_signing_secret_over_without_refusing_anything() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let wanted = webhook(&receiver.url("/signed"), &["*"], signature());
    let name = client.create_webhook(ACCOUNT, "signed", wanted).await.name;
    let rotate = async |overlap| {
        let request = RotateSigningSecretRequest {
            name: name.clone(),
            overlap,
            ..RotateSigningSecretRequest::default()
        };
        client.webhooks().rotate_signing_secret(request).await.unwrap();
        client.signing_secret(&name).await
    };
    let old = client.signing_secret(&name).await;
    let new = rotate(None).await;
    assert_ne!(old, new);
    // While both sign, a receiver that knows either one is served.
    for (id, secret) in [("before", &old), ("after", &new)] {
        receiver.expect("/signed", Proof::Signature(secret.clone()));
        client.publish(ACCOUNT, vec![event(id, "A", "{}")]).await;
        receiver.until(id, SOON, |log| log.has("/signed", id)).await;
    }
    let newest = rotate(Some(prost_types::Duration::default())).await;
    receiver.expect("/signed", Proof::Signature(newest));
    client.publish(ACCOUNT, vec![event("alone", "A", "{}")]).await;
    receiver.until("alone", SOON, |log| log.has("/signed", "alone")).await;
    let log = receiver.log();
    assert_eq!((log.unproven(), log.repeats()), (0, 0));
    let signatures = log
        .requests()
        .iter()
        .map(|request| request.header("webhook-signature").split(' ').count());
    assert_eq!(signatures.collect::<Vec<_>>(), [2, 2, 1]);
}

#[test]
fn compacting_keeps_white_space_inside_texts_only() {
    assert_eq!(
        compact("{ \"a b\" :\n [ \"\\\" \\\\\" , 1 ] }"),
        "{\"a b\":[\"\\\" \\\\\",1]}"
    );
}

#[tokio::test]
async fn an_event_is_not_sent_before_its_time_though_its_agent_dies() {
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    client
        .create_webhook(
            ACCOUNT,
            "later",
            webhook(&receiver.url("/later"), &["LATER"], no_auth()),
        )
        .await;
    cluster.matching(ACCOUNT, "LATER", 1).await;
    let time = SystemClock.now() + Duration::from_secs(12);
    let mut events = vec![event("at-once", "LATER", "{}"), event("in-time", "LATER", "{}")];
    events[1].not_before_time = Some(prost_types::Timestamp {
        seconds: time.as_seconds(),
        nanos: i32::try_from(time.as_millis().rem_euclid(1000)).unwrap() * 1_000_000,
    });
    client.publish(ACCOUNT, events).await;
    receiver
        .until("the other event", SOON, |log| log.has("/later", "at-once"))
        .await;
    cluster.kill_agent(0).await;
    cluster.kill_agent(0).await;
    receiver
        .until("the event", SOON, |log| log.has("/later", "in-time"))
        .await;
    assert!(SystemClock.now() >= time, "it came before its time");
    cluster.drained(SOON).await;
}
