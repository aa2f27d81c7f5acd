//! Members of etcd killed and stopped: publishing hardly notices, no shard moves; and without a quorum nothing is claimed that is not so.

use std::time::Duration;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::measure::{errors, publish_gap};
use postrider_tests::chaos::trial::Trial;
use postrider_tests::cluster::{Cluster, LEASE_TTL};
use postrider_tests::wait;
use tonic::Code;

use crate::{FLOW, SECOND};

/// How long publishing may stand still while the members elect a leader, in a debug build on a busy machine. (Measured: `make chaos ARGS=figures`.)
const ELECTION: u64 = 12 * SECOND;

/// How long a lease lives, in microseconds.
const LEASE: u64 = LEASE_TTL.as_secs() * SECOND;

/// Leases that outlive an election, also when it is repeated and the machine is busy.
const LONG: Duration = Duration::from_secs(20);

/// A course of some seconds for three members, two control planes and two agents.
async fn trial(seconds: usize, lease: Duration) -> Trial {
    let course = Course {
        lanes: 6,
        ..Course::of(300 * seconds, 12).paced(300.0)
    };
    Trial::of(Cluster::with_leases(lease, 3, 2, 2).await, course).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_not_the_leader_is_killed_and_no_publish_fails_after_a_second() {
    let mut trial = trial(8, LONG).await;
    let epochs = trial.epochs().await;
    let publishing = trial.publishing();
    let killing = async {
        trial.accepted(900, FLOW).await;
        let follower = (trial.cluster.etcd.leader().await + 1) % 3;
        let at = trial.now();
        trial.cluster.etcd.kill(follower).await;
        (follower, at)
    };
    let ((), (follower, at)) = tokio::join!(publishing, killing);
    trial.quiet(FLOW).await;
    let (calls, failed) = errors(&trial.journal.calls(), at + SECOND, u64::MAX);
    assert!(calls > 100, "only {calls} calls");
    assert_eq!(failed, 0, "of {calls} calls");
    assert_eq!(trial.epochs().await, epochs, "no shard moves");
    trial.cluster.etcd.restart(follower).await;
    assert_eq!(trial.assert_clean().await.repeats, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_the_members_is_killed_and_publishing_goes_on_and_no_shard_moves() {
    let mut trial = trial(10, LONG).await;
    let epochs = trial.epochs().await;
    let publishing = trial.publishing();
    let killing = async {
        trial.accepted(900, FLOW).await;
        let (leader, at) = (trial.cluster.etcd.leader().await, trial.now());
        trial.cluster.etcd.kill(leader).await;
        (leader, at)
    };
    let ((), (leader, at)) = tokio::join!(publishing, killing);
    trial.quiet(FLOW).await;
    let gap = publish_gap(&trial.journal.calls(), at, trial.now());
    println!("publishing stood still for {} ms", gap / 1000);
    assert!(gap < ELECTION, "{gap} µs");
    assert_eq!(trial.epochs().await, epochs, "no shard moves");
    trial.cluster.etcd.restart(leader).await;
    assert_eq!(trial.assert_clean().await.repeats, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_the_members_stands_still_and_publishing_goes_on_and_no_shard_moves() {
    let trial = trial(10, LONG).await;
    let epochs = trial.epochs().await;
    let publishing = trial.publishing();
    let stopping = async {
        trial.accepted(900, FLOW).await;
        let (leader, at) = (trial.cluster.etcd.leader().await, trial.now());
        trial.cluster.etcd.process(leader).signal("STOP").await;
        (leader, at)
    };
    let ((), (leader, at)) = tokio::join!(publishing, stopping);
    let gap = publish_gap(&trial.journal.calls(), at, trial.now());
    println!("publishing stood still for {} ms", gap / 1000);
    assert!(gap < ELECTION, "{gap} µs");
    // All is told by the others, while it still stands.
    trial
        .witness
        .until("all events", FLOW, |log| log.taken() >= trial.journal.deliveries())
        .await;
    trial.cluster.etcd.process(leader).signal("CONT").await;
    trial.quiet(FLOW).await;
    assert_eq!(trial.epochs().await, epochs, "no shard moves");
    assert_eq!(trial.assert_clean().await.repeats, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_no_publish_is_answered_ok_and_no_request_is_made_once_leases_are_over() {
    let mut trial = trial(8, LEASE_TTL).await;
    let publishing = trial.publishing();
    let losing = async {
        trial.accepted(900, FLOW).await;
        let lost = trial.now();
        trial.cluster.etcd.kill(0).await;
        trial.cluster.etcd.kill(1).await;
        let gone = trial.now();
        wait::until("every agent to know that its lease is lost", FLOW, async || {
            let knows = |agent: &postrider_tests::process::Process| agent.output().contains("the lease is lost");
            trial.cluster.agents.iter().all(knows).then_some(())
        })
        .await;
        // Half a lease of silence, in which something could be sent that must not be.
        let end = trial.witness.start_of_run() + Duration::from_micros(gone) + LEASE_TTL * 3 / 2;
        wait::moment(end).await;
        let back = trial.now();
        trial.cluster.etcd.restart(0).await;
        trial.cluster.etcd.restart(1).await;
        (lost, gone, back)
    };
    let ((), (lost, gone, back)) = tokio::join!(publishing, losing);
    trial.quiet(FLOW).await;
    let over = gone + LEASE;
    let late = trial
        .witness
        .log()
        .arrivals
        .iter()
        .filter(|arrival| (over..back).contains(&arrival.at))
        .count();
    assert_eq!(late, 0, "requests by agents without a lease");
    let calls = trial.journal.calls();
    let ok: Vec<_> = calls
        .iter()
        .filter(|call| call.from > gone && call.to < back && call.code == Code::Ok)
        .collect();
    assert!(ok.is_empty(), "{ok:?} between {gone} and {back}");
    assert!(errors(&calls, gone, back).0 > 0, "publishers tried");
    trial.fault("etcd", lost, over, usize::MAX);
    trial.assert_clean().await;
}
