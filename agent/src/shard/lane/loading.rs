//! Which parked segments of a lane are read next. Pure.

use postrider_common::key::{Parked, ParkedKind};
use postrider_common::shard::ShardId;
use postrider_common::time::Timestamp;

use super::{LANE_LIMIT, LOAD_DELIVERIES, LOAD_SEGMENTS, Lane};
use crate::shard::entry::Entry;
use crate::shard::gathering::BATCH_SOURCES;

impl Lane {
    /// Takes a parked segment that is to be read whatever its due time; `None` if it is not in the index.
    pub fn fetch(&mut self, shard: ShardId, entry: &Entry) -> Option<Parked> {
        let taken = match entry.kind {
            ParkedKind::Gathering(bytes) => self.gathering.take(*entry, bytes),
            ParkedKind::Single | ParkedKind::Batch | ParkedKind::Rest | ParkedKind::Ordered(_) => {
                self.parked.remove(entry)
            }
        };
        taken.then(|| {
            self.reserved += entry.room();
            self.parked_at(shard, *entry)
        })
    }

    /// Takes the parked segments that are to be read now: those that are due, while there is room (see [`Lane::admits`]; a lane that has run dry always
    /// gets one).
    pub fn next_load(&mut self, shard: ShardId, now: Timestamp, allowance: usize) -> Vec<Parked> {
        let mut segments = Vec::new();
        if self.reserved > 0 || self.is_held() || self.rests_until() > now {
            return segments;
        }
        while let Some(first) = self.parked.first().copied() {
            let count = first.count.max(1) as usize;
            let room = self.ready.is_empty() || self.ready.len() + self.reserved + count <= allowance.min(LANE_LIMIT);
            let fits =
                segments.is_empty() || self.reserved + count <= LOAD_DELIVERIES && segments.len() < LOAD_SEGMENTS;
            if first.due > now || !room || !fits || !self.has_bytes(allowance) {
                break;
            }
            self.parked.pop_first();
            self.reserved += count;
            segments.push(self.parked_at(shard, first));
        }
        if segments.is_empty() && self.active().is_some() {
            self.next_gathered(shard, now, allowance, &mut segments);
        }
        segments
    }

    /// Takes segments of which batches are to be made now. If nothing at all was read yet, at least one: batches are made of what there is.
    fn next_gathered(&mut self, shard: ShardId, now: Timestamp, allowance: usize, segments: &mut Vec<Parked>) {
        while let Some(first) = self.gathering.next(now) {
            let count = first.count.max(1) as usize;
            let read = self.gathering.loaded_len() + self.reserved;
            let room = read == 0 || read + count <= allowance.min(LANE_LIMIT) && self.has_bytes(allowance);
            if !room || segments.len() >= BATCH_SOURCES {
                break;
            }
            let ParkedKind::Gathering(bytes) = first.kind else {
                break;
            };
            self.gathering.take(first, bytes);
            self.reserved += count;
            segments.push(self.parked_at(shard, first));
        }
    }
}
