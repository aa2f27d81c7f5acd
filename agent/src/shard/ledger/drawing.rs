//! Takes records of one book into a transaction, until there is no more room. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use postrider_common::key::{self, Key, Parked};
use postrider_common::model::bits::Bits;
use postrider_common::store::{Op, Write};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;

use super::batch::{Book, DRAFT_BYTES, Part};
use super::counts::{Change, Changed, Ended, Tallies};
use super::pack::{self, Group, Pack};
use crate::shard::delivery::{Batch, Destination, End, Origin, Record, Rewrite, SourceId, size};

/// What still fits into a transaction.
pub(super) struct Room {
    pub(super) ops: usize,
    pub(super) bytes: usize,
}

/// Takes records of one book until there is no more room.
pub(super) struct Drawing<'a, 'r> {
    book: &'a Book,
    room: &'r mut Room,
    packs: Vec<Pack<'a>>,
    last_pack: BTreeMap<Group<'a>, usize>,
    touched: BTreeMap<SourceId, Bits>,
    discarded: Vec<Key>,
    notes: BTreeMap<&'a Key, &'a Bytes>,
    tallies: Tallies<'a>,
    counts: Changed,
    folds: Vec<Op>,
    rewrites: usize,
    taken: usize,
}

impl<'a, 'r> Drawing<'a, 'r> {
    /// Begins with what a book folds.
    pub(super) fn new(book: &'a Book, room: &'r mut Room) -> Self {
        // One operation is for the progress.
        room.ops -= 1;
        let (folds, counts) = book.counts.fold(book.shard, room.ops / 2);
        room.ops -= folds.len();
        Self {
            tallies: Tallies::default(),
            counts,
            folds,
            book,
            room,
            packs: Vec::new(),
            last_pack: BTreeMap::new(),
            touched: BTreeMap::new(),
            discarded: Vec::new(),
            notes: BTreeMap::new(),
            rewrites: 0,
            taken: 0,
        }
    }

