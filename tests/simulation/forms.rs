//! What the driver sends and reads: webhooks, names, times, counts.

use std::num::NonZeroU16;
use std::time::Duration;

use postrider_common::id::{AccountId, WebhookId};
use postrider_common::{key, shard};
use postrider_proto::v1::{
    DeliveryCounts, DeliveryOptions, RetryPolicy, Webhook, delivery_options, webhook as webhook_form,
};
use postrider_tests::client::{millis, no_auth, signature, webhook};

use crate::net::wall;
use crate::plan::{Hook, Host, Order, Sharing};
use crate::receiver::TIMEOUT;
use crate::world::Counts;

/// The account that everything is of.
pub(crate) const ACCOUNT: &str = "acme";

/// The owner key of a webhook's shard.
pub(crate) fn shard_of(hook: usize, shards: u16) -> Result<String, String> {
    let account = AccountId::new(ACCOUNT).map_err(|error| error.to_string())?;
    let webhook = WebhookId::new(&format!("w{hook}")).map_err(|error| error.to_string())?;
    let count = NonZeroU16::new(shards).ok_or("no shards")?;
    Ok(key::owner(shard::of(&account, &webhook, count)).to_string())
}

/// The name of a webhook.
pub(crate) fn name(hook: usize) -> String {
    format!("accounts/{ACCOUNT}/webhooks/w{hook}")
}

/// The listener URL of a webhook that was moved so many times.
pub(crate) fn url(hook: usize, place: usize) -> String {
    let host = Host::Receiver.ip();
    if place == 0 {
        format!("http://{host}/w{hook}")
    } else {
        format!("http://{host}/w{hook}-{place}")
    }
}

/// A webhook as it is created.
pub(crate) fn form(number: usize, hook: &Hook) -> Webhook {
    let order = match hook.order {
        Order::None => delivery_options::Ordering::None,
        Order::PerKey => delivery_options::Ordering::PerKey,
        Order::Strict => delivery_options::Ordering::Strict,
    };
    let on_failure = match hook.order {
        Order::None => delivery_options::OnFailure::Unspecified,
        _ if hook.dead_letters => delivery_options::OnFailure::DeadLetter,
        Order::PerKey => delivery_options::OnFailure::ParkKey,
        Order::Strict => delivery_options::OnFailure::Block,
    };
    let mut delivery = DeliveryOptions {
        ordering: order.into(),
        on_failure: on_failure.into(),
        timeout: Some(millis(i32::try_from(TIMEOUT.as_millis()).unwrap_or(2_000))),
        sequence_header: hook.numbered,
        max_in_flight: if hook.order == Order::Strict {
            0
        } else {
            hook.max_in_flight
        },
        ..DeliveryOptions::default()
    };
    match hook.sharing {
        Sharing::Single => delivery.mode = delivery_options::Mode::RealTime.into(),
        Sharing::Coalesced => {
            delivery.mode = delivery_options::Mode::RealTime.into();
            delivery.max_events = 5;
        }
        Sharing::Batched => {
            delivery.mode = delivery_options::Mode::Batch.into();
            delivery.max_events = 5;
            delivery.max_delay = Some(millis(1_000));
        }
    }
    Webhook {
        retry: Some(RetryPolicy {
            max_attempts: hook.max_attempts,
            initial_delay: Some(millis(100)),
            max_delay: Some(millis(1_000)),
            ..RetryPolicy::default()
        }),
        delivery: Some(delivery),
        when_inactive: webhook_form::WhenInactive::Hold.into(),
        ..webhook(
            &url(number, 0),
            &["E"],
            if hook.signed { signature() } else { no_auth() },
        )
    }
}

/// The wall time at a moment of the simulation.
pub(crate) fn moment(at: Duration) -> prost_types::Timestamp {
    let millis = wall(at).as_millis();
    prost_types::Timestamp {
        seconds: millis.div_euclid(1000),
        nanos: i32::try_from(millis.rem_euclid(1000)).unwrap_or(0) * 1_000_000,
    }
}

/// The counts of a webhook, if they add up.
pub(crate) fn add_up(webhook: &str, counts: Option<&DeliveryCounts>) -> Result<Counts, String> {
    let counts = counts.ok_or_else(|| format!("{webhook} has no counts"))?;
    let counts = Counts {
        accepted: counts.accepted,
        delivered: counts.delivered,
        waiting: counts.waiting,
        dead: counts.dead,
        dropped: counts.dropped.iter().map(|dropped| dropped.count).sum(),
    };
    let ended = counts.delivered + counts.waiting + counts.dead + counts.dropped;
    if counts.accepted != ended
        || [counts.delivered, counts.waiting, counts.dead, counts.dropped]
            .iter()
            .any(|count| *count < 0)
    {
        return Err(format!("the counts of {webhook} do not add up: {counts:?}"));
    }
    Ok(counts)
}
