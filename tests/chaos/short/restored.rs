//! etcd put back to what it was some seconds ago, under running programs: they notice, believe nothing that they knew, and go on with what it says.

use std::time::Duration;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::client::{event, no_auth, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::process::Process;
use postrider_tests::wait;

use crate::FLOW;

/// What every program says that notices.
const NOTICED: &str = "the store has gone back";

/// How long a program may take to notice.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_put_back_to_an_older_state_is_noticed_and_all_goes_on_from_there() {
    let mut trial = Trial::of(Cluster::of(1, 2, 3).await, Course::of(6000, 12).paced(400.0)).await;
    let publishing = trial.publishing();
    let restoring = async {
        trial.accepted(1200, FLOW).await;
        // What is accepted is known for certain; what is delivered is not.
        trial.journal.hold(FLOW).await;
        let from = trial.now();
        trial.cluster.etcd.kill(0).await;
        let data = trial.cluster.etcd.copy_data(0).await;
        trial.cluster.etcd.restart(0).await;
        trial.journal.go_on();
        trial.accepted(3000, FLOW).await;
        let newest = trial.cluster.etcd.client(0).revision().await.unwrap();
        trial.cluster.etcd.kill(0).await;
        trial.cluster.etcd.put_back(0, &data).await;
        let to = trial.now();
        trial.cluster.etcd.restart(0).await;
        (from, to, newest)
    };
    let ((), (from, to, newest)) = tokio::join!(publishing, restoring);
    trial.forget(from, to);
    trial.quiet(FLOW).await;
    trial.cluster.settled().await;
    println!("it had been at revision {newest}");
    for program in programs(&trial) {
        wait::until("every program to notice", SOON, async || {
            program.output().contains(NOTICED).then_some(())
        })
        .await;
    }
    let report = trial.assert_clean().await;
    println!(
        "{} of {} events accepted and kept; {} repeats",
        report.accepted, report.published, report.repeats
    );
    // Every control plane follows what is written now, and so does the agent that owns it.
    let late = webhook(&format!("{}/late", trial.witness.url()), &["LATE"], no_auth());
    trial.cluster.client(0).create_webhook("1010", "late", late).await;
    trial.cluster.matching("1010", "LATE", 1).await;
    trial
        .cluster
        .client(1)
        .publish("1010", vec![event("late", "LATE", "{}")])
        .await;
    trial
        .witness
        .until("the late event", FLOW, |log| log.strangers == 1)
        .await;
}

fn programs(trial: &Trial) -> impl Iterator<Item = &Process> {
    let planes = trial.cluster.control_planes.iter().map(|plane| &plane.process);
    planes.chain(&trial.cluster.agents)
}
