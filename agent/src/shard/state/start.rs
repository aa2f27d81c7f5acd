//! Which attempt is made next. Pure.

use std::num::NonZeroU64;
use std::sync::Arc;

use postrider_common::model::segment::Event;
use postrider_common::model::webhook::{DEFAULT_MAX_IN_FLIGHT, Webhook};
use postrider_common::planted::{self, Bug};
use postrider_common::time::Timestamp;

use super::marks::Mark;
use super::{AGE, AttemptId, EXPIRED, State};
use crate::shard::delivery::{Delivery, Effects};

/// An attempt to be started.
#[derive(Debug, Clone)]
pub struct Start {
    /// Its name, until [`State::ended`].
    pub attempt: AttemptId,
    /// To whom.
    pub webhook: Arc<Webhook>,
    /// What: one event, or all of a batch.
    pub events: Vec<Arc<Event>>,
    /// The same on every attempt: the event's id, or the batch's.
    pub id: Arc<str>,
    /// Which attempt of this delivery, from 1.
    pub number: u32,
    /// Its number among the webhook's deliveries, if they are numbered.
    pub sequence: Option<NonZeroU64>,
    /// Whether the receiver answered last time.
    pub proven: bool,
}

/// What is under way.
pub(super) struct Flight {
    pub lane: usize,
    pub deliveries: Vec<Delivery>,
    pub webhook: Arc<Webhook>,
    /// The order under which it began.
    pub serial: Option<u32>,
}

impl State {
    /// Something may be ready to be started, as [`State::start`] is asked.
    pub fn has_runnable(&self, doubtful: bool) -> bool {
        self.runnable.has(doubtful)
    }

    /// Something may be ready for a receiver that did not answer last time.
    pub fn has_doubtful(&self) -> bool {
        self.runnable.has_doubtful()
    }

    /// The next attempt to be made, lanes taking turns; `None` if there is none now. Unless `doubtful`, none to a receiver that did not answer last time.
    pub fn start(&mut self, now: Timestamp, doubtful: bool, effects: &mut Effects) -> Option<Start> {
        while let Some(at) = self.runnable.pop(doubtful) {
            let mut started = None;
            if let Some(lane) = self.lane(at) {
                lane.queued = false;
                if lane.can_start(now)
                    && let Some(webhook) = lane.active().cloned()
                    && !self.coalesce(at, now, effects)
                {
                    started = self.take_off(at, webhook, now, effects);
                }
            }
            self.settle(at, now, effects);
            if started.is_some() {
                return started;
            }
        }
        None
    }

    fn take_off(&mut self, at: usize, webhook: Arc<Webhook>, now: Timestamp, effects: &mut Effects) -> Option<Start> {
        let mut deliveries = self.lane(at)?.pop_request();
        let cancelled = self.obey(deliveries.first_mut()?, now) == Some(Mark::Cancel);
        let first = deliveries.first()?;
        let bytes = deliveries.iter().map(|delivery| delivery.bytes).sum();
        let too_old = now.saturating_since(age_from(&webhook, &deliveries)) > webhook.retry.max_age;
        // The members of a batch stay together whatever becomes of one of them meanwhile.
        let expired = !planted::is(Bug::SentTooLate)
            && first.batch.is_none()
            && first.event.expire_time.is_some_and(|expires| expires <= now);
        let doomed = if expired { Some(EXPIRED) } else { too_old.then_some(AGE) };
        let replaced = first.origin.uid != webhook.uid && !planted::is(Bug::NamesakeServed);
        if replaced || doomed.is_some() || cancelled {
            let lane = self.lane(at)?;
            lane.forget(bytes);
            if let Some(order) = &mut lane.order {
                order.free(first);
            }
        }
        if replaced {
            for delivery in &deliveries {
                self.abandon(delivery, effects);
            }
            return None;
        }
        if cancelled {
            for delivery in &deliveries {
                self.cancel(delivery, now, effects);
            }
            return None;
        }
        if let Some(reason) = doomed {
            for delivery in self.used_up(at, deliveries, reason, now, effects) {
                self.die(at, delivery, reason, now, effects);
            }
            return None;
        }
        let start = Start {
            attempt: AttemptId(self.vacant_flights.pop().unwrap_or(self.flights.len())),
            webhook: webhook.clone(),
            id: first.batch.clone().unwrap_or_else(|| first.event.id.shared()),
            number: first.state.attempts.saturating_add(1),
            sequence: NonZeroU64::new(first.state.sequence).filter(|_| webhook.numbered && first.batch.is_none()),
            events: deliveries.iter().map(|delivery| delivery.event.clone()).collect(),
            proven: self.lane(at)?.breaker.is_proven(),
        };
        let lane = self.lane(at)?;
        lane.started(&webhook, now);
        let most = webhook.max_in_flight.unwrap_or(DEFAULT_MAX_IN_FLIGHT).get();
        let full = lane.in_flight >= most && lane.ready_len() > 0;
        let serial = lane.order.as_ref().map(|order| order.serial());
        self.in_flight += 1;
        self.tally.webhook_full += u64::from(full);
        let flight = Some(Flight {
            lane: at,
            deliveries,
            webhook,
            serial,
        });
        match self.flights.get_mut(start.attempt.0) {
            Some(slot) => *slot = flight,
            None => self.flights.push(flight),
        }
        Some(start)
    }
}

/// From when on the age of a request is counted: from the acceptance of its youngest event, or from when that was to be sent.
pub(super) fn age_from(webhook: &Webhook, deliveries: &[Delivery]) -> Timestamp {
    let from = |delivery: &Delivery| {
        let from = delivery.event.ready_time();
        let from = delivery.state.renewed.map_or(from, |renewed| renewed.max(from));
        if webhook.gathers(delivery.event.category) {
            webhook.batching.due(from)
        } else {
            from
        }
    };
    deliveries.iter().map(from).max().unwrap_or_default()
}
