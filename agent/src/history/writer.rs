//! The history's task.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postrider_common::key::{self, History as At};
use postrider_common::model::history::Chapter;
use postrider_common::store::{Guard, Op, ReadError, SharedStore, Write, WriteError, list_all};
use postrider_common::time::{SharedClock, Timestamp};
use postrider_common::wire::stored;
use postrider_proto::stored as pb;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

use super::ration::Ration;
use super::shelf::Shelf;
use super::{Limits, Shared, Slot, lock};
use crate::shard::Tenure;

/// How soon after it happened an entry is written at the earliest: what happens together goes together, and who looks on does not wait long.
const SOON: Duration = Duration::from_millis(250);

/// How far apart flushes are while there is always something to write.
const PACE: Duration = Duration::from_secs(1);

/// How often shards in which nothing happens are looked at for what is too old.
const TIDY: Duration = Duration::from_secs(60);

/// Operations of one transaction: etcd takes 128.
const WRITE_OPS: usize = 100;

/// Bytes of one transaction, unless a single shard has more: like the ledger's.
const WRITE_BYTES: usize = 512 << 10;

/// Old segments deleted with each new one: more than come, so that a limit that was lowered is reached soon; few enough that other shards have room.
const DELETED_WITH_ONE: usize = 8;

/// Bytes of memory of the entries of one segment: it is below what a transaction and a reader take, whatever is in it.
const SEGMENT_LIMIT: usize = 1 << 20;

/// One shard.
struct Book {
    slot: Arc<Slot>,
    /// `None` until it was listed.
    shelf: Option<Shelf>,
    ration: Ration,
    refilled: Instant,
    number: u64,
}

/// What a transaction does to one shard.
struct Piece {
    book: usize,
    /// The segment, and how many entries it has.
    put: Option<(At, Op, usize)>,
    deletes: Vec<Op>,
}

impl Piece {
    fn ops(&self) -> usize {
        self.deletes.len() + usize::from(self.put.is_some())
    }

    fn bytes(&self) -> usize {
        self.put.as_ref().map_or(0, |(_, op, _)| op.size())
    }
}

/// The history's task.
pub(super) struct Writer {
    store: SharedStore,
    clock: SharedClock,
    limits: Limits,
    shared: Arc<Shared>,
    books: Vec<Book>,
    /// Bytes of one shard; `None` until the cell was read.
    share: Option<u64>,
}

