//! What is noted of an attempt while it is made, and what becomes of the notes: evidence, or the transcript of a test.

use std::sync::Arc;

use http::{HeaderValue, Version};
use postrider_common::id::AgentId;
use postrider_common::model::testing::{self, Answered, Sent, TestOutcome, Transcript};
use postrider_common::time::Timestamp;
use tokio::time::Instant;

use super::evidence::{self, Evidence, Made, Said};
use super::prepared::Unprepared;
use super::redaction::{REDACTED, Secrets};
use super::{Attempt, Outcome};
use crate::auth::Credentials;
use crate::transport::{Answer, BODY_PATIENCE, Keep, Kept, Message, Target, Trace};

/// The most that is read of an answer that may say which events were not taken, in bytes: a thousand ids of the longest kind.
const PARTIAL_BYTES: usize = 192 << 10;

/// How much of an answer's body a test shows, in bytes.
const TEST_BODY_BYTES: usize = 64 << 10;

/// How many bytes of names and values of an answer's headers a test shows.
const TEST_HEADER_BYTES: usize = 16 << 10;

/// Notes of one attempt.
pub(super) struct Notes {
    pub(super) start_time: Timestamp,
    pub(super) start: Instant,
    pub(super) trace: Trace,
    pub(super) signers: Vec<Arc<str>>,
    pub(super) status: Option<u16>,
    said: Option<Box<Said>>,
    sent: Option<Box<Sent>>,
}

impl Notes {
    pub(super) fn new(now: Timestamp, trace: Trace) -> Self {
        Self {
            start_time: now,
            start: Instant::now(),
            trace,
            signers: Vec::new(),
            status: None,
            said: None,
            sent: None,
        }
    }

    /// Whether everything is looked at.
    pub(super) const fn is_close_up(&self) -> bool {
        self.trace.close_up.is_some()
    }

    /// Its turn has come: what it waited for that was no one's doing but ours.
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.start_time = now;
        self.start = Instant::now();
    }

    pub(super) fn unprepared(&mut self, why: &Unprepared) -> Outcome {
        self.trace.explain(why);
        Outcome::from(why)
    }

    /// How much of the answer to a request of so many events is kept.
    pub(super) const fn keep(&self, events: usize) -> Keep {
        if self.is_close_up() {
            return Keep {
                of_success: TEST_BODY_BYTES,
                of_failure: TEST_BODY_BYTES,
                patience: testing::BODY_PATIENCE,
            };
        }
        Keep {
            of_success: if events > 1 { PARTIAL_BYTES } else { 0 },
            of_failure: evidence::BODY_BYTES,
            patience: BODY_PATIENCE,
        }
    }

    /// Notes what is about to be sent, if everything is looked at.
    pub(super) fn sending(
        &mut self,
        target: &Target,
        credentials: &Credentials,
        attempt: &Attempt,
        now: Timestamp,
        message: &Message,
    ) {
        if !self.is_close_up() {
            return;
        }
        let text = |value: &HeaderValue| {
            // A signature is marked as a secret too, so that no log shows it; but it gives nothing away.
            if value.is_sensitive() && !matches!(credentials, Credentials::Signature(_)) {
                REDACTED.to_owned()
            } else {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            }
        };
        let framing = [
            ("host".to_owned(), text(target.authority())),
            ("content-length".to_owned(), message.body.len().to_string()),
        ];
        let ours = message
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), text(value)));
        let signed_prefix = if self.signers.is_empty() {
            String::new()
        } else {
            format!("{}.{}.", attempt.id, now.as_seconds())
        };
        self.sent = Some(Box::new(Sent {
            headers: framing.into_iter().chain(ours).collect(),
            body: message.body.clone(),
            signed_prefix,
            signers: self.signers.iter().map(ToString::to_string).collect(),
        }));
    }

    pub(super) fn said(&mut self, answer: &Answer, secrets: &Secrets) {
        let (header_bytes, body_bytes) = if self.is_close_up() {
            (TEST_HEADER_BYTES, TEST_BODY_BYTES)
        } else {
            (evidence::HEADER_BYTES, evidence::BODY_BYTES)
        };
        let Kept { bytes, whole } = &answer.body;
        let body = bytes.get(..body_bytes).unwrap_or(bytes);
        let cut = !whole || body.len() < bytes.len();
        let said = evidence::said(&answer.headers, header_bytes, body, cut, secrets);
        self.said = Some(Box::new(said));
    }

    /// Hides what a receiver may have repeated by breaking the protocol.
    pub(super) fn hide(&mut self, secrets: &Secrets) {
        let token = self
            .trace
            .close_up
            .as_mut()
            .and_then(|close_up| close_up.token.as_mut());
        for text in self.trace.detail.as_mut().into_iter().chain(token) {
            *text = secrets.hide(text.as_bytes(), false);
        }
    }

    pub(super) fn made(mut self, outcome: Outcome) -> Made {
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

    pub(super) fn transcript(mut self, agent: &AgentId, outcome: Outcome) -> Transcript {
        let duration = self.start.elapsed();
        let close_up = self.trace.close_up.take().unwrap_or_default();
        let version = self.trace.version;
        let answered = self.status.zip(self.said).map(|(status, said)| Answered {
            status,
            version: version.map_or_else(String::new, spelt),
            said: *said,
        });
        Transcript {
            agent: agent.clone(),
            outcome: match outcome {
                Outcome::Delivered { .. } | Outcome::Partial { .. } => TestOutcome::Delivered,
                Outcome::Failed { reason, .. } => TestOutcome::Failed(reason.as_str().to_owned()),
                Outcome::NotMade { why } => TestOutcome::NotMade(why),
            },
            phases: self.trace.phases(),
            detail: self.trace.detail.unwrap_or_default(),
            start_time: self.start_time,
            duration,
            tls: close_up.tls(),
            resolved: close_up.resolved,
            address: self.trace.address,
            token: close_up.token.unwrap_or_default(),
            sent: self.sent.map(|sent| *sent),
            answered,
        }
    }
}

fn spelt(version: Version) -> String {
    match version {
        Version::HTTP_2 => "HTTP/2".to_owned(),
        other => format!("{other:?}"),
    }
}
