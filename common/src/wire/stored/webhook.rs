//! Webhooks as they are stored. Pure.

use std::num::NonZeroU32;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postrider_proto::stored as pb;

use super::{Unreadable, VERSION, auth, decode, encode, readable_version, unreadable};
use crate::id::{AccountId, Uid, WebhookId};
use crate::model::batching::{Batching, Mode};
use crate::model::order::{OnFailure, Order, Ordering};
use crate::model::webhook::{EventPattern, HttpVersion, PayloadFormat, RateLimit, Suspension, Webhook, WhenInactive};
use crate::retry;
use crate::schedule::Schedule;
use crate::time::Timestamp;

/// Encodes a webhook.
pub fn encode_webhook(webhook: &Webhook) -> Bytes {
    let header = |(name, value): &(String, String)| pb::Header {
        name: name.clone(),
        value: value.clone(),
    };
    let schedule = webhook.batching.schedule.as_ref();
    encode(&pb::Webhook {
        version: VERSION,
        uid: webhook.uid.as_str().to_owned(),
        generation: webhook.generation,
        create_time: webhook.create_time.as_millis(),
        update_time: webhook.update_time.as_millis(),
        display_name: webhook.display_name.clone(),
        description: webhook.description.clone(),
        target_url: webhook.target_url.clone(),
        auth: auth::to_pb(&webhook.auth),
        event_types: webhook.event_types.iter().map(ToString::to_string).collect(),
        retired: !webhook.active,
        hold_when_inactive: webhook.when_inactive == WhenInactive::Hold,
        max_in_flight: webhook.max_in_flight.map_or(0, NonZeroU32::get),
        timeout_ms: webhook.timeout.map_or(0, millis),
        http_version: match webhook.http_version {
            HttpVersion::Negotiated => 0,
            HttpVersion::Http1 => 1,
            HttpVersion::Http2 => 2,
        },
        payload_format: match webhook.payload_format {
            PayloadFormat::Envelope => 0,
            PayloadFormat::CloudEventsStructured => 1,
            PayloadFormat::CloudEventsBinary => 2,
            PayloadFormat::Raw => 3,
        },
        mode: match webhook.batching.mode {
            Mode::ByType => 0,
            Mode::RealTime => 1,
            Mode::Batch => 2,
        },
        max_events: webhook.batching.max_events.map_or(0, NonZeroU32::get),
        max_bytes: webhook.batching.max_bytes.map_or(0, NonZeroU32::get),
        max_delay_ms: webhook.batching.max_delay.map_or(0, millis),
        cron: schedule.map_or_else(String::new, |schedule| schedule.cron().to_owned()),
        time_zone: schedule.map_or_else(String::new, |schedule| schedule.time_zone().to_owned()),
        ordering: match webhook.order.ordering {
            Ordering::None => 0,
            Ordering::PerKey => 1,
            Ordering::Strict => 2,
        },
        on_failure: match webhook.order.on_failure {
            None => 0,
            Some(OnFailure::DeadLetter) => 1,
            Some(OnFailure::Block) => 2,
            Some(OnFailure::ParkKey) => 3,
        },
        retry: Some(retry_to_pb(&webhook.retry)),
        headers: webhook.headers.iter().map(header).collect(),
        labels: webhook.labels.clone(),
        suspension: webhook.suspension.as_ref().map(suspension_to_pb),
        rate_limit: webhook.rate_limit.map(|limit| pb::RateLimit {
            per_second: limit.per_second(),
            burst: limit.chosen_burst().map_or(0, NonZeroU32::get),
        }),
    })
}

/// A stored webhook with another suspension, the next generation and this time of update; everything else stays as it is, also what only a later release
/// can read. `webhook` is what `stored` decodes to.
///
/// Fields of a protobuf message may come several times: the last one counts. So what changes is appended.
pub fn suspend_webhook(stored: &Bytes, webhook: &Webhook, suspension: &Suspension) -> Bytes {
    let change = pb::Webhook {
        generation: webhook.generation.saturating_add(1),
        update_time: suspension.time.as_millis(),
        suspension: Some(suspension_to_pb(suspension)),
        ..pb::Webhook::default()
    };
    let mut whole = BytesMut::from(stored.as_ref());
    whole.extend_from_slice(&encode(&change));
    whole.freeze()
}

