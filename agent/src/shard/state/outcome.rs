//! What follows from the end of an attempt. Pure.

use std::sync::Arc;
use std::time::Duration;

use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key;
use postrider_common::model::failing::Failing;
use postrider_common::model::history::{self, Fate};
use postrider_common::model::usage::Dropped;
use postrider_common::model::webhook::Webhook;
use postrider_common::planted::{self, Bug};
use postrider_common::retry::{Next, UsedUp};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;

use super::marks::Mark;
use super::start::age_from;
use super::{AttemptId, EXPIRED, NOT_MADE_PAUSE, State};
use crate::attempt::{Outcome, Reason};
use crate::limit::breaker::Ended;
use crate::limit::failing::{self, Note};
use crate::shard::delivery::{Delivery, Effects, End, Known, Record, Suspend};
use crate::shard::lane::{Config, Lane};

impl State {
    /// An attempt ended. `fraction` in `0.0..1.0` is the jitter of the next one. Answers which entry of `effects.history` tells of it: what the attempt
    /// saw is for the caller to add.
    pub fn ended(
        &mut self,
        attempt: AttemptId,
        outcome: Outcome,
        now: Timestamp,
        fraction: f64,
        effects: &mut Effects,
    ) -> Option<usize> {
        let flight = self.flights.get_mut(attempt.0).and_then(Option::take)?;
        self.vacant_flights.push(attempt.0);
        self.in_flight -= 1;
        let (at, deliveries) = (flight.lane, flight.deliveries);
        let lane = self.lane(at)?;
        lane.in_flight -= 1;
        lane.forget(deliveries.iter().map(|delivery| delivery.bytes).sum());
        if let (Some(order), Some(first)) = (&mut lane.order, deliveries.first()) {
            order.ended(flight.serial, first);
        }
        lane.breaker.ended(health(&outcome, &deliveries), now, fraction);
        self.note(at, effects);
        let told = tell(&outcome, &deliveries, &flight.webhook, now, effects);
        match outcome {
            Outcome::Delivered { .. } => {
                if told.is_some() {
                    carry(&deliveries, &Fate::Delivered, effects);
                }
                self.delivered(&deliveries, effects);
            }
            Outcome::Failed {
                reason,
                status,
                retry_after,
            } => {
                self.suspend(at, &flight.webhook, reason, status, effects);
                let failure = Failure {
                    reason,
                    status,
                    retry_after,
                    fraction,
                };
                self.failed(at, deliveries, Vec::new(), &flight.webhook, &failure, now, effects);
            }
            Outcome::Partial { status, failed } => {
                let (left, over): (Vec<_>, Vec<_>) = deliveries
                    .into_iter()
                    .partition(|delivery| failed.contains(delivery.event.id.as_str()));
                let failure = Failure {
                    reason: Reason::Partial,
                    status: Some(status),
                    retry_after: None,
                    fraction,
                };
                if left.is_empty() || planted::is(Bug::PartTakenForAll) {
                    self.delivered(&left, effects);
                    carry(&over, &Fate::Delivered, effects);
                    self.delivered(&over, effects);
                } else {
                    self.failed(at, left, over, &flight.webhook, &failure, now, effects);
                }
            }
            Outcome::NotMade { .. } => {
                let lane = self.lane(at)?;
                lane.paused_until = lane.paused_until.max(now + NOT_MADE_PAUSE);
                lane.put_back(deliveries);
                self.tally.not_made += 1;
                self.enforce(at, now, effects);
            }
        }
        self.settle(at, now, effects);
        told
    }

    /// Keeps in the store what the death of this agent must not make forgotten: since when a webhook has only failed.
    fn note(&mut self, at: usize, effects: &mut Effects) {
        let (shard, suspend_after) = (self.shard, self.suspend_after);
        let Some(lane) = self.lane(at) else { return };
        let webhook = match &lane.config {
            Config::Known(webhook, _) => Some((&webhook.uid, webhook.generation)),
            Config::Unknown | Config::Unreadable | Config::Gone(_) => None,
        };
        let key = |lane: &Lane| key::failing_of(shard, &lane.account, &lane.webhook);
        match failing::note(lane.breaker.streak(), webhook, lane.noted.as_ref(), suspend_after) {
            Note::Keep => {}
            Note::Write(failing) => {
                effects
                    .records
                    .push(Record::Note(key(lane), stored::encode_failing(&failing)));
                lane.noted = Some(failing);
            }
            Note::Erase => {
                effects.records.push(Record::Discard(key(lane)));
                lane.noted = None;
            }
        }
    }

