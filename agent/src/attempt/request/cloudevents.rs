//! Events as CloudEvents 1.0, by the HTTP protocol binding and the JSON format of that specification. Pure.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use postrider_common::id::AccountId;

use super::{EVENT_OVERHEAD, InvalidHeader, Sent, data, push_string};

/// The media type of an event as one document.
pub(super) const STRUCTURED: HeaderValue = HeaderValue::from_static("application/cloudevents+json; charset=utf-8");

/// What the binding wants encoded in a header besides what is not ASCII: all but visible characters, the double quote and the percent sign
/// (section 3.1.3.2).
const IN_HEADER: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The attributes of an event, in the order in which they are written.
fn attributes(account: &AccountId, sent: &Sent) -> impl Iterator<Item = (&'static str, String)> {
    let event = &sent.event;
    let always = [
        ("specversion", "1.0".to_owned()),
        ("id", event.id.as_str().to_owned()),
        ("source", format!("/accounts/{account}")),
        ("type", event.name.as_str().to_owned()),
        ("time", event.timestamp.to_string()),
        ("eventinfo", sent.event_info.to_string()),
    ];
    let key = event.ordering_key.as_ref().map(|key| ("partitionkey", key.to_string()));
    always.into_iter().chain(key)
}

/// An event as one JSON document. The publisher's data goes in byte for byte.
pub(super) fn structured(account: &AccountId, sent: &Sent) -> Bytes {
    let event = data(&sent.event);
    let mut body = Vec::with_capacity(event.len() + sent.event_info.len() + EVENT_OVERHEAD);
    body.push(b'{');
    for (name, text) in attributes(account, sent) {
        push_string(&mut body, name);
        body.push(b':');
        push_string(&mut body, &text);
        body.push(b',');
    }
    body.extend_from_slice(b"\"datacontenttype\":\"application/json\",\"data\":");
    body.extend_from_slice(&event);
    body.push(b'}');
    body.into()
}

/// Sets the attributes as headers; the body is the data, whose media type stands in `content-type`.
///
/// # Errors
/// [`InvalidHeader`] if a text stays unfit for a header although it is encoded, which is a mistake here.
pub(super) fn add_headers(headers: &mut HeaderMap, account: &AccountId, sent: &Sent) -> Result<(), InvalidHeader> {
    for (name, text) in attributes(account, sent) {
        let name = format!("ce-{name}");
        let value = HeaderValue::from_str(&utf8_percent_encode(&text, IN_HEADER).to_string());
        let parsed = HeaderName::try_from(&name);
        let (Ok(parsed), Ok(value)) = (parsed, value) else {
            return Err(InvalidHeader::named(name));
        };
        headers.insert(parsed, value);
    }
    Ok(())
}
