//! What a request says: the body, and the headers that do not prove who sent it. Pure.

mod cloudevents;

use std::io::Write as _;
use std::num::NonZeroU64;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use postrider_common::id::AccountId;
use postrider_common::model::segment::Event;
use postrider_common::model::webhook::PayloadFormat;
use postrider_common::time::Timestamp;

use super::Sent;

/// The event's id, or the batch's: the same on every attempt.
pub const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
/// Unix seconds of this attempt.
pub const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
/// Which attempt it is, from 1.
pub const WEBHOOK_ATTEMPT: HeaderName = HeaderName::from_static("webhook-attempt");

/// The event's number among those of the webhook, if they are numbered.
pub const WEBHOOK_SEQUENCE: HeaderName = HeaderName::from_static("webhook-sequence");
/// The publisher's trace context (W3C).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Who we are.
pub(crate) const AGENT: HeaderValue = HeaderValue::from_static(concat!("Postrider/", env!("CARGO_PKG_VERSION")));

/// Names that a webhook's own headers never set, whatever the store says: they frame the message, belong to the connection or to us, or ask for an
/// answer that we would have to decode.
const NEVER_STATIC: [&str; 13] = [
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "traceparent",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// What a format adds around one event at most, beyond its `eventInfo` and data, in bytes: keys, id, name and time. For sizing the buffer only.
const EVENT_OVERHEAD: usize = 320;

/// How many headers an attempt has besides the shared ones: id, time, attempt, sequence, trace, proof and host.
const ATTEMPT_HEADERS: usize = 7;

/// A header that cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the header {name} cannot be sent")]
pub struct InvalidHeader {
    /// Its name; the value may be a secret.
    pub name: String,
}

impl InvalidHeader {
    fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
}

/// The body in the webhook's format; the headers that belong to it are set in `headers`.
///
/// One event a request: a second one would not fit any format but the envelope, and nothing sends one.
///
/// # Errors
/// [`InvalidHeader`] for an attribute that cannot stand in a header.
pub fn body(
    format: PayloadFormat,
    account: &AccountId,
    events: &[Sent],
    headers: &mut HeaderMap,
) -> Result<Bytes, InvalidHeader> {
    match (format, events) {
        (PayloadFormat::Raw, [sent]) => Ok(data(&sent.event)),
        (PayloadFormat::CloudEventsStructured, [sent]) => {
            headers.insert(CONTENT_TYPE, cloudevents::STRUCTURED);
            Ok(cloudevents::structured(account, sent))
        }
        (PayloadFormat::CloudEventsBinary, [sent]) => {
            cloudevents::add_headers(headers, account, sent)?;
            Ok(data(&sent.event))
        }
        (
            PayloadFormat::Envelope
            | PayloadFormat::Raw
            | PayloadFormat::CloudEventsStructured
            | PayloadFormat::CloudEventsBinary,
            _,
        ) => Ok(envelope(account, events)),
    }
}

/// The publisher's data byte for byte; `null` if it is empty.
fn data(event: &Event) -> Bytes {
    if event.data.is_empty() {
        Bytes::from_static(b"null")
    } else {
        event.data.clone()
    }
}

/// The ENVELOPE body. The publisher's data goes in byte for byte; data that is empty goes in as `null`.
pub fn envelope(account: &AccountId, events: &[Sent]) -> Bytes {
    let size: usize = events
        .iter()
        .map(|sent| sent.event.data.len() + sent.event_info.len() + EVENT_OVERHEAD)
        .sum();
    let mut body = Vec::with_capacity(size + 64);
    body.extend_from_slice(b"{\"accountId\":");
    if is_canonical_integer(account.as_str()) {
        body.extend_from_slice(account.as_str().as_bytes());
    } else {
        push_string(&mut body, account.as_str());
    }
    body.extend_from_slice(b",\"events\":[");
    for (index, sent) in events.iter().enumerate() {
        body.extend_from_slice(if index == 0 {
            b"{\"eventId\":"
        } else {
            b",{\"eventId\":"
        });
        push_string(&mut body, sent.event.id.as_str());
        body.extend_from_slice(b",\"eventName\":");
        push_string(&mut body, sent.event.name.as_str());
        // Writing into memory cannot fail.
        let _ = write!(
            body,
            ",\"timestamp\":{},\"eventInfo\":",
            sent.event.timestamp.as_millis()
        );
        push_string(&mut body, &sent.event_info);
        body.extend_from_slice(b",\"data\":");
        body.extend_from_slice(&data(&sent.event));
        body.push(b'}');
    }
    body.extend_from_slice(b"]}");
    body.into()
}

fn push_string(body: &mut Vec<u8>, text: &str) {
    // Writing text into memory cannot fail.
    let _ = serde_json::to_writer(body, text);
}

/// Whether the text is how an integer that fits 64 bits is written: only then does a JSON number keep it.
fn is_canonical_integer(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'))
        && text.parse::<i64>().is_ok()
}

/// The headers that all requests of a webhook share: ours and its own static ones.
///
/// # Errors
/// [`InvalidHeader`] for a static header that is none. The API refuses such ones, so this is a store written by someone else.
pub fn base_headers(static_headers: &[(String, String)]) -> Result<HeaderMap, InvalidHeader> {
    let mut headers = HeaderMap::with_capacity(static_headers.len() + 2);
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(USER_AGENT, AGENT);
    for (name, value) in static_headers {
        let parsed: HeaderName = name.parse().map_err(|_| InvalidHeader::named(name))?;
        let ours = NEVER_STATIC.contains(&parsed.as_str())
            || ["webhook-", "proxy-"].iter().any(|p| parsed.as_str().starts_with(p));
        if !ours {
            headers.append(parsed, value.parse().map_err(|_| InvalidHeader::named(name))?);
        }
    }
    Ok(headers)
}

/// The shared headers, with room for those of an attempt: a clone would have none, and be moved twice as they are added.
pub fn attempt_headers(base: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(base.len() + ATTEMPT_HEADERS);
    for (name, value) in base {
        headers.append(name, value.clone());
    }
    headers
}

/// Adds the headers of one attempt. A `traceparent` that is no header value is left out: it is only advice.
///
/// # Errors
/// [`InvalidHeader`] if the id is no header value.
pub fn add_attempt_headers(
    headers: &mut HeaderMap,
    id: &str,
    number: u32,
    sequence: Option<NonZeroU64>,
    now: Timestamp,
    traceparent: Option<&str>,
) -> Result<(), InvalidHeader> {
    let id = HeaderValue::from_str(id).map_err(|_| InvalidHeader::named(WEBHOOK_ID.as_str()))?;
    headers.insert(WEBHOOK_ID, id);
    headers.insert(WEBHOOK_TIMESTAMP, now.as_seconds().into());
    headers.insert(WEBHOOK_ATTEMPT, number.into());
    if let Some(sequence) = sequence {
        headers.insert(WEBHOOK_SEQUENCE, sequence.get().into());
    }
    if let Some(value) = traceparent.and_then(|text| HeaderValue::from_str(text).ok()) {
        headers.insert(TRACEPARENT, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
