//! What follows from the end of an attempt. Pure.

use postrider_common::retry::Next;
use postrider_common::time::Timestamp;

use super::{AttemptId, EXPIRED, NOT_MADE_PAUSE, State};
use crate::attempt::{Outcome, Reason};
use crate::shard::delivery::{Delivery, Effects};
use crate::shard::lane::Config;

impl State {
    /// An attempt ended. `fraction` in `0.0..1.0` is the jitter of the next one.
    pub fn ended(
        &mut self,
        attempt: AttemptId,
        outcome: Outcome,
        now: Timestamp,
        fraction: f64,
        effects: &mut Effects,
    ) {
        let Some(flight) = self.flights.get_mut(attempt.0).and_then(Option::take) else {
            return;
        };
        self.vacant_flights.push(attempt.0);
        self.in_flight -= 1;
        let (at, delivery) = (flight.lane, flight.delivery);
        let Some(lane) = self.lane(at) else { return };
        lane.in_flight -= 1;
        lane.forget(delivery.bytes);
        match outcome {
            Outcome::Delivered { .. } => {
                self.tally.delivered += 1;
                self.over(&delivery, effects);
            }
            Outcome::Failed {
                reason,
                status,
                retry_after,
            } => {
                if reason == Reason::Throttled
                    && let Some(wish) = retry_after
                {
                    let pause = wish.min(flight.webhook.retry.max_delay);
                    lane.paused_until = lane.paused_until.max(now + pause);
                }
                let policy = match &lane.config {
                    Config::Known(webhook, _) => webhook.retry,
                    Config::Unknown | Config::Unreadable | Config::Gone(_) => flight.webhook.retry,
                };
                self.tally.failed(reason);
                let mut delivery = delivery;
                delivery.state.attempts = delivery.state.attempts.saturating_add(1);
                delivery.state.status = status;
                reason.as_str().clone_into(&mut delivery.state.reason);
                let accepted = delivery.event.accept_time;
                let next = policy.next(delivery.state.attempts, accepted, now, retry_after, fraction);
                self.after_failure(at, delivery, next, now, effects);
            }
            Outcome::NotMade { .. } => {
                lane.paused_until = lane.paused_until.max(now + NOT_MADE_PAUSE);
                lane.put_back(delivery);
                self.tally.not_made += 1;
                self.enforce(at, now, effects);
            }
        }
        self.settle(at, now, effects);
    }

    fn after_failure(&mut self, at: usize, mut delivery: Delivery, next: Next, now: Timestamp, effects: &mut Effects) {
        let over = match self.lane(at).map(|lane| &lane.config) {
            Some(Config::Gone(_)) => true,
            Some(Config::Known(webhook, _)) => webhook.uid != delivery.origin.uid,
            Some(Config::Unknown | Config::Unreadable) | None => false,
        };
        if over {
            return self.abandon(&delivery, effects);
        }
        match next {
            Next::At(due) if delivery.event.expire_time.is_some_and(|expires| expires <= due) => {
                self.die(delivery, EXPIRED, now, effects);
            }
            Next::At(due) => {
                delivery.state.due = due;
                self.park(at, delivery, effects);
            }
            Next::UsedUp(_) => {
                let reason = std::mem::take(&mut delivery.state.reason);
                self.die(delivery, &reason, now, effects);
            }
        }
    }
}