    /// A webhook was failing when the shard was taken.
    pub fn failing(&mut self, (account, webhook): (&AccountId, &WebhookId), failing: Failing, known: Option<&Known>) {
        let at = self.lane_of(account, webhook);
        let Some(lane) = self.lane(at) else { return };
        lane.noted = Some(failing);
        if let Some(known) = known {
            lane.learn(known);
        }
    }

    /// Asks for the webhook to be switched off, if this failure is a reason to.
    fn suspend(
        &mut self,
        at: usize,
        sent_by: &Arc<Webhook>,
        reason: Reason,
        status: Option<u16>,
        effects: &mut Effects,
    ) {
        let suspend_after = self.suspend_after;
        let Some(lane) = self.lane(at) else { return };
        if let Some(cause) = failing::cause(reason, status, lane.breaker.streak(), suspend_after) {
            effects.suspensions.push(Suspend {
                webhook: sent_by.clone(),
                cause,
            });
        }
    }

    fn delivered(&mut self, deliveries: &[Delivery], effects: &mut Effects) {
        self.tally.delivered += deliveries.len() as u64;
        match deliveries {
            [first, ..] if first.batch.is_some() => {
                for delivery in deliveries {
                    self.close(delivery.source);
                    effects.freed += delivery.bytes;
                }
                effects.records.push(Record::Finished {
                    source: first.source,
                    origin: first.origin.clone(),
                });
            }
            _ => deliveries
                .iter()
                .for_each(|delivery| self.over(delivery, End::Delivered, effects)),
        }
    }

    /// What becomes of a request's deliveries that the receiver did not take; it took `over`.
    #[allow(clippy::too_many_arguments)] // All of it is one outcome.
    fn failed(
        &mut self,
        at: usize,
        mut deliveries: Vec<Delivery>,
        over: Vec<Delivery>,
        sent_by: &Webhook,
        failure: &Failure,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        self.tally.failed(failure.reason);
        self.tally.delivered += over.len() as u64;
        carry(&over, &Fate::Delivered, effects);
        let present = match self.lane(at).map(|lane| &lane.config) {
            Some(Config::Known(webhook, _)) => Some(webhook.clone()),
            Some(Config::Unknown | Config::Unreadable | Config::Gone(_)) | None => None,
        };
        let policy = present.as_ref().map_or(&sent_by.retry, |webhook| &webhook.retry);
        for delivery in &mut deliveries {
            delivery.state.attempts = delivery.state.attempts.saturating_add(1);
            delivery.state.status = failure.status;
            failure.reason.as_str().clone_into(&mut delivery.state.reason);
        }
        let Some(first) = deliveries.first() else { return };
        let accepted = age_from(sent_by, &deliveries);
        let attempts = first.state.attempts;
        let next = if policy.is_final(failure.reason.as_str(), failure.status) {
            Next::UsedUp(UsedUp::Final)
        } else {
            policy.next(attempts, accepted, now, failure.retry_after, failure.fraction)
        };
        let gone = match self.lane(at).map(|lane| &lane.config) {
            Some(Config::Gone(_)) => true,
            Some(Config::Known(webhook, _)) => webhook.uid != first.origin.uid,
            Some(Config::Unknown | Config::Unreadable) | None => false,
        };
        let batch = first.batch.clone();
        let blocked = match next {
            Next::UsedUp(_) if !gone => self.blocks(at, first),
            Next::UsedUp(_) | Next::At(_) => None,
        };
        let due = match next {
            Next::At(due) => Some(due),
            Next::UsedUp(_) => blocked.map(|_| now),
        };
        if let (Some(id), Some(due), false) = (&batch, due, gone) {
            for delivery in &mut deliveries {
                delivery.state.due = due;
                delivery.state.blocked = blocked.unwrap_or_default();
            }
            carry(&deliveries, &Fate::Waiting(due), effects);
            // What is left of a batch is another one: a receiver that remembers ids has seen the first.
            let id = if over.is_empty() && !planted::is(Bug::BatchRemade) {
                id.clone()
            } else {
                format!("{id}.{attempts}").into()
            };
            for delivery in &over {
                self.close(delivery.source);
                effects.freed += delivery.bytes;
            }
            let over = over.iter().map(|delivery| (delivery.source, delivery.index)).collect();
            if let Some(first) = deliveries.first() {
                self.hold(at, first, blocked.is_some(), now, effects);
            }
            return self.park_batch(at, id, deliveries, over, effects);
        }
        over.iter()
            .for_each(|delivery| self.over(delivery, End::Delivered, effects));
        for delivery in deliveries {
            if gone {
                let fate = Fate::Dropped(Dropped::WebhookDeleted.as_str().into());
                carry(std::slice::from_ref(&delivery), &fate, effects);
                self.abandon(&delivery, effects);
            } else {
                self.after_failure(at, delivery, &next, now, effects);
            }
        }
    }

