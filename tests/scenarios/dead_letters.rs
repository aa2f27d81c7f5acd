//! Dead letters whose agent is killed in the middle of what is done with them: purged, redriven since a time or at a rate, expired, dropped with their webhook.

use std::collections::BTreeMap;
use std::ops::Range;

use http::StatusCode;
use postrider_common::id::{AccountId, WebhookId};
use postrider_common::shard;
use postrider_common::time::{Clock as _, SystemClock};
use postrider_proto::v1::{
    DeadLetterFilter, DeleteWebhookRequest, DeliveryCounts, DeliveryOptions, PurgeDeadLettersRequest,
    RedriveDeadLettersRequest, RetryPolicy, Webhook,
};
use postrider_tests::client::{Client, event, no_auth, webhook};
use postrider_tests::cluster::{Cluster, Standing};
use postrider_tests::receiver::{Answer, Receiver};
use postrider_tests::wait;
use tokio::time::Instant;

use crate::accounting::{assert_adds_up, counts_of, usage};
use crate::commands::{HOUR, dead, parent, patient, refusals};
use crate::{ACCOUNT, FLOW, SOON, flow_id};

/// Publishes events one at a time, so that they die in many segments: what is done with them takes a while.
async fn publish_singly(client: &Client, name: &str, events: Range<usize>) {
    for number in events {
        client.publish(ACCOUNT, vec![event(&flow_id(number), name, "{}")]).await;
    }
}

async fn until_dead(client: &Client, count: usize) {
    wait::until("all to be dead", FLOW, async || {
        (usize::try_from(dead(client).await) == Ok(count)).then_some(())
    })
    .await;
}

/// A webhook of which `count` events are dead letters; from then on its receiver takes everything.
async fn with_dead(count: usize, agent_arguments: &[&str]) -> (Cluster, Receiver) {
    let cluster = Cluster::with(1, 2, 3, agent_arguments).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let gentle = Webhook {
        delivery: Some(DeliveryOptions {
            max_in_flight: 8,
            ..DeliveryOptions::default()
        }),
        ..patient(&receiver.url("/w"), 1)
    };
    client.create_webhook(ACCOUNT, "w", gentle).await;
    cluster.matching(ACCOUNT, "A", 1).await;
    receiver.script("/w", refusals(count));
    publish_singly(&client, "A", 0..count).await;
    until_dead(&client, count).await;
    (cluster, receiver)
}

/// Kills the owner of the webhook as soon as `gone` of its dead letters have gone: in the middle of it.
async fn kill_amid(cluster: &mut Cluster, gone: usize) -> Instant {
    let owner = cluster.owner_of(ACCOUNT, "w").await;
    let before = cluster.standing(ACCOUNT, "w").await.dead;
    wait::until("some dead letters to go", FLOW, async || {
        (cluster.standing(ACCOUNT, "w").await.dead + gone <= before).then_some(())
    })
    .await;
    cluster.kill_agent(owner).await;
    let killed = Instant::now();
    let left = cluster.standing(ACCOUNT, "w").await.dead;
    println!("{left} of {before} dead letters were left");
    assert!(0 < left && left < before, "it was killed too late");
    killed
}

/// How many were dropped, for the one reason that there is.
fn dropped_as(counts: &DeliveryCounts, reason: &str) -> i64 {
    assert!(
        counts.dropped.iter().all(|dropped| dropped.reason == reason),
        "{counts:?}"
    );
    counts.dropped.iter().map(|dropped| dropped.count).sum()
}

