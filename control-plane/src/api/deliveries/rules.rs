//! What requests of DeliveryService ask for. Pure.

use std::collections::BTreeSet;

use postrider_common::id::{AccountId, EventId, WebhookId};
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
        event_types: event_types(&request.event_types, violations),
        event: names::chosen("event_id", &request.event_id, EventId::new, violations),
        start,
        end,
    }
}

/// Reads patterns of event types; none means all.
pub(super) fn event_types(texts: &[String], violations: &mut Violations) -> Vec<EventPattern> {
    if texts.len() > MAX_EVENT_TYPES {
        let description = format!("{} event types, at most {MAX_EVENT_TYPES} are allowed", texts.len());
        violations.add("event_types", "TOO_MANY", description);
        return Vec::new();
    }
    let mut patterns = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match EventPattern::parse(text) {
            Ok(pattern) => patterns.push(pattern),
            Err(rule) => violations.add(format!("event_types[{index}]"), "MALFORMED", rule),
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
