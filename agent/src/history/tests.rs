//! Tests of the history as its task writes it: what it tells comes after the ledger, and in nobody's way.

use std::sync::Arc;
use std::time::Duration;

use postrider_common::id::{AccountId, EventId, EventName, Uid, WebhookId};
use postrider_common::key;
use postrider_common::model::history::{Attempt, Carried, Chapter, Entry, Fate};
use postrider_common::shard::ShardId;
use postrider_common::store::lease::Held;
use postrider_common::store::memory::{Fault, MemoryStore};
use postrider_common::store::{Op, Revision, Store as _, Write, list_all};
use postrider_common::task::Group;
use postrider_common::time::{Clock, Timestamp};
use postrider_common::wire::stored;
use postrider_proto::stored as pb;
use tokio::time::Instant;

use super::*;

const BEGIN: Timestamp = Timestamp::from_millis(1_700_000_000_000);

struct TestClock(Instant);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        BEGIN + self.0.elapsed()
    }
}

struct World {
    store: MemoryStore,
    group: Group,
    history: History,
    counters: Arc<Counters>,
}

impl World {
    async fn new(limits: Limits) -> Self {
        let store = MemoryStore::default();
        let cell = pb::Cell {
            version: 1,
            shard_count: 4,
            ..pb::Cell::default()
        };
        put(&store, key::cell(), stored::encode(&cell)).await;
        let (group, counters) = (Group::default(), Arc::<Counters>::default());
        let clock = Arc::new(TestClock(Instant::now()));
        let history = History::spawn(&group, Arc::new(store.clone()), clock, counters.clone(), limits);
        Self {
            store,
            group,
            history,
            counters,
        }
    }

    async fn take(&self, shard: u16) -> Tenure {
        let grant = self.store.grant(Duration::from_secs(1_000_000)).await.unwrap();
        let write = Write {
            guards: Vec::new(),
            ops: vec![Op::delete(key::owner(ShardId(shard)))],
        };
        self.store.write(write).await.unwrap();
        Tenure {
            shard: ShardId(shard),
            epoch: put(&self.store, key::owner(ShardId(shard)), "".into()).await,
            lease: Held::new(grant.id, Instant::now() + Duration::from_secs(1_000_000)),
        }
    }

    /// Ids of all events that the history of a shard tells of.
    async fn told(&self, shard: u16) -> Vec<String> {
        let (entries, _) = list_all(&self.store, &key::history(ShardId(shard)), false)
            .await
            .unwrap();
        let chapters = entries
            .into_iter()
            .map(|entry| stored::unpack_history(entry.value).unwrap());
        let ids = chapters.flat_map(|chapter| {
            let events = chapter.iter().flat_map(|(_, events)| events.to_vec());
            events.map(|carried| carried.event.to_string()).collect::<Vec<_>>()
        });
        ids.collect()
    }

    fn dropped(&self) -> u64 {
        self.counters.dropped.load(Ordering::Relaxed)
    }
}

async fn put(store: &MemoryStore, key: key::Key, value: bytes::Bytes) -> Revision {
    let write = Write {
        guards: Vec::new(),
        ops: vec![Op::put(key, value)],
    };
    store.write(write).await.unwrap()
}

fn chapter(ids: impl IntoIterator<Item = String>) -> Chapter {
    let mut chapter = Chapter::default();
    for id in ids {
        let of = (
            AccountId::new("a").unwrap(),
            WebhookId::new("w").unwrap(),
            Uid::new("00000000-0000-7000-8000-000000000001").unwrap(),
        );
        let attempt = Attempt {
            number: 1,
            ..Attempt::default()
        };
        chapter.open(Entry::new(of, BEGIN, Some(attempt)));
        chapter.carry(Carried {
            event: EventId::new(&id).unwrap(),
            name: EventName::new("E").unwrap(),
            timestamp: BEGIN,
            accept_time: BEGIN,
            fate: Fate::Delivered,
        });
    }
    chapter
}

fn one(id: &str) -> Chapter {
    chapter([id.to_owned()])
}

#[tokio::test(start_paused = true)]
async fn entries_wait_for_the_records_that_go_with_them_and_are_written_soon_after() {
    let world = World::new(Limits::default()).await;
    let written = Written::of(0, 0);
    let journal = world.history.open(&world.take(1).await, written.clone());
    journal.add(&mut one("first"));
    written.hand(2);
    journal.add(&mut one("second"));
    tokio::time::sleep(SOONER).await;
    assert_eq!(world.told(1).await, ["first"]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.told(1).await, ["first"]);
    written.write(1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.told(1).await, ["first"]);
    written.write(1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.told(1).await, ["first", "second"]);
    assert_eq!(world.dropped(), 0);
}

