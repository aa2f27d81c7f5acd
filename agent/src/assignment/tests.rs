//! Tests of assignment: agents with recording workers on one store in memory, each through a link that can be cut. The leader is played by the test.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use postrider_common::shard::ShardId;
use postrider_common::store::link::Link;
use postrider_common::store::memory::{Fault, MemoryStore};
use postrider_common::store::{Change, Op, Revision, Store, Write, list_all};
use postrider_common::time::SystemClock;
use postrider_common::wire::stored;
use postrider_proto::stored as pb;
use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::shard::{Running, Tenure};

mod random;

const TTL: Duration = Duration::from_secs(5);

/// How long a worker takes to be released.
const GRACE: Duration = Duration::from_millis(100);

/// Everything comes to rest within this time: a lost lease, the next registration, all pauses.
const REST: Duration = Duration::from_secs(30);

/// Who works on which shard, with its epoch, and all that was wrong.
#[derive(Default)]
struct Record {
    active: BTreeMap<ShardId, (String, Revision)>,
    last_epochs: BTreeMap<ShardId, Revision>,
    fences: BTreeMap<ShardId, CancellationToken>,
    wrongs: Vec<String>,
}

#[derive(Clone, Default)]
struct Recorder(Arc<watch::Sender<Record>>);

impl Recorder {
    fn active(&self) -> BTreeMap<u16, String> {
        let record = self.0.borrow();
        let active = record.active.iter();
        active.map(|(shard, (agent, _))| (shard.0, agent.clone())).collect()
    }

    async fn wait_for(&self, wanted: &BTreeMap<u16, String>) {
        let mut receiver = self.0.subscribe();
        let there = async {
            while self.active() != *wanted {
                receiver.changed().await.unwrap();
            }
        };
        if timeout(REST, there).await.is_err() {
            assert_eq!(self.active(), *wanted);
        }
    }
}

struct RecordingWork {
    agent: String,
    recorder: Recorder,
}

struct Worker {
    shard: ShardId,
    epoch: Revision,
    agent: String,
    recorder: Recorder,
    fence: CancellationToken,
}

impl Work for RecordingWork {
    fn start(&self, tenure: Tenure) -> Box<dyn Running> {
        let (shard, epoch) = (tenure.shard, tenure.epoch);
        let fence = CancellationToken::new();
        self.recorder.0.send_modify(|record| {
            let wrong = match record.active.insert(shard, (self.agent.clone(), epoch)) {
                Some(other) => Some(format!("{} works on {shard} besides {other:?}", self.agent)),
                None if record
                    .last_epochs
                    .insert(shard, epoch)
                    .is_some_and(|last| last >= epoch) =>
                {
                    Some(format!("epoch {epoch} of {shard} is not new"))
                }
                None if !tenure.lease.is_safe() => Some(format!("{shard} was begun on a lease that is not safe")),
                None => None,
            };
            record.wrongs.extend(wrong);
            record.fences.insert(shard, fence.clone());
        });
        Box::new(Worker {
            shard,
            epoch,
            agent: self.agent.clone(),
            recorder: self.recorder.clone(),
            fence,
        })
    }
}

#[async_trait]
impl Running for Worker {
    async fn release(self: Box<Self>) {
        sleep(GRACE).await;
    }

    async fn abandon(self: Box<Self>) {}

    fn fenced(&self) -> CancellationToken {
        self.fence.clone()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.recorder.0.send_modify(|record| {
            if record.active.remove(&self.shard) != Some((self.agent.clone(), self.epoch)) {
                record
                    .wrongs
                    .push(format!("{} lost {} to another", self.agent, self.shard));
            }
        });
    }
}

struct Agent {
    link: Link,
    stop: CancellationToken,
    task: JoinSet<Result<(), presence::Error>>,
}

