//! Where accepted requests wait for a transaction: bounded, shared by the lanes.
//!
//! A request with an id leads others with the same id: only one of them is ever in a transaction, the others follow it and are answered from its
//! answer. So no two requests of one transaction, nor of two in flight, want the same dedupe key.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postrider_common::key::Key;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batch::{Answer, Load, MAX_UNPACKED, TARGET_BYTES, Work};
use super::idempotency;
use super::writer::Counters;
use crate::api::status::Error;

/// Most bytes that wait: some thirty transactions, a fraction of a second's work, and a small part of what the process may use.
const MAX_WAITING_BYTES: usize = 32 << 20;

/// Most requests that wait: more than all connections together keep under way in a system that keeps up.
const MAX_WAITING: usize = 16_384;

/// How long a request waits for a transaction before it is given up: then the store has been away, and it is better said than waited out.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// When trying again may help once the queue is full: the queue is worked off in that time.
const FULL_RETRY_DELAY: Duration = Duration::from_millis(250);

/// While one transaction is in flight another is begun only for this many bytes or [`SECOND_LANE_REQUESTS`]: a small one would cost as much as a
/// large one and delay those who come after it.
const SECOND_LANE_BYTES: usize = 128 << 10;

/// See [`SECOND_LANE_BYTES`].
const SECOND_LANE_REQUESTS: usize = 128;

/// A request of more than this goes alone, and others are not kept waiting for it: it is for thousands of webhooks, and takes some ten milliseconds to pack.
const WIDE_BYTES: usize = 512 << 10;

/// What a request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    /// The answer.
    pub(crate) answer: Answer,
    /// It was given before; nothing was stored now.
    pub(crate) duplicate: bool,
}

/// What became of a request.
pub(crate) type Outcome = Result<Published, Error>;

/// A request on its way into the store.
pub(super) struct Submission {
    pub(super) work: Work,
    bytes: usize,
    since: Instant,
    reply: oneshot::Sender<Outcome>,
}

/// The requests that wait.
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Notify,
    counters: Arc<Counters>,
}

struct State {
    waiting: VecDeque<Submission>,
    waiting_bytes: usize,
    /// For each request id that waits or is in flight: those who came after the first.
    followers: HashMap<Key, Vec<Submission>>,
    followers_count: usize,
    followers_bytes: usize,
    /// Lanes with a transaction in flight, but for those of a wide request.
    busy: usize,
    closed: bool,
    /// Most bytes of the next transaction before packing: what packs to [`TARGET_BYTES`], by the last ones.
    limit: usize,
}

impl State {
    /// How many requests wait, and their bytes.
    fn held(&self) -> (usize, usize) {
        (
            self.waiting.len() + self.followers_count,
            self.waiting_bytes + self.followers_bytes,
        )
    }

    /// Whether a lane that is free should begin a transaction.
    fn is_due(&self) -> bool {
        !self.waiting.is_empty()
            && (self.busy == 0 || self.waiting_bytes >= SECOND_LANE_BYTES || self.waiting.len() >= SECOND_LANE_REQUESTS)
    }

    fn push(&mut self, submission: Submission) {
        self.waiting_bytes += submission.bytes;
        self.waiting.push_back(submission);
    }

    /// Takes what goes into the next transaction.
    fn take(&mut self, now: Instant) -> Taken {
        let mut taken = Taken::default();
        let mut load = Load::new(self.limit);
        while let Some(next) = self.waiting.pop_front() {
            let late = now > next.since + MAX_WAIT;
            let wide = next.bytes > WIDE_BYTES;
            if !late && (wide && !taken.batch.is_empty() || !load.take_in(&next.work)) {
                self.waiting.push_front(next);
                break;
            }
            self.waiting_bytes = self.waiting_bytes.saturating_sub(next.bytes);
            if late {
                taken.late.push(next);
                continue;
            }
            taken.batch.push(next);
            if wide {
                taken.wide = true;
                break;
            }
        }
        taken
    }
}

/// What a free lane does.
enum Turn {
    /// Writes these.
    Begin(Batch),
    /// Looks again.
    Again,
    /// Waits.
    Wait,
    /// Ends.
    Over,
}

#[derive(Default)]
struct Taken {
    batch: Vec<Submission>,
    /// It is one wide request.
    wide: bool,
    late: Vec<Submission>,
}

/// Requests for one transaction.
pub(super) struct Batch {
    pub(super) submissions: Vec<Submission>,
    pub(super) wide: bool,
}

