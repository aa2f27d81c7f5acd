//! What became of an account's deliveries adds up at every moment, whatever dies meanwhile.

use std::time::Duration;

use http::StatusCode;
use postrider_proto::v1::{
    AccountUsage, DeleteWebhookRequest, DeliveryCounts, GetAccountUsageRequest, RetryPolicy, Webhook,
};
use postrider_tests::client::{Client, Publisher, event, millis, no_auth, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Receiver};
use postrider_tests::wait;

use crate::{ACCOUNT, FLOW, SOON};

pub(crate) async fn usage(client: &Client) -> AccountUsage {
    let request = GetAccountUsageRequest {
        name: format!("accounts/{ACCOUNT}"),
    };
    let usage = client.accounts().get_account_usage(request).await;
    usage.expect("usage is told").into_inner()
}

fn dropped(counts: &DeliveryCounts) -> i64 {
    counts.dropped.iter().map(|dropped| dropped.count).sum()
}

/// accepted = delivered + waiting + dead + dropped, for every webhook and in all.
pub(crate) fn assert_adds_up(usage: &AccountUsage) {
    let webhooks = usage.webhooks.iter().filter_map(|webhook| webhook.counts.as_ref());
    for counts in webhooks.chain(&usage.total).chain(&usage.deleted_webhooks) {
        let sum = counts.delivered + counts.waiting + counts.dead + dropped(counts);
        assert_eq!(counts.accepted, sum, "{usage:?}");
    }
}

pub(crate) fn counts_of<'a>(usage: &'a AccountUsage, id: &str) -> &'a DeliveryCounts {
    let name = format!("accounts/{ACCOUNT}/webhooks/{id}");
    let webhook = usage.webhooks.iter().find(|webhook| webhook.webhook == name);
    webhook
        .and_then(|webhook| webhook.counts.as_ref())
        .expect("the webhook is counted")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_delivery_is_counted_once_whoever_is_killed_among_6000() {
    const EVENTS: usize = 6000;
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(1);
    // One is well, one refuses everything twice and is used up then, one is deleted in the middle.
    client
        .create_webhook(ACCOUNT, "well", webhook(&receiver.url("/well"), &["A"], no_auth()))
        .await;
    let refusing = Webhook {
        retry: Some(RetryPolicy {
            max_attempts: 2,
            initial_delay: Some(millis(100)),
            ..RetryPolicy::default()
        }),
        ..webhook(&receiver.url("/refusing"), &["A"], no_auth())
    };
    receiver.script("/refusing", vec![Answer::status(StatusCode::BAD_REQUEST); 3 * EVENTS]);
    client.create_webhook(ACCOUNT, "refusing", refusing).await;
    client
        .create_webhook(
            ACCOUNT,
            "deleted",
            webhook(&receiver.url("/deleted"), &["A"], no_auth()),
        )
        .await;
    cluster.matching(ACCOUNT, "A", 3).await;
    let publisher = Publisher {
        replicas: cluster.clients(),
        account: ACCOUNT.to_owned(),
        batch: 20,
        concurrency: 4,
        patience: Duration::from_secs(60),
    };
    let events = (0..EVENTS)
        .map(|number| event(&format!("e{number}"), "A", "{}"))
        .collect();
    let publishing = publisher.publish_all(events);
    let breaking = async {
        receiver
            .until("a quarter", FLOW, |log| log.of("/well").len() >= EVENTS / 4)
            .await;
        cluster.kill_agent(0).await;
        assert_adds_up(&usage(&client).await);
        receiver
            .until("a half", FLOW, |log| log.of("/well").len() >= EVENTS / 2)
            .await;
        let request = DeleteWebhookRequest {
            name: format!("accounts/{ACCOUNT}/webhooks/deleted"),
            ..DeleteWebhookRequest::default()
        };
        client.webhooks().delete_webhook(request).await.expect("it is deleted");
        assert_adds_up(&usage(&client).await);
        cluster.kill_agent(0).await;
    };
    let watching = async {
        let mut last = 0;
        loop {
            let usage = usage(&client).await;
            assert_adds_up(&usage);
            let counts = counts_of(&usage, "well");
            assert!(
                counts.accepted >= last,
                "accepted fell from {last} to {}",
                counts.accepted
            );
            last = counts.accepted;
            tokio::task::yield_now().await;
            if usize::try_from(last) == Ok(EVENTS) {
                return;
            }
        }
    };
    let (effort, (), ()) = tokio::join!(publishing, breaking, watching);
    cluster.drained(FLOW).await;
    let usage = usage(&client).await;
    assert_adds_up(&usage);
    let all = i64::try_from(EVENTS).unwrap();
    let well = counts_of(&usage, "well");
    assert_eq!((well.accepted, well.delivered), (all, all));
    let refusing = counts_of(&usage, "refusing");
    assert_eq!((refusing.accepted, refusing.dead), (all, all));
    let total = usage.total.as_ref().unwrap();
    assert_eq!(
        (total.accepted, total.waiting),
        (i64::try_from(effort.deliveries).unwrap(), 0)
    );
    let deleted = usage.deleted_webhooks.as_ref().unwrap();
    println!("of the deleted webhook: {deleted:?}");
    assert!(
        deleted
            .dropped
            .iter()
            .all(|dropped| dropped.reason == "WEBHOOK_DELETED")
    );
}

#[tokio::test]
async fn what_waits_is_counted_as_waiting_wherever_it_waits() {
    let cluster = Cluster::start().await;
    let mut receiver = Receiver::start();
    let client = cluster.client(0);
    let waits = webhook(&receiver.url("/waits"), &["A"], no_auth());
    client.create_webhook(ACCOUNT, "waits", waits).await;
    cluster.matching(ACCOUNT, "A", 1).await;
    receiver.down().await;
    for number in 0..30 {
        client
            .publish(ACCOUNT, vec![event(&format!("e{number}"), "A", "{}")])
            .await;
        let usage = usage(&client).await;
        assert_adds_up(&usage);
        let counts = counts_of(&usage, "waits");
        assert_eq!((counts.accepted, counts.waiting), (number + 1, number + 1));
    }
    receiver.up();
    wait::until("everything to be counted as delivered", SOON, async || {
        let usage = usage(&client).await;
        assert_adds_up(&usage);
        (counts_of(&usage, "waits").delivered == 30).then_some(())
    })
    .await;
}