impl Agent {
    fn start(cell: &Cell, name: &str) -> Self {
        let link = Link::new(Arc::new(cell.store.clone()));
        let stop = CancellationToken::new();
        let work = RecordingWork {
            agent: name.to_owned(),
            recorder: cell.recorder.clone(),
        };
        let deps = Deps {
            store: Arc::new(link.clone()),
            agent: AgentId::new(name).unwrap(),
            work: Arc::new(work),
            lease_ttl: TTL,
            version: "1".to_owned(),
            weight: 1,
            clock: Arc::new(SystemClock),
        };
        let mut task = JoinSet::new();
        task.spawn(run(deps, stop.clone()));
        Self { link, stop, task }
    }

    async fn end(&mut self) -> Result<(), presence::Error> {
        timeout(REST, self.task.join_next()).await.unwrap().unwrap().unwrap()
    }

    async fn stop(mut self) {
        self.stop.cancel();
        self.end().await.unwrap();
    }

    /// Everything of the agent vanishes at once.
    async fn crash(mut self) {
        self.task.shutdown().await;
    }
}

#[derive(Default)]
struct Cell {
    store: MemoryStore,
    recorder: Recorder,
}

impl Cell {
    async fn assign(&self, wanted: &BTreeMap<u16, String>) {
        let assign = |(shard, agent): (&u16, &String)| {
            let agent = agent.clone();
            Op::put(
                key::assignment(ShardId(*shard)),
                stored::encode(&pb::Assignment { agent }),
            )
        };
        let ops = wanted.iter().map(assign).collect();
        self.store
            .write(Write {
                guards: Vec::new(),
                ops,
            })
            .await
            .unwrap();
    }

    async fn exists(&self, key: &postrider_common::key::Key) -> bool {
        self.store.get(key).await.unwrap().0.is_some()
    }

    /// What must be true whatever has happened: read from all that the store remembers, and from the record of the workers.
    async fn check(&self) {
        let (_, now) = self.store.get(&key::cell()).await.unwrap();
        let mut owned = BTreeMap::new();
        // The watch ends never; everything that has happened comes with its first item.
        let mut watch = self.store.watch(&key::owners(), Revision(1)).await.unwrap();
        let history = timeout(Duration::ZERO, watch.next()).await.ok().flatten();
        for change in history.into_iter().flat_map(|changes| changes.unwrap().changes) {
            match change {
                Change::Put(entry) => {
                    assert!(entry.mod_revision <= now && entry.create_revision == entry.mod_revision);
                    let before = owned.insert(entry.key.clone(), entry.lease);
                    assert_eq!(before, None, "{} was taken while it was owned", entry.key);
                }
                Change::Delete(key) => assert!(owned.remove(&key).is_some()),
            }
        }
        assert_eq!(self.recorder.0.borrow().wrongs, Vec::<String>::new());
    }

    async fn owners(&self) -> BTreeMap<u16, String> {
        let (entries, _) = list_all(&self.store, &key::owners(), false).await.unwrap();
        let read = |entry: postrider_common::store::Entry| {
            let owner: pb::Owner = stored::decode(entry.value).unwrap();
            (key::parse_shard(&entry.key).unwrap().0, owner.agent)
        };
        entries.into_iter().map(read).collect()
    }
}

