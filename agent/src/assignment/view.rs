//! What an agent sees of assignments and owners, as mirrored. Pure.

use std::collections::{BTreeMap, BTreeSet};

use postrider_common::id::AgentId;
use postrider_common::key;
use postrider_common::shard::ShardId;
use postrider_common::store::mirror::Update;
use postrider_common::store::{Change, LeaseId, Revision};
use postrider_common::wire::stored;
use postrider_proto::stored as pb;

/// An owner key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    /// The lease that it is on.
    pub(super) lease: Option<LeaseId>,
    /// Its create revision.
    pub(super) epoch: Revision,
}

/// What an agent sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct View {
    /// The shards that this agent should own.
    pub(super) assigned: BTreeSet<ShardId>,
    /// The shards that somebody owns; `None` until that is known, for before everything would look free.
    pub(super) owners: Option<BTreeMap<ShardId, Owner>>,
}

impl View {
    /// Nothing is assigned, and nothing owned.
    pub(super) fn nothing() -> Self {
        Self {
            assigned: BTreeSet::new(),
            owners: Some(BTreeMap::new()),
        }
    }

    /// Applies what happened below `assignments/`, as far as it concerns the agent `me`.
    pub(super) fn apply_assignments(&mut self, update: Update, me: &AgentId) {
        if matches!(update, Update::Reset(..)) {
            self.assigned.clear();
        }
        for change in changes(update) {
            let Some(shard) = key::parse_shard(change.key()) else {
                continue;
            };
            if is_to(change, me) {
                self.assigned.insert(shard);
            } else {
                self.assigned.remove(&shard);
            }
        }
    }

    /// Applies what happened below `owners/`.
    pub(super) fn apply_owners(&mut self, update: Update) {
        if matches!(update, Update::Reset(..)) {
            self.owners = None;
        }
        let owners = self.owners.get_or_insert_default();
        for change in changes(update) {
            let Some(shard) = key::parse_shard(change.key()) else {
                continue;
            };
            match change {
                Change::Put(entry) => {
                    let (lease, epoch) = (entry.lease, entry.create_revision);
                    owners.insert(shard, Owner { lease, epoch });
                }
                Change::Delete(_) => {
                    owners.remove(&shard);
                }
            }
        }
    }
}

fn changes(update: Update) -> Vec<Change> {
    match update {
        Update::Reset(entries, _) => entries.into_iter().map(Change::Put).collect(),
        Update::Changes(changes) => changes.changes,
    }
}

/// Whether an assignment is to this agent. One that cannot be read is to nobody.
fn is_to(change: Change, me: &AgentId) -> bool {
    match change {
        Change::Put(entry) => {
            stored::decode::<pb::Assignment>(entry.value).is_ok_and(|assignment| assignment.agent == me.as_str())
        }
        Change::Delete(_) => false,
    }
}
