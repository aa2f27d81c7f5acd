//! Attempts: started as far as an agent has room for them, and taken in when they have ended.

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use postrider_common::model::segment::Event;
use postrider_common::time::Timestamp;
use tokio::sync::{AcquireError, OwnedSemaphorePermit};

use super::Worker;
use crate::attempt::{Attempt, Evidence, Made, Outcome, Sent};
use crate::history::seen;
use crate::shard::counters::Counted;
use crate::shard::pace::Leave;
use crate::shard::state::{AttemptId, Start};

/// When to look again after the lease was not certain to live: its keep-alive answers within some milliseconds, or it is lost.
const UNSAFE_PAUSE: Duration = Duration::from_millis(20);

/// When to look again whether there is room for attempts to receivers that did not answer last time: it comes as attempts time out, after seconds.
const DOUBTFUL_PAUSE: Duration = Duration::from_millis(50);

/// Why an attempt to a receiver that did not answer last time may not begin now.
enum Pause {
    /// What is left is for the others.
    Reserved,
    /// It is not the shard's turn for so long.
    Paced(Duration),
}

pub(super) type PermitWait = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

impl Worker {
    pub(super) fn start_attempts(&mut self, now: Timestamp) {
        if !self.state.has_runnable(true) {
            self.permit = None;
            self.permit_wait = None;
            return;
        }
        if !self.tenure.lease.is_safe() {
            self.look_at = Some(now + UNSAFE_PAUSE);
            return;
        }
        let attempts = self.shards.attempts.clone();
        while self.permit_wait.is_none() && self.pen.may_start() {
            let leave = self.state.has_doubtful().then(|| self.leave());
            let leave = match leave.transpose() {
                Ok(leave) => leave,
                Err(_) if self.state.has_runnable(false) => None,
                Err(pause) => {
                    self.held_back(pause, now);
                    break;
                }
            };
            if !self.state.has_runnable(leave.is_some()) {
                break;
            }
            let Some(permit) = self.permit.take().or_else(|| attempts.clone().try_acquire_owned().ok()) else {
                self.permit_wait = Some(Box::pin(attempts.clone().acquire_owned()));
                self.state.tally.agent_full += 1;
                return;
            };
            if let Some(start) = self.state.start(now, leave.is_some(), &mut self.effects) {
                self.launch(start, permit, leave);
            }
        }
        // One that came after a wait is not kept while it cannot be used.
        self.permit = None;
    }

    /// Leave to begin an attempt to a receiver that did not answer last time.
    fn leave(&mut self) -> Result<Leave, Pause> {
        if self.shards.attempts.available_permits() <= self.shards.limits.reserved {
            return Err(Pause::Reserved);
        }
        self.shards.pace.leave(&mut self.pace).map_err(Pause::Paced)
    }

    /// There is nothing to begin but what has no leave.
    fn held_back(&mut self, pause: Pause, now: Timestamp) {
        let pause = match pause {
            Pause::Reserved => {
                self.state.tally.reserved_full += 1;
                DOUBTFUL_PAUSE
            }
            Pause::Paced(pause) => {
                self.state.tally.paced += 1;
                pause
            }
        };
        let again = now + pause;
        self.look_at = Some(self.look_at.map_or(again, |at| at.min(again)));
    }

    /// Begins an attempt. What leave to begin it it does not need is given back.
    fn launch(&mut self, start: Start, permit: OwnedSemaphorePermit, leave: Option<Leave>) {
        let unpaced = match (leave, &mut self.pace) {
            (Some(Leave::Unpaced(unpaced)), _) if !start.proven => Some(unpaced),
            (Some(Leave::Turn), Some(turn)) if !start.proven => {
                turn.used();
                None
            }
            _ => None,
        };
        let id = start.attempt;
        let sender = self.shards.deps.sender.clone();
        let counted = Counted::new(self.shards.counters.clone(), |counters| &counters.in_flight);
        let attempt = Attempt {
            id: start.id,
            webhook: start.webhook,
            events: start.events.into_iter().map(sent).collect(),
            number: start.number,
            sequence: start.sequence,
        };
        let life = self.tenure.lease.life().clone();
        // Asked anew at every step of the attempt: a process that was stopped and goes on after its lease has run out sends nothing more.
        let over = poll_fn(move |_| if life.is_safe() { Poll::Pending } else { Poll::Ready(()) });
        let now = self.now();
        let not_made = move |why: &str| Made {
            outcome: Outcome::NotMade { why: why.to_owned() },
            evidence: Evidence::none(now),
        };
        self.attempts.spawn(async move {
            let (_permit, _unpaced, _counted) = (permit, unpaced, counted);
            let made = tokio::select! {
                biased;
                () = over => not_made("the lease is not certain to live"),
                made = AssertUnwindSafe(sender.send(attempt)).catch_unwind() => {
                    made.unwrap_or_else(|_| not_made("the attempt panicked"))
                }
            };
            (id, made)
        });
    }

    /// Takes in all attempts that have ended: one wake-up is often for several.
    pub(super) fn attempts_ended(&mut self, first: Result<(AttemptId, Made), tokio::task::JoinError>) {
        let now = self.now();
        let mut next = Some(first);
        while let Some(ended) = next {
            match ended {
                Ok((id, made)) => self.attempt_ended(id, made, now),
                Err(error) if error.is_cancelled() => {}
                Err(error) => tracing::error!(%error, shard = %self.tenure.shard, "an attempt was lost"),
            }
            next = self.attempts.try_join_next();
        }
    }

    /// Takes in an attempt that has ended. Its outcome decides what follows; its evidence is for people.
    fn attempt_ended(&mut self, id: AttemptId, made: Made, now: Timestamp) {
        let Made { outcome, evidence } = made;
        let fraction = match &outcome {
            Outcome::Failed { .. } | Outcome::Partial { .. } => self.shards.deps.entropy.fraction(),
            Outcome::NotMade { why } => {
                tracing::warn!(why, shard = %self.tenure.shard, "an attempt could not be made");
                0.0
            }
            Outcome::Delivered { .. } => {
                self.effects.leaves_out_successes = !self.tells_success(now);
                0.0
            }
        };
        let told = self.state.ended(id, outcome, now, fraction, &mut self.effects);
        if let Some(entry) = told.and_then(|place| self.effects.history.entry_mut(place)) {
            seen::complete(entry, evidence);
        }
    }

    /// Whether the history has room for another success.
    fn tells_success(&mut self, now: Timestamp) -> bool {
        let Some((ration, refilled)) = &mut self.successes else {
            return false;
        };
        ration.refill(now.saturating_since(*refilled));
        *refilled = now;
        ration.affords_success()
    }
}

fn sent(event: Arc<Event>) -> Sent {
    Sent {
        // A source's events all have one: see `Source::new`.
        event_info: event.event_info.clone().unwrap_or_default(),
        event,
    }
}

pub(super) async fn wait(permit: &mut Option<PermitWait>) -> Result<OwnedSemaphorePermit, AcquireError> {
    match permit {
        Some(permit) => permit.await,
        None => std::future::pending().await,
    }
}
