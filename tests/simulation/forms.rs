//! What the driver sends and reads: webhooks, names, times, counts.

use std::num::NonZeroU16;
use std::time::Duration;

use postrider_common::id::{AccountId, WebhookId};
use postrider_common::{key, shard};
use postrider_proto::v1::{
    AccountUsage, DeliveryCounts, DeliveryOptions, Event, NoAuth, RetryPolicy, SignatureAuth, Webhook, auth,
    delivery_options, webhook as webhook_form,
};
use postrider_tests::client::{millis, webhook};

use crate::net::wall;
use crate::plan::{Filter, Hook, Host, Order, Sharing};
use crate::receiver::TIMEOUT;
use crate::world::{Counts, Published};

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

/// A listener URL of a webhook, by its number.
pub(crate) fn url(hook: usize, place: usize) -> String {
    let host = Host::Receiver.ip();
    if place == 0 {
        format!("http://{host}/w{hook}")
    } else {
        format!("http://{host}/w{hook}-{place}")
    }
}

/// The number of the first listener URL of a webhook in one of its lives.
pub(crate) const fn first_place(life: usize) -> usize {
    life * 2
}

/// The life that a listener URL is of.
pub(crate) const fn life_of(place: usize) -> usize {
    place / 2
}

/// A filter as a webhook has it.
const fn expression(filter: Filter) -> &'static str {
    match filter {
        Filter::NotTheSecond => "event.data.number != 1",
        Filter::FirstTwo => "event.data.number < 2 && event.eventName == 'E'",
        Filter::Keyed => "event.orderingKey != '' && event.data.number != 3",
    }
}

/// Whether a webhook wants an event.
pub(crate) fn wants(hook: &Hook, event: &Published) -> bool {
    match hook.filter {
        None => true,
        Some(Filter::NotTheSecond) => event.number != 1,
        Some(Filter::FirstTwo) => event.number < 2,
        Some(Filter::Keyed) => !event.key.is_empty() && event.number != 3,
    }
}

/// A published event as it is sent, with what filters ask for.
pub(crate) fn sent(event: &Published) -> Event {
    let body = format!(r#"{{"number":{},"text":"{}"}}"#, event.number, event.id);
    Event {
        ordering_key: event.key.clone(),
        not_before_time: event.not_before.map(moment),
        expire_time: event.expires.map(moment),
        ..postrider_tests::client::event(&event.id, "E", body)
    }
}

/// A webhook as it is created in one of its lives; signed with the secret, if it is to be signed with one that is known.
pub(crate) fn form(number: usize, hook: &Hook, life: usize, secret: &str) -> Webhook {
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
    // One that was created again is held up by nothing of its own: see the receiver.
    let max_attempts = if life > 0 && hook.blocks() {
        0
    } else {
        hook.max_attempts
    };
    let signature = SignatureAuth {
        secret: secret.to_owned(),
        ..SignatureAuth::default()
    };
    let method = if hook.signed {
        auth::Method::Signature(signature)
    } else {
        auth::Method::None(NoAuth {})
    };
    Webhook {
        retry: Some(RetryPolicy {
            max_attempts,
            initial_delay: Some(millis(100)),
            max_delay: Some(millis(1_000)),
            ..RetryPolicy::default()
        }),
        delivery: Some(delivery),
        when_inactive: webhook_form::WhenInactive::Hold.into(),
        filter: hook.filter.map(expression).unwrap_or_default().to_owned(),
        ..webhook(&url(number, first_place(life)), &["E"], Some(method))
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

/// The counts of all webhooks and of those that were deleted, if they add up.
pub(crate) fn add_all_up(usage: AccountUsage, hooks: usize) -> Result<(Vec<Counts>, Counts), String> {
    let mut all = vec![Counts::default(); hooks];
    let deleted = add_up("all that were deleted", usage.deleted_webhooks.as_ref())?;
    let mut sum = deleted.clone();
    for one in usage.webhooks {
        let counts = add_up(&one.webhook, one.counts.as_ref())?;
        sum = sum.and(&counts);
        let number = one.webhook.rsplit('w').next();
        let number = number.and_then(|number| number.parse::<usize>().ok());
        if let Some(place) = number.and_then(|number| all.get_mut(number)) {
            *place = counts;
        }
    }
    let total = add_up("the account", usage.total.as_ref())?;
    if total != sum {
        return Err(format!(
            "the counts of the account are {total:?}, and those of its webhooks {sum:?}"
        ));
    }
    Ok((all, deleted))
}

/// The counts of a webhook, if they add up.
fn add_up(webhook: &str, counts: Option<&DeliveryCounts>) -> Result<Counts, String> {
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