/// Shards `0..count`, each of the agent that `who` names.
fn shards(count: u16, who: impl Fn(u16) -> &'static str) -> BTreeMap<u16, String> {
    (0..count).map(|shard| (shard, who(shard).to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn shards_change_hands_within_a_second() {
    let cell = Cell::default();
    let _a = Agent::start(&cell, "a");
    let _b = Agent::start(&cell, "b");
    for wanted in [
        shards(64, |_| "a"),
        shards(64, |shard| if shard % 2 == 0 { "a" } else { "b" }),
        shards(64, |_| "b"),
    ] {
        cell.assign(&wanted).await;
        let begun = Instant::now();
        cell.recorder.wait_for(&wanted).await;
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert_eq!(cell.owners().await, wanted);
    }
    cell.check().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_releases_everything_and_leaves() {
    let cell = Cell::default();
    let a = Agent::start(&cell, "a");
    let _b = Agent::start(&cell, "b");
    cell.assign(&shards(64, |_| "a")).await;
    cell.recorder.wait_for(&shards(64, |_| "a")).await;
    let agent = key::agent(&AgentId::new("a").unwrap());
    assert!(cell.exists(&agent).await);
    let begun = Instant::now();
    a.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(!cell.exists(&agent).await);
    assert_eq!(cell.owners().await, BTreeMap::new());
    cell.assign(&shards(64, |_| "b")).await;
    cell.recorder.wait_for(&shards(64, |_| "b")).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    cell.check().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_watches_are_silent_can_still_stop() {
    let cell = Cell::default();
    let a = Agent::start(&cell, "a");
    cell.assign(&shards(4, |_| "a")).await;
    cell.recorder.wait_for(&shards(4, |_| "a")).await;
    a.link.mute(key::owners());
    a.stop().await;
    assert_eq!(cell.owners().await, BTreeMap::new());
    cell.check().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_says_first_that_it_drains() {
    let cell = Cell::default();
    let a = Agent::start(&cell, "a");
    cell.assign(&shards(1, |_| "a")).await;
    cell.recorder.wait_for(&shards(1, |_| "a")).await;
    a.stop.cancel();
    sleep(GRACE / 2).await;
    let (entry, _) = cell.store.get(&key::agent(&AgentId::new("a").unwrap())).await.unwrap();
    let agent: pb::Agent = stored::decode(entry.unwrap().value).unwrap();
    assert!(agent.draining);
    assert_eq!(cell.recorder.active(), shards(1, |_| "a"));
    a.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_shards_of_an_agent_that_died_pass_on_when_its_lease_has_run_out() {
    let cell = Cell::default();
    let a = Agent::start(&cell, "a");
    let _b = Agent::start(&cell, "b");
    cell.assign(&shards(8, |_| "a")).await;
    cell.recorder.wait_for(&shards(8, |_| "a")).await;
    let begun = Instant::now();
    a.crash().await;
    cell.assign(&shards(8, |_| "b")).await;
    sleep(TTL / 2).await;
    assert_eq!(cell.recorder.active(), BTreeMap::new());
    cell.recorder.wait_for(&shards(8, |_| "b")).await;
    assert!(begun.elapsed() < TTL + Duration::from_secs(1));
    cell.check().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_loses_the_store_stops_working_before_another_begins() {
    let cell = Cell::default();
    let a = Agent::start(&cell, "a");
    let b = Agent::start(&cell, "b");
    cell.assign(&shards(8, |_| "a")).await;
    cell.recorder.wait_for(&shards(8, |_| "a")).await;
    for (cut, to) in [(&a, "b"), (&b, "a"), (&a, "b")] {
        cut.link.cut();
        cell.assign(&shards(8, |_| to)).await;
        cell.recorder.wait_for(&shards(8, |_| to)).await;
        cut.link.join();
        sleep(REST).await;
        assert_eq!(cell.recorder.active(), shards(8, |_| to));
    }
    cell.check().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_cut_off_for_a_moment_keeps_its_shards() {
    let cell = Cell::default();
    let a = Agent::start(&cell, "a");
    cell.assign(&shards(8, |_| "a")).await;
    cell.recorder.wait_for(&shards(8, |_| "a")).await;
    let before = cell.recorder.0.borrow().last_epochs.clone();
    for _ in 0..5 {
        a.link.cut();
        sleep(TTL / 3).await;
        a.link.join();
        sleep(TTL / 10).await;
    }
    assert_eq!(cell.recorder.0.borrow().last_epochs, before);
    assert_eq!(cell.recorder.active(), shards(8, |_| "a"));
}

#[tokio::test(start_paused = true)]
async fn a_shard_whose_worker_was_fenced_is_taken_anew_in_a_later_epoch() {
    let cell = Cell::default();
    let _a = Agent::start(&cell, "a");
    cell.assign(&shards(2, |_| "a")).await;
    cell.recorder.wait_for(&shards(2, |_| "a")).await;
    let before = cell.recorder.0.borrow().last_epochs.clone();
    // Once as if the worker was wrong, once after its key had really gone.
    let key_of_the_other = Op::delete(key::owner(ShardId(1)));
    cell.store
        .write(Write {
            guards: Vec::new(),
            ops: vec![key_of_the_other],
        })
        .await
        .unwrap();
    for fence in cell.recorder.0.borrow().fences.values() {
        fence.cancel();
    }
    sleep(REST).await;
    cell.recorder.wait_for(&shards(2, |_| "a")).await;
    let after = cell.recorder.0.borrow().last_epochs.clone();
    assert!(after.iter().all(|(shard, epoch)| *epoch > before[shard]));
    cell.check().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_sees_the_owners_late_takes_nothing_from_another() {
    let cell = Cell::default();
    let _a = Agent::start(&cell, "a");
    let b = Agent::start(&cell, "b");
    sleep(GRACE).await;
    b.link.mute(key::owners());
    cell.assign(&shards(8, |_| "a")).await;
    cell.recorder.wait_for(&shards(8, |_| "a")).await;
    // Agent b believes that they are free, and tries at once.
    cell.assign(&shards(8, |_| "b")).await;
    sleep(GRACE / 2).await;
    assert_eq!(cell.recorder.active(), shards(8, |_| "a"));
    b.link.unmute();
    cell.recorder.wait_for(&shards(8, |_| "b")).await;
    cell.check().await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_key_that_nobody_works_under_is_cleared_or_worked_under() {
    let cell = Cell::default();
    let _a = Agent::start(&cell, "a");
    sleep(GRACE).await;
    let (entry, _) = cell.store.get(&key::agent(&AgentId::new("a").unwrap())).await.unwrap();
    let lease = entry.unwrap().lease.unwrap();
    // As written by a take whose outcome was unknown, and that was applied late.
    let late = |shard| Op::put_leased(key::owner(ShardId(shard)), "", lease);
    cell.store
        .write(Write {
            guards: Vec::new(),
            ops: vec![late(0)],
        })
        .await
        .unwrap();
    sleep(GRACE).await;
    assert!(!cell.exists(&key::owner(ShardId(0))).await);
    let assigned = Op::put(
        key::assignment(ShardId(1)),
        stored::encode(&pb::Assignment { agent: "a".to_owned() }),
    );
    let write = Write {
        guards: Vec::new(),
        ops: vec![assigned, late(1)],
    };
    let epoch = cell.store.write(write).await.unwrap();
    cell.recorder.wait_for(&BTreeMap::from([(1, "a".to_owned())])).await;
    assert_eq!(
        cell.recorder.0.borrow().last_epochs,
        BTreeMap::from([(ShardId(1), epoch)])
    );
    cell.check().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_restarted_under_its_name_waits_for_its_last_life_to_run_out() {
    let cell = Cell::default();
    cell.assign(&shards(4, |_| "a")).await;
    let a = Agent::start(&cell, "a");
    cell.recorder.wait_for(&shards(4, |_| "a")).await;
    a.crash().await;
    let _again = Agent::start(&cell, "a");
    cell.recorder.wait_for(&shards(4, |_| "a")).await;
    cell.check().await;
}

#[tokio::test(start_paused = true)]
async fn two_live_agents_of_one_name_are_refused() {
    let cell = Cell::default();
    cell.assign(&shards(4, |_| "a")).await;
    let _a = Agent::start(&cell, "a");
    cell.recorder.wait_for(&shards(4, |_| "a")).await;
    let mut other = Agent::start(&cell, "a");
    let error = other.end().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "another live agent is named a: give each agent an id of its own"
    );
    assert_eq!(cell.recorder.active(), shards(4, |_| "a"));
    cell.check().await;
}
