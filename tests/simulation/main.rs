//! The whole cluster in a simulated network, on simulated time, with trouble drawn from a seed: the real control plane, the real agent, the real
//! client of etcd and the real HTTP, over an etcd, a network, clocks and chance of the simulation's own. The same seed gives the same run.

#![allow(clippy::expect_used, clippy::indexing_slicing)] // A simulation that cannot go on says so and ends.

mod driver;
mod etcd;
mod judge;
mod maintenance;
mod net;
mod plan;
mod receiver;
mod run;
mod world;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;

use crate::plan::Plan;
use crate::run::{Outcome, run};

/// Runs the cluster in a simulated network.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    start: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// One seed only, with its log.
    #[arg(long)]
    seed: Option<u64>,
    /// How many run at once; by default one for each core.
    #[arg(long)]
    jobs: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Ok(filter) = std::env::var("RUST_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    if let Some(seed) = arguments.seed {
        let plan = Plan::of(seed);
        println!("{plan:#?}");
        let outcome = run(plan, true);
        outcome.log.iter().for_each(|line| println!("{line}"));
        report(seed, &outcome);
        return if outcome.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let jobs = arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let next = AtomicU64::new(arguments.start);
    let (begin, failed) = (Instant::now(), AtomicU64::new(0));
    let (accepted, repeats) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= arguments.start + arguments.seeds {
                        return;
                    }
                    let outcome = run(Plan::of(seed), false);
                    accepted.fetch_add(outcome.accepted as u64, Ordering::Relaxed);
                    repeats.fetch_add(outcome.repeats as u64, Ordering::Relaxed);
                    if !outcome.wrong.is_empty() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        report(seed, &outcome);
                    }
                }
            });
        }
    });
    println!(
        "{} seeds in {:.1} s: {} events accepted, {} repeats, {} seeds failed",
        arguments.seeds,
        begin.elapsed().as_secs_f64(),
        accepted.into_inner(),
        repeats.into_inner(),
        failed.load(Ordering::Relaxed),
    );
    if failed.into_inner() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(seed: u64, outcome: &Outcome) {
    println!(
        "seed {seed}: {} after {:.1} simulated s, {} events, {} repeats, log {}",
        if outcome.wrong.is_empty() { "ok" } else { "WRONG" },
        outcome.lasted.as_secs_f64(),
        outcome.accepted,
        outcome.repeats,
        outcome.hash
    );
    for wrong in outcome.wrong.iter().take(12) {
        println!("    {wrong}");
    }
}
