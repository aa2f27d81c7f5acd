//! Under which circumstances a test is made: webhooks that are switched off or not stored, agents that die, limits, one program alone.

use std::time::Duration;

use http::StatusCode;
use postrider_proto::v1::test_webhook_response::Outcome;
use postrider_proto::v1::webhook::State;
use postrider_proto::v1::webhook_service_client::WebhookServiceClient;
use postrider_proto::v1::{
    CreateEventTypeRequest, DeliveryOptions, EventType, GetWebhookRequest, ListWebhooksRequest, UpdateWebhookRequest,
    Webhook,
};
use postrider_tests::client::{Client, basic, event, millis, signature, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::process::{Process, program};
use postrider_tests::receiver::{Answer, Receiver};
use postrider_tests::wait;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{CANARY, assert_clean, last, stored, test, test_keys, try_test, unsaved};
use crate::{ACCOUNT, SOON};

fn reason(status: &Status) -> (Code, String) {
    let details = status.get_error_details();
    (status.code(), details.error_info().unwrap().reason.clone())
}

#[tokio::test]
async fn a_webhook_that_is_switched_off_can_be_tested() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    for id in ["retired", "gone"] {
        let wanted = webhook(&receiver.url(&format!("/{id}")), &["A"], None);
        client.create_webhook(ACCOUNT, id, wanted).await;
    }
    let retire = UpdateWebhookRequest {
        webhook: Some(Webhook {
            name: stored("retired").name,
            active: Some(false),
            ..Webhook::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["active".to_owned()],
        }),
        ..UpdateWebhookRequest::default()
    };
    client.webhooks().update_webhook(retire).await.unwrap();
    receiver.script(
        "/gone",
        [Answer::status(StatusCode::GONE), Answer::status(StatusCode::OK)],
    );
    client.publish(ACCOUNT, vec![event("e1", "A", "{}")]).await;
    let state = async |id: &str| {
        let request = GetWebhookRequest { name: stored(id).name };
        client.webhooks().get_webhook(request).await.unwrap().into_inner()
    };
    wait::until("the webhook to be suspended", SOON, async || {
        (state("gone").await.state() == State::Suspended).then_some(())
    })
    .await;
    for id in ["retired", "gone"] {
        let before = state(id).await;
        assert_eq!(test(&client, stored(id)).await.outcome(), Outcome::Delivered);
        assert_eq!(state(id).await, before, "a test changes nothing");
    }
    receiver.script("/retired", [Answer::status(StatusCode::GONE)]);
    let before = state("retired").await;
    assert_eq!(test(&client, stored("retired")).await.reason, "GONE");
    assert_eq!(state("retired").await, before);
}

#[tokio::test]
async fn nothing_is_stored_of_a_webhook_that_is_only_tested() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let example = CreateEventTypeRequest {
        event_type_id: "COURSE_STARTED".to_owned(),
        event_type: Some(EventType {
            example: Some(example(&[("course", "Rust")])),
            ..EventType::default()
        }),
        ..CreateEventTypeRequest::default()
    };
    client.event_types().create_event_type(example).await.unwrap();
    let keys = async || cluster.etcd.client(0).keys_with("").await.unwrap();
    let before = keys().await;
    for (patterns, name, data) in [
        (
            vec!["*"],
            "postrider.test",
            serde_json::json!({"message": "This is a test."}),
        ),
        (
            vec!["A*", "UNKNOWN"],
            "UNKNOWN",
            serde_json::json!({"message": "This is a test."}),
        ),
        (
            vec!["COURSE_STARTED", "B"],
            "COURSE_STARTED",
            serde_json::json!({"course": "Rust"}),
        ),
    ] {
        let answer = test(
            &client,
            unsaved(webhook(&receiver.url("/w"), &patterns, basic("ada", CANARY))),
        )
        .await;
        assert_eq!(answer.outcome(), Outcome::Delivered, "{answer:?}");
        let arrived = last(&receiver, "/w");
        let body = &arrived.json()["events"][0];
        assert_eq!((body["eventName"].as_str(), &body["data"]), (Some(name), &data));
        assert!(arrived.header("webhook-id").starts_with("test_"));
        assert_eq!(arrived.header("webhook-attempt"), "1");
        assert!(!body["eventInfo"].as_str().unwrap().is_empty());
    }
    assert_eq!(keys().await, before);
    let all = ListWebhooksRequest {
        parent: format!("accounts/{ACCOUNT}"),
        ..ListWebhooksRequest::default()
    };
    assert_eq!(
        client
            .webhooks()
            .list_webhooks(all)
            .await
            .unwrap()
            .into_inner()
            .webhooks,
        []
    );
    assert_clean(&cluster).await;
}

