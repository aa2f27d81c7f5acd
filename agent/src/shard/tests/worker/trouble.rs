//! Epochs that end, stores and receivers that misbehave, webhooks that change.

use super::*;

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
    let told = agent
        .shards
        .counters()
        .unwritten
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(usize::try_from(told).unwrap(), received);
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
    agent.lease.lose();
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

#[tokio::test(start_paused = true)]
async fn receivers_that_never_answer_leave_room_for_those_that_do() {
    let (mut world, silent, at_least) = super::limits::world_with_silent().await;
    let limits = Limits {
        attempts: 12,
        reserved: 2,
        ..Limits::default()
    };
    let agent = world.agent_with(1, limits).await;
    let running = agent.take(&world, SHARD).await;
    world.publish_some(SHARD, "first", 1, &["well"], at_least).await;
    world.done(SHARD).await;
    let silent: Vec<&str> = silent.iter().map(String::as_str).collect();
    world.publish_some(SHARD, "noise", 3, &silent, at_least).await;
    world
        .eventually("the silent have all that they may have", async || {
            world.receiver.attempts() == 11
        })
        .await;
    world.publish_some(SHARD, "next", 100, &["well"], at_least).await;
    let began = Instant::now();
    world
        .eventually("the other's events arrive", async || {
            world.receiver.received().len() == 101
        })
        .await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(world.receiver.attempts(), 111);
    let held_back = &agent.shards.counters().reserved_full;
    assert!(held_back.load(std::sync::atomic::Ordering::Relaxed) > 0);
    drop(running);
}
