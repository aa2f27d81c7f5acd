//! Many events among many kills.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_common::entropy::SystemEntropy;
use postrider_tests::chaos::checker::Micros;
use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::kills::{self, Victim};
use postrider_tests::chaos::measure::{Durations, silence};
use postrider_tests::chaos::trial::Trial;
use postrider_tests::cluster::Cluster;

use crate::Options;

/// How long it may take until the next kill, and until all is quiet.
const FLOW: Duration = Duration::from_secs(600);

/// How long after its death an agent's requests may still be read, in microseconds.
pub(crate) const GRACE: Micros = 300_000;

/// Runs it, and tells whether every promise was kept.
pub(crate) async fn run(options: &Options) -> bool {
    let course = Course {
        collectors: 4,
        lanes: 32,
        batch: 50,
        ..Course::of(options.events, 96).paced(options.rate)
    };
    let kills = kills::plan(options.kills, course.events, &SystemEntropy::seeded(options.seed));
    println!(
        "{} events for {} webhooks, {} kills, seed {}",
        course.events,
        course.webhooks(),
        kills.len(),
        options.seed
    );
    let mut trial = Trial::of(Cluster::start().await, course).await;
    let publishing = trial.publishing();
    let mut of_agents = Vec::new();
    let killing = async {
        for kill in &kills {
            trial.moment_of(kill, FLOW).await;
            let agent = kill.which % trial.cluster.agents.len();
            let owned = trial.owned_by(trial.cluster.agents[agent].name()).await;
            let at = trial.now();
            trial.carry_out(kill).await;
            let took = (trial.now() - at) / 1000;
            println!(
                "{:?} killed at {} ms, started again {took} ms later",
                kill.victim,
                at / 1000
            );
            if kill.victim == Victim::Agent {
                of_agents.push((at, owned));
            }
        }
    };
    tokio::join!(publishing, killing);
    let published = trial.now();
    trial.quiet(FLOW).await;
    println!(
        "published in {} ms, quiet after {} ms",
        published / 1000,
        trial.now() / 1000
    );
    let run = trial.run().await;
    let report = postrider_tests::chaos::checker::judge(&run);
    let mut by_victim: BTreeMap<Victim, usize> = BTreeMap::new();
    for kill in &kills {
        *by_victim.entry(kill.victim).or_default() += 1;
    }
    let mut repeats: BTreeMap<&str, usize> = BTreeMap::new();
    for (fault, count) in run.faults.iter().zip(&report.repeats_by_fault) {
        *repeats.entry(fault.victim).or_default() += count;
    }
    let silences = of_agents
        .iter()
        .flat_map(|(at, owned)| silence(&run.arrivals, owned, *at, GRACE).into_micros());
    let silences = Durations::of(silences);
    println!("kills: {by_victim:?}; repeats by what they followed: {repeats:?}");
    println!("leases lost by agents that lived: {}", trial.lost_leases().len());
    println!(
        "failover, whatever else was killed meanwhile, of {} webhooks: p50 {:.0} ms, p99 {:.0} ms, longest {:.0} ms",
        silences.count(),
        silences.millis_at(50),
        silences.millis_at(99),
        silences.longest_millis()
    );
    print!("{report}");
    if let Some(folder) = &options.logs {
        trial.cluster.keep_logs(folder);
    }
    println!("{}", crate::verdict(report.is_clean()));
    report.is_clean()
}
