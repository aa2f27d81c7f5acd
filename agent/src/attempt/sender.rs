//! Makes attempts over HTTP: request ▸ auth ▸ transport ▸ verdict.

use std::sync::Arc;

use async_trait::async_trait;
use postrider_common::egress::Policy;
use postrider_common::model::webhook::DEFAULT_TIMEOUT;
use postrider_common::net::{SharedDialer, SharedResolver};
use postrider_common::secret::Keyring;
use postrider_common::time::SharedClock;
use tokio::time::Instant;

use super::prepared::{Cache, Unprepared};
use super::{Attempt, Outcome, Reason, Sender, request, retry_after, verdict};
use crate::transport::{Failure, Limits, Transport};

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

    async fn attempt(&self, attempt: Attempt) -> Result<Outcome, Outcome> {
        let webhook = &attempt.webhook;
        let prepared = self
            .prepared
            .get(webhook, &self.transport, &self.policy, &self.keyring, self.clock.now())
            .map_err(Outcome::from)?;
        let _permit = self.transport.admit(&prepared.target).await?;

        let timeout = verdict::timeout(webhook.timeout.unwrap_or(DEFAULT_TIMEOUT), attempt.events.len());
        let deadline = Instant::now() + timeout;
        let token = prepared.credentials.token(&self.transport, deadline).await?;
        // Only now: a request that had to wait for its turn or its token is not older than it says.
        let now = self.clock.now();
        let traceparent = attempt.events.iter().find_map(|sent| sent.event.traceparent.as_deref());
        let mut headers = prepared.headers.clone();
        let body = request::body(webhook.payload_format, &webhook.account, &attempt.events, &mut headers)
            .map_err(|error| Outcome::from(Unprepared::Header(error)))?;
        request::add_attempt_headers(&mut headers, &attempt.id, attempt.number, now, traceparent)
            .map_err(|error| Outcome::from(Unprepared::Header(error)))?;
        prepared
            .credentials
            .apply(&mut headers, &attempt.id, now, &body, token.as_deref())
            .map_err(|error| Outcome::NotMade { why: error.to_string() })?;

        // Of several events the receiver may take some only, and say so in the body.
        let keep = if attempt.events.len() > 1 { PARTIAL_BYTES } else { 0 };
        let (answer, said) = self
            .transport
            .post_keeping(&prepared.target, headers, body, keep, deadline)
            .await?;
        if let Some(token) = token.filter(|_| answer.status == UNAUTHORIZED) {
            prepared.credentials.refused(&token);
        }
        let wait = answer
            .retry_after
            .and_then(|value| retry_after::parse(value.as_bytes(), self.clock.now()));
        let outcome = verdict::verdict(answer.status, wait);
        if let Outcome::Delivered { status } = outcome {
            let failed = verdict::not_taken(&said, attempt.events.iter().map(|sent| sent.event.id.as_str()));
            if !failed.is_empty() {
                return Ok(Outcome::Partial { status, failed });
            }
        }
        Ok(outcome)
    }
}

#[async_trait]
impl Sender for HttpSender {
    async fn send(&self, attempt: Attempt) -> Outcome {
        self.attempt(attempt).await.unwrap_or_else(|outcome| outcome)
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

impl From<Unprepared> for Outcome {
    fn from(why: Unprepared) -> Self {
        match why {
            Unprepared::Url(_) => failed(Reason::BlockedAddress),
            Unprepared::TokenUrl(_) => failed(Reason::Token),
            // No request can ever be made of it, so waiting would be for ever.
            Unprepared::Target(_) | Unprepared::Header(_) => failed(Reason::Protocol),
            Unprepared::Secret(_) => Self::NotMade { why: why.to_string() },
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
