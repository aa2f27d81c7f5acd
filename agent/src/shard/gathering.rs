//! Events of one webhook that wait to be made up into batches: in the store until they are due, then in memory for a moment. Pure.

use std::collections::{BTreeSet, VecDeque};

use postrider_common::model::batching::Batching;
use postrider_common::model::webhook::{PayloadFormat, Webhook};
use postrider_common::time::Timestamp;

use super::delivery::{Delivery, SourceId, size};
use super::entry::Entry;

/// Sources that the members of one batch come from at most: each may have to be deleted in the transaction that makes the batch.
pub const BATCH_SOURCES: usize = 64;

/// What waits to be made up into batches.
#[derive(Debug, Default)]
pub struct Gathering {
    /// In the store.
    index: BTreeSet<Entry>,
    /// Deliveries and bytes in the store.
    count: usize,
    bytes: usize,
    /// Read, to be made up into batches now.
    loaded: VecDeque<Delivery>,
    /// Deliveries to be read whether they are due or not: there are enough for a batch, or they are to be sent at other times now.
    early: usize,
    /// Deliveries that go before they are due: there are enough for a batch.
    hurried: usize,
}

impl Gathering {
    /// Some are in the store. Without a schedule, enough of them make a batch before they are due.
    pub fn park(&mut self, entry: Entry, bytes: u32, batching: Option<&Batching>) {
        if self.index.insert(entry) {
            self.count += entry.count as usize;
            self.bytes += bytes as usize;
        }
        let Some(batching) = batching.filter(|batching| batching.schedule.is_none()) else {
            return;
        };
        let most = batching.batch_events().max(1);
        let full = if self.bytes >= batching.batch_bytes() {
            self.count
        } else {
            self.count / most * most
        };
        self.hurried = self.hurried.max(full);
        self.early = self.early.max(full);
    }

    /// They are to be sent at other times from now on: all have to be looked at again.
    pub const fn reschedule(&mut self) {
        self.early = self.count;
    }

    /// The next of the store to be read now, if any.
    pub fn next(&self, now: Timestamp) -> Option<Entry> {
        self.index
            .first()
            .copied()
            .filter(|first| first.due <= now || self.early > 0)
    }

    /// Takes what [`Gathering::next`] gave.
    pub fn take(&mut self, entry: Entry, bytes: u32) {
        if self.index.remove(&entry) {
            self.count -= entry.count as usize;
            self.bytes = self.bytes.saturating_sub(bytes as usize);
            self.early = self.early.saturating_sub(entry.count as usize);
        }
    }

    /// One was read, and is due at `due`. Given back if it is to wait on.
    pub fn load(&mut self, delivery: Delivery, due: Timestamp, now: Timestamp) -> Option<Delivery> {
        if due > now {
            if self.hurried == 0 {
                return Some(delivery);
            }
            self.hurried -= 1;
        }
        self.loaded.push_back(delivery);
        None
    }

    /// The next batch: the oldest, as many as go in one. With `more` to come, only a full one.
    pub fn next_batch(&mut self, webhook: &Webhook, more: bool) -> Option<Vec<Delivery>> {
        let most = match webhook.payload_format {
            PayloadFormat::Envelope => webhook.batching.batch_events(),
            PayloadFormat::CloudEventsStructured | PayloadFormat::CloudEventsBinary | PayloadFormat::Raw => 1,
        };
        let count = fitting(self.loaded.iter(), most, webhook.batching.batch_bytes());
        let full = count < self.loaded.len() || count >= most;
        (count > 0 && (full || !more)).then(|| self.loaded.drain(..count).collect())
    }

    /// When the first of those in the store is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.index.first().map(|entry| entry.due)
    }

    /// Takes everything that was read.
    pub fn drain_loaded(&mut self) -> impl Iterator<Item = Delivery> {
        self.hurried = 0;
        self.loaded.drain(..)
    }

    /// Takes the index of what is in the store.
    pub fn drain_index(&mut self) -> BTreeSet<Entry> {
        (self.count, self.bytes, self.early) = (0, 0, 0);
        std::mem::take(&mut self.index)
    }

    /// How many were read.
    pub fn loaded_len(&self) -> usize {
        self.loaded.len()
    }

    /// Segments in the store.
    pub fn parked_len(&self) -> usize {
        self.index.len()
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty() && self.loaded.is_empty()
    }
}

/// How many of `deliveries`, from the first, go in one request of at most `events` events and `bytes` bytes: one at least, however large.
pub fn fitting<'a>(deliveries: impl Iterator<Item = &'a Delivery>, events: usize, bytes: usize) -> usize {
    let mut sources: BTreeSet<SourceId> = BTreeSet::new();
    let (mut count, mut sum) = (0, 0);
    for delivery in deliveries.take(events.max(1)) {
        sum += size(&delivery.event);
        sources.insert(delivery.source);
        if count > 0 && (sum > bytes || sources.len() > BATCH_SOURCES) {
            break;
        }
        count += 1;
    }
    count
}
