//! Plans who should own which shard: balanced by weight, with the fewest moves, and planned twice it changes nothing. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;

use postrider_common::id::AgentId;
use postrider_common::shard::{self, ShardId};

/// An agent that is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// How many shards it should have, relative to the others; 0 counts as 1.
    pub weight: u32,
    /// It takes no shards, and gives up those it has once somebody else can take them.
    pub draining: bool,
}

/// Who should own each shard.
///
/// Every shard goes to an agent that is not draining, and each of these gets its weighted share, rounded down or up. Of all such plans it is one with the
/// fewest moves from `current`. While there is no such agent nothing changes: draining agents go on with what they have, and agents that
/// come back find their shards.
pub fn plan(
    agents: &BTreeMap<AgentId, Candidate>,
    shards: NonZeroU16,
    current: &BTreeMap<ShardId, AgentId>,
) -> BTreeMap<ShardId, AgentId> {
    let mut room = targets(agents, shards, current);
    if room.is_empty() {
        let known = current.iter().filter(|(shard, _)| shard.0 < shards.get());
        return known.map(|(shard, agent)| (*shard, agent.clone())).collect();
    }
    let mut plan = BTreeMap::new();
    let mut homeless = Vec::new();
    for shard in shard::all(shards) {
        match current
            .get(&shard)
            .and_then(|agent| Some((agent, room.get_mut(agent)?)))
        {
            Some((agent, room)) if *room > 0 => {
                *room -= 1;
                plan.insert(shard, agent.clone());
            }
            _ => homeless.push(shard),
        }
    }
    let places = room.iter().flat_map(|(agent, room)| (0..*room).map(move |_| agent));
    // There are exactly as many places as homeless shards: the targets add up to the number of shards.
    plan.extend(homeless.into_iter().zip(places.map(|agent| (*agent).clone())));
    plan
}

/// How many shards each agent that can take some should have.
fn targets<'a>(
    agents: &'a BTreeMap<AgentId, Candidate>,
    shards: NonZeroU16,
    current: &BTreeMap<ShardId, AgentId>,
) -> BTreeMap<&'a AgentId, u64> {
    let mut owned: BTreeMap<&AgentId, u64> = BTreeMap::new();
    for (_, agent) in current.iter().filter(|(shard, _)| shard.0 < shards.get()) {
        *owned.entry(agent).or_default() += 1;
    }
    let count = u64::from(shards.get());
    let weight = |candidate: &Candidate| u64::from(candidate.weight.max(1));
    let takers = || agents.iter().filter(|(_, candidate)| !candidate.draining);
    let total: u64 = takers().map(|(_, candidate)| weight(candidate)).sum();
    let mut targets = BTreeMap::new();
    let mut fractions = Vec::new();
    for (agent, candidate) in takers() {
        let share = count * weight(candidate);
        let whole = share / total;
        targets.insert(agent, whole);
        // Whoever has more than its whole share already keeps the shard that is left over, which saves a move; then the largest fraction.
        let keeps_one = owned.get(agent).is_some_and(|owned| *owned > whole);
        fractions.push((share % total, keeps_one, agent));
    }
    let left = count - targets.values().sum::<u64>();
    fractions.retain(|(fraction, ..)| *fraction > 0);
    fractions.sort_by_key(|(fraction, keeps_one, agent)| (!keeps_one, std::cmp::Reverse(*fraction), *agent));
    for (.., agent) in fractions.into_iter().zip(0..left).map(|(entry, _)| entry) {
        *targets.entry(agent).or_default() += 1;
    }
    targets
}

/// One shard that changes hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The shard.
    pub shard: ShardId,
    /// Who should own it so far.
    pub from: Option<AgentId>,
    /// Who should own it from now on.
    pub to: AgentId,
}

/// What must change for a plan to hold. Prints as `a▸b: 1 2 5; -▸c: 3`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moves(pub Vec<Move>);

impl Moves {
    /// The moves that lead from `current` to `plan`, ordered by shard.
    pub fn between(current: &BTreeMap<ShardId, AgentId>, plan: &BTreeMap<ShardId, AgentId>) -> Self {
        let changed = plan.iter().filter(|(shard, agent)| current.get(shard) != Some(agent));
        Self(
            changed
                .map(|(shard, agent)| Move {
                    shard: *shard,
                    from: current.get(shard).cloned(),
                    to: agent.clone(),
                })
                .collect(),
        )
    }
}

