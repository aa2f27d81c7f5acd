//! What all hosts of one simulation share outside of the simulated network: what was seen, and whether the trouble is over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::net::elapsed;

/// One request as a receiver saw it, whole.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// When.
    pub(crate) at: Duration,
    /// Who sent it.
    pub(crate) from: Option<IpAddr>,
    /// The number of the webhook.
    pub(crate) hook: usize,
    /// The number of its listener URL (see [`Life`]).
    pub(crate) place: usize,
    /// The header `webhook-id`.
    pub(crate) id: String,
    /// The header `webhook-sequence`.
    pub(crate) sequence: Option<u64>,
    /// The events in it, in order.
    pub(crate) events: Vec<String>,
    /// The body.
    pub(crate) body: Bytes,
    /// What is wrong with its proof.
    pub(crate) proof: Result<(), String>,
    /// Which of its events the receiver took.
    pub(crate) taken: BTreeSet<String>,
}

/// An event that was published.
#[derive(Debug, Clone, Default)]
pub(crate) struct Published {
    /// Its id.
    pub(crate) id: String,
    /// The publisher that published it.
    pub(crate) publisher: usize,
    /// Its place in its request.
    pub(crate) number: usize,
    /// Its ordering key.
    pub(crate) key: String,
    /// It must not be sent before.
    pub(crate) not_before: Option<Duration>,
    /// It must not be sent after.
    pub(crate) expires: Option<Duration>,
    /// When it was asked for first.
    pub(crate) asked: Duration,
    /// When its publisher was told that it is accepted, and for how many webhooks; none if it was not told.
    pub(crate) told: Option<(Duration, usize)>,
}

/// One life of a webhook, from its creation to its deletion. Each has two listener URLs: the first, and one that it may be moved to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Life {
    /// When its creation was asked for.
    pub(crate) asked: Duration,
    /// Since when everybody knows it.
    pub(crate) known: Duration,
    /// When its deletion was asked for.
    pub(crate) end_asked: Option<Duration>,
    /// Since when nobody takes it for alive any more.
    pub(crate) ended: Option<Duration>,
}

/// The counts of one webhook at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Accepted for it.
    pub(crate) accepted: i64,
    /// Delivered.
    pub(crate) delivered: i64,
    /// Still waiting.
    pub(crate) waiting: i64,
    /// Dead letters.
    pub(crate) dead: i64,
    /// Dropped.
    pub(crate) dropped: i64,
}

impl Counts {
    /// Both together.
    pub(crate) const fn and(&self, other: &Self) -> Self {
        Self {
            accepted: self.accepted + other.accepted,
            delivered: self.delivered + other.delivered,
            waiting: self.waiting + other.waiting,
            dead: self.dead + other.dead,
            dropped: self.dropped + other.dropped,
        }
    }
}

/// A span of time in which something was so, with slack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// The webhook.
    pub(crate) hook: usize,
    /// From when.
    pub(crate) from: Duration,
    /// Until when; none if it is so for good.
    pub(crate) until: Option<Duration>,
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Requests, in order of arrival.
    pub(crate) arrivals: Vec<Arrival>,
    /// Events, in the order in which their acceptance was told.
    pub(crate) published: Vec<Published>,
    /// Events whose publisher was not answered.
    pub(crate) doubtful: Vec<Published>,
    /// The lives of each webhook.
    pub(crate) lives: Vec<Vec<Life>>,
    /// The owner key of each webhook's shard.
    pub(crate) shards: Vec<String>,
    /// When a shard was taken, and by whom.
    pub(crate) takes: Vec<(Duration, String, IpAddr)>,
    /// Spans in which a webhook was certainly retired.
    pub(crate) retired: Vec<Span>,
    /// Since when a webhook's listener URL certainly was another, each time.
    pub(crate) moved: Vec<Span>,
    /// Events of a webhook that were asked to be cancelled.
    pub(crate) cancelled: BTreeSet<(usize, String)>,
    /// Whether dead letters were redriven.
    pub(crate) redriven: BTreeSet<usize>,
    /// At the end: the counts of each webhook.
    pub(crate) counts: Vec<Counts>,
    /// At the end: the counts of all webhooks that were deleted.
    pub(crate) deleted: Counts,
    /// At the end: the dead letters of each webhook.
    pub(crate) dead: Vec<BTreeSet<String>>,
    /// The signing secrets of each webhook in each of its lives, newest first.
    pub(crate) secrets: BTreeMap<(usize, usize), Vec<String>>,
    /// Writes that applied although they should not have.
    pub(crate) wrong_writes: Vec<String>,
    /// What kept the run from its end.
    pub(crate) failures: Vec<String>,
}

/// What all hosts share.
pub(crate) struct World {
    seen: Mutex<Seen>,
    log: Mutex<Log>,
    over: AtomicBool,
    settled: AtomicBool,
    starts: AtomicU64,
}

struct Log {
    hash: Sha256,
    lines: Option<Vec<String>>,
}

impl World {
    /// A new one, which keeps the lines of its log only if it is told to.
    pub(crate) fn new(keep_log: bool) -> Self {
        Self {
            seen: Mutex::default(),
            log: Mutex::new(Log {
                hash: Sha256::new(),
                lines: keep_log.then(Vec::new),
            }),
            over: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            starts: AtomicU64::new(0),
        }
    }

    /// What was seen.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes something: it counts in the hash of the log.
    pub(crate) fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9.3} {what}", elapsed().as_secs_f64());
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.hash.update(line.as_bytes());
        log.hash.update(b"\n");
        if let Some(lines) = &mut log.lines {
            lines.push(line);
        }
    }

    /// Notes something that the simulation itself did, at a time of its own.
    pub(crate) fn note_at(&self, at: Duration, what: fmt::Arguments<'_>) {
        let line = format!("{:>9.3} {what}", at.as_secs_f64());
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.hash.update(line.as_bytes());
        log.hash.update(b"\n");
        if let Some(lines) = &mut log.lines {
            lines.push(line);
        }
    }

    /// The hash of all notes, and their lines.
    pub(crate) fn log(&self) -> (String, Vec<String>) {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = log.hash.clone().finalize();
        let hex = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        (hex, log.lines.clone().unwrap_or_default())
    }

    /// Whether there is no trouble any more.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// There is no trouble any more.
    pub(crate) fn end_trouble(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Whether the cluster has begun to work, so that trouble may begin.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// The cluster works.
    pub(crate) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    /// The number of the next start of a program.
    pub(crate) fn next_start(&self) -> u64 {
        self.starts.fetch_add(1, Ordering::Relaxed)
    }
}
