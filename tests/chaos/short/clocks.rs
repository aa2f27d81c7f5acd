//! Clocks that jump, of one agent and of one control plane: nothing rests on them but what is told of times.
//!
//! The clocks are those of libfaketime, which is preloaded: wall time only, monotonic time goes on.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postrider_tests::chaos::checker::Micros;
use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::chaos::witness::Witness;
use postrider_tests::cluster::{Cluster, Start};
use postrider_tests::wait;
use tokio::time::Instant;

use crate::FLOW;

/// How far clocks jump, in seconds.
const JUMP: i32 = 600;

/// How long a clock stays wrong.
const WRONG: Duration = Duration::from_millis(2500);

/// How long after an attempt that failed the next one is made, in milliseconds; half of it at least.
const RETRY_AFTER: i32 = 1600;

/// How long the receiver takes.
const ANSWER: Duration = Duration::from_millis(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_jump_by_ten_minutes_cost_no_lease_lose_and_double_nothing_and_hurry_no_retry() {
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    set(&clock, 0);
    let mut cluster = Cluster::of(1, 1, 1).await;
    cluster.add_agent_by(by_clock(&clock)).await;
    cluster.add_control_plane_by(by_clock(&clock)).await;
    cluster.settled().await;
    let course = Course {
        // Few, or the webhooks that keep all order wait for retries longer than the course lasts.
        refuse_one_of: 40,
        retry_after: RETRY_AFTER,
        ..Course::of(4000, 12).paced(300.0)
    };
    let witness = Witness::start(&course, Ipv4Addr::LOCALHOST, None, ANSWER);
    witness.take_any_time();
    let trial = Trial::with(cluster, course, witness).await;
    let owned = trial.owned_by(trial.cluster.agents[1].name()).await;
    assert!(!owned.is_empty(), "it has something to do");
    let epochs = trial.epochs().await;
    let publishing = trial.publishing();
    let jumping = async {
        trial.accepted(300, FLOW).await;
        let mut last = trial.now();
        for to in [JUMP, 0, -JUMP, 0] {
            set(&clock, to);
            wait::moment(Instant::now() + WRONG).await;
            last = trial.now();
        }
        last
    };
    let ((), last) = tokio::join!(publishing, jumping);
    trial.quiet(FLOW).await;
    let furthest = trial.witness.log().furthest_clock;
    assert!(
        furthest + 60 > JUMP.unsigned_abs().into(),
        "its clock did not jump: {furthest} s"
    );
    assert!(trial.lost_leases().is_empty(), "a lease was lost");
    assert_eq!(trial.epochs().await, epochs, "no shard moves");
    let retries = retries(&trial);
    let soonest = retries.iter().map(|(first, second)| second - first).min().unwrap_or(0);
    let latest = retries.iter().map(|(_, second)| *second).max().unwrap_or(0);
    println!("{} retries, the soonest after {} ms", retries.len(), soonest / 1000);
    // Half of the delay at least, and a fifth less while the agent's clock catches up.
    let least = Micros::try_from(RETRY_AFTER).unwrap() * 500 * 4 / 5;
    assert!(soonest >= least, "{soonest} µs");
    // No alarm was set by a clock that went back: the last are not minutes late.
    assert!(latest < last + 30_000_000, "a retry stood still");
    assert_eq!(trial.assert_clean().await.repeats, 0);
}

/// When deliveries were refused, and when they came again.
fn retries(trial: &Trial) -> Vec<(Micros, Micros)> {
    let log = trial.witness.log();
    let mut refused: BTreeMap<(u16, u32), Micros> = BTreeMap::new();
    let mut retries = Vec::new();
    for arrival in &log.arrivals {
        let delivery = (arrival.webhook, arrival.event);
        if !arrival.taken {
            refused.insert(delivery, arrival.at);
        } else if let Some(first) = refused.remove(&delivery) {
            retries.push((first, arrival.at));
        }
    }
    retries
}

/// Sets the clocks that follow the file so many seconds forward.
fn set(clock: &Path, seconds: i32) {
    // Nobody reads half of it.
    let new = clock.with_extension("new");
    std::fs::write(&new, format!("{seconds:+}\n")).unwrap();
    std::fs::rename(&new, clock).unwrap();
}

/// With the clock of the file.
fn by_clock(clock: &Path) -> Start {
    let library = library();
    let settings = [
        format!("LD_PRELOAD={}", library.display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_CACHE_DURATION=1".to_owned(),
        "DONT_FAKE_MONOTONIC=1".to_owned(),
    ];
    Start::default().by(std::iter::once("env".to_owned()).chain(settings))
}

/// The library of Debian's package `faketime`, for programs with threads.
///
/// # Panics
/// If it is not there: that a clock jumps cannot be tested without.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let mut libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let library = libraries.find(|library| library.is_file());
    library.expect("a library that makes clocks wrong: apt-get install faketime")
}