    /// Takes what fits, and adds it to a write; `None` if nothing does.
    pub(super) fn finish(mut self, name: u64, now: Timestamp, write: &mut Write) -> Option<Part> {
        let book = self.book;
        for record in &book.pending {
            if !self.take(record, now) {
                break;
            }
            self.taken += 1;
        }
        if self.taken == 0 {
            self.room.ops += 1 + self.folds.len();
            return None;
        }
        let mut part = Part::new(name, book);
        part.records = self.taken;
        write.guards.push(book.guard());
        write.ops.append(&mut self.folds);
        book.counts.apply(&self.tallies, &mut self.counts);
        for pack in std::mem::take(&mut self.packs) {
            part.freed += pack.deliveries.iter().map(|delivery| delivery.bytes).sum::<usize>();
            let stored = pack::store(&pack, book.shard, book.epoch_number(), part.next_number);
            let Some((op, at)) = stored else { continue };
            part.next_number += 1;
            match pack.to {
                Destination::Parked | Destination::Gathering | Destination::Ordered(_) => part.landed.parked.push(at),
                Destination::Dead => part.landed.dead.push(at),
                // Its dead letters were dead before.
                Destination::Rest => {}
            }
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
        part.counts = self.counts;
        part.rewrites = self.rewrites;
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
                self.notes.remove(key);
                // What was noted in between is gone as well: no key is touched twice.
                if !self.discarded.contains(key) {
                    self.room.ops -= 1;
                    self.discarded.push(key.clone());
                }
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
            Record::Over {
                source,
                index,
                origin,
                end,
            } => self.take_over(*source, *index, origin, *end),
            Record::Finished { source, origin } => self.finish_source(*source, origin),
            Record::Drop(parked) => self.drop_parked(parked),
            Record::Rewrite(rewrite) => self.take_rewrite(rewrite),
            Record::Gone(account, webhook) => {
                self.tallies.gone(account, webhook);
                true
            }
            Record::Batch(batch) => self.take_batch(batch),
            Record::Moved(moved) => {
                let (delivery, size) = (&moved.delivery, size(&moved.delivery.event));
                let alike = pack::group(moved.to, now, &delivery.state);
                let (account, webhook) = (&delivery.origin.account, &delivery.origin.webhook);
                let group = (moved.to, alike, moved.orders, account, webhook);
                let last = self.last_pack.get(&group).copied();
                let last = last.filter(|at| self.packs.get(*at).is_some_and(|pack| pack.has_room(size)));
                // The first record of a draft goes in whatever its size: an event is never larger than a write may be.
                if size > self.room.bytes && self.room.bytes != DRAFT_BYTES {
                    return false;
                }
                let new_pack = usize::from(last.is_none());
                let Some(ended) = self.end(delivery.source, delivery.index, new_pack) else {
                    return false;
                };
                let change = self.change(&delivery.origin);
                change.taken += u64::from(ended.queued);
                change.dead += i64::from(ended.news && moved.to == Destination::Dead);
                change.sequence = change.sequence.max(delivery.state.sequence);
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
        let Some(first) = batch.deliveries.first() else {
            return true;
        };
        let (mut taken, mut delivered) = (0, 0);
        for (source, index) in members {
            taken += self.end(source, index, 0).map_or(0, |ended| u64::from(ended.queued));
        }
        for (source, index) in batch.over.iter().copied() {
            let ended = self.end(source, index, 0);
            taken += ended.map_or(0, |ended| u64::from(ended.queued));
            delivered += ended.map_or(0, |ended| u64::from(ended.news));
        }
        let change = self.change(&first.origin);
        change.taken += taken;
        change.delivered += delivered;
        self.packs.push(Pack {
            to: batch.to,
            deliveries: batch.deliveries.iter().collect(),
            bytes,
            batch: Some(&batch.id),
        });
        true
    }

    /// Takes the end of one delivery.
    fn take_over(&mut self, source: SourceId, index: u32, origin: &'a Origin, end: End) -> bool {
        let Some(ended) = self.end(source, index, 0) else {
            return false;
        };
        self.change(origin).over(end, ended, 1);
        true
    }

    /// Takes what becomes of a segment of dead letters, if there is room for all.
    fn take_rewrite(&mut self, rewrite: &'a Rewrite) -> bool {
        let bytes: usize = rewrite.deliveries().map(|delivery| size(&delivery.event)).sum();
        let ops =
            1 + usize::from(!rewrite.kept.is_empty()) + rewrite.revived.len() + usize::from(rewrite.note.is_some());
        if bytes > self.room.bytes && self.room.bytes != DRAFT_BYTES || self.room.ops < ops {
            return false;
        }
        self.room.bytes = self.room.bytes.saturating_sub(bytes);
        self.room.ops -= ops;
        self.discarded.push(key::dead_segment(&rewrite.segment));
        if let Some((key, value)) = &rewrite.note {
            self.notes.insert(key, value);
        }
        self.rewrites += 1;
        for delivery in rewrite.revived.iter().flatten() {
            self.change(&delivery.origin).dead -= 1;
        }
        for (origin, why, count) in &rewrite.dropped {
            let change = self.change(origin);
            change.dead -= i64::try_from(*count).unwrap_or(i64::MAX);
            *change.dropped.entry(*why).or_default() += count;
        }
        let kept = std::iter::once((Destination::Rest, &rewrite.kept));
        let revived = rewrite.revived.iter().map(|group| (Destination::Parked, group));
        for (to, deliveries) in kept.chain(revived) {
            self.packs.push(Pack {
                to,
                deliveries: deliveries.iter().collect(),
                bytes: 0,
                batch: None,
            });
        }
        true
    }

    /// Sets all bits of a source, if there is room for its deletion.
    fn finish_source(&mut self, source: SourceId, origin: &'a Origin) -> bool {
        let Some(open) = self.book.sources.get(&source) else {
            return true;
        };
        if self.room.ops == 0 {
            return false;
        }
        self.room.ops -= 1;
        let done = self.touched.insert(source, open.done.full());
        let left = open.done.total() - done.as_ref().unwrap_or(&open.done).count();
        let ended = Ended::news(open.queued);
        self.change(origin).over(End::Delivered, ended, u64::from(left));
        true
    }

    /// Drops what a parked segment still holds.
    fn drop_parked(&mut self, parked: &'a Parked) -> bool {
        if self.room.ops == 0 {
            return false;
        }
        self.room.ops -= 1;
        let key = key::parked_segment(parked);
        self.tallies.drop_parked(parked, self.book.done_in(&key, parked.count));
        self.discarded.push(key);
        true
    }

    fn change(&mut self, origin: &'a Origin) -> &mut Change {
        self.tallies.change(origin)
    }

    /// Sets a delivery's bit, if there is room for `more` operations and the deletion of its source.
    fn end(&mut self, source: SourceId, index: u32, more: usize) -> Option<Ended> {
        let Some(open) = self.book.sources.get(&source) else {
            // A source that was never opened would be a mistake of the worker's: there is no bit to set.
            self.room.ops = self.room.ops.checked_sub(more)?;
            return Some(Ended::default());
        };
        let done = self.touched.entry(source).or_insert_with(|| open.done.clone());
        let last = !done.get(index) && done.count() + 1 == done.total();
        self.room.ops = self.room.ops.checked_sub(more + usize::from(last))?;
        let news = done.set(index);
        Some(Ended {
            news,
            queued: news && open.queued,
        })
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
            || self.discarded.iter().any(|key| book.unopened.contains_key(key))
            || !self.counts.is_empty();
        if !news {
            return None;
        }
        let opened = book.sources.iter().filter_map(|(source, open)| {
            let done = self.touched.get(source).unwrap_or(&open.done);
            done.is_partial().then(|| (&open.key, done.as_bytes()))
        });
        let unopened = book.unopened.iter().map(|(key, done)| (key, done.as_ref()));
        let unopened = unopened.filter(|(key, _)| !self.discarded.contains(key));
        let mut segments = opened.chain(unopened).peekable();
        let mut usage = book.counts.entries(&self.counts).peekable();
        let key = key::progress(book.shard);
        if segments.peek().is_some() || usage.peek().is_some() {
            *stored = true;
            return Some(Op::put(key, stored::encode_progress(segments, usage)));
        }
        std::mem::take(stored).then(|| Op::delete(key))
    }
}
