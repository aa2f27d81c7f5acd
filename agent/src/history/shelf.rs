//! What stands of a shard's history in the store, and what of it has to go. Pure.

use std::collections::VecDeque;

use postrider_common::key::History;
use postrider_common::time::Timestamp;

/// Bytes that a segment takes besides its value: its key, what the store notes with it, and a page that is not full. An estimate, on the high side.
const SEGMENT_OVERHEAD: u64 = 160;

/// The segments of one shard, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Shelf {
    segments: VecDeque<History>,
    bytes: u64,
}

impl Shelf {
    /// What was found in the store, in any order.
    pub fn new(found: impl IntoIterator<Item = History>) -> Self {
        let mut segments: Vec<History> = found.into_iter().collect();
        segments.sort_unstable();
        Self {
            bytes: segments.iter().map(size).sum(),
            segments: segments.into(),
        }
    }

    /// The earliest time that a new segment may have: not before what stands there, whatever the clocks of two owners say.
    pub fn time(&self, now: Timestamp) -> Timestamp {
        self.segments.back().map_or(now, |last| last.time.max(now))
    }

    /// A segment was written.
    pub fn add(&mut self, segment: History) {
        self.bytes += size(&segment);
        self.segments.push_back(segment);
    }

    /// The oldest ones, at most `most`, that are older than `oldest` or have to make room, so that with `more` bytes in one more segment there
    /// are at most `share`.
    pub fn overdue(&self, oldest: Timestamp, share: u64, more: u64, most: usize) -> Vec<History> {
        let mut bytes = self.bytes + if more > 0 { more + SEGMENT_OVERHEAD } else { 0 };
        let overdue = self.segments.iter().take(most).take_while(|segment| {
            let goes = segment.time < oldest || bytes > share;
            bytes = bytes.saturating_sub(size(segment));
            goes
        });
        overdue.copied().collect()
    }

    /// The `count` oldest were deleted.
    pub fn forget(&mut self, count: usize) {
        for segment in self.segments.drain(..count.min(self.segments.len())) {
            self.bytes -= size(&segment);
        }
    }
}

fn size(segment: &History) -> u64 {
    u64::from(segment.bytes) + SEGMENT_OVERHEAD
}

#[cfg(test)]
mod tests {
    use postrider_common::shard::ShardId;
    use proptest::prelude::*;

    use super::*;

    fn segment(number: u64, time: i64, bytes: u32) -> History {
        History {
            shard: ShardId(1),
            time: Timestamp::from_millis(time),
            epoch: 1,
            number,
            bytes,
        }
    }

    proptest! {
        #[test]
        fn however_much_is_written_a_shard_stays_within_its_share_and_its_retention(
            found in proptest::collection::vec((0_i64..1_000, 1_u32..5_000), 0..20),
            writes in proptest::collection::vec((0_i64..200, 1_u32..5_000), 1..60), share in 10_000_u64..60_000, retention in 100_i64..2_000,
        ) {
            let found = found.iter().zip(100_u64..).map(|((time, bytes), number)| segment(number, *time, *bytes));
            let mut shelf = Shelf::new(found);
            let (mut now, mut last) = (1_000, Timestamp::default());
            for ((pause, bytes), number) in writes.into_iter().zip(1_u64..) {
                now += pause;
                let oldest = Timestamp::from_millis(now - retention);
                loop {
                    let overdue = shelf.overdue(oldest, share, bytes.into(), 4);
                    if overdue.is_empty() {
                        break;
                    }
                    prop_assert!(overdue.len() <= 4);
                    shelf.forget(overdue.len());
                }
                let time = shelf.time(Timestamp::from_millis(now));
                prop_assert!(time >= last);
                last = time;
                shelf.add(segment(number, time.as_millis(), bytes));
                prop_assert!(shelf.bytes <= share);
                prop_assert_eq!(shelf.bytes, shelf.segments.iter().map(size).sum::<u64>());
                prop_assert!(shelf.segments.iter().all(|segment| segment.time >= oldest));
            }
            // Nothing goes that need not.
            prop_assert!(shelf.overdue(Timestamp::default(), u64::MAX, 1, 4).is_empty());
        }
    }
}
