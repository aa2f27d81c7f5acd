//! Several events in one request: batches at their time, frozen whatever dies, taken in part; and what waits goes together.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::StatusCode;
use postrider_proto::v1::delivery_options::Mode;
use postrider_proto::v1::event_type::Category;
use postrider_proto::v1::{CreateEventTypeRequest, DeliveryOptions, Event, EventType, RetryPolicy, Schedule, Webhook};
use postrider_tests::client::{Client, event, millis, no_auth, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Received, Receiver};

use crate::{ACCOUNT, FLOW, SOON};

fn events(name: &str, count: usize) -> Vec<Event> {
    let one = |number| event(&format!("{name}-{number}"), name, format!("{{\"n\":{number}}}"));
    (0..count).map(one).collect()
}

fn with(url: &str, name: &str, delivery: DeliveryOptions) -> Webhook {
    Webhook {
        delivery: Some(delivery),
        retry: Some(RetryPolicy {
            initial_delay: Some(millis(100)),
            ..RetryPolicy::default()
        }),
        ..webhook(url, &[name], no_auth())
    }
}

fn batches(seconds: i64, max_events: i32) -> DeliveryOptions {
    DeliveryOptions {
        mode: Mode::Batch.into(),
        max_delay: Some(prost_types::Duration { seconds, nanos: 0 }),
        max_events,
        ..DeliveryOptions::default()
    }
}

/// The ids of a request's events.
fn ids(request: &Received) -> Vec<String> {
    let body = request.json();
    let events = body["events"].as_array().expect("an envelope").iter();
    events
        .map(|event| event["eventId"].as_str().expect("an id").to_owned())
        .collect()
}

/// Ids of all events that a path has taken, with how often; a request of which only some were taken counts for those.
fn taken(receiver: &Receiver, path: &str) -> BTreeMap<String, usize> {
    let mut taken = BTreeMap::new();
    for request in receiver
        .log()
        .of(path)
        .iter()
        .filter(|request| request.status.is_success())
    {
        for id in ids(request) {
            *taken.entry(id).or_default() += 1;
        }
    }
    taken
}

/// All requests of one id are the same, and no event goes under two ids.
fn assert_frozen(receiver: &Receiver, path: &str) {
    let log = receiver.log();
    let mut bodies: BTreeMap<&str, &[u8]> = BTreeMap::new();
    let mut homes: BTreeMap<String, &str> = BTreeMap::new();
    for request in log.of(path) {
        let id = request.header("webhook-id");
        let first = bodies.entry(id).or_insert(&request.body);
        assert_eq!(*first, request.body, "{id} had another body before");
        for event in ids(request) {
            let home = homes.entry(event.clone()).or_insert(id);
            assert_eq!(*home, id, "{event} came under two ids");
        }
    }
}

async fn publish_all(client: &Client, events: Vec<Event>) {
    client.publish(ACCOUNT, events).await;
}

#[tokio::test]
async fn events_of_a_batch_webhook_wait_for_each_other_and_go_in_requests_that_are_as_full_as_asked() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    // Far away: only that enough are waiting can send them.
    let full = with(&receiver.url("/full"), "FULL", batches(3600, 20));
    client.create_webhook(ACCOUNT, "full", full).await;
    let late = with(&receiver.url("/late"), "LATE", batches(1, 1000));
    client.create_webhook(ACCOUNT, "late", late).await;
    cluster.matching(ACCOUNT, "FULL", 1).await;
    cluster.matching(ACCOUNT, "LATE", 1).await;
    publish_all(&client, events("FULL", 65)).await;
    publish_all(&client, events("LATE", 30)).await;
    receiver
        .until("three full batches and one that was due", SOON, |log| {
            log.of("/full").len() == 3 && log.of("/late").len() == 1
        })
        .await;
    let sizes: Vec<usize> = receiver
        .log()
        .of("/full")
        .iter()
        .map(|request| ids(request).len())
        .collect();
    assert_eq!(sizes, [20, 20, 20], "the last five wait for others");
    let late = receiver
        .log()
        .of("/late")
        .iter()
        .flat_map(|request| ids(request))
        .collect::<Vec<_>>();
    let expected: Vec<String> = (0..30).map(|number| format!("LATE-{number}")).collect();
    assert_eq!(late, expected, "in the order of acceptance");
    assert_frozen(&receiver, "/full");
}

