//! The whole cluster in a simulated network, on simulated time, with trouble drawn from a seed: the real control plane, the real agent, the real
//! client of etcd and the real HTTP, over an etcd, a network, clocks and chance of the simulation's own. The same seed gives the same run.

#![allow(clippy::expect_used, clippy::indexing_slicing)] // A simulation that cannot go on says so and ends.
#![allow(clippy::disallowed_methods)] // How long it all took is real time.

mod acts;
mod check;
mod differential;
mod driver;
mod etcd;
mod forms;
mod history;
mod judge;
mod maintenance;
mod many;
mod messages;
mod mishaps;
mod net;
mod plan;
mod receiver;
mod rest;
mod run;
mod side;
mod sums;
mod weather;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use postrider_common::planted::{self, Bug};

use crate::many::{Seeds, report};
use crate::plan::Plan;

/// Runs the cluster in a simulated network.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the seeds that once failed, then many.
    Run {
        #[command(flatten)]
        seeds: Seeds,
    },
    /// Runs one seed, and shows all of it.
    Replay {
        /// The seed.
        seed: u64,
        /// A known bug to switch on, by its name.
        #[arg(long)]
        bug: Option<String>,
    },
    /// Runs some seeds in this process.
    #[command(hide = true)]
    Some {
        /// The seeds.
        seeds: Vec<u64>,
        /// A known bug to switch on, by its name.
        #[arg(long)]
        bug: Option<String>,
    },
    /// Switches on one known bug after the other, and looks for a seed that finds it.
    Bugs {
        #[command(flatten)]
        seeds: Seeds,
        /// Only these, by their names.
        #[arg(long = "bug")]
        only: Vec<String>,
    },
    /// Checks the simulation itself: its etcd obeys the laws of every store and answers as a real one does, and seeds give the same run each time.
    Check,
    /// Asks the small etcd and a real one the same, at random, and compares what they answer.
    Compare {
        /// How many requests are compared.
        #[arg(long, default_value_t = 100_000)]
        steps: usize,
        /// What they are drawn from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    if let Ok(filter) = std::env::var("RUST_LOG") {
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter);
        subscriber.with_writer(std::io::stderr).init();
    }
    let holds = match Arguments::parse().command {
        Command::Run { seeds } => many::run(&seeds),
        Command::Replay { seed, bug } => replay(seed, bug.as_deref()),
        Command::Some { seeds, bug } => {
            many::some(&seeds, bug.as_deref().and_then(named));
            true
        }
        Command::Bugs { seeds, only } => many::bugs(&seeds, &only),
        Command::Check => check::check(),
        Command::Compare { steps, seed } => differential::compare(steps, seed),
    };
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn named(name: &str) -> Option<Bug> {
    Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
}

fn replay(seed: u64, bug: Option<&str>) -> bool {
    planted::plant(bug.and_then(named));
    let plan = Plan::of(seed);
    println!("{plan:#?}");
    let outcome = run::run(plan, true);
    outcome.log.iter().for_each(|line| println!("{line}"));
    report(seed, &outcome);
    outcome.wrong.is_empty()
}
