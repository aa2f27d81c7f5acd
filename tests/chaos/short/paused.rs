//! An agent that stands still beyond its lease, and goes on as if nothing had been.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::{IN_FLIGHT, Trial};
use postrider_tests::chaos::witness::Witness;
use postrider_tests::cluster::Cluster;
use postrider_tests::wait;

use crate::{FLOW, SECOND};

/// How long the receiver takes: so long that requests are under way when the agent is stopped.
const ANSWER: Duration = Duration::from_millis(60);

/// What owners write about deliveries.
const OF_OWNERS: [&str; 6] = ["/queue/", "/parked/", "/dead/", "/progress/", "/usage/", "/failing/"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_stopped_beyond_its_lease_writes_nothing_when_it_goes_on() {
    let course = Course::of(4000, 12).paced(400.0);
    let witness = Witness::start(&course, Ipv4Addr::LOCALHOST, None, ANSWER);
    let mut trial = Trial::with(Cluster::start().await, course, witness).await;
    let publishing = trial.publishing();
    let stopping = async {
        trial.accepted(1000, FLOW).await;
        let id = trial.cluster.agents[0].name().to_owned();
        let owned = trial.owned_by(&id).await.len();
        assert!(owned > 0, "it has something to do");
        let stopped = trial.now();
        trial.cluster.agents[0].signal("STOP").await;
        trial.cluster.settled_with(2).await;
        (owned, stopped)
    };
    let ((), (owned, stopped)) = tokio::join!(publishing, stopping);
    trial.quiet(FLOW).await;
    let before = written(&trial).await;
    let (arrived, goes_on) = (trial.witness.log().arrivals.len(), trial.now());
    trial.cluster.agents[0].signal("CONT").await;
    wait::until("the agent to know that its lease is lost", FLOW, async || {
        trial.cluster.agents[0]
            .output()
            .contains("the lease is lost")
            .then_some(())
    })
    .await;
    trial.cluster.settled().await;
    assert_eq!(
        written(&trial).await,
        before,
        "nothing was written by who had lost its epochs"
    );
    let sent = trial.witness.log().arrivals.len() - arrived;
    assert!(sent <= IN_FLIGHT * owned, "{sent} requests after it went on");
    // Its requests under way were repeated by others; what it still sent when it went on had been taken by then.
    trial.fault("agent", stopped, goes_on + SECOND, 2 * IN_FLIGHT * owned);
    let report = trial.assert_clean().await;
    println!("{sent} requests after it went on, {} repeats", report.repeats);
}

/// What stands in the store about deliveries.
async fn written(trial: &Trial) -> BTreeMap<String, Vec<u8>> {
    let (_, entries) = trial
        .cluster
        .etcd
        .client(0)
        .everything(false)
        .await
        .expect("etcd answers");
    let entries = entries
        .into_iter()
        .map(|entry| (String::from_utf8_lossy(&entry.key).into_owned(), entry.value));
    entries
        .filter(|(key, _)| OF_OWNERS.iter().any(|part| key.contains(part)))
        .collect()
}
