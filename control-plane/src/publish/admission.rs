//! Checks a publish request, names every mistake, and makes events of it. Pure.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_common::entropy::Entropy;
use postrider_common::id::{AccountId, EventId, EventName, RequestId};
use postrider_common::key::{self, DedupeKind, Key};
use postrider_common::model::event_type::Category;
use postrider_common::model::operational::{PREFIX, is_operational};
use postrider_common::model::segment::Event;
use postrider_common::time::Timestamp;
use postrider_proto::v1;
use prost::Message as _;
use prost_types::Timestamp as ProtoTimestamp;
use sha2::{Digest, Sha256};

use super::json;
use crate::api::status::Violations;

/// Most events of one request.
const MAX_EVENTS: usize = 1_000;

/// Most bytes of one body, as JSON text: a request to a listener stays of a size that listeners take.
const MAX_BODY_BYTES: usize = 256 << 10;

/// Most bytes of all bodies of a request together: they must fit, with room to spare, into one transaction of the store.
const MAX_BODIES_BYTES: usize = 1 << 20;

/// How far ahead an event may be published: as long as the longest that one is tried.
const MAX_AHEAD: Duration = Duration::from_hours(30 * 24);

/// Most characters of an ordering key.
const MAX_ORDERING_KEY: usize = 128;

/// Most characters of `event_info`.
const MAX_EVENT_INFO: usize = 256;

/// What a caller asks to have accepted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// `accounts/{account}`.
    pub(crate) parent: String,
    /// The events.
    pub(crate) events: Vec<v1::Event>,
    /// Empty for none.
    pub(crate) request_id: String,
    /// W3C trace context of the caller; see [`traceparent`].
    pub(crate) traceparent: Option<Arc<str>>,
}

/// A request without mistakes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Admitted {
    /// Who publishes.
    pub(crate) account: AccountId,
    /// What is published, in the request's order; each not yet shared, and of no category before [`super::screen`].
    pub(crate) events: Vec<Arc<Event>>,
    /// If the caller gave an id.
    pub(crate) identity: Option<Identity>,
    /// When it was accepted.
    pub(crate) accept_time: Timestamp,
}

/// SHA-256 of a request's events as they were given: the same id with another fingerprint is another request.
pub(crate) type Fingerprint = [u8; 32];

/// What a request is known by when it comes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Whose request it is.
    pub(crate) account: AccountId,
    /// Where its answer is stored: absent, or the request was answered before.
    pub(crate) key: Key,
    /// Of its events.
    pub(crate) fingerprint: Fingerprint,
}

impl Identity {
    pub(crate) fn new(account: &AccountId, request: &RequestId, fingerprint: Fingerprint) -> Self {
        Self {
            account: account.clone(),
            key: key::dedupe(account, DedupeKind::Publish, request),
            fingerprint,
        }
    }
}

/// A request with mistakes.
#[derive(Debug)]
pub(crate) struct Refused {
    /// All of them.
    pub(crate) violations: Violations,
    /// If the account and the id have none.
    pub(crate) identity: Option<Identity>,
}

/// Checks `request`. `now` becomes the moment of acceptance.
///
/// # Errors
/// Every mistake.
pub(crate) fn admit(request: Request, now: Timestamp, entropy: &dyn Entropy) -> Result<Admitted, Refused> {
    let mut check = Check {
        now,
        entropy,
        traceparent: request.traceparent,
        violations: Violations::default(),
        bodies: 0,
        name: None,
    };
    let account = check.parent(&request.parent);
    let request_id = check.request_id(&request.request_id);
    let identity = account
        .as_ref()
        .zip(request_id)
        .map(|(account, id)| Identity::new(account, &id, fingerprint(&request.events)));
    let count = request.events.len();
    if count == 0 {
        check.mistake("events", "REQUIRED", "at least one is required");
    }
    if count > MAX_EVENTS {
        check.mistake(
            "events",
            "TOO_MANY",
            format!("there are {count}, at most {MAX_EVENTS} are taken"),
        );
    }
    let mut events = Vec::with_capacity(count.min(MAX_EVENTS));
    for (index, event) in request.events.into_iter().take(MAX_EVENTS).enumerate() {
        events.extend(check.event(index, event, account.as_ref()).map(Arc::new));
    }
    if check.bodies > MAX_BODIES_BYTES {
        let description = format!("{} bytes of bodies together, at most {MAX_BODIES_BYTES}", check.bodies);
        check.mistake("events", "TOO_LARGE", description);
    }
    match account {
        Some(account) if check.violations.is_empty() => Ok(Admitted {
            account,
            events,
            identity,
            accept_time: now,
        }),
        _ => Err(Refused {
            violations: check.violations,
            identity,
        }),
    }
}

