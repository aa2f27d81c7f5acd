//! Makes attempts over HTTP: request ▸ auth ▸ transport ▸ verdict.

use std::sync::Arc;

use async_trait::async_trait;
use http::header::RETRY_AFTER;
use postrider_common::egress::Policy;
use postrider_common::model::webhook::DEFAULT_TIMEOUT;
use postrider_common::net::{SharedDialer, SharedResolver};
use postrider_common::secret::Keyring;
use postrider_common::time::{SharedClock, Timestamp};
use tokio::time::Instant;

use super::evidence::{self, Evidence, Made, Said};
use super::prepared::{Cache, Prepared, Unprepared};
use super::redaction::Secrets;
use super::{Attempt, Outcome, Reason, Sender, request, retry_after, verdict};
use crate::auth::Token;
use crate::transport::{Answer, Failure, Keep, Kept, Limits, Message, Trace, Transport};

/// The status by which a receiver refuses an access token (RFC 6750, section 3.1).
const UNAUTHORIZED: u16 = 401;

/// The most that is read of an answer that may say which events were not taken, in bytes: a thousand ids of the longest kind.
const PARTIAL_BYTES: usize = 192 << 10;

/// What a sender is made of.
pub struct Deps {
    /// Dials vetted addresses.
    pub dialer: SharedDialer,
    /// Resolves host names, for the guard to judge.
    pub resolver: SharedResolver,
    /// What may be dialled.
    pub policy: Arc<Policy>,
    /// Opens the webhooks' secrets.
    pub keyring: Arc<Keyring>,
    /// Gives attempts their timestamps.
    pub clock: SharedClock,
    /// How receivers prove who they are (see [`crate::transport::tls::client_config`]).
    pub tls: Arc<rustls::ClientConfig>,
    /// How much may be under way.
    pub limits: Limits,
}

/// The [`Sender`] of the real agent.
pub struct HttpSender {
    transport: Transport,
    prepared: Cache,
    policy: Arc<Policy>,
    keyring: Arc<Keyring>,
    clock: SharedClock,
}

impl HttpSender {
    /// A sender without connections. Must be called within a tokio runtime: connections live on its own tasks, which end when it is dropped.
    pub fn new(deps: Deps) -> Self {
        Self {
            transport: Transport::new(
                deps.dialer,
                deps.resolver,
                Arc::clone(&deps.policy),
                deps.tls,
                deps.limits,
            ),
            prepared: Cache::default(),
            policy: deps.policy,
            keyring: deps.keyring,
            clock: deps.clock,
        }
    }

    async fn attempt(&self, attempt: &Attempt, notes: &mut Notes) -> Result<Outcome, Outcome> {
        let webhook = &attempt.webhook;
        let prepared = self
            .prepared
            .get(webhook, &self.transport, &self.policy, &self.keyring, notes.start_time)
            .map_err(|why| notes.unprepared(&why))?;
        let _permit = self.transport.admit(&prepared.target).await?;

        notes.begin(self.clock.now());
        let timeout = verdict::timeout(webhook.timeout.unwrap_or(DEFAULT_TIMEOUT), attempt.events.len());
        let deadline = notes.start + timeout;
        let credentials = &prepared.credentials;
        let token = credentials.token(&self.transport, deadline, &mut notes.trace).await?;
        // Only now: a request that had to wait for its turn or its token is not older than it says.
        let now = self.clock.now();
        let message = message(&prepared, attempt, now, token.as_deref()).map_err(|why| notes.unprepared(&why))?;
        notes.signers = credentials.signers(now);

        // Of several events the receiver may take some only, and say so in the body.
        let several = attempt.events.len() > 1;
        let keep = Keep {
            of_success: if several { PARTIAL_BYTES } else { 0 },
            of_failure: evidence::BODY_BYTES,
        };
        let posted = self
            .transport
            .post(&prepared.target, message, keep, deadline, &mut notes.trace)
            .await;
        let answer = posted.inspect_err(|_| notes.hide(&credentials.secrets(token.as_deref())))?;
        notes.status = Some(answer.status);
        if let Some(token) = token.as_ref().filter(|_| answer.status == UNAUTHORIZED) {
            credentials.refused(token);
        }
        let outcome = self.judge(&answer, attempt);
        if !matches!(outcome, Outcome::Delivered { .. }) {
            notes.said(&answer, &credentials.secrets(token.as_deref()));
        }
        Ok(outcome)
    }

