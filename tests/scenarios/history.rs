//! Looking deliveries up while they happen: where each stands, every attempt, why, and live; also when agents and control planes die.

use std::collections::BTreeSet;

use http::StatusCode;
use postrider_proto::v1::delivery::{State, View};
use postrider_proto::v1::explain_delivery_response::Cause;
use postrider_proto::v1::{
    Attempt, Delivery, DeliveryOptions, ExplainDeliveryRequest, ExplainDeliveryResponse, GetDeliveryRequest,
    ListAttemptsRequest, ListDeadLettersRequest, ListDeliveriesRequest, RetryPolicy, Schedule, UpdateWebhookRequest,
    Webhook, delivery_options, webhook,
};
use postrider_tests::client::{self, Client, Publisher, event, millis, no_auth};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Receiver};
use postrider_tests::wait;
use tonic::Status;

use crate::{ACCOUNT, FLOW, SOON, flow_events, flow_id, flow_webhooks};

fn name(webhook: &str, event: &str) -> String {
    format!("accounts/{ACCOUNT}/webhooks/{webhook}/deliveries/{event}")
}

async fn get(client: &Client, webhook: &str, event: &str) -> Result<Delivery, Status> {
    let request = GetDeliveryRequest {
        name: name(webhook, event),
        ..GetDeliveryRequest::default()
    };
    let answer = client.deliveries().get_delivery(request).await?;
    Ok(answer.into_inner())
}

/// Waits until a delivery is in a state.
pub(crate) async fn stands(client: &Client, webhook: &str, event: &str, state: State) -> Delivery {
    let what = format!("{event} of {webhook} to be {state:?}");
    wait::until(&what, SOON, async || {
        let delivery = get(client, webhook, event).await.ok()?;
        (delivery.state() == state).then_some(delivery)
    })
    .await
}

async fn explain(client: &Client, webhook: &str, event: &str) -> ExplainDeliveryResponse {
    let request = ExplainDeliveryRequest {
        name: name(webhook, event),
    };
    let answer = client.deliveries().explain_delivery(request).await.unwrap();
    answer.into_inner()
}

/// Waits until an explanation comes down to something.
async fn explained(client: &Client, webhook: &str, event: &str, cause: Cause) -> ExplainDeliveryResponse {
    wait::until(&format!("{event} to be explained by {cause:?}"), SOON, async || {
        let explained = explain(client, webhook, event).await;
        (explained.cause() == cause).then_some(explained)
    })
    .await
}

/// All attempts of a delivery, newest first, as soon as the history tells of `count`.
async fn attempts(client: &Client, webhook: &str, event: &str, count: usize) -> Vec<Attempt> {
    let request = ListAttemptsRequest {
        parent: name(webhook, event),
        ..ListAttemptsRequest::default()
    };
    wait::until(&format!("{count} attempts of {event}"), SOON, async || {
        let answer = client.deliveries().list_attempts(request.clone()).await.unwrap();
        let attempts = answer.into_inner().attempts;
        (attempts.len() >= count).then_some(attempts)
    })
    .await
}

/// All deliveries of a webhook that a filter chooses, page by page.
pub(crate) async fn listed(client: &Client, webhook: &str, filter: ListDeliveriesRequest) -> Vec<Delivery> {
    let mut request = ListDeliveriesRequest {
        parent: format!("accounts/{ACCOUNT}/webhooks/{webhook}"),
        ..filter
    };
    let mut all = Vec::new();
    loop {
        let page = client.deliveries().list_deliveries(request.clone()).await.unwrap();
        let page = page.into_inner();
        all.extend(page.deliveries);
        if page.next_page_token.is_empty() {
            return all;
        }
        request.page_token = page.next_page_token;
    }
}

fn delivered() -> ListDeliveriesRequest {
    ListDeliveriesRequest {
        states: vec![State::Delivered.into()],
        ..ListDeliveriesRequest::default()
    }
}

pub(crate) fn ids(deliveries: &[Delivery]) -> BTreeSet<&str> {
    deliveries.iter().map(|delivery| delivery.event_id.as_str()).collect()
}

fn retrying(url: &str, name: &str, initial_delay: i32, max_attempts: i32) -> Webhook {
    Webhook {
        retry: Some(RetryPolicy {
            initial_delay: Some(millis(initial_delay)),
            max_attempts,
            ..RetryPolicy::default()
        }),
        ..client::webhook(url, &[name], no_auth())
    }
}

