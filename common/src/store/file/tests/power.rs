//! Power losses: of what a disk was not told to keep, any part is lost, at any moment. What was acknowledged must be there afterwards, nothing that was
//! never written may be, and the store must go on.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::PoisonError;

use super::*;
use crate::entropy::{Entropy as _, SystemEntropy};

/// Disks that are played with. Each loses its power [`LOSSES`] times.
const DISKS: u64 = 100;

/// Power losses of one disk.
const LOSSES: usize = 12;

/// The setting that gives another number of disks: for many more than a test has time for.
const MORE: &str = "POWER_DISKS";

/// Those who write, each two keys of its own.
const WRITERS: usize = 5;

/// Longer than any test.
const TTL: Duration = Duration::from_secs(3600);

struct Dice(SystemEntropy);

impl Dice {
    fn below(&self, count: usize) -> usize {
        usize::try_from(self.0.next_u64() % count as u64).unwrap()
    }

    fn chance(&self, probability: f64) -> bool {
        self.0.fraction() < probability
    }

    fn one<T: Copy>(&self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// What changed since the last sync.
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// A disk in memory, with what was not synced yet kept apart. After so many changes it has no power any more, and fails.
#[derive(Clone, Default)]
struct VolatileDisk(Arc<Mutex<Platters>>);

#[derive(Default)]
struct Platters {
    /// What no power loss takes.
    kept: Vec<u8>,
    /// What reads see.
    seen: Vec<u8>,
    unsynced: Vec<Change>,
    /// Changes and syncs until the power fails, if it does by itself.
    left: Option<usize>,
    is_dead: bool,
}

fn apply(change: &Change, to: &mut Vec<u8>) {
    match change {
        Change::Length(length) => to.resize(*length, 0),
        Change::Write(at, data) => {
            // What lies beyond a length that was lost is lost with it.
            let there = to.len().saturating_sub(*at).min(data.len());
            if there > 0 {
                to[*at..*at + there].copy_from_slice(&data[..there]);
            }
        }
    }
}

impl Platters {
    fn alive(&self) -> io::Result<()> {
        if self.is_dead {
            return Err(io::Error::other("no power"));
        }
        Ok(())
    }

    /// Counts a change; false if the power fails in it.
    fn goes_on(&mut self) -> bool {
        let left = self.left.map(|left| left.saturating_sub(1));
        self.is_dead = left == Some(0);
        self.left = left;
        !self.is_dead
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        self.alive()?;
        apply(&change, &mut self.seen);
        self.unsynced.push(change);
        self.goes_on();
        self.alive()
    }
}

impl VolatileDisk {
    fn platters(&self) -> std::sync::MutexGuard<'_, Platters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power fails after so many changes.
    fn fail_after(&self, changes: Option<usize>) {
        self.platters().left = changes;
    }

    /// The disk as it is when the power is back: of what was not synced some is there, in whole pages of a drawn size, the newest or an older state of
    /// each.
    fn lose_power(&self, dice: &Dice) -> Self {
        let mut platters = self.platters();
        platters.is_dead = true;
        let page = dice.one(&[512, 1024, 2048, 4096]);
        let survives = dice.one(&[0.0, 0.1, 0.5, 0.5, 0.9, 1.0]);
        let mut image = std::mem::take(&mut platters.kept);
        for change in platters.unsynced.drain(..) {
            match change {
                Change::Length(_) => {
                    if dice.chance(survives) {
                        apply(&change, &mut image);
                    }
                }
                Change::Write(mut at, mut data) => {
                    while !data.is_empty() {
                        let rest = data.split_off(data.len().min(page - at % page));
                        let next = at + data.len();
                        if dice.chance(survives) {
                            apply(&Change::Write(at, data), &mut image);
                        }
                        (at, data) = (next, rest);
                    }
                }
            }
        }
        let platters = Platters {
            seen: image.clone(),
            kept: image,
            ..Platters::default()
        };
        Self(Arc::new(Mutex::new(platters)))
    }

    async fn open(&self, directory: &TempDir) -> Result<FileStore, OpenError> {
        let disk = self.clone();
        let open = move || {
            Database::builder()
                .set_cache_size(1 << 20)
                .create_with_backend(disk.clone())
        };
        FileStore::open_with(directory.path(), directory.path().join(FILE), Box::new(open)).await
    }
}

impl fmt::Debug for VolatileDisk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("VolatileDisk")
    }
}

