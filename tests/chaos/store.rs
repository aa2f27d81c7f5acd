//! The store in a file, killed at random moments in a process of its own. Each life of that process first says what it finds, and whether it is whole; then
//! it writes, and tells of each write that was answered OK.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use postrider_common::entropy::{Entropy, SystemEntropy};
use postrider_common::key::Key;
use postrider_common::store::file::FileStore;
use postrider_common::store::{Guard, Op, Store as _, Write, list_all};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::Options;

/// Writers that write at the same time, each one write after the other.
const LANES: u64 = 8;

/// How many of its last values a writer keeps beside its counter.
const KEPT: u64 = 12;

/// How long a process may take to open the store on a busy machine.
const OPEN: Duration = Duration::from_secs(60);

/// The longest time between a process's start, or its having opened the store, and its end, in microseconds.
const LONGEST: f64 = 60_000.0;

/// One in so many is killed on its way to open what the one before left.
const WHILE_OPENING: usize = 4;

fn counter_key(lane: u64) -> Key {
    Key::from_stored(&format!("killed/{lane}/counter"))
}

fn value_key(lane: u64, number: u64) -> Key {
    Key::from_stored(&format!("killed/{lane}/value/{number:012}"))
}

/// A value that says what it is: of 100 bytes, a page, or many pages.
fn value(lane: u64, number: u64) -> Vec<u8> {
    let length = match (lane + number) % 8 {
        0 => 60_000,
        1 | 2 => 4096,
        _ => 100,
    };
    let name = format!("{lane}-{number};");
    name.bytes().cycle().take(length).collect()
}