fn example(fields: &[(&str, &str)]) -> prost_types::Struct {
    let text = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    prost_types::Struct {
        fields: fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), text(value)))
            .collect(),
    }
}

#[tokio::test]
async fn when_the_agent_is_killed_under_a_test_another_one_answers() {
    let mut cluster = Cluster::of(1, 1, 2).await;
    let receiver = Receiver::start();
    let mut wanted = webhook(&receiver.url("/w"), &["A"], None);
    wanted.delivery = Some(DeliveryOptions {
        timeout: Some(millis(50_000)),
        ..DeliveryOptions::default()
    });
    let hangs = Answer::status(StatusCode::OK).after(Duration::from_secs(3600));
    receiver.script("/w", [hangs, Answer::status(StatusCode::OK)]);
    let address = cluster.control_planes[0].address;
    // Without the deadline of the ordinary client: a killed agent is known to be gone only when its lease has run out.
    let mut patient = WebhookServiceClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let testing = patient.test_webhook(unsaved(wanted));
    let killing = async {
        receiver
            .until("the first request", SOON, |log| log.of("/w").len() == 1)
            .await;
        let keys = test_keys(&cluster).await;
        let asked = |agent: &Process| keys.iter().any(|key| key.contains(&format!("/{}/", agent.name())));
        let index = cluster.agents.iter().position(asked).expect("an agent is asked");
        let killed = format!("agents/{}", cluster.agents[index].name());
        cluster.kill_agent(index).await;
        killed
    };
    let (answer, killed) = tokio::join!(testing, killing);
    let answer = answer.unwrap().into_inner();
    assert_eq!(answer.outcome(), Outcome::Delivered, "{answer:?}");
    assert_ne!(answer.agent, killed);
    assert_eq!(receiver.log().of("/w").len(), 2, "made twice, once by each");
    assert_clean(&cluster).await;
}

#[tokio::test]
async fn without_an_agent_the_caller_is_told_so() {
    let mut cluster = Cluster::of(1, 1, 1).await;
    let client = cluster.client(0);
    let receiver = Receiver::start();
    let wanted = webhook(&receiver.url("/w"), &["A"], None);
    client.create_webhook(ACCOUNT, "w", wanted).await;
    cluster.stop_agent(0).await;
    let status = wait::until("the agent to be known to be gone", SOON, async || {
        try_test(&client, stored("w")).await.err()
    })
    .await;
    assert_eq!(reason(&status), (Code::Unavailable, "NO_AGENT".to_owned()));
    assert!(status.get_error_details().retry_info().is_some());
    assert!(receiver.log().requests().is_empty());
    assert_clean(&cluster).await;
}

#[tokio::test]
async fn an_account_cannot_have_more_than_a_few_tests_under_way() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let hangs = Answer::status(StatusCode::OK).after(Duration::from_secs(3600));
    receiver.script("/w", [hangs]);
    let mut wanted = webhook(&receiver.url("/w"), &["A"], None);
    wanted.delivery = Some(DeliveryOptions {
        timeout: Some(millis(2000)),
        ..DeliveryOptions::default()
    });
    client.create_webhook(ACCOUNT, "w", wanted).await;
    let mut tests = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let client = client.clone();
        tests.spawn(async move { try_test(&client, stored("w")).await });
    }
    let all = tests.join_all().await;
    let refused: Vec<_> = all.iter().filter_map(|made| made.as_ref().err()).collect();
    assert_eq!(refused.len(), 2, "{all:?}");
    for status in refused {
        assert_eq!(reason(status), (Code::ResourceExhausted, "TOO_MANY_TESTS".to_owned()));
        assert!(status.get_error_details().quota_failure().is_some());
    }
    assert_eq!(receiver.log().of("/w").len(), 4);
    assert_clean(&cluster).await;
}

#[tokio::test]
async fn one_program_on_an_embedded_store_tests_too() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").display().to_string();
    let (any, egress) = ("127.0.0.1:0", "127.0.0.0/8");
    let arguments = [
        "serve",
        "--data",
        &data,
        "--listen",
        any,
        "--metrics-listen",
        any,
        "--egress-allow",
        egress,
    ];
    let mut process = Process::start(&program("postrider"), "serve", arguments, folder.path());
    let client = Client::new(process.listening(2).await[0]);
    let receiver = Receiver::start();
    let wanted = webhook(&receiver.url("/w"), &["A"], signature());
    let answer = wait::until("the agent to be there", SOON, async || {
        try_test(&client, unsaved(wanted.clone())).await.ok()
    })
    .await;
    assert_eq!(answer.outcome(), Outcome::Delivered, "{answer:?}");
    client.create_webhook(ACCOUNT, "w", wanted).await;
    assert_eq!(test(&client, stored("w")).await.outcome(), Outcome::Delivered);
    assert_eq!(receiver.log().of("/w").len(), 2);
}
