//! Which agents are alive and may be asked, as mirrored. Pure.

use std::collections::BTreeMap;

use postrider_common::id::AgentId;
use postrider_common::key;
use postrider_common::store::mirror::Update;
use postrider_common::store::{Change, Entry, Revision};
use postrider_common::wire::stored;
use postrider_proto::stored as pb;

/// The agents that are alive.
#[derive(Debug, Default)]
pub(super) struct Roster(BTreeMap<AgentId, Life>);

#[derive(Debug, Clone, Copy)]
struct Life {
    since: Revision,
    draining: bool,
}

impl Roster {
    /// Applies what happened below `agents/`.
    pub(super) fn apply(&mut self, update: Update) {
        let changes = match update {
            Update::Reset(entries, _) => {
                self.0.clear();
                entries.into_iter().map(Change::Put).collect()
            }
            Update::Changes(changes) => changes.changes,
        };
        for change in changes {
            let Some(agent) = key::parse_agent(change.key()) else {
                continue;
            };
            match change {
                Change::Put(entry) => self.0.insert(agent, life(entry)),
                Change::Delete(_) => self.0.remove(&agent),
            };
        }
    }

    /// Whether an agent's life that began at `since` goes on.
    pub(super) fn lives(&self, agent: &AgentId, since: Revision) -> bool {
        self.0.get(agent).is_some_and(|life| life.since == since)
    }

    /// One of the agents that are not draining, by chance, and when its life began; not the life that is `gone`.
    pub(super) fn choose(&self, gone: Option<(&AgentId, Revision)>, chance: u64) -> Option<(AgentId, Revision)> {
        let fit = |(agent, life): &(&AgentId, &Life)| !life.draining && gone != Some((agent, life.since));
        let agents: Vec<_> = self.0.iter().filter(fit).collect();
        let index = usize::try_from(chance % u64::try_from(agents.len().max(1)).ok()?).ok()?;
        let (agent, life) = agents.get(index)?;
        Some(((*agent).clone(), life.since))
    }
}

/// An agent that cannot be read was written by another release: it may still answer.
fn life(entry: Entry) -> Life {
    let agent: pb::Agent = stored::decode(entry.value).unwrap_or_default();
    Life {
        since: entry.create_revision,
        draining: agent.draining,
    }
}

#[cfg(test)]
mod tests {
    use postrider_common::store::Changes;
    use proptest::prelude::*;

    use super::*;

    fn entry(agent: &str, since: i64, draining: bool) -> Entry {
        let agent = AgentId::new(agent).unwrap();
        Entry {
            key: key::agent(&agent),
            value: stored::encode(&pb::Agent {
                draining,
                ..pb::Agent::default()
            }),
            create_revision: Revision(since),
            mod_revision: Revision(since),
            lease: None,
        }
    }

    proptest! {
        #[test]
        fn whoever_is_chosen_lives_and_does_not_drain(
            agents in proptest::collection::btree_map("[a-c]", (1_i64..9, any::<bool>()), 0..4), gone in 1_i64..9, chance: u64,
        ) {
            let mut roster = Roster::default();
            let entries = agents.iter().map(|(agent, (since, draining))| entry(agent, *since, *draining));
            roster.apply(Update::Reset(entries.collect(), Revision(9)));
            let a = AgentId::new("a").unwrap();
            let fit = agents.iter().any(|(agent, (since, draining))| !draining && (agent != "a" || *since != gone));
            let chosen = roster.choose(Some((&a, Revision(gone))), chance);
            prop_assert_eq!(chosen.is_some(), fit);
            if let Some((agent, since)) = chosen {
                prop_assert_eq!(agents[agent.as_str()], (since.0, false));
                prop_assert!(roster.lives(&agent, since) && !roster.lives(&agent, since.next()));
                let deleted = Changes { revision: Revision(10), changes: vec![Change::Delete(key::agent(&agent))] };
                roster.apply(Update::Changes(deleted));
                prop_assert!(!roster.lives(&agent, since));
            }
        }
    }
}
