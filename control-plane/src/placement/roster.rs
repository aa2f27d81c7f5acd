//! The roster: which agents are alive and who should own which shard, as mirrored. Pure.

use std::collections::BTreeMap;

use postrider_common::id::AgentId;
use postrider_common::key;
use postrider_common::shard::ShardId;
use postrider_common::store::mirror::Update;
use postrider_common::store::{Change, Entry};
use postrider_common::wire::stored;
use postrider_proto::stored as pb;

use super::plan::Candidate;

/// What the leader plans from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Roster {
    /// The agents that are alive.
    pub(super) agents: BTreeMap<AgentId, Candidate>,
    /// Who should own which shard.
    pub(super) assignments: BTreeMap<ShardId, AgentId>,
}

impl Roster {
    /// Applies what happened below `agents/`.
    pub(super) fn apply_agents(&mut self, update: Update) {
        if matches!(update, Update::Reset(..)) {
            self.agents.clear();
        }
        for change in changes(update) {
            let Some(agent) = key::parse_agent(change.key()) else {
                continue;
            };
            match change {
                Change::Put(entry) => self.agents.insert(agent, candidate(entry)),
                Change::Delete(_) => self.agents.remove(&agent),
            };
        }
    }

    /// Applies what happened below `assignments/`.
    pub(super) fn apply_assignments(&mut self, update: Update) {
        if matches!(update, Update::Reset(..)) {
            self.assignments.clear();
        }
        for change in changes(update) {
            let Some(shard) = key::parse_shard(change.key()) else {
                continue;
            };
            // An assignment that cannot be read is none: the shard is assigned anew.
            match assigned(change) {
                Some(agent) => self.assignments.insert(shard, agent),
                None => self.assignments.remove(&shard),
            };
        }
    }
}

fn changes(update: Update) -> Vec<Change> {
    match update {
        Update::Reset(entries, _) => entries.into_iter().map(Change::Put).collect(),
        Update::Changes(changes) => changes.changes,
    }
}

/// An agent that lives but cannot be read was written by another release: it counts as an ordinary one.
fn candidate(entry: Entry) -> Candidate {
    let agent: pb::Agent = stored::decode(entry.value).unwrap_or_default();
    Candidate {
        weight: agent.weight,
        draining: agent.draining,
    }
}

fn assigned(change: Change) -> Option<AgentId> {
    match change {
        Change::Put(entry) => {
            let assignment: pb::Assignment = stored::decode(entry.value).ok()?;
            AgentId::new(&assignment.agent).ok()
        }
        Change::Delete(_) => None,
    }
}
