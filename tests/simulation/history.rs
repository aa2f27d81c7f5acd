//! Random histories of what Postrider asks of etcd, in the forms in which it asks. Pure.

use crate::plan::Dice;

/// The keys that histories are about.
pub(crate) const KEYS: [&str; 8] = ["a/0", "a/1", "a/10", "a/2", "a0", "b/0", "b/1", "c"];

/// Prefixes that are listed and watched.
pub(crate) const PREFIXES: [&str; 4] = ["", "a/", "a/1", "b/"];

/// Steps of one history: enough for some leases, watches and compactions in each.
const STEPS: usize = 80;

/// How many revisions ago; less than none is to come.
pub(crate) type Ago = i64;

/// One step. Keys and prefixes are given by their numbers, leases and watches too, wrapped around.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A transaction that changes something.
    Write {
        /// Keys, and what they must be.
        guards: Vec<(usize, Must)>,
        /// Keys, and what becomes of them.
        ops: Vec<(usize, Become)>,
    },
    /// A transaction that reads keys.
    Read(Vec<usize>),
    /// One key, now or as it was.
    Get(usize, Option<Ago>),
    /// A page of a listing.
    List {
        /// Of which prefix.
        prefix: usize,
        /// After which key.
        after: Option<usize>,
        /// At most so many.
        limit: i64,
        /// As it was.
        ago: Option<Ago>,
        /// Without values.
        keys_only: bool,
    },
    /// A new lease of so many seconds.
    Grant(i64),
    /// The end of a lease.
    Revoke(usize),
    /// A lease is kept alive.
    KeepAlive(usize),
    /// A watch of a prefix begins.
    Watch(usize, Ago),
    /// What a watch has shown so far.
    Look(usize),
    /// A watch is asked for a sign of life.
    Progress(usize),
    /// What is older is forgotten.
    Compact(Ago),
}

/// What a guard asks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Must {
    /// Be absent.
    Absent,
    /// Have come into being then.
    Created(Ago),
    /// Have been written last then.
    Modified(Ago),
    /// Be the key that it is.
    SameKey,
    /// Be as it is.
    Unchanged,
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Become {
    /// It is put, with a value of so many bytes.
    Put(usize),
    /// The same, on a lease.
    Leased(usize, usize),
    /// It is deleted.
    Gone,
}

/// A random history.
pub(crate) fn random(dice: &Dice) -> Vec<Step> {
    (0..STEPS).map(|_| step(dice)).collect()
}

fn step(dice: &Dice) -> Step {
    let key = || dice.below(KEYS.len());
    let prefix = || dice.below(PREFIXES.len());
    match dice.below(100) {
        0..50 => Step::Write {
            guards: distinct(dice, 3).into_iter().map(|key| (key, must(dice))).collect(),
            ops: distinct(dice, 4).into_iter().map(|key| (key, becomes(dice))).collect(),
        },
        50..56 => Step::Read((0..=dice.below(4)).map(|_| key()).collect()),
        56..64 => Step::Get(key(), dice.chance(0.5).then(|| ago(dice))),
        64..78 => Step::List {
            prefix: prefix(),
            after: dice.chance(0.4).then(key),
            limit: dice.one(&[1, 1, 2, 3, 500]),
            ago: dice.chance(0.5).then(|| ago(dice)),
            keys_only: dice.chance(0.3),
        },
        78..82 => Step::Grant(dice.one(&[300, 600, 3_600])),
        82..84 => Step::Revoke(dice.below(8)),
        84..87 => Step::KeepAlive(dice.below(8)),
        87..90 => Step::Watch(prefix(), dice.one(&[-1, 0, 1, 3, 10, 30])),
        90..96 => Step::Look(dice.below(8)),
        96..98 => Step::Progress(dice.below(8)),
        _ => Step::Compact(ago(dice)),
    }
}

fn ago(dice: &Dice) -> Ago {
    dice.one(&[-1, 0, 0, 1, 1, 2, 3, 5, 10, 30])
}

fn must(dice: &Dice) -> Must {
    match dice.below(10) {
        0 => Must::Absent,
        1 => Must::Created(ago(dice)),
        2 => Must::Modified(ago(dice)),
        3..6 => Must::SameKey,
        _ => Must::Unchanged,
    }
}

fn becomes(dice: &Dice) -> Become {
    let bytes = dice.one(&[0, 1, 20, 3_000]);
    match dice.below(8) {
        0..4 => Become::Put(bytes),
        4 | 5 => Become::Leased(bytes, dice.below(8)),
        _ => Become::Gone,
    }
}

/// Less than `most` keys, none of them twice: etcd refuses that, and the store above never asks for it.
fn distinct(dice: &Dice, most: usize) -> Vec<usize> {
    let mut keys: Vec<usize> = Vec::new();
    for _ in 0..dice.below(most) {
        let key = dice.below(KEYS.len());
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}
