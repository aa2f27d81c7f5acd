//! Webhooks. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::batching::Batching;
use super::event_type::Category;
use super::order::Order;
use crate::id::{AccountId, EventName, Uid, WebhookId};
use crate::model::operational;
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
    /// In which order events go.
    pub order: Order,
    /// How fast requests may go; `None` means without limit.
    pub rate_limit: Option<RateLimit>,
    /// When failed deliveries are tried again.
    pub retry: retry::Policy,
    /// Extra headers of every request: name (lower case) and value.
    pub headers: Vec<(String, String)>,
    /// Free key/value pairs.
    pub labels: BTreeMap<String, String>,
    /// The last time that the system switched it off; it may be over.
    pub suspension: Option<Suspension>,
}

impl Webhook {
    /// Whether events of this name go to the webhook now (or, with [`WhenInactive::Hold`], wait for it).
    pub fn wants(&self, name: &EventName) -> bool {
        self.takes_events() && self.event_types.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether events go to the webhook at all (or, with [`WhenInactive::Hold`], wait for it).
    pub fn takes_events(&self) -> bool {
        self.is_serving() || self.when_inactive == WhenInactive::Hold
    }

    /// Whether requests may be made: neither its owner nor the system has switched it off.
    pub fn is_serving(&self) -> bool {
        self.active && self.suspended().is_none()
    }

    /// The suspension that is in force.
    pub fn suspended(&self) -> Option<&Suspension> {
        self.suspension
            .as_ref()
            .filter(|suspension| suspension.end_time.is_none_or(|end| end < suspension.time))
    }

    /// Whether events of this category are gathered into batches. Those of an ordered webhook are not: they would hold up what follows them.
    pub fn gathers(&self, category: Category) -> bool {
        !self.order.is_kept() && self.batching.gathers(category)
    }

    /// The place that a secret of this webhook is sealed for (see [`crate::secret::Keyring::seal`]). `field` is one of [`super::auth::place`], or
    /// `signing/` and the secret's id.
    pub fn seal_context(account: &AccountId, uid: &Uid, field: &str) -> String {
        format!("webhook|{account}|{uid}|{field}")
    }
}

/// A time that the system switched a webhook off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspension {
    /// Why: stable, upper-case. One of those of [`suspended`], or of a later release.
    pub reason: String,
    /// When.
    pub time: Timestamp,
    /// What happened, for people.
    pub detail: String,
    /// When the webhook was last put back; the suspension is in force if that was before [`Suspension::time`], or never.
    pub end_time: Option<Timestamp>,
}

impl Suspension {
    /// A suspension that begins now. It is later than the end of the one before, whatever the clocks of two machines say.
    pub fn begin(before: Option<&Self>, reason: &str, detail: &str, now: Timestamp) -> Self {
        let over = before.and_then(|before| before.end_time);
        Self {
            reason: reason.to_owned(),
            time: over.map_or(now, |over| now.max(over + Duration::from_millis(1))),
            detail: if detail.is_empty() { reason } else { detail }.to_owned(),
            end_time: over,
        }
    }

    /// The suspension, over by now.
    #[must_use]
    pub fn ended(self, now: Timestamp) -> Self {
        Self {
            end_time: Some(now.max(self.time)),
            ..self
        }
    }
}

/// Why webhooks are suspended.
pub mod suspended {
    /// The receiver answered 410.
    pub const GONE: &str = "GONE";
    /// All attempts failed for too long.
    pub const FAILING: &str = "FAILING";
}

/// How fast requests may go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit {
    per_second: f64,
    burst: Option<NonZeroU32>,
}

impl RateLimit {
    /// Requests a second that can be asked for: one in 100 seconds, up to what a shard can do.
    pub const PER_SECOND: RangeInclusive<f64> = 0.01..=10_000.0;

    /// Requests at once after a pause that can be asked for.
    pub const BURST: RangeInclusive<u32> = 1..=10_000;

    /// A limit; no burst means a second's worth. `None` if a number is out of its range.
    pub fn new(per_second: f64, burst: Option<NonZeroU32>) -> Option<Self> {
        let default = Self {
            per_second,
            burst: None,
        }
        .burst();
        let limit = Self {
            per_second,
            // So that a later release may change the default for those who chose nothing.
            burst: burst.filter(|burst| *burst != default),
        };
        // NaN is in no range.
        let valid = Self::PER_SECOND.contains(&per_second) && Self::BURST.contains(&limit.burst().get());
        valid.then_some(limit)
    }

    /// Requests a second, on average.
    pub const fn per_second(&self) -> f64 {
        self.per_second
    }

    /// How many requests may go at once after a pause: as asked for, or a second's worth.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 10,000.
    pub fn burst(&self) -> NonZeroU32 {
        let default = NonZeroU32::new(self.per_second as u32).unwrap_or(NonZeroU32::MIN);
        self.burst.unwrap_or(default)
    }

    /// The burst, if it is not the default.
    pub const fn chosen_burst(&self) -> Option<NonZeroU32> {
        self.burst
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
    /// Every name that starts with this text; empty for all. It covers no [`operational`] events unless it says so.
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
            Self::Prefix(prefix) => {
                name.as_str().starts_with(prefix)
                    && (prefix.starts_with(operational::PREFIX) || !operational::is_operational(name))
            }
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
    fn operational_events_go_only_to_those_who_name_them() {
        let name = EventName::new(operational::WEBHOOK_SUSPENDED).unwrap();
        let covers = |text: &str| EventPattern::parse(text).unwrap().matches(&name);
        for text in ["*", "p*", "postrider*"] {
            assert!(!covers(text), "{text}");
        }
        for text in ["postrider.*", "postrider.webhook.*", "postrider.webhook.suspended"] {
            assert!(covers(text), "{text}");
        }
        assert!(
            EventPattern::parse("p*")
                .unwrap()
                .matches(&EventName::new("postrider").unwrap())
        );
    }

    #[test]
    fn a_rate_limit_has_a_range_and_a_burst_of_its_own_if_none_is_given() {
        let burst =
            |per_second, burst| RateLimit::new(per_second, NonZeroU32::new(burst)).map(|limit| limit.burst().get());
        assert_eq!(burst(0.01, 0), Some(1));
        assert_eq!(burst(2.9, 0), Some(2));
        assert_eq!(burst(10_000.0, 0), Some(10_000));
        assert_eq!(burst(1.0, 10_000), Some(10_000));
        for bad in [0.0, 0.0099, -1.0, 10_000.1, f64::NAN, f64::INFINITY] {
            assert_eq!(burst(bad, 0), None, "{bad}");
        }
        assert_eq!(burst(1.0, 10_001), None);
    }

    #[test]
    fn a_star_stands_only_at_the_end() {
        for bad in ["", "**", "*A", "A*B", "A**", " *", "A *"] {
            assert!(EventPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
