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
}

#[async_trait]
impl Sender for Receiver {
    async fn send(&self, attempt: Attempt) -> Made {
        let sent = &attempt.events[0];
        let call = (
            attempt.webhook.id.as_str().to_owned(),
            attempt.id.clone(),
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
        self.lease.lost().cancel();
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

#[tokio::test(start_paused = true)]
async fn a_worker_whose_epoch_is_over_writes_nothing_and_says_so() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    world.receiver.answers(|_| (Duration::from_secs(1), failed()));
    let first = world.agent(1).await;
    let running = first.take(&world, SHARD).await;
    world.publish_some(SHARD, "e", 3, &["a"], at_least).await;
    world
        .eventually("attempts begin", async || world.receiver.attempts() == 3)
        .await;
    // Somebody else takes the shard while the attempts are under way.
    world
        .write(Write {
            guards: Vec::new(),
            ops: vec![Op::delete(key::owner(SHARD))],
        })
        .await;
    world.put(key::owner(SHARD), "".into()).await;
    let before = world.left(SHARD).await;
    let fenced = running.fenced();
    tokio::time::timeout(Duration::from_secs(60), fenced.cancelled())
        .await
        .unwrap();
    assert_eq!(world.left(SHARD).await, before);
    running.release().await;
    assert_eq!(first.shards.loaded_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_of_one_shard_does_not_keep_the_others_from_being_written() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    let agent = world.agent(1).await;
    let (stale, good) = (ShardId(1), ShardId(2));
    let lost = agent.take(&world, stale).await;
    let kept = agent.take(&world, good).await;
    world.publish_some(stale, "x", 5, &["a"], at_least).await;
    world.publish_some(good, "y", 5, &["a"], at_least).await;
    world
        .write(Write {
            guards: Vec::new(),
            ops: vec![Op::delete(key::owner(stale))],
        })
        .await;
    world.done(good).await;
    tokio::time::timeout(Duration::from_secs(60), lost.fenced().cancelled())
        .await
        .unwrap();
    assert!(!kept.fenced().is_cancelled());
    assert_eq!(world.keys(&key::queue(stale)).await.len(), 1);
    kept.release().await;
    lost.release().await;
}

#[tokio::test(start_paused = true)]
async fn faults_of_the_store_lose_nothing_and_repeat_nothing() {
    for seed in 0..10_u64 {
        let mut world = World::new();
        let at_least = world.put_webhook(&webhook("a")).await;
        let mut config = webhook("b");
        config.retry.max_attempts = None;
        world.put_webhook(&config).await;
        // The receiver refuses the first attempt of every event for b, in a way that says nothing about the next event.
        world.receiver.answers(|(webhook, _, number, _)| {
            let outcome = if webhook == "b" && *number == 1 {
                Outcome::Failed {
                    reason: Reason::Status,
                    status: Some(404),
                    retry_after: None,
                }
            } else {
                DELIVERED
            };
            (Duration::from_millis(3), outcome)
        });
        let agent = world.agent(seed).await;
        let running = agent.take(&world, SHARD).await;
        let mut state = seed + 1;
        world.store.inject(Box::new(move |write| {
            // Only the ledger's writes.
            if !write
                .guards
                .iter()
                .any(|guard| guard.key().as_str().starts_with("owners/"))
            {
                return None;
            }
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            match (state >> 33) % 7 {
                0 => Some(Fault::LostAnswer),
                1 => Some(Fault::LostRequest),
                2 => Some(Fault::Away),
                3 if seed % 2 == 0 => Some(Fault::Full),
                _ => None,
            }
        }));
        for number in 0..20 {
            world
                .publish_some(SHARD, &format!("s{number}"), 5, &["a", "b"], at_least)
                .await;
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        world.done(SHARD).await;
        let received = world.receiver.received();
        assert_eq!(received.len(), 200, "seed {seed}");
        assert!(received.values().all(|times| *times == 1), "seed {seed}: {received:?}");
        running.release().await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_full_deliveries_go_on_up_to_a_limit_and_what_is_not_counted_is_not_deleted() {
    let mut world = World::new();
    // Few enough for each that no lane overflows.
    let names = ["a", "b", "c", "d"];
    let mut at_least = Revision::default();
    for name in names {
        at_least = world.put_webhook(&webhook(name)).await;
    }
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    world.store.inject(Box::new(|write| {
        let published = write.guards.is_empty();
        (!published).then_some(Fault::Full)
    }));
    for number in 0..32 {
        world
            .publish_some(SHARD, &format!("s{number}"), 25, &names, at_least)
            .await;
    }
    world
        .eventually("no more than the limit is unwritten", async || {
            world.receiver.received().len() > UNWRITTEN_LIMIT
        })
        .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let received = world.receiver.received().len();
    assert!(received <= UNWRITTEN_LIMIT + 200, "{received}");
    assert_eq!(world.keys(&key::queue(SHARD)).await.len(), 32);
    world.store.heal();
    world.done(SHARD).await;
    let received = world.receiver.received();
    assert_eq!(received.len(), 3200);
    assert!(received.values().all(|times| *times == 1));
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn a_release_waits_for_what_is_under_way_and_the_next_owner_repeats_nothing() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    world.receiver.answers(|_| (Duration::from_millis(300), DELIVERED));
    let first = world.agent(1).await;
    let running = first.take(&world, SHARD).await;
    world.publish_some(SHARD, "e", 20, &["a"], at_least).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let started = Instant::now();
    running.release().await;
    assert!(started.elapsed() < Duration::from_millis(900));
    assert_eq!(world.receiver.received().len(), 8);
    let second = world.agent(2).await;
    let running = second.take(&world, SHARD).await;
    world.done(SHARD).await;
    let received = world.receiver.received();
    assert_eq!(received.len(), 20);
    assert!(received.values().all(|times| *times == 1));
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn a_release_cuts_what_takes_longer_than_the_grace() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    world.receiver.answers(|_| (Duration::from_secs(3600), DELIVERED));
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    world.publish_some(SHARD, "e", 1, &["a"], at_least).await;
    world
        .eventually("the attempt begins", async || world.receiver.attempts() == 1)
        .await;
    let started = Instant::now();
    running.release().await;
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(world.keys(&key::queue(SHARD)).await.len(), 1);
    assert_eq!(
        agent
            .shards
            .counters()
            .in_flight
            .load(std::sync::atomic::Ordering::Relaxed),
        0
    );
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_worker_cuts_its_attempts_and_writes_nothing() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    world.receiver.answers(|_| (Duration::from_secs(1), DELIVERED));
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    world.publish_some(SHARD, "e", 4, &["a"], at_least).await;
    world
        .eventually("the attempts begin", async || world.receiver.attempts() == 4)
        .await;
    running.abandon().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(world.receiver.received().is_empty());
    assert_eq!(world.left(SHARD).await.len(), 1);
    assert_eq!(agent.shards.loaded_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_lost_cuts_every_attempt() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    world.receiver.answers(|_| (Duration::from_secs(1), DELIVERED));
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    world.publish_some(SHARD, "e", 4, &["a"], at_least).await;
    world
        .eventually("the attempts begin", async || world.receiver.attempts() == 4)
        .await;
    agent.lease.lost().cancel();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(world.receiver.received().is_empty());
    running.abandon().await;
}

#[tokio::test(start_paused = true)]
async fn a_retired_webhook_gets_nothing_until_it_is_active_again() {
    let mut world = World::new();
    let mut config = webhook("a");
    let at_least = world.put_webhook(&config).await;
    world.receiver.answers(|_| (Duration::from_millis(100), DELIVERED));
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    world.publish_some(SHARD, "e", 50, &["a"], at_least).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    config.active = false;
    world.put_webhook(&config).await;
    world
        .eventually("the rest is parked", async || {
            !world.keys(&key::parked(SHARD)).await.is_empty() && world.keys(&key::queue(SHARD)).await.is_empty()
        })
        .await;
    let before = world.receiver.attempts();
    assert!(before < 50);
    world.publish_some(SHARD, "late", 5, &["a"], at_least).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.receiver.attempts(), before);
    assert_eq!(agent.shards.loaded_bytes(), 0);
    // A new owner holds it, too.
    running.release().await;
    let second = world.agent(2).await;
    let running = second.take(&world, SHARD).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.receiver.attempts(), before);
    config.active = true;
    world.put_webhook(&config).await;
    world.done(SHARD).await;
    assert_eq!(world.receiver.received().len(), 55);
    assert!(world.receiver.received().values().all(|times| *times == 1));
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn deliveries_of_a_deleted_webhook_are_dropped_wherever_they_are() {
    let mut world = World::new();
    let config = webhook("a");
    let at_least = world.put_webhook(&config).await;
    world.receiver.answers(|_| (Duration::from_millis(10), failed()));
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    world.publish_some(SHARD, "e", 50, &["a"], at_least).await;
    world
        .eventually("some are parked", async || {
            !world.keys(&key::parked(SHARD)).await.is_empty()
        })
        .await;
    let key = key::webhook(&config.account, &config.id);
    world
        .write(Write {
            guards: Vec::new(),
            ops: vec![Op::delete(key)],
        })
        .await;
    // A later one of the same name gets none of them.
    let mut next = webhook("a");
    next.uid = uid(2);
    world.put_webhook(&next).await;
    world.receiver.answers(|_| (Duration::from_millis(10), DELIVERED));
    world.done(SHARD).await;
    assert!(world.receiver.received().is_empty());
    let counters = agent.shards.counters();
    assert_eq!(counters.dropped.load(std::sync::atomic::Ordering::Relaxed), 50);
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_cannot_be_read_stays_in_the_store_and_holds_up_nothing() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    world
        .put(key::segment(SHARD, "publisher", 77), "not a segment".into())
        .await;
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    world.put(key::segment(SHARD, "publisher", 78), "nor this".into()).await;
    world.publish_some(SHARD, "e", 5, &["a"], at_least).await;
    world
        .eventually("the others are done", async || world.left(SHARD).await.len() == 2)
        .await;
    assert_eq!(world.receiver.received().len(), 5);
    running.release().await;
    assert_eq!(world.keys(&key::queue(SHARD)).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_slow_receiver_does_not_hold_up_another_and_memory_stays_within_the_limit() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("slow")).await;
    world.put_webhook(&webhook("quick")).await;
    world.receiver.answers(|(webhook, ..)| {
        let slow = webhook == "slow";
        (Duration::from_millis(if slow { 15_000 } else { 5 }), DELIVERED)
    });
    let limits = Limits {
        bytes: 256 << 10,
        ..Limits::default()
    };
    let agent = world.agent_with(1, limits).await;
    let running = agent.take(&world, SHARD).await;
    let started = Instant::now();
    for number in 0..200 {
        world
            .publish_some(SHARD, &format!("s{number}"), 10, &["slow", "quick"], at_least)
            .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(
            agent.shards.loaded_bytes() <= 2 * limits.bytes,
            "{}",
            agent.shards.loaded_bytes()
        );
    }
    let quick = || {
        world
            .receiver
            .received()
            .keys()
            .filter(|(webhook, _)| webhook == "quick")
            .count()
    };
    world
        .eventually("all of the quick one's are delivered", async || quick() == 2000)
        .await;
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    // The slow one's wait in packed segments: its lane keeps few of the queue's from being deleted.
    world
        .eventually("most of the queue is packed", async || {
            world.keys(&key::queue(SHARD)).await.len() <= crate::shard::lane::LANE_SOURCES + 4
        })
        .await;
    world.receiver.answers(|_| (Duration::from_millis(5), DELIVERED));
    world.done(SHARD).await;
    assert_eq!(world.receiver.received().len(), 4000);
    assert!(world.receiver.received().values().all(|times| *times == 1));
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_deliveries_through_eight_shards_take_few_transactions() {
    let mut world = World::new();
    let mut config = webhook("a");
    config.max_in_flight = std::num::NonZeroU32::new(64);
    let at_least = world.put_webhook(&config).await;
    let agent = world.agent(1).await;
    let mut running = Vec::new();
    for shard in 0..8 {
        running.push(agent.take(&world, ShardId(shard)).await);
    }
    for number in 0..125 {
        for shard in 0..8 {
            world
                .publish_some(ShardId(shard), &format!("s{shard}-{number}"), 10, &["a"], at_least)
                .await;
        }
    }
    for shard in 0..8 {
        world.done(ShardId(shard)).await;
    }
    assert_eq!(world.receiver.received().len(), 10_000);
    let transactions = agent
        .shards
        .counters()
        .ledger_transactions
        .load(std::sync::atomic::Ordering::Relaxed);
    // The store in memory answers at once, so that nothing is grouped that does not end at the same moment.
    assert!(transactions < 400, "{transactions}");
    for running in running {
        running.release().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_segment_of_a_later_version_is_left_as_it_is_for_an_agent_that_can_read_it() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    world.publish_some(SHARD, "later", 3, &["a"], at_least).await;
    let key = Key::from_stored(&world.keys(&key::queue(SHARD)).await[0]);
    let readable = world.store.get(&key).await.unwrap().0.unwrap().value;
    let mut packed: pb::Packed = stored::decode(readable.clone()).unwrap();
    packed.version += 1;
    let later = stored::encode(&packed);
    world.put(key.clone(), later.clone()).await;
    let first = world.agent(1).await;
    let running = first.take(&world, SHARD).await;
    world.publish_some(SHARD, "now", 3, &["a"], at_least).await;
    world
        .eventually("what can be read to be delivered and over", async || {
            world.keys(&key::queue(SHARD)).await.len() == 1
        })
        .await;
    assert_eq!(world.receiver.received().len(), 3);
    running.release().await;
    let kept = world.store.get(&key).await.unwrap().0.unwrap().value;
    assert_eq!(kept, later);
    // As if the next agent were of the later release.
    world.put(key, readable).await;
    let second = world.agent(2).await;
    let running = second.take(&world, SHARD).await;
    world.done(SHARD).await;
    let received = world.receiver.received();
    assert_eq!(received.len(), 6);
    assert!(received.values().all(|times| *times == 1));
    running.release().await;
}
