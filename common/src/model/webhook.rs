//! Webhooks. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use super::batching::Batching;
use crate::id::{AccountId, EventName, Uid, WebhookId};
use crate::retry;
use crate::time::Timestamp;

pub use super::auth::{Auth, SigningSecret};

/// Requests under way at once unless the webhook says otherwise: enough for 2,000 a second at 16 ms each, few enough for a small receiver.
pub const DEFAULT_MAX_IN_FLIGHT: NonZeroU32 = NonZeroU32::new(32).unwrap();

/// How long a request may take in all unless the webhook says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// A webhook.
#[derive(Debug, Clone, PartialEq)]
pub struct Webhook {
    /// Whose it is.
    pub account: AccountId,
    /// Its id within the account.
    pub id: WebhookId,
    /// Unique for ever.
    pub uid: Uid,
    /// Counts the changes, from 1.
    pub generation: u64,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was last changed.
    pub update_time: Timestamp,
    /// For people.
    pub display_name: String,
    /// For people.
    pub description: String,
    /// The listener URL, canonical: the very text that is dialled.
    pub target_url: String,
    /// How requests prove who sent them.
    pub auth: Auth,
    /// The trigger events.
    pub event_types: Vec<EventPattern>,
    /// The activation toggle.
    pub active: bool,
    /// What happens to events published while it is not active.
    pub when_inactive: WhenInactive,
    /// Requests under way at once; `None` means [`DEFAULT_MAX_IN_FLIGHT`].
    pub max_in_flight: Option<NonZeroU32>,
    /// How long a request may take in all; `None` means [`DEFAULT_TIMEOUT`].
    pub timeout: Option<Duration>,
    /// Which version of HTTP requests are made with.
    pub http_version: HttpVersion,
    /// What bodies look like.
    pub payload_format: PayloadFormat,
    /// When events are sent, and how many share a request.
    pub batching: Batching,
    /// When failed deliveries are tried again.
    pub retry: retry::Policy,
    /// Extra headers of every request: name (lower case) and value.
    pub headers: Vec<(String, String)>,
    /// Free key/value pairs.
    pub labels: BTreeMap<String, String>,
}

impl Webhook {
    /// Whether events of this name go to the webhook now (or, with [`WhenInactive::Hold`], wait for it).
    pub fn wants(&self, name: &EventName) -> bool {
        (self.active || self.when_inactive == WhenInactive::Hold)
            && self.event_types.iter().any(|pattern| pattern.matches(name))
    }

    /// The place that a secret of this webhook is sealed for (see [`crate::secret::Keyring::seal`]). `field` is one of [`super::auth::place`], or
    /// `signing/` and the secret's id.
    pub fn seal_context(account: &AccountId, uid: &Uid, field: &str) -> String {
        format!("webhook|{account}|{uid}|{field}")
    }
}

/// Which version of HTTP requests are made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum HttpVersion {
    /// Over TLS what the receiver chooses, HTTP/2 if it can; else HTTP/1.1.
    #[default]
    Negotiated,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only; without TLS by prior knowledge (RFC 9113, section 3.3).
    Http2,
}

/// What the body of a request looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PayloadFormat {
    /// `{"accountId":…,"events":[…]}`.
    #[default]
    Envelope,
    /// CloudEvents 1.0 as one JSON document.
    CloudEventsStructured,
    /// CloudEvents 1.0 with attributes in headers.
    CloudEventsBinary,
    /// The event's own data alone.
    Raw,
}

/// What happens to events published while a webhook is not active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenInactive {
    /// They do not match.
    #[default]
    Drop,
    /// They match and wait.
    Hold,
}

/// Which events a webhook wants: an exact name, a prefix followed by a star, or a star alone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventPattern {
    /// This name.
    Exact(EventName),
    /// Every name that starts with this text; empty for all.
    Prefix(String),
}

impl EventPattern {
    /// Reads a pattern: `COURSE_ENROLLMENT`, `COURSE_*` or `*`.
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let rule = "must be an event name matching [A-Za-z][A-Za-z0-9_.:-]{0,127}, such a name's beginning followed by *, or *";
        match text.strip_suffix('*') {
            Some("") => Ok(Self::Prefix(String::new())),
            Some(prefix) => EventName::new(prefix)
                .map(|name| Self::Prefix(name.as_str().to_owned()))
                .map_err(|_| rule),
            None => EventName::new(text).map(Self::Exact).map_err(|_| rule),
        }
    }

    /// Whether the pattern covers this name.
    pub fn matches(&self, name: &EventName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Prefix(prefix) => name.as_str().starts_with(prefix),
        }
    }
}

impl fmt::Display for EventPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(formatter),
            Self::Prefix(prefix) => write!(formatter, "{prefix}*"),
        }
    }
}

impl fmt::Debug for EventPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pattern_prints_as_it_was_written(text in "[A-Za-z][A-Za-z0-9_.:-]{0,20}\\*?|\\*") {
            prop_assert_eq!(EventPattern::parse(&text).unwrap().to_string(), text);
        }

        #[test]
        fn a_prefix_pattern_matches_exactly_the_names_that_start_with_it(prefix in "[A-Z]{1,3}", name in "[A-Z]{1,6}") {
            let pattern = EventPattern::parse(&format!("{prefix}*")).unwrap();
            prop_assert_eq!(pattern.matches(&EventName::new(&name).unwrap()), name.starts_with(&prefix));
        }
    }

    #[test]
    fn a_star_stands_only_at_the_end() {
        for bad in ["", "**", "*A", "A*B", "A**", " *", "A *"] {
            assert!(EventPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