/// A little more than the shortest time that an entry waits, after a second of quiet.
const SOONER: Duration = Duration::from_millis(1_300);

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_handed_over_leaves_nothing_untold() {
    let world = World::new(Limits::default()).await;
    for shard in 0..4 {
        let journal = world.history.open(&world.take(shard).await, Written::of(0, 0));
        journal.add(&mut one("last"));
        let begun = Instant::now();
        journal.close().await;
        assert!(begun.elapsed() < Duration::from_millis(10), "{:?}", begun.elapsed());
        assert_eq!(world.told(shard).await, ["last"]);
    }
    // The task ends: it has no open journal.
    world.group.shut_down(Duration::from_secs(1)).await;
    assert_eq!(world.dropped(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_has_lost_a_shard_tells_nothing_of_it_and_keeps_no_other_from_being_told() {
    let world = World::new(Limits::default()).await;
    let (lost, kept) = (world.take(1).await, world.take(2).await);
    let journals = [&lost, &kept].map(|tenure| world.history.open(tenure, Written::of(0, 0)));
    world.take(1).await;
    journals.iter().for_each(|journal| journal.add(&mut one("e")));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(world.told(1).await.is_empty());
    assert_eq!(world.told(2).await, ["e"]);
    assert_eq!(world.dropped(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_take_is_dropped_and_counted_and_the_rest_goes_on() {
    let world = World::new(Limits::default()).await;
    let journal = world.history.open(&world.take(1).await, Written::of(0, 0));
    journal.add(&mut one("listed"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut faults = vec![Fault::LostRequest];
    world.store.inject(Box::new(move |_| faults.pop()));
    journal.add(&mut one("lost"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    journal.add(&mut one("told"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.told(1).await, ["listed", "told"]);
    assert_eq!(world.dropped(), 1);
}

#[tokio::test(start_paused = true)]
async fn more_than_may_wait_is_dropped_and_counted() {
    let world = World::new(Limits::default()).await;
    let tenure = world.take(1).await;
    let journal = world.history.open(&tenure, Written::of(1, 0));
    let size = one("e").size();
    let many = WAITING_LIMIT / size / 100;
    for _ in 0..101 {
        journal.add(&mut chapter((0..many).map(|number| number.to_string())));
    }
    assert!(world.dropped() >= many as u64 && world.dropped() <= 3 * many as u64);
    drop(journal);
    tokio::time::sleep(Duration::from_secs(2)).await;
    // What waited for the ledger is forgotten with its shard.
    assert_eq!(world.dropped(), 101 * many as u64);
    let journal = world.history.open(&tenure, Written::of(0, 0));
    journal.add(&mut one("e"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.told(1).await, ["e"]);
}

#[tokio::test(start_paused = true)]
async fn history_stays_within_its_bytes_and_its_time_whoever_wrote_it() {
    let limits = Limits {
        bytes: 4 * 20_000,
        retention: Duration::from_secs(3_600),
    };
    let world = World::new(limits).await;
    for round in 0..3 {
        let journal = world.history.open(&world.take(1).await, Written::of(0, 0));
        for second in 0..100 {
            journal.add(&mut chapter(
                (0..8).map(|number| format!("e-{round}-{second}-{number}")),
            ));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        journal.close().await;
        let (entries, _) = list_all(&world.store, &key::history(ShardId(1)), false).await.unwrap();
        let bytes: usize = entries.iter().map(|entry| entry.value.len()).sum();
        assert!((5_000..20_000).contains(&bytes), "{bytes}");
        // A busy shard tells of something now and then.
        let last = format!("e-{round}-9");
        assert!(world.told(1).await.iter().any(|id| id.starts_with(&last)));
    }
    assert!(world.counters.left_out.load(Ordering::Relaxed) > 0);
    let journal = world.history.open(&world.take(1).await, Written::of(0, 0));
    journal.add(&mut one("new"));
    // An hour later, though nothing happens, all of it is gone.
    tokio::time::sleep(Duration::from_secs(2 * 3_600)).await;
    assert!(world.told(1).await.is_empty());
    drop(journal);
}

#[tokio::test(start_paused = true)]
async fn without_bytes_or_time_there_is_no_history() {
    for limits in [
        Limits {
            bytes: 0,
            ..Limits::default()
        },
        Limits {
            retention: Duration::ZERO,
            ..Limits::default()
        },
    ] {
        let world = World::new(limits).await;
        let journal = world.history.open(&world.take(1).await, Written::of(0, 0));
        let mut entries = one("e");
        journal.add(&mut entries);
        assert!(entries.is_empty());
        journal.close().await;
        assert!(world.told(1).await.is_empty());
    }
}
