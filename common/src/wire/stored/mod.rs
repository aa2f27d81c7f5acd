//! Encodes and decodes what the store holds. Pure.
//!
//! Everything read is checked as if a stranger had written it: what does not fit is [`Unreadable`], never a panic.

mod auth;
mod command;
#[cfg(test)]
mod golden_tests;
mod history;
mod progress;
mod testing;
mod usage;
mod webhook;

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use postrider_proto::stored as pb;
use zstd::bulk::{Compressor, Decompressor};

use crate::id::{AccountId, EventId, EventName, Uid, WebhookId};
use crate::model::account::{Account, UnknownEventTypes};
use crate::model::event_type::{Category, EventType};
use crate::model::failing::Failing;
use crate::model::order::Position;
use crate::model::segment::{Delivery, DeliveryState, Event, Segment, Target};
use crate::store::Revision;
use crate::time::Timestamp;

pub use command::{decode_command, encode_command};
pub use history::{pack_history, unpack_history};
pub use progress::{Progress, decode_progress, encode_progress};
pub use testing::{decode_test, decode_transcript, encode_test, encode_transcript};
use usage::usage_entry;
pub use usage::{decode_usage, encode_usage};
pub use webhook::{decode_webhook, encode_webhook, suspend_webhook};

/// The version of every message that this release writes, and the newest that it reads.
const VERSION: u32 = 1;

/// Most bytes that a packed value may unpack to: far above what a writer packs, far below what would hurt.
const MAX_UNPACKED: u32 = 16 << 20;

/// zstd's fastest ordinary level: on webhook bodies the higher ones cost more time than the store saves.
const ZSTD_LEVEL: i32 = 1;

/// Values below this many bytes are stored as they are: compressing them costs more than it saves.
const COMPRESS_FROM: usize = 512;

/// A stored value that this release cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unreadable stored value: {0}")]
pub struct Unreadable(pub String);

fn unreadable(error: impl std::fmt::Display) -> Unreadable {
    Unreadable(error.to_string())
}

fn readable_version(version: u32) -> Result<(), Unreadable> {
    if version == VERSION {
        Ok(())
    } else {
        Err(Unreadable(format!("version {version}, this release reads {VERSION}")))
    }
}

/// Encodes a message that has no model of its own (see the stored protobuf file).
pub fn encode(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}

/// Decodes such a message.
///
/// # Errors
/// [`Unreadable`] if the bytes are not of that message.
pub fn decode<M: prost::Message + Default>(bytes: Bytes) -> Result<M, Unreadable> {
    M::decode(bytes).map_err(unreadable)
}

/// Packs a segment: protobuf, compressed, framed.
pub fn pack(segment: Segment) -> Bytes {
    pack_message(&segment_to_pb(segment))
}

fn pack_message(message: &impl prost::Message) -> Bytes {
    let body = message.encode_to_vec();
    let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let compressed = if body.len() < COMPRESS_FROM {
        None
    } else {
        compress(&body)
    };
    let (codec, body) = match compressed {
        Some(compressed) if compressed.len() < body.len() => (1, compressed),
        _ => (0, body),
    };
    encode(&pb::Packed {
        version: VERSION,
        codec,
        size,
        body: body.into(),
    })
}

/// Unpacks a segment.
///
/// # Errors
/// [`Unreadable`] if the bytes are not a segment of a version that this release reads.
pub fn unpack(bytes: Bytes) -> Result<Segment, Unreadable> {
    segment_from_pb(decode(unpack_message(bytes)?)?)
}

fn unpack_message(bytes: Bytes) -> Result<Bytes, Unreadable> {
    let packed: pb::Packed = decode(bytes)?;
    readable_version(packed.version)?;
    if packed.size > MAX_UNPACKED {
        return Err(Unreadable(format!("a segment of {} bytes", packed.size)));
    }
    match packed.codec {
        0 => Ok(packed.body),
        1 => Ok(decompress(&packed.body, packed.size as usize)?.into()),
        other => Err(Unreadable(format!("codec {other}"))),
    }
}

thread_local! {
    // Making a context takes longer than compressing a small segment with it.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn compress(body: &[u8]) -> Option<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => compressor,
            None => kept.insert(Compressor::new(ZSTD_LEVEL).ok()?),
        };
        compressor.compress(body).ok()
    })
}

fn decompress(body: &[u8], size: usize) -> Result<Vec<u8>, Unreadable> {
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(Decompressor::new().map_err(unreadable)?),
        };
        decompressor.decompress(body, size).map_err(unreadable)
    })
}