impl Writer {
    pub(super) const fn new(store: SharedStore, clock: SharedClock, limits: Limits, shared: Arc<Shared>) -> Self {
        Self {
            store,
            clock,
            limits,
            shared,
            books: Vec::new(),
            share: None,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut flushed = Instant::now();
        let mut due: Option<Instant> = None;
        let mut tidy = interval_at(flushed + TIDY, TIDY);
        tidy.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let at = due.unwrap_or(flushed);
            tokio::select! {
                () = self.shared.wake.notified() => {
                    if self.shared.armed.load(Ordering::SeqCst) && due.is_none() {
                        due = Some((Instant::now() + SOON).max(flushed + PACE));
                    }
                }
                () = sleep_until(at), if due.is_some() => {}
                _ = tidy.tick() => due = Some(Instant::now()),
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
            let urgent = self.shared.urgent.swap(false, Ordering::SeqCst);
            if urgent || due.is_some_and(|due| due <= Instant::now()) {
                self.shared.armed.store(false, Ordering::SeqCst);
                let left = self.flush().await;
                flushed = Instant::now();
                due = left.then(|| flushed + SOON);
            }
            if stop.is_cancelled() && self.shared.open.load(Ordering::SeqCst) == 0 {
                return;
            }
        }
    }

    /// Writes what can be written; says whether something is left that can be later.
    async fn flush(&mut self) -> bool {
        self.open();
        let closing: Vec<_> = self
            .books
            .iter()
            .map(|book| lock(&book.slot.inbox).closing.take())
            .collect();
        self.prepare().await;
        let mut pieces = Vec::new();
        for book in 0..self.books.len() {
            self.pieces(book, &mut pieces);
        }
        while !pieces.is_empty() {
            let (mut ops, mut bytes) = (0, 0);
            let fitting = pieces.iter().take_while(|piece| {
                ops += piece.ops();
                bytes += piece.bytes();
                ops <= WRITE_OPS && bytes <= WRITE_BYTES
            });
            let together: Vec<Piece> = pieces.drain(..fitting.count().max(1)).collect();
            self.write(together).await;
        }
        // Those who wait for it are told, whatever came of it.
        for closing in closing.into_iter().flatten() {
            // Or they have given up.
            let _ = closing.send(());
        }
        self.close()
    }

    fn open(&mut self) {
        let share = self.share.unwrap_or(0);
        for slot in lock(&self.shared.opened).drain(..) {
            self.books.push(Book {
                slot,
                shelf: None,
                ration: Ration::new(share),
                refilled: Instant::now(),
                number: 0,
            });
        }
    }

    /// Forgets shards whose worker has ended; says whether something waits in the others.
    fn close(&mut self) -> bool {
        let mut left = false;
        let shared = &self.shared;
        self.books.retain(|book| {
            let closed = lock(&book.slot.inbox).closed;
            if closed || book.slot.tenure.lease.lost().is_cancelled() {
                shared.dropped(book.slot.take_all(shared).len());
            } else {
                left |= !lock(&book.slot.inbox).marks.is_empty();
            }
            !closed
        });
        left
    }

    /// Reads what has to be known before a shard's history can be written. What cannot be read is read next time.
    async fn prepare(&mut self) {
        if let Err(error) = self.read().await {
            tracing::debug!(%error, "the history cannot be read for now");
        }
    }

    async fn read(&mut self) -> Result<(), ReadError> {
        let share = match self.share {
            Some(share) => share,
            None => {
                let (Some(cell), _) = self.store.get(&key::cell()).await? else {
                    return Ok(());
                };
                let cell: pb::Cell = stored::decode(cell.value).unwrap_or_default();
                *self
                    .share
                    .insert(self.limits.bytes / u64::from(cell.shard_count.max(1)))
            }
        };
        for book in self.books.iter_mut().filter(|book| book.shelf.is_none()) {
            let (entries, _) = list_all(&*self.store, &key::history(book.slot.tenure.shard), true).await?;
            let found = entries.iter().filter_map(|entry| key::parse_history(&entry.key));
            book.shelf = Some(Shelf::new(found));
            book.ration = Ration::new(share);
        }
        Ok(())
    }

    /// What is to be written of one shard.
    fn pieces(&mut self, book: usize, pieces: &mut Vec<Piece>) {
        let (Some(share), now) = (self.share, self.clock.now()) else {
            return;
        };
        let Some(of) = self.books.get_mut(book) else { return };
        let Some(shelf) = of.shelf.as_ref() else { return };
        if of.slot.tenure.lease.lost().is_cancelled() {
            return;
        }
        of.ration.refill(of.refilled.elapsed());
        of.refilled = Instant::now();
        let (first, mut more) = (pieces.len(), 0);
        loop {
            let mut chapter = of.slot.take(&self.shared, SEGMENT_LIMIT);
            if chapter.is_empty() {
                break;
            }
            of.ration.thin(&mut chapter);
            self.shared
                .counters
                .left_out
                .fetch_add(chapter.left_out, Ordering::Relaxed);
            if chapter.is_empty() {
                continue;
            }
            of.number += 1;
            let put = put(&chapter, &of.slot.tenure, of.number, shelf.time(now));
            more += u64::from(put.0.bytes);
            pieces.push(Piece {
                book,
                put: Some(put),
                deletes: Vec::new(),
            });
        }
        let most = DELETED_WITH_ONE * (pieces.len() - first).max(1);
        let overdue = shelf.overdue(before(now, self.limits.retention), share, more, most);
        let deletes = overdue.iter().map(|at| Op::delete(key::history_segment(at))).collect();
        match pieces.last_mut().filter(|piece| piece.book == book) {
            Some(piece) => piece.deletes = deletes,
            None if deletes.is_empty() => {}
            None => pieces.push(Piece {
                book,
                put: None,
                deletes,
            }),
        }
    }

    /// Writes pieces together; where one's epoch is over, each on its own.
    async fn write(&mut self, pieces: Vec<Piece>) {
        let together = pieces.len() > 1;
        match self.commit(&pieces).await {
            Err(WriteError::Conflict) if together => {
                for piece in pieces {
                    let alone = [piece];
                    let outcome = self.commit(&alone).await;
                    self.settle(&alone, &outcome);
                }
            }
            outcome => self.settle(&pieces, &outcome),
        }
    }

    async fn commit(&self, pieces: &[Piece]) -> Result<(), WriteError> {
        let mut write = Write::default();
        for piece in pieces {
            let Some(book) = self.books.get(piece.book) else {
                continue;
            };
            let tenure = &book.slot.tenure;
            write
                .guards
                .push(Guard::Created(key::owner(tenure.shard), tenure.epoch));
            write.ops.extend(piece.put.iter().map(|(_, op, _)| op.clone()));
            write.ops.extend(piece.deletes.iter().cloned());
        }
        self.store.write(write).await.map(|_| ())
    }

    fn settle(&mut self, pieces: &[Piece], outcome: &Result<(), WriteError>) {
        let counters = &self.shared.counters;
        match outcome {
            Ok(()) => {
                counters.transactions.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => tracing::debug!(%error, "history was not written"),
        }
        for piece in pieces {
            let shelf = self.books.get_mut(piece.book).and_then(|book| book.shelf.as_mut());
            let Some(shelf) = shelf else { continue };
            if outcome.is_ok() {
                shelf.forget(piece.deletes.len());
            }
            let Some((at, _, entries)) = &piece.put else { continue };
            // What may be there has to go one day.
            if matches!(outcome, Ok(()) | Err(WriteError::Unknown(_))) {
                shelf.add(*at);
            }
            if outcome.is_ok() {
                counters.written.fetch_add(*entries as u64, Ordering::Relaxed);
                counters.bytes.fetch_add(at.bytes.into(), Ordering::Relaxed);
            } else {
                self.shared.dropped(*entries);
            }
        }
    }
}

fn put(chapter: &Chapter, tenure: &Tenure, number: u64, time: Timestamp) -> (At, Op, usize) {
    let value = stored::pack_history(chapter.iter(), chapter.left_out);
    let at = At {
        shard: tenure.shard,
        time,
        epoch: u64::try_from(tenure.epoch.0).unwrap_or(0),
        number,
        bytes: u32::try_from(value.len()).unwrap_or(u32::MAX),
    };
    (at, Op::put(key::history_segment(&at), value), chapter.len())
}

fn before(now: Timestamp, duration: Duration) -> Timestamp {
    let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(now.as_millis().saturating_sub(millis))
}
