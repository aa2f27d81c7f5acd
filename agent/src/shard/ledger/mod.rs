//! The ledger: writes what all workers of the agent record, in bulk.
//!
//! While one transaction is in flight the next one fills; when nothing is in flight a record goes at once. Each transaction is guarded by the epoch of
//! every shard in it, and goes through a lane with a mark, so that it applies once however often it has to be sent.
//!
//! A conflict means that some epoch is over: the owner keys say which, those shards are fenced, the rest is drawn up again. A lease that is lost fences
//! all its shards. While the store is away workers go on until they have too much unwritten (see [`Pen::may_start`]).

pub mod batch;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use postrider_common::entropy::SharedEntropy;
use postrider_common::id::AgentId;
use postrider_common::key::{self, Key, Parked};
use postrider_common::store::lease::Held;
use postrider_common::store::once::Lane;
use postrider_common::store::{Guard, LeaseId, NotApplied, SharedStore, Write, WriteError};
use postrider_common::task;
use postrider_common::time::SharedClock;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::batch::{Book, Draft, Part};
use super::Tenure;
use super::budget::Purse;
use super::counters::Counters;
use super::delivery::Record;

/// Records that one worker may have unwritten before it starts nothing more: some hundred milliseconds of one shard at full speed. It bounds the duplicates
/// of an agent that dies while the store is away.
const UNWRITTEN_LIMIT: usize = 2048;

/// A transaction that takes longer than this holds up the start of attempts: what is delivered meanwhile would be repeated if the agent died.
const STALL_AFTER: Duration = Duration::from_millis(500);

/// How long a lane tries before it is asked again; only for the log, since the same write is sent until the lease is lost.
const COMMIT_TRY: Duration = Duration::from_secs(5);

/// Pause before a store that is full, or owner keys that cannot be read, are tried again.
const PAUSE: Duration = Duration::from_millis(200);

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
    unwritten: AtomicUsize,
    written: Mutex<Vec<Parked>>,
    /// The worker wants to be woken after the next transaction, whatever it holds.
    waiting: AtomicBool,
    worker: Arc<Notify>,
    purse: Arc<Purse>,
    fenced: CancellationToken,
}

