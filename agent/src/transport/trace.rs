//! What is seen of one exchange on its way, as far as it gets: kept outside the future that a deadline may cut.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use postrider_common::model::testing::TlsSeen;
use tokio::time::Instant;

use super::failure::Failure;
use super::observer::Observer;
use crate::attempt::Reason;
use crate::attempt::evidence::Phases;

/// The longest description of a failure, in bytes; receivers have a hand in some.
const MAX_DETAIL_BYTES: usize = 512;

/// A part of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Asking for the addresses of a name.
    Resolve,
    /// Opening a TCP connection, to one address after the other.
    Connect,
    /// The TLS handshake.
    Tls,
    /// From the request's first byte to the end of the answer's head.
    Answer,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Trace {
    phases: Phases,
    under_way: Option<(Phase, Instant)>,
    /// The address that was dialled last, or that the reused connection goes to.
    pub address: Option<SocketAddr>,
    /// What the answer was spoken in.
    pub version: Option<Version>,
    /// In words, why there was no answer.
    pub detail: Option<String>,
    /// What else is looked at, where everything is. It takes a connection of its own, and gives nothing to other requests.
    pub close_up: Option<Box<CloseUp>>,
}

/// What is seen of an exchange only where somebody looks closely.
#[derive(Debug, Default)]
pub struct CloseUp {
    /// The addresses of the host.
    pub resolved: Vec<IpAddr>,
    /// What the token endpoint did, in words.
    pub token: Option<String>,
    observer: Option<Arc<Observer>>,
}

impl CloseUp {
    /// The TLS handshake, if it came to one.
    pub fn tls(&self) -> Option<TlsSeen> {
        self.observer.as_ref().map(|observer| observer.seen())
    }
}

impl Trace {
    /// A trace of everything there is to see.
    pub fn close_up() -> Self {
        Self {
            close_up: Some(Box::default()),
            ..Self::default()
        }
    }

    /// A trace of another exchange, looked at as closely as this one.
    pub fn beside(&self) -> Self {
        if self.close_up.is_some() {
            Self::close_up()
        } else {
            Self::default()
        }
    }

    /// Notes who looks on while TLS is spoken.
    pub(super) fn observed_by(&mut self, observer: &Arc<Observer>) {
        if let Some(close_up) = &mut self.close_up {
            close_up.observer = Some(Arc::clone(observer));
        }
    }

    /// A phase begins; the one before is over.
    pub(super) fn begin(&mut self, phase: Phase) {
        let now = Instant::now();
        self.end(now);
        self.under_way = Some((phase, now));
    }

    /// The answer's head is here.
    pub(super) fn answered(&mut self, version: Version) {
        self.end(Instant::now());
        self.version = Some(version);
    }

    fn end(&mut self, now: Instant) {
        let Some((phase, start)) = self.under_way.take() else {
            return;
        };
        let took = match phase {
            Phase::Resolve => &mut self.phases.resolve,
            Phase::Connect => &mut self.phases.connect,
            Phase::Tls => &mut self.phases.tls,
            Phase::Answer => &mut self.phases.first_byte,
        };
        *took = Some(took.unwrap_or(Duration::ZERO) + (now - start));
    }

    /// How long each phase took; one that was cut, until now.
    pub fn phases(&mut self) -> Phases {
        if self.under_way.is_some() {
            self.end(Instant::now());
        }
        self.phases
    }

    /// Notes why an exchange failed.
    pub(super) fn fail(&mut self, failure: Failure, detail: impl Display) -> Failure {
        self.explain(detail);
        failure
    }

    /// Notes in words why there is no answer.
    pub fn explain(&mut self, detail: impl Display) {
        let mut detail = detail.to_string();
        detail.truncate(detail.floor_char_boundary(MAX_DETAIL_BYTES));
        self.detail = Some(detail);
    }

    /// The failure of an exchange that was cut at its deadline.
    pub(super) fn late(&mut self) -> Failure {
        let doing = match self.under_way {
            Some((Phase::Resolve, _)) => "the name was being resolved",
            Some((Phase::Connect, _)) => "the connection was being opened",
            Some((Phase::Tls, _)) => "the TLS handshake was under way",
            Some((Phase::Answer, _)) => "the request was sent, or being sent",
            None => "no connection was free",
        };
        self.fail(
            Failure::Receiver(Reason::Timeout),
            format_args!("the time was up: {doing}"),
        )
    }
}
