//! Agents asked to stop, one by one: what the webhooks of their shards notice.

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::measure::{Durations, gaps, latencies};
use postrider_tests::chaos::trial::Trial;
use postrider_tests::cluster::Cluster;

use super::{FLOW, WARM, goes_on, is_clean, millis, none};
use crate::{Options, SECOND};

/// The longest a webhook may hear nothing when its shard is handed over, in milliseconds.
const TARGET: f64 = 1000.0;

/// Each agent is restarted so often.
const ROUNDS: usize = 4;

/// Measures it.
pub(crate) async fn run(_: &Options) -> bool {
    // Each webhook hears 25 times a second.
    let course = Course {
        collectors: 0,
        refuse_one_of: 0,
        ..Course::of(1_000_000, 32).paced(800.0)
    };
    let mut trial = Trial::of(Cluster::start().await, course).await;
    let publishing = trial.publishing();
    let stopping = async {
        goes_on(WARM).await;
        let alone = (trial.now(), trial.now() + 8 * SECOND);
        goes_on(std::time::Duration::from_secs(8)).await;
        let mut stopped = Vec::new();
        let from = trial.now();
        for _ in 0..ROUNDS * trial.cluster.agents.len() {
            let name = trial.cluster.agents[0].name().to_owned();
            let owned = trial.owned_by(&name).await;
            let at = trial.now();
            trial.cluster.stop_agent(0).await;
            trial.cluster.settled().await;
            stopped.push((at, trial.now(), owned));
            trial.cluster.add_agent().await;
            trial.cluster.settled().await;
        }
        let restarting = (from, trial.now());
        goes_on(WARM).await;
        trial.journal.stop();
        (alone, restarting, stopped)
    };
    let ((), (alone, restarting, stopped)) = tokio::join!(publishing, stopping);
    trial
        .witness
        .until("what was accepted", FLOW, |log| {
            log.taken() >= trial.journal.deliveries()
        })
        .await;
    let arrivals = trial.witness.log().arrivals.clone();
    let silences = stopped
        .iter()
        .flat_map(|(from, to, owned)| gaps(&arrivals, owned, *from, *to).into_micros());
    let silences = Durations::of(silences);
    let asked = trial.journal.asked();
    let all: Vec<usize> = (0..trial.course.webhooks()).collect();
    let p99 = |(from, to)| latencies(&arrivals, &asked, &all, from, to).millis_at(99);
    let (alone, restarting) = (p99(alone), p99(restarting));
    println!(
        "\nrolling restart under load: {} agents stopped and started",
        stopped.len()
    );
    millis(
        "longest silence of a webhook at SIGTERM of its agent, p99",
        silences.millis_at(99),
        TARGET,
    );
    println!("p99 latency: {alone:.0} ms before, {restarting:.0} ms meanwhile");
    none("repeats", trial.judge().await.repeats);
    is_clean(&trial).await
}
