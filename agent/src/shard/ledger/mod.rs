//! The ledger: writes what all workers of the agent record, in bulk.
//!
//! While one transaction is in flight the next one fills; when nothing is in flight a record goes at once. Each transaction is guarded by the epoch of
//! every shard in it, and goes through a lane with a mark, so that it applies once however often it has to be sent.
//!
//! A conflict means that some epoch is over: the owner keys say which, those shards are fenced, the rest is drawn up again. A lease that is lost fences
//! all its shards. While the store is away workers go on until they have too much unwritten (see [`Pen::may_start`]).

pub mod batch;
pub mod counts;
mod drawing;
pub mod pack;
mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use postrider_common::entropy::SharedEntropy;
use postrider_common::id::AgentId;
use postrider_common::store::SharedStore;
use postrider_common::task;
use postrider_common::time::SharedClock;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::batch::{Found, Landed, Part};
use self::writer::Writer;
use super::Tenure;
use super::budget::Purse;
use super::counters::Counters;
use super::delivery::Record;

/// Records that one worker may have unwritten before it starts nothing more: some hundred milliseconds of one shard at full speed. It bounds the duplicates
/// of an agent that dies while the store is away.
pub const UNWRITTEN_LIMIT: usize = 2048;

/// The ledger of one agent. Clones are the same ledger.
#[derive(Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

struct Shared {
    dirty: Mutex<Vec<Arc<Slot>>>,
    wake: Notify,
    stalled: AtomicBool,
    open: AtomicUsize,
    waiting: Mutex<Vec<Arc<Notify>>>,
}

/// What a worker and the ledger share.
struct Slot {
    tenure: Tenure,
    inbox: Mutex<Inbox>,
    counts: Arc<Counts>,
    /// Segments of dead letters that are replaced.
    rewritten: AtomicUsize,
    written: Mutex<Landed>,
    /// The worker wants to be woken after the next transaction, whatever it holds.
    waiting: AtomicBool,
    worker: Arc<Notify>,
    purse: Arc<Purse>,
    fenced: CancellationToken,
}

/// How many records a worker has handed over, and how many of them are unwritten.
#[derive(Default)]
struct Counts {
    handed: AtomicU64,
    unwritten: AtomicUsize,
}

struct Inbox {
    records: Vec<Record>,
    found: Option<Found>,
    queued: bool,
    closed: bool,
}

/// A worker's access to the ledger. When it is dropped, what is unwritten is forgotten.
pub struct Pen {
    slot: Arc<Slot>,
    shared: Arc<Shared>,
}

impl Ledger {
    /// Starts the ledger's task. It ends when the group is told to stop and every pen was dropped.
    pub fn spawn(
        group: &task::Group,
        store: SharedStore,
        agent: AgentId,
        clock: SharedClock,
        entropy: SharedEntropy,
        counters: Arc<Counters>,
    ) -> Self {
        let shared = Arc::new(Shared {
            dirty: Mutex::default(),
            wake: Notify::new(),
            stalled: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            waiting: Mutex::default(),
        });
        let writer = Writer::new(store, agent, clock, entropy, counters, shared.clone());
        let stop = group.token().clone();
        group.spawn("ledger", writer.run(stop));
        Self { shared }
    }

    /// Opens the book of a shard that was just taken. `found` is what the store held about it; `worker` is notified when
    /// parked segments were written (see [`Pen::take_written`]) and when attempts may start again; `purse` gets back what moved deliveries took.
    pub fn open(
        &self,
        tenure: Tenure,
        found: Found,
        worker: Arc<Notify>,
        purse: Arc<Purse>,
        fenced: CancellationToken,
    ) -> Pen {
        self.shared.open.fetch_add(1, Ordering::SeqCst);
        Pen {
            slot: Arc::new(Slot {
                tenure,
                inbox: Mutex::new(Inbox {
                    records: Vec::new(),
                    found: Some(found),
                    queued: false,
                    closed: false,
                }),
                counts: Arc::default(),
                rewritten: AtomicUsize::new(0),
                written: Mutex::default(),
                waiting: AtomicBool::new(false),
                worker,
                purse,
                fenced,
            }),
            shared: self.shared.clone(),
        }
    }
}

impl Shared {
    fn mark_dirty(&self, slot: &Arc<Slot>) {
        lock(&self.dirty).push(slot.clone());
        self.wake.notify_one();
    }

    fn set_stalled(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::SeqCst);
        if !stalled {
            for worker in lock(&self.waiting).drain(..) {
                worker.notify_one();
            }
        }
    }
}

