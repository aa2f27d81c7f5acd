//! Transactions of deletions only, which a store that is full still takes. Pure.

use std::collections::{BTreeMap, BTreeSet};

use postrider_common::key;
use postrider_common::store::Op;

use super::batch::{Book, DRAFT_OPS, Draft, Part, Taken};
use super::counts::{Ended, Tallies};
use crate::shard::delivery::{End, Origin, Record, SourceId};
use postrider_common::model::bits::Bits;

/// Draws up a transaction of deletions: sources of which nothing moved, and what is to be discarded. What it counts is written with the next put: if the
/// agent dies before the store takes one, it is not counted.
pub fn draft_deletions<'a>(books: impl Iterator<Item = (u64, &'a Book)>) -> Option<Draft> {
    let mut draft = Draft::default();
    for (name, book) in books.filter(|(_, book)| book.pending() > 0) {
        let drawing = Drawing::new(name, book, draft.write.ops.len());
        if let Some((part, mut ops)) = drawing.finish() {
            draft.write.ops.append(&mut ops);
            draft.write.guards.push(book.guard());
            draft.parts.push(part);
        }
    }
    (!draft.parts.is_empty()).then_some(draft)
}

/// What the records of one source make of it.
struct Ending<'a> {
    done: Bits,
    /// Places of the records, and what they say.
    records: Vec<(usize, &'a Origin, End)>,
}

struct Drawing<'a> {
    book: &'a Book,
    part: Part,
    ops: Vec<Op>,
    before: usize,
    sources: BTreeMap<SourceId, Ending<'a>>,
    taken: BTreeSet<usize>,
    tallies: Tallies<'a>,
}

impl<'a> Drawing<'a> {
    fn new(name: u64, book: &'a Book, before: usize) -> Self {
        Self {
            book,
            part: Part::new(name, book),
            ops: Vec::new(),
            before,
            sources: BTreeMap::new(),
            taken: BTreeSet::new(),
            tallies: Tallies::default(),
        }
    }

    fn finish(mut self) -> Option<(Part, Vec<Op>)> {
        let book = self.book;
        for (place, record) in book.records().enumerate() {
            if self.before + self.ops.len() >= DRAFT_OPS {
                break;
            }
            match record {
                Record::Over {
                    source,
                    index,
                    origin,
                    end,
                } => self.over(place, *source, *index, (origin, *end)),
                Record::Finished { source, origin } => self.finished(place, *source, origin),
                Record::Discard(key) => {
                    self.ops.push(Op::delete(key.clone()));
                    self.part.discarded.push(key.clone());
                    self.taken.insert(place);
                }
                Record::Drop(parked) => {
                    let key = key::parked_segment(parked);
                    self.tallies.drop_parked(parked, book.done_in(&key, parked.count));
                    self.ops.push(Op::delete(key.clone()));
                    self.part.discarded.push(key);
                    self.taken.insert(place);
                }
                Record::Open { .. }
                | Record::Moved(_)
                | Record::Batch(_)
                | Record::Rewrite(_)
                | Record::Note(..)
                | Record::Gone(..) => {}
            }
        }
        if self.taken.is_empty() {
            return None;
        }
        self.part.records = self.taken.len();
        self.part.taken = Taken::Places(self.taken);
        book.counts().apply(&self.tallies, &mut self.part.counts);
        Some((self.part, self.ops))
    }

    fn over(&mut self, place: usize, source: SourceId, index: u32, (origin, end): (&'a Origin, End)) {
        let Some(open) = self.book.source(source) else { return };
        let ending = self.sources.entry(source).or_insert_with(|| Ending {
            done: open.done.clone(),
            records: Vec::new(),
        });
        ending.done.set(index);
        ending.records.push((place, origin, end));
        if ending.done.is_full() {
            self.ops.push(Op::delete(open.key.clone()));
            self.part.touched.insert(source, ending.done.clone());
            for (place, origin, end) in ending.records.drain(..) {
                self.taken.insert(place);
                self.tallies.change(origin).over(end, Ended::news(open.queued), 1);
            }
        }
    }

    fn finished(&mut self, place: usize, source: SourceId, origin: &'a Origin) {
        let Some(open) = self.book.source(source) else { return };
        self.ops.push(Op::delete(open.key.clone()));
        self.part.touched.insert(source, open.done.full());
        let left = open.done.total() - open.done.count();
        let ended = Ended::news(open.queued);
        self.tallies.change(origin).over(End::Delivered, ended, u64::from(left));
        self.taken.insert(place);
    }
}
