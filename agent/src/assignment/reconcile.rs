//! Decides what an agent does about its shards: what it is assigned, what it sees owned and what it has give actions. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use postrider_common::shard::ShardId;
use postrider_common::store::{LeaseId, Revision};

use super::view::View;

/// How far the agent has a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is being taken or given up: nothing is begun until that has ended.
    Changing,
    /// A worker runs.
    Held,
}

/// What to do about one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Create the owner key, then start a worker.
    Take(ShardId),
    /// Let the worker finish, then delete the owner key.
    Release(ShardId),
    /// Delete the owner key of this epoch: it is on this agent's lease, but nobody works under it. It comes from a take whose outcome was unknown and
    /// that was applied late; left there it would keep the shard from everybody.
    Clear(ShardId, Revision),
}

/// What to do about all shards, at most one action each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Actions(pub(super) Vec<Action>);

/// Decides. `lease` is the agent's own.
pub(super) fn reconcile(view: &View, lease: LeaseId, mine: &BTreeMap<ShardId, Stage>) -> Actions {
    let Some(owners) = &view.owners else {
        return Actions::default();
    };
    let shards: BTreeSet<ShardId> = view
        .assigned
        .iter()
        .chain(owners.keys())
        .chain(mine.keys())
        .copied()
        .collect();
    let decide = |shard: ShardId| {
        let assigned = view.assigned.contains(&shard);
        let owner = owners.get(&shard);
        match (mine.get(&shard), owner) {
            (Some(Stage::Changing), _) => None,
            (Some(Stage::Held), _) => (!assigned).then_some(Action::Release(shard)),
            // Taking a shard whose key is already on this lease finds that key and works under it.
            (None, Some(owner)) if owner.lease == Some(lease) => Some(if assigned {
                Action::Take(shard)
            } else {
                Action::Clear(shard, owner.epoch)
            }),
            (None, Some(_)) => None,
            (None, None) => assigned.then_some(Action::Take(shard)),
        }
    };
    Actions(shards.into_iter().filter_map(decide).collect())
}

impl fmt::Display for Actions {
    /// Prints as `take 1 2; release 3; clear 4`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: [(&str, Vec<ShardId>); 3] =
            [("take", Vec::new()), ("release", Vec::new()), ("clear", Vec::new())];
        let [(_, take), (_, release), (_, clear)] = &mut groups;
        for action in &self.0 {
            match action {
                Action::Take(shard) => take.push(*shard),
                Action::Release(shard) => release.push(*shard),
                Action::Clear(shard, _) => clear.push(*shard),
            }
        }
        let mut separator = "";
        for (name, shards) in groups.iter().filter(|(_, shards)| !shards.is_empty()) {
            write!(formatter, "{separator}{name}")?;
            for shard in shards {
                write!(formatter, " {shard}")?;
            }
            separator = "; ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::view::Owner;
    use super::*;

    const MINE: LeaseId = LeaseId(1);

    fn owner(lease: i64) -> Owner {
        Owner {
            lease: Some(LeaseId(lease)),
            epoch: Revision(7),
        }
    }

    fn owners(view: &View) -> &BTreeMap<ShardId, Owner> {
        view.owners.as_ref().unwrap()
    }

    fn views() -> impl Strategy<Value = View> {
        let shard = || (0_u16..12).prop_map(ShardId);
        let assigned = proptest::collection::btree_set(shard(), 0..12);
        let owners = proptest::collection::btree_map(shard(), (1_i64..4).prop_map(owner), 0..12);
        (assigned, owners).prop_map(|(assigned, owners)| View {
            assigned,
            owners: Some(owners),
        })
    }

    fn stages() -> impl Strategy<Value = BTreeMap<ShardId, Stage>> {
        let stage = prop_oneof![Just(Stage::Changing), Just(Stage::Held)];
        proptest::collection::btree_map((0_u16..12).prop_map(ShardId), stage, 0..12)
    }

    proptest! {
        #[test]
        fn no_shard_gets_two_actions_and_none_while_it_changes(view in views(), mine in stages()) {
            let Actions(actions) = reconcile(&view, MINE, &mine);
            let shards: BTreeSet<_> = actions.iter().map(|action| match action {
                Action::Take(shard) | Action::Release(shard) | Action::Clear(shard, _) => *shard,
            }).collect();
            prop_assert_eq!(shards.len(), actions.len());
            prop_assert!(shards.iter().all(|shard| mine.get(shard) != Some(&Stage::Changing)));
        }

        #[test]
        fn nothing_is_taken_that_another_owns_and_nothing_released_that_is_assigned(view in views(), mine in stages()) {
            for action in reconcile(&view, MINE, &mine).0 {
                match action {
                    Action::Take(shard) => {
                        prop_assert!(view.assigned.contains(&shard) && !mine.contains_key(&shard));
                        prop_assert!(owners(&view).get(&shard).is_none_or(|owner| owner.lease == Some(MINE)));
                    }
                    Action::Release(shard) => prop_assert!(!view.assigned.contains(&shard) && mine.contains_key(&shard)),
                    Action::Clear(shard, epoch) => {
                        prop_assert!(!view.assigned.contains(&shard) && !mine.contains_key(&shard));
                        prop_assert_eq!(owners(&view)[&shard], Owner { lease: Some(MINE), epoch });
                    }
                }
            }
        }

        #[test]
        fn when_all_actions_have_ended_the_agent_has_what_it_is_assigned_and_others_do_not_own(mut view in views(), mine in stages()) {
            let mut mine: BTreeMap<_, _> = mine.into_iter().filter(|(shard, _)| {
                // Whoever holds a shard has its key.
                owners(&view).get(shard).is_some_and(|owner| owner.lease == Some(MINE))
            }).map(|(shard, _)| (shard, Stage::Held)).collect();
            for action in reconcile(&view, MINE, &mine).0 {
                match action {
                    Action::Take(shard) => {
                        view.owners.as_mut().unwrap().insert(shard, owner(MINE.0));
                        mine.insert(shard, Stage::Held);
                    }
                    Action::Release(shard) | Action::Clear(shard, _) => {
                        view.owners.as_mut().unwrap().remove(&shard);
                        mine.remove(&shard);
                    }
                }
            }
            prop_assert_eq!(reconcile(&view, MINE, &mine), Actions::default());
            for (shard, owner) in owners(&view) {
                prop_assert_eq!(owner.lease == Some(MINE), mine.contains_key(shard));
            }
            prop_assert!(mine.keys().all(|shard| view.assigned.contains(shard)));
            prop_assert!(view.assigned.iter().all(|shard| owners(&view).contains_key(shard)));
        }
    }

    #[test]
    fn nothing_is_done_before_the_owners_are_known() {
        let view = View {
            assigned: BTreeSet::from([ShardId(1)]),
            owners: None,
        };
        assert_eq!(reconcile(&view, MINE, &BTreeMap::new()), Actions::default());
    }

    #[test]
    fn actions_print_as_a_log_line() {
        let view = View {
            assigned: BTreeSet::from([ShardId(1), ShardId(2), ShardId(3)]),
            owners: Some(BTreeMap::from([
                (ShardId(2), owner(2)),
                (ShardId(5), owner(1)),
                (ShardId(6), owner(1)),
            ])),
        };
        let mine = BTreeMap::from([(ShardId(5), Stage::Held)]);
        assert_eq!(
            reconcile(&view, MINE, &mine).to_string(),
            "take 1 3; release 5; clear 6"
        );
    }
}
