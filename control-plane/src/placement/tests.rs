//! Tests of placement against the store in memory.

use std::collections::BTreeMap;

use postrider_common::id::AgentId;
use postrider_common::shard::ShardId;
use postrider_common::store::memory::{Fault, MemoryStore};
use postrider_common::store::{Op, Revision, Store, Write, lease, list_all};
use postrider_common::wire::stored;
use postrider_proto::stored as pb;
use tokio::time::timeout;

use super::*;

const SHARDS: NonZeroU16 = NonZeroU16::new(250).unwrap();

/// Longer than any wait of placement.
const SETTLED: Duration = Duration::from_secs(5);

async fn write(store: &MemoryStore, op: Op) -> Revision {
    let write = Write {
        guards: Vec::new(),
        ops: vec![op],
    };
    store.write(write).await.unwrap()
}

async fn join(store: &MemoryStore, agent: &str, draining: bool) {
    let value = stored::encode(&pb::Agent {
        weight: 1,
        draining,
        ..pb::Agent::default()
    });
    write(store, Op::put(key::agent(&AgentId::new(agent).unwrap()), value)).await;
}

async fn leave(store: &MemoryStore, agent: &str) {
    write(store, Op::delete(key::agent(&AgentId::new(agent).unwrap()))).await;
}

async fn assignments(store: &MemoryStore) -> BTreeMap<ShardId, String> {
    let (entries, _) = list_all(store, &key::assignments(), false).await.unwrap();
    let read = |entry: postrider_common::store::Entry| {
        let assignment: pb::Assignment = stored::decode(entry.value).unwrap();
        (key::parse_shard(&entry.key).unwrap(), assignment.agent)
    };
    entries.into_iter().map(read).collect()
}

fn counts(assignments: &BTreeMap<ShardId, String>) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for agent in assignments.values() {
        *counts.entry(agent.as_str()).or_default() += 1;
    }
    counts
}

struct Leader {
    group: task::Group,
    ended: CancellationToken,
}

async fn lead(store: &MemoryStore) -> Leader {
    let group = task::Group::default();
    let held = lease::keep(&group, Arc::new(store.clone()), SETTLED).await.unwrap();
    write(store, Op::delete(key::leader())).await;
    let revision = write(store, Op::put_leased(key::leader(), "", held.id())).await;
    let term = Term { revision, held };
    let ended = CancellationToken::new();
    let end = ended.clone().drop_guard();
    let placing = run(Arc::new(store.clone()), term, SHARDS, group.token().clone());
    group.spawn("placement", async move {
        placing.await;
        drop(end);
    });
    Leader { group, ended }
}

#[tokio::test(start_paused = true)]
async fn shards_follow_the_agents() {
    let store = MemoryStore::default();
    let _leader = lead(&store).await;
    join(&store, "a", false).await;
    sleep(SETTLED).await;
    assert_eq!(counts(&assignments(&store).await), BTreeMap::from([("a", 250)]));
    join(&store, "b", false).await;
    join(&store, "c", false).await;
    sleep(SETTLED).await;
    assert_eq!(
        counts(&assignments(&store).await),
        BTreeMap::from([("a", 84), ("b", 83), ("c", 83)])
    );
    leave(&store, "a").await;
    sleep(SETTLED).await;
    assert_eq!(
        counts(&assignments(&store).await),
        BTreeMap::from([("b", 125), ("c", 125)])
    );
    join(&store, "b", true).await;
    sleep(SETTLED).await;
    assert_eq!(counts(&assignments(&store).await), BTreeMap::from([("c", 250)]));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_back_at_once_keeps_its_shards() {
    let store = MemoryStore::default();
    for agent in ["a", "b"] {
        join(&store, agent, false).await;
    }
    let leader = lead(&store).await;
    sleep(SETTLED).await;
    let before = list_all(&store, &key::assignments(), false).await.unwrap().0;
    leave(&store, "a").await;
    sleep(QUIET / 2).await;
    join(&store, "a", false).await;
    sleep(SETTLED).await;
    assert_eq!(list_all(&store, &key::assignments(), false).await.unwrap().0, before);
    // A restart of everything: the agents come back one after the other, under a new leader.
    leader.group.shut_down(SETTLED).await;
    leave(&store, "a").await;
    leave(&store, "b").await;
    let leader = lead(&store).await;
    join(&store, "b", false).await;
    sleep(FIRST_QUIET / 2).await;
    join(&store, "a", false).await;
    sleep(SETTLED).await;
    assert_eq!(list_all(&store, &key::assignments(), false).await.unwrap().0, before);
    assert!(!leader.ended.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_term_is_over_writes_nothing_and_ends() {
    let store = MemoryStore::default();
    let leader = lead(&store).await;
    sleep(SETTLED).await;
    write(&store, Op::delete(key::leader())).await;
    write(&store, Op::put(key::leader(), "")).await;
    join(&store, "a", false).await;
    timeout(SETTLED, leader.ended.cancelled()).await.unwrap();
    assert_eq!(assignments(&store).await, BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn lost_answers_and_an_absent_store_delay_the_plan_and_no_more() {
    let store = MemoryStore::default();
    let _leader = lead(&store).await;
    join(&store, "a", false).await;
    let mut faults = [
        None,
        Some(Fault::LostAnswer),
        Some(Fault::LostRequest),
        Some(Fault::Away),
    ]
    .into_iter();
    store.inject(Box::new(move |_| faults.next().flatten()));
    sleep(SETTLED).await;
    assert_eq!(counts(&assignments(&store).await), BTreeMap::from([("a", 250)]));
}

#[tokio::test(start_paused = true)]
async fn agents_that_never_stop_changing_do_not_hold_up_the_plan() {
    let store = MemoryStore::default();
    let _leader = lead(&store).await;
    join(&store, "a", false).await;
    let begun = Instant::now();
    while begun.elapsed() < LONGEST_WAIT * 2 {
        join(&store, "b", false).await;
        sleep(QUIET / 2).await;
        leave(&store, "b").await;
        sleep(QUIET / 2).await;
    }
    assert_eq!(assignments(&store).await.len(), 250);
}
