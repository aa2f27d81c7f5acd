//! Numbered deliveries: from 1, without gaps, in the order of acceptance, and the same on every attempt, whoever dies.

use std::collections::BTreeMap;

use http::StatusCode;
use postrider_proto::v1::{DeliveryOptions, Webhook, delivery_options};
use postrider_tests::client::{event, no_auth, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Receiver};

use crate::{ACCOUNT, FLOW, flow_id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_have_no_gaps_and_stay_with_their_events_although_the_agent_is_killed() {
    const EVENTS: usize = 600;
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let numbered = Webhook {
        delivery: Some(DeliveryOptions {
            mode: delivery_options::Mode::RealTime.into(),
            sequence_header: true,
            ..DeliveryOptions::default()
        }),
        ..webhook(&receiver.url("/numbered"), &["A"], no_auth())
    };
    client.create_webhook(ACCOUNT, "numbered", numbered).await;
    cluster.matching(ACCOUNT, "A", 1).await;
    // Every third of the first requests is refused, so that many are tried twice.
    let answers = (0..EVENTS).map(|number| {
        let status = if number % 3 == 0 {
            StatusCode::CONFLICT
        } else {
            StatusCode::OK
        };
        Answer::status(status)
    });
    receiver.script("/numbered", answers);
    for from in (0..EVENTS).step_by(20) {
        let one = |number| event(&flow_id(number), "A", "{}");
        client.publish(ACCOUNT, (from..from + 20).map(one).collect()).await;
        if from == EVENTS / 3 || from == EVENTS / 3 * 2 {
            receiver
                .until("some more events", FLOW, |log| log.distinct() >= from / 2)
                .await;
            cluster.kill_agent(0).await;
        }
    }
    receiver.until("all events", FLOW, |log| log.distinct() == EVENTS).await;
    let log = receiver.log();
    let mut numbers: BTreeMap<String, String> = BTreeMap::new();
    for request in log.requests() {
        let (id, number) = (request.header("webhook-id"), request.header("webhook-sequence"));
        let known = numbers.entry(id.to_owned()).or_insert_with(|| number.to_owned());
        assert_eq!(known, number, "{id} had another number before");
    }
    for number in 0..EVENTS {
        let id = flow_id(number);
        assert_eq!(numbers[&id], (number + 1).to_string(), "{id}");
    }
    println!("{} requests for {EVENTS} events", log.requests().len());
}