#[tokio::test]
async fn events_of_a_non_real_time_type_go_in_batches_where_the_webhook_does_not_say_otherwise() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let request = CreateEventTypeRequest {
        event_type_id: "NIGHTLY".to_owned(),
        event_type: Some(EventType {
            category: Category::NonRealTime.into(),
            ..EventType::default()
        }),
        ..CreateEventTypeRequest::default()
    };
    client.event_types().create_event_type(request).await.unwrap();
    let mut unset = batches(1, 0);
    unset.mode = Mode::Unspecified.into();
    let unset = Webhook {
        event_types: vec!["NIGHTLY".to_owned(), "PROMPT".to_owned()],
        ..with(&receiver.url("/unset"), "NIGHTLY", unset)
    };
    client.create_webhook(ACCOUNT, "unset", unset).await;
    let at_once = DeliveryOptions {
        mode: Mode::RealTime.into(),
        ..DeliveryOptions::default()
    };
    client
        .create_webhook(ACCOUNT, "at-once", with(&receiver.url("/at-once"), "NIGHTLY", at_once))
        .await;
    cluster.matching(ACCOUNT, "NIGHTLY", 2).await;
    publish_all(&client, events("NIGHTLY", 10)).await;
    publish_all(&client, events("PROMPT", 3)).await;
    receiver
        .until("one batch, three single ones, and ten at once", SOON, |log| {
            log.of("/unset").len() >= 4 && log.of("/at-once").len() >= 10
        })
        .await;
    let mut sizes: Vec<usize> = receiver
        .log()
        .of("/unset")
        .iter()
        .map(|request| ids(request).len())
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 1, 1, 10]);
    assert!(
        receiver
            .log()
            .of("/at-once")
            .iter()
            .all(|request| ids(request).len() == 1)
    );
    cluster.drained(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_the_same_on_every_attempt_whichever_agent_makes_it() {
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    client.create_account(ACCOUNT, 30).await;
    let bad = Answer::status(StatusCode::SERVICE_UNAVAILABLE);
    for number in 0..6 {
        let path = format!("/w{number}");
        client
            .create_webhook(
                ACCOUNT,
                &format!("w{number}"),
                with(&receiver.url(&path), "BATCHED", batches(1, 25)),
            )
            .await;
        receiver.script(
            &path,
            [bad.clone(), bad.clone(), bad.clone(), Answer::status(StatusCode::OK)],
        );
    }
    cluster.matching(ACCOUNT, "BATCHED", 6).await;
    let all = events("BATCHED", 200);
    for part in all.chunks(7) {
        client.publish(ACCOUNT, part.to_vec()).await;
    }
    receiver
        .until("the first attempts", FLOW, |log| log.requests().len() >= 20)
        .await;
    cluster.kill_agent(0).await;
    cluster.kill_agent(0).await;
    let wanted: BTreeSet<String> = all.iter().map(|event| event.event_id.clone()).collect();
    receiver
        .until("every event at every webhook", FLOW, |log| {
            (0..6).all(|number| {
                let requests = log.of(&format!("/w{number}"));
                let accepted = requests.iter().filter(|request| request.status.is_success());
                accepted.flat_map(|request| ids(request)).collect::<BTreeSet<_>>() == wanted
            })
        })
        .await;
    cluster.drained(SOON).await;
    for number in 0..6 {
        assert_frozen(&receiver, &format!("/w{number}"));
    }
}

#[tokio::test]
async fn of_a_request_that_was_taken_in_part_only_the_rest_comes_again_under_another_id() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    client
        .create_webhook(ACCOUNT, "part", with(&receiver.url("/part"), "PART", batches(1, 100)))
        .await;
    let part = Answer::status(StatusCode::MULTI_STATUS).saying("{\"failed\":[\"PART-2\",\"PART-5\",\"unknown\"]}");
    receiver.script(
        "/part",
        [part, Answer::status(StatusCode::OK).saying("{\"failed\":[]}")],
    );
    cluster.matching(ACCOUNT, "PART", 1).await;
    publish_all(&client, events("PART", 8)).await;
    receiver
        .until("two requests", SOON, |log| log.of("/part").len() == 2)
        .await;
    cluster.drained(SOON).await;
    let log = receiver.log();
    let requests = log.of("/part");
    assert_eq!(ids(requests[0]).len(), 8);
    assert_eq!(ids(requests[1]), ["PART-2", "PART-5"]);
    assert_ne!(requests[0].header("webhook-id"), requests[1].header("webhook-id"));
    assert_eq!(requests[1].header("webhook-attempt"), "2");
    assert_eq!(requests.len(), 2);
}

