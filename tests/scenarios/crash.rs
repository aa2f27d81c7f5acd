//! Whatever dies, nothing that was accepted is lost, and little comes twice.

use std::time::Duration;

use postrider_tests::client::Publisher;
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::Receiver;

use crate::{ACCOUNT, FLOW, SOON, assert_all_arrived, flow_events, flow_webhooks};

/// How many events may come twice when one agent is killed: its requests under way (32 for each of its webhooks), and those answered
/// in the time of one transaction of its ledger, generously for a debug build on a busy machine.
const REPEATS_PER_KILL: usize = 1000;

fn publisher(cluster: &Cluster) -> Publisher {
    Publisher {
        replicas: cluster.clients(),
        account: ACCOUNT.to_owned(),
        batch: 20,
        concurrency: 8,
        patience: Duration::from_secs(60),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_and_a_control_plane_killed_among_20_000_events_lose_none() {
    const EVENTS: usize = 20_000;
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    flow_webhooks(&cluster, &receiver, 12).await;
    let publisher = publisher(&cluster);
    let publishing = publisher.publish_all(flow_events(0, EVENTS, 12));
    let killing = async {
        receiver
            .until("a quarter of the events", FLOW, |log| log.distinct() >= EVENTS / 4)
            .await;
        cluster.kill_agent(0).await;
        receiver
            .until("a third of the events", FLOW, |log| log.distinct() >= EVENTS / 3)
            .await;
        cluster.kill_control_plane(0).await;
    };
    let (effort, ()) = tokio::join!(publishing, killing);
    receiver.until("all events", FLOW, |log| log.distinct() == EVENTS).await;
    cluster.drained(SOON).await;
    assert_all_arrived(&receiver, EVENTS, 12);
    let repeats = receiver.log().repeats();
    println!("{effort:?}, {repeats} events came twice");
    assert!(repeats <= REPEATS_PER_KILL, "{repeats} events came twice");
    assert_eq!((effort.requests, effort.deliveries), (EVENTS / 20, EVENTS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_survives_the_death_of_every_agent_and_control_plane() {
    const EVENTS: usize = 2000;
    let mut cluster = Cluster::start().await;
    let mut receiver = Receiver::start();
    flow_webhooks(&cluster, &receiver, 4).await;
    receiver.down().await;
    publisher(&cluster).publish_all(flow_events(0, EVENTS, 4)).await;
    while !cluster.agents.is_empty() {
        cluster.kill_agent(0).await;
    }
    while !cluster.control_planes.is_empty() {
        cluster.kill_control_plane(0).await;
    }
    receiver.up();
    cluster.add_control_planes(2).await;
    for _ in 0..2 {
        cluster.add_agent().await;
    }
    receiver
        .until("the backlog", FLOW, |log| log.distinct() == EVENTS)
        .await;
    cluster.drained(SOON).await;
    assert_all_arrived(&receiver, EVENTS, 4);
    assert_eq!(receiver.log().repeats(), 0, "nothing had been answered before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_etcd_members_killed_in_the_middle_of_a_flow_loses_nothing() {
    const EVENTS: usize = 6000;
    let mut cluster = Cluster::of(3, 2, 2).await;
    let receiver = Receiver::start();
    flow_webhooks(&cluster, &receiver, 4).await;
    let publisher = publisher(&cluster);
    let publishing = publisher.publish_all(flow_events(0, EVENTS, 4));
    let killing = async {
        receiver
            .until("a third of the events", FLOW, |log| log.distinct() >= EVENTS / 3)
            .await;
        cluster.etcd.kill(0).await;
    };
    let (effort, ()) = tokio::join!(publishing, killing);
    receiver.until("all events", FLOW, |log| log.distinct() == EVENTS).await;
    assert_all_arrived(&receiver, EVENTS, 4);
    let repeats = receiver.log().repeats();
    println!("{effort:?}, {repeats} events came twice");
    // No agent dies; but one whose lease was in doubt while the members elected a leader may have had to stop.
    assert!(repeats <= REPEATS_PER_KILL, "{repeats} events came twice");
    cluster.etcd.restart(0).await;
    cluster.drained(SOON).await;
}
