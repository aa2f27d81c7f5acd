//! Bad links of one agent: none to the receivers, packets lost, little bandwidth, late answers of etcd. It keeps its shards, and the others go on.

use std::time::Duration;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::chaos::witness::Witness;
use postrider_tests::cluster::{Cluster, LEASE_TTL, Start};
use postrider_tests::http::counted;
use postrider_tests::namespace::{Cut, Namespace};
use postrider_tests::proxy::Proxy;
use postrider_tests::wait;
use tokio::time::Instant;

use crate::{FLOW, SECOND};

/// How long the receiver takes.
const ANSWER: Duration = Duration::from_millis(20);

/// How long a link is bad: longer than a lease lives, so that one that was not kept is lost.
const BAD: Duration = Duration::from_secs(8);

/// A trial with one agent in a namespace, and one beside it; and which webhooks are of the first.
async fn beside(namespace: &Namespace, course: Course) -> (Trial, Vec<usize>) {
    let mut cluster = Cluster::beside(namespace, 1, 1).await;
    cluster.add_agent_in(namespace).await;
    cluster.settled().await;
    let witness = Witness::start(&course, namespace.host(), Some(namespace.address()), ANSWER);
    let trial = Trial::with(cluster, course, witness).await;
    let owned = trial.owned_by(trial.cluster.agents[1].name()).await;
    assert!(!owned.is_empty(), "it has something to do");
    (trial, owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_cut_off_from_receivers_keeps_its_shards_and_tries_again_while_the_others_go_on() {
    let namespace = Namespace::new().await;
    let course = Course {
        timeout: Some(4000),
        ..Course::of(3600, 12).paced(300.0)
    };
    let (mut trial, owned) = beside(&namespace, course).await;
    let epochs = trial.epochs().await;
    let publishing = trial.publishing();
    let port = trial.witness.address().port();
    let cutting = async {
        trial.accepted(600, FLOW).await;
        let from = trial.now();
        // Connections in its pool are half open from now on.
        namespace.cut(Cut::Both, port).await;
        wait::moment(Instant::now() + BAD).await;
        let to = trial.now();
        assert!(namespace.heal().await > 0, "packets were dropped");
        (from, to)
    };
    let ((), (from, to)) = tokio::join!(publishing, cutting);
    trial.quiet(FLOW).await;
    assert_eq!(trial.epochs().await, epochs, "no shard moves");
    let others: Vec<usize> = (0..trial.course.webhooks())
        .filter(|webhook| !owned.contains(webhook))
        .collect();
    for webhook in others {
        let came = trial.witness.arrived(&[webhook], from + SECOND, to);
        assert!(came > 10, "only {came} requests to {webhook}, which is another agent's");
    }
    assert_eq!(
        trial.witness.arrived(&owned, from + SECOND, to),
        0,
        "it was not cut off"
    );
    let metrics = trial.cluster.agents[1].addresses()[0];
    let metrics = namespace.get(metrics, "/metrics").await;
    for reason in ["TIMEOUT", "CONNECT"] {
        let failed = counted(
            &metrics,
            &format!("postrider_attempts_failed_total{{reason=\"{reason}\"}}"),
        );
        assert!(failed > 0, "no attempt failed by {reason}");
    }
    // What the receiver took when the link was cut, and could not answer.
    let most = trial
        .witness
        .arrived(&owned, from.saturating_sub(SECOND / 2), from + SECOND);
    trial.fault("link", from, to, most);
    trial.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_agent_whose_link_loses_a_fifth_of_all_packets_nothing_is_lost_and_repeats_are_explained() {
    let namespace = Namespace::new().await;
    let (trial, owned) = beside(&namespace, Course::of(2400, 12).paced(200.0)).await;
    let publishing = trial.publishing();
    let losing = async {
        trial.accepted(400, FLOW).await;
        let from = trial.now();
        namespace.lose(20).await;
        wait::moment(Instant::now() + BAD).await;
        let to = trial.now();
        (from, to, namespace.heal().await)
    };
    let ((), (from, to, dropped)) = tokio::join!(publishing, losing);
    assert!(dropped > 100, "only {dropped} packets were lost");
    trial.quiet(FLOW).await;
    assert!(
        trial.witness.arrived(&owned, from, to) > 0,
        "some of it arrives all the same"
    );
    let lost = trial.lost_leases().len();
    let report = trial.assert_clean().await;
    println!("{dropped} packets lost; {lost} leases lost, {} repeats", report.repeats);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_with_little_bandwidth_keeps_its_shards_and_delivers_late() {
    let namespace = Namespace::new().await;
    let (trial, _) = beside(&namespace, Course::of(3000, 12).paced(300.0)).await;
    let epochs = trial.epochs().await;
    let publishing = trial.publishing();
    let narrowing = async {
        trial.accepted(300, FLOW).await;
        namespace.narrow(1000).await;
        wait::moment(Instant::now() + BAD).await;
        namespace.widen().await;
    };
    tokio::join!(publishing, narrowing);
    trial.quiet(FLOW).await;
    assert_eq!(trial.epochs().await, epochs, "no shard moves");
    assert_eq!(trial.assert_clean().await.repeats, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_etcd_answers_late_and_unevenly_keeps_its_shards_and_repeats_nothing() {
    let mut cluster = Cluster::of(1, 2, 1).await;
    let proxy = Proxy::start(cluster.etcd.address(0), 1);
    let late = Start::default().with_store(&format!("etcd://{}", proxy.address()));
    cluster.add_agent_by(late).await;
    cluster.settled().await;
    let trial = Trial::of(cluster, Course::of(3600, 12).paced(300.0)).await;
    let owned = trial.owned_by(trial.cluster.agents[1].name()).await;
    assert!(!owned.is_empty(), "it has something to do");
    let epochs = trial.epochs().await;
    let publishing = trial.publishing();
    let delaying = async {
        trial.accepted(300, FLOW).await;
        // Each way half of it: an answer takes 200 ms to a second.
        proxy.delay(Duration::from_millis(100), Duration::from_millis(500));
        wait::moment(Instant::now() + LEASE_TTL * 2).await;
        proxy.delay(Duration::ZERO, Duration::ZERO);
    };
    tokio::join!(publishing, delaying);
    trial.quiet(FLOW).await;
    assert!(trial.lost_leases().is_empty(), "a lease was lost");
    assert_eq!(trial.epochs().await, epochs, "no shard moves");
    assert_eq!(trial.assert_clean().await.repeats, 0);
}
