//! Deliveries in memory, where they come from, and what is recorded about them. Pure.

use std::sync::Arc;

use bytes::Bytes;
use postrider_common::id::{AccountId, Uid, WebhookId};
use postrider_common::key::{self, Key, Parked};
use postrider_common::model::history::{self, Carried, Chapter, Entry, Fate};
use postrider_common::model::order::{Line, Position};
use postrider_common::model::segment::{self, DeliveryState, Event, Segment};
use postrider_common::model::usage::Dropped;
use postrider_common::model::webhook::Webhook;
use postrider_common::shard::ShardId;
use postrider_common::store::Revision;
use postrider_common::time::Timestamp;

use crate::limit::failing::Cause;
use postrider_common::model::bits::Bits;

/// What an event costs in memory besides its body: ids, name, texts, bookkeeping. An estimate, on the high side.
const EVENT_OVERHEAD: usize = 400;

/// Names a source within one worker's tenure; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u64);

/// Where a source stands in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The queue: accepted at this revision.
    Queue(Revision),
    /// Parked.
    Parked,
}

/// Whom deliveries of one target are for, and by which configuration they matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The webhook's account.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    /// Its uid.
    pub uid: Uid,
    /// The oldest configuration that may be used.
    pub revision: Revision,
}

/// One delivery that is being worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The source it was read from.
    pub source: SourceId,
    /// Its number there.
    pub index: u32,
    /// For whom.
    pub origin: Arc<Origin>,
    /// What. Its `event_info` is set.
    pub event: Arc<Event>,
    /// How far it got.
    pub state: DeliveryState,
    /// Its share of the memory that its event takes.
    pub bytes: usize,
    /// The batch that it belongs to. All deliveries of a batch are of one source, and go in one request.
    pub batch: Option<Arc<str>>,
}

/// What is known about a webhook.
#[derive(Debug, Clone)]
pub enum Known {
    /// It exists; its configuration as of this revision.
    Found(Arc<Webhook>, Revision),
    /// It does not exist any more; another of the same name does.
    Replaced,
    /// As of this revision, no webhook of this name exists.
    Absent(Revision),
    /// It exists, but this release cannot read it: its deliveries wait.
    Unreadable,
}

/// The deliveries of one webhook in a source, those that are not over.
#[derive(Debug, Clone)]
pub struct Target {
    /// For whom.
    pub origin: Arc<Origin>,
    /// Its deliveries, in order.
    pub deliveries: Vec<Delivery>,
}

/// A segment that was read to be worked on.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name from now on.
    pub id: SourceId,
    /// Its key.
    pub key: Key,
    /// Where it stands.
    pub place: Place,
    /// What is over already.
    pub done: Bits,
    /// What is not.
    pub targets: Vec<Target>,
    /// Bytes of memory that its deliveries take.
    pub bytes: usize,
}

impl Delivery {
    /// The delivery, as the history tells of it.
    pub fn carried(&self, fate: Fate) -> Carried {
        Carried {
            event: self.event.id.clone(),
            name: self.event.name.clone(),
            timestamp: self.event.timestamp,
            accept_time: self.event.accept_time,
            fate,
        }
    }

    /// The beginning of what the history tells of it.
    pub fn entry(&self, time: Timestamp, attempt: Option<history::Attempt>) -> Entry {
        let origin = &self.origin;
        let of = (origin.account.clone(), origin.webhook.clone(), origin.uid.clone());
        Entry::new(of, time, attempt)
    }
}

impl Source {
    /// Takes a segment apart. `done` are its bits as stored.
    ///
    /// Bodies are copied out of the segment: a slice would keep the whole unpacked segment in memory for as long as its slowest delivery lasts, and
    /// a copy of a kilobyte costs less than a thousandth of an attempt.
    ///
    /// `epoch` is that of the tenure: what an earlier owner may have sent alone stays alone.
    pub fn new(
        shard: ShardId,
        epoch: Revision,
        id: SourceId,
        key: Key,
        place: Place,
        segment: Segment,
        done: &[u8],
    ) -> Self {
        let total = u32::try_from(segment.delivery_count()).unwrap_or(u32::MAX);
        let done = Bits::read(done, total);
        let mut sharers = vec![0_usize; segment.events.len()];
        for delivery in segment.targets.iter().flat_map(|target| &target.deliveries) {
            if let Some(count) = sharers.get_mut(delivery.event as usize) {
                *count += 1;
            }
        }
        let batch = segment.batch;
        let ours = match place {
            Place::Queue(revision) => revision > epoch,
            Place::Parked => key::parse_parked(&key).is_some_and(|parked| i64::try_from(parked.epoch) == Ok(epoch.0)),
        };
        let mut events = segment.events;
        for (index, event) in events.iter_mut().enumerate() {
            let event = Arc::make_mut(event);
            event.data = Bytes::copy_from_slice(&event.data);
            if event.event_info.is_none() {
                let sequence = match place {
                    Place::Queue(revision) => revision,
                    Place::Parked => Revision::default(),
                };
                event.event_info = Some(segment::event_info(event.timestamp, shard, sequence, index));
            }
        }
        let mut source = Self {
            id,
            key,
            place,
            done,
            targets: Vec::with_capacity(segment.targets.len()),
            bytes: 0,
        };
        let mut index = 0;
        for target in segment.targets {
            let origin = Arc::new(Origin {
                account: target.account,
                webhook: target.webhook,
                uid: target.webhook_uid,
                revision: target.webhook_revision,
            });
            let mut deliveries = Vec::with_capacity(target.deliveries.len());
            for delivery in target.deliveries {
                let number = index;
                index += 1;
                let event = events.get(delivery.event as usize);
                let Some(event) = event.filter(|_| !source.done.get(number)) else {
                    continue;
                };
                let sharers = sharers.get(delivery.event as usize).copied().unwrap_or(1).max(1);
                let bytes = size(event).div_ceil(sharers);
                source.bytes += bytes;
                deliveries.push(Delivery {
                    source: id,
                    index: number,
                    origin: origin.clone(),
                    event: event.clone(),
                    state: segment::DeliveryState {
                        alone: delivery.state.alone || !ours,
                        position: match place {
                            Place::Queue(revision) => Position {
                                revision,
                                index: number,
                            },
                            Place::Parked => delivery.state.position,
                        },
                        ..delivery.state
                    },
                    bytes,
                    batch: batch.clone(),
                });
            }
            if !deliveries.is_empty() {
                source.targets.push(Target { origin, deliveries });
            }
        }
        source
    }
}

