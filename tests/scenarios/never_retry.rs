//! Failures that a webhook calls final: one attempt, one dead letter, whatever dies.

use http::StatusCode;
use postrider_common::key;
use postrider_common::shard::ShardId;
use postrider_proto::v1::{RetryPolicy, Webhook};
use postrider_tests::client::{event, millis, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Receiver};
use postrider_tests::wait::until;

use crate::{ACCOUNT, FLOW, SOON};

fn never(url: &str, name: &str, kinds: &[&str]) -> Webhook {
    Webhook {
        retry: Some(RetryPolicy {
            initial_delay: Some(millis(100)),
            never_retry: kinds.iter().map(ToString::to_string).collect(),
            ..RetryPolicy::default()
        }),
        ..webhook(url, &[name], None)
    }
}

/// The keys of the dead letters of a webhook.
async fn dead_letters(cluster: &Cluster, webhook: &str) -> Vec<String> {
    let part = format!("/{ACCOUNT}/{webhook}/");
    let keys = cluster.etcd.client(0).keys_with(&part).await.unwrap_or_default();
    let dead = key::dead(ShardId(0));
    let folder = dead.as_str().split('/').next().unwrap_or_default();
    keys.into_iter()
        .filter(|key| key.split('/').any(|part| part == folder))
        .collect()
}

#[tokio::test]
async fn a_final_failure_makes_a_dead_letter_after_one_attempt_and_others_are_tried_again() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    for (id, kinds) in [("final", ["4xx"]), ("throttled", ["4xx"]), ("named", ["503"])] {
        let path = format!("/{id}");
        let webhook = never(&receiver.url(&path), &id.to_uppercase(), &kinds);
        client.create_webhook(ACCOUNT, id, webhook).await;
        cluster.matching(ACCOUNT, &id.to_uppercase(), 1).await;
    }
    receiver.script("/final", [Answer::status(StatusCode::NOT_FOUND)]);
    let later = [StatusCode::TOO_MANY_REQUESTS, StatusCode::NO_CONTENT].map(Answer::status);
    receiver.script("/throttled", later);
    let once = Answer::status(StatusCode::SERVICE_UNAVAILABLE).with("retry-after", "1");
    receiver.script("/named", [once]);
    let events = ["FINAL", "THROTTLED", "NAMED"].map(|name| event(&name.to_lowercase(), name, "{}"));
    client.publish(ACCOUNT, events.into()).await;
    receiver
        .until("the second attempt after a 429", SOON, |log| {
            log.has("/throttled", "throttled")
        })
        .await;
    cluster.drained(SOON).await;
    let requests = ["/final", "/throttled", "/named"].map(|path| receiver.log().of(path).len());
    assert_eq!(requests, [1, 2, 1]);
    for (id, letters) in [("final", 1), ("throttled", 0), ("named", 1)] {
        assert_eq!(dead_letters(&cluster, id).await.len(), letters, "{id}");
    }
}

#[tokio::test]
async fn an_agent_killed_around_a_final_failure_leaves_exactly_one_dead_letter() {
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let webhook = never(&receiver.url("/final"), "FINAL", &["404"]);
    client.create_webhook(ACCOUNT, "final", webhook).await;
    cluster.matching(ACCOUNT, "FINAL", 1).await;
    // The answer is under way when its agent dies: whichever it is, all but one are killed.
    let slow = Answer::status(StatusCode::NOT_FOUND).after(std::time::Duration::from_secs(3));
    receiver.script("/final", [slow, Answer::status(StatusCode::NOT_FOUND)]);
    client.publish(ACCOUNT, vec![event("final", "FINAL", "{}")]).await;
    receiver
        .until("the first attempt", SOON, |log| !log.of("/final").is_empty())
        .await;
    while !cluster.agents.is_empty() {
        cluster.kill_agent(0).await;
    }
    cluster.add_agent().await;
    until("the dead letter", FLOW, async || {
        (!dead_letters(&cluster, "final").await.is_empty()).then_some(())
    })
    .await;
    cluster.drained(SOON).await;
    // Whoever takes over from here finds nothing to do.
    cluster.kill_agent(0).await;
    cluster.add_agent().await;
    cluster.settled().await;
    cluster.drained(SOON).await;
    assert_eq!(dead_letters(&cluster, "final").await.len(), 1);
    assert!(receiver.log().of("/final").len() <= 2);
}
