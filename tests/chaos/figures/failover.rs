//! Agents killed one by one: how long the webhooks of their shards hear nothing.

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::measure::{Durations, silence};
use postrider_tests::chaos::trial::Trial;
use postrider_tests::cluster::Cluster;

use super::{FLOW, WARM, goes_on, is_clean, millis};
use crate::Options;
use crate::long::GRACE;

/// Targets with a lease of 5 s, in milliseconds: the lease, the time that the store takes to see that it ran out, and a take-over.
const TARGETS: (f64, f64) = (5500.0, 7500.0);

/// How often an agent is killed at least.
const KILLS: usize = 20;

/// Measures it.
pub(crate) async fn run(options: &Options) -> bool {
    let kills = options.kills.max(KILLS);
    // Each webhook hears ten times a second.
    let course = Course {
        collectors: 0,
        refuse_one_of: 0,
        ..Course::of(1_000_000, 64).paced(640.0)
    };
    let mut trial = Trial::of(Cluster::start().await, course).await;
    let publishing = trial.publishing();
    let killing = async {
        let mut killed = Vec::new();
        for _ in 0..kills {
            goes_on(WARM).await;
            trial.cluster.settled().await;
            let name = trial.cluster.agents[0].name().to_owned();
            let owned = trial.owned_by(&name).await;
            let at = trial.kill_agent(0).await;
            trial.cluster.add_agent().await;
            killed.push((at, owned));
            trial.cluster.settled().await;
        }
        goes_on(WARM).await;
        trial.journal.stop();
        killed
    };
    let ((), killed) = tokio::join!(publishing, killing);
    trial
        .witness
        .until("what was accepted", FLOW, |log| {
            log.taken() >= trial.journal.deliveries()
        })
        .await;
    let arrivals = trial.witness.log().arrivals.clone();
    let silences = killed
        .iter()
        .flat_map(|(at, owned)| silence(&arrivals, owned, *at, GRACE).into_micros());
    let silences = Durations::of(silences);
    println!(
        "\nfailover after kill -9 of an agent, lease 5 s: {kills} kills, {} webhooks",
        silences.count()
    );
    millis("p50", silences.millis_at(50), TARGETS.0);
    millis("p99", silences.millis_at(99), TARGETS.1);
    is_clean(&trial).await
}