impl StorageBackend for VolatileDisk {
    fn len(&self) -> io::Result<u64> {
        let platters = self.platters();
        platters.alive()?;
        Ok(platters.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platters = self.platters();
        platters.alive()?;
        let at = usize::try_from(offset).unwrap();
        let there = platters.seen.get(at..at + out.len());
        out.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.platters().change(Change::Length(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platters = self.platters();
        platters.alive()?;
        if platters.goes_on() {
            let unsynced = std::mem::take(&mut platters.unsynced);
            unsynced.iter().for_each(|change| apply(change, &mut platters.kept));
        }
        platters.alive()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        let mut platters = self.platters();
        assert!(at + data.len() <= platters.seen.len(), "written beyond the end");
        platters.change(Change::Write(at, data.to_vec()))
    }
}

/// What a writer's two keys hold: both the same value, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Held(Option<(u64, usize)>);

impl Held {
    fn value(self) -> Option<Bytes> {
        let (number, length) = self.0?;
        let text = format!("{number}.");
        Some(text.bytes().cycle().take(length).collect::<Vec<u8>>().into())
    }
}

/// What may be there.
#[derive(Default)]
struct Writer {
    /// What was acknowledged last, and at which revision.
    surely: Held,
    at: Option<Revision>,
    /// What was written last, if nothing is known of it.
    perhaps: Option<Held>,
}

/// What is known of a lease, and of the key that is put on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lease {
    Granted,
    Used,
    /// Its end was asked for, and not answered.
    Doubtful,
    Ended,
}

#[derive(Default)]
struct Story {
    writers: [Writer; WRITERS],
    leases: BTreeMap<LeaseId, Lease>,
    numbers: u64,
    newest: Revision,
}

/// What came of all of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    losses: usize,
    /// Writes that were acknowledged.
    written: usize,
    /// Writes whose outcome nobody knew, and those of them that turned out to be there.
    doubtful: usize,
    there: usize,
    /// Losses while the file was being opened.
    opening: usize,
}

fn names(writer: usize) -> [Key; 2] {
    [key(&format!("a/{writer}")), key(&format!("b/{writer}"))]
}

fn leased(lease: LeaseId) -> Key {
    key(&format!("l/{}", lease.0))
}

impl Story {
    /// Checks what is there after a power loss, and believes it from then on.
    async fn check(&mut self, store: &FileStore, sum: &mut Sum) {
        let all = ListRequest {
            prefix: key(""),
            after: None,
            limit: 1000,
            revision: None,
            keys_only: false,
        };
        let page = store.list(all).await.unwrap();
        assert!(page.revision >= self.newest, "the store went back");
        let bytes: usize = page
            .entries
            .iter()
            .map(|entry| entry.key.as_str().len() + entry.value.len())
            .sum();
        assert_eq!(store.usage().await.unwrap().in_use, bytes as u64);
        let mut entries: BTreeMap<Key, Entry> = page
            .entries
            .into_iter()
            .map(|entry| (entry.key.clone(), entry))
            .collect();
        for (number, writer) in self.writers.iter_mut().enumerate() {
            let [one, other] = names(number).map(|name| entries.remove(&name));
            let modified = one.as_ref().map(|entry| entry.mod_revision);
            assert_eq!(modified, other.as_ref().map(|entry| entry.mod_revision));
            let value = one.map(|entry| entry.value);
            assert_eq!(value, other.map(|entry| entry.value));
            let perhaps = writer.perhaps.take().filter(|perhaps| value == perhaps.value());
            if let Some(perhaps) = perhaps.filter(|_| modified.is_none_or(|modified| modified > self.newest)) {
                sum.there += 1;
                writer.surely = perhaps;
                writer.at = modified;
            } else {
                assert_eq!(value, writer.surely.value(), "what writer {number} wrote is not there");
                assert_eq!(modified, writer.at);
            }
        }
        for (lease, state) in &mut self.leases {
            let lives = store.keep_alive(*lease).await.is_ok();
            let entry = entries.remove(&leased(*lease));
            assert!(entry.iter().all(|entry| entry.lease == Some(*lease)));
            match state {
                Lease::Granted => assert!(lives),
                Lease::Used => assert!(lives && entry.is_some()),
                Lease::Doubtful => {
                    assert!(lives || entry.is_none());
                    *state = if lives { Lease::Granted } else { Lease::Ended };
                }
                Lease::Ended => assert!(!lives && entry.is_none()),
            }
        }
        assert!(entries.is_empty(), "never written: {:?}", entries.keys());
        self.newest = page.revision;
    }