impl fmt::Display for Moves {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: BTreeMap<(Option<&AgentId>, &AgentId), Vec<ShardId>> = BTreeMap::new();
        for one in &self.0 {
            groups.entry((one.from.as_ref(), &one.to)).or_default().push(one.shard);
        }
        for (index, ((from, to), shards)) in groups.into_iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(formatter, "{separator}{}▸{to}:", from.map_or("-", AgentId::as_str))?;
            for shard in shards {
                write!(formatter, " {shard}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agent(number: u8) -> AgentId {
        AgentId::new(&format!("a{number}")).unwrap()
    }

    fn shards() -> impl Strategy<Value = NonZeroU16> {
        (1_u16..80).prop_map(|count| NonZeroU16::new(count).unwrap())
    }

    fn agents() -> impl Strategy<Value = BTreeMap<AgentId, Candidate>> {
        let candidate = (0_u32..5, proptest::bool::weighted(0.2));
        let candidate = candidate.prop_map(|(weight, draining)| Candidate { weight, draining });
        proptest::collection::btree_map((0_u8..12).prop_map(agent), candidate, 0..8)
    }

    fn current() -> impl Strategy<Value = BTreeMap<ShardId, AgentId>> {
        proptest::collection::btree_map((0_u16..90).prop_map(ShardId), (0_u8..14).prop_map(agent), 0..90)
    }

    fn count(plan: &BTreeMap<ShardId, AgentId>, agent: &AgentId) -> u64 {
        plan.values().filter(|owner| *owner == agent).count() as u64
    }

    proptest! {
        #[test]
        fn every_shard_goes_to_an_agent_that_takes_shards_if_there_is_one(agents in agents(), shards in shards(), current in current()) {
            let plan = plan(&agents, shards, &current);
            prop_assert!(plan.keys().all(|shard| shard.0 < shards.get()));
            if agents.values().any(|candidate| !candidate.draining) {
                prop_assert!(plan.keys().copied().eq(shard::all(shards)));
                prop_assert!(plan.values().all(|agent| !agents[agent].draining));
            } else {
                prop_assert!(plan.iter().all(|(shard, agent)| current.get(shard) == Some(agent)));
            }
        }

        #[test]
        fn each_agent_gets_its_weighted_share_rounded_down_or_up(agents in agents(), shards in shards(), current in current()) {
            let plan = plan(&agents, shards, &current);
            let takers: Vec<_> = agents.iter().filter(|(_, candidate)| !candidate.draining).collect();
            let total: u64 = takers.iter().map(|(_, candidate)| u64::from(candidate.weight.max(1))).sum();
            for (agent, candidate) in takers {
                let share = u64::from(shards.get()) * u64::from(candidate.weight.max(1));
                let count = count(&plan, agent);
                prop_assert!(count == share / total || count == share.div_ceil(total), "{count} of {share}/{total}");
            }
        }

        #[test]
        fn planned_twice_it_changes_nothing(agents in agents(), shards in shards(), current in current()) {
            let first = plan(&agents, shards, &current);
            let second = plan(&agents, shards, &first);
            prop_assert_eq!(Moves::between(&first, &second).to_string(), "");
            prop_assert_eq!(first, second);
        }

        #[test]
        fn a_plan_has_as_few_moves_as_any_plan_with_fair_shares(
            agents in agents(), count in 1_u16..7, current in current(),
        ) {
            // Small enough to try every assignment with fair shares.
            let shards = NonZeroU16::new(count).unwrap();
            let agents: BTreeMap<_, _> = agents.into_iter().filter(|(_, candidate)| !candidate.draining).take(4).collect();
            prop_assume!(!agents.is_empty());
            let current: BTreeMap<_, _> = current.into_iter().filter(|(shard, _)| shard.0 < count).collect();
            let moves = Moves::between(&current, &plan(&agents, shards, &current)).0.len();
            let names: Vec<_> = agents.keys().cloned().collect();
            let total: u64 = agents.values().map(|candidate| u64::from(candidate.weight.max(1))).sum();
            let fair = |tried: &BTreeMap<ShardId, AgentId>| agents.iter().all(|(agent, candidate)| {
                let share = u64::from(count) * u64::from(candidate.weight.max(1));
                (share / total..=share.div_ceil(total)).contains(&super::tests::count(tried, agent))
            });
            let fewest = (0..names.len().pow(u32::from(count))).filter_map(|mut code| {
                let tried: BTreeMap<_, _> = shard::all(shards).map(|shard| {
                    let agent = names[code % names.len()].clone();
                    code /= names.len();
                    (shard, agent)
                }).collect();
                fair(&tried).then(|| Moves::between(&current, &tried).0.len())
            }).min();
            prop_assert_eq!(Some(moves), fewest);
        }

        #[test]
        fn an_agent_that_joins_only_takes_and_one_that_leaves_only_gives(
            agents in agents(), shards in shards(), current in current(), number in 0_u8..12,
        ) {
            let equal: BTreeMap<_, _> = agents.into_keys().map(|agent| (agent, Candidate { weight: 1, draining: false })).collect();
            let other = agent(number);
            let mut without = equal.clone();
            without.remove(&other);
            prop_assume!(!without.is_empty());
            let mut with = equal;
            with.insert(other.clone(), Candidate { weight: 1, draining: false });
            let before = plan(&without, shards, &current);
            let joined = plan(&with, shards, &before);
            prop_assert!(Moves::between(&before, &joined).0.iter().all(|one| one.to == other));
            let left = plan(&without, shards, &joined);
            prop_assert!(Moves::between(&joined, &left).0.iter().all(|one| one.from.as_ref() == Some(&other)));
        }
    }

    #[test]
    fn moves_print_as_a_log_line() {
        let current = BTreeMap::from([(ShardId(1), agent(1)), (ShardId(2), agent(1)), (ShardId(3), agent(2))]);
        let agents = BTreeMap::from([(
            agent(2),
            Candidate {
                weight: 1,
                draining: false,
            },
        )]);
        let plan = plan(&agents, NonZeroU16::new(4).unwrap(), &current);
        assert_eq!(Moves::between(&current, &plan).to_string(), "-▸a2: 0; a1▸a2: 1 2");
    }
}
