//! What of an ordered webhook is parked in the store, by line and position. Pure.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use postrider_common::key::ParkedKind;
use postrider_common::model::order::{Line, Lined, Position};
use postrider_common::time::Timestamp;

use crate::shard::entry::Entry;

/// The parked segments of all lines. One takes some hundred bytes of memory, which is all that a key takes that was set aside.
#[derive(Debug, Default)]
pub(super) struct Index {
    all: BTreeSet<Piled>,
    /// Segments whose first delivery was used up in the present stage of the webhook.
    blocked: usize,
    stage: u64,
}

impl Index {
    /// Adds a segment of a line.
    pub(super) fn insert(&mut self, entry: Entry) {
        if self.all.insert(Piled(entry)) && self.is_blocked(&entry) {
            self.blocked += 1;
        }
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, entry: &Entry) {
        if self.all.remove(&Piled(*entry)) && self.is_blocked(entry) {
            self.blocked -= 1;
        }
    }

    /// The segments of a line, in order.
    pub(super) fn of(&self, line: Line) -> impl DoubleEndedIterator<Item = &Entry> {
        let begin = |line| {
            Piled(Entry {
                due: Timestamp::default(),
                epoch: 0,
                number: 0,
                count: 0,
                kind: ParkedKind::Ordered(Lined {
                    line,
                    first: Position::default(),
                    blocked: 0,
                }),
            })
        };
        // No line has the last number.
        let range = self.all.range(begin(line)..begin(Line(line.0.saturating_add(1))));
        range.map(|piled| &piled.0)
    }

    /// The first segment of a line, and where it stands.
    pub(super) fn first(&self, line: Line) -> Option<(Position, Entry)> {
        self.of(line).next().map(|entry| (position(entry), *entry))
    }

    /// Whether it waits for a change of the webhook, or for an administrator.
    pub(super) fn is_blocked(&self, entry: &Entry) -> bool {
        entry
            .lined()
            .is_some_and(|lined| lined.blocked != 0 && lined.blocked == self.stage)
    }

    /// How many wait so.
    pub(super) const fn blocked(&self) -> usize {
        self.blocked
    }

    /// The webhook is in another stage: says which lines have something that waited for one.
    pub(super) fn renew(&mut self, stage: u64) -> Vec<Line> {
        self.stage = stage;
        self.blocked = self.all.iter().filter(|piled| self.is_blocked(&piled.0)).count();
        let lined = self.all.iter().filter_map(|piled| piled.0.lined());
        lined
            .filter(|lined| lined.blocked != 0)
            .map(|lined| lined.line)
            .collect()
    }

    /// Takes everything.
    pub(super) fn drain(&mut self) -> Vec<Entry> {
        self.blocked = 0;
        std::mem::take(&mut self.all).into_iter().map(|piled| piled.0).collect()
    }

    /// How many segments there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// There are none.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// Where the first delivery of a segment stands; the very first place for what was parked without an order.
pub(super) fn position(entry: &Entry) -> Position {
    entry.lined().map_or(Position::default(), |lined| lined.first)
}

/// In the order of lines and positions.
#[derive(Debug, PartialEq, Eq)]
struct Piled(Entry);

impl Piled {
    fn rank(&self) -> (Option<Line>, Position, u64, u64) {
        let line = self.0.lined().map(|lined| lined.line);
        (line, position(&self.0), self.0.epoch, self.0.number)
    }
}

impl PartialOrd for Piled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Piled {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}
