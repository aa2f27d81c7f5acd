//! Bad input of the order in which a webhook gets its events, and good input that comes back as it was given.

use v1::delivery_options::{Mode, OnFailure, Ordering};

use super::inputs::{delivery, refused};
use super::*;

const NO: &str = "INCOMPATIBLE";

fn order(delivery: &mut v1::DeliveryOptions, ordering: Ordering, on_failure: OnFailure) {
    delivery.ordering = ordering.into();
    delivery.on_failure = on_failure.into();
}

#[tokio::test]
async fn what_cannot_keep_an_order_is_refused() {
    let mut rows = Vec::new();
    for (ordering, on_failure) in [
        (Ordering::Unspecified, OnFailure::Block),
        (Ordering::None, OnFailure::Block),
        (Ordering::Unspecified, OnFailure::ParkKey),
        (Ordering::None, OnFailure::ParkKey),
        (Ordering::Strict, OnFailure::ParkKey),
    ] {
        rows.push(delivery(
            move |delivery| order(delivery, ordering, on_failure),
            "webhook.delivery.on_failure",
            NO,
        ));
    }
    for ordering in [Ordering::PerKey, Ordering::Strict] {
        let ordered = move |delivery: &mut v1::DeliveryOptions| delivery.ordering = ordering.into();
        rows.push(delivery(
            move |delivery| {
                ordered(delivery);
                delivery.mode = Mode::Batch.into();
            },
            "webhook.delivery.mode",
            NO,
        ));
        rows.push(delivery(
            move |delivery| {
                ordered(delivery);
                delivery.max_delay = Some(prost_types::Duration { seconds: 60, nanos: 0 });
            },
            "webhook.delivery.max_delay",
            NO,
        ));
        rows.push(delivery(
            move |delivery| {
                ordered(delivery);
                delivery.schedule = Some(v1::Schedule {
                    cron: "0 2 * * *".into(),
                    time_zone: String::new(),
                });
            },
            "webhook.delivery.schedule",
            NO,
        ));
    }
    rows.push(delivery(
        |delivery| {
            delivery.ordering = Ordering::PerKey.into();
            delivery.max_events = 2;
        },
        "webhook.delivery.max_events",
        NO,
    ));
    refused(rows).await;
}

#[tokio::test]
async fn an_order_reads_back_as_it_was_set_and_a_default_is_not_turned_into_a_choice() {
    let mut server = serve().await;
    for (number, (ordering, on_failure)) in [
        (Ordering::None, OnFailure::DeadLetter),
        (Ordering::PerKey, OnFailure::Unspecified),
        (Ordering::PerKey, OnFailure::Block),
        (Ordering::PerKey, OnFailure::ParkKey),
        (Ordering::Strict, OnFailure::DeadLetter),
    ]
    .into_iter()
    .enumerate()
    {
        let mut webhook = valid();
        order(webhook.delivery.get_or_insert_default(), ordering, on_failure);
        let read = server
            .create(&format!("order-{number}"), webhook)
            .await
            .delivery
            .unwrap();
        assert_eq!((read.ordering(), read.on_failure()), (ordering, on_failure));
    }
    let mut strict = v1::DeliveryOptions::default();
    order(&mut strict, Ordering::Strict, OnFailure::Unspecified);
    strict.max_events = 50;
    let request = |delivery: v1::DeliveryOptions, path: &str| v1::UpdateWebhookRequest {
        webhook: Some(v1::Webhook {
            name: "accounts/1010/webhooks/order-1".into(),
            delivery: Some(delivery),
            ..v1::Webhook::default()
        }),
        update_mask: mask(&[path]),
        validate_only: false,
    };
    let updated = server
        .webhooks
        .update_webhook(request(strict.clone(), "delivery.ordering"));
    let read = updated.await.unwrap().into_inner().delivery.unwrap();
    assert_eq!(
        (read.ordering(), read.on_failure()),
        (Ordering::Strict, OnFailure::Unspecified)
    );
    let updated = server.webhooks.update_webhook(request(strict, "delivery.max_events"));
    assert_eq!(updated.await.unwrap().into_inner().delivery.unwrap().max_events, 50);
}
