//! Programs that get too little: no file descriptors, no memory, hardly any processor time.

use std::time::Duration;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::client::Client;
use postrider_tests::cluster::{Cluster, LEASE_TTL, Start};
use postrider_tests::http::{counted, get};
use postrider_tests::usage::{Memory, Usage, limit_files};
use postrider_tests::wait;
use tokio::time::Instant;

use crate::FLOW;

/// How long programs have no file descriptors: longer than a lease lives, and long enough to see whether they spin.
const WITHOUT: Duration = Duration::from_secs(7);

/// All that a program may open again: as many as most machines let it.
const ENOUGH: u32 = 1024;

/// The standard streams are open: so nothing else can be opened.
const NONE: u32 = 3;

/// The part of one processor that a program may use up which can do nothing. One that spins uses up all of it.
const IDLE: f64 = 0.3;

/// The memory that an agent has, and a control plane.
const ROOM: u64 = 176 << 20;

/// Data of events is up to as long: 24 KiB in the middle.
const PAD: usize = 48 << 10;

/// How long a publisher waits for an answer before it asks another control plane.
const ANSWER: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_file_descriptors_programs_live_do_not_spin_and_go_on_when_they_have_some() {
    let trial = Trial::of(Cluster::of(1, 2, 2).await, Course::of(3600, 12).paced(300.0)).await;
    let epochs = trial.epochs().await;
    let (agent, plane) = (&trial.cluster.agents[0], &trial.cluster.control_planes[1]);
    let owned = trial.owned_by(agent.name()).await;
    assert!(!owned.is_empty(), "it has something to do");
    let pids = [agent.pid(), plane.process.pid()];
    for pid in pids {
        limit_files(pid, NONE).await;
    }
    let publishing = trial.publishing_by(|address| Client::hasty(address, ANSWER));
    let starving = async {
        let (before, begun) = (pids.map(Usage::of), Instant::now());
        wait::moment(begun + WITHOUT).await;
        let wall = begun.elapsed().as_secs_f64();
        let used = [0, 1].map(|program| (Usage::of(pids[program]) - before[program]).cpu_seconds / wall);
        println!("agent and control plane without file descriptors: {used:.2?} of a processor");
        assert!(used.iter().all(|share| *share < IDLE), "one spins: {used:.2?}");
        let theirs = trial.witness.arrived(&owned, 0, trial.now());
        assert_eq!(theirs, 0, "it could open connections");
        for pid in pids {
            limit_files(pid, ENOUGH).await;
        }
    };
    tokio::join!(publishing, starving);
    trial.quiet(FLOW).await;
    assert_eq!(trial.epochs().await, epochs, "no shard moves");
    let not_made = counted(
        &get(agent.addresses()[0], "/metrics").await,
        "postrider_attempts_not_made_total",
    );
    assert!(not_made > 0, "it tried");
    trial
        .cluster
        .client(1)
        .matches("1010", "COURSE_0")
        .await
        .expect("it answers again");
    assert_eq!(trial.assert_clean().await.repeats, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_less_memory_than_what_waits_an_agent_and_a_control_plane_live_and_all_is_delivered() {
    let memory = [0, 1].map(|_| Memory::limited(ROOM));
    let start = |program: usize| Start::default().by(memory[program].enter());
    let course = Course {
        pad: PAD,
        collectors: 0,
        ..Course::of(11_000, 12)
    };
    let mut cluster = Cluster::of(1, 0, 0).await;
    cluster.add_control_plane_by(start(0)).await;
    let mut trial = Trial::of(cluster, course).await;
    trial.publishing().await;
    let waiting = trial.cluster.etcd.client(0).database_bytes_in_use().await;
    let waiting = u64::try_from(waiting.expect("etcd answers").unwrap_or(0)).unwrap_or(0);
    println!("{} MiB wait", waiting >> 20);
    assert!(waiting > ROOM, "{waiting} bytes wait");
    trial.cluster.add_agent_by(start(1)).await;
    trial.quiet(FLOW).await;
    let programs = [
        trial.cluster.agents[0].pid(),
        trial.cluster.control_planes[0].process.pid(),
    ];
    let peaks = programs.map(|pid| Usage::of(pid).peak_bytes >> 20);
    println!(
        "the agent had at most {} MiB, the control plane {} MiB",
        peaks[0], peaks[1]
    );
    assert_eq!(trial.assert_clean().await.repeats, 0, "none of them was killed");
    // Control groups go only when nobody is in them.
    trial.cluster.kill_agent(0).await;
    trial.cluster.kill_control_plane(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_hardly_ever_runs_keeps_its_shards_or_loses_them_cleanly() {
    let trial = Trial::of(Cluster::of(1, 1, 2).await, Course::of(3600, 12).paced(300.0)).await;
    let epochs = trial.epochs().await;
    let agent = &trial.cluster.agents[0];
    assert!(!trial.owned_by(agent.name()).await.is_empty(), "it has something to do");
    let publishing = trial.publishing();
    let starving = async {
        trial.accepted(600, FLOW).await;
        let end = Instant::now() + LEASE_TTL * 2;
        while Instant::now() < end {
            agent.signal("STOP").await;
            wait::moment(Instant::now() + Duration::from_millis(450)).await;
            agent.signal("CONT").await;
            wait::moment(Instant::now() + Duration::from_millis(50)).await;
        }
    };
    tokio::join!(publishing, starving);
    trial.quiet(FLOW).await;
    trial.cluster.settled().await;
    let (lost, doubted) = (trial.lost_leases().len(), trial.doubted_leases().len());
    let report = trial.assert_clean().await;
    println!(
        "{lost} leases lost, {doubted} times one in doubt, {} repeats",
        report.repeats
    );
    if lost == 0 {
        assert_eq!(trial.epochs().await, epochs, "no shard moves without a cause");
    }
    if lost + doubted == 0 {
        assert_eq!(report.repeats, 0);
    }
}
