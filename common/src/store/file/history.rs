//! What happened lately, kept so that a watch can be replayed and a listing can show a past revision. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::key::Key;
use crate::store::{Change, Entry, ReadError, Revision, WatchError};

/// Most bytes of keys and values that are remembered: some ten seconds at the highest rate, so a watcher that is merely busy
/// does not fall behind, and small against the memory of a machine that runs everything in one process.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Most changes that are remembered, for small values.
const MAX_CHANGES: usize = 100_000;

/// Bytes that one remembered change costs beside its key and values.
const OVERHEAD: usize = 200;

/// One change, with what was there before it.
#[derive(Debug, Clone)]
pub(super) struct Past {
    pub(super) change: Change,
    pub(super) before: Option<Entry>,
}

impl Past {
    fn size(&self) -> usize {
        let after = match &self.change {
            Change::Put(entry) => entry.value.len(),
            Change::Delete(_) => 0,
        };
        let before = self.before.as_ref().map_or(0, |entry| entry.value.len());
        OVERHEAD + self.change.key().as_str().len() + after + before
    }
}

/// All changes of one revision.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) revision: Revision,
    pub(super) changes: Vec<Past>,
}

/// The latest steps, bounded.
pub(super) struct History {
    steps: VecDeque<Step>,
    bytes: usize,
    changes: usize,
    /// The first revision that a listing can show.
    listable: Revision,
    /// The first revision that a watch can start at.
    watchable: Revision,
    max_bytes: usize,
}

impl History {
    /// A history that begins after `revision`: the state at `revision` can be listed, what led to it is not known.
    pub(super) const fn new(revision: Revision) -> Self {
        Self {
            steps: VecDeque::new(),
            bytes: 0,
            changes: 0,
            listable: revision,
            watchable: revision.next(),
            max_bytes: MAX_BYTES,
        }
    }

    /// Adds the newest step, and forgets the oldest ones if there is too much.
    pub(super) fn push(&mut self, step: Step) {
        self.bytes += step.changes.iter().map(Past::size).sum::<usize>();
        self.changes += step.changes.len();
        self.steps.push_back(step);
        while self.steps.len() > 1 && (self.bytes > self.max_bytes || self.changes > MAX_CHANGES) {
            let Some(forgotten) = self.forget_oldest() else { break };
            self.listable = self.listable.max(forgotten);
            self.watchable = self.watchable.max(forgotten.next());
        }
    }

    /// Forgets everything before `revision`.
    pub(super) fn compact(&mut self, revision: Revision) {
        while self.steps.front().is_some_and(|step| step.revision < revision) {
            self.forget_oldest();
        }
        self.listable = self.listable.max(revision);
        self.watchable = self.watchable.max(revision);
    }

    fn forget_oldest(&mut self) -> Option<Revision> {
        let step = self.steps.pop_front()?;
        self.bytes -= step.changes.iter().map(Past::size).sum::<usize>();
        self.changes -= step.changes.len();
        Some(step.revision)
    }

    /// All changes below `prefix` from revision `from` on.
    pub(super) fn since(&self, prefix: &str, from: Revision) -> Result<Vec<Change>, WatchError> {
        if from < self.watchable {
            return Err(WatchError::Compacted);
        }
        let start = self.steps.partition_point(|step| step.revision < from);
        let pasts = self.steps.range(start..).flat_map(|step| &step.changes);
        Ok(pasts
            .filter(|past| past.change.key().as_str().starts_with(prefix))
            .map(|past| past.change.clone())
            .collect())
    }

    /// What keys below `prefix` that have changed after `revision` held at `revision`.
    pub(super) fn at(&self, prefix: &str, revision: Revision) -> Result<BTreeMap<Key, Option<Entry>>, ReadError> {
        if revision < self.listable {
            return Err(ReadError::Compacted);
        }
        let start = self.steps.partition_point(|step| step.revision <= revision);
        let mut held = BTreeMap::new();
        for past in self.steps.range(start..).flat_map(|step| &step.changes) {
            let key = past.change.key();
            if key.as_str().starts_with(prefix) {
                // The first change after the revision knows what was there at the revision.
                held.entry(key.clone()).or_insert_with(|| past.before.clone());
            }
        }
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn step(revision: i64, size: usize) -> Step {
        let entry = Entry {
            key: Key::from_stored("a/k"),
            value: Bytes::from(vec![0; size]),
            create_revision: Revision(revision),
            mod_revision: Revision(revision),
            lease: None,
        };
        Step {
            revision: Revision(revision),
            changes: vec![Past {
                change: Change::Put(entry),
                before: None,
            }],
        }
    }

    #[test]
    fn what_no_longer_fits_is_compacted_and_the_rest_is_kept() {
        let mut history = History {
            max_bytes: 3000,
            ..History::new(Revision(1))
        };
        for revision in 2..=5 {
            history.push(step(revision, 800));
        }
        assert_eq!(history.since("a/", Revision(3)), Err(WatchError::Compacted));
        assert_eq!(history.since("a/", Revision(4)).unwrap().len(), 2);
        assert_eq!(history.at("a/", Revision(2)), Err(ReadError::Compacted));
        assert_eq!(history.at("a/", Revision(3)).unwrap().len(), 1);
        assert_eq!(history.bytes, 2 * (800 + OVERHEAD + 3));
    }

    #[test]
    fn one_step_larger_than_the_limit_is_still_shown_to_watchers() {
        let mut history = History {
            max_bytes: 100,
            ..History::new(Revision(1))
        };
        history.push(step(2, 800));
        assert_eq!(history.since("a/", Revision(2)).unwrap().len(), 1);
    }

    #[test]
    fn a_compacted_revision_itself_can_still_be_listed_and_watched() {
        let mut history = History::new(Revision(1));
        for revision in 2..=5 {
            history.push(step(revision, 1));
        }
        history.compact(Revision(4));
        assert_eq!(history.since("a/", Revision(3)), Err(WatchError::Compacted));
        assert_eq!(history.since("a/", Revision(4)).unwrap().len(), 2);
        assert_eq!(history.at("a/", Revision(3)), Err(ReadError::Compacted));
        assert!(history.at("b/", Revision(4)).unwrap().is_empty());
    }
}