impl Pen {
    /// Hands records to the ledger; `records` is empty afterwards.
    pub fn record(&self, records: &mut Vec<Record>) {
        if records.is_empty() {
            return;
        }
        // Counted before they can be written.
        self.slot.counts.unwritten.fetch_add(records.len(), Ordering::SeqCst);
        self.slot
            .counts
            .handed
            .fetch_add(records.len() as u64, Ordering::SeqCst);
        let mut inbox = lock(&self.slot.inbox);
        inbox.records.append(records);
        let news = !std::mem::replace(&mut inbox.queued, true);
        drop(inbox);
        if news {
            self.shared.mark_dirty(&self.slot);
        }
    }

    /// Whether an attempt may start. If not, the worker is notified when to ask again.
    pub fn may_start(&self) -> bool {
        if self.slot.counts.unwritten.load(Ordering::SeqCst) > UNWRITTEN_LIMIT {
            self.slot.waiting.store(true, Ordering::SeqCst);
            if self.slot.counts.unwritten.load(Ordering::SeqCst) > UNWRITTEN_LIMIT {
                return false;
            }
        }
        if self.shared.stalled.load(Ordering::SeqCst) {
            let mut waiting = lock(&self.shared.waiting);
            if !waiting.iter().any(|worker| Arc::ptr_eq(worker, &self.slot.worker)) {
                waiting.push(self.slot.worker.clone());
            }
            drop(waiting);
            return !self.shared.stalled.load(Ordering::SeqCst);
        }
        true
    }

    /// Segments that were written since the last call: they are in the store now.
    pub fn take_written(&self) -> Landed {
        std::mem::take(&mut lock(&self.slot.written))
    }

    /// How many [`Record::Rewrite`] were written so far.
    pub fn rewritten(&self) -> usize {
        self.slot.rewritten.load(Ordering::SeqCst)
    }

    /// Tells how far the ledger is with this worker's records.
    pub fn written(&self) -> Written {
        Written(self.slot.counts.clone())
    }

    /// Returns when nothing is unwritten, or the tenure is over.
    pub async fn flushed(&self) {
        loop {
            self.slot.waiting.store(true, Ordering::SeqCst);
            if self.slot.counts.unwritten.load(Ordering::SeqCst) == 0 || self.slot.fenced.is_cancelled() {
                return;
            }
            tokio::select! {
                () = self.slot.worker.notified() => {}
                () = self.slot.fenced.cancelled() => return,
            }
        }
    }

    /// Cancelled when the ledger finds that the tenure is over.
    pub fn fenced(&self) -> &CancellationToken {
        &self.slot.fenced
    }
}

/// Tells how far the ledger is with the records of one worker.
#[derive(Clone)]
pub struct Written(Arc<Counts>);

impl Written {
    /// How many records the worker has handed over.
    pub fn handed(&self) -> u64 {
        self.0.handed.load(Ordering::SeqCst)
    }

    /// How many of them, at least, are written: the first ones.
    pub fn count(&self) -> u64 {
        // In this order: what is handed over in between must not count.
        let handed = self.handed();
        handed.saturating_sub(self.0.unwritten.load(Ordering::SeqCst) as u64)
    }
}

#[cfg(test)]
impl Written {
    /// Of a ledger that was handed so many records, and has written so many of them.
    pub(crate) fn of(handed: usize, written: usize) -> Self {
        let this = Self(Arc::default());
        this.hand(handed);
        this.write(written);
        this
    }

    /// More records are handed over.
    pub(crate) fn hand(&self, count: usize) {
        self.0.unwritten.fetch_add(count, Ordering::SeqCst);
        self.0.handed.fetch_add(count as u64, Ordering::SeqCst);
    }

    /// More of them are written.
    pub(crate) fn write(&self, count: usize) {
        self.0.unwritten.fetch_sub(count, Ordering::SeqCst);
    }
}

impl Drop for Pen {
    fn drop(&mut self) {
        lock(&self.slot.inbox).closed = true;
        self.shared.open.fetch_sub(1, Ordering::SeqCst);
        self.shared.mark_dirty(&self.slot);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    /// Records that need no more writing.
    fn written_off(&self, count: usize) {
        self.counts.unwritten.fetch_sub(count, Ordering::SeqCst);
        if self.waiting.swap(false, Ordering::SeqCst) {
            self.worker.notify_one();
        }
    }

    fn settled(&self, part: &Part) {
        self.purse.put(part.freed);
        if part.rewrites > 0 {
            self.rewritten.fetch_add(part.rewrites, Ordering::SeqCst);
            self.waiting.store(true, Ordering::SeqCst);
        }
        if !part.landed.is_empty() {
            lock(&self.written).extend(&part.landed);
            self.waiting.store(true, Ordering::SeqCst);
        }
        self.written_off(part.records);
    }
}
