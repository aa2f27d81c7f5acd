//! Ordered webhooks: what follows waits for what it follows, whatever fails, dies or moves. The receiver's log is the judge.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use postrider_proto::v1::delivery_options::{OnFailure, Ordering};
use postrider_proto::v1::{DeliveryOptions, Event, RetryPolicy, UpdateWebhookRequest, Webhook};
use postrider_tests::client::{Client, event, millis, no_auth, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Received, Receiver};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::{ACCOUNT, FLOW, SOON};

/// Ordering keys of a flow.
const KEYS: usize = 8;

pub(crate) fn ordered(ordering: Ordering, on_failure: OnFailure, max_events: i32) -> DeliveryOptions {
    DeliveryOptions {
        ordering: ordering.into(),
        on_failure: on_failure.into(),
        max_events,
        ..DeliveryOptions::default()
    }
}

/// A webhook that tries again soon, up to `attempts` times; 0 means as often as it takes.
pub(crate) fn with(url: &str, name: &str, attempts: i32, delivery: DeliveryOptions) -> Webhook {
    Webhook {
        delivery: Some(delivery),
        retry: Some(RetryPolicy {
            initial_delay: Some(millis(100)),
            max_delay: Some(millis(200)),
            max_attempts: attempts,
            ..RetryPolicy::default()
        }),
        ..webhook(url, &[name], no_auth())
    }
}

/// Event `number` of a flow. Every ninth has no ordering key.
fn numbered(name: &str, number: usize) -> Event {
    Event {
        ordering_key: if number % 9 == 8 {
            String::new()
        } else {
            format!("key-{}", number % KEYS)
        },
        ..event(&format!("{name}-{number}"), name, format!("{{\"n\":{number}}}"))
    }
}

/// The numbers of a request's events.
pub(crate) fn numbers(request: &Received) -> Vec<usize> {
    let body = request.json();
    let events = body["events"].as_array().expect("an envelope").iter();
    events
        .map(|event| usize::try_from(event["data"]["n"].as_u64().expect("a number")).expect("it is small"))
        .collect()
}

/// How many events a path has taken.
fn taken(receiver: &Receiver, path: &str) -> usize {
    let log = receiver.log();
    let taken = log.of(path).into_iter().filter(|request| request.status.is_success());
    taken.flat_map(numbers).collect::<BTreeSet<_>>().len()
}

/// No event was sent before all that it follows had been taken; `line` names what follows each other, `None` what follows nothing.
pub(crate) fn assert_in_order(receiver: &Receiver, path: &str, line: impl Fn(usize) -> Option<usize>) {
    let log = receiver.log();
    // Of each line the first number that was not taken yet.
    let mut next: BTreeMap<usize, usize> = BTreeMap::new();
    let follows = |line_of: usize, from: usize| (from..).find(|number| line(*number) == Some(line_of)).unwrap_or(from);
    for request in log.of(path) {
        for number in numbers(request) {
            let Some(line) = line(number) else { continue };
            let due = next.entry(line).or_insert_with(|| follows(line, 0));
            assert!(number <= *due, "{path}: {number} was sent before {due} was taken");
            if number == *due && request.status.is_success() {
                *due = follows(line, number + 1);
            } else if number == *due {
                // The others of the request come again with it.
                break;
            }
        }
    }
}

pub(crate) fn strict(_: usize) -> Option<usize> {
    Some(0)
}

pub(crate) fn per_key(number: usize) -> Option<usize> {
    (number % 9 != 8).then_some(number % KEYS)
}

/// Answers that refuse a third of the requests, in no regular way, and at last take everything.
fn moody(count: usize) -> Vec<Answer> {
    let mut chance = 12_345_u32;
    let mut answers: Vec<Answer> = std::iter::repeat_with(|| {
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match chance >> 28 {
            0..=4 => Answer::status(StatusCode::UNPROCESSABLE_ENTITY),
            5 => Answer::status(StatusCode::SERVICE_UNAVAILABLE),
            _ => Answer::status(StatusCode::OK),
        }
    })
    .take(count)
    .collect();
    answers.push(Answer::status(StatusCode::OK));
    answers
}

/// Publishes events one request after the other: their numbers are the order of acceptance.
pub(crate) async fn publish(client: &Client, name: &str, from: usize, to: usize) {
    let all: Vec<usize> = (from..to).collect();
    for some in all.chunks(20) {
        let events = some.iter().map(|number| numbered(name, *number)).collect();
        client.publish(ACCOUNT, events).await;
    }
}

