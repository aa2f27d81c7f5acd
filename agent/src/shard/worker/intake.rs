//! How segments come into the worker: from the watch, or read from the store within the budget.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use postrider_common::key::{self, Key};
use postrider_common::store::Revision;
use postrider_common::time::Timestamp;

use super::{Of, Read, Worker};
use crate::shard::delivery::{Known, Place, Source, SourceId};
use crate::shard::feed::{self, Got, Wanted};
use crate::shard::lane::LANE_LIMIT;
use crate::shard::queue::Waiting;

/// Queue segments taken in before attempts are started again: the first ones should not wait for the last.
const SEGMENTS_A_TURN: usize = 8;

/// Queue segments read in one request, and requests under way at once: enough to hide the store's latency behind a backlog, few enough to stay within
/// the budget by little.
const SEGMENTS_A_READ: usize = 4;

/// See [`SEGMENTS_A_READ`].
const READS_AT_ONCE: usize = 2;

/// Reads of the queue under way, or waiting for one that was asked for before them: what a turn and the reads at once bring.
const ARRIVALS: usize = SEGMENTS_A_TURN + READS_AT_ONCE;

/// Reads of parked segments under way at once in one worker.
const LOADS_AT_ONCE: usize = 4;

/// Bytes that a queue segment is expected to take until it was read: the usual 70 KB, unpacked.
const QUEUE_ESTIMATE: usize = 256 << 10;

/// Bytes that a parked segment is expected to take until it was read: see `pack::PACK_BYTES`.
const PARKED_ESTIMATE: usize = 64 << 10;

/// Sources that a shard should have open: each that is not over costs some seventy bytes in every progress write. Lanes get less room the more there are.
const OPEN_SOURCES: usize = 2048;

impl Worker {
    /// Takes in what the queue holds, and asks for what has to be read.
    pub(super) fn read_on(&mut self, now: Timestamp) {
        self.load_parked();
        for _ in 0..SEGMENTS_A_TURN {
            if !self.may_load() || self.arrivals.len() >= ARRIVALS {
                return;
            }
            let Some(waiting) = self.feed.pop_kept() else {
                self.read_queue();
                return self.catch_up(now);
            };
            let (wanted, value) = self.wanted_from_queue(waiting);
            match feed::open(self.tenure.shard, self.tenure.epoch, &wanted, value.unwrap_or_default()) {
                None => self.unreadable(),
                Some(source) => self.take_in(source, now),
            }
        }
        // There may be more: after this turn.
        self.wake.notify_one();
    }

    /// Notes when all of the queue was read for the first time: what is parked was accepted before whatever comes from then on.
    fn catch_up(&mut self, now: Timestamp) {
        if !self.caught_up && self.arrivals.len() == 0 && self.feed.is_read() {
            self.caught_up = true;
            self.state.queue_read(Revision(i64::MAX), now, &mut self.effects);
        }
    }

    pub(super) fn may_load(&self) -> bool {
        self.pen.may_start() && self.purse.has_room(&self.wake)
    }

    pub(super) fn wanted_from_queue(&mut self, waiting: Waiting) -> (Wanted, Option<Bytes>) {
        let wanted = self.wanted(waiting.key, Place::Queue(waiting.revision));
        (wanted, waiting.value)
    }

    pub(super) fn wanted(&mut self, key: Key, place: Place) -> Wanted {
        self.next_source += 1;
        Wanted {
            id: SourceId(self.next_source),
            done: self.progress.remove(&key).unwrap_or_default(),
            key,
            place,
        }
    }

    /// Takes in a segment whose value was at hand, when its turn has come.
    pub(super) fn take_in(&mut self, source: Source, now: Timestamp) {
        let known = feed::peek(&self.shards.deps.catalog, &source);
        let known = match known {
            Some(known) if self.arrivals.len() == 0 => return self.loaded(source, &known, now),
            other => other,
        };
        let reserved = source.bytes;
        self.purse.take(reserved);
        let number = self.arrivals.expect();
        let read = move |source, known| Read {
            of: Of::Queue(number),
            got: vec![Got::Source(source, known)],
            reserved,
        };
        if let Some(known) = known {
            return self.arrivals.came(number, read(source, known));
        }
        let catalog = self.shards.deps.catalog.clone();
        self.queue_reads += 1;
        self.reads.spawn(async move {
            let known = feed::resolve(&catalog, &source).await;
            read(source, known)
        });
    }

