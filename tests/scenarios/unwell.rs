//! Receivers that are unwell: one probe goes where a backlog waits; who wants no more gets no more, and can be put back.

use std::time::Duration;

use http::StatusCode;
use postrider_proto::v1::webhook::State;
use postrider_proto::v1::{DeliveryOptions, GetWebhookRequest, RateLimit, RetryPolicy, UpdateWebhookRequest, Webhook};
use postrider_tests::client::{Client, event, millis, no_auth, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Receiver};

use crate::{ACCOUNT, FLOW, SOON};

async fn publish(client: &Client, name: &str, count: usize) {
    let events = (0..count).map(|number| event(&format!("{name}-{number}"), name, "{}"));
    client.publish(ACCOUNT, events.collect()).await;
}

fn eager(url: &str, name: &str) -> Webhook {
    Webhook {
        retry: Some(RetryPolicy {
            initial_delay: Some(millis(100)),
            ..RetryPolicy::default()
        }),
        ..webhook(url, &[name], no_auth())
    }
}

async fn state(client: &Client, name: &str) -> Webhook {
    let request = GetWebhookRequest { name: name.to_owned() };
    client.webhooks().get_webhook(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_backlog_waits_behind_one_probe_while_its_receiver_is_down_and_flows_when_it_is_back() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    client
        .create_webhook(ACCOUNT, "down", eager(&receiver.url("/down"), "DOWN"))
        .await;
    client
        .create_webhook(ACCOUNT, "well", eager(&receiver.url("/well"), "WELL"))
        .await;
    let refusal = Answer::status(StatusCode::INTERNAL_SERVER_ERROR);
    receiver.script("/down", [refusal]);
    cluster.matching(ACCOUNT, "DOWN", 1).await;
    cluster.matching(ACCOUNT, "WELL", 1).await;
    publish(&client, "DOWN", 500).await;
    publish(&client, "WELL", 100).await;
    receiver
        .until("the other webhook's events", SOON, |log| log.of("/well").len() == 100)
        .await;
    // 32 were under way when it tripped; from then on single probes.
    receiver
        .until("some probes", SOON, |log| log.of("/down").len() >= 34)
        .await;
    let tried = receiver.log().of("/down").len();
    assert!(tried < 60, "{tried} requests to a receiver that is down");
    receiver.script("/down", [Answer::status(StatusCode::OK)]);
    receiver
        .until("the backlog", FLOW, |log| {
            let requests = log.of("/down");
            requests.iter().filter(|request| request.status.is_success()).count() == 500
        })
        .await;
    cluster.drained(SOON).await;
    assert_eq!(receiver.log().repeats(), 0);
}

#[tokio::test]
async fn a_receiver_that_answers_410_is_left_alone_until_its_webhook_is_put_back_whatever_dies() {
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let created = client
        .create_webhook(ACCOUNT, "gone", eager(&receiver.url("/gone"), "GONE"))
        .await;
    receiver.script(
        "/gone",
        [Answer::status(StatusCode::GONE), Answer::status(StatusCode::OK)],
    );
    cluster.matching(ACCOUNT, "GONE", 1).await;
    publish(&client, "GONE", 1).await;
    let name = &created.name;
    let suspended =
        async || Some(state(&client, name).await).filter(|webhook| webhook.state == State::Suspended as i32);
    let webhook = postrider_tests::wait::until("the suspension", SOON, suspended).await;
    assert!(webhook.state_reason.starts_with("GONE"), "{}", webhook.state_reason);
    assert_eq!(webhook.active, Some(true), "its owner has not switched it off");
    // What waits is kept, by whoever owns the shard next.
    cluster.kill_agent(0).await;
    cluster.kill_agent(0).await;
    assert_eq!(receiver.log().of("/gone").len(), 1);
    let request = UpdateWebhookRequest {
        webhook: Some(Webhook {
            name: name.clone(),
            active: Some(true),
            ..Webhook::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["active".to_owned()],
        }),
        validate_only: false,
    };
    client.webhooks().update_webhook(request).await.unwrap();
    receiver
        .until("the event that waited", FLOW, |log| log.has("/gone", "GONE-0"))
        .await;
    assert_eq!(state(&client, name).await.state, State::Active as i32);
    cluster.drained(SOON).await;
}

#[tokio::test]
async fn a_receiver_that_only_fails_is_suspended_in_time_though_its_agent_dies() {
    let mut cluster = Cluster::with(1, 2, 2, &["--suspend-after", "8s"]).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let created = client
        .create_webhook(ACCOUNT, "bad", eager(&receiver.url("/bad"), "BAD"))
        .await;
    receiver.script("/bad", [Answer::status(StatusCode::BAD_REQUEST)]);
    cluster.matching(ACCOUNT, "BAD", 1).await;
    publish(&client, "BAD", 3).await;
    let noted = async || {
        let keys = cluster.etcd.client(0).keys_with("/failing/").await.unwrap();
        (!keys.is_empty()).then_some(())
    };
    postrider_tests::wait::until("the note of its failures", FLOW, noted).await;
    cluster.kill_agent(0).await;
    let suspended = async || {
        let webhook = state(&client, &created.name).await;
        (webhook.state == State::Suspended as i32).then_some(webhook.state_reason)
    };
    let reason = postrider_tests::wait::until("the suspension", FLOW, suspended).await;
    assert!(reason.starts_with("FAILING"), "{reason}");
}

#[tokio::test]
async fn requests_start_no_faster_than_the_webhook_allows() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let slow = Webhook {
        delivery: Some(DeliveryOptions {
            rate_limit: Some(RateLimit {
                per_second: 20.0,
                burst: 5,
            }),
            ..DeliveryOptions::default()
        }),
        ..eager(&receiver.url("/slow"), "SLOW")
    };
    client.create_webhook(ACCOUNT, "slow", slow).await;
    cluster.matching(ACCOUNT, "SLOW", 1).await;
    publish(&client, "SLOW", 45).await;
    receiver
        .until("all events", SOON, |log| log.of("/slow").len() == 45)
        .await;
    let log = receiver.log();
    let requests = log.of("/slow");
    let taken = requests[44].arrived.duration_since(requests[0].arrived);
    // 40 after the burst, 50 ms apart; the first may have arrived late, never the others early.
    assert!(taken >= Duration::from_millis(1_800), "{taken:?}");
}