/// The three kinds of ordered webhooks, all of which want `FLOW`, behind receivers in a mood.
async fn flow_of_three(cluster: &Cluster, receiver: &Receiver) {
    let client = cluster.client(0);
    for (id, ordering, max_events) in [
        ("strict", Ordering::Strict, 0),
        ("batches", Ordering::Strict, 10),
        ("keys", Ordering::PerKey, 0),
    ] {
        let path = format!("/{id}");
        receiver.script(&path, moody(400));
        let delivery = ordered(ordering, OnFailure::Unspecified, max_events);
        client
            .create_webhook(ACCOUNT, id, with(&receiver.url(&path), "FLOW", 0, delivery))
            .await;
    }
    cluster.matching(ACCOUNT, "FLOW", 3).await;
}

fn assert_three_in_order(receiver: &Receiver) {
    assert_in_order(receiver, "/strict", strict);
    assert_in_order(receiver, "/batches", strict);
    assert_in_order(receiver, "/keys", per_key);
}

async fn until_taken(receiver: &Receiver, events: usize) {
    for path in ["/strict", "/batches", "/keys"] {
        receiver
            .until(&format!("{events} events at {path}"), FLOW, |log| {
                let taken = log.of(path).into_iter().filter(|request| request.status.is_success());
                taken.flat_map(numbers).collect::<BTreeSet<_>>().len() >= events
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_overtakes_though_requests_fail_and_the_owners_are_killed_in_the_middle() {
    const EVENTS: usize = 1200;
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    flow_of_three(&cluster, &receiver).await;
    let client = cluster.client(0);
    for (round, id) in ["strict", "keys", "batches"].into_iter().enumerate() {
        let from = round * EVENTS / 4;
        publish(&client, "FLOW", from, from + EVENTS / 4).await;
        let path = format!("/{id}");
        let before = taken(&receiver, &path);
        receiver
            .until("some of the flow", FLOW, |log| log.of(&path).len() > before + 20)
            .await;
        cluster.kill_owner_of(ACCOUNT, id).await;
        cluster.add_agent().await;
        cluster.settled().await;
    }
    publish(&client, "FLOW", EVENTS / 4 * 3, EVENTS).await;
    until_taken(&receiver, EVENTS).await;
    cluster.drained(SOON).await;
    assert_three_in_order(&receiver);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_overtakes_while_agents_come_and_go_and_nothing_comes_twice() {
    const EVENTS: usize = 800;
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    flow_of_three(&cluster, &receiver).await;
    let client = cluster.client(0);
    let publishing = publish(&client, "FLOW", 0, EVENTS);
    let moving = async {
        for id in ["strict", "batches", "keys"] {
            cluster.add_agent().await;
            cluster.settled().await;
            let owner = cluster.owner_of(ACCOUNT, id).await;
            cluster.stop_agent(owner).await;
            cluster.settled().await;
        }
    };
    tokio::join!(publishing, moving);
    until_taken(&receiver, EVENTS).await;
    cluster.drained(SOON).await;
    assert_three_in_order(&receiver);
    assert_eq!(receiver.log().repeats(), 0);
}

/// Publishes numbers `from` to `to` to a webhook that waits, and something to another: when that has come, the first had its chance.
async fn publish_past(client: &Client, receiver: &Receiver, name: &str, (from, to): (usize, usize)) {
    publish(client, name, from, to).await;
    let before = receiver.log().of("/other").len();
    client
        .publish(ACCOUNT, vec![event(&format!("other-{from}"), "OTHER", "{\"n\":0}")])
        .await;
    receiver
        .until("the other webhook's event", SOON, |log| log.of("/other").len() > before)
        .await;
}

/// A webhook `id` that gives up after one attempt, of which the first fails; and another one.
async fn giving_up(cluster: &Cluster, receiver: &Receiver, id: &str, delivery: DeliveryOptions) {
    let client = cluster.client(0);
    let path = format!("/{id}");
    receiver.script(
        &path,
        [StatusCode::UNPROCESSABLE_ENTITY, StatusCode::OK].map(Answer::status),
    );
    client
        .create_webhook(ACCOUNT, id, with(&receiver.url(&path), "EVENT", 1, delivery))
        .await;
    let other = webhook(&receiver.url("/other"), &["OTHER"], no_auth());
    client.create_webhook(ACCOUNT, "other", other).await;
    cluster.matching(ACCOUNT, "EVENT", 1).await;
    cluster.matching(ACCOUNT, "OTHER", 1).await;
}

/// Changes nothing that matters.
async fn touch(client: &Client, id: &str) {
    let request = UpdateWebhookRequest {
        webhook: Some(Webhook {
            name: format!("accounts/{ACCOUNT}/webhooks/{id}"),
            display_name: "try again".into(),
            ..Webhook::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["display_name".into()],
        }),
        validate_only: false,
    };
    client.webhooks().update_webhook(request).await.unwrap();
}

pub(crate) fn seen(receiver: &Receiver, path: &str) -> Vec<usize> {
    receiver.log().of(path).into_iter().flat_map(numbers).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_webhook_waits_though_its_owner_is_killed_and_goes_on_when_it_is_changed() {
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    giving_up(
        &cluster,
        &receiver,
        "blocked",
        ordered(Ordering::Strict, OnFailure::Unspecified, 0),
    )
    .await;
    let client = cluster.client(0);
    publish_past(&client, &receiver, "EVENT", (0, 40)).await;
    receiver
        .until("the first attempt", SOON, |log| !log.of("/blocked").is_empty())
        .await;
    publish_past(&client, &receiver, "EVENT", (40, 60)).await;
    cluster.kill_owner_of(ACCOUNT, "blocked").await;
    cluster.settled().await;
    publish_past(&client, &receiver, "EVENT", (60, 80)).await;
    // Nothing had been recorded when the agent died, if it died at once: then the attempt was made again.
    let before = seen(&receiver, "/blocked");
    assert!(
        before.iter().all(|number| *number == 0),
        "{before:?} came though the webhook waits"
    );
    touch(&client, "blocked").await;
    receiver
        .until("all events", SOON, |log| log.of("/blocked").len() >= before.len() + 80)
        .await;
    let after = seen(&receiver, "/blocked").split_off(before.len());
    assert_eq!(after, (0..80).collect::<Vec<_>>());
    cluster.drained(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_key_waits_and_all_others_go_on() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    giving_up(
        &cluster,
        &receiver,
        "parked",
        ordered(Ordering::PerKey, OnFailure::Unspecified, 0),
    )
    .await;
    let client = cluster.client(0);
    publish(&client, "EVENT", 0, 1).await;
    receiver
        .until("the first attempt", SOON, |log| !log.of("/parked").is_empty())
        .await;
    publish(&client, "EVENT", 1, 80).await;
    let others: BTreeSet<usize> = (1..80).filter(|number| per_key(*number) != Some(0)).collect();
    receiver
        .until("the other keys", SOON, |log| log.of("/parked").len() > others.len())
        .await;
    let came: BTreeSet<usize> = seen(&receiver, "/parked").into_iter().skip(1).collect();
    assert_eq!(came, others);
    touch(&client, "parked").await;
    receiver
        .until("all events", SOON, |log| log.of("/parked").len() == 81)
        .await;
    assert_in_order(&receiver, "/parked", per_key);
    cluster.drained(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_used_up_becomes_a_dead_letter_where_that_was_asked_for_and_the_rest_goes_on_in_order() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    giving_up(
        &cluster,
        &receiver,
        "dead",
        ordered(Ordering::Strict, OnFailure::DeadLetter, 0),
    )
    .await;
    publish(&cluster.client(0), "EVENT", 0, 60).await;
    receiver
        .until("all events", SOON, |log| log.of("/dead").len() == 60)
        .await;
    assert_eq!(seen(&receiver, "/dead"), (0..60).collect::<Vec<_>>());
    cluster.drained(SOON).await;
}

/// Requests a second of a bare client that sends one after the other.
async fn one_after_the_other(receiver: &Receiver, count: usize) -> f64 {
    let stream = TcpStream::connect(receiver.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut connections = tokio::task::JoinSet::new();
    connections.spawn(connection);
    let begin = Instant::now();
    for _ in 0..count {
        let request = Request::post("/paced")
            .header("host", "bare")
            .body(Full::new(Bytes::from_static(b"{}")));
        sender.ready().await.unwrap();
        let answer = sender.send_request(request.unwrap()).await.unwrap();
        answer.into_body().collect().await.unwrap();
    }
    count as f64 / begin.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_order_costs_little_more_than_the_round_trip() {
    const EVENTS: usize = 500;
    const DELAY: Duration = Duration::from_millis(5);
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    receiver.script("/paced", [Answer::status(StatusCode::OK).after(DELAY)]);
    let bare = one_after_the_other(&receiver, EVENTS).await;
    let before = receiver.log().of("/paced").len();
    let strict = with(
        &receiver.url("/paced"),
        "PACED",
        0,
        ordered(Ordering::Strict, OnFailure::Unspecified, 0),
    );
    cluster.client(0).create_webhook(ACCOUNT, "paced", strict).await;
    cluster.matching(ACCOUNT, "PACED", 1).await;
    publish(&cluster.client(0), "PACED", 0, EVENTS).await;
    receiver
        .until("all events", FLOW, |log| log.of("/paced").len() == before + EVENTS)
        .await;
    let log = receiver.log();
    let requests = log.of("/paced").split_off(before);
    let (first, last) = (requests[0].arrived, requests[EVENTS - 1].arrived);
    let ours = (EVENTS - 1) as f64 / (last - first).as_secs_f64();
    println!(
        "one after the other, answered after {DELAY:?}: {bare:.0} a second by a bare client, {ours:.0} in strict order: {:.2}",
        ours / bare
    );
    // In a debug build, on a machine that does other things: half is far above what a store write for each event would leave.
    assert!(ours > bare / 2.0, "{ours:.0} a second, {bare:.0} by a bare client");
}
