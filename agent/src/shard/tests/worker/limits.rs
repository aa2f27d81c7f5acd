//! What happens at the limits of a lane, of a webhook and of an agent: the rest waits, is told of, and is delivered.

use std::sync::atomic::{AtomicI64, Ordering};

use super::*;

/// Deliveries that are parked in the store.
async fn parked(world: &World) -> usize {
    let (entries, _) = list_all(&world.store, &key::parked(SHARD), false).await.unwrap();
    let count = |entry: &postrider_common::store::Entry| stored::unpack(entry.value.clone()).unwrap().delivery_count();
    entries.iter().map(count).sum()
}

/// An event that takes `bytes`, about.
fn large(id: &str, bytes: usize) -> Arc<postrider_common::model::segment::Event> {
    let mut large = postrider_common::model::segment::Event::clone(&event(id, BEGIN));
    large.data = vec![b'1'; bytes].into();
    Arc::new(large)
}

#[tokio::test(start_paused = true)]
async fn a_webhook_with_more_than_its_room_in_memory_has_the_rest_in_the_store_and_gets_all_of_it_once() {
    // Of small events 1,024 are ready beside the 4 under way; 63 of 64 KiB take 4 MiB, and one more is taken as long as that is not reached.
    for (segments, bytes, in_memory) in [(20, 10, 1_028), (2, 64 << 10, 64)] {
        let mut world = World::new();
        let at_least = world.put_webhook(&webhook("a")).await;
        world.receiver.answers(|_| (Duration::from_secs(60), DELIVERED));
        let agent = world.agent(1).await;
        let running = agent.take(&world, SHARD).await;
        for number in 0..segments {
            let events = (0..100).map(|event| large(&format!("e-{number}-{event}"), bytes));
            world
                .publish(SHARD, segment(events.collect(), &[("a", 1)], at_least))
                .await;
        }
        let all = segments * 100;
        world
            .eventually("the rest is parked", async || all - parked(&world).await <= in_memory)
            .await;
        assert!(agent.shards.counters().parked.load(Ordering::Relaxed) >= (all - in_memory) as u64);
        world.receiver.answers(|_| (Duration::from_millis(5), DELIVERED));
        world.done(SHARD).await;
        let received = world.receiver.received();
        assert_eq!(received.len(), all);
        assert!(received.values().all(|times| *times == 1));
        running.release().await;
    }
}

/// Notes how many attempts are under way at most, each for 50 ms.
fn most_under_way(world: &World, agent: &Agent) -> Arc<AtomicI64> {
    let (most, counters) = (Arc::new(AtomicI64::new(0)), agent.shards.counters().clone());
    let noted = most.clone();
    world.receiver.answers(move |_| {
        noted.fetch_max(counters.in_flight.load(Ordering::Relaxed), Ordering::Relaxed);
        (Duration::from_millis(50), DELIVERED)
    });
    most
}

#[tokio::test(start_paused = true)]
async fn attempts_beyond_those_of_an_agent_wait_are_counted_and_made() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    world.put_webhook(&webhook("b")).await;
    let limits = Limits {
        attempts: 3,
        reserved: 0,
        ..Limits::default()
    };
    let agent = world.agent_with(1, limits).await;
    let most = most_under_way(&world, &agent);
    let running = agent.take(&world, SHARD).await;
    let waited = || agent.shards.counters().agent_full.load(Ordering::Relaxed);
    world.publish_some(SHARD, "few", 1, &["a", "b"], at_least).await;
    world.done(SHARD).await;
    assert_eq!(waited(), 0);
    world.publish_some(SHARD, "many", 20, &["a", "b"], at_least).await;
    world.done(SHARD).await;
    assert_eq!(most.load(Ordering::Relaxed), 3);
    assert!(waited() > 0);
    let received = world.receiver.received();
    assert_eq!(received.len(), 42);
    assert!(received.values().all(|times| *times == 1));
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn attempts_beyond_those_of_a_webhook_wait_are_counted_and_made() {
    let mut world = World::new();
    let usual = Webhook {
        max_in_flight: None,
        ..webhook("a")
    };
    let at_least = world.put_webhook(&usual).await;
    let agent = world.agent(1).await;
    let most = most_under_way(&world, &agent);
    let running = agent.take(&world, SHARD).await;
    let waited = || agent.shards.counters().webhook_full.load(Ordering::Relaxed);
    world.publish_some(SHARD, "few", 32, &["a"], at_least).await;
    world.done(SHARD).await;
    assert_eq!(waited(), 0);
    world.publish_some(SHARD, "many", 100, &["a"], at_least).await;
    world.done(SHARD).await;
    assert_eq!(most.load(Ordering::Relaxed), 32);
    assert!(waited() > 0);
    let received = world.receiver.received();
    assert_eq!(received.len(), 132);
    assert!(received.values().all(|times| *times == 1));
    running.release().await;
}

/// A world with the webhook `well` and forty whose receivers do not answer until the test is over, which is as if that were no failure, so that only the lack
/// of an answer tells them apart; with the names of these, and the revision at which all are known.
pub(super) async fn world_with_silent() -> (World, Vec<String>, Revision) {
    let world = World::new();
    let silent: Vec<String> = (0..40).map(|number| format!("silent-{number}")).collect();
    let mut at_least = world.put_webhook(&webhook("well")).await;
    for id in &silent {
        at_least = world.put_webhook(&webhook(id)).await;
    }
    world.receiver.answers(|call| {
        let pause = if call.0 == "well" { 5 } else { 3_600_000 };
        (Duration::from_millis(pause), DELIVERED)
    });
    (world, silent, at_least)
}

#[tokio::test(start_paused = true)]
async fn attempts_to_receivers_that_do_not_answer_are_paced_and_hold_up_nobody_else() {
    let (mut world, silent, at_least) = world_with_silent().await;
    let limits = Limits {
        unpaced: 5,
        paced_rate: 20,
        ..Limits::default()
    };
    let agent = world.agent_with(1, limits).await;
    let running = agent.take(&world, SHARD).await;
    world.publish_some(SHARD, "first", 1, &["well"], at_least).await;
    world.done(SHARD).await;
    let began = Instant::now();
    let silent: Vec<&str> = silent.iter().map(String::as_str).collect();
    world.publish_some(SHARD, "noise", 1, &silent, at_least).await;
    world.publish_some(SHARD, "next", 100, &["well"], at_least).await;
    world
        .eventually("the other's events arrive", async || {
            world.receiver.received().len() == 101
        })
        .await;
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    world
        .eventually("all have begun", async || world.receiver.attempts() == 141)
        .await;
    // All but five, and four of the first turn.
    assert!(began.elapsed() >= Duration::from_millis(1500), "{:?}", began.elapsed());
    assert!(agent.shards.counters().paced.load(Ordering::Relaxed) > 0);
    drop(running);
}
