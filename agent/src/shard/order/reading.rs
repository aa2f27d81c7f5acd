//! What of an ordered webhook is to be read from the store, and when. Pure.

use postrider_common::model::order::{Line, Ordering, Position};
use postrider_common::store::Revision;
use postrider_common::time::Timestamp;

use super::index::position;
use super::{Order, Overrule};
use crate::shard::entry::Entry;
use crate::shard::lane::{LOAD_DELIVERIES, LOAD_SEGMENTS};

/// What room there is for deliveries in memory.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Deliveries that may be in memory.
    pub limit: usize,
    /// Of these, how many are ready.
    pub ready: usize,
    /// They may take more bytes.
    pub bytes: bool,
    /// Nothing is ready or under way: something has to be read.
    pub idle: bool,
}

impl Room {
    /// Whether there is room for so many that are not ready.
    pub const fn has(&self, count: usize) -> bool {
        self.bytes && self.ready + count <= self.limit
    }
}

/// What is picked to be read in one go.
struct Picked {
    entries: Vec<Entry>,
    count: usize,
    memory: usize,
    room: Room,
}

impl Picked {
    /// Takes one more, if there is room for all of it. For the first, room for one delivery is enough; if it `must` be read, none is needed.
    fn take(&mut self, entry: Entry, must: bool) -> bool {
        let count = self.count + entry.room();
        let fits = if self.entries.is_empty() {
            must || self.room.has(self.memory + 1)
        } else {
            count <= LOAD_DELIVERIES && self.entries.len() < LOAD_SEGMENTS && self.room.has(self.memory + count)
        };
        if !fits {
            return false;
        }
        self.count = count;
        self.entries.push(entry);
        true
    }
}

impl Order {
    /// A segment was written; or found when the shard was taken.
    pub fn stored(&mut self, entry: Entry) {
        // What moved before there was this order was written before what moved since.
        let stray = self.stray_moving.min(entry.count);
        self.stray_moving -= stray;
        if entry.lined().is_none() {
            self.reviving = self.reviving.saturating_sub(entry.count - stray);
        }
        let waiting = entry.lined().and_then(|lined| self.lines.get_mut(&lined.line));
        if let Some(waiting) = waiting {
            waiting.moving.pop(entry.count - stray);
        }
        if self.index.is_blocked(&entry) {
            self.blocking = self.blocking.saturating_sub(1);
        }
        self.found(entry);
    }

    /// A segment stands in the store.
    pub fn found(&mut self, entry: Entry) {
        if let Some(lined) = entry.lined() {
            self.touched.push_back(lined.line);
        }
        if self.is_earlier(entry.lined().map(|lined| lined.line)) {
            self.earlier.insert((position(&entry), entry));
        } else {
            self.index.insert(entry);
        }
    }

    /// The segments to be read now, in one go.
    pub fn next_loads(&mut self, now: Timestamp, read_to: Revision, room: Room) -> Vec<Entry> {
        let mut picked = Picked {
            entries: Vec::new(),
            count: 0,
            memory: self.memory,
            room,
        };
        while let Some(entry) = self.decided.front().copied() {
            // Without room too: the webhook may have stopped because of it.
            if !picked.take(entry, true) {
                break;
            }
            self.decided.pop_front();
        }
        // Nothing will happen by itself.
        let stuck = room.idle && (self.memory == 0 || self.dues.is_empty());
        self.pick_wanted(now, &mut picked);
        let earlier = self.earlier.iter().map(|(_, entry)| entry);
        for entry in earlier.filter(|entry| !self.reading.contains(entry)) {
            if entry.due > now || !picked.take(*entry, stuck) {
                break;
            }
        }
        if !self.waits_for_earlier() && self.ordering == Ordering::PerKey {
            let moving = self.lines.get(&Line::STREAM).and_then(|waiting| waiting.moving.first());
            for entry in self
                .index
                .of(Line::STREAM)
                .filter(|entry| !self.reading.contains(entry))
            {
                let at = position(entry);
                let known = at.revision <= read_to && moving.is_none_or(|moving| at <= moving);
                if !known || !picked.take(*entry, stuck) {
                    break;
                }
            }
        }
        self.reading.extend(&picked.entries);
        picked.entries
    }