/// Bytes that an event takes, in memory or packed.
pub fn size(event: &Event) -> usize {
    event.data.len() + EVENT_OVERHEAD
}

/// What the worker tells the ledger. In any order between sources, a source's [`Record::Open`] first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A source is being worked on.
    Open {
        /// The source.
        source: SourceId,
        /// Its key.
        key: Key,
        /// What is over already.
        done: Bits,
    },
    /// A delivery was delivered or dropped.
    Over {
        /// The source.
        source: SourceId,
        /// The delivery's number there.
        index: u32,
        /// Whose it was.
        origin: Arc<Origin>,
        /// How it ended.
        end: End,
    },
    /// A delivery goes into another stored segment.
    Moved(Box<Moved>),
    /// Deliveries become a batch, or one that was tried waits for its next attempt: together, in one transaction.
    Batch(Box<Batch>),
    /// Every delivery of a source was delivered: together, in one transaction.
    Finished {
        /// The source.
        source: SourceId,
        /// Whose they were.
        origin: Arc<Origin>,
    },
    /// A segment of dead letters is replaced by what becomes of them.
    Rewrite(Box<Rewrite>),
    /// The deliveries of a parked segment that was not opened are dropped: their webhook does not exist any more.
    Drop(Box<Parked>),
    /// A webhook does not exist any more, whether something waited for it or not.
    Gone(AccountId, WebhookId),
    /// A key that is of no use any more: the note of a webhook that does not fail any more.
    Discard(Key),
    /// A note about a webhook, by its key.
    Note(Key, Bytes),
}

/// How a delivery ended that goes nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its receiver took it.
    Delivered,
    /// It is kept nowhere.
    Dropped(Dropped),
}

/// A delivery that goes into another stored segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Where to.
    pub to: Destination,
    /// How many orders its webhook had had by then: what moves under one order is not stored together with what moves under another.
    pub orders: u32,
    /// The delivery, with the state in which it is to be stored.
    pub delivery: Delivery,
}

/// Deliveries that go in one request, always the same and under the same id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its id.
    pub id: Arc<str>,
    /// The deliveries, with the state in which they are to be stored; never empty, all due at the same time.
    pub deliveries: Vec<Delivery>,
    /// Where to: [`Destination::Parked`] or [`Destination::Ordered`].
    pub to: Destination,
    /// Deliveries of the batch that this one is the rest of, which the receiver has taken.
    pub over: Vec<(SourceId, u32)>,
}

/// What becomes of a segment of dead letters: together, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// The segment, which is deleted.
    pub segment: Parked,
    /// Those that stay dead letters.
    pub kept: Vec<Delivery>,
    /// Those that wait again: each group goes into a parked segment of its own.
    pub revived: Vec<Vec<Delivery>>,
    /// Those that are dropped: whose, why, and how many.
    pub dropped: Vec<(Arc<Origin>, Dropped, u64)>,
    /// The key of the command that asks for it, and what is noted there.
    pub note: Option<(Key, Bytes)>,
}

impl Rewrite {
    /// All that are stored again.
    pub fn deliveries(&self) -> impl Iterator<Item = &Delivery> {
        self.kept.iter().chain(self.revived.iter().flatten())
    }
}

/// Where a delivery moves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// It waits for its due time.
    Parked,
    /// It waits to be made up into a batch with others.
    Gathering,
    /// It waits for its turn, in this line.
    Ordered(Line),
    /// It ended without having been delivered.
    Dead,
    /// The same, a while ago: it stays among the dead letters.
    Rest,
}

/// A request to read parked segments of one webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// Which, oldest first; never empty, all of one webhook.
    pub segments: Vec<Parked>,
}

/// A webhook to be switched off.
#[derive(Debug, Clone, PartialEq)]
pub struct Suspend {
    /// As it was when the attempts were made.
    pub webhook: Arc<Webhook>,
    /// Why.
    pub cause: Cause,
}

/// What the state wants done.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be recorded, in this order.
    pub records: Vec<Record>,
    /// To be read.
    pub loads: Vec<Load>,
    /// Webhooks to be switched off.
    pub suspensions: Vec<Suspend>,
    /// What is told of it.
    pub history: Chapter,
    /// Successes are not told of, only counted.
    pub leaves_out_successes: bool,
    /// Bytes of memory that are free again now; those of moved deliveries are when they are recorded.
    pub freed: usize,
}