#[tokio::test]
async fn what_waits_for_a_real_time_webhook_goes_together_and_an_idle_one_waits_for_nothing() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let delivery = DeliveryOptions {
        max_events: 50,
        max_in_flight: 1,
        ..DeliveryOptions::default()
    };
    client
        .create_webhook(ACCOUNT, "together", with(&receiver.url("/together"), "EAGER", delivery))
        .await;
    receiver.script(
        "/together",
        [Answer::status(StatusCode::OK).after(Duration::from_millis(300))],
    );
    cluster.matching(ACCOUNT, "EAGER", 1).await;
    let all = events("EAGER", 101);
    client.publish(ACCOUNT, all[..1].to_vec()).await;
    receiver
        .until("the first alone", SOON, |log| log.of("/together").len() == 1)
        .await;
    client.publish(ACCOUNT, all[1..].to_vec()).await;
    receiver
        .until("all events", SOON, |log| {
            log.of("/together")
                .iter()
                .map(|request| ids(request).len())
                .sum::<usize>()
                == 101
        })
        .await;
    cluster.drained(SOON).await;
    let sizes: Vec<usize> = receiver
        .log()
        .of("/together")
        .iter()
        .map(|request| ids(request).len())
        .collect();
    assert_eq!((sizes.len(), sizes[0]), (3, 1), "{sizes:?}");
    assert_eq!(receiver.log().of("/together")[0].header("webhook-id"), "EAGER-0");
    assert!(taken(&receiver, "/together").values().all(|times| *times == 1));
    assert_frozen(&receiver, "/together");
}

#[tokio::test]
async fn a_schedule_that_changes_applies_to_what_waits() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let far = DeliveryOptions {
        mode: Mode::Batch.into(),
        schedule: Some(Schedule {
            // 29 February: years away at most times, and not today.
            cron: "0 0 29 2 *".to_owned(),
            time_zone: "Europe/Paris".to_owned(),
        }),
        ..DeliveryOptions::default()
    };
    let created = client
        .create_webhook(ACCOUNT, "far", with(&receiver.url("/far"), "FAR", far))
        .await;
    cluster.matching(ACCOUNT, "FAR", 1).await;
    publish_all(&client, events("FAR", 12)).await;
    // It waits in the store, as its key says.
    let waiting = async || {
        let keys = cluster.etcd.client(0).keys_with("/parked/").await.unwrap();
        (!keys.is_empty()).then_some(keys)
    };
    postrider_tests::wait::until("the events to be gathered", SOON, waiting).await;
    assert!(receiver.log().of("/far").is_empty());
    let request = postrider_proto::v1::UpdateWebhookRequest {
        webhook: Some(Webhook {
            name: created.name,
            delivery: Some(batches(1, 0)),
            ..Webhook::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["delivery.schedule".to_owned(), "delivery.max_delay".to_owned()],
        }),
        validate_only: false,
    };
    client.webhooks().update_webhook(request).await.unwrap();
    receiver.until("one batch", SOON, |log| log.of("/far").len() == 1).await;
    assert_eq!(ids(receiver.log().of("/far")[0]).len(), 12);
    cluster.drained(SOON).await;
}