/// Checks one event that is not published, in the field `event` of a request. `None` if there is a mistake, in the event or in the account.
pub(crate) fn lone(
    event: v1::Event,
    account: Option<&AccountId>,
    now: Timestamp,
    entropy: &dyn Entropy,
    violations: &mut Violations,
) -> Option<Event> {
    let mut check = Check {
        now,
        entropy,
        traceparent: None,
        violations: Violations::default(),
        bodies: 0,
        name: None,
    };
    let event = check.event(0, event, account);
    for mistake in check.violations.iter() {
        let field = mistake.field.replacen("events[0]", "event", 1);
        violations.add(field, mistake.reason, mistake.description.clone());
    }
    event
}

/// The caller's trace context, if `text` is one: W3C Trace Context, version 00.
pub(crate) fn traceparent(text: &str) -> Option<Arc<str>> {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let some = |part: &str| part.bytes().any(|byte| byte != b'0');
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let valid = version == "00"
        && hex(trace, 32)
        && some(trace)
        && hex(span, 16)
        && some(span)
        && hex(flags, 2)
        && parts.next().is_none();
    valid.then(|| text.into())
}

fn fingerprint(events: &[v1::Event]) -> Fingerprint {
    let mut hash = Sha256::new();
    let mut buffer = Vec::new();
    for event in events {
        buffer.clear();
        // A vector always has room.
        if event.encode_length_delimited(&mut buffer).is_ok() {
            hash.update(&buffer);
        }
    }
    hash.finalize().into()
}

/// A check under way.
struct Check<'a> {
    now: Timestamp,
    entropy: &'a dyn Entropy,
    traceparent: Option<Arc<str>>,
    violations: Violations,
    /// Bytes of bodies so far.
    bodies: usize,
    /// The event name before: requests mostly repeat one, and its text is shared.
    name: Option<EventName>,
}