    /// Writes of several writers at once. False if one was not acknowledged.
    async fn write(&mut self, store: &FileStore, dice: &Dice, sum: &mut Sum) -> bool {
        let (first, count) = (dice.below(WRITERS), 1 + dice.below(WRITERS));
        let mut writes = Vec::new();
        for number in (0..count).map(|next| (first + next) % WRITERS) {
            self.numbers += 1;
            let length = dice.one(&[10, 100, 3_000, 20_000]);
            let held = Held(dice.chance(0.8).then_some((self.numbers, length)));
            let [one, other] = names(number);
            let op = |name: Key| match held.value() {
                Some(value) => Op::put(name, value),
                None => Op::delete(name),
            };
            let guard = match self.writers[number].at {
                Some(at) => Guard::Modified(one.clone(), at),
                None => Guard::Absent(one.clone()),
            };
            let write = Write {
                guards: vec![guard],
                ops: vec![op(one), op(other)],
            };
            writes.push(async move { (number, held, store.write(write).await) });
        }
        let mut all = true;
        for (number, held, outcome) in join_all(writes).await {
            let writer = &mut self.writers[number];
            match outcome {
                Ok(at) => {
                    sum.written += 1;
                    self.newest = self.newest.max(at);
                    (writer.surely, writer.at) = (held, held.0.map(|_| at));
                }
                Err(WriteError::Unknown(_)) => {
                    sum.doubtful += 1;
                    writer.perhaps = Some(held);
                    all = false;
                }
                Err(WriteError::NotApplied(NotApplied::Away(_))) => all = false,
                Err(error) => panic!("writer {number}: {error}"),
            }
        }
        all
    }

    /// Makes a lease with a key, or ends one. False if that was not acknowledged.
    async fn lease(&mut self, store: &FileStore, dice: &Dice) -> bool {
        let living = |(lease, state): (&LeaseId, &Lease)| (*state != Lease::Ended).then_some(*lease);
        let living: Vec<LeaseId> = self.leases.iter().filter_map(living).collect();
        if !living.is_empty() && dice.chance(0.5) {
            let lease = dice.one(&living);
            let ended = store.revoke(lease).await.is_ok();
            self.leases
                .insert(lease, if ended { Lease::Ended } else { Lease::Doubtful });
            return ended;
        }
        let Ok(granted) = store.grant(TTL).await else {
            return false;
        };
        self.leases.insert(granted.id, Lease::Granted);
        let write = Write {
            guards: vec![Guard::Absent(leased(granted.id))],
            ops: vec![Op::put_leased(leased(granted.id), "leased", granted.id)],
        };
        let Ok(at) = store.write(write).await else { return false };
        self.newest = self.newest.max(at);
        self.leases.insert(granted.id, Lease::Used);
        true
    }
}

/// Plays with one disk until it has lost its power often enough.
async fn play(seed: u64, sum: &mut Sum) {
    let directory = tempfile::tempdir().unwrap();
    // Only its size is asked for.
    std::fs::write(directory.path().join(FILE), "").unwrap();
    let dice = Dice(SystemEntropy::seeded(seed));
    let (mut disk, mut story, mut is_made) = (VolatileDisk::default(), Story::default(), false);
    for _ in 0..LOSSES {
        // Now and then while it is being opened, and repaired.
        disk.fail_after(dice.chance(0.2).then(|| 1 + dice.below(12)));
        match disk.open(&directory).await {
            Ok(store) => {
                is_made = true;
                disk.fail_after(None);
                story.check(&store, sum).await;
                disk.fail_after(dice.chance(0.9).then(|| 1 + dice.below(60)));
                for _ in 0..1 + dice.below(8) {
                    let done = if dice.chance(0.2) {
                        story.lease(&store, &dice).await
                    } else {
                        story.write(&store, &dice, sum).await
                    };
                    if !done {
                        break;
                    }
                }
                disk = disk.lose_power(&dice);
            }
            Err(_) if disk.platters().is_dead => {
                sum.opening += 1;
                // What is half made has not got its name yet, and is made anew.
                disk = if is_made {
                    disk.lose_power(&dice)
                } else {
                    VolatileDisk::default()
                };
            }
            Err(error) => panic!("{error}"),
        }
        sum.losses += 1;
    }
    let store = disk.open(&directory).await.unwrap();
    story.check(&store, sum).await;
    assert!(story.write(&store, &dice, sum).await, "the store does not go on");
}

#[test]
fn whatever_a_power_loss_takes_what_was_acknowledged_is_there_and_nothing_that_was_not_written() {
    let disks = std::env::var(MORE).map_or(DISKS, |more| more.parse().unwrap());
    let mut sum = Sum::default();
    for seed in 1..=disks {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(play(seed, &mut sum))));
        assert!(played.is_ok(), "the disk of seed {seed}");
    }
    println!("{sum:?}");
    // It was worth it.
    assert!(sum.losses >= 1_000 && sum.written > sum.losses, "{sum:?}");
    assert!(
        sum.doubtful > 100 && (1..sum.doubtful).contains(&sum.there) && sum.opening > 20,
        "{sum:?}"
    );
}