    fn after_failure(&mut self, at: usize, mut delivery: Delivery, next: &Next, now: Timestamp, effects: &mut Effects) {
        if self.obey(&mut delivery, now) == Some(Mark::Cancel) {
            carry(
                std::slice::from_ref(&delivery),
                &Fate::Dropped(Dropped::Cancelled.as_str().into()),
                effects,
            );
            self.tally.dropped += 1;
            return self.over(&delivery, End::Dropped(Dropped::Cancelled), effects);
        }
        let reason = match next {
            Next::At(due) if delivery.event.expire_time.is_some_and(|expires| expires <= *due) => EXPIRED.to_owned(),
            Next::At(due) => {
                delivery.state.due = *due;
                carry(std::slice::from_ref(&delivery), &Fate::Waiting(*due), effects);
                self.hold(at, &delivery, false, now, effects);
                return self.park(at, delivery, effects);
            }
            Next::UsedUp(_) => std::mem::take(&mut delivery.state.reason),
        };
        let fate = match self.blocks(at, &delivery) {
            Some(_) => Fate::Waiting(now),
            None => Fate::Dead(reason.clone().into()),
        };
        carry(std::slice::from_ref(&delivery), &fate, effects);
        for delivery in self.used_up(at, vec![delivery], &reason, now, effects) {
            self.bury(at, delivery, &reason, now, effects);
        }
    }
}

/// Begins what the history tells of an attempt; what became of its deliveries follows with [`carry`].
fn tell(
    outcome: &Outcome,
    deliveries: &[Delivery],
    webhook: &Webhook,
    now: Timestamp,
    effects: &mut Effects,
) -> Option<usize> {
    let first = deliveries.first()?;
    let (status, reason) = match outcome {
        Outcome::Delivered { .. } if effects.leaves_out_successes => {
            effects.history.left_out += 1;
            return None;
        }
        Outcome::Delivered { status } => (Some(*status), ""),
        Outcome::Partial { status, .. } => (Some(*status), Reason::Partial.as_str()),
        Outcome::Failed { reason, status, .. } => (*status, reason.as_str()),
        Outcome::NotMade { .. } => return None,
    };
    let attempt = history::Attempt {
        number: first.state.attempts.saturating_add(1),
        message: first.batch.clone().filter(|batch| **batch != *first.event.id.as_str()),
        generation: webhook.generation,
        status,
        reason: reason.into(),
        ..history::Attempt::default()
    };
    let place = effects.history.len();
    effects.history.open(first.entry(now, Some(attempt)));
    Some(place)
}

/// Tells what became of deliveries of the attempt that was begun last.
fn carry(deliveries: &[Delivery], fate: &Fate, effects: &mut Effects) {
    for delivery in deliveries {
        effects.history.carry(delivery.carried(fate.clone()));
    }
}

/// Why deliveries were not taken.
struct Failure {
    reason: Reason,
    status: Option<u16>,
    retry_after: Option<Duration>,
    /// Jitter of the next attempt.
    fraction: f64,
}

/// What an outcome says about the receiver's health.
fn health(outcome: &Outcome, deliveries: &[Delivery]) -> Ended {
    match outcome {
        Outcome::Partial { status, failed } if failed.len() >= deliveries.len() => Ended::Failure {
            reason: Reason::Partial,
            status: Some(*status),
            retry_after: None,
        },
        Outcome::Partial { .. } | Outcome::Delivered { .. } | Outcome::Failed { .. } | Outcome::NotMade { .. } => {
            Ended::from(outcome)
        }
    }
}
