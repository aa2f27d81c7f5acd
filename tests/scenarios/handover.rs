//! Agents come and go without harm: shards are handed over, nothing is lost, nothing comes twice.

use std::time::Duration;

use postrider_tests::client::Publisher;
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::Receiver;

use crate::{ACCOUNT, FLOW, SOON, assert_all_arrived, flow_events, flow_webhooks};

fn publisher(cluster: &Cluster) -> Publisher {
    Publisher {
        replicas: cluster.clients(),
        account: ACCOUNT.to_owned(),
        batch: 10,
        concurrency: 4,
        patience: Duration::from_secs(60),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_joins_and_another_leaves_in_the_middle_of_a_flow_and_nothing_comes_twice() {
    const EVENTS: usize = 12_000;
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    flow_webhooks(&cluster, &receiver, 12).await;
    let publisher = publisher(&cluster);
    let publishing = publisher.publish_all(flow_events(0, EVENTS, 12));
    let moving = async {
        receiver
            .until("a quarter of the events", FLOW, |log| log.distinct() >= EVENTS / 4)
            .await;
        cluster.add_agent().await;
        cluster.settled().await;
        cluster.stop_agent(0).await;
        cluster.settled().await;
    };
    let (effort, ()) = tokio::join!(publishing, moving);
    receiver.until("all events", FLOW, |log| log.distinct() == EVENTS).await;
    cluster.drained(SOON).await;
    assert_all_arrived(&receiver, EVENTS, 12);
    assert_eq!(receiver.log().repeats(), 0);
    assert_eq!(effort.repeats, 0, "publishing does not notice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_is_asked_to_stop_finishes_what_it_began() {
    const EVENTS: usize = 6000;
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    flow_webhooks(&cluster, &receiver, 4).await;
    let publisher = publisher(&cluster);
    let publishing = publisher.publish_all(flow_events(0, EVENTS, 4));
    let stopping = async {
        receiver
            .until("a quarter of the events", FLOW, |log| log.distinct() >= EVENTS / 4)
            .await;
        cluster.stop_control_plane(0).await;
    };
    let (effort, ()) = tokio::join!(publishing, stopping);
    receiver.until("all events", FLOW, |log| log.distinct() == EVENTS).await;
    cluster.drained(SOON).await;
    assert_all_arrived(&receiver, EVENTS, 4);
    assert_eq!(receiver.log().repeats(), 0);
    assert_eq!(effort.deliveries, EVENTS);
}