async fn set_active(client: &Client, webhook: &str, active: bool) {
    let request = UpdateWebhookRequest {
        webhook: Some(Webhook {
            name: format!("accounts/{ACCOUNT}/webhooks/{webhook}"),
            active: Some(active),
            ..Webhook::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["active".to_owned()],
        }),
        validate_only: false,
    };
    client.webhooks().update_webhook(request).await.unwrap();
}

#[tokio::test]
async fn a_delivery_is_seen_on_its_way_with_every_attempt_and_the_reason_for_where_it_is() {
    let mut cluster = Cluster::of(1, 2, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    client.create_account(ACCOUNT, 10).await;
    let refusal = Answer::status(StatusCode::CONFLICT)
        .saying("not now")
        .with("x-why", "busy");
    receiver.script(
        "/slow",
        [refusal.clone(), refusal.clone(), Answer::status(StatusCode::OK)],
    );
    receiver.script("/bad", [refusal]);
    client
        .create_webhook(ACCOUNT, "slow", retrying(&receiver.url("/slow"), "SLOW", 2_000, 0))
        .await;
    client
        .create_webhook(ACCOUNT, "bad", retrying(&receiver.url("/bad"), "BAD", 100, 2))
        .await;
    for name in ["SLOW", "BAD"] {
        cluster.matching(ACCOUNT, name, 1).await;
    }
    client
        .publish(
            ACCOUNT,
            vec![event("s", "SLOW", "{\"n\":1}"), event("b", "BAD", "{\"n\":2}")],
        )
        .await;

    let waiting = stands(&client, "slow", "s", State::Waiting).await;
    assert_eq!(
        (waiting.attempts, waiting.reason.as_str(), waiting.status_code),
        (1, "STATUS", 409)
    );
    assert!(waiting.next_attempt_time.is_some());
    let why = explained(&client, "slow", "s", Cause::Retry).await;
    assert!(why.summary.contains("STATUS, status 409"), "{}", why.summary);
    assert_eq!(why.owner_agent, "agent-2");

    let taken = stands(&cluster.client(1), "slow", "s", State::Delivered).await;
    assert_eq!(
        (taken.attempts, taken.status_code, taken.event_name.as_str()),
        (3, 200, "SLOW")
    );
    let made = attempts(&client, "slow", "s", 3).await;
    let told: Vec<(i32, i32, &str)> = made
        .iter()
        .map(|attempt| (attempt.number, attempt.status_code, attempt.reason.as_str()))
        .collect();
    assert_eq!(told, [(3, 200, ""), (2, 409, "STATUS"), (1, 409, "STATUS")]);
    for attempt in &made {
        assert_eq!(attempt.address, receiver.address().to_string());
        assert_eq!((attempt.message_id.as_str(), attempt.webhook_generation), ("s", 1));
        assert_eq!(attempt.results.len(), 1);
        assert!(attempt.duration.unwrap().nanos > 0 && attempt.start_time.is_some());
    }
    assert_eq!(made[0].response_body, "");
    assert_eq!(made[1].response_body, "not now");
    assert!(
        made[1]
            .response_headers
            .iter()
            .any(|header| header.name == "x-why" && header.value == "busy")
    );
    assert_eq!(made[1].results[0].state(), State::Waiting);
    assert_eq!(explain(&client, "slow", "s").await.cause(), Cause::Delivered);

    let dead = stands(&client, "bad", "b", State::Dead).await;
    assert_eq!(
        (dead.attempts, dead.reason.as_str(), dead.status_code),
        (2, "STATUS", 409)
    );
    assert!(
        explain(&client, "bad", "b")
            .await
            .summary
            .contains("it was tried 2 times")
    );
    let request = ListDeadLettersRequest {
        parent: format!("accounts/{ACCOUNT}/webhooks/bad"),
        view: View::Full.into(),
        ..ListDeadLettersRequest::default()
    };
    let letters = client
        .deliveries()
        .list_dead_letters(request)
        .await
        .unwrap()
        .into_inner()
        .dead_letters;
    let body = letters[0].event.clone().unwrap().body.unwrap();
    assert_eq!(body, postrider_proto::v1::event::Body::DataJson("{\"n\":2}".into()));

    // Nobody is there to deliver.
    cluster.kill_agent(0).await;
    let lonely = explained(&client, "slow", "nothing", Cause::Unknown);
    assert!(lonely.await.delivery.is_none());
    client.publish(ACCOUNT, vec![event("late", "SLOW", "{}")]).await;
    let pending = stands(&client, "slow", "late", State::Pending).await;
    assert_eq!(pending.attempts, 0);
    let why = explained(&client, "slow", "late", Cause::NoOwner).await;
    assert_eq!((why.owner_agent.as_str(), why.segments_ahead), ("", 0));
    cluster.add_agent().await;
    stands(&client, "slow", "late", State::Delivered).await;
    // What was told before the agent died is still told, once.
    assert_eq!(attempts(&client, "slow", "s", 3).await.len(), 3);
    assert_eq!(listed(&client, "slow", delivered()).await.len(), 2);
}

#[tokio::test]
async fn what_waits_for_its_webhook_or_its_batch_says_so() {
    let cluster = Cluster::of(1, 1, 2).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let hold = Webhook {
        when_inactive: webhook::WhenInactive::Hold.into(),
        ..client::webhook(&receiver.url("/hold"), &["HOLD"], no_auth())
    };
    let batch = Webhook {
        delivery: Some(DeliveryOptions {
            mode: delivery_options::Mode::Batch.into(),
            schedule: Some(Schedule {
                cron: "0 3 1 1 *".into(),
                time_zone: "Europe/Zurich".into(),
            }),
            ..DeliveryOptions::default()
        }),
        ..client::webhook(&receiver.url("/batch"), &["BATCH"], no_auth())
    };
    receiver.script("/gone", [Answer::status(StatusCode::GONE)]);
    client.create_webhook(ACCOUNT, "hold", hold).await;
    client.create_webhook(ACCOUNT, "batch", batch).await;
    client
        .create_webhook(ACCOUNT, "gone", retrying(&receiver.url("/gone"), "GONE", 100, 0))
        .await;
    set_active(&client, "hold", false).await;
    for name in ["HOLD", "BATCH", "GONE"] {
        cluster.matching(ACCOUNT, name, 1).await;
    }
    let events = ["HOLD", "BATCH", "GONE"].map(|name| event(&name.to_lowercase(), name, "{}"));
    client.publish(ACCOUNT, events.into()).await;
    let why = explained(&client, "hold", "hold", Cause::WebhookRetired).await;
    assert_eq!(why.webhook_state(), webhook::State::Retired);
    let why = explained(&client, "batch", "batch", Cause::Batch).await;
    assert!(
        why.summary.contains("0 3 1 1 *") && why.summary.contains("Europe/Zurich"),
        "{}",
        why.summary
    );
    let why = explained(&client, "gone", "gone", Cause::WebhookSuspended).await;
    assert!(why.summary.contains("GONE"), "{}", why.summary);
    let waiting = stands(&client, "gone", "gone", State::Waiting).await;
    // Another attempt may have been under way when the webhook was switched off.
    assert!(waiting.attempts >= 1 && waiting.status_code == 410);
    set_active(&client, "hold", true).await;
    stands(&client, "hold", "hold", State::Delivered).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_deliveries_are_paged_through_each_once_and_filters_choose_among_them() {
    const EVENTS: usize = 3_000;
    let cluster = Cluster::of(1, 2, 2).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    receiver.script("/dead", [Answer::status(StatusCode::BAD_REQUEST)]);
    let both = client::webhook(&receiver.url("/both"), &["EVEN", "ODD"], no_auth());
    client.create_webhook(ACCOUNT, "both", both).await;
    client
        .create_webhook(ACCOUNT, "dead", retrying(&receiver.url("/dead"), "ODD", 100, 1))
        .await;
    cluster.matching(ACCOUNT, "EVEN", 1).await;
    cluster.matching(ACCOUNT, "ODD", 2).await;
    let events = (0..EVENTS).map(|number| {
        let name = if number % 2 == 0 { "EVEN" } else { "ODD" };
        event(&format!("e-{number}"), name, "{}")
    });
    let publisher = Publisher {
        replicas: cluster.clients(),
        account: ACCOUNT.to_owned(),
        batch: 50,
        concurrency: 4,
        patience: FLOW,
    };
    publisher.publish_all(events.collect()).await;
    cluster.drained(FLOW).await;
    let small = ListDeliveriesRequest {
        page_size: 170,
        ..ListDeliveriesRequest::default()
    };
    let all = wait::until("all deliveries to be told of", SOON, async || {
        let all = listed(&client, "both", small.clone()).await;
        (all.len() >= EVENTS).then_some(all)
    })
    .await;
    assert_eq!((all.len(), ids(&all).len()), (EVENTS, EVENTS));
    assert!(
        all.iter()
            .all(|delivery| delivery.state() == State::Delivered && delivery.attempts == 1)
    );
    let dead = listed(&client, "dead", small.clone()).await;
    assert_eq!((dead.len(), ids(&dead).len()), (EVENTS / 2, EVENTS / 2));
    assert!(
        dead.iter()
            .all(|delivery| delivery.state() == State::Dead && delivery.status_code == 400)
    );
    let odd = ListDeliveriesRequest {
        event_types: vec!["OD*".into()],
        ..small.clone()
    };
    assert_eq!(listed(&client, "both", odd).await.len(), EVENTS / 2);
    let one = ListDeliveriesRequest {
        event_id: "e-77".into(),
        ..small.clone()
    };
    let one = listed(&client, "both", one).await;
    assert_eq!(ids(&one), ["e-77"].into());
    let since = one[0].accept_time;
    let later = ListDeliveriesRequest {
        start_time: since,
        ..small.clone()
    };
    let earlier = ListDeliveriesRequest {
        end_time: since,
        ..small
    };
    let (later, earlier) = (
        listed(&client, "both", later).await,
        listed(&client, "both", earlier).await,
    );
    assert_eq!(later.len() + earlier.len(), EVENTS);
    assert!(ids(&later).is_disjoint(&ids(&earlier)));
    // How much a delivery that went well takes in the store, keys and all.
    let entries = cluster.etcd.client(0).everything(false).await.unwrap().1;
    let told = entries
        .iter()
        .filter(|entry| entry.key.windows(9).any(|part| part == b"/history/"));
    let bytes: usize = told.map(|entry| entry.key.len() + entry.value.len()).sum();
    println!("{} bytes of history for {} deliveries", bytes, EVENTS + EVENTS / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_stays_within_its_bytes_under_a_flow() {
    const EVENTS: usize = 8_000;
    const SHARE: usize = 10_000;
    let bytes = (SHARE * 64).to_string();
    let cluster = Cluster::with(1, 1, 2, &["--history-bytes", &bytes]).await;
    let receiver = Receiver::start();
    flow_webhooks(&cluster, &receiver, 2).await;
    let publisher = Publisher {
        replicas: cluster.clients(),
        account: ACCOUNT.to_owned(),
        batch: 50,
        concurrency: 4,
        patience: FLOW,
    };
    publisher.publish_all(flow_events(0, EVENTS, 2)).await;
    receiver.until("all events", FLOW, |log| log.distinct() == EVENTS).await;
    cluster.drained(SOON).await;
    let told = async || {
        let entries = cluster.etcd.client(0).everything(false).await.unwrap().1;
        let told = entries
            .into_iter()
            .filter(|entry| entry.key.windows(9).any(|part| part == b"/history/"));
        told.map(|entry| entry.value.len()).collect::<Vec<_>>()
    };
    let client = cluster.client(0);
    let shown = wait::until("some of it to be told of", SOON, async || {
        let shown = listed(&client, "flow-0", delivered()).await;
        (!shown.is_empty()).then_some(shown)
    })
    .await;
    assert!(shown.len() < EVENTS / 2, "successes are left out: {}", shown.len());
    let bytes: usize = told().await.iter().sum();
    assert!(bytes <= 2 * SHARE, "{bytes} bytes");
    // What fails is told of, however busy the shard was.
    receiver.script("/0", [Answer::status(StatusCode::BAD_REQUEST)]);
    client.publish(ACCOUNT, flow_events(EVENTS, EVENTS + 1, 2)).await;
    let made = attempts(&client, "flow-0", &flow_id(EVENTS), 1).await;
    assert_eq!(made[0].status_code, 400);
    assert!(told().await.iter().sum::<usize>() <= 2 * SHARE);
}
