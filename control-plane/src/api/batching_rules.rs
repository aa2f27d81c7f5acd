//! When the events of a webhook are sent, as asked for: checked. Pure.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use postrider_common::model::batching::{Batching, Mode};
use postrider_common::model::webhook::PayloadFormat;
use postrider_common::schedule::{Invalid, Schedule};
use postrider_proto::v1;
use postrider_proto::v1::delivery_options;

use super::status::Violations;
use super::text_rules::{duration, known};

/// Most events of one request.
const MAX_EVENTS: i32 = 1000;

/// Bytes of the events of one request with several: above, a batch would come near to what the store takes in one write.
const MAX_BYTES: RangeInclusive<i64> = 1024..=512 << 10;

/// How long events may wait for others: less than a second is what coalescing is for, more than a day is what schedules are for.
const MAX_DELAY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);

/// Checks what says when events are sent, and how many share a request.
pub(super) fn check(delivery: &v1::DeliveryOptions, format: PayloadFormat, violations: &mut Violations) -> Batching {
    let at = |name: &str| format!("webhook.delivery.{name}");
    let mode = match known(&at("mode"), delivery.mode, violations) {
        delivery_options::Mode::Unspecified => Mode::ByType,
        delivery_options::Mode::RealTime => Mode::RealTime,
        delivery_options::Mode::Batch => Mode::Batch,
    };
    if !(0..=MAX_EVENTS).contains(&delivery.max_events) {
        violations.add(
            at("max_events"),
            "OUT_OF_RANGE",
            "must be 1 to 1,000, or 0 for the default",
        );
    }
    if delivery.max_bytes != 0 && !MAX_BYTES.contains(&delivery.max_bytes) {
        let rule = "must be 1,024 to 524,288, or 0 for the default";
        violations.add(at("max_bytes"), "OUT_OF_RANGE", rule);
    }
    let max_delay = duration(&at("max_delay"), delivery.max_delay, MAX_DELAY, violations);
    let schedule = delivery
        .schedule
        .as_ref()
        .and_then(|schedule| check_schedule(schedule, violations));
    if mode == Mode::RealTime {
        let rule = "is for batches: mode is REAL_TIME";
        for (name, set) in [
            ("max_delay", max_delay.is_some()),
            ("schedule", delivery.schedule.is_some()),
        ] {
            if set {
                violations.add(at(name), "INCOMPATIBLE", rule);
            }
        }
    }
    if delivery.schedule.is_some() && delivery.max_delay.is_some() {
        violations.add(at("max_delay"), "INCOMPATIBLE", "cannot be set together with schedule");
    }
    if format != PayloadFormat::Envelope {
        let rule = "needs payload.format ENVELOPE: no other form holds several events";
        if delivery.max_events > 1 {
            violations.add(at("max_events"), "INCOMPATIBLE", rule);
        }
        if mode == Mode::Batch && delivery.max_events == 0 {
            violations.add(at("mode"), "INCOMPATIBLE", rule);
        }
    }
    Batching {
        mode,
        max_events: u32::try_from(delivery.max_events).ok().and_then(NonZeroU32::new),
        max_bytes: u32::try_from(delivery.max_bytes).ok().and_then(NonZeroU32::new),
        max_delay,
        schedule,
    }
}

fn check_schedule(schedule: &v1::Schedule, violations: &mut Violations) -> Option<Schedule> {
    let wrong = match Schedule::new(&schedule.cron, &schedule.time_zone) {
        Ok(schedule) => return Some(schedule),
        Err(wrong) => wrong,
    };
    for wrong in wrong {
        let (field, reason) = match wrong {
            Invalid::Cron(_) => ("webhook.delivery.schedule.cron", "MALFORMED"),
            Invalid::TimeZone(_) => ("webhook.delivery.schedule.time_zone", "UNKNOWN"),
            Invalid::Never => ("webhook.delivery.schedule.cron", "NEVER"),
        };
        violations.add(field, reason, wrong.to_string());
    }
    None
}
