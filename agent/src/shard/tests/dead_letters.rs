//! Tests of what a worker does with dead letters: on command, when their webhook is deleted, when they are old. And that all of it is counted.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_common::id::{EventId, Uid};
use postrider_common::key::{self, Key};
use postrider_common::model::command::{Action, Command, Filter, Rate};
use postrider_common::model::order::{OnFailure, Order, Ordering};
use postrider_common::model::usage::{Dropped, Usage};
use postrider_common::model::webhook::Webhook;
use postrider_common::store::{Op, Revision, Store as _, Write, list_all};
use postrider_common::wire::stored;

use super::worker::{DELIVERED, SHARD, World};
use super::{account, uid, webhook};
use crate::attempt::{Outcome, Reason};
use crate::shard::Limits;

/// What speaks against an event and not against its receiver, so that no breaker trips.
pub(super) const fn refused() -> Outcome {
    Outcome::Failed {
        reason: Reason::Status,
        status: Some(404),
        retry_after: None,
    }
}

/// A world in which the events `e-0`, `e-1`, … of webhook `a` are dead.
async fn with_dead(count: usize, limits: Limits) -> (World, super::worker::Agent, Box<dyn crate::shard::Running>) {
    let mut world = World::new();
    let at_least = world.put_webhook(&webhook("a")).await;
    world.receiver.answers(|_| (Duration::ZERO, refused()));
    let agent = world.agent_with(1, limits).await;
    let running = agent.take(&world, SHARD).await;
    world.publish_some(SHARD, "e", count, &["a"], at_least).await;
    world.done(SHARD).await;
    assert_eq!(dead(&world).await, count);
    (world, agent, running)
}

pub(super) async fn dead(world: &World) -> usize {
    let (entries, _) = list_all(&world.store, &key::dead(SHARD), false).await.unwrap();
    let count = |entry: &postrider_common::store::Entry| stored::unpack(entry.value.clone()).unwrap().delivery_count();
    entries.iter().map(count).sum()
}

/// What was counted of webhook `a`, or of webhooks that do not exist any more.
pub(super) async fn usage(world: &World, webhook: Option<&str>) -> Usage {
    let webhook = webhook.map(|id| postrider_common::id::WebhookId::new(id).unwrap());
    let name = (account(), webhook);
    let (progress, _) = world.store.get(&key::progress(SHARD)).await.unwrap();
    let progress = progress.map(|entry| stored::decode_progress(entry.value).unwrap());
    progress
        .unwrap_or_default()
        .usage
        .get(&name)
        .cloned()
        .unwrap_or_default()
}

pub(super) fn command(number: u32, action: Action) -> (Key, Command) {
    let command = Command {
        account: account(),
        webhook: webhook("a").id,
        uid: uid(1),
        create_time: super::BEGIN + Duration::from_hours(1),
        action,
        begun: None,
    };
    let id = Uid::new(&format!("018f4c1e-7c55-7a3e-8b1a-{number:012}")).unwrap();
    (key::command(SHARD, &id), command)
}

pub(super) async fn carry_out(world: &World, number: u32, action: Action) {
    let (key, command) = command(number, action);
    world.put(key.clone(), stored::encode_command(&command)).await;
    world
        .eventually("the command is carried out", async || world.keys(&key).await.is_empty())
        .await;
}