/// Decodes the webhook stored under `account` and `id`.
///
/// # Errors
/// [`Unreadable`] if the bytes are not a webhook of a version that this release reads.
pub fn decode_webhook(account: AccountId, id: WebhookId, bytes: Bytes) -> Result<Webhook, Unreadable> {
    let stored: pb::Webhook = decode(bytes)?;
    readable_version(stored.version)?;
    let patterns = stored.event_types.iter().map(|text| EventPattern::parse(text));
    Ok(Webhook {
        account,
        id,
        uid: Uid::new(&stored.uid).map_err(unreadable)?,
        generation: stored.generation,
        create_time: Timestamp::from_millis(stored.create_time),
        update_time: Timestamp::from_millis(stored.update_time),
        display_name: stored.display_name,
        description: stored.description,
        target_url: stored.target_url,
        auth: auth::from_pb(stored.auth)?,
        event_types: patterns.collect::<Result<_, _>>().map_err(unreadable)?,
        active: !stored.retired,
        when_inactive: if stored.hold_when_inactive {
            WhenInactive::Hold
        } else {
            WhenInactive::Drop
        },
        max_in_flight: NonZeroU32::new(stored.max_in_flight),
        timeout: (stored.timeout_ms != 0).then(|| Duration::from_millis(stored.timeout_ms)),
        http_version: match stored.http_version {
            0 => HttpVersion::Negotiated,
            1 => HttpVersion::Http1,
            2 => HttpVersion::Http2,
            other => return Err(Unreadable(format!("HTTP version {other}"))),
        },
        payload_format: match stored.payload_format {
            0 => PayloadFormat::Envelope,
            1 => PayloadFormat::CloudEventsStructured,
            2 => PayloadFormat::CloudEventsBinary,
            3 => PayloadFormat::Raw,
            other => return Err(Unreadable(format!("payload format {other}"))),
        },
        batching: Batching {
            mode: match stored.mode {
                0 => Mode::ByType,
                1 => Mode::RealTime,
                2 => Mode::Batch,
                other => return Err(Unreadable(format!("delivery mode {other}"))),
            },
            max_events: NonZeroU32::new(stored.max_events),
            max_bytes: NonZeroU32::new(stored.max_bytes),
            max_delay: (stored.max_delay_ms != 0).then(|| Duration::from_millis(stored.max_delay_ms)),
            schedule: schedule(&stored.cron, &stored.time_zone)?,
        },
        order: Order {
            ordering: match stored.ordering {
                0 => Ordering::None,
                1 => Ordering::PerKey,
                2 => Ordering::Strict,
                other => return Err(Unreadable(format!("ordering {other}"))),
            },
            on_failure: match stored.on_failure {
                0 => None,
                1 => Some(OnFailure::DeadLetter),
                2 => Some(OnFailure::Block),
                3 => Some(OnFailure::ParkKey),
                other => return Err(Unreadable(format!("on failure {other}"))),
            },
        },
        retry: retry_from_pb(stored.retry.unwrap_or_default()),
        headers: stored
            .headers
            .into_iter()
            .map(|header| (header.name, header.value))
            .collect(),
        labels: stored.labels,
        suspension: stored.suspension.map(|suspension| Suspension {
            reason: suspension.reason,
            time: Timestamp::from_millis(suspension.time),
            detail: suspension.detail,
            end_time: (suspension.end_time != 0).then(|| Timestamp::from_millis(suspension.end_time)),
        }),
        rate_limit: stored.rate_limit.map(rate_limit_from_pb).transpose()?,
    })
}

fn schedule(cron: &str, time_zone: &str) -> Result<Option<Schedule>, Unreadable> {
    if cron.is_empty() {
        return Ok(None);
    }
    let schedule = Schedule::new(cron, time_zone).map_err(|wrong| Unreadable(format!("a schedule: {wrong:?}")))?;
    Ok(Some(schedule))
}

fn suspension_to_pb(suspension: &Suspension) -> pb::Suspension {
    pb::Suspension {
        reason: suspension.reason.clone(),
        time: suspension.time.as_millis(),
        detail: suspension.detail.clone(),
        end_time: suspension.end_time.map_or(0, Timestamp::as_millis),
    }
}

fn rate_limit_from_pb(limit: pb::RateLimit) -> Result<RateLimit, Unreadable> {
    RateLimit::new(limit.per_second, NonZeroU32::new(limit.burst))
        .ok_or_else(|| Unreadable(format!("a rate limit of {} a second", limit.per_second)))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Values that are the default's are stored as zeros, so that a later release may change the default for those who chose nothing.
fn retry_to_pb(policy: &retry::Policy) -> pb::RetryPolicy {
    let default = retry::Policy::default();
    let unless = |value: Duration, default: Duration| if value == default { 0 } else { millis(value) };
    #[allow(clippy::float_cmp)] // The very same constant, or something else.
    let multiplier = if policy.multiplier == default.multiplier {
        0.0
    } else {
        policy.multiplier
    };
    pb::RetryPolicy {
        max_attempts: policy.max_attempts.map_or(0, NonZeroU32::get),
        initial_delay_ms: unless(policy.initial_delay, default.initial_delay),
        multiplier,
        max_delay_ms: unless(policy.max_delay, default.max_delay),
        max_age_ms: unless(policy.max_age, default.max_age),
    }
}

fn retry_from_pb(policy: pb::RetryPolicy) -> retry::Policy {
    let default = retry::Policy::default();
    let or = |millis: u64, default: Duration| {
        if millis == 0 {
            default
        } else {
            Duration::from_millis(millis)
        }
    };
    retry::Policy {
        max_attempts: NonZeroU32::new(policy.max_attempts),
        initial_delay: or(policy.initial_delay_ms, default.initial_delay),
        multiplier: if policy.multiplier == 0.0 {
            default.multiplier
        } else {
            policy.multiplier
        },
        max_delay: or(policy.max_delay_ms, default.max_delay),
        max_age: or(policy.max_age_ms, default.max_age),
    }
}

#[cfg(test)]
mod tests;
