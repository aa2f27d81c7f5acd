//! Makes attempts over HTTP: request ▸ auth ▸ transport ▸ verdict.

use std::sync::Arc;

use async_trait::async_trait;
use http::header::RETRY_AFTER;
use postrider_common::egress::Policy;
use postrider_common::id::AgentId;
use postrider_common::model::testing::{Test, Transcript};
use postrider_common::model::webhook::{DEFAULT_TIMEOUT, Webhook};
use postrider_common::net::{SharedDialer, SharedResolver};
use postrider_common::secret::Keyring;
use postrider_common::time::{SharedClock, Timestamp};

use super::evidence::Made;
use super::notes::Notes;
use super::prepared::{Cache, Prepared, Unprepared};
use super::{Attempt, Outcome, Reason, Sender, Sent, request, retry_after, verdict};
use crate::auth::Token;
use crate::transport::tls::Tls;
use crate::transport::{Answer, Counters, Failure, Limits, Message, Trace, Transport};

/// The status by which a receiver refuses an access token (RFC 6750, section 3.1).
const UNAUTHORIZED: u16 = 401;

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
    pub tls: Tls,
    /// How much may be under way.
    pub limits: Limits,
    /// What is counted.
    pub counters: Arc<Counters>,
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
                deps.counters,
            ),
            prepared: Cache::default(),
            policy: deps.policy,
            keyring: deps.keyring,
            clock: deps.clock,
        }
    }

    async fn attempt(&self, attempt: &Attempt, notes: &mut Notes) -> Result<Outcome, Outcome> {
        let webhook = &attempt.webhook;
        let prepared = self.prepare(webhook, notes).map_err(|why| notes.unprepared(&why))?;
        let _permit = match self.transport.try_admit(&prepared.target) {
            Some(permit) => permit,
            None => {
                let permit = self.transport.admit(&prepared.target).await?;
                notes.begin(self.clock.now());
                permit
            }
        };
        let timeout = verdict::timeout(webhook.timeout.unwrap_or(DEFAULT_TIMEOUT), attempt.events.len());
        let deadline = notes.start + timeout;
        let credentials = &prepared.credentials;
        let token = credentials.token(&self.transport, deadline, &mut notes.trace).await;
        let token = token.inspect_err(|_| notes.hide(&credentials.secrets(None)))?;
        // A request that had to wait for its turn or its token is not older than it says.
        let now = if token.is_some() {
            self.clock.now()
        } else {
            notes.start_time
        };
        let message = message(&prepared, attempt, now, token.as_deref()).map_err(|why| notes.unprepared(&why))?;
        notes.signers = credentials.signers(now);
        notes.sending(&prepared.target, credentials, attempt, now, &message);

        let keep = notes.keep(attempt.events.len());
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
        if !matches!(outcome, Outcome::Delivered { .. }) || notes.is_close_up() {
            notes.said(&answer, &credentials.secrets(token.as_deref()));
        }
        Ok(outcome)
    }

    fn prepare(&self, webhook: &Arc<Webhook>, notes: &Notes) -> Result<Arc<Prepared>, Unprepared> {
        let (transport, policy, keyring) = (&self.transport, &self.policy, &self.keyring);
        if notes.is_close_up() {
            // With nothing left from before: also a token is asked for anew.
            return Prepared::new(webhook, transport, policy, keyring, notes.start_time).map(Arc::new);
        }
        self.prepared.get(webhook, transport, policy, keyring, notes.start_time)
    }

    fn judge(&self, answer: &Answer, attempt: &Attempt) -> Outcome {
        let wait = answer
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| retry_after::parse(value.as_bytes(), self.clock.now()));
        let outcome = verdict::verdict(answer.status, wait);
        // Of several events the receiver may have taken some only, and say so in the body.
        if let Outcome::Delivered { status } = outcome
            && attempt.events.len() > 1
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
    let mut headers = request::attempt_headers(&prepared.headers);
    let body = request::body(webhook.payload_format, &webhook.account, &attempt.events, &mut headers)?;
    request::add_attempt_headers(
        &mut headers,
        &attempt.id,
        attempt.number,
        attempt.sequence,
        now,
        traceparent,
    )?;
    prepared
        .credentials
        .apply(&mut headers, &attempt.id, now, &body, token)?;
    Ok(Message { headers, body })
}

#[async_trait]
impl Sender for HttpSender {
    async fn send(&self, attempt: Attempt) -> Made {
        let mut notes = Notes::new(self.clock.now(), Trace::default());
        let outcome = self.attempt(&attempt, &mut notes).await;
        notes.made(outcome.unwrap_or_else(|outcome| outcome))
    }
}

impl HttpSender {
    /// Tries a webhook as [`Sender::send`] does, on a connection of its own, and tells all there is to see of it as `agent`.
    pub async fn test(&self, agent: &AgentId, test: Test) -> Transcript {
        let Test { webhook, event } = test;
        let attempt = Attempt {
            webhook: Arc::new(webhook),
            id: event.id.shared(),
            events: vec![Sent {
                event_info: event.event_info.clone().unwrap_or_default(),
                event: Arc::new(event),
            }],
            number: 1,
            sequence: None,
        };
        let mut notes = Notes::new(self.clock.now(), Trace::close_up());
        let outcome = self.attempt(&attempt, &mut notes).await;
        notes.transcript(agent, outcome.unwrap_or_else(|outcome| outcome))
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
