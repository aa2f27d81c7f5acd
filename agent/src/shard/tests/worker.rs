//! Worker, ledger and catalog together, on the store in memory, with a receiver that does as it is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use postrider_common::entropy::SystemEntropy;
use postrider_common::id::AgentId;
use postrider_common::key::{self, Key};
use postrider_common::model::batching::Mode;
use postrider_common::model::history::Fate;
use postrider_common::model::segment::Segment;
use postrider_common::model::webhook::Webhook;
use postrider_common::retry::Final;
use postrider_common::shard::ShardId;
use postrider_common::store::lease::Held;
use postrider_common::store::memory::{Fault, MemoryStore};
use postrider_common::store::{Op, Revision, Store as _, Write, list_all};
use postrider_common::task::Group;
use postrider_common::time::{Clock as _, Timestamp};
use postrider_common::wire::stored;
use postrider_proto::stored as pb;
use tokio::time::Instant;

use super::{BEGIN, TestClock, event, segment, uid, webhook};
use crate::attempt::{Attempt, Evidence, Made, Outcome, Reason, Sender};
use crate::catalog::Catalog;
use crate::shard::ledger::UNWRITTEN_LIMIT;
use crate::shard::{Deps, Limits, Running, Shards, Tenure, Work as _};

mod limits;
mod trouble;

pub(super) const DELIVERED: Outcome = Outcome::Delivered { status: 200 };

/// Webhook, event, attempt number, eventInfo.
type Call = (String, String, u32, String);

/// Decides what a call answers, and after how long.
type Script = Box<dyn FnMut(&Call) -> (Duration, Outcome) + Send>;

#[derive(Default)]
pub(super) struct Receiver {
    script: Mutex<Option<Script>>,
    begun: Mutex<Vec<Call>>,
    answered: Mutex<Vec<(Call, Outcome)>>,
}

impl Receiver {
    pub(super) fn answers(&self, script: impl FnMut(&Call) -> (Duration, Outcome) + Send + 'static) {
        *self.script.lock().unwrap() = Some(Box::new(script));
    }

    /// How often each (webhook, event) was answered with 200.
    pub(super) fn received(&self) -> BTreeMap<(String, String), u32> {
        let mut received = BTreeMap::new();
        for ((webhook, event, ..), outcome) in &*self.answered.lock().unwrap() {
            if *outcome == DELIVERED {
                *received.entry((webhook.clone(), event.clone())).or_default() += 1;
            }
        }
        received
    }

    pub(super) fn attempts(&self) -> usize {
        self.begun.lock().unwrap().len()
    }

    pub(super) fn first_attempts(&self) -> usize {
        self.begun.lock().unwrap().iter().filter(|call| call.2 == 1).count()
    }
}

#[async_trait]
impl Sender for Receiver {
    async fn send(&self, attempt: Attempt) -> Made {
        let sent = &attempt.events[0];
        let call = (
            attempt.webhook.id.as_str().to_owned(),
            attempt.id.to_string(),
            attempt.number,
            sent.event_info.to_string(),
        );
        self.begun.lock().unwrap().push(call.clone());
        let (pause, outcome) = match &mut *self.script.lock().unwrap() {
            Some(script) => script(&call),
            None => (Duration::from_millis(5), DELIVERED),
        };
        tokio::time::sleep(pause).await;
        self.answered.lock().unwrap().push((call, outcome.clone()));
        Made {
            outcome,
            evidence: Evidence::none(Timestamp::default()),
        }
    }
}

pub(super) struct World {
    pub(super) store: MemoryStore,
    pub(super) receiver: Arc<Receiver>,
    clock: Arc<TestClock>,
    segments: u64,
}