impl Queue {
    /// An empty queue.
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                waiting_bytes: 0,
                followers: HashMap::new(),
                followers_count: 0,
                followers_bytes: 0,
                busy: 0,
                closed: false,
                limit: TARGET_BYTES,
            }),
            wake: Notify::new(),
            counters,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells how much waits, after that has changed.
    fn tell(&self, state: &State) {
        let (count, bytes) = state.held();
        self.counters.waiting.store(count as u64, Ordering::Relaxed);
        self.counters.waiting_bytes.store(bytes as u64, Ordering::Relaxed);
    }

    /// Puts a request in line. From here on it is the lanes' affair: dropping the receiver changes nothing.
    ///
    /// # Errors
    /// [`Error::Stopping`], or [`Error::Quota`] when the queue is full.
    pub(super) fn submit(&self, work: Work) -> Result<oneshot::Receiver<Outcome>, Error> {
        let (reply, outcome) = oneshot::channel();
        let bytes = work.bytes();
        let submission = Submission {
            work,
            bytes,
            since: Instant::now(),
            reply,
        };
        let mut state = self.lock();
        if state.closed {
            return Err(Error::Stopping);
        }
        let (count, held) = state.held();
        if count >= MAX_WAITING || (count > 0 && held + bytes > MAX_WAITING_BYTES) {
            return Err(full());
        }
        if let Some(dedupe) = &submission.work.dedupe {
            if let Some(followers) = state.followers.get_mut(&dedupe.identity.key) {
                followers.push(submission);
                state.followers_count += 1;
                state.followers_bytes += bytes;
                self.tell(&state);
                return Ok(outcome);
            }
            state.followers.insert(dedupe.identity.key.clone(), Vec::new());
        }
        state.push(submission);
        self.tell(&state);
        let due = state.is_due();
        drop(state);
        if due {
            self.wake.notify_one();
        }
        Ok(outcome)
    }

    /// Waits until a transaction should begin and takes its requests; `None` once `stop` was given and nothing waits. The lane is busy until
    /// [`Queue::done`].
    pub(super) async fn next(&self, stop: &CancellationToken) -> Option<Batch> {
        loop {
            let wake = self.wake.notified();
            tokio::pin!(wake);
            // Whoever submits from here on wakes this lane.
            wake.as_mut().enable();
            match self.turn(stop) {
                Turn::Begin(batch) => return Some(batch),
                Turn::Over => return None,
                Turn::Again => {}
                Turn::Wait => {
                    tokio::select! {
                        () = wake => {}
                        () = stop.cancelled() => {}
                    }
                    // Those who are about to submit get in first: it costs an idle system nothing.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// What a free lane does now.
    fn turn(&self, stop: &CancellationToken) -> Turn {
        let mut state = self.lock();
        state.closed = stop.is_cancelled();
        if state.waiting.is_empty() && state.closed {
            return Turn::Over;
        }
        if !state.is_due() && !state.closed {
            return Turn::Wait;
        }
        let Taken { batch, wide, late } = state.take(Instant::now());
        self.tell(&state);
        state.busy += usize::from(!batch.is_empty() && !wide);
        let more = state.is_due();
        drop(state);
        if more {
            self.wake.notify_one();
        }
        let away = Error::StoreAway("no transaction could be written in time".into());
        self.settle(late.into_iter().map(|submission| (submission, Err(away.clone()))));
        if batch.is_empty() {
            Turn::Again
        } else {
            Turn::Begin(Batch {
                submissions: batch,
                wide,
            })
        }
    }

    /// The lane's transaction is over. `packed` says how well it packed: bytes before and after.
    pub(super) fn done(&self, wide: bool, packed: Option<(usize, usize)>) {
        if wide {
            // It did not count, and says nothing about the next.
            return;
        }
        let mut state = self.lock();
        state.busy = state.busy.saturating_sub(1);
        if let Some((before, after)) = packed
            && after > 0
        {
            let ideal = before.saturating_mul(TARGET_BYTES) / after;
            // Halfway, so that one odd transaction does not rule the next.
            state.limit = usize::midpoint(state.limit, ideal).clamp(TARGET_BYTES, MAX_UNPACKED);
        }
    }

    /// Answers requests, and those that followed them.
    pub(super) fn settle(&self, outcomes: impl Iterator<Item = (Submission, Outcome)>) {
        for (submission, outcome) in outcomes {
            if let Some(dedupe) = &submission.work.dedupe {
                let followers = self.lead_off(&dedupe.identity.key);
                match &outcome {
                    Ok(published) => {
                        for follower in followers {
                            let same = follower
                                .work
                                .dedupe
                                .as_ref()
                                .is_some_and(|own| own.identity.fingerprint == dedupe.identity.fingerprint);
                            let outcome = if same {
                                Ok(Published {
                                    answer: published.answer.clone(),
                                    duplicate: true,
                                })
                            } else {
                                Err(idempotency::reused(&dedupe.identity))
                            };
                            follower.answer(outcome);
                        }
                    }
                    // What keeps the first from the store keeps the others, too.
                    Err(error @ (Error::StoreAway(_) | Error::StoreFull | Error::OutcomeUnknown(_))) => {
                        for follower in followers {
                            follower.answer(Err(error.clone()));
                        }
                    }
                    // The first had a fault of its own: the next one's turn.
                    Err(_) => self.promote(followers),
                }
            }
            submission.answer(outcome);
        }
    }

    /// Nobody leads the requests of this id any more: answers who followed.
    fn lead_off(&self, key: &Key) -> Vec<Submission> {
        let mut state = self.lock();
        let followers = state.followers.remove(key).unwrap_or_default();
        state.followers_count = state.followers_count.saturating_sub(followers.len());
        let bytes: usize = followers.iter().map(|follower| follower.bytes).sum();
        state.followers_bytes = state.followers_bytes.saturating_sub(bytes);
        self.tell(&state);
        followers
    }

    /// Puts the first of `followers` in line, the others behind it. They have been accepted: nothing is refused any more.
    fn promote(&self, followers: Vec<Submission>) {
        let mut state = self.lock();
        for follower in followers {
            let Some(dedupe) = &follower.work.dedupe else { continue };
            match state.followers.get_mut(&dedupe.identity.key) {
                Some(others) => {
                    let bytes = follower.bytes;
                    others.push(follower);
                    state.followers_count += 1;
                    state.followers_bytes += bytes;
                }
                None => {
                    state.followers.insert(dedupe.identity.key.clone(), Vec::new());
                    state.push(follower);
                }
            }
        }
        self.tell(&state);
        let due = state.is_due();
        drop(state);
        if due {
            self.wake.notify_one();
        }
    }
}

impl Submission {
    /// Takes the answer out, for a request that has been stored.
    pub(super) fn take_answer(&mut self) -> Answer {
        std::mem::take(&mut self.work.answer)
    }

    fn answer(self, outcome: Outcome) {
        // Who has gone away needs no answer.
        let _ = self.reply.send(outcome);
    }
}

fn full() -> Error {
    Error::Quota {
        subject: "publish queue".into(),
        reason: "PUBLISH_QUEUE_FULL",
        description: "too many events wait to be stored; nothing was done".into(),
        retry_after: Some(FULL_RETRY_DELAY),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::admission::Identity;
    use super::super::batch::Dedupe;
    use super::*;

    fn work(number: u32, bytes: usize) -> Work {
        let request = format!("00000000-0000-4000-8000-{number:012}").parse().unwrap();
        Work {
            parts: Vec::new(),
            dedupe: Some(Dedupe {
                identity: Identity::new(&"a".parse().unwrap(), &request, Default::default()),
                value: vec![0; bytes].into(),
            }),
            answer: Answer::default(),
        }
    }

    #[test]
    fn a_wide_request_goes_alone_and_others_are_not_kept_waiting_for_it() {
        let (queue, stop) = (Queue::new(Arc::default()), CancellationToken::new());
        let sizes = || {
            let batch = queue.next(&stop).now_or_never()??;
            Some((
                batch.wide,
                batch.submissions.iter().map(|one| one.bytes >> 10).collect::<Vec<_>>(),
            ))
        };
        let outcomes = [10, 20, 600, 30, 40].map(|kib| queue.submit(work(kib, (kib as usize) << 10)));
        assert!(outcomes.iter().all(Result::is_ok));
        assert_eq!(sizes(), Some((false, vec![10, 20])));
        // The second lane: there is much to do.
        assert_eq!(sizes(), Some((true, vec![600])));
        assert_eq!(sizes(), None, "a small transaction is in flight");
        queue.done(false, None);
        assert_eq!(sizes(), Some((false, vec![30, 40])), "the wide one may take its time");
        queue.done(true, None);
        let _more = queue.submit(work(50, 50 << 10));
        assert_eq!(sizes(), None);
        queue.done(false, None);
        assert_eq!(sizes(), Some((false, vec![50])));
    }
}
