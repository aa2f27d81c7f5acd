//! Draws up the ledger's transactions: from records to operations. Pure.
//!
//! A [`Book`] is what the ledger knows of one shard. [`draft`] takes as many records as fit from several books, in their order, and makes one write of
//! them; the books change only when the draft is [`settle`]d, so a draft that was refused costs nothing and can be drawn up anew.
//!
//! Any prefix of a book's records makes a consistent transaction: the bit of a delivery that moved is written together with the segment it moved into,
//! and a source is deleted together with the last of its bits.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use postrider_common::key::{self, Key, Parked};
use postrider_common::model::bits::Bits;
use postrider_common::planted::{self, Bug};
use postrider_common::shard::ShardId;
use postrider_common::store::once::LANE_OPS;
use postrider_common::store::{Guard, MAX_OPS, Revision, Write};
use postrider_common::time::Timestamp;

use super::counts::{Changed, Counts};
use super::drawing::{Drawing, Room};
use crate::shard::delivery::{Record, SourceId};

/// Operations of one transaction: all that the store takes, less the lane's mark. Every shard in it has its progress among them.
pub const DRAFT_OPS: usize = MAX_OPS - LANE_OPS;

/// Bytes of one transaction before compression: after it, a write is where etcd is at its best (64 to 256 KB).
pub const DRAFT_BYTES: usize = 1 << 20;

/// What the ledger knows of one shard.
#[derive(Debug)]
pub struct Book {
    pub(super) shard: ShardId,
    pub(super) epoch: Revision,
    pub(super) sources: BTreeMap<SourceId, Open>,
    /// Bits of segments that are still to be opened, as they were found in the store.
    pub(super) unopened: BTreeMap<Key, Bytes>,
    pub(super) pending: VecDeque<Record>,
    /// `progress/S` exists.
    pub(super) stored: bool,
    /// It may name segments that are gone: left by a former owner.
    pub(super) stale: bool,
    pub(super) next_number: u64,
    pub(super) counts: Counts,
}

#[derive(Debug)]
pub(super) struct Open {
    pub(super) key: Key,
    pub(super) done: Bits,
    /// It stands in the queue, not among the parked.
    pub(super) queued: bool,
}

/// What the store held about a shard when it was taken.
#[derive(Debug, Default)]
pub struct Found {
    /// What `progress/S` says of segments that exist; `None` if there is no such key.
    pub progress: Option<BTreeMap<Key, Bytes>>,
    /// What became of the deliveries of its webhooks.
    pub counts: Counts,
}

/// One transaction.
#[derive(Debug, Default)]
pub struct Draft {
    /// What to write; the lane adds its mark.
    pub write: Write,
    /// What it does to each book.
    pub parts: Vec<Part>,
}

/// Segments that were written: where they stand.
#[derive(Debug, Default)]
pub struct Landed {
    /// Parked ones.
    pub parked: Vec<Parked>,
    /// Those of deliveries that became dead letters.
    pub dead: Vec<Parked>,
}

impl Landed {
    /// There are none.
    pub const fn is_empty(&self) -> bool {
        self.parked.is_empty() && self.dead.is_empty()
    }

    /// Adds those that were written after them.
    pub fn extend(&mut self, later: &Self) {
        self.parked.extend_from_slice(&later.parked);
        self.dead.extend_from_slice(&later.dead);
    }
}

/// What a transaction does to one book.
#[derive(Debug)]
pub struct Part {
    /// Which book, as the caller named it.
    pub book: u64,
    /// Segments that it writes.
    pub landed: Landed,
    /// Bytes of memory that are free once it is committed.
    pub freed: usize,
    /// Records that it holds: the oldest ones.
    pub records: usize,
    /// Segments of dead letters that it replaces.
    pub rewrites: usize,
    pub(super) touched: BTreeMap<SourceId, Bits>,
    pub(super) discarded: Vec<Key>,
    pub(super) counts: Changed,
    pub(super) stored: bool,
    pub(super) next_number: u64,
}

