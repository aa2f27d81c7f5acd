//! Group commit: while one transaction is in flight the next one fills.
//!
//! Each lane is a task with a `store::once::Lane` of its own, so each of its transactions applies once. A lane whose transaction could not be settled
//! in time is given up for a new one: a later transaction on it could be taken for the lost one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postrider_common::entropy::SharedEntropy;
use postrider_common::id::ControlPlaneId;
use postrider_common::key;
use postrider_common::planted::{self, Bug};
use postrider_common::store::once::Lane;
use postrider_common::store::{LeaseId, NotApplied, SharedStore, WriteError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batch::{self, Sealed};
use super::idempotency;
use super::queue::{Batch, Outcome, Published, Queue, Submission};
use crate::api::status::{Error, Violations};
use crate::catalog::dedupe::DedupeLease;

/// How many transactions are in flight at most: with two the store writes one while the next is packed and sent; measured, more only make each
/// smaller and later.
pub(super) const LANES: usize = 2;

/// How long a transaction may take in all: a leader change of etcd takes a second or two, and callers wait.
const COMMIT_DEADLINE: Duration = Duration::from_secs(5);

/// How often a batch is sent again after a conflict, each time without the requests whose answers were found, or after its lease was lost. Each
/// control plane with the same requests can cause one.
const MAX_TRIES: usize = 16;

/// What publishing has done since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Requests that were answered as stored.
    pub(crate) requests: AtomicU64,
    /// Events in them, whether any webhook wanted them or not.
    pub(crate) events: AtomicU64,
    /// Events of types that the catalogue did not hold, in requests that were taken in line.
    pub(crate) unknown_type_events: AtomicU64,
    /// Filters that had no value for an event, which did not match.
    pub(crate) filter_errors: AtomicU64,
    /// Filters that could not be asked about an event, which matched.
    pub(crate) filter_skips: AtomicU64,
    /// Deliveries that they caused.
    pub(crate) deliveries: AtomicU64,
    /// Transactions that were applied.
    pub(crate) transactions: AtomicU64,
    /// Bytes of those transactions.
    pub(crate) bytes: AtomicU64,
    /// Requests that were answered with an earlier answer.
    pub(crate) duplicates: AtomicU64,
    /// Transactions whose outcome could not be learned.
    pub(crate) unknown: AtomicU64,
    /// Requests refused because too much of their account waits.
    pub(crate) refused_backlog: AtomicU64,
    /// Requests refused because the store is nearly full.
    pub(crate) refused_store: AtomicU64,
    /// Requests refused because too much stands in line to be stored, or because the line is closed.
    pub(crate) refused_queue: AtomicU64,
    /// Requests that stand in line now.
    pub(crate) waiting: AtomicU64,
    /// Bytes of them, before packing.
    pub(crate) waiting_bytes: AtomicU64,
}

impl Counters {
    pub(super) fn count(counter: &AtomicU64, by: usize) {
        // Statistics order nothing.
        counter.fetch_add(by as u64, Ordering::Relaxed);
    }

    /// Counts a request that was accepted.
    pub(super) fn accepted(&self, matched: impl ExactSizeIterator<Item = u32>) {
        Self::count(&self.requests, 1);
        Self::count(&self.events, matched.len());
        Self::count(&self.deliveries, matched.map(|count| count as usize).sum());
    }
}

/// One lane's task.
pub(super) struct Writer {
    pub(super) queue: Arc<Queue>,
    pub(super) store: SharedStore,
    pub(super) lease: Arc<DedupeLease>,
    pub(super) entropy: SharedEntropy,
    pub(super) counters: Arc<Counters>,
    pub(super) control_plane: ControlPlaneId,
}

/// A lane and its name, which is part of the keys of its segments.
struct Named {
    name: String,
    lane: Lane,
}

