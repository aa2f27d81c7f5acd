//! Encodes and decodes what the store holds. Pure.
//!
//! Everything read is checked as if a stranger had written it: what does not fit is [`Unreadable`], never a panic.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_proto::stored as pb;
use prost::Message as _;
use zstd::bulk::{Compressor, Decompressor};

use crate::id::{AccountId, EventId, EventName, Uid, WebhookId};
use crate::model::account::Account;
use crate::model::event_type::{Category, EventType};
use crate::model::segment::{Delivery, DeliveryState, Event, Segment, Target};
use crate::model::webhook::{Auth, EventPattern, HttpVersion, SigningSecret, Webhook, WhenInactive};
use crate::retry;
use crate::secret::Sealed;
use crate::store::Revision;
use crate::time::Timestamp;

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
    let body = segment_to_pb(segment).encode_to_vec();
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
    let packed: pb::Packed = decode(bytes)?;
    readable_version(packed.version)?;
    if packed.size > MAX_UNPACKED {
        return Err(Unreadable(format!("a segment of {} bytes", packed.size)));
    }
    let body = match packed.codec {
        0 => packed.body,
        1 => decompress(&packed.body, packed.size as usize)?.into(),
        other => return Err(Unreadable(format!("codec {other}"))),
    };
    segment_from_pb(decode(body)?)
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
    };
    let target = |target: Target| {
        let untouched = target
            .deliveries
            .iter()
            .all(|delivery| delivery.state == DeliveryState::default());
        let events = target.deliveries.iter().map(|delivery| delivery.event).collect();
        let state = |delivery: Delivery| pb::DeliveryState {
            attempts: delivery.state.attempts,
            due_time: delivery.state.due.as_millis(),
            reason: delivery.state.reason,
            status_code: delivery.state.status.map_or(0, u32::from),
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
        }));
    }
    let count = events.len();
    let targets = segment
        .targets
        .into_iter()
        .map(|target| target_from_pb(target, count))
        .collect::<Result<_, _>>()?;
    Ok(Segment { events, targets })
}

fn target_from_pb(target: pb::Target, events: usize) -> Result<Target, Unreadable> {
    if target.events.iter().any(|event| *event as usize >= events) {
        return Err(Unreadable("a delivery of an event that is not in its segment".into()));
    }
    if !target.states.is_empty() && target.states.len() != target.events.len() {
        return Err(Unreadable("not one state for each delivery".into()));
    }
    let mut states = target.states.into_iter().map(|state| DeliveryState {
        attempts: state.attempts,
        due: Timestamp::from_millis(state.due_time),
        reason: state.reason,
        status: u16::try_from(state.status_code).ok().filter(|status| *status != 0),
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
        category: if stored.non_real_time {
            Category::NonRealTime
        } else {
            Category::RealTime
        },
        schema: present(stored.schema),
        example: present(stored.example),
        deprecated: stored.deprecated,
        create_time: Timestamp::from_millis(stored.create_time),
        update_time: Timestamp::from_millis(stored.update_time),
    })
}

/// Encodes a webhook.
pub fn encode_webhook(webhook: &Webhook) -> Bytes {
    let sealed = |sealed: &Sealed| pb::Sealed {
        key_id: sealed.key_id.clone(),
        nonce: sealed.nonce.clone().into(),
        ciphertext: sealed.ciphertext.clone().into(),
    };
    let signing = |secret: &SigningSecret| pb::SigningSecret {
        id: secret.id.clone(),
        secret: Some(sealed(&secret.secret)),
        create_time: secret.create_time.as_millis(),
        expire_time: secret.expire_time.map_or(0, Timestamp::as_millis),
    };
    let auth = match &webhook.auth {
        Auth::None => None,
        Auth::Basic { username, password } => Some(pb::webhook::Auth::Basic(pb::BasicAuth {
            username: username.clone(),
            password: Some(sealed(password)),
        })),
        Auth::Signature { secrets } => Some(pb::webhook::Auth::Signature(pb::SignatureAuth {
            secrets: secrets.iter().map(signing).collect(),
        })),
    };
    let header = |(name, value): &(String, String)| pb::Header {
        name: name.clone(),
        value: value.clone(),
    };
    encode(&pb::Webhook {
        version: VERSION,
        uid: webhook.uid.as_str().to_owned(),
        generation: webhook.generation,
        create_time: webhook.create_time.as_millis(),
        update_time: webhook.update_time.as_millis(),
        display_name: webhook.display_name.clone(),
        description: webhook.description.clone(),
        target_url: webhook.target_url.clone(),
        auth,
        event_types: webhook.event_types.iter().map(ToString::to_string).collect(),
        retired: !webhook.active,
        hold_when_inactive: webhook.when_inactive == WhenInactive::Hold,
        max_in_flight: webhook.max_in_flight.map_or(0, NonZeroU32::get),
        timeout_ms: webhook.timeout.map_or(0, millis),
        http_version: match webhook.http_version {
            HttpVersion::Negotiated => 0,
            HttpVersion::Http1 => 1,
            HttpVersion::Http2 => 2,
        },
        retry: Some(retry_to_pb(&webhook.retry)),
        headers: webhook.headers.iter().map(header).collect(),
        labels: webhook.labels.clone(),
    })
}

