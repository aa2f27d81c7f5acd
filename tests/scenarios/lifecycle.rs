//! Webhooks deleted and retired while events wait for them.

use http::StatusCode;
use postrider_proto::v1::{DeleteWebhookRequest, UpdateWebhookRequest, Webhook};
use postrider_tests::client::{Client, event, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Receiver};
use postrider_tests::wait;

use crate::{ACCOUNT, SOON};

async fn set_active(client: &Client, id: &str, active: bool) {
    let request = UpdateWebhookRequest {
        webhook: Some(Webhook {
            name: format!("accounts/{ACCOUNT}/webhooks/{id}"),
            active: Some(active),
            ..Webhook::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["active".to_owned()],
        }),
        ..UpdateWebhookRequest::default()
    };
    client
        .webhooks()
        .update_webhook(request)
        .await
        .expect("the webhook is updated");
}

/// Waits until failed deliveries of webhook `id` are parked.
async fn parked(cluster: &Cluster, id: &str) {
    let part = format!("/{ACCOUNT}/{id}/");
    wait::until("failed deliveries to be parked", SOON, async || {
        let parked = cluster.etcd.client(0).keys_with("/parked/").await.ok()?;
        parked.iter().any(|key| key.contains(&part)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_waits_for_a_deleted_webhook_is_dropped_and_others_are_not_touched() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    for id in ["deleted", "kept"] {
        receiver.script(&format!("/{id}"), [Answer::status(StatusCode::NOT_FOUND)]);
        client
            .create_webhook(ACCOUNT, id, webhook(&receiver.url(&format!("/{id}")), &["A"], None))
            .await;
    }
    client
        .publish(ACCOUNT, (0..20).map(|n| event(&format!("e{n}"), "A", "{}")).collect())
        .await;
    parked(&cluster, "deleted").await;
    parked(&cluster, "kept").await;
    let request = DeleteWebhookRequest {
        name: format!("accounts/{ACCOUNT}/webhooks/deleted"),
        ..DeleteWebhookRequest::default()
    };
    client.webhooks().delete_webhook(request.clone()).await.unwrap();
    let again = client.webhooks().delete_webhook(request).await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::NotFound);
    // A webhook of the same name is another one: it gets nothing of what was published before.
    client
        .create_webhook(ACCOUNT, "deleted", webhook(&receiver.url("/successor"), &["B"], None))
        .await;
    receiver.script("/kept", [Answer::status(StatusCode::OK)]);
    receiver
        .until("the kept webhook's events", SOON, |log| log.distinct() == 20)
        .await;
    cluster.drained(SOON).await;
    let log = receiver.log();
    assert!(log.of("/successor").is_empty());
    assert_eq!(
        log.of("/kept")
            .iter()
            .filter(|request| request.status.is_success())
            .count(),
        20
    );
}

#[tokio::test]
async fn what_waits_for_a_retired_webhook_is_held_until_it_is_active_again() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    for id in ["retired", "marker"] {
        receiver.script(&format!("/{id}"), [Answer::status(StatusCode::NOT_FOUND)]);
        client
            .create_webhook(ACCOUNT, id, webhook(&receiver.url(&format!("/{id}")), &["A"], None))
            .await;
    }
    let publish = async |from: usize, to: usize, matched: i32| {
        let answer = client
            .publish(
                ACCOUNT,
                (from..to).map(|n| event(&format!("e{n}"), "A", "{}")).collect(),
            )
            .await;
        assert!(answer.events.iter().all(|event| event.matched_webhooks == matched));
    };
    publish(0, 10, 2).await;
    parked(&cluster, "retired").await;
    set_active(&client, "retired", false).await;
    receiver.script("/marker", [Answer::status(StatusCode::OK)]);
    publish(10, 20, 1).await;
    receiver
        .until("the marker's events", SOON, |log| log.distinct() == 20)
        .await;
    // The retired webhook's retries are at most half a second apart. The marker's next events fail four times each before they
    // arrive, which takes longer: whatever was to be sent to the other would have been sent by then.
    receiver.script("/retired", [Answer::status(StatusCode::OK)]);
    let failures = std::iter::repeat_n(Answer::status(StatusCode::NOT_FOUND), 40);
    receiver.script("/marker", failures.chain([Answer::status(StatusCode::OK)]));
    publish(20, 30, 1).await;
    receiver
        .until("the marker's later events", SOON, |log| log.distinct() >= 30)
        .await;
    let accepted = |path: &str| {
        receiver
            .log()
            .of(path)
            .iter()
            .filter(|request| request.status.is_success())
            .count()
    };
    assert_eq!(
        (accepted("/marker"), accepted("/retired")),
        (30, 0),
        "nothing is sent to a retired webhook"
    );
    set_active(&client, "retired", true).await;
    receiver.until("what was held", SOON, |log| log.distinct() == 40).await;
    cluster.drained(SOON).await;
    assert_eq!(
        (accepted("/marker"), accepted("/retired")),
        (30, 10),
        "what was published while it was retired is dropped"
    );
}

#[tokio::test]
async fn a_delivery_whose_policy_is_used_up_becomes_a_dead_letter_and_nothing_of_it_waits() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    for (id, status) in [("hopeless", StatusCode::NOT_FOUND), ("well", StatusCode::OK)] {
        receiver.script(&format!("/{id}"), [Answer::status(status)]);
        let mut wanted = webhook(&receiver.url(&format!("/{id}")), &["A"], None);
        if let Some(retry) = &mut wanted.retry {
            retry.max_attempts = 3;
        }
        client.create_webhook(ACCOUNT, id, wanted).await;
    }
    client
        .publish(ACCOUNT, (0..10).map(|n| event(&format!("e{n}"), "A", "{}")).collect())
        .await;
    cluster.drained(SOON).await;
    let attempts = receiver.log().of("/hopeless").len();
    assert_eq!(attempts, 30, "three attempts each, no more");
    let dead = cluster.etcd.client(0).keys_with("/dead/").await.unwrap();
    let counts = dead
        .iter()
        .filter_map(|key| key.rsplit('-').next()?.parse::<usize>().ok());
    assert_eq!(counts.sum::<usize>(), 10, "{dead:?}");
    assert!(dead.iter().all(|key| key.contains("/1010/hopeless/")), "{dead:?}");
}
