//! Which tests this agent is asked for, and what becomes of them. It decides nothing but their order.

use std::collections::BTreeMap;

use postrider_common::key::Key;
use postrider_common::store::Change;
use postrider_common::store::mirror::Update;
use tokio::task::AbortHandle;

/// The tests by their keys. One that is done stays until its key goes, so that it is made once.
#[derive(Default)]
pub(super) struct Wanted(BTreeMap<Key, Stage>);

enum Stage {
    Waiting,
    Running(AbortHandle),
    Done,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Self::Running(handle) = self {
            handle.abort();
        }
    }
}

impl Wanted {
    /// Takes in what has changed: tests that are not asked for any more are cut.
    pub(super) fn apply(&mut self, update: Update) {
        match update {
            Update::Reset(entries, _) => {
                let keys = entries.into_iter().map(|entry| entry.key);
                let now = keys.map(|key| {
                    let stage = self.0.remove(&key).unwrap_or(Stage::Waiting);
                    (key, stage)
                });
                self.0 = now.collect();
            }
            Update::Changes(changes) => {
                for change in changes.changes {
                    match change {
                        Change::Put(entry) => {
                            self.0.entry(entry.key).or_insert(Stage::Waiting);
                        }
                        Change::Delete(key) => {
                            self.0.remove(&key);
                        }
                    }
                }
            }
        }
    }

    /// The next test to be made, if fewer than `most` are under way.
    pub(super) fn next(&self, most: usize) -> Option<Key> {
        let running = |stage: &&Stage| matches!(stage, Stage::Running(_));
        if self.0.values().filter(running).count() >= most {
            return None;
        }
        let mut waiting = self.0.iter().filter(|(_, stage)| matches!(stage, Stage::Waiting));
        waiting.next().map(|(key, _)| key.clone())
    }

    /// A test is being made.
    pub(super) fn started(&mut self, key: &Key, handle: AbortHandle) {
        self.0.insert(key.clone(), Stage::Running(handle));
    }

    /// A test is over.
    pub(super) fn ended(&mut self, key: &Key) {
        if let Some(stage) = self.0.get_mut(key) {
            *stage = Stage::Done;
        }
    }
}