fn segment_to_pb(segment: Segment) -> pb::Segment {
    let text = |text: &Option<Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
    let event = |event: &Arc<Event>| pb::Event {
        account: event.account.as_str().to_owned(),
        event_id: event.id.as_str().to_owned(),
        event_name: event.name.as_str().to_owned(),
        timestamp: event.timestamp.as_millis(),
        ordering_key: text(&event.ordering_key),
        expire_time: event.expire_time.map_or(0, Timestamp::as_millis),
        event_info: text(&event.event_info),
        data: event.data.clone(),
        accept_time: event.accept_time.as_millis(),
        traceparent: text(&event.traceparent),
        non_real_time: event.category == Category::NonRealTime,
        not_before_time: event.not_before_time.map_or(0, Timestamp::as_millis),
    };
    let target = |target: Target| {
        let untouched = target
            .deliveries
            .iter()
            .all(|delivery| delivery.state == DeliveryState::default());
        let events = target.deliveries.iter().map(|delivery| delivery.event).collect();
        let state = |delivery: Delivery| pb::DeliveryState {
            order: order_to_pb(&delivery.state),
            attempts: delivery.state.attempts,
            due_time: delivery.state.due.as_millis(),
            reason: delivery.state.reason,
            status_code: delivery.state.status.map_or(0, u32::from),
            alone: delivery.state.alone,
            sequence: delivery.state.sequence,
        };
        pb::Target {
            account: target.account.as_str().to_owned(),
            webhook: target.webhook.as_str().to_owned(),
            webhook_uid: target.webhook_uid.as_str().to_owned(),
            webhook_revision: target.webhook_revision.0,
            events,
            states: if untouched {
                Vec::new()
            } else {
                target.deliveries.into_iter().map(state).collect()
            },
        }
    };
    pb::Segment {
        events: segment.events.iter().map(event).collect(),
        targets: segment.targets.into_iter().map(target).collect(),
        batch_id: text(&segment.batch),
    }
}

fn segment_from_pb(segment: pb::Segment) -> Result<Segment, Unreadable> {
    let text = |text: String| if text.is_empty() { None } else { Some(Arc::from(text)) };
    let mut last_account: Option<AccountId> = None;
    let mut events = Vec::with_capacity(segment.events.len());
    for event in segment.events {
        // Events of one segment are mostly of few accounts: share the text.
        let account = match &last_account {
            Some(account) if account.as_str() == event.account => account.clone(),
            _ => AccountId::new(&event.account).map_err(unreadable)?,
        };
        last_account = Some(account.clone());
        events.push(Arc::new(Event {
            account,
            id: EventId::new(&event.event_id).map_err(unreadable)?,
            name: EventName::new(&event.event_name).map_err(unreadable)?,
            timestamp: Timestamp::from_millis(event.timestamp),
            ordering_key: text(event.ordering_key),
            expire_time: (event.expire_time != 0).then(|| Timestamp::from_millis(event.expire_time)),
            event_info: text(event.event_info),
            data: event.data,
            accept_time: Timestamp::from_millis(event.accept_time),
            traceparent: text(event.traceparent),
            category: category(event.non_real_time),
            not_before_time: (event.not_before_time != 0).then(|| Timestamp::from_millis(event.not_before_time)),
        }));
    }
    let count = events.len();
    let targets = segment
        .targets
        .into_iter()
        .map(|target| target_from_pb(target, count))
        .collect::<Result<_, _>>()?;
    Ok(Segment {
        events,
        targets,
        batch: text(segment.batch_id),
    })
}

fn order_to_pb(state: &DeliveryState) -> Option<pb::DeliveryOrder> {
    let order = pb::DeliveryOrder {
        revision: state.position.revision.0,
        index: state.position.index,
        blocked: state.blocked,
        renew_time: state.renewed.map_or(0, Timestamp::as_millis),
    };
    (order != pb::DeliveryOrder::default()).then_some(order)
}

const fn category(non_real_time: bool) -> Category {
    if non_real_time {
        Category::NonRealTime
    } else {
        Category::RealTime
    }
}

fn target_from_pb(target: pb::Target, events: usize) -> Result<Target, Unreadable> {
    if target.events.iter().any(|event| *event as usize >= events) {
        return Err(Unreadable("a delivery of an event that is not in its segment".into()));
    }
    if !target.states.is_empty() && target.states.len() != target.events.len() {
        return Err(Unreadable("not one state for each delivery".into()));
    }
    let mut states = target.states.into_iter().map(|state| {
        let order = state.order.unwrap_or_default();
        DeliveryState {
            attempts: state.attempts,
            due: Timestamp::from_millis(state.due_time),
            reason: state.reason,
            status: u16::try_from(state.status_code).ok().filter(|status| *status != 0),
            alone: state.alone,
            sequence: state.sequence,
            position: Position {
                revision: Revision(order.revision),
                index: order.index,
            },
            blocked: order.blocked,
            renewed: (order.renew_time != 0).then(|| Timestamp::from_millis(order.renew_time)),
        }
    });
    Ok(Target {
        account: AccountId::new(&target.account).map_err(unreadable)?,
        webhook: WebhookId::new(&target.webhook).map_err(unreadable)?,
        webhook_uid: Uid::new(&target.webhook_uid).map_err(unreadable)?,
        webhook_revision: Revision(target.webhook_revision),
        deliveries: target
            .events
            .into_iter()
            .map(|event| Delivery {
                event,
                state: states.next().unwrap_or_default(),
            })
            .collect(),
    })
}

