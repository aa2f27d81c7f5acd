//! Filters: what an event's body says decides who gets it, on every control plane alike.

use postrider_proto::v1::{PublishRequest, UpdateWebhookRequest, Webhook};
use postrider_tests::client::{Client, event, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::Receiver;
use postrider_tests::wait::until;

use crate::{ACCOUNT, SOON};

fn filtered(url: &str, filter: &str) -> Webhook {
    Webhook {
        filter: filter.to_owned(),
        ..webhook(url, &["ORDER_*"], None)
    }
}

/// How many webhooks would get an order of this body. Publishes nothing.
async fn matching(client: &Client, body: &str) -> i32 {
    let request = PublishRequest {
        parent: format!("accounts/{ACCOUNT}"),
        events: vec![event("", "ORDER_PAID", body.to_owned())],
        validate_only: true,
        ..PublishRequest::default()
    };
    let answer = client.publishing().publish(request).await.unwrap().into_inner();
    answer.events[0].matched_webhooks
}

#[tokio::test]
async fn a_body_decides_who_gets_an_event_and_all_control_planes_agree() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    for (id, filter) in [
        ("all", ""),
        ("large", "event.data.amount > 100"),
        ("german", "has(event.data.country) && event.data.country == 'DE'"),
        (
            "urgent",
            "event.data.tags.exists(tag, tag == 'urgent') || event.orderingKey == 'vip'",
        ),
    ] {
        client
            .create_webhook(ACCOUNT, id, filtered(&receiver.url(&format!("/{id}")), filter))
            .await;
    }
    let bodies = [
        ("small", r#"{"amount":7}"#, 1),
        ("large", r#"{"amount":101}"#, 2),
        ("german", r#"{"amount":7,"country":"DE"}"#, 2),
        (
            "everything",
            r#"{"amount":1e3,"country":"DE","tags":["x","urgent"]}"#,
            4,
        ),
        ("strange", r#"["amount"]"#, 1),
    ];
    for client in cluster.clients() {
        for (name, body, webhooks) in bodies {
            until("this control plane to know the filters", SOON, async || {
                (matching(&client, body).await == webhooks).then_some(())
            })
            .await;
            client
                .publish(
                    ACCOUNT,
                    vec![event(&format!("{name}-{:p}", &client), "ORDER_PAID", body)],
                )
                .await;
        }
    }
    cluster.drained(SOON).await;
    let log = receiver.log();
    let counts = ["/all", "/large", "/german", "/urgent"].map(|path| log.of(path).len());
    assert_eq!(counts, [10, 4, 4, 2]);
    let named = |path: &str, name: &str| {
        log.of(path)
            .iter()
            .filter(|request| request.header("webhook-id").starts_with(name))
            .count()
    };
    assert_eq!((named("/large", "large"), named("/german", "german")), (2, 2));
}

#[tokio::test]
async fn a_filter_that_changes_counts_at_once_where_it_was_changed() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let created = client
        .create_webhook(ACCOUNT, "a", filtered(&receiver.url("/a"), "event.data.n == 1"))
        .await;
    assert_eq!(created.filter, "event.data.n == 1");
    let one = |id: &str, number: i32| event(id, "ORDER_PAID", format!("{{\"n\":{number}}}"));
    client.publish(ACCOUNT, vec![one("a1", 1), one("a2", 2)]).await;
    let request = UpdateWebhookRequest {
        webhook: Some(Webhook {
            name: created.name,
            filter: "event.data.n == 2".to_owned(),
            ..Webhook::default()
        }),
        ..UpdateWebhookRequest::default()
    };
    client.webhooks().update_webhook(request).await.unwrap();
    client.publish(ACCOUNT, vec![one("b1", 1), one("b2", 2)]).await;
    cluster.drained(SOON).await;
    let log = receiver.log();
    let mut ids: Vec<&str> = log
        .requests()
        .iter()
        .map(|request| request.header("webhook-id"))
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, ["a1", "b2"]);
}
