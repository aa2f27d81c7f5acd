//! Many seeds, on all cores.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use clap::Args;
use postrider_common::planted::{self, Bug};

use crate::plan::Plan;
use crate::run::{self, Outcome};

/// Which seeds are run.
#[derive(Debug, Args)]
pub(crate) struct Seeds {
    /// The first.
    #[arg(long, default_value_t = 1)]
    start: u64,
    /// How many.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// How many at once; one for each core by default.
    #[arg(long)]
    jobs: Option<usize>,
}

impl Seeds {
    fn jobs(&self) -> usize {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        self.jobs.unwrap_or_else(cores)
    }
}

/// Seeds that one process runs.
const AT_ONCE: usize = 10;

/// How the line of an outcome begins.
const OUTCOME: &str = "outcome: ";

/// Where seeds stand that once failed.
fn kept() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("simulation/kept.txt")
}

/// Seeds that once failed. After `#` stands what was wrong.
fn kept_seeds() -> Vec<u64> {
    let text = std::fs::read_to_string(kept()).unwrap_or_default();
    let numbers = text.lines().filter_map(|line| line.split('#').next());
    numbers.filter_map(|number| number.trim().parse().ok()).collect()
}

fn keep(seed: u64, outcome: &Outcome) -> std::io::Result<()> {
    if kept_seeds().contains(&seed) {
        return Ok(());
    }
    let why = outcome.wrong.first().map_or("", String::as_str);
    let mut file = OpenOptions::new().append(true).create(true).open(kept())?;
    writeln!(file, "{seed} # {}", why.chars().take(100).collect::<String>())
}

/// Runs one seed; a panic of anything in it is something wrong.
fn one(seed: u64) -> Outcome {
    let ran = catch_unwind(AssertUnwindSafe(|| run::run(Plan::of(seed), false)));
    ran.unwrap_or_else(|_| Outcome {
        wrong: vec!["it panicked".to_owned()],
        ..Outcome::default()
    })
}

/// Runs some seeds one after the other, and prints each outcome on a line of its own: what a process does that `each` starts.
pub(crate) fn some(seeds: &[u64], bug: Option<Bug>) {
    planted::plant(bug);
    for seed in seeds {
        let outcome = serde_json::to_string(&one(*seed)).expect("an outcome is JSON");
        println!("{OUTCOME}{outcome}");
    }
}

/// Runs seeds on all cores, some in one process at a time, with `bug` switched on; hands each outcome over, and ends early when that says so.
fn each(seeds: &[u64], jobs: usize, bug: Option<Bug>, ended: impl Fn(u64, Outcome) -> bool + Sync) {
    let (next, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        while !enough.load(Ordering::Relaxed) {
            let from = next.fetch_add(AT_ONCE, Ordering::Relaxed);
            let some: Vec<u64> = seeds.iter().skip(from).take(AT_ONCE).copied().collect();
            if some.is_empty() {
                return;
            }
            let program = std::env::current_exe().expect("this program has a path");
            let mut command = process::Command::new(program);
            command
                .arg("some")
                .args(some.iter().map(u64::to_string))
                .args(bug.map(|bug| format!("--bug={bug:?}")));
            let done = command.output().expect("this program can be started");
            let lines = String::from_utf8_lossy(&done.stdout).into_owned();
            let mut outcomes = lines.lines().filter_map(|line| line.strip_prefix(OUTCOME));
            for seed in some {
                // What is missing ended the process.
                let outcome = outcomes.next().and_then(|outcome| serde_json::from_str(outcome).ok());
                let outcome = outcome.unwrap_or_else(|| Outcome {
                    wrong: vec![format!("the process ended: {}", done.status)],
                    ..Outcome::default()
                });
                if ended(seed, outcome) {
                    enough.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(work))));
}

/// Runs the seeds that once failed, and then those that were asked for. Says whether all promises held.
pub(crate) fn run(seeds: &Seeds) -> bool {
    let begin = Instant::now();
    let mut all = kept_seeds();
    all.extend(seeds.start..seeds.start + seeds.seeds);
    let sum = Mutex::new(Outcome::default());
    let failed = AtomicUsize::new(0);
    each(&all, seeds.jobs(), None, |seed, outcome| {
        if !outcome.wrong.is_empty() {
            failed.fetch_add(1, Ordering::Relaxed);
            report(seed, &outcome);
            keep(seed, &outcome).expect("the seed can be noted");
        }
        let mut sum = sum.lock().expect("nobody panics with it");
        sum.accepted += outcome.accepted;
        sum.repeats += outcome.repeats;
        sum.takes += outcome.takes;
        sum.lasted += outcome.lasted;
        for (fault, count) in outcome.struck {
            *sum.struck.entry(fault).or_default() += count;
        }
        false
    });
    let (sum, failed) = (sum.into_inner().expect("nobody panics with it"), failed.into_inner());
    println!(
        "{} seeds ({} to {}, and {} that once failed) in {:.1} s: {failed} failed",
        all.len(),
        seeds.start,
        seeds.start + seeds.seeds - 1,
        kept_seeds().len(),
        begin.elapsed().as_secs_f64(),
    );
    println!(
        "    {:.0} simulated s, {} events accepted, {} repeats, shards taken {} times",
        sum.lasted.as_secs_f64(),
        sum.accepted,
        sum.repeats,
        sum.takes
    );
    let struck: Vec<String> = sum
        .struck
        .iter()
        .map(|(fault, count)| format!("{fault} {count}"))
        .collect();
    println!("    {}", struck.join(", "));
    failed == 0
}

/// Looks for a seed that finds each known bug. Says whether all were found.
pub(crate) fn bugs(seeds: &Seeds, only: &[String]) -> bool {
    let all: Vec<u64> = (seeds.start..seeds.start + seeds.seeds).collect();
    let mut missed = 0;
    for bug in Bug::ALL {
        let name = format!("{bug:?}");
        if !only.is_empty() && !only.contains(&name) {
            continue;
        }
        let found: Mutex<BTreeMap<u64, String>> = Mutex::default();
        each(&all, seeds.jobs(), Some(bug), |seed, outcome| {
            let wrong = outcome.wrong.into_iter().next();
            let is_found = wrong.is_some();
            found
                .lock()
                .expect("nobody panics with it")
                .extend(wrong.map(|wrong| (seed, wrong)));
            is_found
        });
        let found = found.into_inner().expect("nobody panics with it");
        match found.first_key_value() {
            Some((seed, wrong)) => {
                let wrong: String = wrong.chars().take(110).collect();
                println!("{name:<20} found by seed {seed:>4}: {wrong}");
            }
            None => {
                missed += 1;
                println!("{name:<20} NOT FOUND in {} seeds", seeds.seeds);
            }
        }
    }
    missed == 0
}

/// Says how a seed ended.
pub(crate) fn report(seed: u64, outcome: &Outcome) {
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