/// Everything that was taken more than once had come before the agent died.
fn assert_repeats_are_of_what_was_under_way(receiver: &Receiver, killed: Instant) {
    let log = receiver.log();
    let mut first: BTreeMap<&str, Instant> = BTreeMap::new();
    let mut before = 0;
    for request in log.requests().iter().filter(|request| request.status.is_success()) {
        before += usize::from(request.arrived <= killed);
        let id = request.header("webhook-id");
        let first = first.entry(id).or_insert(request.arrived);
        assert!(
            *first == request.arrived || *first <= killed,
            "{id} came twice from a living agent"
        );
    }
    let repeats = log.repeats();
    println!("{repeats} came twice, {before} had come before the agent died");
    assert!(
        repeats <= before,
        "{repeats} came twice, {before} before the agent died"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_is_ended_by_the_next_owner_and_counts_each_dead_letter_once() {
    const EVENTS: usize = 600;
    let (mut cluster, _receiver) = with_dead(EVENTS, &[]).await;
    let client = cluster.client(0);
    let request = PurgeDeadLettersRequest {
        parent: parent(),
        ..PurgeDeadLettersRequest::default()
    };
    let purging = async { client.deliveries().purge_dead_letters(request).await };
    let (answer, _) = tokio::join!(purging, kill_amid(&mut cluster, 1));
    assert_eq!(
        usize::try_from(answer.unwrap().into_inner().matched_count),
        Ok(EVENTS),
        "it was durable when it was answered"
    );
    assert_adds_up(&usage(&client).await);
    until_dead(&client, 0).await;
    assert_eq!(cluster.standing(ACCOUNT, "w").await, Standing::default());
    let usage = usage(&client).await;
    assert_adds_up(&usage);
    let counts = counts_of(&usage, "w");
    let all = i64::try_from(EVENTS).unwrap();
    assert_eq!((counts.accepted, dropped_as(counts, "PURGED")), (all, all));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_died_since_a_time_is_redriven_by_the_next_owner_and_what_died_before_is_not() {
    const BEFORE: usize = 60;
    const EVENTS: usize = 500;
    let (mut cluster, receiver) = with_dead(BEFORE, &[]).await;
    let client = cluster.client(0);
    let since = SystemClock.now();
    receiver.script("/w", refusals(EVENTS));
    publish_singly(&client, "A", BEFORE..BEFORE + EVENTS).await;
    until_dead(&client, BEFORE + EVENTS).await;
    let request = RedriveDeadLettersRequest {
        parent: parent(),
        filter: Some(DeadLetterFilter {
            start_time: Some(prost_types::Timestamp {
                seconds: since.as_seconds(),
                nanos: i32::try_from(since.as_millis().rem_euclid(1000)).unwrap() * 1_000_000,
            }),
            ..DeadLetterFilter::default()
        }),
        ..RedriveDeadLettersRequest::default()
    };
    let redriving = async { client.deliveries().redrive_dead_letters(request).await };
    let (answer, killed) = tokio::join!(redriving, kill_amid(&mut cluster, 1));
    assert_eq!(usize::try_from(answer.unwrap().into_inner().matched_count), Ok(EVENTS));
    until_dead(&client, BEFORE).await;
    receiver
        .until("what the receiver missed", FLOW, |log| log.distinct() >= EVENTS)
        .await;
    cluster.drained(SOON).await;
    for number in BEFORE..BEFORE + EVENTS {
        assert!(receiver.log().has("/w", &flow_id(number)), "{number} is lost");
    }
    assert_eq!(receiver.log().distinct(), EVENTS, "what died before stays dead");
    assert_repeats_are_of_what_was_under_way(&receiver, killed);
    let usage = usage(&client).await;
    assert_adds_up(&usage);
    let counts = counts_of(&usage, "w");
    assert_eq!(
        (usize::try_from(counts.delivered), usize::try_from(counts.dead)),
        (Ok(EVENTS), Ok(BEFORE))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redrive_is_no_faster_than_was_asked_for_though_its_owners_are_killed() {
    const EVENTS: usize = 600;
    const PER_SECOND: f64 = 25.0;
    let (mut cluster, receiver) = with_dead(EVENTS, &[]).await;
    let client = cluster.client(0);
    let request = RedriveDeadLettersRequest {
        parent: parent(),
        max_per_second: PER_SECOND,
        ..RedriveDeadLettersRequest::default()
    };
    let asked = Instant::now();
    let redriving = async { client.deliveries().redrive_dead_letters(request).await };
    // Half of them have their time by then, and the other half gets it from the next owner.
    let (answer, _) = tokio::join!(redriving, kill_amid(&mut cluster, EVENTS / 2));
    assert_eq!(usize::try_from(answer.unwrap().into_inner().matched_count), Ok(EVENTS));
    receiver
        .until("most of them", FLOW, |log| log.distinct() > EVENTS * 3 / 5)
        .await;
    cluster.kill_owner_of(ACCOUNT, "w").await;
    receiver
        .until("all of them", FLOW, |log| log.distinct() == EVENTS)
        .await;
    cluster.drained(SOON).await;
    let log = receiver.log();
    let mut first: BTreeMap<&str, Instant> = BTreeMap::new();
    for request in log.requests().iter().filter(|request| request.status.is_success()) {
        first.entry(request.header("webhook-id")).or_insert(request.arrived);
    }
    let mut arrived: Vec<Instant> = first.into_values().collect();
    arrived.sort_unstable();
    for (number, at) in arrived.iter().enumerate() {
        // The first goes at once; times are cut to milliseconds.
        let least = number.saturating_sub(1) as f64 / PER_SECOND;
        let took = at.duration_since(asked);
        assert!(took.as_secs_f64() >= least, "number {number} came after {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_expire_to_the_last_though_their_owner_is_killed_amid_it() {
    const EVENTS: usize = 200;
    let (mut cluster, _receiver) = with_dead(EVENTS, &["--dead-letter-retention", "20s"]).await;
    let client = cluster.client(0);
    kill_amid(&mut cluster, 1).await;
    assert_adds_up(&usage(&client).await);
    until_dead(&client, 0).await;
    assert_eq!(cluster.standing(ACCOUNT, "w").await, Standing::default());
    let usage = usage(&client).await;
    assert_adds_up(&usage);
    let counts = counts_of(&usage, "w");
    let all = i64::try_from(EVENTS).unwrap();
    assert_eq!((counts.accepted, dropped_as(counts, "EXPIRED")), (all, all));
}

/// Another webhook's id in the shard of webhook `w`.
fn neighbour() -> String {
    let shard = |id: &str| {
        let (account, webhook) = (AccountId::new(ACCOUNT).unwrap(), WebhookId::new(id).unwrap());
        shard::of(&account, &webhook, shard::DEFAULT_COUNT)
    };
    let mut ids = (0..).map(|number| format!("w{number}"));
    ids.find(|id| shard(id) == shard("w")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_of_a_deleted_webhook_is_dropped_though_its_owner_is_killed_amid_it_or_before() {
    const DEAD: usize = 300;
    const WAITING: usize = 20;
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let neighbour = neighbour();
    let webhooks = [("w", "A"), (neighbour.as_str(), "B")];
    for (id, name) in webhooks {
        let path = format!("/{id}");
        let hopeless = Webhook {
            retry: Some(RetryPolicy {
                initial_delay: Some(HOUR),
                max_delay: Some(HOUR),
                never_retry: vec!["404".to_owned()],
                ..RetryPolicy::default()
            }),
            ..webhook(&receiver.url(&path), &[name], no_auth())
        };
        client.create_webhook(ACCOUNT, id, hopeless).await;
        cluster.matching(ACCOUNT, name, 1).await;
        let mut answers = vec![Answer::status(StatusCode::NOT_FOUND); DEAD];
        answers.push(Answer::status(StatusCode::CONFLICT));
        receiver.script(&path, answers);
        publish_singly(&client, name, 0..DEAD + WAITING).await;
        wait::until("dead letters, and others that wait", FLOW, async || {
            let standing = cluster.standing(ACCOUNT, id).await;
            ((standing.dead, standing.parked) == (DEAD, WAITING)).then_some(())
        })
        .await;
    }
    let delete = async |id: &str| {
        let request = DeleteWebhookRequest {
            name: format!("accounts/{ACCOUNT}/webhooks/{id}"),
            ..DeleteWebhookRequest::default()
        };
        client.webhooks().delete_webhook(request).await.unwrap();
    };
    tokio::join!(delete("w"), kill_amid(&mut cluster, 1));
    // Nobody sees this one go.
    delete(&neighbour).await;
    let all = i64::try_from(2 * (DEAD + WAITING)).unwrap();
    let total = usage(&client).await.total.unwrap();
    assert_eq!((total.accepted, total.delivered), (all, 0));
    cluster.settled().await;
    for (id, _) in webhooks {
        wait::until("everything of it to be dropped", SOON, async || {
            (cluster.standing(ACCOUNT, id).await == Standing::default()).then_some(())
        })
        .await;
    }
    let usage = usage(&client).await;
    assert_adds_up(&usage);
    let deleted = usage.deleted_webhooks.as_ref().unwrap();
    assert_eq!((deleted.accepted, dropped_as(deleted, "WEBHOOK_DELETED")), (all, all));
    assert_eq!(
        receiver.log().requests().len(),
        2 * (DEAD + WAITING),
        "nothing more was sent"
    );
}