struct Inbox {
    records: Vec<Record>,
    progress: Option<BTreeMap<Key, Bytes>>,
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
        let writer = Writer {
            store,
            agent,
            clock,
            entropy,
            counters,
            shared: shared.clone(),
            sheets: BTreeMap::new(),
            next_sheet: 0,
            first: 0,
            lane: None,
            full: false,
        };
        let stop = group.token().clone();
        group.spawn("ledger", writer.run(stop));
        Self { shared }
    }

    /// Opens the book of a shard that was just taken. `progress` is what `progress/S` held, `None` if there is no such key; `worker` is notified when
    /// parked segments were written (see [`Pen::take_written`]) and when attempts may start again; `purse` gets back what moved deliveries took.
    pub fn open(
        &self,
        tenure: Tenure,
        progress: Option<BTreeMap<Key, Bytes>>,
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
                    progress,
                    queued: false,
                    closed: false,
                }),
                unwritten: AtomicUsize::new(0),
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
        self.slot.unwritten.fetch_add(records.len(), Ordering::SeqCst);
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
        if self.slot.unwritten.load(Ordering::SeqCst) > UNWRITTEN_LIMIT {
            self.slot.waiting.store(true, Ordering::SeqCst);
            if self.slot.unwritten.load(Ordering::SeqCst) > UNWRITTEN_LIMIT {
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

    /// Parked segments that were written since the last call: they are in the store now.
    pub fn take_written(&self) -> Vec<Parked> {
        std::mem::take(&mut lock(&self.slot.written))
    }

    /// Returns when nothing is unwritten, or the tenure is over.
    pub async fn flushed(&self) {
        loop {
            self.slot.waiting.store(true, Ordering::SeqCst);
            if self.slot.unwritten.load(Ordering::SeqCst) == 0 || self.slot.fenced.is_cancelled() {
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

struct Sheet {
    slot: Arc<Slot>,
    book: Book,
}

/// The ledger's task.
struct Writer {
    store: SharedStore,
    agent: AgentId,
    clock: SharedClock,
    entropy: SharedEntropy,
    counters: Arc<Counters>,
    shared: Arc<Shared>,
    sheets: BTreeMap<u64, Sheet>,
    next_sheet: u64,
    /// Who is served first: everybody in turn.
    first: u64,
    lane: Option<(LeaseId, Lane)>,
    /// The store takes no puts; said once in the log.
    full: bool,
}

/// How the commit of a draft ended.
enum Committed {
    Yes,
    Conflict,
    Full,
    /// The lease is gone, and with it every epoch on it.
    Lost,
    Refused(String),
}

impl Writer {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            self.collect();
            if self.write_once().await {
                continue;
            }
            if stop.is_cancelled() && self.shared.open.load(Ordering::SeqCst) == 0 {
                return;
            }
            tokio::select! {
                () = self.shared.wake.notified() => {}
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
        }
    }

    /// Takes over what workers recorded.
    fn collect(&mut self) {
        let dirty = std::mem::take(&mut *lock(&self.shared.dirty));
        for slot in dirty {
            let (records, progress, closed) = {
                let mut inbox = lock(&slot.inbox);
                inbox.queued = false;
                (std::mem::take(&mut inbox.records), inbox.progress.take(), inbox.closed)
            };
            let known = self.sheets.iter().find(|(_, sheet)| Arc::ptr_eq(&sheet.slot, &slot));
            let known = known.map(|(name, _)| *name);
            if closed || slot.fenced.is_cancelled() {
                if let Some(name) = known {
                    self.sheets.remove(&name);
                }
                continue;
            }
            let name = known.unwrap_or_else(|| {
                self.next_sheet += 1;
                self.next_sheet
            });
            let sheet = self.sheets.entry(name).or_insert_with(|| Sheet {
                book: Book::new(slot.tenure.shard, slot.tenure.epoch, progress),
                slot,
            });
            let handed = records.len();
            let pending: usize = records.into_iter().map(|record| sheet.book.add(record)).sum();
            sheet.slot.written_off(handed - pending);
        }
    }

    /// Writes one transaction, if there is something to write.
    async fn write_once(&mut self) -> bool {
        self.fence_lost();
        let order = self.sheets.range(self.first..).chain(self.sheets.range(..self.first));
        let mut order = order.filter(|(_, sheet)| sheet.book.pending() > 0);
        let Some((_, first)) = order.next() else { return false };
        let lease = first.slot.tenure.lease.clone();
        let now = self.clock.now();
        let Some(draft) = batch::draft(self.books(lease.id()), now) else {
            return false;
        };
        match self.commit(&draft.write, &lease).await {
            Committed::Yes => {
                self.full = false;
                self.settle(&draft);
            }
            Committed::Conflict => self.fence_stale(&draft.write, &lease).await,
            Committed::Full => self.delete_only(&lease).await,
            Committed::Lost => self.fence(|sheet| sheet.slot.tenure.lease.id() == lease.id()),
            Committed::Refused(why) => {
                // A mistake of ours: give the shards up rather than send the same for ever.
                tracing::error!(why, "a ledger transaction is not allowed");
                let names: Vec<u64> = draft.parts.iter().map(|part| part.book).collect();
                self.fence_named(&names);
            }
        }
        true
    }

    /// The books on one lease, in turn.
    fn books(&self, lease: LeaseId) -> impl Iterator<Item = (u64, &Book)> {
        let order = self.sheets.range(self.first..).chain(self.sheets.range(..self.first));
        order
            .filter(move |(_, sheet)| sheet.slot.tenure.lease.id() == lease)
            .map(|(name, sheet)| (*name, &sheet.book))
    }

    async fn commit(&mut self, write: &Write, lease: &Held) -> Committed {
        let mut lane = match self.lane.take() {
            Some((id, lane)) if id == lease.id() => lane,
            _ => {
                let name = format!("{}-{:016x}", self.agent, self.entropy.next_u64());
                Lane::new(self.store.clone(), key::writer(&name))
            }
        };
        let committed = {
            let commit = async {
                loop {
                    match lane.commit(write, Some(lease.id()), Instant::now() + COMMIT_TRY).await {
                        Ok(_) => return Committed::Yes,
                        Err(WriteError::Conflict) => return Committed::Conflict,
                        Err(WriteError::NotApplied(NotApplied::Full)) => return Committed::Full,
                        Err(WriteError::NotApplied(NotApplied::LeaseGone)) => return Committed::Lost,
                        Err(WriteError::NotApplied(NotApplied::Invalid(why))) => return Committed::Refused(why),
                        // The same write again: the mark sees to it that it applies once.
                        Err(error @ (WriteError::Unknown(_) | WriteError::NotApplied(NotApplied::Away(_)))) => {
                            tracing::warn!(%error, "progress cannot be written");
                        }
                    }
                }
            };
            tokio::pin!(commit);
            let stall = tokio::time::sleep(STALL_AFTER);
            tokio::pin!(stall);
            loop {
                tokio::select! {
                    committed = &mut commit => break committed,
                    () = lease.lost().cancelled() => break Committed::Lost,
                    () = &mut stall, if !stall.is_elapsed() => self.shared.set_stalled(true),
                }
            }
        };
        if self.shared.stalled.load(Ordering::SeqCst) {
            self.shared.set_stalled(false);
        }
        match &committed {
            Committed::Yes | Committed::Full | Committed::Conflict => self.lane = Some((lease.id(), lane)),
            // What the lane sent last may still be on its way: nothing else may be sent on it.
            Committed::Lost | Committed::Refused(_) => {}
        }
        committed
    }

    fn settle(&mut self, draft: &Draft) {
        self.counters.ledger_transactions.fetch_add(1, Ordering::Relaxed);
        for part in &draft.parts {
            self.first = part.book + 1;
            if let Some(sheet) = self.sheets.get_mut(&part.book) {
                batch::settle(&mut sheet.book, part);
                self.counters
                    .ledger_records
                    .fetch_add(part.records as u64, Ordering::Relaxed);
                sheet.slot.settled(part);
            }
        }
    }

    /// Some guard did not hold: finds out whose epoch is over.
    async fn fence_stale(&mut self, write: &Write, lease: &Held) {
        let guards: Vec<(Key, _)> = write
            .guards
            .iter()
            .filter_map(|guard| match guard {
                Guard::Created(key, epoch) => Some((key.clone(), *epoch)),
                Guard::Absent(_) | Guard::Modified(..) => None,
            })
            .collect();
        let keys: Vec<Key> = guards.iter().map(|(key, _)| key.clone()).collect();
        loop {
            match self.store.get_all(&keys).await {
                Ok((entries, _)) => {
                    let stale: VecDeque<&Key> = guards
                        .iter()
                        .zip(&entries)
                        .filter(|((_, epoch), entry)| entry.as_ref().map(|entry| entry.create_revision) != Some(*epoch))
                        .map(|((key, _), _)| key)
                        .collect();
                    if stale.is_empty() {
                        // Only the mark is left: it went with an older lease. A new lane has a new one.
                        self.lane = None;
                    }
                    let owner = |sheet: &Sheet| key::owner(sheet.slot.tenure.shard);
                    let epochs: BTreeMap<&Key, _> = guards.iter().map(|(key, epoch)| (key, *epoch)).collect();
                    self.fence(|sheet| {
                        let key = owner(sheet);
                        stale.contains(&&key) && epochs.get(&key) == Some(&sheet.slot.tenure.epoch)
                    });
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "the owners cannot be read");
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE) => {}
                        () = lease.lost().cancelled() => return,
                    }
                }
            }
        }
    }

    /// The store takes no puts: deletes what can be deleted without one. Deletions need no mark: applied twice they change nothing.
    async fn delete_only(&mut self, lease: &Held) {
        if !std::mem::replace(&mut self.full, true) {
            tracing::error!("the store is full: progress cannot be written");
        }
        // Attempts go on, up to the limit of what is unwritten: more may become deletable.
        let draft = batch::draft_deletions(self.books(lease.id()));
        if let Some(draft) = draft {
            match self.store.write(draft.write.clone()).await {
                Ok(_) => return self.settle(&draft),
                Err(WriteError::Conflict) => return self.fence_stale(&draft.write, lease).await,
                Err(error) => tracing::warn!(%error, "what is finished cannot be deleted"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = lease.lost().cancelled() => {}
        }
    }

    fn fence_lost(&mut self) {
        self.fence(|sheet| sheet.slot.tenure.lease.lost().is_cancelled());
    }

    fn fence_named(&mut self, names: &[u64]) {
        for name in names {
            if let Some(sheet) = self.sheets.remove(name) {
                sheet.slot.fenced.cancel();
            }
        }
    }

    fn fence(&mut self, over: impl Fn(&Sheet) -> bool) {
        let names = self.sheets.iter().filter(|(_, sheet)| over(sheet));
        let names: Vec<u64> = names.map(|(name, _)| *name).collect();
        for name in &names {
            if let Some(sheet) = self.sheets.get(name) {
                tracing::info!(shard = %sheet.slot.tenure.shard, epoch = %sheet.slot.tenure.epoch, "a tenure is over");
            }
        }
        self.fence_named(&names);
    }
}

impl Slot {
    /// Records that need no more writing.
    fn written_off(&self, count: usize) {
        self.unwritten.fetch_sub(count, Ordering::SeqCst);
        if self.waiting.swap(false, Ordering::SeqCst) {
            self.worker.notify_one();
        }
    }

    fn settled(&self, part: &Part) {
        self.purse.put(part.freed);
        if !part.parked.is_empty() {
            lock(&self.written).extend_from_slice(&part.parked);
            self.waiting.store(true, Ordering::SeqCst);
        }
        self.written_off(part.records);
    }
}