impl Book {
    /// The book of a shard that was just taken.
    pub fn new(shard: ShardId, epoch: Revision, found: Found) -> Self {
        let counts = if planted::is(Bug::CountsForgotten) {
            Counts::default()
        } else {
            found.counts
        };
        Self {
            shard,
            epoch,
            sources: BTreeMap::new(),
            stored: found.progress.is_some(),
            stale: found.progress.is_some(),
            unopened: found.progress.unwrap_or_default(),
            pending: VecDeque::new(),
            next_number: 1,
            counts,
        }
    }

    /// Adds a record; says how many wait to be written because of it (a source that is opened needs no writing).
    pub fn add(&mut self, record: Record) -> usize {
        let record = match record {
            Record::Open { source, key, done } => {
                if !done.is_full() {
                    self.unopened.remove(&key);
                    let queued = key::is_queued(&key);
                    self.sources.insert(source, Open { key, done, queued });
                    return 0;
                }
                Record::Discard(key)
            }
            Record::Gone(account, webhook) if !self.counts.has(&account, &webhook) => return 0,
            other @ (Record::Over { .. }
            | Record::Moved(_)
            | Record::Batch(_)
            | Record::Finished { .. }
            | Record::Rewrite(_)
            | Record::Drop(_)
            | Record::Gone(..)
            | Record::Note(..)
            | Record::Discard(_)) => other,
        };
        self.pending.push_back(record);
        1
    }

    /// Records that wait to be written.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// What makes a transaction valid.
    pub fn guard(&self) -> Guard {
        if planted::is(Bug::NoEpochGuard) {
            return Guard::Absent(Key::from_stored("planted"));
        }
        Guard::Created(key::owner(self.shard), self.epoch)
    }

    /// How many deliveries of a segment that is still to be opened are over, of `count`.
    pub(super) fn done_in(&self, key: &Key, count: u32) -> u32 {
        let done = self.unopened.get(key);
        done.map_or(0, |done| Bits::read(done, count).count())
    }

    pub(super) fn epoch_number(&self) -> u64 {
        u64::try_from(self.epoch.0).unwrap_or(0)
    }
}

/// Draws up one transaction from the records of `books`, each given with the caller's name for it, in the order given. `None` if there is nothing to write.
pub fn draft<'a>(books: impl Iterator<Item = (u64, &'a Book)>, now: Timestamp) -> Option<Draft> {
    let mut draft = Draft::default();
    let mut room = Room {
        ops: DRAFT_OPS,
        bytes: DRAFT_BYTES,
    };
    for (name, book) in books.filter(|(_, book)| !book.pending.is_empty()) {
        // Room for its progress and one record at least.
        if room.ops < 2 || room.bytes == 0 {
            break;
        }
        if let Some(part) = Drawing::new(book, &mut room).finish(name, now, &mut draft.write) {
            draft.parts.push(part);
        }
    }
    (!draft.parts.is_empty()).then_some(draft)
}

/// A draft's part was committed.
pub fn settle(book: &mut Book, part: &Part) {
    book.pending.drain(..part.records);
    book.stale = false;
    for (source, done) in &part.touched {
        if done.is_full() {
            book.sources.remove(source);
        } else if let Some(open) = book.sources.get_mut(source) {
            open.done.clone_from(done);
        }
    }
    for key in &part.discarded {
        book.unopened.remove(key);
    }
    book.counts.settle(&part.counts);
    book.stored = part.stored;
    book.next_number = part.next_number;
}

impl Part {
    pub(super) fn new(name: u64, book: &Book) -> Self {
        Self {
            book: name,
            landed: Landed::default(),
            freed: 0,
            records: 0,
            rewrites: 0,
            touched: BTreeMap::new(),
            discarded: Vec::new(),
            counts: Changed::default(),
            stored: book.stored,
            next_number: book.next_number,
        }
    }
}