    pub(super) fn loaded(&mut self, source: Source, known: &[Known], now: Timestamp) {
        self.purse.take(source.bytes);
        self.state.allow(self.allowance());
        self.state.loaded(source, known, now, &mut self.effects);
    }

    /// How many ready deliveries a lane may have at the moment, so that slow receivers cannot take all the memory.
    pub(super) fn allowance(&self) -> usize {
        let (used, limit) = self.purse.level();
        let eighths = |part: usize, whole: usize| part.saturating_mul(8) / whole.max(1);
        match eighths(used, limit).max(eighths(self.state.open_sources(), OPEN_SOURCES)) {
            0..=3 => LANE_LIMIT,
            4 | 5 => LANE_LIMIT / 8,
            6 => LANE_LIMIT / 64,
            _ => 1,
        }
    }

    pub(super) fn read_queue(&mut self) {
        while self.queue_reads < READS_AT_ONCE && self.may_load() {
            let waiting = self.feed.pop_unread(SEGMENTS_A_READ);
            if waiting.is_empty() {
                return;
            }
            let wanted = waiting
                .into_iter()
                .map(|waiting| self.wanted_from_queue(waiting).0)
                .collect();
            self.queue_reads += 1;
            let number = self.arrivals.expect();
            self.read(Of::Queue(number), wanted, QUEUE_ESTIMATE);
        }
    }

    pub(super) fn load_parked(&mut self) {
        self.loads.extend(self.effects.loads.drain(..));
        while self.reads.len() < READS_AT_ONCE + LOADS_AT_ONCE
            && !self.loads.is_empty()
            && self.pen.may_start()
            && self.purse.has_room_for_parked(&self.wake)
        {
            let Some(load) = self.loads.pop_front() else { return };
            let segments = load.segments.iter();
            let wanted = segments
                .map(|parked| self.wanted(key::parked_segment(parked), Place::Parked))
                .collect();
            self.read(Of::Parked(load), wanted, PARKED_ESTIMATE);
        }
    }

    pub(super) fn read(&mut self, of: Of, wanted: Vec<Wanted>, estimate: usize) {
        let reserved = wanted.len() * estimate;
        self.purse.take(reserved);
        let deps = &self.shards.deps;
        let read = feed::read(
            deps.store.clone(),
            deps.catalog.clone(),
            (self.tenure.shard, self.tenure.epoch),
            wanted,
        );
        self.reads.spawn(async move {
            Read {
                of,
                got: read.await,
                reserved,
            }
        });
    }

    pub(super) fn read_ended(&mut self, read: Result<Read, tokio::task::JoinError>) {
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                // What it had taken of the budget is not known any more: begin anew. The segments stay in the store.
                tracing::error!(%error, shard = %self.tenure.shard, "reading segments failed");
                self.pen.fenced().cancel();
                return;
            }
        };
        let now = self.now();
        match read.of {
            Of::Parked(_) => self.read_over(read, now),
            Of::Queue(number) => {
                self.queue_reads -= 1;
                self.arrivals.came(number, read);
                while let Some(next) = self.arrivals.next() {
                    self.read_over(next, now);
                }
            }
        }
    }

    fn read_over(&mut self, read: Read, now: Timestamp) {
        self.purse.put(read.reserved);
        for got in read.got {
            match got {
                Got::Source(source, known) => self.loaded(source, &known, now),
                Got::Missing(key) => tracing::warn!(%key, "a segment is not in the store any more"),
                Got::Unreadable(_) => self.unreadable(),
            }
        }
        if let Of::Parked(load) = read.of {
            self.state.load_over(&load, now, &mut self.effects);
        }
    }

    pub(super) fn unreadable(&self) {
        self.shards.counters.unreadable.fetch_add(1, Ordering::Relaxed);
    }
}