/// Encodes an account.
pub fn encode_account(account: &Account) -> Bytes {
    encode(&pb::Account {
        version: VERSION,
        uid: account.uid.as_str().to_owned(),
        generation: account.generation,
        display_name: account.display_name.clone(),
        max_webhooks: account.max_webhooks.unwrap_or(0),
        max_backlog_bytes: account.max_backlog_bytes.unwrap_or(0),
        refuse_unknown_event_types: account.unknown_event_types == UnknownEventTypes::Refuse,
        labels: account.labels.clone(),
        create_time: account.create_time.as_millis(),
        update_time: account.update_time.as_millis(),
    })
}

/// Decodes the account stored under `id`.
///
/// # Errors
/// [`Unreadable`] if the bytes are not an account of a version that this release reads.
pub fn decode_account(id: AccountId, bytes: Bytes) -> Result<Account, Unreadable> {
    let account: pb::Account = decode(bytes)?;
    readable_version(account.version)?;
    Ok(Account {
        id,
        uid: Uid::new(&account.uid).map_err(unreadable)?,
        generation: account.generation,
        display_name: account.display_name,
        max_webhooks: (account.max_webhooks != 0).then_some(account.max_webhooks),
        max_backlog_bytes: (account.max_backlog_bytes != 0).then_some(account.max_backlog_bytes),
        unknown_event_types: if account.refuse_unknown_event_types {
            UnknownEventTypes::Refuse
        } else {
            UnknownEventTypes::Accept
        },
        labels: account.labels,
        create_time: Timestamp::from_millis(account.create_time),
        update_time: Timestamp::from_millis(account.update_time),
    })
}

/// Encodes an event type.
pub fn encode_event_type(event_type: &EventType) -> Bytes {
    encode(&pb::EventType {
        version: VERSION,
        uid: event_type.uid.as_str().to_owned(),
        generation: event_type.generation,
        display_name: event_type.display_name.clone(),
        description: event_type.description.clone(),
        non_real_time: event_type.category == Category::NonRealTime,
        schema: event_type.schema.clone().unwrap_or_default(),
        example: event_type.example.clone().unwrap_or_default(),
        deprecated: event_type.deprecated,
        create_time: event_type.create_time.as_millis(),
        update_time: event_type.update_time.as_millis(),
    })
}

/// Decodes the event type stored under `name`.
///
/// # Errors
/// [`Unreadable`] if the bytes are not an event type of a version that this release reads.
pub fn decode_event_type(name: EventName, bytes: Bytes) -> Result<EventType, Unreadable> {
    let stored: pb::EventType = decode(bytes)?;
    readable_version(stored.version)?;
    let present = |bytes: Bytes| (!bytes.is_empty()).then_some(bytes);
    Ok(EventType {
        name,
        uid: Uid::new(&stored.uid).map_err(unreadable)?,
        generation: stored.generation,
        display_name: stored.display_name,
        description: stored.description,
        category: category(stored.non_real_time),
        schema: present(stored.schema),
        example: present(stored.example),
        deprecated: stored.deprecated,
        create_time: Timestamp::from_millis(stored.create_time),
        update_time: Timestamp::from_millis(stored.update_time),
    })
}

/// Encodes what is kept of a webhook that only fails.
pub fn encode_failing(failing: &Failing) -> Bytes {
    encode(&pb::Failing {
        version: VERSION,
        uid: failing.uid.as_str().to_owned(),
        generation: failing.generation,
        since: failing.since.as_millis(),
        last: failing.last.as_millis(),
        rest_until: failing.rest_until.as_millis(),
    })
}

/// Decodes it.
///
/// # Errors
/// [`Unreadable`] if the bytes are not of a version that this release reads.
pub fn decode_failing(bytes: Bytes) -> Result<Failing, Unreadable> {
    let stored: pb::Failing = decode(bytes)?;
    readable_version(stored.version)?;
    Ok(Failing {
        uid: Uid::new(&stored.uid).map_err(unreadable)?,
        generation: stored.generation,
        since: Timestamp::from_millis(stored.since),
        last: Timestamp::from_millis(stored.last),
        rest_until: Timestamp::from_millis(stored.rest_until),
    })
}
