//! What an administrator does about deliveries: tries one now, drops one, redrives and purges dead letters; and none of it gets lost with an agent.

use std::time::Duration;

use http::StatusCode;
use postrider_proto::v1::delivery::State;
use postrider_proto::v1::{
    CancelDeliveryRequest, DeadLetterFilter, Delivery, GetAccountUsageRequest, PurgeDeadLettersRequest,
    RedriveDeadLettersRequest, RetryDeliveryRequest, RetryPolicy, Webhook,
};
use postrider_tests::client::{Client, event, no_auth, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Receiver};
use postrider_tests::wait;

use crate::{ACCOUNT, FLOW, SOON, flow_id};

pub(crate) const HOUR: prost_types::Duration = prost_types::Duration {
    seconds: 3600,
    nanos: 0,
};

pub(crate) fn parent() -> String {
    format!("accounts/{ACCOUNT}/webhooks/w")
}

pub(crate) fn name(id: &str) -> String {
    format!("{}/deliveries/{id}", parent())
}

/// A webhook that is used up after `attempts` attempts, an hour apart.
pub(crate) fn patient(url: &str, attempts: i32) -> Webhook {
    Webhook {
        retry: Some(RetryPolicy {
            max_attempts: attempts,
            initial_delay: Some(HOUR),
            max_delay: Some(HOUR),
            ..RetryPolicy::default()
        }),
        ..webhook(url, &["A"], no_auth())
    }
}

/// So many requests are refused; the others are taken.
pub(crate) fn refusals(count: usize) -> Vec<Answer> {
    let mut answers = vec![Answer::status(StatusCode::NOT_FOUND); count];
    answers.push(Answer::status(StatusCode::OK));
    answers
}

pub(crate) async fn retry(client: &Client, id: &str) -> Delivery {
    let request = RetryDeliveryRequest { name: name(id) };
    client
        .deliveries()
        .retry_delivery(request)
        .await
        .expect("it is tried")
        .into_inner()
}

pub(crate) async fn cancel(client: &Client, id: &str) -> Delivery {
    let request = CancelDeliveryRequest { name: name(id) };
    client
        .deliveries()
        .cancel_delivery(request)
        .await
        .expect("it is dropped")
        .into_inner()
}

pub(crate) async fn dead(client: &Client) -> i64 {
    let request = RedriveDeadLettersRequest {
        parent: parent(),
        validate_only: true,
        ..RedriveDeadLettersRequest::default()
    };
    let answer = client.deliveries().redrive_dead_letters(request).await;
    answer.expect("they are counted").into_inner().matched_count
}

pub(crate) async fn publish(client: &Client, events: std::ops::Range<usize>) {
    let events = events.map(|number| event(&flow_id(number), "A", "{}")).collect();
    client.publish(ACCOUNT, events).await;
}

#[tokio::test]
async fn a_delivery_that_waits_is_tried_now_or_dropped_and_a_dead_one_too() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    client
        .create_webhook(ACCOUNT, "w", patient(&receiver.url("/w"), 2))
        .await;
    cluster.matching(ACCOUNT, "A", 1).await;
    receiver.script("/w", refusals(6));
    publish(&client, 0..5).await;
    receiver
        .until("all to have failed once", SOON, |log| log.requests().len() == 5)
        .await;
    // It fails again, and is used up.
    retry(&client, &flow_id(0)).await;
    wait::until("the first to be dead", SOON, async || {
        (dead(&client).await == 1).then_some(())
    })
    .await;
    retry(&client, &flow_id(1)).await;
    retry(&client, &flow_id(0)).await;
    receiver
        .until("two to be delivered", SOON, |log| log.distinct() == 2)
        .await;
    let dropped = cancel(&client, &flow_id(2)).await;
    assert_eq!(dropped.state, i32::from(State::Dropped), "{dropped:?}");
    for number in 0..2 {
        assert!(receiver.log().has("/w", &flow_id(number)));
    }
    let request = RetryDeliveryRequest {
        name: name(&flow_id(2)),
    };
    let status = client.deliveries().retry_delivery(request).await.unwrap_err();
    assert!(
        matches!(status.code(), tonic::Code::FailedPrecondition | tonic::Code::NotFound),
        "{status:?}"
    );
    let request = GetAccountUsageRequest {
        name: format!("accounts/{ACCOUNT}"),
    };
    let usage = client.accounts().get_account_usage(request).await.unwrap().into_inner();
    let total = usage.total.unwrap();
    assert_eq!(
        (total.accepted, total.delivered, total.waiting, total.dead),
        (5, 2, 2, 0)
    );
    assert_eq!(total.dropped[0].reason, "CANCELLED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redrive_goes_on_although_every_agent_is_killed_over_it_and_repeats_little() {
    const EVENTS: usize = 3000;
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    client
        .create_webhook(ACCOUNT, "w", patient(&receiver.url("/w"), 1))
        .await;
    cluster.matching(ACCOUNT, "A", 1).await;
    receiver.script("/w", refusals(EVENTS));
    for from in (0..EVENTS).step_by(500) {
        publish(&client, from..from + 500).await;
    }
    let all = i64::try_from(EVENTS).unwrap();
    wait::until("all to be dead", FLOW, async || {
        (dead(&client).await == all).then_some(())
    })
    .await;
    let request = RedriveDeadLettersRequest {
        parent: parent(),
        ..RedriveDeadLettersRequest::default()
    };
    let redriving = async {
        // It may be carried out only by the next owner: the command stays.
        let answer = client.deliveries().redrive_dead_letters(request).await;
        answer.expect("it is redriven").into_inner()
    };
    let killing = async {
        receiver
            .until("the first to be delivered", FLOW, |log| log.distinct() > 0)
            .await;
        for _ in 0..3 {
            cluster.kill_agent(0).await;
        }
        cluster.add_agent().await;
    };
    let (answer, ()) = tokio::join!(redriving, killing);
    assert_eq!(answer.matched_count, all);
    receiver
        .until("all to be delivered", FLOW, |log| log.distinct() == EVENTS)
        .await;
    cluster.drained(SOON).await;
    assert_eq!(dead(&client).await, 0);
    let repeats = receiver.log().repeats();
    println!("{repeats} of {EVENTS} came twice");
    assert!(repeats <= 300, "{repeats} came twice");
}

