//! The long chaos: many events, published while agents, control planes and etcd are killed in turn, and one checker that judges what came of it; and
//! figures of what single faults cost.
//!
//! It starts everything itself, as it was built beside it. It ends with an error if a promise was broken; figures are printed beside their targets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a measurement that cannot go on must stop; counts are far below 2^52"
)]

mod figures;
mod long;
mod store;
mod upgrade;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Microseconds in a second.
const SECOND: u64 = 1_000_000;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Events are published while programs are killed.
    Kills,
    /// What single faults cost: all of the following.
    Figures,
    /// How long shards of a killed agent are without one.
    Failover,
    /// What orderly ends of agents cost.
    Handover,
    /// What the loss of a member of etcd costs.
    Members,
    /// What others feel of 10,000 dead webhooks of noisy accounts, and what these cost an agent.
    Isolation,
    /// What others feel of an account that publishes a hundred times as much.
    Noise,
    /// A cluster of another build is replaced by this one, and back.
    Upgrade,
    /// The store in a file is killed while it is written to.
    Store,
    /// The process that it is killed in.
    #[value(hide = true)]
    StoreWriter,
}

/// Breaks a cluster while it works, and judges what came of it.
#[derive(Debug, Parser)]
struct Options {
    /// What is done.
    #[arg(value_enum, default_value_t = Mode::Kills)]
    mode: Mode,
    /// How many events are published among the kills.
    #[arg(long, default_value_t = 20_000)]
    events: usize,
    /// How many kills there are: of agents, control planes and etcd in turn, or of each kind that is measured.
    #[arg(long, default_value_t = 10)]
    kills: usize,
    /// What the kills' moments and victims follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Events a second, if they are accepted as fast.
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    /// Where the programs' logs are kept.
    #[arg(long)]
    logs: Option<PathBuf>,
    /// Where the programs of the other build are.
    #[arg(long)]
    other: Option<PathBuf>,
    /// How many silent webhooks the noisy accounts have; a tenth as many others refuse connections.
    #[arg(long, default_value_t = 10_000)]
    dead: usize,
    /// Where the store is that is written to.
    #[arg(long, hide = true, default_value = "store")]
    store: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let clean = match options.mode {
        Mode::Kills => long::run(&options).await,
        Mode::Figures => figures::all(&options).await,
        Mode::Failover => figures::failover::run(&options).await,
        Mode::Handover => figures::handover::run(&options).await,
        Mode::Members => figures::members::run(&options).await,
        Mode::Isolation => figures::isolation::run(&options).await,
        Mode::Noise => figures::noise::run(&options).await,
        Mode::Upgrade => upgrade::run(&options).await,
        Mode::Store => store::run(&options).await,
        Mode::StoreWriter => store::writer(&options.store)
            .await
            .inspect_err(|why| eprintln!("{why}"))
            .is_ok(),
    };
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a run ends with.
const fn verdict(clean: bool) -> &'static str {
    if clean {
        "every promise was kept"
    } else {
        "A PROMISE WAS BROKEN"
    }
}
