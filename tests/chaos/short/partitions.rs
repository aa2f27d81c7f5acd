//! An agent that is cut off from etcd and from nothing else: others take over, and never send beside it.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_tests::chaos::checker::{Arrival, Micros, Sender};
use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::chaos::witness::{Log, Witness};
use postrider_tests::cluster::{Cluster, LEASE_TTL};
use postrider_tests::namespace::{Cut, Namespace};

use crate::FLOW;

/// How long the receiver takes: so long that requests are under way whenever something is cut.
const ANSWER: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_etcd_does_not_hear_stops_before_another_takes_over() {
    cut_off(Cut::To).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_does_not_hear_etcd_stops_before_another_takes_over() {
    cut_off(Cut::From).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_and_etcd_that_do_not_hear_each_other_part_before_another_takes_over() {
    cut_off(Cut::Both).await;
}

async fn cut_off(cut: Cut) {
    let namespace = Namespace::new().await;
    let mut cluster = Cluster::beside(&namespace, 1, 1).await;
    cluster.add_agent_in(&namespace).await;
    cluster.settled().await;
    let course = Course::of(3000, 12).paced(300.0);
    let witness = Witness::start(&course, namespace.host(), Some(namespace.address()), ANSWER);
    let mut trial = Trial::with(cluster, course, witness).await;
    let id = trial.cluster.agents[1].name().to_owned();
    let owned = trial.owned_by(&id).await;
    assert!(!owned.is_empty(), "it has something to do");
    let publishing = trial.publishing();
    let port = trial.cluster.etcd.address(0).port();
    let cutting = async {
        trial.accepted(900, FLOW).await;
        // It is cut off as soon as another request of it has come, which is not answered yet.
        let now = trial.now();
        let later = |arrival: &&Arrival| arrival.sender == Sender::Namespace && arrival.at >= now;
        let came = |log: &Log| log.arrivals.iter().rev().find(later).map(|arrival| arrival.at);
        trial
            .witness
            .until("a request of it", FLOW, |log| came(log).is_some())
            .await;
        let from = came(&trial.witness.log()).expect("it came");
        namespace.cut(cut, port).await;
        trial.cluster.settled_with(1).await;
        let moved = trial.now();
        assert!(namespace.heal().await > 0, "packets were dropped");
        (from, moved)
    };
    let ((), (from, moved)) = tokio::join!(publishing, cutting);
    trial.quiet(FLOW).await;
    trial.cluster.settled().await;
    assert_parted(&trial, from, moved);
    // Until its lease is over it goes on with what it has, and can record nothing of it.
    let over = from + u64::try_from(LEASE_TTL.as_micros()).unwrap();
    trial.fault("agent", from, over, usize::MAX);
    let report = trial.assert_clean().await;
    println!(
        "{cut:?}: {} repeats; all shards had moved after {} ms",
        report.repeats,
        (moved - from) / 1000
    );
}

/// Between the cut and its healing no webhook hears from the agent that was cut off once it has heard from another.
fn assert_parted(trial: &Trial, from: Micros, to: Micros) {
    let log = trial.witness.log();
    let mut others: BTreeMap<u16, Micros> = BTreeMap::new();
    let (mut before, mut after) = (0, 0);
    for arrival in log.arrivals.iter().filter(|arrival| (from..to).contains(&arrival.at)) {
        match arrival.sender {
            Sender::Here => {
                others.entry(arrival.webhook).or_insert(arrival.at);
            }
            Sender::Namespace => {
                before += 1;
                // Those of its own webhooks only: the other agent's have been Here all the time.
                after += usize::from(others.contains_key(&arrival.webhook));
            }
        }
    }
    assert!(before > 0, "it had something under way");
    assert_eq!(
        after, 0,
        "requests of the agent that was cut off after those of its successor"
    );
}
