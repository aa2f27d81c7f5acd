//! The history of deliveries: every attempt with what became of its deliveries, written beside the ledger and never in its way.
//!
//! ```text
//!     worker ──entries, and after how many records──▶ journal (bounded; full: dropped and counted)
//!                                                        │ once their records are written
//!                       history/S/… ◀── one guarded txn ─┴─ one task for the agent, about once a second
//! ```
//!
//! - An entry is written only after the ledger has written the records that go with it: so the history never tells of an end that another owner may
//!   repeat, and tells of each end once.
//! - One value for each shard and flush, whatever the number of webhooks; several shards in one transaction, guarded by the epoch of each.
//! - [`ration`] (pure) keeps a busy shard from turning its history over within minutes: beyond its ration successes are left out, failures lose the
//!   receiver's words. [`shelf`] (pure) knows what stands in the store, and what has to go.
//! - History is not the ledger: what cannot be written is dropped and counted, and what waits when an agent dies is lost: about a second.

pub mod ration;
pub mod seen;
pub mod shelf;
mod writer;

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postrider_common::model::history::Chapter;
use postrider_common::store::SharedStore;
use postrider_common::task;
use postrider_common::time::SharedClock;
use tokio::sync::{Notify, oneshot};

use self::writer::Writer;
use crate::shard::Tenure;
use crate::shard::ledger::Written;

/// Bytes of entries that may wait in one agent: more than a second's worth of all that it can deliver.
const WAITING_LIMIT: usize = 8 << 20;

/// Bytes of waiting entries that are written at once: some 90 KB in the store.
const WAITING_ENOUGH: usize = 1 << 20;

/// How long history is kept unless configured: over a weekend.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(72 * 60 * 60);

/// Bytes of history in a cell unless configured: a small part of etcd's quota, and some two million deliveries.
pub const DEFAULT_BYTES: u64 = 64 << 20;

/// How much history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Nothing older is kept.
    pub retention: Duration,
    /// Bytes of it in the store, in the whole cell; each shard has an equal share.
    pub bytes: u64,
}

impl Limits {
    /// Bytes that each of the cell's shards may have; `None` if there is no history, or nobody knows how many shards there are.
    pub fn share(&self, shards: Option<NonZeroU16>) -> Option<u64> {
        let is_on = self.bytes > 0 && !self.retention.is_zero();
        shards
            .filter(|_| is_on)
            .map(|count| self.bytes / u64::from(count.get()))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            retention: DEFAULT_RETENTION,
            bytes: DEFAULT_BYTES,
        }
    }
}

/// What happened to entries since the agent started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Entries written.
    pub written: AtomicU64,
    /// Bytes that they took in the store.
    pub bytes: AtomicU64,
    /// Transactions.
    pub transactions: AtomicU64,
    /// Entries dropped: too many waited, or the store did not take them.
    pub dropped: AtomicU64,
    /// Successes left out to stay within a shard's ration.
    pub left_out: AtomicU64,
}

/// The history as one agent writes it. Clones are the same.
#[derive(Clone)]
pub struct History {
    /// `None` if history is off.
    shared: Option<Arc<Shared>>,
}

struct Shared {
    opened: Mutex<Vec<Arc<Slot>>>,
    wake: Notify,
    /// Something waits that the task has not looked at yet.
    armed: AtomicBool,
    /// It should not wait for its time.
    urgent: AtomicBool,
    waiting: AtomicUsize,
    open: AtomicUsize,
    counters: Arc<Counters>,
}

/// What a worker and the task share.
struct Slot {
    tenure: Tenure,
    written: Written,
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    /// What waits, oldest first.
    waiting: Chapter,
    /// In the same order, when so many entries may be written.
    marks: VecDeque<Mark>,
    /// The worker waits for the end.
    closing: Option<oneshot::Sender<()>>,
    closed: bool,
}

/// When entries may be written.
struct Mark {
    /// So many records must have been written before.
    records: u64,
    entries: usize,
    /// Memory that they take.
    bytes: usize,
}

/// A worker's access to the history. When it is dropped, what waits is forgotten.
pub struct Journal {
    of: Option<(Arc<Slot>, Arc<Shared>)>,
}

