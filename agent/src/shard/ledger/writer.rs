//! The ledger's task.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postrider_common::entropy::SharedEntropy;
use postrider_common::id::AgentId;
use postrider_common::key::{self, Key};
use postrider_common::store::lease::Held;
use postrider_common::store::once::Lane;
use postrider_common::store::{Guard, LeaseId, NotApplied, SharedStore, Write, WriteError};
use postrider_common::time::SharedClock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batch::{self, Book, Draft};
use super::{Shared, Slot, lock};
use crate::shard::counters::Counters;

/// A transaction that takes longer than this holds up the start of attempts: what is delivered meanwhile would be repeated if the agent died.
const STALL_AFTER: Duration = Duration::from_millis(500);

/// How long a lane tries before it is asked again; only for the log, since the same write is sent until the lease is lost.
const COMMIT_TRY: Duration = Duration::from_secs(5);

/// Transactions begin at least this far apart, unless [`PACED_BELOW`] records wait. Under a load of single deliveries each transaction then holds those of
/// this time rather than of one round trip, which is worth a third of the store's work; a receiver that answered within it may see its event again if
/// the agent dies. Nothing waits for it but a shard that is handed over.
const PACE: Duration = Duration::from_millis(10);

/// Records that are more than one transaction takes: with those of a shard goes its progress, with its counts, and with the last of a segment the deletion.
/// If fewer were enough, each transaction would hold one or two records of each shard, and put the progress of each for them.
const PACED_BELOW: usize = 256;

/// Pause before a store that is full, or owner keys that cannot be read, are tried again.
const PAUSE: Duration = Duration::from_millis(200);

struct Sheet {
    slot: Arc<Slot>,
    book: Book,
}

/// The ledger's task.
pub(super) struct Writer {
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
    pub(super) const fn new(
        store: SharedStore,
        agent: AgentId,
        clock: SharedClock,
        entropy: SharedEntropy,
        counters: Arc<Counters>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            store,
            agent,
            clock,
            entropy,
            counters,
            shared,
            sheets: BTreeMap::new(),
            next_sheet: 0,
            first: 0,
            lane: None,
            full: false,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut next = Instant::now();
        loop {
            self.collect();
            if (1..PACED_BELOW).contains(&self.unwritten()) && Instant::now() < next {
                tokio::time::sleep_until(next).await;
                self.collect();
            }
            next = Instant::now() + PACE;
            // Told before it is written: that may take as long as the store is away.
            let unwritten = i64::try_from(self.unwritten()).unwrap_or(i64::MAX);
            self.counters.unwritten.store(unwritten, Ordering::Relaxed);
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

    fn unwritten(&self) -> usize {
        self.sheets.values().map(|sheet| sheet.book.pending()).sum()
    }

    /// Takes over what workers recorded.
    fn collect(&mut self) {
        let dirty = std::mem::take(&mut *lock(&self.shared.dirty));
        for slot in dirty {
            let (records, found, closed) = {
                let mut inbox = lock(&slot.inbox);
                inbox.queued = false;
                (std::mem::take(&mut inbox.records), inbox.found.take(), inbox.closed)
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
                book: Book::new(slot.tenure.shard, slot.tenure.epoch, found.unwrap_or_default()),
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
            Committed::Full => self.wait_for_room(&lease).await,
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

    /// The store takes no puts. What is recorded stays here until it does: attempts go on up to the limit of what is unwritten. Sources that are used up are
    /// not deleted meanwhile, though the store would take that: what they held could not be counted.
    async fn wait_for_room(&mut self, lease: &Held) {
        if !std::mem::replace(&mut self.full, true) {
            tracing::error!("the store is full: progress cannot be written");
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
