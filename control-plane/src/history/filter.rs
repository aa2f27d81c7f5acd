//! Which deliveries and attempts are wanted. Pure.

use std::collections::BTreeSet;

use postrider_common::id::{EventId, EventName};
use postrider_common::model::webhook::EventPattern;
use postrider_common::time::Timestamp;

use super::standing::{Standing, State};

/// What deliveries have to be like. What is empty or `None` asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    /// Where they stand.
    pub(crate) states: BTreeSet<State>,
    /// What their event is.
    pub(crate) event_types: Vec<EventPattern>,
    /// Which event it is.
    pub(crate) event: Option<EventId>,
    /// Accepted at this time or later.
    pub(crate) start: Option<Timestamp>,
    /// Accepted before this time.
    pub(crate) end: Option<Timestamp>,
}

impl Filter {
    /// Whether deliveries in one of `states` are wanted.
    pub(crate) fn wants_state(&self, states: &[State]) -> bool {
        self.states.is_empty() || states.iter().any(|state| self.states.contains(state))
    }

    /// Whether a delivery is wanted.
    pub(crate) fn wants(&self, delivery: &Standing) -> bool {
        self.wants_state(&[delivery.state])
            && wants_name(&self.event_types, &delivery.name)
            && self.event.as_ref().is_none_or(|event| *event == delivery.event)
            && self.start.is_none_or(|start| delivery.accept_time >= start)
            && self.end.is_none_or(|end| delivery.accept_time < end)
    }
}

/// Whether events of this name are wanted.
pub(crate) fn wants_name(patterns: &[EventPattern], name: &EventName) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name))
}