/// What a process does that is to be killed: it never ends by itself, but with an error.
///
/// # Errors
/// What it found is not whole, or the store gave an error.
pub(crate) async fn writer(directory: &Path) -> Result<(), String> {
    let store = FileStore::open(directory).await.map_err(|error| error.to_string())?;
    let mut counts = Vec::new();
    for lane in 0..LANES {
        counts.push(whole(&store, lane).await?);
    }
    let words: Vec<_> = counts.iter().map(u64::to_string).collect();
    say(&format!("found {}", words.join(" ")));
    let mut writers = JoinSet::new();
    for (lane, count) in (0..).zip(counts) {
        writers.spawn(write(store.clone(), lane, count));
    }
    match writers.join_next().await {
        Some(Ok(Err(error))) => Err(error),
        ended => Err(format!("{ended:?}")),
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more: then it is about to be killed.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Reads what a writer left, which must be all of its last write and nothing of another, and returns its count.
async fn whole(store: &FileStore, lane: u64) -> Result<u64, String> {
    let (counter, _) = store.get(&counter_key(lane)).await.map_err(|error| error.to_string())?;
    let count: u64 = match counter {
        Some(entry) => String::from_utf8_lossy(&entry.value)
            .parse()
            .map_err(|_| format!("writer {lane}: its counter is damaged"))?,
        None => 0,
    };
    let prefix = Key::from_stored(&format!("killed/{lane}/value/"));
    let (kept, _) = list_all(store, &prefix, false)
        .await
        .map_err(|error| error.to_string())?;
    let numbers = (count + 1).saturating_sub(KEPT).max(1)..=count;
    let wanted: Vec<_> = numbers
        .map(|number| (value_key(lane, number), value(lane, number)))
        .collect();
    let same = kept.len() == wanted.len()
        && kept
            .iter()
            .zip(&wanted)
            .all(|(entry, (key, value))| entry.key == *key && entry.value == *value);
    same.then_some(count).ok_or_else(|| {
        let keys: Vec<_> = kept.iter().map(|entry| entry.key.as_str()).collect();
        format!("writer {lane}: its counter is {count}, and it has {keys:?}")
    })
}

async fn write(store: FileStore, lane: u64, mut count: u64) -> Result<(), String> {
    loop {
        let (counter, _) = store.get(&counter_key(lane)).await.map_err(|error| error.to_string())?;
        let guard = match counter {
            Some(entry) => Guard::Modified(counter_key(lane), entry.mod_revision),
            None => Guard::Absent(counter_key(lane)),
        };
        count += 1;
        let mut ops = vec![
            Op::put(counter_key(lane), count.to_string()),
            Op::put(value_key(lane, count), value(lane, count)),
        ];
        if count > KEPT {
            ops.push(Op::delete(value_key(lane, count - KEPT)));
        }
        let write = Write {
            guards: vec![guard],
            ops,
        };
        store.write(write).await.map_err(|error| error.to_string())?;
        say(&format!("wrote {lane} {count}"));
    }
}

/// What all lives together said.
#[derive(Default)]
struct Known {
    /// Each writer's last count that is known to be written.
    written: BTreeMap<u64, u64>,
    acknowledged: u64,
    /// Writes that were found though nobody had been told of them.
    in_doubt: u64,
    opened: usize,
}

impl Known {
    fn hear(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.split(' ');
        let what = words.next();
        let numbers: Result<Vec<u64>, _> = words.map(str::parse).collect();
        match (what, numbers.as_deref()) {
            (Some("wrote"), Ok(&[lane, count])) => {
                self.written.insert(lane, count);
                self.acknowledged += 1;
            }
            (Some("found"), Ok(counts)) => {
                self.opened += 1;
                for (lane, &count) in (0..).zip(counts) {
                    let written = self.written.insert(lane, count).unwrap_or(0);
                    if count < written || count > written + 1 {
                        return Err(format!("writer {lane} was at {written}, and is at {count}"));
                    }
                    self.in_doubt += count - written;
                }
            }
            _ => return Err(format!("unexpected: {line}")),
        }
        Ok(())
    }
}

type Said = Lines<BufReader<ChildStdout>>;

async fn next(said: &mut Said) -> Result<String, String> {
    let line = said.next_line().await.map_err(|error| error.to_string())?;
    line.ok_or_else(|| "it ended by itself".into())
}

/// One life: started, killed after `microseconds` since it was opened, or since the start.
async fn life(directory: &Path, while_opening: bool, microseconds: u64, known: &mut Known) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.arg("store-writer").arg("--store").arg(directory);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let stdout = child.stdout.take().ok_or("it has no output")?;
    let mut said = BufReader::new(stdout).lines();
    if !while_opening {
        let opened = timeout(OPEN, next(&mut said)).await.map_err(|_| "it did not open")??;
        known.hear(&opened)?;
    }
    let at = Instant::now() + Duration::from_micros(microseconds);
    // The clock of timeouts counts milliseconds: the rest is waited for here.
    while let Ok(line) = timeout_at(at - Duration::from_millis(2), next(&mut said)).await {
        known.hear(&line?)?;
    }
    while Instant::now() < at {
        std::hint::spin_loop();
    }
    child.kill().await.map_err(|error| error.to_string())?;
    // What it had said before.
    while let Some(line) = said.next_line().await.map_err(|error| error.to_string())? {
        known.hear(&line)?;
    }
    Ok(())
}

/// Kills the store as often as `options` say, and tells whether all that was acknowledged was there each time, whole.
pub(crate) async fn run(options: &Options) -> bool {
    let directory = tempfile::tempdir().expect("there is room for a store");
    let path: PathBuf = directory.path().join("store");
    let entropy = SystemEntropy::seeded(options.seed);
    let mut known = Known::default();
    let mut broken = None;
    for number in 0..options.kills {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "below the longest"
        )]
        let microseconds = (entropy.fraction() * LONGEST) as u64;
        let while_opening = number % WHILE_OPENING == WHILE_OPENING - 1;
        if let Err(why) = life(&path, while_opening, microseconds, &mut known).await {
            broken = Some(format!("kill {}: {why}", number + 1));
            break;
        }
    }
    if broken.is_none() {
        // The last one's successor says what it finds.
        broken = life(&path, false, 0, &mut known).await.err();
    }
    println!(
        "the store in a file was killed {} times, seed {}: {} writes were acknowledged, {} others were found whole; opened {} times",
        options.kills, options.seed, known.acknowledged, known.in_doubt, known.opened
    );
    if let Some(why) = &broken {
        println!("{why}");
    }
    println!("{}", crate::verdict(broken.is_none()));
    broken.is_none()
}