    fn judge(&self, answer: &Answer, attempt: &Attempt) -> Outcome {
        let wait = answer
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| retry_after::parse(value.as_bytes(), self.clock.now()));
        let outcome = verdict::verdict(answer.status, wait);
        if let Outcome::Delivered { status } = outcome
            && answer.body.whole
        {
            let sent = attempt.events.iter().map(|sent| sent.event.id.as_str());
            let failed = verdict::not_taken(&answer.body.bytes, sent);
            if !failed.is_empty() {
                return Outcome::Partial { status, failed };
            }
        }
        outcome
    }
}

/// The request of an attempt at `now`.
fn message(
    prepared: &Prepared,
    attempt: &Attempt,
    now: Timestamp,
    token: Option<&Token>,
) -> Result<Message, Unprepared> {
    let webhook = &attempt.webhook;
    let traceparent = attempt.events.iter().find_map(|sent| sent.event.traceparent.as_deref());
    let mut headers = prepared.headers.clone();
    let body = request::body(webhook.payload_format, &webhook.account, &attempt.events, &mut headers)?;
    request::add_attempt_headers(&mut headers, &attempt.id, attempt.number, now, traceparent)?;
    prepared
        .credentials
        .apply(&mut headers, &attempt.id, now, &body, token)?;
    Ok(Message { headers, body })
}

/// What is noted of an attempt while it is made.
struct Notes {
    start_time: Timestamp,
    start: Instant,
    trace: Trace,
    signers: Vec<Arc<str>>,
    status: Option<u16>,
    said: Option<Box<Said>>,
}

impl Notes {
    fn new(now: Timestamp) -> Self {
        Self {
            start_time: now,
            start: Instant::now(),
            trace: Trace::default(),
            signers: Vec::new(),
            status: None,
            said: None,
        }
    }

    /// Its turn has come: what it waited for that was no one's doing but ours.
    fn begin(&mut self, now: Timestamp) {
        self.start_time = now;
        self.start = Instant::now();
    }

    fn unprepared(&mut self, why: &Unprepared) -> Outcome {
        self.trace.explain(why);
        Outcome::from(why)
    }

    fn said(&mut self, answer: &Answer, secrets: &Secrets) {
        let Kept { bytes, whole } = &answer.body;
        let body = bytes.get(..evidence::BODY_BYTES).unwrap_or(bytes);
        let cut = !whole || body.len() < bytes.len();
        let said = Said::new(&answer.headers, evidence::HEADER_BYTES, body, cut, secrets);
        self.said = Some(Box::new(said));
    }

    /// Hides what a receiver may have repeated by breaking the protocol.
    fn hide(&mut self, secrets: &Secrets) {
        if let Some(detail) = &mut self.trace.detail {
            *detail = secrets.hide(detail.as_bytes(), false);
        }
    }

    fn made(mut self, outcome: Outcome) -> Made {
        let evidence = Evidence {
            start_time: self.start_time,
            duration: self.start.elapsed(),
            phases: self.trace.phases(),
            address: self.trace.address,
            version: self.trace.version,
            status: self.status,
            said: self.said,
            signers: self.signers,
            detail: self.trace.detail,
        };
        Made { outcome, evidence }
    }
}

#[async_trait]
impl Sender for HttpSender {
    async fn send(&self, attempt: Attempt) -> Made {
        let mut notes = Notes::new(self.clock.now());
        let outcome = self.attempt(&attempt, &mut notes).await;
        notes.made(outcome.unwrap_or_else(|outcome| outcome))
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Receiver(reason) => failed(reason),
            Failure::Local(why) => Self::NotMade { why: why.to_string() },
        }
    }
}

impl From<&Unprepared> for Outcome {
    fn from(why: &Unprepared) -> Self {
        match why {
            Unprepared::Url(_) => failed(Reason::BlockedAddress),
            Unprepared::TokenUrl(_) => failed(Reason::Token),
            // No request can ever be made of it, so waiting would be for ever.
            Unprepared::Target(_) | Unprepared::Header(_) => failed(Reason::Protocol),
            Unprepared::Secret(_) | Unprepared::NoLiveSecret(_) => Self::NotMade { why: why.to_string() },
        }
    }
}

const fn failed(reason: Reason) -> Outcome {
    Outcome::Failed {
        reason,
        status: None,
        retry_after: None,
    }
}