impl Writer {
    /// Commits what is submitted until `stop` is given and nothing waits any more.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut named = self.begin();
        while let Some(batch) = self.queue.next(&stop).await {
            let Batch { submissions, wide } = batch;
            let packed = self.commit(&mut named, submissions).await;
            self.queue.done(wide, packed);
        }
    }

    /// A lane that was never used before, by anybody.
    fn begin(&self) -> Named {
        let name = format!("{}-{:016x}", self.control_plane, self.entropy.next_u64());
        Named {
            lane: Lane::new(self.store.clone(), key::writer(&name)),
            name,
        }
    }

    /// Brings `batch` to an end: every request of it is answered. Says how well it packed.
    async fn commit(&self, named: &mut Named, mut batch: Vec<Submission>) -> Option<(usize, usize)> {
        let deadline = Instant::now() + COMMIT_DEADLINE;
        for _ in 0..MAX_TRIES {
            let (sealed, lease) = match self.seal(named, &batch).await {
                Ok(sealed) => sealed,
                Err(error) => return self.fail(batch, &error),
            };
            match named.lane.commit(&sealed.write, Some(lease), deadline).await {
                Ok(_) => {
                    self.succeed(batch, &sealed);
                    return Some((sealed.unpacked, sealed.packed));
                }
                Err(WriteError::Conflict) => {
                    let before = batch.len();
                    batch = self.answer_repeated(batch).await;
                    if batch.is_empty() {
                        return None;
                    }
                    if batch.len() == before {
                        // It was the lane's own mark: its lease ran out while the lane was idle, or somebody removed it.
                        *named = self.begin();
                    }
                }
                Err(WriteError::NotApplied(NotApplied::LeaseGone)) => self.lease.invalidate(),
                Err(_) if planted::is(Bug::AckedBeforeCommit) => {
                    *named = self.begin();
                    self.succeed(batch, &sealed);
                    return Some((sealed.unpacked, sealed.packed));
                }
                Err(WriteError::Unknown(_)) if planted::is(Bug::SentAgainBlindly) => *named = self.begin(),
                Err(error) => {
                    if matches!(error, WriteError::Unknown(_)) {
                        Counters::count(&self.counters.unknown, 1);
                        *named = self.begin();
                    }
                    return self.fail(batch, &error.into());
                }
            }
        }
        self.fail(batch, &Error::Contended)
    }

    async fn seal(&self, named: &Named, batch: &[Submission]) -> Result<(Sealed, LeaseId), Error> {
        let lease = self.lease.current().await?;
        let works = batch.iter().map(|submission| &submission.work);
        let sealed = batch::seal(works, &named.name, named.lane.next_sequence(), lease);
        if sealed.fits() {
            Ok((sealed, lease))
        } else {
            Err(too_large(&sealed))
        }
    }

    /// After a conflict, of which nothing was applied: answers the requests whose answer is stored already, and gives back the rest. All
    /// are answered if that could not be read.
    async fn answer_repeated(&self, batch: Vec<Submission>) -> Vec<Submission> {
        let dedupes = batch.iter().filter_map(|submission| submission.work.dedupe.as_ref());
        let keys: Vec<_> = dedupes.map(|dedupe| dedupe.identity.key.clone()).collect();
        if keys.is_empty() {
            return batch;
        }
        let mut entries = match self.store.get_all(&keys).await {
            Ok((entries, _)) => entries.into_iter(),
            Err(error) => {
                self.fail::<()>(batch, &error.into());
                return Vec::new();
            }
        };
        let mut rest = Vec::with_capacity(batch.len());
        let mut answered: Vec<(Submission, Outcome)> = Vec::new();
        for submission in batch {
            let dedupe = submission.work.dedupe.as_ref();
            // One entry was read for each request that has a key.
            let stored = dedupe.and_then(|dedupe| Some((dedupe, entries.next().flatten()?)));
            match stored {
                Some((dedupe, entry)) => {
                    let answer = idempotency::stored_answer(&dedupe.identity, entry);
                    let outcome = answer.map(|answer| Published {
                        answer,
                        duplicate: true,
                    });
                    answered.push((submission, outcome));
                }
                None => rest.push(submission),
            }
        }
        self.queue.settle(answered.into_iter());
        rest
    }

    fn succeed(&self, batch: Vec<Submission>, sealed: &Sealed) {
        Counters::count(&self.counters.transactions, 1);
        Counters::count(&self.counters.bytes, sealed.packed);
        let stored = batch.into_iter().map(|mut submission| {
            let answer = submission.take_answer();
            self.counters
                .accepted(answer.events.iter().map(|(_, matched)| *matched));
            let published = Published {
                answer,
                duplicate: false,
            };
            (submission, Ok(published))
        });
        self.queue.settle(stored);
    }

    /// Answers all of `batch` with `error`. There is nothing to say about how it packed.
    fn fail<T>(&self, batch: Vec<Submission>, error: &Error) -> Option<T> {
        let failed = batch.into_iter().map(|submission| (submission, Err(error.clone())));
        self.queue.settle(failed);
        None
    }
}

/// Only a request that goes alone can be too large.
fn too_large(sealed: &Sealed) -> Error {
    let mut violations = Violations::default();
    let description = format!(
        "with a copy for each shard that wants them, the events take {} bytes: more than one transaction holds; split the request",
        sealed.packed
    );
    violations.add("events", "TOO_LARGE", description);
    Error::Invalid(violations)
}
