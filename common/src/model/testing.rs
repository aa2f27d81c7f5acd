//! Tests of webhooks: what is asked of an agent, and what it saw. Pure.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;

use crate::id::AgentId;
use crate::model::segment::Event;
use crate::model::webhook::Webhook;
use crate::time::Timestamp;

/// How long a request may wait for its turn to be made.
pub const TURN: Duration = Duration::from_secs(5);

/// How long is waited for the body of a test's answer once its head is there.
pub const BODY_PATIENCE: Duration = Duration::from_secs(2);

/// A test: one event for one webhook, which need not be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// The webhook, its secrets sealed.
    pub webhook: Webhook,
    /// The event, with its `eventInfo`.
    pub event: Event,
}

/// What an agent saw of a test. Holds no secrets of the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    /// The agent.
    pub agent: AgentId,
    /// What became of it.
    pub outcome: TestOutcome,
    /// In words, why there was no answer.
    pub detail: String,
    /// When it began.
    pub start_time: Timestamp,
    /// How long it took in all.
    pub duration: Duration,
    /// How long its parts took.
    pub phases: Phases,
    /// The addresses of the host.
    pub resolved: Vec<IpAddr>,
    /// The address that the request went to, or that was dialled last.
    pub address: Option<SocketAddr>,
    /// The TLS handshake.
    pub tls: Option<TlsSeen>,
    /// What the token endpoint did, in words.
    pub token: String,
    /// The request.
    pub sent: Option<Sent>,
    /// The answer.
    pub answered: Option<Answered>,
}

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TestOutcome {
    /// A 2xx.
    Delivered,
    /// The receiver did not take it: the stable reason.
    Failed(String),
    /// The agent could not try: why.
    NotMade(String),
}

/// How long the parts of an attempt took; `None` for a part that it did not come to, or that a connection in use spared it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Phases {
    /// Asking for the addresses of the name; an address in the URL needs none.
    pub resolve: Option<Duration>,
    /// Opening the TCP connection.
    pub connect: Option<Duration>,
    /// The TLS handshake.
    pub tls: Option<Duration>,
    /// From the request's first byte to the end of the answer's head.
    pub first_byte: Option<Duration>,
}

/// A TLS handshake, as far as it got.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsSeen {
    /// Such as `TLSv1.3`; empty if the handshake failed.
    pub version: String,
    /// Such as `TLS13_AES_256_GCM_SHA384`; empty if the handshake failed.
    pub cipher_suite: String,
    /// The protocol agreed on; empty if none was.
    pub alpn: String,
    /// The receiver's own certificate, DER; empty if none was shown.
    pub leaf: Bytes,
    /// Why it was not accepted; empty if it was.
    pub verification_error: String,
    /// The receiver asked for a client certificate.
    pub client_certificate_requested: bool,
}

/// A request, without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Its headers, in their order.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Bytes,
    /// What stands before the body in the signed text; empty without a signature.
    pub signed_prefix: String,
    /// Ids of the secrets that signed.
    pub signers: Vec<String>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The HTTP status.
    pub status: u16,
    /// Such as `HTTP/1.1`.
    pub version: String,
    /// Headers and body.
    pub said: Said,
}

/// What an answer said. Bytes that are no text are replaced by U+FFFD, and the webhook's own secrets by `[redacted]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its headers, in their order.
    pub headers: Vec<(String, String)>,
    /// There were more headers.
    pub headers_cut: bool,
    /// The beginning of its body.
    pub body: String,
    /// There was more of the body, or it broke off.
    pub body_cut: bool,
}
