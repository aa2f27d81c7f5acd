//! What the owner of a shard is told to do with deliveries of a webhook. Pure.

use std::collections::BTreeSet;

use crate::id::{AccountId, EventId, Uid, WebhookId};
use crate::model::segment::{DeliveryState, Event};
use crate::model::webhook::EventPattern;
use crate::time::Timestamp;

/// Dead letters revived in one second at most, if that is asked for: far above what a shard delivers.
pub const MAX_PER_SECOND: f64 = 10_000.0;

/// A command. It stands in the store until it is carried out, whoever owns the shard by then.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The webhook's account.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    /// Its uid: a later webhook of that name is not meant.
    pub uid: Uid,
    /// When it was given: it is about what was there then.
    pub create_time: Timestamp,
    /// What to do.
    pub action: Action,
    /// How far it was carried out; `None` while nothing of it was done.
    pub begun: Option<Begun>,
}

/// What was done of a command about several dead letters: noted with each part of it, so that the next owner goes on where the last one died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// When it was begun: what died later is not meant, and a rate counts from here.
    pub time: Timestamp,
    /// How many were revived so far.
    pub revived: u64,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Try a delivery that waits, or is dead, now.
    Retry(EventId),
    /// Drop a delivery that has not ended, or is dead.
    Cancel(EventId),
    /// Let dead letters wait again.
    Redrive(Filter, Option<Rate>),
    /// Drop dead letters.
    Purge(Filter),
}

/// Which dead letters: those that fit everything that is set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Of these events; empty means of all.
    pub event_ids: BTreeSet<EventId>,
    /// Of events of these types; empty means of all.
    pub event_types: Vec<EventPattern>,
    /// That died for one of these reasons; empty means for any.
    pub reasons: BTreeSet<String>,
    /// Of events that were accepted at this moment or later.
    pub accepted_from: Option<Timestamp>,
    /// Of events that were accepted before this moment.
    pub accepted_until: Option<Timestamp>,
}

impl Filter {
    /// The dead letters of one event.
    pub fn of_event(id: EventId) -> Self {
        Self {
            event_ids: [id].into(),
            ..Self::default()
        }
    }

    /// Whether a dead letter is meant.
    pub fn fits(&self, event: &Event, state: &DeliveryState) -> bool {
        let of = |set: &BTreeSet<EventId>| set.is_empty() || set.contains(&event.id);
        of(&self.event_ids)
            && (self.event_types.is_empty() || self.event_types.iter().any(|pattern| pattern.matches(&event.name)))
            && (self.reasons.is_empty() || self.reasons.contains(&state.reason))
            && self.accepted_from.is_none_or(|from| event.accept_time >= from)
            && self.accepted_until.is_none_or(|until| event.accept_time < until)
    }
}

/// How many dead letters a second go at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate(f64);

impl Rate {
    /// A rate between one in 100 seconds and [`MAX_PER_SECOND`].
    pub fn new(per_second: f64) -> Option<Self> {
        // NaN is in no range.
        (0.01..=MAX_PER_SECOND)
            .contains(&per_second)
            .then_some(Self(per_second))
    }

    /// Dead letters a second.
    pub const fn per_second(self) -> f64 {
        self.0
    }

    /// When number `index` goes, of those of which the first goes at `from`.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // Milliseconds of some months.
    pub fn due(self, from: Timestamp, index: u64) -> Timestamp {
        Timestamp::from_millis(from.as_millis().saturating_add((index as f64 * 1000.0 / self.0) as i64))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::EventName;
    use crate::model::event_type::Category;

    fn event(id: &str, name: &str, accepted: i64) -> Event {
        Event {
            account: AccountId::new("a").unwrap(),
            id: EventId::new(id).unwrap(),
            name: EventName::new(name).unwrap(),
            timestamp: Timestamp::from_millis(0),
            ordering_key: None,
            expire_time: None,
            not_before_time: None,
            event_info: Some(Arc::from("1")),
            data: "{}".into(),
            accept_time: Timestamp::from_millis(accepted),
            traceparent: None,
            category: Category::default(),
        }
    }

    fn died(reason: &str) -> DeliveryState {
        DeliveryState {
            reason: reason.into(),
            ..DeliveryState::default()
        }
    }

    #[test]
    fn a_dead_letter_is_meant_if_it_fits_everything_that_is_set() {
        let letter = (event("e", "COURSE_A", 100), died("STATUS"));
        let fits = |filter: &Filter| filter.fits(&letter.0, &letter.1);
        assert!(fits(&Filter::default()));
        let all = Filter {
            event_ids: [EventId::new("e").unwrap(), EventId::new("f").unwrap()].into(),
            event_types: vec![EventPattern::parse("COURSE_*").unwrap()],
            reasons: ["STATUS".to_owned(), "TIMEOUT".to_owned()].into(),
            accepted_from: Some(Timestamp::from_millis(100)),
            accepted_until: Some(Timestamp::from_millis(101)),
        };
        assert!(fits(&all));
        for wrong in [
            Filter::of_event(EventId::new("g").unwrap()),
            Filter {
                event_types: vec![EventPattern::parse("USER_*").unwrap()],
                ..all.clone()
            },
            Filter {
                reasons: ["EXPIRED".to_owned()].into(),
                ..all.clone()
            },
            Filter {
                accepted_from: Some(Timestamp::from_millis(101)),
                ..all.clone()
            },
            Filter {
                accepted_until: Some(Timestamp::from_millis(100)),
                ..all.clone()
            },
        ] {
            assert!(!fits(&wrong), "{wrong:?}");
        }
    }
}