#[tokio::test]
async fn what_is_asked_for_while_every_agent_is_dead_is_carried_out_by_the_next() {
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    client
        .create_webhook(ACCOUNT, "w", patient(&receiver.url("/w"), 3))
        .await;
    cluster.matching(ACCOUNT, "A", 1).await;
    receiver.script("/w", refusals(4));
    publish(&client, 0..4).await;
    let waits = async || {
        let request = GetAccountUsageRequest {
            name: format!("accounts/{ACCOUNT}"),
        };
        let usage = client.accounts().get_account_usage(request).await.ok()?.into_inner();
        (usage.webhooks.first()?.counts.as_ref()?.waiting == 4 && receiver.log().requests().len() == 4).then_some(())
    };
    wait::until("all to wait for their retry", SOON, waits).await;
    for _ in 0..3 {
        cluster.kill_agent(0).await;
    }
    let name_of = |number| name(&flow_id(number));
    let status = client
        .deliveries()
        .retry_delivery(RetryDeliveryRequest { name: name_of(0) })
        .await
        .expect_err("nobody can carry it out");
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    let status = client
        .deliveries()
        .cancel_delivery(CancelDeliveryRequest { name: name_of(1) })
        .await
        .expect_err("nobody can carry it out");
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    cluster.add_agent().await;
    receiver
        .until("the first to be delivered", FLOW, |log| log.has("/w", &flow_id(0)))
        .await;
    wait::until("the second to be dropped", SOON, async || {
        let request = GetAccountUsageRequest {
            name: format!("accounts/{ACCOUNT}"),
        };
        let usage = client.accounts().get_account_usage(request).await.ok()?.into_inner();
        let total = usage.total?;
        let cancelled = total
            .dropped
            .first()
            .map(|dropped| (dropped.reason.as_str(), dropped.count));
        (cancelled == Some(("CANCELLED", 1)) && (total.delivered, total.waiting) == (1, 2)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn dead_letters_are_redriven_by_filter_and_at_a_rate_and_purged() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(1);
    client
        .create_webhook(ACCOUNT, "w", patient(&receiver.url("/w"), 1))
        .await;
    cluster.matching(ACCOUNT, "A", 1).await;
    receiver.script("/w", refusals(40));
    publish(&client, 0..40).await;
    wait::until("all to be dead", SOON, async || {
        (dead(&client).await == 40).then_some(())
    })
    .await;
    let some = RedriveDeadLettersRequest {
        parent: parent(),
        filter: Some(DeadLetterFilter {
            event_ids: (0..20).map(flow_id).collect(),
            reasons: vec!["STATUS".to_owned()],
            ..DeadLetterFilter::default()
        }),
        max_per_second: 10.0,
        ..RedriveDeadLettersRequest::default()
    };
    let answer = client
        .deliveries()
        .redrive_dead_letters(some)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((answer.matched_count, answer.complete), (20, true));
    receiver
        .until("those to be delivered", SOON, |log| log.distinct() == 20)
        .await;
    let took = {
        let log = receiver.log();
        let mut arrived = log.requests().iter().filter(|request| request.status.is_success());
        let first = arrived.next().expect("there is one").arrived;
        arrived.last().expect("there are more").arrived - first
    };
    assert!(took >= Duration::from_millis(1500), "20 at 10 a second took {took:?}");
    let purge = PurgeDeadLettersRequest {
        parent: parent(),
        ..PurgeDeadLettersRequest::default()
    };
    let answer = client
        .deliveries()
        .purge_dead_letters(purge)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((answer.matched_count, answer.complete), (20, true));
    assert_eq!(dead(&client).await, 0);
}
