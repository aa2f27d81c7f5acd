//! Webhooks that the system switched off, and rate limits, as callers see them.

use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key;
use postrider_common::model::webhook::Suspension;
use postrider_common::store::{Op, Write};
use postrider_common::time::{Clock as _, Timestamp};
use postrider_common::wire::stored::{decode_webhook, suspend_webhook};

use super::*;

const NAME: &str = "accounts/1010/webhooks/a";

/// What an agent does.
async fn suspend(server: &Server) -> Timestamp {
    let (account, id) = (AccountId::new("1010").unwrap(), WebhookId::new("a").unwrap());
    let key = key::webhook(&account, &id);
    let stored = server.store.get(&key).await.unwrap().0.unwrap().value;
    let webhook = decode_webhook(account, id, stored.clone()).unwrap();
    let before = webhook.suspension.as_ref();
    let suspension = Suspension::begin(before, "GONE", "the receiver answered 410", SystemClock.now());
    let write = Write {
        guards: Vec::new(),
        ops: vec![Op::put(key, suspend_webhook(&stored, &webhook, &suspension))],
    };
    server.store.write(write).await.unwrap();
    suspension.time
}

async fn get(server: &mut Server) -> v1::Webhook {
    let request = v1::GetWebhookRequest { name: NAME.into() };
    server.webhooks.get_webhook(request).await.unwrap().into_inner()
}

async fn update(server: &mut Server, webhook: v1::Webhook, paths: &[&str]) -> v1::Webhook {
    let request = v1::UpdateWebhookRequest {
        webhook: Some(v1::Webhook {
            name: NAME.into(),
            ..webhook
        }),
        update_mask: mask(paths),
        validate_only: false,
    };
    server.webhooks.update_webhook(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_suspended_webhook_says_why_and_is_put_back_by_whoever_sets_it_active() {
    let mut server = serve().await;
    let created = server.create("a", valid()).await;
    for round in 0_i64..3 {
        let time = suspend(&server).await;
        let suspended = get(&mut server).await;
        assert_eq!(suspended.state(), v1::webhook::State::Suspended);
        assert_eq!(suspended.generation, 2 + round * 3);
        assert_ne!(suspended.etag, created.etag);
        assert_eq!(suspended.active, Some(true), "its owner did not switch it off");
        let reason = format!("GONE: switched off by the system at {time}: the receiver answered 410; ");
        assert!(
            suspended.state_reason.starts_with(&reason),
            "{}",
            suspended.state_reason
        );
        // Other changes leave it suspended, also when all fields are replaced and this one is not said.
        let other = v1::Webhook {
            display_name: round.to_string(),
            active: None,
            ..valid()
        };
        let changed = update(&mut server, other.clone(), &["display_name"]).await;
        assert_eq!(changed.state(), v1::webhook::State::Suspended);
        let changed = update(&mut server, other, &["*"]).await;
        assert_eq!(changed.state(), v1::webhook::State::Suspended);
        let on = v1::Webhook {
            active: Some(true),
            ..v1::Webhook::default()
        };
        let active = update(
            &mut server,
            on,
            [&["active"][..], &[]][usize::try_from(round).unwrap() % 2],
        )
        .await;
        assert_eq!(
            (active.state(), active.state_reason.as_str()),
            (v1::webhook::State::Active, "")
        );
        assert_eq!(active, get(&mut server).await);
    }
}

#[tokio::test]
async fn a_webhook_that_is_retired_while_suspended_is_retired_and_both_end_together() {
    let mut server = serve().await;
    server.create("a", valid()).await;
    suspend(&server).await;
    let set = |active| v1::Webhook {
        active: Some(active),
        ..v1::Webhook::default()
    };
    let retired = update(&mut server, set(false), &["active"]).await;
    assert_eq!(retired.state(), v1::webhook::State::Retired);
    let active = update(&mut server, set(true), &["active"]).await;
    assert_eq!(active.state(), v1::webhook::State::Active);
}

#[tokio::test]
async fn a_rate_limit_is_kept_shown_with_its_burst_and_taken_away() {
    let mut server = serve().await;
    server.create("a", valid()).await;
    let limited = |per_second, burst| v1::Webhook {
        delivery: Some(v1::DeliveryOptions {
            rate_limit: Some(v1::RateLimit { per_second, burst }),
            ..v1::DeliveryOptions::default()
        }),
        ..v1::Webhook::default()
    };
    let shown = |webhook: v1::Webhook| {
        webhook
            .delivery
            .unwrap()
            .rate_limit
            .map(|limit| (limit.per_second, limit.burst))
    };
    for ((per_second, burst), expected) in [((0.01, 0), 1), ((2.5, 0), 2), ((2.5, 7), 7), ((10_000.0, 0), 10_000)] {
        update(&mut server, limited(per_second, burst), &["delivery.rate_limit"]).await;
        assert_eq!(shown(get(&mut server).await), Some((per_second, expected)));
    }
    update(&mut server, limited(1.5, 3), &[]).await;
    assert_eq!(shown(get(&mut server).await), Some((1.5, 3)));
    let without = update(&mut server, v1::Webhook::default(), &["delivery.rate_limit"]).await;
    assert_eq!(shown(without), None);
}
