//! The scenarios: what Postrider promises, tried on a real cluster of real programs on real sockets, and broken where it can be.
//!
//! The programs must have been built (`make test` does). Each scenario has a cluster and an etcd of its own, is bounded in time, and
//! prints the tails of all logs when it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a scenario that cannot go on must fail"
)]

mod accounting;
mod auth_kinds;
mod batches;
mod commands;
mod crash;
mod dead_letters;
mod deliver;
mod every_feature;
mod filter;
mod following;
mod handover;
mod history;
mod lifecycle;
mod never_retry;
mod nospace;
mod operational_events;
mod order;
mod order_commands;
mod payload;
mod publish;
mod publish_checks;
mod reflection;
mod sequence;
mod standalone;
mod test_webhook;
mod unwell;
mod upgrade;
mod watch_webhooks;

use std::time::Duration;

use postrider_proto::v1::Event;
use postrider_tests::client::{event, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::Receiver;

/// The account that most scenarios publish for.
const ACCOUNT: &str = "1010";

/// How long what should happen at once may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// How long a flow of thousands of events may take, with a lease that must run out in the middle, in a debug build on two cores.
const FLOW: Duration = Duration::from_secs(120);

/// Creates an account with `count` webhooks; webhook number k is at the path `/k` and asks for `FLOW_k`.
async fn flow_webhooks(cluster: &Cluster, receiver: &Receiver, count: usize) {
    let client = cluster.client(0);
    client.create_account(ACCOUNT, i32::try_from(count).unwrap()).await;
    for number in 0..count {
        let webhook = webhook(&receiver.url(&format!("/{number}")), &[&format!("FLOW_{number}")], None);
        client.create_webhook(ACCOUNT, &format!("flow-{number}"), webhook).await;
    }
    for number in 0..count {
        cluster.matching(ACCOUNT, &format!("FLOW_{number}"), 1).await;
    }
}

/// Events number `from` to `to`, one after the other for each of `webhooks` webhooks.
fn flow_events(from: usize, to: usize, webhooks: usize) -> Vec<Event> {
    let one = |number| {
        event(
            &flow_id(number),
            &format!("FLOW_{}", number % webhooks),
            format!("{{\"number\":{number}}}"),
        )
    };
    (from..to).map(one).collect()
}

/// The id of event `number` of a flow.
fn flow_id(number: usize) -> String {
    format!("event-{number}")
}

/// Asserts that every event of a flow arrived at its webhook, unchanged, and that nothing else did.
fn assert_all_arrived(receiver: &Receiver, events: usize, webhooks: usize) {
    let log = receiver.log();
    let missing: Vec<usize> = (0..events)
        .filter(|number| !log.has(&format!("/{}", number % webhooks), &flow_id(*number)))
        .collect();
    assert!(
        missing.is_empty(),
        "{} events are lost: {:?}",
        missing.len(),
        &missing[..missing.len().min(20)]
    );
    assert_eq!(log.distinct(), events, "nothing arrived that was not published");
    for request in log.requests() {
        let body = request.json();
        let event = &body["events"][0];
        let number = event["data"]["number"].as_u64().unwrap();
        assert_eq!(event["eventId"], request.header("webhook-id"));
        assert_eq!(
            event["eventId"].as_str(),
            Some(flow_id(usize::try_from(number).unwrap()).as_str())
        );
    }
}
