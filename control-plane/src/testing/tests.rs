//! Tests of tests: which agent is asked, what the caller gets, and that nothing stays behind.

use futures_util::future::join_all;
use postrider_common::entropy::SystemEntropy;
use postrider_common::id::{EventId, EventName};
use postrider_common::model::segment::Event;
use postrider_common::model::testing::{Phases, TestOutcome};
use postrider_common::store::memory::MemoryStore;
use postrider_common::store::{Store as _, list_all};
use postrider_common::time::{SystemClock, Timestamp};
use postrider_common::wire::stored::{decode_test, encode, encode_transcript};
use postrider_proto::stored as pb;
use tokio::time::Instant;

use super::*;
use crate::catalog::view::tests::webhook;

struct World {
    store: MemoryStore,
    group: Group,
    tests: Tests,
}

/// What an agent does that is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Answers,
    Nothing,
    Dies,
}

impl World {
    fn new(seed: u64) -> Self {
        let (store, group) = (MemoryStore::default(), Group::default());
        let deps = Deps {
            store: Arc::new(store.clone()),
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy::seeded(seed)),
        };
        let tests = Tests::spawn(&group, deps);
        Self { store, group, tests }
    }

    async fn write(&self, op: Op) -> Revision {
        let write = Write {
            guards: Vec::new(),
            ops: vec![op],
        };
        self.store.write(write).await.unwrap()
    }

    async fn agent(&self, name: &str, draining: bool, does: Does) {
        let agent = AgentId::new(name).unwrap();
        let about = pb::Agent {
            draining,
            ..pb::Agent::default()
        };
        self.write(Op::put(key::agent(&agent), encode(&about))).await;
        let store = self.store.clone();
        let (asked, mut asks) = tokio::sync::mpsc::unbounded_channel();
        let prefix = key::tests_of(&agent);
        mirror::spawn(
            &self.group,
            "asked",
            Arc::new(store.clone()),
            prefix,
            false,
            move |update| {
                for entry in entries(update) {
                    let _ = asked.send(entry);
                }
            },
        );
        self.group.spawn("agent", async move {
            while let Some(entry) = asks.recv().await {
                let op = match does {
                    Does::Answers => {
                        decode_test(entry.value).unwrap();
                        let id = key::parse_test(&entry.key).unwrap();
                        let answer = encode_transcript(transcript(&agent));
                        Op::put_leased(key::test_answer(&id), answer, entry.lease.unwrap())
                    }
                    Does::Nothing => continue,
                    Does::Dies => Op::delete(key::agent(&agent)),
                };
                let write = Write {
                    guards: Vec::new(),
                    ops: vec![op],
                };
                store.write(write).await.unwrap();
            }
        });
    }

    async fn make(&self, account: &str) -> Result<Transcript, Error> {
        self.tests.make(test(account)).await
    }

    /// What of tests is in the store.
    async fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for prefix in [Key::from_stored("tests/"), key::test_answers()] {
            let (entries, _) = list_all(&self.store, &prefix, true).await.unwrap();
            left.extend(entries.into_iter().map(|entry| entry.key.to_string()));
        }
        left
    }
}

fn test(account: &str) -> Test {
    let webhook = webhook(account, "w", &["*"]);
    Test {
        event: Event {
            account: webhook.account.clone(),
            id: EventId::new("test_1").unwrap(),
            name: EventName::new("A").unwrap(),
            timestamp: Timestamp::from_millis(1),
            ordering_key: None,
            expire_time: None,
            event_info: None,
            data: Bytes::from_static(b"{}"),
            accept_time: Timestamp::from_millis(1),
            traceparent: None,
            category: postrider_common::model::event_type::Category::default(),
            not_before_time: None,
        },
        webhook,
    }
}

fn transcript(agent: &AgentId) -> Transcript {
    Transcript {
        agent: agent.clone(),
        outcome: TestOutcome::Delivered,
        detail: String::new(),
        start_time: Timestamp::from_millis(1),
        duration: Duration::ZERO,
        phases: Phases::default(),
        resolved: Vec::new(),
        address: None,
        tls: None,
        token: String::new(),
        sent: None,
        answered: None,
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_saw_comes_back_and_nothing_stays_in_the_store() {
    let world = World::new(1);
    world.agent("draining", true, Does::Nothing).await;
    world.agent("alive", false, Does::Answers).await;
    for _ in 0..8 {
        let made = world.make("a").await.unwrap();
        assert_eq!(made.agent.as_str(), "alive");
        assert_eq!(world.left().await, [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn when_an_agent_dies_another_one_is_asked_once() {
    for seed in 0..8 {
        let world = World::new(seed);
        world.agent("mortal", false, Does::Dies).await;
        world.agent("well", false, Does::Answers).await;
        let start = Instant::now();
        assert_eq!(world.make("a").await.unwrap().agent.as_str(), "well");
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(world.left().await, [""; 0]);
    }
    let world = World::new(9);
    for agent in ["a", "b", "c"] {
        world.agent(agent, false, Does::Dies).await;
    }
    assert_eq!(world.make("a").await, Err(Error::Unanswered));
    let alive = list_all(&world.store, &key::agents(), true).await.unwrap().0;
    assert_eq!(alive.len(), 1, "no more than two are asked");
}

#[tokio::test(start_paused = true)]
async fn without_an_agent_that_takes_tests_none_is_made() {
    let world = World::new(1);
    assert_eq!(world.make("a").await, Err(Error::NoAgent));
    world.agent("draining", true, Does::Answers).await;
    assert_eq!(world.make("a").await, Err(Error::NoAgent));
    assert_eq!(world.left().await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_says_nothing_is_waited_for_as_long_as_a_test_may_take() {
    let world = World::new(1);
    world.agent("silent", false, Does::Nothing).await;
    let start = Instant::now();
    assert_eq!(world.make("a").await, Err(Error::Unanswered));
    let (took, least) = (start.elapsed(), DEFAULT_TIMEOUT + TURN + BODY_PATIENCE);
    assert!(took >= least && took < least + 2 * SLACK, "{took:?}");
    assert_eq!(world.left().await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_away_leaves_nothing_behind() {
    let world = World::new(1);
    world.agent("silent", false, Does::Nothing).await;
    let gone = timeout(Duration::from_secs(1), world.make("a")).await;
    assert!(gone.is_err());
    let start = Instant::now();
    while !world.left().await.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(1));
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_account_has_so_many_tests_under_way_and_no_more() {
    let world = World::new(1);
    world.agent("silent", false, Does::Nothing).await;
    let many = join_all((0..MAX_PER_ACCOUNT + 2).map(|_| world.make("a"))).await;
    let refused = many.iter().filter(|made| **made == Err(Error::TooMany)).count();
    assert_eq!(refused, 2);
    assert_eq!(
        world.make("b").await,
        Err(Error::Unanswered),
        "another account is not hindered"
    );
    assert_eq!(world.make("a").await, Err(Error::Unanswered), "places are given back");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_gives_its_tests_up() {
    let world = World::new(1);
    world.agent("silent", false, Does::Nothing).await;
    let stop = async {
        sleep(Duration::from_secs(1)).await;
        world.group.token().cancel();
    };
    let (made, ()) = tokio::join!(world.make("a"), stop);
    assert_eq!(made, Err(Error::Stopping));
    assert_eq!(world.left().await, [""; 0]);
}