    /// Picks of the lines whose turn it is: each from its first, as far as they follow each other.
    fn pick_wanted(&mut self, now: Timestamp, picked: &mut Picked) {
        while let Some(line) = self.wanted.front().copied() {
            let mut all = true;
            for entry in self.index.of(line) {
                let waits = entry.due > now || self.index.is_blocked(entry);
                if waits || self.reading.contains(entry) || picked.entries.contains(entry) {
                    break;
                }
                all = picked.take(*entry, picked.room.idle);
                if !all {
                    break;
                }
            }
            let begun = picked
                .entries
                .last()
                .and_then(Entry::lined)
                .is_some_and(|lined| lined.line == line);
            if !all && !begun {
                return;
            }
            self.wanted.pop_front();
            if !all {
                return;
            }
        }
    }

    /// Everything of these segments has arrived.
    pub fn over(&mut self, entries: impl Iterator<Item = Entry>) {
        self.stray_reading = false;
        for entry in entries {
            self.reading.remove(&entry);
            self.earlier.remove(&(position(&entry), entry));
            if let Some(lined) = entry.lined().filter(|lined| self.is_own(lined.line)) {
                self.index.remove(&entry);
                self.touched.push_back(lined.line);
            }
        }
    }

    /// Whether segments of this kind were parked before there was this order.
    pub fn is_earlier(&self, line: Option<Line>) -> bool {
        line.is_none_or(|line| !self.is_own(line))
    }

    /// An administrator decides about the delivery that a segment was parked for when it was used up.
    pub fn overrule(&mut self, entry: &Entry, overrule: Overrule) -> bool {
        let Some(lined) = entry.lined().filter(|_| self.index.is_blocked(entry)) else {
            return false;
        };
        if self.index.of(lined.line).all(|known| known != entry) || self.reading.contains(entry) {
            return false;
        }
        if self.overruled.insert(lined.first, overrule).is_none() {
            self.decided.push_back(*entry);
        }
        true
    }

    /// What was decided about the segment that begins with this delivery.
    pub fn overruled(&mut self, first: Position) -> Option<Overrule> {
        self.overruled.remove(&first)
    }

    /// When time alone will change something.
    pub fn next_due(&self) -> Option<Timestamp> {
        let line = self.dues.first().map(|(due, _)| *due);
        let earlier = self.earlier.first().map(|(_, entry)| entry.due);
        [line, earlier].into_iter().flatten().min()
    }

    /// Up to which revision the queue has to be read before more can go, if that is what is waited for.
    pub fn awaits(&self, read_to: Revision) -> Option<Revision> {
        let arrived = self.arrived.first_key_value().map(|(slot, _)| slot.0);
        let gated = self.gated.first().map(|(at, _)| *at);
        let stream = self.index.first(Line::STREAM).map(|(at, _)| at);
        let first: Option<Position> = [arrived, gated, stream].into_iter().flatten().min();
        first.map(|at| at.revision).filter(|revision| *revision > read_to)
    }

    /// Takes the index.
    pub fn drain_index(&mut self) -> Vec<Entry> {
        let mut all = self.index.drain();
        all.extend(std::mem::take(&mut self.earlier).into_iter().map(|(_, entry)| entry));
        all.retain(|entry| !self.reading.contains(entry));
        all
    }

    /// Segments in the index.
    pub fn parked_len(&self) -> usize {
        self.index.len() + self.earlier.len()
    }
}

#[cfg(test)]
mod tests {
    use postrider_common::key::ParkedKind;
    use postrider_common::model::order::{Line, Lined};

    use super::*;
    use crate::shard::order::Strays;
    use crate::shard::tests::webhook;

    #[test]
    fn what_is_revived_is_not_taken_for_what_moves_in_a_line() {
        let mut strict = webhook("a");
        strict.order.ordering = Ordering::Strict;
        let strays = Strays {
            in_flight: 0,
            moving: 0,
            dying: 0,
            first: None,
            reading: false,
        };
        let mut order = Order::new(&strict, 1, strays);
        let first = Position::after(Revision(7));
        order.moves(Line::STRICT, first);
        order.reviving(1);
        let lined = Lined {
            line: Line::STRICT,
            first,
            blocked: 0,
        };
        for kind in [ParkedKind::Ordered(lined), ParkedKind::Single] {
            let entry = Entry {
                count: 1,
                kind,
                ..Entry::default()
            };
            order.stored(entry);
        }
        assert_eq!(order.first_moving(), None);
    }
}