/// Waits until there are no dead letters, which must be soon.
async fn all_gone_soon(world: &World) {
    let started = tokio::time::Instant::now();
    world
        .eventually("the dead letters are gone", async || dead(world).await == 0)
        .await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn dead_letters_that_are_redriven_are_delivered_once_and_are_dead_no_more() {
    let (world, _agent, running) = with_dead(700, Limits::default()).await;
    world.receiver.answers(|_| (Duration::from_millis(5), DELIVERED));
    let filter = Filter {
        event_ids: (0..300)
            .map(|number| EventId::new(&format!("e-{number}")).unwrap())
            .collect(),
        ..Filter::default()
    };
    carry_out(&world, 1, Action::Redrive(filter, None)).await;
    world.done(SHARD).await;
    assert_eq!(world.receiver.received().len(), 300);
    assert_eq!(dead(&world).await, 400);
    let counted = usage(&world, Some("a")).await;
    assert_eq!(
        (counted.taken, counted.delivered, counted.dead, counted.waiting()),
        (700, 300, 400, 0)
    );
    carry_out(&world, 2, Action::Redrive(Filter::default(), None)).await;
    world.done(SHARD).await;
    assert_eq!(dead(&world).await, 0);
    assert!(world.receiver.received().values().all(|times| *times == 1));
    assert_eq!(world.receiver.received().len(), 700);
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn a_redrive_keeps_the_rate_that_was_asked_for() {
    let (world, _agent, running) = with_dead(60, Limits::default()).await;
    world.receiver.answers(|_| (Duration::ZERO, DELIVERED));
    let started = tokio::time::Instant::now();
    carry_out(&world, 1, Action::Redrive(Filter::default(), Rate::new(2.0))).await;
    let arrived = async |most: usize| world.receiver.received().len() <= most;
    for _ in 0..29 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let most = usize::try_from(started.elapsed().as_secs()).unwrap() * 2 + 2;
        assert!(
            arrived(most).await,
            "{} after {:?}",
            world.receiver.received().len(),
            started.elapsed()
        );
    }
    world.done(SHARD).await;
    assert!(started.elapsed() < Duration::from_secs(32), "{:?}", started.elapsed());
    assert_eq!(world.receiver.received().len(), 60);
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_revived_after_its_greatest_age_is_tried_for_as_long_again() {
    let (world, _agent, running) = with_dead(3, Limits::default()).await;
    let age = Duration::from_secs(600);
    let mut impatient = webhook("a");
    impatient.retry.max_age = age;
    world.put_webhook(&impatient).await;
    tokio::time::sleep(age + Duration::from_secs(60)).await;
    let before = world.receiver.attempts();
    let mut left = 3;
    world.receiver.answers(move |_| {
        left -= 1;
        (Duration::ZERO, if left < 0 { DELIVERED } else { refused() })
    });
    carry_out(&world, 1, Action::Redrive(Filter::default(), None)).await;
    world.done(SHARD).await;
    assert_eq!(world.receiver.received().len(), 3);
    assert_eq!(world.receiver.attempts() - before, 6);
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn purged_and_cancelled_dead_letters_are_dropped_and_counted() {
    let (world, _agent, running) = with_dead(20, Limits::default()).await;
    carry_out(&world, 1, Action::Cancel(EventId::new("e-7").unwrap())).await;
    assert_eq!(dead(&world).await, 19);
    let other = Filter {
        reasons: ["TIMEOUT".to_owned()].into(),
        ..Filter::default()
    };
    carry_out(&world, 2, Action::Purge(other)).await;
    assert_eq!(dead(&world).await, 19);
    carry_out(&world, 3, Action::Purge(Filter::default())).await;
    assert_eq!(dead(&world).await, 0);
    let counted = usage(&world, Some("a")).await;
    let dropped = (counted.dropped(Dropped::Cancelled), counted.dropped(Dropped::Purged));
    assert_eq!(
        (counted.taken, dropped, counted.dead, counted.waiting()),
        (20, (1, 19), 0, 0)
    );
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn a_redrive_that_an_agent_died_over_is_carried_out_by_the_next_and_repeats_nothing() {
    for crash_after in [1, 4, 12, 30] {
        let (world, agent, _running) = with_dead(600, Limits::default()).await;
        world.receiver.answers(|_| (Duration::from_millis(5), DELIVERED));
        let (key, command) = command(1, Action::Redrive(Filter::default(), None));
        world.put(key.clone(), stored::encode_command(&command)).await;
        tokio::time::sleep(Duration::from_millis(crash_after)).await;
        agent.die().await;
        let answered: BTreeMap<_, _> = world.receiver.received();
        let second = world.agent(2).await;
        let running = second.take(&world, SHARD).await;
        world
            .eventually("the command is carried out", async || world.keys(&key).await.is_empty())
            .await;
        world.done(SHARD).await;
        let received = world.receiver.received();
        assert_eq!(received.len(), 600, "after {crash_after} ms");
        let repeats = received.values().filter(|times| **times > 1).count();
        assert!(repeats <= answered.len(), "{repeats} came twice");
        assert_eq!(dead(&world).await, 0);
        let counted = usage(&world, Some("a")).await;
        assert_eq!((counted.taken, counted.delivered, counted.dead), (600, 600, 0));
        running.release().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_redrive_that_an_agent_died_over_does_not_mean_what_died_since_and_keeps_its_rate() {
    const COUNT: usize = 600;
    for crash_after in [2, 5, 12, 30] {
        let (world, agent, _running) = with_dead(COUNT, Limits::default()).await;
        let (key, command) = command(1, Action::Redrive(Filter::default(), Rate::new(100.0)));
        let asked = tokio::time::Instant::now();
        world.put(key.clone(), stored::encode_command(&command)).await;
        tokio::time::sleep(Duration::from_millis(crash_after)).await;
        agent.die().await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        let second = world.agent(2).await;
        let running = second.take(&world, SHARD).await;
        for _ in 0..10 {
            let most = asked.elapsed().as_millis() / 10 + 2;
            let tried = world.receiver.first_attempts() - COUNT;
            assert!(tried as u128 <= most + 4, "{tried} after {:?}", asked.elapsed());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        world
            .eventually("the command is carried out", async || world.keys(&key).await.is_empty())
            .await;
        world.done(SHARD).await;
        // All were refused again; the agent that died may have had four under way.
        assert_eq!(dead(&world).await, COUNT);
        let tried = world.receiver.first_attempts() - COUNT;
        assert!((COUNT..=COUNT + 4).contains(&tried), "{tried} after {crash_after} ms");
        running.release().await;
    }
}

#[tokio::test(start_paused = true)]
async fn dead_letters_of_an_ordered_webhook_are_redriven_and_what_follows_goes_on() {
    for ordering in [Ordering::Strict, Ordering::PerKey] {
        let mut world = World::new();
        let mut config = webhook("a");
        config.retry.max_attempts = std::num::NonZeroU32::new(1);
        config.order = Order {
            ordering,
            on_failure: Some(OnFailure::DeadLetter),
        };
        let at_least = world.put_webhook(&config).await;
        world.receiver.answers(|_| (Duration::ZERO, refused()));
        let agent = world.agent(1).await;
        let running = agent.take(&world, SHARD).await;
        world.publish_some(SHARD, "e", 600, &["a"], at_least).await;
        world.done(SHARD).await;
        assert_eq!(dead(&world).await, 600);
        world.receiver.answers(|_| (Duration::from_millis(1), DELIVERED));
        let (key, command) = command(1, Action::Redrive(Filter::default(), None));
        world.put(key, stored::encode_command(&command)).await;
        for number in 0..20 {
            world
                .publish_some(SHARD, &format!("new{number}"), 5, &["a"], at_least)
                .await;
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        world
            .eventually("the command is carried out", async || {
                world.keys(&key::commands()).await.is_empty()
            })
            .await;
        world.done(SHARD).await;
        let received = world.receiver.received();
        assert_eq!(received.len(), 700, "{ordering:?}");
        assert!(received.values().all(|times| *times == 1), "{ordering:?}");
        assert_eq!(dead(&world).await, 0);
        running.release().await;
    }
}

#[tokio::test(start_paused = true)]
async fn dead_letters_go_with_their_webhook() {
    let (world, _agent, running) = with_dead(300, Limits::default()).await;
    let write = Write {
        guards: Vec::new(),
        ops: vec![Op::delete(key::webhook(&account(), &webhook("a").id))],
    };
    world.write(write).await;
    world
        .eventually("the dead letters are gone", async || dead(&world).await == 0)
        .await;
    let counted = usage(&world, None).await;
    assert_eq!(
        (counted.taken, counted.dropped(Dropped::WebhookDeleted), counted.dead),
        (300, 300, 0)
    );
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn dead_letters_of_a_webhook_go_with_it_though_another_has_its_name_before_anybody_looks() {
    async fn replace(world: &World) {
        let write = Write {
            guards: Vec::new(),
            ops: vec![Op::delete(key::webhook(&account(), &webhook("a").id))],
        };
        world.write(write).await;
        let another = Webhook {
            uid: uid(2),
            ..webhook("a")
        };
        world.put_webhook(&another).await;
    }
    let (world, agent, running) = with_dead(5, Limits::default()).await;
    replace(&world).await;
    world
        .eventually("the dead letters are gone", async || dead(&world).await == 0)
        .await;
    running.release().await;
    drop(agent);
    let (world, agent, running) = with_dead(5, Limits::default()).await;
    running.release().await;
    agent.die().await;
    replace(&world).await;
    let second = world.agent(2).await;
    let running = second.take(&world, SHARD).await;
    all_gone_soon(&world).await;
    running.release().await;
}

#[tokio::test(start_paused = true)]
async fn dead_letters_expire_and_those_of_webhooks_deleted_unseen_go_too() {
    let limits = Limits {
        dead_letter_retention: Duration::from_hours(2),
        ..Limits::default()
    };
    let (world, agent, running) = with_dead(5, limits).await;
    tokio::time::sleep(Duration::from_mins(90)).await;
    assert_eq!(dead(&world).await, 5);
    tokio::time::sleep(Duration::from_mins(95)).await;
    assert_eq!(dead(&world).await, 0);
    assert_eq!(usage(&world, Some("a")).await.dropped(Dropped::Expired), 5);
    let expired = |agent: &super::worker::Agent| {
        agent
            .shards
            .counters()
            .expired
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    assert_eq!(expired(&agent), 5);
    running.release().await;
    drop(agent);
    let (world, agent, running) = with_dead(5, limits).await;
    running.release().await;
    agent.die().await;
    let write = Write {
        guards: Vec::new(),
        ops: vec![Op::delete(key::webhook(&account(), &webhook("a").id))],
    };
    let deleted = world.write(write).await;
    assert!(deleted > Revision::default());
    let second = world.agent_with(2, limits).await;
    let running = second.take(&world, SHARD).await;
    all_gone_soon(&world).await;
    assert_eq!(expired(&second), 0);
    running.release().await;
}
