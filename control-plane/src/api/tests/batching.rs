//! Bad input of what says when events are sent, and good input that comes back as it was given.

use v1::delivery_options::Mode;
use v1::payload_options::Format;

use super::inputs::{delivery, refused, row};
use super::*;

const MODE: &str = "webhook.delivery.mode";
const EVENTS: &str = "webhook.delivery.max_events";
const BYTES: &str = "webhook.delivery.max_bytes";
const DELAY: &str = "webhook.delivery.max_delay";
const SCHEDULE: &str = "webhook.delivery.schedule";
const CRON: &str = "webhook.delivery.schedule.cron";
const ZONE: &str = "webhook.delivery.schedule.time_zone";

fn schedule(cron: &str, time_zone: &str) -> Option<v1::Schedule> {
    Some(v1::Schedule {
        cron: cron.to_owned(),
        time_zone: time_zone.to_owned(),
    })
}

const fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

#[tokio::test]
async fn numbers_that_cannot_stand_for_one_event_are_refused_and_others_come_back() {
    const NUMBERS: &str = "webhook.delivery.sequence_header";
    let rows = [(Mode::Unspecified, 0), (Mode::Batch, 1), (Mode::RealTime, 2)].map(|(mode, most)| {
        delivery(
            move |delivery| {
                delivery.sequence_header = true;
                delivery.mode = mode.into();
                delivery.max_events = most;
            },
            NUMBERS,
            "INCOMPATIBLE",
        )
    });
    refused(rows.into()).await;
    let wanted = v1::Webhook {
        delivery: Some(v1::DeliveryOptions {
            mode: Mode::RealTime.into(),
            sequence_header: true,
            ..Default::default()
        }),
        ..valid()
    };
    let created = serve().await.create("a", wanted).await;
    assert!(created.delivery.unwrap().sequence_header);
}

#[tokio::test]
async fn batches_that_cannot_be_are_refused() {
    let mut rows = Vec::new();
    for most in [-1, 1001] {
        rows.push(delivery(
            move |delivery| delivery.max_events = most,
            EVENTS,
            "OUT_OF_RANGE",
        ));
    }
    for most in [-1, 1, 1023, (512 << 10) + 1] {
        rows.push(delivery(
            move |delivery| delivery.max_bytes = most,
            BYTES,
            "OUT_OF_RANGE",
        ));
    }
    for delay in [-1, 0, 24 * 3600 + 1] {
        rows.push(delivery(
            move |delivery| delivery.max_delay = seconds(delay),
            DELAY,
            "OUT_OF_RANGE",
        ));
    }
    for cron in [
        "",
        "* * * *",
        "0 0 2 * * *",
        "60 * * * *",
        "0 25 * * *",
        "@daily",
        "zero two * * *",
    ] {
        rows.push(delivery(
            move |delivery| delivery.schedule = schedule(cron, "UTC"),
            CRON,
            "MALFORMED",
        ));
    }
    rows.push(delivery(
        |delivery| delivery.schedule = schedule("0 0 30 2 *", ""),
        CRON,
        "NEVER",
    ));
    for zone in ["Europe/Lutetia", "Mars", " UTC", "+01:00"] {
        rows.push(delivery(
            move |delivery| delivery.schedule = schedule("0 2 * * *", zone),
            ZONE,
            "UNKNOWN",
        ));
    }
    let both = |delivery: &mut v1::DeliveryOptions| {
        delivery.schedule = schedule("0 2 * * 1-5", "Europe/Paris");
        delivery.max_delay = seconds(60);
    };
    rows.push(delivery(both, DELAY, "INCOMPATIBLE"));
    let at_once = |delivery: &mut v1::DeliveryOptions| delivery.mode = Mode::RealTime.into();
    let delayed = move |delivery: &mut v1::DeliveryOptions| {
        at_once(delivery);
        delivery.max_delay = seconds(60);
    };
    rows.push(delivery(delayed, DELAY, "INCOMPATIBLE"));
    let scheduled = move |delivery: &mut v1::DeliveryOptions| {
        at_once(delivery);
        delivery.schedule = schedule("0 2 * * *", "");
    };
    rows.push(delivery(scheduled, SCHEDULE, "INCOMPATIBLE"));
    for format in [Format::Raw, Format::CloudeventsBinary, Format::CloudeventsStructured] {
        let payload = move |webhook: &mut v1::Webhook| {
            webhook.payload = Some(v1::PayloadOptions { format: format.into() });
        };
        let several = move |webhook: &mut v1::Webhook| {
            payload(webhook);
            webhook.delivery.get_or_insert_default().max_events = 2;
        };
        rows.push(row("several", several, EVENTS, "INCOMPATIBLE"));
        let batch = move |webhook: &mut v1::Webhook| {
            payload(webhook);
            webhook.delivery.get_or_insert_default().mode = Mode::Batch.into();
        };
        rows.push(row("batch", batch, MODE, "INCOMPATIBLE"));
    }
    refused(rows).await;
}

#[tokio::test]
async fn when_events_are_sent_reads_back_as_it_was_set_and_can_be_unset() {
    let mut server = serve().await;
    let wanted = v1::DeliveryOptions {
        mode: Mode::Batch.into(),
        max_events: 250,
        max_bytes: 100_000,
        schedule: schedule("30 6 * * 1-5", "America/New_York"),
        ..v1::DeliveryOptions::default()
    };
    let mut webhook = valid();
    webhook.delivery = Some(wanted.clone());
    let created = server.create("batches", webhook).await;
    let read = created.delivery.clone().unwrap();
    assert_eq!(
        (read.mode, read.max_events, read.max_bytes, read.schedule),
        (wanted.mode, wanted.max_events, wanted.max_bytes, wanted.schedule)
    );
    let request = v1::UpdateWebhookRequest {
        webhook: Some(v1::Webhook {
            name: created.name,
            delivery: Some(v1::DeliveryOptions {
                max_delay: seconds(90),
                ..v1::DeliveryOptions::default()
            }),
            ..v1::Webhook::default()
        }),
        update_mask: mask(&["delivery.schedule", "delivery.max_delay"]),
        validate_only: false,
    };
    let updated = server.webhooks.update_webhook(request).await.unwrap().into_inner();
    let read = updated.delivery.unwrap();
    assert_eq!(
        (read.schedule, read.max_delay, read.max_events),
        (None, seconds(90), 250)
    );
}
