//! What requests of DeliveryService ask for. Pure.

use std::collections::BTreeSet;

use postrider_common::id::{AccountId, EventId, WebhookId};
use postrider_common::model::command::{Filter as DeadLetters, Rate};
use postrider_common::model::webhook::EventPattern;
use postrider_common::time::Timestamp;
use postrider_proto::v1;
use v1::delivery::{State as Shown, View};

use crate::api::names;
use crate::api::status::Violations;
use crate::api::text_rules::known;
use crate::history::filter::Filter;
use crate::history::standing::State;

/// Event types that one request may name: more than anybody types, and few enough to be compared with every event.
const MAX_EVENT_TYPES: usize = 50;

/// Events that one command may name.
const MAX_EVENT_IDS: usize = 100;

/// Reasons that one command may name: more than there are.
const MAX_REASONS: usize = 20;

/// Most bytes of a reason.
const MAX_REASON_BYTES: usize = 64;

/// Reads the filter of ListDeliveries.
pub(super) fn filter(request: &v1::ListDeliveriesRequest, violations: &mut Violations) -> Filter {
    let mut states = BTreeSet::new();
    for (index, number) in request.states.iter().enumerate() {
        states.extend(state(known(&format!("states[{index}]"), *number, violations)));
    }
    let start = moment("start_time", request.start_time, violations);
    let end = moment("end_time", request.end_time, violations);
    if start.zip(end).is_some_and(|(start, end)| end <= start) {
        violations.add("end_time", "INCOMPATIBLE", "must be later than start_time");
    }
    Filter {
        states,
        event_types: event_types("event_types", &request.event_types, violations),
        event: names::chosen("event_id", &request.event_id, EventId::new, violations),
        start,
        end,
    }
}

/// Reads which dead letters are meant.
pub(super) fn dead_letters(filter: Option<&v1::DeadLetterFilter>, violations: &mut Violations) -> DeadLetters {
    let Some(filter) = filter else {
        return DeadLetters::default();
    };
    let start = moment("filter.start_time", filter.start_time, violations);
    let end = moment("filter.end_time", filter.end_time, violations);
    if start.zip(end).is_some_and(|(start, end)| end <= start) {
        violations.add("filter.end_time", "INCOMPATIBLE", "must be later than start_time");
    }
    for (field, count, most) in [
        ("filter.event_ids", filter.event_ids.len(), MAX_EVENT_IDS),
        ("filter.reasons", filter.reasons.len(), MAX_REASONS),
    ] {
        if count > most {
            violations.add(field, "TOO_MANY", format!("{count} values, at most {most} are allowed"));
        }
    }
    let mut event_ids = BTreeSet::new();
    for (index, text) in filter.event_ids.iter().take(MAX_EVENT_IDS).enumerate() {
        match EventId::new(text) {
            Ok(id) => drop(event_ids.insert(id)),
            Err(error) => violations.add(format!("filter.event_ids[{index}]"), "MALFORMED", error.rule),
        }
    }
    let is_reason = |text: &str| {
        (1..=MAX_REASON_BYTES).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    };
    for (index, text) in filter.reasons.iter().take(MAX_REASONS).enumerate() {
        if !is_reason(text) {
            let rule = "must be a reason such as STATUS or EXPIRED: [A-Z_]{1,64}";
            violations.add(format!("filter.reasons[{index}]"), "MALFORMED", rule);
        }
    }
    DeadLetters {
        event_ids,
        event_types: event_types("filter.event_types", &filter.event_types, violations),
        reasons: filter.reasons.iter().cloned().collect(),
        accepted_from: start,
        accepted_until: end,
    }
}

/// Reads how many dead letters a second are to go; 0 means without limit.
pub(super) fn rate(field: &str, per_second: f64, violations: &mut Violations) -> Option<Rate> {
    if per_second == 0.0 {
        return None;
    }
    let rate = Rate::new(per_second);
    if rate.is_none() {
        violations.add(field, "OUT_OF_RANGE", "must be 0.01 to 10,000, or 0 for no limit");
    }
    rate
}

/// Reads patterns of event types; none means all.
pub(super) fn event_types(field: &str, texts: &[String], violations: &mut Violations) -> Vec<EventPattern> {
    if texts.len() > MAX_EVENT_TYPES {
        let description = format!("{} event types, at most {MAX_EVENT_TYPES} are allowed", texts.len());
        violations.add(field, "TOO_MANY", description);
        return Vec::new();
    }
    let mut patterns = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match EventPattern::parse(text) {
            Ok(pattern) => patterns.push(pattern),
            Err(rule) => violations.add(format!("{field}[{index}]"), "MALFORMED", rule),
        }
    }
    patterns
}

/// Whose attempts are followed.
pub(super) fn followed(text: &str, violations: &mut Violations) -> Option<(AccountId, Option<WebhookId>)> {
    let parse = || {
        let rest = text.strip_prefix("accounts/")?;
        let (account, webhook) = match rest.split_once("/webhooks/") {
            Some((account, webhook)) => (account, Some(WebhookId::new(webhook).ok()?)),
            None => (rest, None),
        };
        Some((AccountId::new(account).ok()?, webhook))
    };
    let form =
        "accounts/{account} or accounts/{account}/webhooks/{webhook}, where both ids match [a-z0-9][a-z0-9-]{0,62}";
    names::named("parent", text, parse(), form, violations)
}

/// Whether bodies are to be shown.
pub(super) fn shows_bodies(view: i32, violations: &mut Violations) -> Bodies {
    match known("view", view, violations) {
        View::Full => Bodies::Shown,
        View::Unspecified | View::Basic => Bodies::Hidden,
    }
}

/// Whether bodies are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bodies {
    /// Yes.
    Shown,
    /// No.
    Hidden,
}

const fn state(shown: Shown) -> Option<State> {
    match shown {
        Shown::Unspecified => None,
        Shown::Pending => Some(State::Pending),
        Shown::Waiting => Some(State::Waiting),
        Shown::Delivered => Some(State::Delivered),
        Shown::Dead => Some(State::Dead),
        Shown::Dropped => Some(State::Dropped),
    }
}

fn moment(field: &str, moment: Option<prost_types::Timestamp>, violations: &mut Violations) -> Option<Timestamp> {
    let moment = moment?;
    let millis = moment.seconds.checked_mul(1000).filter(|millis| *millis >= 0);
    let millis = millis.filter(|_| (0..1_000_000_000).contains(&moment.nanos));
    let millis = millis.and_then(|millis| millis.checked_add(i64::from(moment.nanos) / 1_000_000));
    let read = millis
        .map(Timestamp::from_millis)
        .filter(|moment| *moment <= Timestamp::MAX);
    if read.is_none() {
        let description = "must lie in the years 1970 to 9999, with nanoseconds of 0 to 999,999,999";
        violations.add(field, "OUT_OF_RANGE", description);
    }
    read
}
