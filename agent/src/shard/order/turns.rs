//! Whose turn it is. Pure.

use std::sync::Arc;

use postrider_common::model::order::{Line, Ordering, Position};
use postrider_common::store::Revision;
use postrider_common::time::Timestamp;

use super::Order;
use crate::shard::delivery::{Delivery, SourceId};

impl Order {
    /// Draws the consequences after anything changed; gives what is ready to be sent now.
    pub fn settle(&mut self, now: Timestamp, read_to: Revision) -> Vec<Delivery> {
        if self.strays > 0 || self.stray_reading {
            // Where those stand is not known: nothing has its turn.
            return Vec::new();
        }
        let gate = self.gate(read_to);
        while let Some(first) = self.arrived.first_entry() {
            if first.key().0 >= gate {
                break;
            }
            let (slot, delivery) = first.remove_entry();
            let line = self.line_of(&delivery);
            self.lines.entry(line).or_default().behind.insert(slot, delivery);
            self.touched.push_back(line);
        }
        // A batch that was made under another order holds up the others.
        let gate = self.gate(read_to);
        while let Some((_, line)) = self.gated.first().copied().filter(|(at, _)| *at < gate) {
            self.gated.pop_first();
            self.touched.push_back(line);
        }
        while let Some((_, line)) = self.dues.first().copied().filter(|(due, _)| *due <= now) {
            self.dues.pop_first();
            self.touched.push_back(line);
        }
        let mut ready = Vec::new();
        while let Some(line) = self.touched.pop_front() {
            self.advance(line, gate, now, &mut ready);
        }
        ready
    }

    /// Looks at what is first in a line.
    fn advance(&mut self, line: Line, gate: Position, now: Timestamp, ready: &mut Vec<Delivery>) {
        let waiting = self.lines.get(&line);
        if line == Line::STREAM {
            if waiting.is_some_and(|waiting| waiting.moving.is_empty()) {
                self.lines.remove(&line);
            }
            return;
        }
        if waiting.is_some_and(|waiting| waiting.busy) {
            return;
        }
        let moving = waiting.and_then(|waiting| waiting.moving.first());
        let parked = self.index.first(line);
        let stored = [parked.map(|(at, _)| at), moving].into_iter().flatten().min();
        let head = waiting.and_then(|waiting| waiting.behind.first_key_value());
        let head = head.map(|(slot, delivery)| (slot.0, delivery.state.due));
        if let Some((at, due)) = head.filter(|(at, _)| stored.is_none_or(|stored| *at < stored)) {
            if at >= gate {
                self.gated.insert((at, line));
            } else if due > now {
                self.dues.insert((due, line));
            } else {
                self.promote(line, ready);
            }
            return;
        }
        let Some((at, entry)) = parked.filter(|(at, _)| moving.is_none_or(|moving| *at <= moving)) else {
            if stored.is_none() {
                self.lines.remove(&line);
            }
            return;
        };
        if self.reading.contains(&entry) {
            return;
        }
        if self.index.is_blocked(&entry) {
            return;
        }
        if at >= gate {
            self.gated.insert((at, line));
        } else if entry.due > now {
            self.dues.insert((entry.due, line));
        } else {
            self.wanted.push_back(line);
        }
    }

    /// The first of a line goes, with its batch if it has one.
    fn promote(&mut self, line: Line, ready: &mut Vec<Delivery>) {
        let Some(waiting) = self.lines.get_mut(&line) else {
            return;
        };
        let Some(((at, ..), first)) = waiting.behind.pop_first() else {
            return;
        };
        waiting.busy = true;
        waiting.at = at;
        self.memory -= 1;
        let batch: Option<(Arc<str>, SourceId)> = first.batch.clone().map(|batch| (batch, first.source));
        ready.push(first);
        let Some((batch, source)) = batch else { return };
        while let Some(next) = waiting.behind.first_entry() {
            if next.get().source != source || next.get().batch.as_ref() != Some(&batch) {
                break;
            }
            self.memory -= 1;
            ready.push(next.remove());
        }
    }

    /// What follows the one that is ready and may share its request.
    pub fn following(&self, now: Timestamp, read_to: Revision) -> impl Iterator<Item = &Delivery> {
        let gate = self.gate(read_to);
        let end = self.first_stored(Line::STRICT).map_or(gate, |stored| stored.min(gate));
        let waiting = self
            .lines
            .get(&Line::STRICT)
            .filter(|_| self.ordering == Ordering::Strict);
        waiting
            .into_iter()
            .flat_map(|waiting| &waiting.behind)
            .take_while(move |(slot, delivery)| slot.0 < end && delivery.state.due <= now)
            .map(|(_, delivery)| delivery)
    }

    /// Takes the first of those that follow.
    pub fn take_following(&mut self, count: usize) -> Vec<Delivery> {
        let Some(waiting) = self.lines.get_mut(&Line::STRICT) else {
            return Vec::new();
        };
        let taken: Vec<Delivery> = std::iter::from_fn(|| waiting.behind.pop_first())
            .take(count)
            .map(|(_, delivery)| delivery)
            .collect();
        self.memory -= taken.len();
        taken
    }
}