impl Check<'_> {
    fn mistake(&mut self, field: impl Into<String>, reason: &'static str, description: impl Into<String>) {
        self.violations.add(field, reason, description);
    }

    fn parent(&mut self, parent: &str) -> Option<AccountId> {
        if parent.is_empty() {
            self.mistake("parent", "REQUIRED", "is required: accounts/{account}");
            return None;
        }
        let account = parent.strip_prefix("accounts/").map(AccountId::new);
        match account {
            Some(Ok(account)) => Some(account),
            Some(Err(error)) => {
                self.mistake(
                    "parent",
                    "MALFORMED",
                    format!("{{account}} of accounts/{{account}} {error}"),
                );
                None
            }
            None => {
                self.mistake("parent", "MALFORMED", "must be accounts/{account}");
                None
            }
        }
    }

    fn request_id(&mut self, text: &str) -> Option<RequestId> {
        if text.is_empty() {
            return None;
        }
        match RequestId::new(text) {
            Ok(id) => Some(id),
            Err(error) => {
                self.mistake("request_id", "MALFORMED", error.rule);
                None
            }
        }
    }

    /// `None` if there is a mistake, in the event or in the account.
    fn event(&mut self, index: usize, event: v1::Event, account: Option<&AccountId>) -> Option<Event> {
        let id = self.event_id(index, &event.event_id);
        let name = self.event_name(index, &event.event_name);
        let timestamp = match event.timestamp {
            None => Some(self.now),
            Some(timestamp) => self.moment(index, "timestamp", timestamp),
        };
        let expire_time = self.expire_time(index, event.expire_time);
        let not_before_time = self.not_before_time(index, event.not_before_time, expire_time.flatten());
        let ordering_key = self.ordering_key(index, &event.ordering_key);
        let event_info = self.event_info(index, &event.event_info);
        let data = self.body(index, event.body);
        Some(Event {
            account: account?.clone(),
            id: id?,
            name: name?,
            timestamp: timestamp?,
            ordering_key: ordering_key?,
            expire_time: expire_time?,
            not_before_time: not_before_time?,
            event_info: event_info?,
            data: data?,
            accept_time: self.now,
            traceparent: self.traceparent.clone(),
            category: Category::default(),
        })
    }

    fn event_id(&mut self, index: usize, text: &str) -> Option<EventId> {
        let id = if text.is_empty() {
            let mut buffer = uuid::Uuid::encode_buffer();
            EventId::new(self.entropy.uuid(self.now).hyphenated().encode_lower(&mut buffer))
        } else {
            EventId::new(text)
        };
        match id {
            Ok(id) => Some(id),
            Err(error) => {
                self.mistake(format!("events[{index}].event_id"), "MALFORMED", error.rule);
                None
            }
        }
    }

    fn event_name(&mut self, index: usize, text: &str) -> Option<EventName> {
        if let Some(before) = self.name.as_ref().filter(|before| before.as_str() == text) {
            return Some(before.clone());
        }
        match EventName::new(text) {
            Ok(name) if is_operational(&name) => {
                let description = format!("names that begin with {PREFIX} are the system's own");
                self.mistake(format!("events[{index}].event_name"), "RESERVED", description);
                None
            }
            Ok(name) => {
                self.name = Some(name.clone());
                Some(name)
            }
            Err(error) => {
                let reason = if text.is_empty() { "REQUIRED" } else { "MALFORMED" };
                self.mistake(format!("events[{index}].event_name"), reason, error.rule);
                None
            }
        }
    }

    fn moment(&mut self, index: usize, field: &str, moment: ProtoTimestamp) -> Option<Timestamp> {
        let millis = moment.seconds.checked_mul(1000).filter(|millis| *millis >= 0);
        let millis = millis.filter(|_| (0..1_000_000_000).contains(&moment.nanos));
        let millis = millis.and_then(|millis| millis.checked_add(i64::from(moment.nanos) / 1_000_000));
        let moment = millis
            .map(Timestamp::from_millis)
            .filter(|moment| *moment <= Timestamp::MAX);
        if moment.is_none() {
            let description = "must lie in the years 1970 to 9999, with nanoseconds of 0 to 999,999,999";
            self.mistake(format!("events[{index}].{field}"), "OUT_OF_RANGE", description);
        }
        moment
    }

    fn expire_time(&mut self, index: usize, moment: Option<ProtoTimestamp>) -> Option<Option<Timestamp>> {
        let Some(moment) = moment else { return Some(None) };
        let moment = self.moment(index, "expire_time", moment)?;
        if moment <= self.now {
            let description = "must be in the future";
            self.mistake(format!("events[{index}].expire_time"), "NOT_IN_FUTURE", description);
            return None;
        }
        Some(Some(moment))
    }

    fn not_before_time(
        &mut self,
        index: usize,
        moment: Option<ProtoTimestamp>,
        expire_time: Option<Timestamp>,
    ) -> Option<Option<Timestamp>> {
        let Some(moment) = moment else { return Some(None) };
        let moment = self.moment(index, "not_before_time", moment)?;
        let field = || format!("events[{index}].not_before_time");
        if moment > self.now + MAX_AHEAD {
            self.mistake(field(), "OUT_OF_RANGE", "must be at most 30 days ahead");
            return None;
        }
        if expire_time.is_some_and(|expires| expires <= moment) {
            self.mistake(field(), "INCOMPATIBLE", "must be before expire_time");
            return None;
        }
        // What is over needs no room in the store.
        Some(Some(moment).filter(|moment| *moment > self.now))
    }

    fn ordering_key(&mut self, index: usize, text: &str) -> Option<Option<Arc<str>>> {
        if text.len() > MAX_ORDERING_KEY || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let description = format!("must be at most {MAX_ORDERING_KEY} visible ASCII characters");
            self.mistake(format!("events[{index}].ordering_key"), "MALFORMED", description);
            return None;
        }
        Some((!text.is_empty()).then(|| text.into()))
    }

    fn event_info(&mut self, index: usize, text: &str) -> Option<Option<Arc<str>>> {
        // Counting characters only where bytes do not settle it.
        if text.len() > MAX_EVENT_INFO && text.chars().count() > MAX_EVENT_INFO {
            let description = format!("must be at most {MAX_EVENT_INFO} characters");
            self.mistake(format!("events[{index}].event_info"), "TOO_LONG", description);
            return None;
        }
        Some((!text.is_empty()).then(|| text.into()))
    }

    fn body(&mut self, index: usize, body: Option<v1::event::Body>) -> Option<Bytes> {
        let (field, body) = match body {
            None => {
                let description = "one of data and data_json is required";
                self.mistake(format!("events[{index}].data"), "REQUIRED", description);
                return None;
            }
            Some(v1::event::Body::Data(object)) => ("data", json::print(&object).map(Bytes::from)),
            // Not parsed before its size is known to be right.
            Some(v1::event::Body::DataJson(text)) if text.len() > MAX_BODY_BYTES => ("data_json", Ok(text)),
            Some(v1::event::Body::DataJson(text)) => ("data_json", json::check(&text).map(|()| text)),
        };
        match body {
            Err(flaw) => {
                self.mistake(format!("events[{index}].{field}"), flaw.reason, flaw.description);
                None
            }
            Ok(text) => {
                self.bodies += text.len();
                if text.len() > MAX_BODY_BYTES {
                    let description = format!("{} bytes, at most {MAX_BODY_BYTES}", text.len());
                    self.mistake(format!("events[{index}].{field}"), "TOO_LARGE", description);
                    return None;
                }
                Some(text)
            }
        }
    }
}

#[cfg(test)]
mod tests;
