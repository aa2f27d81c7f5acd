//! Which queue segments wait to be worked on, oldest first. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use postrider_common::key::Key;
use postrider_common::store::{Change, Changes, Entry, Revision};

/// Bytes of stored values that are kept when they come by in the watch, so that they need not be read again: a few segments. What does not fit is
/// read when its turn comes.
pub const KEPT_BYTES: usize = 256 << 10;

/// A segment that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// When it was accepted.
    pub revision: Revision,
    /// Its key.
    pub key: Key,
    /// Its value, if it is at hand.
    pub value: Option<Bytes>,
}

/// The queue of one shard, as far as it has been seen and not yet been taken.
#[derive(Debug, Default)]
pub struct Queue {
    /// Everything up to this revision has been seen. A queue key is written once, so nothing at or below it is news.
    seen: Revision,
    waiting: BTreeMap<(Revision, Key), Option<Bytes>>,
    kept: usize,
}

impl Queue {
    /// Takes in a listing of the whole queue. What was seen before is not news, even if its deletion is yet to come.
    pub fn reset(&mut self, entries: Vec<Entry>, revision: Revision) {
        for entry in entries {
            if entry.create_revision > self.seen {
                self.waiting.insert((entry.create_revision, entry.key), None);
            }
        }
        self.seen = self.seen.max(revision);
    }

    /// Takes in what the watch saw. Deletions are our own doing.
    pub fn changed(&mut self, changes: Changes) {
        for change in changes.changes {
            let Change::Put(entry) = change else { continue };
            if entry.create_revision <= self.seen {
                continue;
            }
            let keep = self.kept + entry.value.len() <= KEPT_BYTES;
            let value = keep.then_some(entry.value);
            self.kept += value.as_ref().map_or(0, Bytes::len);
            self.waiting.insert((entry.create_revision, entry.key), value);
        }
        self.seen = self.seen.max(changes.revision);
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<Waiting> {
        let ((revision, key), value) = self.waiting.pop_first()?;
        self.kept -= value.as_ref().map_or(0, Bytes::len);
        Some(Waiting { revision, key, value })
    }

    /// Whether the oldest is at hand; `None` if none waits.
    pub fn next_is_kept(&self) -> Option<bool> {
        self.waiting.first_key_value().map(|(_, value)| value.is_some())
    }

    /// It was listed at least once.
    pub fn is_listed(&self) -> bool {
        self.seen > Revision::default()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// None waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(revision: i64, size: usize) -> Entry {
        Entry {
            key: Key::from_stored(&format!("queue/0001/w-{}", revision * 7919 % 1000)),
            value: vec![0; size].into(),
            create_revision: Revision(revision),
            mod_revision: Revision(revision),
            lease: None,
        }
    }

    proptest! {
        #[test]
        fn every_segment_comes_out_once_and_in_the_order_of_acceptance_whenever_the_listing_is_repeated(
            sizes in proptest::collection::vec(0_usize..100_000, 1..40), relist in proptest::collection::vec(any::<bool>(), 40),
            pops in proptest::collection::vec(0_usize..3, 40),
        ) {
            let mut queue = Queue::default();
            let mut taken = Vec::new();
            queue.reset(vec![entry(1, 10)], Revision(1));
            for (at, size) in sizes.iter().enumerate() {
                let revision = i64::try_from(at).unwrap() + 2;
                if relist[at] {
                    // A listing shows everything, also what was taken and is not yet deleted.
                    queue.reset((1..=revision).map(|revision| entry(revision, 0)).collect(), Revision(revision));
                } else {
                    queue.changed(Changes { revision: Revision(revision), changes: vec![Change::Put(entry(revision, *size))] });
                }
                prop_assert!(queue.kept <= KEPT_BYTES);
                for _ in 0..pops[at] {
                    taken.extend(queue.pop());
                }
            }
            while let Some(next) = queue.pop() {
                taken.push(next);
            }
            prop_assert_eq!(queue.kept, 0);
            let revisions: Vec<i64> = taken.iter().map(|waiting| waiting.revision.0).collect();
            prop_assert_eq!(revisions, (1..=i64::try_from(sizes.len()).unwrap() + 1).collect::<Vec<_>>());
        }
    }
}
