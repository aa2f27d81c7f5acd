//! Draws up the ledger's transactions: from records to operations. Pure.
//!
//! A [`Book`] is what the ledger knows of one shard. [`draft`] takes as many records as fit from several books, in their order, and makes one write of
//! them; the books change only when the draft is [`settle`]d, so a draft that was refused costs nothing and can be drawn up anew.
//!
//! Any prefix of a book's records makes a consistent transaction: the bit of a delivery that moved is written together with the segment it moved into,
//! and a source is deleted together with the last of its bits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use postrider_common::key::{self, Key, Parked};
use postrider_common::shard::ShardId;
use postrider_common::store::{Guard, Op, Revision, Write};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;
use postrider_proto::stored as pb;

use super::pack::{self, Group, Pack};
use crate::shard::bits::Bits;
use crate::shard::delivery::{Batch, Record, SourceId, size};

/// Operations of one transaction: etcd takes 128, and every shard needs room for its progress, the lane for its mark.
pub const DRAFT_OPS: usize = 100;

/// Bytes of one transaction before compression: after it, a write is where etcd is at its best (64 to 256 KB).
pub const DRAFT_BYTES: usize = 1 << 20;

/// What the ledger knows of one shard.
#[derive(Debug)]
pub struct Book {
    shard: ShardId,
    epoch: Revision,
    sources: BTreeMap<SourceId, Open>,
    /// Bits of segments that are still to be opened, as they were found in the store.
    unopened: BTreeMap<Key, Bytes>,
    pending: VecDeque<Record>,
    /// `progress/S` exists.
    stored: bool,
    /// It may name segments that are gone: left by a former owner, or deleted while the store took no puts.
    stale: bool,
    next_number: u64,
}

#[derive(Debug)]
struct Open {
    key: Key,
    done: Bits,
}

/// One transaction.
#[derive(Debug, Default)]
pub struct Draft {
    /// What to write; the lane adds its mark.
    pub write: Write,
    /// What it does to each book.
    pub parts: Vec<Part>,
}

/// What a transaction does to one book.
#[derive(Debug)]
pub struct Part {
    /// Which book, as the caller named it.
    pub book: u64,
    /// Parked segments that it writes.
    pub parked: Vec<Parked>,
    /// Bytes of memory that are free once it is committed.
    pub freed: usize,
    /// Records that it holds.
    pub records: usize,
    taken: Taken,
    touched: BTreeMap<SourceId, Bits>,
    discarded: Vec<Key>,
    stored: bool,
    next_number: u64,
}

/// Which records of a book a draft holds.
#[derive(Debug)]
enum Taken {
    /// The oldest ones.
    First(usize),
    /// These, by their places.
    Places(BTreeSet<usize>),
}

impl Book {
    /// The book of a shard that was just taken. `progress` is what `progress/S` says of segments that exist, `None` if there is no such key.
    pub fn new(shard: ShardId, epoch: Revision, progress: Option<BTreeMap<Key, Bytes>>) -> Self {
        Self {
            shard,
            epoch,
            sources: BTreeMap::new(),
            stored: progress.is_some(),
            stale: progress.is_some(),
            unopened: progress.unwrap_or_default(),
            pending: VecDeque::new(),
            next_number: 1,
        }
    }

