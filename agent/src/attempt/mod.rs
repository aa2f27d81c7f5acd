//! One attempt: one HTTP request for one delivery, and what became of it.
//!
//! request (headers, body) ▸ auth ▸ transport ▸ verdict. [`Sender`] is the whole of it; everything around decides *when* an attempt is made and what
//! follows from its [`Outcome`]. What it saw besides, its [`evidence::Evidence`], is for people.

pub mod evidence;
mod notes;
mod prepared;
pub mod redaction;
pub mod request;
pub mod retry_after;
pub mod sender;
pub mod verdict;

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use postrider_common::model::segment::Event;
use postrider_common::model::webhook::Webhook;

pub use self::evidence::{Evidence, Made};

/// What to send.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// To whom, by the configuration of this moment.
    pub webhook: Arc<Webhook>,
    /// The events, in order; one or more, all of the webhook's account.
    pub events: Vec<Sent>,
    /// The `webhook-id`: the event's id, or for several events the batch's.
    pub id: Arc<str>,
    /// Which attempt it is, from 1.
    pub number: u32,
    /// The event's number among those of the webhook, if they are numbered.
    pub sequence: Option<NonZeroU64>,
}

/// One event of an attempt.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The event.
    pub event: Arc<Event>,
    /// Its `eventInfo`: the publisher's, or the one made by the system.
    pub event_info: Arc<str>,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver took it: any 2xx.
    Delivered {
        /// The HTTP status.
        status: u16,
    },
    /// The receiver took some of several events.
    Partial {
        /// The HTTP status, a 2xx.
        status: u16,
        /// Ids of the events that it did not take; at least one of the attempt's.
        failed: BTreeSet<String>,
    },
    /// The receiver did not take it.
    Failed {
        /// Why.
        reason: Reason,
        /// The HTTP status, if there was an answer.
        status: Option<u16>,
        /// How long the receiver asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// Nothing can be said about the receiver: this agent could not make the attempt (no lease any more, no file descriptors, a secret
    /// that cannot be opened, name servers away). It does not count as an attempt.
    NotMade {
        /// Why, for the log.
        why: String,
    },
}

/// Why a receiver did not take a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// An answer other than 2xx that has no reason of its own here.
    Status,
    /// 3xx: redirects are not followed.
    Redirect,
    /// 410: the receiver wants no more.
    Gone,
    /// 429, or 503 with `Retry-After`: the receiver wants to be left alone for a while.
    Throttled,
    /// The receiver took some events of the request, not this one.
    Partial,
    /// No complete answer within the timeout.
    Timeout,
    /// The name does not resolve.
    NameNotFound,
    /// The address is forbidden.
    BlockedAddress,
    /// No connection: refused, unreachable, reset while connecting.
    Connect,
    /// TLS failed: certificate, protocol or handshake.
    Tls,
    /// The connection ended before the answer.
    Disconnected,
    /// The answer was not HTTP, or broke its rules or our limits.
    Protocol,
    /// No access token could be had (OAuth 2): nothing was sent.
    Token,
}

impl Reason {
    /// Stable, upper-case: what is stored, counted and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "STATUS",
            Self::Redirect => "REDIRECT",
            Self::Gone => "GONE",
            Self::Throttled => "THROTTLED",
            Self::Partial => "PARTIAL",
            Self::Timeout => "TIMEOUT",
            Self::NameNotFound => "NAME_NOT_FOUND",
            Self::BlockedAddress => "BLOCKED_ADDRESS",
            Self::Connect => "CONNECT",
            Self::Tls => "TLS",
            Self::Disconnected => "DISCONNECTED",
            Self::Protocol => "PROTOCOL",
            Self::Token => "TOKEN",
        }
    }
}

/// Makes attempts.
#[async_trait]
pub trait Sender: Send + Sync + 'static {
    /// Makes one attempt, within the webhook's timeout. Dropping the future cuts the connection.
    async fn send(&self, attempt: Attempt) -> Made;
}
