//! Segments: packed blocks of events and deliveries, the values of the queue, of parked deliveries and of dead letters. Pure.

use std::sync::Arc;

use bytes::Bytes;

use crate::id::{AccountId, EventId, EventName, Uid, WebhookId};
use crate::model::event_type::Category;
use crate::model::order::Position;
use crate::planted::{self, Bug};
use crate::store::Revision;
use crate::time::Timestamp;

/// One event, as it was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Who published it.
    pub account: AccountId,
    /// Its id.
    pub id: EventId,
    /// What happened.
    pub name: EventName,
    /// When it happened.
    pub timestamp: Timestamp,
    /// Events of one key belong together.
    pub ordering_key: Option<Arc<str>>,
    /// When it stops being worth sending.
    pub expire_time: Option<Timestamp>,
    /// When it is to be sent at the earliest.
    pub not_before_time: Option<Timestamp>,
    /// Opaque text for receivers; `None` means it is still to be made (see [`event_info`]).
    pub event_info: Option<Arc<str>>,
    /// The body: JSON text.
    pub data: Bytes,
    /// When it was accepted.
    pub accept_time: Timestamp,
    /// W3C trace context of the publisher.
    pub traceparent: Option<Arc<str>>,
    /// The category of its type when it was accepted; the default for types that the catalogue did not hold.
    pub category: Category,
}

impl Event {
    /// From when on it may be sent. When it was accepted is no matter: the clock of the control plane that noted it may be ahead of the agent's.
    pub fn earliest(&self) -> Timestamp {
        if planted::is(Bug::SentTooEarly) {
            return Timestamp::default();
        }
        self.not_before_time.unwrap_or_default()
    }

    /// From when on it can be sent: what its age counts from.
    pub fn ready_time(&self) -> Timestamp {
        if planted::is(Bug::SentTooEarly) {
            return self.accept_time;
        }
        self.not_before_time
            .map_or(self.accept_time, |moment| moment.max(self.accept_time))
    }
}

/// A block of events and deliveries of one shard. Deliveries are numbered through: first all of the first target, then the second's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segment {
    /// Every event once.
    pub events: Vec<Arc<Event>>,
    /// Who gets which events.
    pub targets: Vec<Target>,
    /// In parked segments: the id of the batch that all its deliveries make up. They go in one request, always the same.
    pub batch: Option<Arc<str>>,
}

/// The deliveries of one webhook in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The webhook's account.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    /// The webhook's uid: deliveries do not pass to a later webhook of the same name.
    pub webhook_uid: Uid,
    /// Store revision of the configuration by which the events matched: the agent uses none older.
    pub webhook_revision: Revision,
    /// Its deliveries, in order.
    pub deliveries: Vec<Delivery>,
}

/// One delivery within a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Index into the segment's events. Always valid in a segment that was unpacked.
    pub event: u32,
    /// How far it got.
    pub state: DeliveryState,
}

/// How far a delivery got.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeliveryState {
    /// Attempts made.
    pub attempts: u32,
    /// Not to be tried before; in dead letters: when it died.
    pub due: Timestamp,
    /// Why the last attempt failed, or why the delivery is dead: a stable upper-case reason; empty if there was none.
    pub reason: String,
    /// HTTP status of the last attempt, if there was one.
    pub status: Option<u16>,
    /// It may have been sent in a request of its own, though no attempt is recorded: it never shares one.
    pub alone: bool,
    /// Its number among the deliveries of its webhook, from 1; 0 where they are not numbered.
    pub sequence: u64,
    /// Where it stands in the order of acceptance. Set when it is read from its queue segment.
    pub position: Position,
    /// The stage of the webhook ([`super::order::stage`]) in which it was used up: it waits, and is tried no more by itself, until the webhook has another
    /// one. 0 if it is not used up.
    pub blocked: u64,
    /// When it was given its retry policy anew, after it had been used up: its age counts from then.
    pub renewed: Option<Timestamp>,
}

impl Segment {
    /// How many deliveries it holds.
    pub fn delivery_count(&self) -> usize {
        self.targets.iter().map(|target| target.deliveries.len()).sum()
    }
}

/// The `eventInfo` of an event whose publisher gave none: `<epoch ms>-<shard, 6 digits>-<sequence>-<index>`, where the sequence is the revision at
/// which the event became durable, so that it is ordered per webhook.
pub fn event_info(timestamp: Timestamp, shard: crate::shard::ShardId, sequence: Revision, index: usize) -> Arc<str> {
    format!("{}-{:06}-{sequence}-{index}", timestamp.as_millis(), shard.0).into()
}
