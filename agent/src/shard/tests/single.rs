//! Tests of commands about single deliveries: wherever they are, they are tried now or dropped, once, whoever dies.

use std::time::Duration;

use postrider_common::id::EventId;
use postrider_common::key;
use postrider_common::model::command::Action;
use postrider_common::model::order::Ordering;
use postrider_common::model::usage::Dropped;
use postrider_common::wire::stored;
use tokio::time::Instant;

use super::dead_letters::{carry_out, command, dead, refused, usage};
use super::webhook;
use super::worker::{Agent, DELIVERED, SHARD, World};
use crate::shard::Running;

fn id(number: u32) -> EventId {
    EventId::new(&format!("e-{number}")).unwrap()
}

/// A world in which `count` events of webhook `a` have failed once, and wait for an hour.
async fn with_waiting(count: usize) -> (World, Agent, Box<dyn Running>) {
    let mut world = World::new();
    let mut config = webhook("a");
    config.retry.initial_delay = Duration::from_hours(1);
    config.retry.max_delay = Duration::from_hours(1);
    let at_least = world.put_webhook(&config).await;
    world.receiver.answers(|_| (Duration::ZERO, refused()));
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    world.publish_some(SHARD, "e", count, &["a"], at_least).await;
    world
        .eventually("all wait for their retry", async || {
            usage(&world, Some("a")).await.waiting() == count as u64 && world.receiver.attempts() == count
        })
        .await;
    world.receiver.answers(|_| (Duration::ZERO, DELIVERED));
    (world, agent, running)
}

fn received(world: &World) -> Vec<String> {
    world.receiver.received().into_keys().map(|(_, event)| event).collect()
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_waits_is_tried_now_and_the_others_when_they_are_due() {
    let (world, _agent, running) = with_waiting(300).await;
    let started = Instant::now();
    carry_out(&world, 1, Action::Retry(id(150))).await;
    world
        .eventually("it is delivered", async || !received(&world).is_empty())
        .await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(received(&world), ["e-150"]);
    // It stood in the same segment, and waits in memory since then.
    let started = Instant::now();
    carry_out(&world, 2, Action::Retry(id(151))).await;
    world
        .eventually("another is delivered", async || received(&world).len() == 2)
        .await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    tokio::time::sleep(Duration::from_hours(1)).await;
    world.done(SHARD).await;
    assert_eq!(received(&world).len(), 300);
    assert!(world.receiver.received().values().all(|times| *times == 1));
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_waits_is_dropped_and_counted_and_no_other_is() {
    let (world, _agent, running) = with_waiting(300).await;
    carry_out(&world, 1, Action::Cancel(id(7))).await;
    carry_out(&world, 2, Action::Cancel(id(8))).await;
    // There is none.
    carry_out(&world, 3, Action::Cancel(id(999))).await;
    let counted = usage(&world, Some("a")).await;
    assert_eq!((counted.dropped(Dropped::Cancelled), counted.waiting()), (2, 298));
    tokio::time::sleep(Duration::from_hours(1)).await;
    world.done(SHARD).await;
    assert_eq!(received(&world).len(), 298);
    assert_eq!((dead(&world).await, usage(&world, Some("a")).await.delivered), (0, 298));
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn what_stands_in_memory_is_dropped_when_its_turn_comes_and_what_is_under_way_when_it_fails() {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    world.receiver.answers(|(_, event, number, _)| {
        let fails = event == "e-0" && *number == 1;
        (Duration::from_secs(3), if fails { refused() } else { DELIVERED })
    });
    let agent = world.agent(1).await;
    let running = agent.take(&world, SHARD).await;
    // Four are under way at once.
    world.publish_some(SHARD, "e", 20, &["a"], at_least).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for (number, event) in [(1, 0), (2, 1), (3, 19)] {
        let (key, command) = command(number, Action::Cancel(id(event)));
        world.put(key, stored::encode_command(&command)).await;
    }
    world
        .eventually("the commands are carried out", async || {
            world.keys(&key::commands()).await.is_empty()
        })
        .await;
    world.done(SHARD).await;
    let received = received(&world);
    // The second was delivered before it could be dropped.
    assert_eq!(received.len(), 18);
    assert!(!received.contains(&"e-0".to_owned()) && !received.contains(&"e-19".to_owned()));
    assert_eq!(usage(&world, Some("a")).await.dropped(Dropped::Cancelled), 2);
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn a_command_that_an_agent_died_over_is_carried_out_by_the_next() {
    for crash_after in [0, 1, 3, 8, 20] {
        let (world, agent, _running) = with_waiting(20).await;
        for (number, action) in [(1, Action::Cancel(id(3))), (2, Action::Retry(id(4)))] {
            let (key, command) = command(number, action);
            world.put(key, stored::encode_command(&command)).await;
        }
        tokio::time::sleep(Duration::from_millis(crash_after)).await;
        agent.die().await;
        let second = world.agent(2).await;
        let running = second.take(&world, SHARD).await;
        world
            .eventually("the commands are carried out", async || {
                world.keys(&key::commands()).await.is_empty()
            })
            .await;
        world
            .eventually("it is delivered", async || received(&world) == ["e-4"])
            .await;
        let counted = usage(&world, Some("a")).await;
        assert_eq!(counted.dropped(Dropped::Cancelled), 1, "after {crash_after} ms");
        running.release().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_is_tried_now_is_tried_by_the_next_agent_if_the_first_dies_under_the_attempt() {
    let (world, agent, _running) = with_waiting(20).await;
    world.receiver.answers(|_| (Duration::from_mins(10), DELIVERED));
    for number in [4, 5] {
        // The second stands in memory by then.
        carry_out(&world, number, Action::Retry(id(number))).await;
    }
    world
        .eventually("both are under way", async || world.receiver.attempts() == 22)
        .await;
    agent.die().await;
    world.receiver.answers(|_| (Duration::ZERO, DELIVERED));
    let second = world.agent(2).await;
    let running = second.take(&world, SHARD).await;
    let started = Instant::now();
    world
        .eventually("both are delivered", async || received(&world) == ["e-4", "e-5"])
        .await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_used_up_and_blocks_an_order_goes_on_when_it_is_retried_or_cancelled() {
    for (action, delivered) in [(Action::Retry(id(0)), 5), (Action::Cancel(id(0)), 4)] {
        let mut world = World::new();
        let mut config = webhook("a");
        config.retry.max_attempts = std::num::NonZeroU32::new(1);
        config.order.ordering = Ordering::Strict;
        let at_least = world.put_webhook(&config).await;
        world.receiver.answers(|_| (Duration::ZERO, refused()));
        let agent = world.agent(1).await;
        let running = agent.take(&world, SHARD).await;
        world.publish_some(SHARD, "e", 5, &["a"], at_least).await;
        tokio::time::sleep(Duration::from_mins(10)).await;
        assert_eq!(world.receiver.attempts(), 1, "it blocks");
        world.receiver.answers(|_| (Duration::ZERO, DELIVERED));
        carry_out(&world, 1, action.clone()).await;
        world.done(SHARD).await;
        assert_eq!(received(&world).len(), delivered, "{action:?}");
        assert!(world.receiver.received().values().all(|times| *times == 1));
        let counted = usage(&world, Some("a")).await;
        assert_eq!(
            (counted.waiting(), counted.dropped(Dropped::Cancelled)),
            (0, 5 - delivered as u64)
        );
        running.release().await;
    }
}