    /// Adds a record; says how many wait to be written because of it (a source that is opened needs no writing).
    pub fn add(&mut self, record: Record) -> usize {
        let record = match record {
            Record::Open { source, key, done } => {
                if !done.is_full() {
                    self.unopened.remove(&key);
                    self.sources.insert(source, Open { key, done });
                    return 0;
                }
                Record::Discard(key)
            }
            other @ (Record::Over { .. }
            | Record::Moved(_)
            | Record::Batch(_)
            | Record::Finished { .. }
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
        Guard::Created(key::owner(self.shard), self.epoch)
    }

    fn epoch_number(&self) -> u64 {
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

/// Draws up a transaction of deletions only, which a store that is full still takes: sources of which nothing moved, and what is to be discarded.
pub fn draft_deletions<'a>(books: impl Iterator<Item = (u64, &'a Book)>) -> Option<Draft> {
    let mut draft = Draft::default();
    for (name, book) in books.filter(|(_, book)| !book.pending.is_empty()) {
        let mut places: BTreeMap<SourceId, (Bits, Vec<usize>)> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        let mut part = Part::new(name, book);
        let mut ops = Vec::new();
        for (place, record) in book.pending.iter().enumerate() {
            if draft.write.ops.len() + ops.len() >= DRAFT_OPS {
                break;
            }
            match record {
                Record::Over { source, index } => {
                    let Some(open) = book.sources.get(source) else { continue };
                    let (done, at) = places.entry(*source).or_insert_with(|| (open.done.clone(), Vec::new()));
                    done.set(*index);
                    at.push(place);
                    if done.is_full() {
                        ops.push(Op::delete(open.key.clone()));
                        part.touched.insert(*source, done.clone());
                        taken.extend(at.iter().copied());
                    }
                }
                Record::Discard(key) => {
                    ops.push(Op::delete(key.clone()));
                    part.discarded.push(key.clone());
                    taken.insert(place);
                }
                Record::Finished { source } => {
                    let Some(open) = book.sources.get(source) else { continue };
                    ops.push(Op::delete(open.key.clone()));
                    part.touched.insert(*source, open.done.full());
                    taken.insert(place);
                }
                Record::Open { .. } | Record::Moved(_) | Record::Batch(_) | Record::Note(..) => {}
            }
        }
        if !taken.is_empty() {
            part.records = taken.len();
            part.taken = Taken::Places(taken);
            draft.write.ops.append(&mut ops);
            draft.write.guards.push(book.guard());
            draft.parts.push(part);
        }
    }
    (!draft.parts.is_empty()).then_some(draft)
}

/// A draft's part was committed.
pub fn settle(book: &mut Book, part: &Part) {
    match &part.taken {
        Taken::First(count) => {
            book.pending.drain(..*count);
            book.stale = false;
        }
        Taken::Places(places) => {
            book.stale = book.stored;
            let mut place = 0;
            book.pending.retain(|_| {
                place += 1;
                !places.contains(&(place - 1))
            });
        }
    }
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
    book.stored = part.stored;
    book.next_number = part.next_number;
}

impl Part {
    const fn new(name: u64, book: &Book) -> Self {
        Self {
            book: name,
            parked: Vec::new(),
            freed: 0,
            records: 0,
            taken: Taken::First(0),
            touched: BTreeMap::new(),
            discarded: Vec::new(),
            stored: book.stored,
            next_number: book.next_number,
        }
    }
}

struct Room {
    ops: usize,
    bytes: usize,
}

/// Takes records of one book until there is no more room.
struct Drawing<'a, 'r> {
    book: &'a Book,
    room: &'r mut Room,
    packs: Vec<Pack<'a>>,
    last_pack: BTreeMap<Group<'a>, usize>,
    touched: BTreeMap<SourceId, Bits>,
    discarded: Vec<Key>,
    notes: BTreeMap<&'a Key, &'a Bytes>,
    taken: usize,
}

impl<'a, 'r> Drawing<'a, 'r> {
    fn new(book: &'a Book, room: &'r mut Room) -> Self {
        // One operation is for the progress.
        room.ops -= 1;
        Self {
            book,
            room,
            packs: Vec::new(),
            last_pack: BTreeMap::new(),
            touched: BTreeMap::new(),
            discarded: Vec::new(),
            notes: BTreeMap::new(),
            taken: 0,
        }
    }

    fn finish(mut self, name: u64, now: Timestamp, write: &mut Write) -> Option<Part> {
        let book = self.book;
        for record in &book.pending {
            if !self.take(record, now) {
                break;
            }
            self.taken += 1;
        }
        if self.taken == 0 {
            self.room.ops += 1;
            return None;
        }
        let mut part = Part::new(name, book);
        part.records = self.taken;
        part.taken = Taken::First(self.taken);
        write.guards.push(book.guard());
        for pack in std::mem::take(&mut self.packs) {
            part.freed += pack.deliveries.iter().map(|delivery| delivery.bytes).sum::<usize>();
            let stored = pack::store(&pack, book.shard, book.epoch_number(), part.next_number);
            let Some((op, parked)) = stored else { continue };
            part.next_number += 1;
            part.parked.extend(parked);
            write.ops.push(op);
        }
        for (source, done) in &self.touched {
            if let Some(open) = book.sources.get(source).filter(|_| done.is_full()) {
                write.ops.push(Op::delete(open.key.clone()));
            }
        }
        // What was noted after it was discarded stays.
        let gone = self.discarded.iter().filter(|key| !self.notes.contains_key(key));
        write.ops.extend(gone.cloned().map(Op::delete));
        let notes = std::mem::take(&mut self.notes).into_iter();
        write
            .ops
            .extend(notes.map(|(key, value)| Op::put(key.clone(), value.clone())));
        if let Some(op) = self.progress(&mut part.stored) {
            self.room.bytes = self.room.bytes.saturating_sub(op.size());
            write.ops.push(op);
        } else {
            self.room.ops += 1;
        }
        part.touched = self.touched;
        part.discarded = self.discarded;
        Some(part)
    }

    /// Takes a record, if there is room for what it brings.
    fn take(&mut self, record: &'a Record, now: Timestamp) -> bool {
        match record {
            // Opened when it was added.
            Record::Open { .. } => true,
            Record::Discard(key) => {
                if self.room.ops == 0 {
                    return false;
                }
                self.room.ops -= 1;
                self.notes.remove(key);
                self.discarded.push(key.clone());
                true
            }
            Record::Note(key, value) => {
                if self.room.ops == 0 {
                    return false;
                }
                self.room.ops -= 1;
                self.notes.insert(key, value);
                true
            }
            Record::Over { source, index } => self.end(*source, *index, 0),
            Record::Finished { source } => self.finish_source(*source),
            Record::Batch(batch) => self.take_batch(batch),
            Record::Moved(moved) => {
                let (delivery, size) = (&moved.delivery, size(&moved.delivery.event));
                let alike = pack::group(moved.to, now, &delivery.state);
                let group = (moved.to, alike, &delivery.origin.account, &delivery.origin.webhook);
                let last = self.last_pack.get(&group).copied();
                let last = last.filter(|at| self.packs.get(*at).is_some_and(|pack| pack.has_room(size)));
                // The first record of a draft goes in whatever its size: an event is never larger than a write may be.
                if size > self.room.bytes && self.room.bytes != DRAFT_BYTES
                    || !self.end(delivery.source, delivery.index, usize::from(last.is_none()))
                {
                    return false;
                }
                self.room.bytes = self.room.bytes.saturating_sub(size);
                let at = last.unwrap_or_else(|| {
                    self.packs.push(Pack {
                        to: moved.to,
                        deliveries: Vec::new(),
                        bytes: 0,
                        batch: None,
                    });
                    self.last_pack.insert(group, self.packs.len() - 1);
                    self.packs.len() - 1
                });
                if let Some(pack) = self.packs.get_mut(at) {
                    pack.bytes += size;
                    pack.deliveries.push(delivery);
                }
                true
            }
        }
    }

    /// Takes all deliveries of a batch, if there is room for all.
    fn take_batch(&mut self, batch: &'a Batch) -> bool {
        let bytes: usize = batch.deliveries.iter().map(|delivery| size(&delivery.event)).sum();
        let members = batch
            .deliveries
            .iter()
            .map(|delivery| (delivery.source, delivery.index));
        let sources: BTreeSet<SourceId> = members
            .clone()
            .chain(batch.over.iter().copied())
            .map(|(source, _)| source)
            .collect();
        // As for a single event: the first record of a draft goes in whatever its size.
        if bytes > self.room.bytes && self.room.bytes != DRAFT_BYTES || self.room.ops < 1 + sources.len() {
            return false;
        }
        self.room.bytes = self.room.bytes.saturating_sub(bytes);
        self.room.ops -= 1;
        for (source, index) in members.chain(batch.over.iter().copied()) {
            self.end(source, index, 0);
        }
        self.packs.push(Pack {
            to: batch.to,
            deliveries: batch.deliveries.iter().collect(),
            bytes,
            batch: Some(&batch.id),
        });
        true
    }

    /// Sets all bits of a source, if there is room for its deletion.
    fn finish_source(&mut self, source: SourceId) -> bool {
        let Some(open) = self.book.sources.get(&source) else {
            return true;
        };
        if self.room.ops == 0 {
            return false;
        }
        self.room.ops -= 1;
        self.touched.insert(source, open.done.full());
        true
    }

    /// Sets a delivery's bit, if there is room for `more` operations and the deletion of its source.
    fn end(&mut self, source: SourceId, index: u32, more: usize) -> bool {
        // A source that was never opened would be a mistake of the worker's: there is no bit to set.
        let mut done = self.book.sources.get(&source).map(|open| {
            let done = self.touched.entry(source);
            done.or_insert_with(|| open.done.clone())
        });
        let last = |done: &&mut Bits| !done.get(index) && done.count() + 1 == done.total();
        let ops = more + usize::from(done.as_ref().is_some_and(last));
        if self.room.ops < ops {
            return false;
        }
        self.room.ops -= ops;
        if let Some(done) = &mut done {
            done.set(index);
        }
        true
    }

    /// What becomes of `progress/S`.
    fn progress(&self, stored: &mut bool) -> Option<Op> {
        let book = self.book;
        let before = |source: &SourceId| book.sources.get(source).is_some_and(|open| open.done.is_partial());
        let news = book.stale
            || self
                .touched
                .iter()
                .any(|(source, done)| done.is_partial() || before(source))
            || self.discarded.iter().any(|key| book.unopened.contains_key(key));
        if !news {
            return None;
        }
        let opened = book.sources.iter().filter_map(|(source, open)| {
            let done = self.touched.get(source).unwrap_or(&open.done);
            done.is_partial().then(|| (&open.key, done.as_bytes()))
        });
        let unopened = book.unopened.iter().map(|(key, done)| (key, done.as_ref()));
        let unopened = unopened.filter(|(key, _)| !self.discarded.contains(key));
        let entry = |(key, done): (&Key, &[u8])| pb::SegmentProgress {
            key: key.as_str().to_owned(),
            done: Bytes::copy_from_slice(done),
        };
        let segments: Vec<_> = opened.chain(unopened).map(entry).collect();
        let key = key::progress(book.shard);
        if !segments.is_empty() {
            *stored = true;
            return Some(Op::put(key, stored::encode(&pb::Progress { segments })));
        }
        std::mem::take(stored).then(|| Op::delete(key))
    }
}

/// Reads `progress/S`: the bits of each segment by its key.
///
/// # Errors
/// If the bytes are not of that message.
pub fn read_progress(value: Bytes) -> Result<BTreeMap<Key, Bytes>, stored::Unreadable> {
    let progress: pb::Progress = stored::decode(value)?;
    let segments = progress.segments.into_iter();
    Ok(segments
        .map(|segment| (Key::from_stored(&segment.key), segment.done))
        .collect())
}