pub(super) struct Agent {
    pub(super) shards: Shards,
    group: Group,
    lease: Held,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            store: MemoryStore::default(),
            receiver: Arc::default(),
            clock: Arc::new(TestClock::new()),
            segments: 0,
        }
    }

    pub(super) async fn agent(&self, seed: u64) -> Agent {
        self.agent_with(seed, Limits::default()).await
    }

    pub(super) async fn agent_with(&self, seed: u64, limits: Limits) -> Agent {
        let group = Group::default();
        let store: Arc<MemoryStore> = Arc::new(self.store.clone());
        let grant = store.grant(Duration::from_secs(1_000_000)).await.unwrap();
        let suspender = crate::suspension::Suspender::spawn(&group, store.clone(), self.clock.clone());
        let deps = Deps {
            store: store.clone(),
            agent: AgentId::new(&format!("agent-{seed}")).unwrap(),
            sender: self.receiver.clone(),
            catalog: Catalog::spawn(&group, store.clone()),
            clock: self.clock.clone(),
            entropy: Arc::new(SystemEntropy::seeded(seed)),
            counters: Arc::default(),
            history: Arc::default(),
            suspender,
            commands: crate::command::Commands::spawn(&group, store.clone()),
        };
        Agent {
            shards: Shards::new(deps, limits, &group),
            group,
            lease: Held::new(grant.id, Instant::now() + Duration::from_secs(1_000_000)),
        }
    }

    pub(super) async fn put_webhook(&self, webhook: &Webhook) -> Revision {
        let key = key::webhook(&webhook.account, &webhook.id);
        self.put(key, stored::encode_webhook(webhook)).await
    }

    pub(super) async fn put(&self, key: Key, value: bytes::Bytes) -> Revision {
        let write = Write {
            guards: Vec::new(),
            ops: vec![Op::put(key, value)],
        };
        self.write(write).await
    }

    pub(super) async fn write(&self, write: Write) -> Revision {
        // Faults are for the agent's writes only: by the time this returns, this write is in.
        loop {
            if let Ok(revision) = self.store.write(write.clone()).await {
                return revision;
            }
        }
    }

    /// Publishes one segment.
    async fn publish(&mut self, shard: ShardId, segment: Segment) -> Revision {
        self.segments += 1;
        let key = key::segment(shard, "publisher", self.segments);
        self.put(key, stored::pack(segment)).await
    }

    /// Publishes `count` events for all `webhooks`, in one segment, named after `name`.
    pub(super) async fn publish_some(
        &mut self,
        shard: ShardId,
        name: &str,
        count: usize,
        webhooks: &[&str],
        at_least: Revision,
    ) {
        let now = self.clock.now();
        let events = (0..count)
            .map(|number| event(&format!("{name}-{number}"), now))
            .collect();
        let webhooks: Vec<(&str, u32)> = webhooks.iter().map(|id| (*id, 1)).collect();
        self.publish(shard, segment(events, &webhooks, at_least)).await;
    }

    pub(super) async fn keys(&self, prefix: &Key) -> Vec<String> {
        let (entries, _) = list_all(&self.store, prefix, true).await.unwrap();
        entries.into_iter().map(|entry| entry.key.as_str().to_owned()).collect()
    }

    /// Everything that is still to be done in a shard.
    pub(super) async fn left(&self, shard: ShardId) -> Vec<String> {
        let mut left = self.keys(&key::queue(shard)).await;
        left.extend(self.keys(&key::parked(shard)).await);
        let (progress, _) = self.store.get(&key::progress(shard)).await.unwrap();
        let progress = progress.map(|entry| stored::decode_progress(entry.value).unwrap());
        let segments = progress.unwrap_or_default().segments.into_keys();
        left.extend(segments.map(|key| key.as_str().to_owned()));
        left
    }

    /// Says how many shards there are, without which no history is kept.
    async fn with_history(&self) {
        let cell = pb::Cell {
            version: 1,
            shard_count: 64,
            ..pb::Cell::default()
        };
        self.put(key::cell(), stored::encode(&cell)).await;
    }

    /// What the history of a shard tells: of each event and attempt, what became of the delivery.
    async fn told(&self, shard: ShardId) -> Vec<(String, u32, Fate)> {
        let (entries, _) = list_all(&self.store, &key::history(shard), false).await.unwrap();
        let mut told = Vec::new();
        for entry in entries {
            let chapter = stored::unpack_history(entry.value).unwrap();
            for (entry, events) in chapter.iter() {
                let number = entry.attempt.as_ref().map_or(0, |attempt| attempt.number);
                let events = events.iter();
                told.extend(events.map(|carried| (carried.event.to_string(), number, carried.fate.clone())));
            }
        }
        told
    }

    pub(super) async fn eventually(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(400);
        while !holds().await {
            assert!(Instant::now() < deadline, "never came true: {what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) async fn done(&self, shard: ShardId) {
        self.eventually("nothing is left", async || self.left(shard).await.is_empty())
            .await;
    }
}

impl Agent {
    /// Takes a shard, whoever had it.
    pub(super) async fn take(&self, world: &World, shard: ShardId) -> Box<dyn Running> {
        let key = key::owner(shard);
        world
            .write(Write {
                guards: Vec::new(),
                ops: vec![Op::delete(key.clone())],
            })
            .await;
        let put = Op::put_leased(key, "", self.lease.id());
        let write = Write {
            guards: Vec::new(),
            ops: vec![put],
        };
        let epoch = world.write(write).await;
        self.shards.start(Tenure {
            shard,
            epoch,
            lease: self.lease.clone(),
        })
    }

    /// As a crash: nothing more is sent or written.
    pub(super) async fn die(self) {
        self.lease.lose();
        self.group.shut_down(Duration::ZERO).await;
    }
}

pub(super) const SHARD: ShardId = ShardId(7);

fn failed() -> Outcome {
    Outcome::Failed {
        reason: Reason::Status,
        status: Some(500),
        retry_after: None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_delivered_once_and_nothing_of_it_stays_in_the_store() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    world.put_webhook(&webhook("b")).await;
    world.publish_some(SHARD, "before", 10, &["a", "b"], at_least).await;
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    for number in 0..20 {
        world
            .publish_some(SHARD, &format!("s{number}"), 10, &["a", "b"], at_least)
            .await;
    }
    world.done(SHARD).await;
    let received = world.receiver.received();
    assert_eq!(received.len(), 21 * 10 * 2);
    assert!(received.values().all(|times| *times == 1));
    assert_eq!(agent.shards.loaded_bytes(), 0);
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_was_down_gets_everything_once_it_is_back_and_the_event_info_never_changes() {
    let mut world = World::new();
    let mut config = webhook("a");
    config.retry.max_attempts = None;
    let at_least = world.put_webhook(&config).await;
    let clock = world.clock.clone();
    let back = world.clock.now() + Duration::from_secs(100);
    world.receiver.answers(move |_| {
        let outcome = if clock.now() < back { failed() } else { DELIVERED };
        (Duration::from_millis(5), outcome)
    });
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    for number in 0..10 {
        world
            .publish_some(SHARD, &format!("s{number}"), 30, &["a"], at_least)
            .await;
    }
    world.done(SHARD).await;
    let received = world.receiver.received();
    assert_eq!(received.len(), 300);
    assert!(received.values().all(|times| *times == 1));
    let mut infos: BTreeMap<String, String> = BTreeMap::new();
    for (_, event, _, info) in &*world.receiver.begun.lock().unwrap() {
        assert_eq!(infos.entry(event.clone()).or_insert_with(|| info.clone()), info);
        assert!(info.contains("-000007-"), "{info}");
    }
    assert_eq!(infos.values().collect::<std::collections::BTreeSet<_>>().len(), 300);
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_tried_often_enough_becomes_a_dead_letter_with_its_last_status() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    world.receiver.answers(|_| (Duration::ZERO, failed()));
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    world.publish_some(SHARD, "e", 3, &["a"], at_least).await;
    world.done(SHARD).await;
    assert_eq!(world.receiver.attempts(), 15);
    let (dead, _) = list_all(&world.store, &key::dead(SHARD), false).await.unwrap();
    let mut letters = 0;
    for entry in dead {
        assert!(key::parse_dead(&entry.key).is_some());
        for target in stored::unpack(entry.value).unwrap().targets {
            for delivery in target.deliveries {
                letters += 1;
                assert_eq!(delivery.state.attempts, 5);
                assert_eq!(delivery.state.reason, "STATUS");
                assert_eq!(delivery.state.status, Some(500));
            }
        }
    }
    assert_eq!(letters, 3);
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn a_final_failure_makes_a_dead_letter_of_each_event_of_its_request_at_once() {
    let mut world = World::new();
    let mut config = webhook("a");
    config.retry.never_retry = vec![Final::ServerError];
    config.batching.mode = Mode::Batch;
    config.batching.max_delay = Some(Duration::from_secs(1));
    let at_least = world.put_webhook(&config).await;
    world.receiver.answers(|_| (Duration::ZERO, failed()));
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    world.publish_some(SHARD, "e", 3, &["a"], at_least).await;
    world.done(SHARD).await;
    assert_eq!(world.receiver.attempts(), 1);
    let (dead, _) = list_all(&world.store, &key::dead(SHARD), false).await.unwrap();
    let segments = dead.into_iter().map(|entry| stored::unpack(entry.value).unwrap());
    let targets = segments.flat_map(|segment| segment.targets);
    let states = targets.flat_map(|target| target.deliveries.into_iter().map(|delivery| delivery.state));
    let letters: Vec<_> = states
        .map(|state| (state.attempts, state.reason, state.status))
        .collect();
    assert_eq!(letters, vec![(1, "STATUS".to_owned(), Some(500)); 3]);
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_nothing_is_lost_and_only_what_was_under_way_or_unrecorded_is_repeated() {
    for crash_after in [1, 3, 7, 20, 55] {
        let mut world = World::new();
        let at_least = world.put_webhook(&webhook("a")).await;
        world.put_webhook(&webhook("b")).await;
        let first = world.agent(1).await;
        let _running = first.take(&world, SHARD).await;
        for number in 0..30 {
            world
                .publish_some(SHARD, &format!("s{number}"), 5, &["a", "b"], at_least)
                .await;
        }
        tokio::time::sleep(Duration::from_millis(crash_after)).await;
        first.die().await;
        let begun = world.receiver.attempts();
        let second = world.agent(2).await;
        let running = second.take(&world, SHARD).await;
        world.done(SHARD).await;
        let received = world.receiver.received();
        assert_eq!(received.len(), 300, "crash after {crash_after} ms");
        let repeated = received.values().filter(|times| **times > 1).count();
        // Two lanes with four attempts of 5 ms each: at most those under way, and those that ended in the 10 ms between two transactions.
        assert!(
            repeated <= 8 + 16,
            "{repeated} of {begun} were repeated after {crash_after} ms"
        );
        running.release().await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_told_of_once_with_what_became_of_each_delivery() {
    let mut world = World::new();
    world.with_history().await;
    let at_least = world.put_webhook(&webhook("a")).await;
    world.receiver.answers(|(_, event, number, _)| {
        let taken = event == "e-0" && *number == 3;
        (Duration::from_millis(5), if taken { DELIVERED } else { failed() })
    });
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    world.publish_some(SHARD, "e", 2, &["a"], at_least).await;
    world.done(SHARD).await;
    running.release().await;
    let told = world.told(SHARD).await;
    let of = |event: &str| {
        let own = told.iter().filter(|(id, ..)| id == event);
        own.map(|(_, number, fate)| {
            let waits = matches!(fate, Fate::Waiting(until) if *until > BEGIN);
            (*number, if waits { None } else { Some(fate.clone()) })
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(of("e-0"), [(1, None), (2, None), (3, Some(Fate::Delivered))]);
    let dead = Some(Fate::Dead("STATUS".into()));
    assert_eq!(of("e-1"), [(1, None), (2, None), (3, None), (4, None), (5, dead)]);
}

#[tokio::test(start_paused = true)]
async fn an_end_is_told_of_once_although_a_crash_makes_the_receiver_see_it_twice() {
    for crash_after in [300, 700, 1_500] {
        let mut world = World::new();
        world.with_history().await;
        let at_least = world.put_webhook(&webhook("a")).await;
        world
            .receiver
            .answers(move |_| (Duration::from_millis(crash_after / 10), DELIVERED));
        let first = world.agent(1).await;
        let _running = first.take(&world, SHARD).await;
        world.publish_some(SHARD, "e", 100, &["a"], at_least).await;
        tokio::time::sleep(Duration::from_millis(crash_after + 1)).await;
        first.die().await;
        let before = world.told(SHARD).await.len();
        let second = world.agent(2).await;
        let running = second.take(&world, SHARD).await;
        world.done(SHARD).await;
        running.release().await;
        let mut ends = BTreeMap::new();
        for (event, _, fate) in world.told(SHARD).await {
            assert_eq!(fate, Fate::Delivered);
            *ends.entry(event).or_insert(0) += 1;
        }
        assert!(ends.values().all(|times| *times == 1), "crash after {crash_after} ms");
        // What the first one had recorded and not yet told of is missing: some hundred milliseconds of four attempts at a time.
        assert!(
            ends.len() >= 60,
            "{} after {crash_after} ms, {before} before",
            ends.len()
        );
    }
}
