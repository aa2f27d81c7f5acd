//! The load test: how fast Postrider is on this machine, measured against what the machine can do in the same run.
//!
//! It starts a real etcd (or none, with the file store), a control plane and an agent as they were built beside it, measures the raw
//! limit (a bare HTTP client against the sink) and etcd's own put rate, publishes events, and counts them where they arrive. Latencies
//! count from the intended start of each request, so that a stall shows in every request it delays. It asserts nothing about time; it
//! fails only if an event was lost or came twice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a measurement that cannot go on must stop; counts are far below 2^52"
)]

mod backlog;
mod publish;
mod report;
mod sink;
mod system;
mod yardstick;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use postrider_tests::client::{no_auth, signature, webhook};

use crate::publish::Plan;
use crate::sink::Sink;
use crate::system::System;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Whose webhooks these are.
const ACCOUNT: &str = "1010";

/// How long what was accepted may take to arrive after publishing has ended.
const DRAIN: Duration = Duration::from_secs(60);

/// How events are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// One event in each request.
    Unary,
    /// One event in each request of a stream, many requests under way on each stream.
    Stream,
    /// Many events in each request.
    Batch,
    /// One event in each request, 100 a second: the latency of an idle system.
    Idle,
    /// What waiting deliveries of one dead webhook cost, and what another webhook feels of them and of a redrive.
    Backlog,
}

/// Where Postrider keeps its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    /// One etcd member, one control plane, one agent.
    Etcd,
    /// One process on an embedded store.
    File,
}

/// How webhooks prove who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Auth {
    /// Not at all.
    None,
    /// By a signature.
    Signature,
}

/// Measures accepted and delivered events a second, latencies, and what they cost.
#[derive(Debug, Parser)]
struct Options {
    /// How events are published.
    #[arg(long, value_enum, default_value_t = Mode::Batch)]
    mode: Mode,
    /// How many publishers work at once, each on a connection of its own.
    #[arg(long, default_value_t = 64)]
    publishers: usize,
    /// How many webhooks there are; each event is for one of them.
    #[arg(long, default_value_t = 100)]
    webhooks: usize,
    /// How many events are published at most.
    #[arg(long, default_value_t = 100_000)]
    events: usize,
    /// Bytes of each event's body.
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// Events a second; as fast as they are accepted if not given.
    #[arg(long)]
    rate: Option<f64>,
    /// Events in each request of mode batch.
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// Requests under way on each stream of mode stream.
    #[arg(long, default_value_t = 64)]
    window: usize,
    /// How webhooks prove who sends.
    #[arg(long, value_enum, default_value_t = Auth::Signature)]
    auth: Auth,
    /// Where Postrider keeps its state.
    #[arg(long, value_enum, default_value_t = Store::Etcd)]
    store: Store,
    /// How long publishing lasts at most.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How long each yardstick is measured.
    #[arg(long, default_value_t = 3)]
    yardstick_seconds: u64,
    /// Where the figures are written as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if options.mode == Mode::Backlog {
        let figures = backlog::run(&options).await;
        if let Some(path) = &options.json {
            std::fs::write(path, format!("{figures:#}\n")).expect("the figures can be written");
        }
        return ExitCode::SUCCESS;
    }
    let sink = Sink::start(options.events);
    let measured = Duration::from_secs(options.yardstick_seconds);
    println!(
        "measuring the raw limit: 64 connections, {} bytes a request",
        options.size
    );
    let raw = yardstick::raw_limit(&sink, options.size, measured).await;

    let system = System::start(options.store).await;
    let puts = match &system.etcd() {
        Some(etcd) => {
            println!("measuring etcd: puts of {} bytes by 1 and by 128 clients", options.size);
            let one = yardstick::etcd_puts(etcd, 1, options.size, measured).await;
            Some((one, yardstick::etcd_puts(etcd, 128, options.size, measured).await))
        }
        None => None,
    };
    let idle = system.usage().await;

    let client = system.client();
    client
        .create_account(ACCOUNT, i32::try_from(options.webhooks).unwrap())
        .await;
    for number in 0..options.webhooks {
        let method = match options.auth {
            Auth::None => no_auth(),
            Auth::Signature => signature(),
        };
        let webhook = webhook(&sink.url(&format!("/{number}")), &[&format!("LOAD_{number}")], method);
        client.create_webhook(ACCOUNT, &format!("load-{number}"), webhook).await;
    }

    println!(
        "publishing {} events of {} bytes for {} webhooks",
        options.events, options.size, options.webhooks
    );
    let before = system.usage().await;
    let plan = Arc::new(Plan::new(&options, sink.clone()));
    let published = publish::run(&plan, || system.client()).await;
    let arrived_in_time = sink.wait(published.accepted, DRAIN).await;
    let after = system.usage().await;

    let outcome = plan.outcome(&published, arrived_in_time);
    let report = report::Report {
        options: &options,
        raw: &raw,
        puts: puts.as_ref(),
        idle: &idle,
        before: &before,
        after: &after,
        outcome: &outcome,
    };
    report.print();
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{:#}\n", report.json())).expect("the figures can be written");
    }
    if outcome.lost == 0 && outcome.doubled == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
