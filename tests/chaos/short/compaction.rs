//! etcd forgets its past all the time, under everybody who follows it.

use std::time::Duration;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::client::{no_auth, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::wait;
use tokio::time::Instant;

use crate::FLOW;

/// How often etcd forgets.
const EVERY: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_every_200_ms_among_kills_loses_nothing_and_leaves_no_view_behind() {
    let course = Course::of(5000, 12).paced(500.0);
    let mut trial = Trial::of(Cluster::start().await, course).await;
    let etcd = trial.cluster.etcd.client(0);
    let (publishing, journal) = (trial.publishing(), trial.journal.clone());
    let compacting = async {
        let mut compactions = 0;
        while journal.accepted() < 5000 {
            let revision = etcd.revision().await.expect("etcd answers");
            // Refused if the leader among the control planes was faster.
            compactions += usize::from(etcd.compact(revision).await.is_ok());
            wait::moment(Instant::now() + EVERY).await;
        }
        compactions
    };
    let killing = async {
        trial.accepted(1500, FLOW).await;
        trial.kill_agent(0).await;
        trial.cluster.add_agent().await;
        trial.kill_control_plane(0).await;
    };
    let ((), compactions, ()) = tokio::join!(publishing, compacting, killing);
    assert!(compactions > 20, "{compactions} compactions");
    trial.quiet(FLOW).await;
    trial.assert_clean().await;
    // Every control plane still follows, and so does the agent that owns it.
    let late = webhook(&format!("{}/late", trial.witness.url()), &["LATE"], no_auth());
    trial.cluster.client(0).create_webhook("1010", "late", late).await;
    trial.cluster.matching("1010", "LATE", 1).await;
    let event = postrider_tests::client::event("late", "LATE", "{}");
    trial.cluster.client(0).publish("1010", vec![event]).await;
    trial
        .witness
        .until("the late event", FLOW, |log| log.strangers == 1)
        .await;
}
