//! An etcd with authentication: tokens that end under load, passwords that are changed, authentication that is enabled under programs without a user.

use std::time::Duration;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::measure::errors;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::cluster::{Cluster, LEASE_TTL};
use postrider_tests::http::{counted, get};
use postrider_tests::process::Process;
use postrider_tests::usage::Usage;
use postrider_tests::wait;
use tokio::time::Instant;

use crate::FLOW;

/// How long a token lives that ends whether it is used or not, in seconds.
const TTL: u64 = 3;

/// How long programs have a password that is no longer right: longer than a lease lives.
const WRONG: Duration = Duration::from_secs(LEASE_TTL.as_secs() + 3);

/// The part of one processor that a program may use up while it is refused. One that asks again and again uses up all of it.
const IDLE: f64 = 0.3;

/// How long a program may take to say what is wrong, or that it is right again.
const SOON: Duration = Duration::from_secs(20);

/// What programs say once etcd takes their requests again.
const LET_IN: &str = "etcd lets the program in again";

/// How often a program asked etcd for a token: with success, in vain, without an answer.
async fn authentications(metrics: std::net::SocketAddr) -> [u64; 3] {
    let text = get(metrics, "/metrics").await;
    let count = |outcome| {
        counted(
            &text,
            &format!("postrider_store_authentications_total{{outcome=\"{outcome}\"}}"),
        )
    };
    ["granted", "refused", "failed"].map(count)
}

/// The programs of a trial, with where they tell of their metrics.
fn programs(trial: &Trial) -> Vec<(&Process, std::net::SocketAddr)> {
    let planes = &trial.cluster.control_planes;
    let planes = planes.iter().map(|plane| (&plane.process, plane.metrics));
    let agents = trial.cluster.agents.iter().map(|agent| (agent, agent.addresses()[0]));
    planes.chain(agents).collect()
}

/// Waits until every program has said it, and asserts that each has said it once.
async fn said_once(trial: &Trial, what: &str) {
    wait::until(&format!("every program to say: {what}"), SOON, async || {
        let says = |(program, _): &(&Process, _)| program.output().contains(what);
        programs(trial).iter().all(says).then_some(())
    })
    .await;
    for (program, _) in programs(trial) {
        assert_eq!(program.output().matches(what).count(), 1, "{}", program.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_end_and_a_password_that_is_changed_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("signing-key");
    std::fs::write(&key, "a key for tests only").unwrap();
    let token = format!(
        "--auth-token=jwt,priv-key={},sign-method=HS256,ttl={TTL}s",
        key.display()
    );
    let begun = Instant::now();
    let trial = Trial::of(
        Cluster::guarded(&[&token], 2, 2).await,
        Course::of(3600, 12).paced(300.0),
    )
    .await;
    let epochs = trial.epochs().await;
    let publishing = trial.publishing();
    let changing = async {
        trial.accepted(1200, FLOW).await;
        // First where programs read it: while what they have is taken, they do not.
        trial.cluster.etcd.write_password("second");
        trial.cluster.etcd.change_password("second").await;
    };
    tokio::join!(publishing, changing);
    trial.quiet(FLOW).await;
    let (calls, failed) = errors(&trial.journal.calls(), 0, u64::MAX);
    assert!(calls > 100, "only {calls} calls");
    assert_eq!(failed, 0, "of {calls} calls");
    for (program, metrics) in programs(&trial) {
        let [granted, refused, failed] = authentications(metrics).await;
        let seconds = begun.elapsed().as_secs();
        println!("{}: {granted} tokens in {seconds} s", program.name());
        // The end of a token is a whole second, up or down to which etcd rounds.
        let most = seconds / (TTL - 1) + 2;
        assert!((3..=most).contains(&granted), "{}: {granted}", program.name());
        assert_eq!((refused, failed), (0, 0), "{}", program.name());
    }
    assert!(trial.lost_leases().is_empty(), "a lease is lost");
    assert_eq!(trial.epochs().await, epochs, "no shard moves");
    assert_eq!(trial.assert_clean().await.repeats, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_with_a_wrong_password_say_so_wait_and_go_on_once_it_is_right() {
    let trial = Trial::of(
        Cluster::guarded(&["--auth-token-ttl=5"], 2, 2).await,
        Course::of(2400, 12).paced(300.0),
    )
    .await;
    let epochs = trial.epochs().await;
    let publishing = trial.publishing();
    let changing = async {
        trial.accepted(900, FLOW).await;
        let before: Vec<Usage> = programs(&trial)
            .iter()
            .map(|(program, _)| Usage::of(program.pid()))
            .collect();
        let begun = Instant::now();
        trial.cluster.etcd.change_password("second").await;
        said_once(&trial, "etcd does not take the user and the password").await;
        wait::moment(begun + WRONG).await;
        for ((program, metrics), before) in programs(&trial).into_iter().zip(before) {
            let [granted, refused, _] = authentications(metrics).await;
            let wall = begun.elapsed().as_secs_f64();
            let used = (Usage::of(program.pid()) - before).cpu_seconds / wall;
            println!(
                "{}: {granted} tokens, {refused} refusals, {used:.2} of a processor in {wall:.1} s",
                program.name()
            );
            assert!((1..=4).contains(&refused), "{}: {refused}", program.name());
            assert!(used < IDLE, "{} spins: {used:.2}", program.name());
        }
        trial.cluster.etcd.write_password("second");
        said_once(&trial, LET_IN).await;
    };
    tokio::join!(publishing, changing);
    trial.quiet(FLOW).await;
    trial.cluster.settled().await;
    let lost = trial.lost_leases().len() + trial.doubted_leases().len();
    let report = trial.assert_clean().await;
    println!("{lost} leases lost or in doubt, {} repeats", report.repeats);
    // Some releases of etcd prolong no lease for who has no token.
    if lost == 0 {
        assert_eq!(trial.epochs().await, epochs, "no shard moves");
        assert_eq!(report.repeats, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_without_a_user_say_that_etcd_wants_one_and_go_on_once_it_does_not() {
    let mut trial = Trial::of(Cluster::of(1, 1, 1).await, Course::of(1800, 12).paced(300.0)).await;
    let publishing = trial.publishing();
    let guarding = async {
        trial.accepted(600, FLOW).await;
        trial.cluster.etcd.guard("scenario/").await;
        said_once(&trial, "etcd wants a user and a password").await;
        trial.cluster.etcd.unguard().await;
    };
    tokio::join!(publishing, guarding);
    trial.quiet(FLOW).await;
    said_once(&trial, "etcd wants a user and a password").await;
    trial.cluster.settled().await;
    trial.assert_clean().await;
}
