//! What single faults cost, each figure beside its target.

pub(crate) mod failover;
pub(crate) mod handover;
pub(crate) mod isolation;
pub(crate) mod members;
pub(crate) mod noise;

use std::fmt::Display;
use std::time::Duration;

use postrider_tests::chaos::checker::Micros;
use postrider_tests::chaos::measure::latencies;
use postrider_tests::chaos::trial::Trial;

use crate::Options;

/// How long it may take until all is quiet.
const FLOW: Duration = Duration::from_secs(120);

/// How long publishing goes on before something is done, and after.
const WARM: Duration = Duration::from_secs(3);

/// How long latencies are measured.
const MEASURED: Duration = Duration::from_secs(20);

/// All of them. Tells whether every promise was kept; a figure that misses its target is no broken promise.
pub(crate) async fn all(options: &Options) -> bool {
    let clean = [
        failover::run(options).await,
        handover::run(options).await,
        members::run(options).await,
        isolation::run(options).await,
        noise::run(options).await,
    ];
    clean.into_iter().all(|clean| clean)
}

/// Prints a figure.
fn figure(what: &str, measured: impl Display, target: impl Display, met: bool) {
    let missed = if met { "" } else { "   MISSED" };
    println!("{what:<64} {measured:>12}   target {target}{missed}");
}

/// Prints a figure in milliseconds that should be at most `target`.
fn millis(what: &str, measured: f64, target: f64) {
    figure(
        what,
        format!("{measured:.0} ms"),
        format!("<= {target:.0} ms"),
        measured <= target,
    );
}

/// Prints a count that should be 0.
fn none(what: &str, count: usize) {
    figure(what, count, 0, count == 0);
}

/// Prints the latency of the course's events from `beside` to `end`, which should be at most twice that from `alone` to `beside`.
fn within_twice(trial: &Trial, alone: Micros, beside: Micros, end: Micros) {
    let (arrivals, asked) = (trial.witness.log().arrivals.clone(), trial.journal.asked());
    let webhooks: Vec<usize> = (0..trial.course.webhooks()).collect();
    let p99 = |from, to| latencies(&arrivals, &asked, &webhooks, from, to).millis_at(99);
    let (alone, beside) = (p99(alone, beside), p99(beside, end));
    figure(
        "p99 latency of another account's webhooks",
        format!("{beside:.1} ms"),
        format!("<= 2 x {alone:.1} ms"),
        beside <= 2.0 * alone,
    );
}

/// Waits for a time in which the course goes on.
async fn goes_on(time: Duration) {
    postrider_tests::wait::moment(tokio::time::Instant::now() + time).await;
}

/// Ends publishing, waits until all is quiet, and tells whether every promise was kept.
async fn is_clean(trial: &Trial) -> bool {
    trial.quiet(FLOW).await;
    let report = trial.judge().await;
    print!("{report}");
    report.is_clean()
}