impl History {
    /// Starts the task, unless the limits say that there is no history. It ends when the group is told to stop and every journal was dropped.
    pub fn spawn(
        group: &task::Group,
        store: SharedStore,
        clock: SharedClock,
        counters: Arc<Counters>,
        limits: Limits,
    ) -> Self {
        if limits.bytes == 0 || limits.retention.is_zero() {
            return Self { shared: None };
        }
        let shared = Arc::new(Shared {
            opened: Mutex::default(),
            wake: Notify::new(),
            armed: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            counters,
        });
        let writer = Writer::new(store, clock, limits, shared.clone());
        group.spawn("history", writer.run(group.token().clone()));
        Self { shared: Some(shared) }
    }

    /// Opens the journal of a shard that was just taken. `written` tells how far its ledger is.
    pub fn open(&self, tenure: &Tenure, written: Written) -> Journal {
        let of = self.shared.as_ref().map(|shared| {
            let slot = Arc::new(Slot {
                tenure: tenure.clone(),
                written,
                inbox: Mutex::default(),
            });
            shared.open.fetch_add(1, Ordering::SeqCst);
            lock(&shared.opened).push(slot.clone());
            (slot, shared.clone())
        });
        Journal { of }
    }
}

impl Journal {
    /// Takes entries, to be written once the ledger has written all records handed to it so far; `chapter` is empty afterwards.
    pub fn add(&self, chapter: &mut Chapter) {
        if chapter.is_empty() {
            return;
        }
        let Some((slot, shared)) = &self.of else {
            *chapter = Chapter::default();
            return;
        };
        let mark = Mark {
            records: slot.written.handed(),
            entries: chapter.len(),
            bytes: chapter.size(),
        };
        let waiting = shared.waiting.fetch_add(mark.bytes, Ordering::Relaxed) + mark.bytes;
        if waiting > WAITING_LIMIT {
            shared.waiting.fetch_sub(mark.bytes, Ordering::Relaxed);
            shared.dropped(mark.entries);
            *chapter = Chapter::default();
            return;
        }
        let mut inbox = lock(&slot.inbox);
        inbox.waiting.append(chapter);
        inbox.marks.push_back(mark);
        drop(inbox);
        let enough = waiting > WAITING_ENOUGH && !shared.urgent.swap(true, Ordering::SeqCst);
        if !shared.armed.swap(true, Ordering::SeqCst) || enough {
            shared.wake.notify_one();
        }
    }

    /// Writes what waits, as far as the store takes it. The ledger must have written its records.
    pub async fn close(self) {
        let Some((slot, shared)) = &self.of else { return };
        let (closing, closed) = oneshot::channel();
        lock(&slot.inbox).closing = Some(closing);
        shared.armed.store(true, Ordering::SeqCst);
        shared.urgent.store(true, Ordering::SeqCst);
        shared.wake.notify_one();
        // An error means that the task has ended.
        let _ = closed.await;
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Some((slot, shared)) = &self.of {
            lock(&slot.inbox).closed = true;
            shared.open.fetch_sub(1, Ordering::SeqCst);
            shared.armed.store(true, Ordering::SeqCst);
            shared.wake.notify_one();
        }
    }
}

impl Shared {
    fn dropped(&self, entries: usize) {
        self.counters.dropped.fetch_add(entries as u64, Ordering::Relaxed);
    }
}

impl Slot {
    /// Takes entries whose records are written, up to about `most` bytes of memory.
    fn take(&self, shared: &Shared, most: usize) -> Chapter {
        let written = self.written.count();
        self.take_while(shared, |mark, size| mark <= written && size < most)
    }

    /// Takes all entries.
    fn take_all(&self, shared: &Shared) -> Chapter {
        self.take_while(shared, |_, _| true)
    }

    /// Takes entries as long as `may`, which is told their mark and the bytes taken before them.
    fn take_while(&self, shared: &Shared, may: impl Fn(u64, usize) -> bool) -> Chapter {
        let mut inbox = lock(&self.inbox);
        let (mut entries, mut bytes) = (0, 0);
        while let Some(mark) = inbox.marks.pop_front_if(|mark| may(mark.records, bytes)) {
            entries += mark.entries;
            bytes += mark.bytes;
        }
        shared.waiting.fetch_sub(bytes, Ordering::Relaxed);
        inbox.waiting.take_first(entries)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