/// Decodes the webhook stored under `account` and `id`.
///
/// # Errors
/// [`Unreadable`] if the bytes are not a webhook of a version that this release reads.
pub fn decode_webhook(account: AccountId, id: WebhookId, bytes: Bytes) -> Result<Webhook, Unreadable> {
    let stored: pb::Webhook = decode(bytes)?;
    readable_version(stored.version)?;
    let auth = match stored.auth {
        None => Auth::None,
        Some(pb::webhook::Auth::Basic(basic)) => Auth::Basic {
            username: basic.username,
            password: sealed_from_pb(basic.password)?,
        },
        Some(pb::webhook::Auth::Signature(signature)) => Auth::Signature {
            secrets: signature
                .secrets
                .into_iter()
                .map(signing_from_pb)
                .collect::<Result<_, _>>()?,
        },
    };
    let patterns = stored.event_types.iter().map(|text| EventPattern::parse(text));
    Ok(Webhook {
        account,
        id,
        uid: Uid::new(&stored.uid).map_err(unreadable)?,
        generation: stored.generation,
        create_time: Timestamp::from_millis(stored.create_time),
        update_time: Timestamp::from_millis(stored.update_time),
        display_name: stored.display_name,
        description: stored.description,
        target_url: stored.target_url,
        auth,
        event_types: patterns.collect::<Result<_, _>>().map_err(unreadable)?,
        active: !stored.retired,
        when_inactive: if stored.hold_when_inactive {
            WhenInactive::Hold
        } else {
            WhenInactive::Drop
        },
        max_in_flight: NonZeroU32::new(stored.max_in_flight),
        timeout: (stored.timeout_ms != 0).then(|| Duration::from_millis(stored.timeout_ms)),
        http_version: match stored.http_version {
            0 => HttpVersion::Negotiated,
            1 => HttpVersion::Http1,
            2 => HttpVersion::Http2,
            other => return Err(Unreadable(format!("HTTP version {other}"))),
        },
        retry: retry_from_pb(stored.retry.unwrap_or_default()),
        headers: stored
            .headers
            .into_iter()
            .map(|header| (header.name, header.value))
            .collect(),
        labels: stored.labels,
    })
}

fn sealed_from_pb(sealed: Option<pb::Sealed>) -> Result<Sealed, Unreadable> {
    let sealed = sealed.ok_or_else(|| Unreadable("a secret is missing".into()))?;
    Ok(Sealed {
        key_id: sealed.key_id,
        nonce: sealed.nonce.into(),
        ciphertext: sealed.ciphertext.into(),
    })
}

fn signing_from_pb(secret: pb::SigningSecret) -> Result<SigningSecret, Unreadable> {
    Ok(SigningSecret {
        id: secret.id,
        secret: sealed_from_pb(secret.secret)?,
        create_time: Timestamp::from_millis(secret.create_time),
        expire_time: (secret.expire_time != 0).then(|| Timestamp::from_millis(secret.expire_time)),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Values that are the default's are stored as zeros, so that a later release may change the default for those who chose nothing.
fn retry_to_pb(policy: &retry::Policy) -> pb::RetryPolicy {
    let default = retry::Policy::default();
    let unless = |value: Duration, default: Duration| if value == default { 0 } else { millis(value) };
    #[allow(clippy::float_cmp)] // The very same constant, or something else.
    let multiplier = if policy.multiplier == default.multiplier {
        0.0
    } else {
        policy.multiplier
    };
    pb::RetryPolicy {
        max_attempts: policy.max_attempts.map_or(0, NonZeroU32::get),
        initial_delay_ms: unless(policy.initial_delay, default.initial_delay),
        multiplier,
        max_delay_ms: unless(policy.max_delay, default.max_delay),
        max_age_ms: unless(policy.max_age, default.max_age),
    }
}

fn retry_from_pb(policy: pb::RetryPolicy) -> retry::Policy {
    let default = retry::Policy::default();
    let or = |millis: u64, default: Duration| {
        if millis == 0 {
            default
        } else {
            Duration::from_millis(millis)
        }
    };
    retry::Policy {
        max_attempts: NonZeroU32::new(policy.max_attempts),
        initial_delay: or(policy.initial_delay_ms, default.initial_delay),
        multiplier: if policy.multiplier == 0.0 {
            default.multiplier
        } else {
            policy.multiplier
        },
        max_delay: or(policy.max_delay_ms, default.max_delay),
        max_age: or(policy.max_age_ms, default.max_age),
    }
}
