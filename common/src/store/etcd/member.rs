//! The members of the etcd cluster: connections of its own to each, one member in use until it fails.
//!
//! A channel balanced over all members never stops asking one that is dead. So calls stick to one member, and whoever sees it
//! fail moves everybody to the next.

use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{
    AuthClient, Channel, Client, ConnectOptions, Error, KvClient, LeaseClient, MaintenanceClient, WatchClient,
};
use tonic::transport::Endpoint;

use super::classify::{Failure, Kind, Sent, classify, code};
use super::session::Session;
use super::trouble::Task;
use super::{ConnectError, EtcdConfig};
use crate::net::SharedDialer;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

/// Pings on an otherwise silent connection; etcd cuts connections that are pinged more often than every 5 seconds.
const PING_EVERY: Duration = Duration::from_secs(6);

/// How long the answer to a ping may take.
const PING_ANSWER: Duration = Duration::from_secs(3);

/// The operating system's own probing, for what pings do not see.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Largest answer that is decoded: a page of 500 values of 64 KiB, and again as much.
pub(super) const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Bytes that one stream may have on the way: a segment or a page of a listing should not wait for a round trip.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;

/// Bytes that all streams of a connection may have on the way: all watches of an agent with full windows, so that one that is
/// not read does not stop the others.
const CONNECTION_WINDOW: u32 = 160 * 1024 * 1024;

/// Pause after all members were tried; it doubles with each round.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The clients of one member.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) kv: KvClient,
    pub(super) lease: LeaseClient,
    pub(super) maintenance: MaintenanceClient,
    /// On a connection of its own: watches that are not read must not slow down calls.
    pub(super) watch: WatchClient,
    /// Without a token: it gives them.
    auth: Arc<AuthClient>,
}

impl Member {
    async fn new(
        endpoint: &str,
        deadline: Duration,
        dialer: Option<&SharedDialer>,
        session: &Session,
    ) -> Result<Self, ConnectError> {
        let (calls, watches) = (
            channel(endpoint, deadline, dialer)?,
            channel(endpoint, deadline, dialer)?,
        );
        let auth = client(endpoint, Channel::Tonic(calls.clone())).await?;
        let calls = client(endpoint, session.attach(calls)).await?;
        let watches = client(endpoint, session.attach(watches)).await?;
        Ok(Self {
            auth: Arc::new(auth.auth_client()),
            kv: calls.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES),
            lease: calls.lease_client(),
            maintenance: calls.maintenance_client(),
            watch: watches.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES),
        })
    }
}

fn wrong(endpoint: &str, error: &dyn std::fmt::Display) -> ConnectError {
    ConnectError::Endpoint {
        endpoint: endpoint.to_owned(),
        why: error.to_string(),
    }
}

fn channel(
    endpoint: &str,
    deadline: Duration,
    dialer: Option<&SharedDialer>,
) -> Result<tonic::transport::Channel, ConnectError> {
    let tuned = Endpoint::from_shared(format!("http://{endpoint}"))
        .map_err(|error| wrong(endpoint, &error))?
        // Half, so that a call still has time for another member.
        .connect_timeout(deadline / 2)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(TCP_KEEP_ALIVE))
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    Ok(match dialer {
        None => tuned.connect_lazy(),
        Some(dialer) => {
            let address: SocketAddr = endpoint.parse().map_err(|error| wrong(endpoint, &error))?;
            let dialer = Arc::clone(dialer);
            tuned.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
                let dialer = Arc::clone(&dialer);
                async move { dialer.dial(address).await.map(|connection| TokioIo::new(connection.io)) }
            }))
        }
    })
}

async fn client(endpoint: &str, channel: Channel) -> Result<Client, ConnectError> {
    // Without a leader a member refuses at once instead of serving what is old.
    let options = ConnectOptions::new().with_require_leader(true);
    Client::from_channel(channel, Some(options))
        .await
        .map_err(|error| wrong(endpoint, &error))
}

/// All members.
pub(super) struct Members {
    all: Vec<Member>,
    current: AtomicUsize,
    deadline: Duration,
    session: Session,
    any_key: Vec<u8>,
}

/// A member in use, by its number.
pub(super) struct Current {
    pub(super) member: Member,
    number: usize,
}

impl Members {
    pub(super) async fn new(config: &EtcdConfig, dialer: Option<&SharedDialer>) -> Result<Self, ConnectError> {
        let session = Session::new(config.access.clone());
        let mut all = Vec::with_capacity(config.endpoints.len());
        for endpoint in &config.endpoints {
            all.push(Member::new(endpoint, config.deadline, dialer, &session).await?);
        }
        if all.is_empty() {
            return Err(ConnectError::NoEndpoints);
        }
        Ok(Self {
            all,
            current: AtomicUsize::new(0),
            deadline: config.deadline,
            session,
            any_key: match config.prefix.as_bytes() {
                [] => vec![0],
                prefix => prefix.to_vec(),
            },
        })
    }

    /// Whether calls are made as a user.
    pub(super) const fn has_user(&self) -> bool {
        self.session.has_user()
    }

    /// A key that the user may read: not every user may read every key.
    pub(super) fn any_key(&self) -> Vec<u8> {
        self.any_key.clone()
    }

    /// The member in use.
    fn current(&self) -> Option<Current> {
        let number = self.current.load(Ordering::Relaxed);
        let member = self.all.get(number % self.all.len().max(1))?.clone();
        Some(Current { member, number })
    }

    /// Leaves a member that failed. Of many that saw it fail, one moves on.
    pub(super) fn leave(&self, number: usize) {
        let next = number.wrapping_add(1);
        if self
            .current
            .compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
            && self.all.len() > 1
        {
            tracing::warn!(member = next % self.all.len(), "an etcd member failed; using another");
        }
    }

    /// Makes a call that does no harm when it is made twice: it is tried on one member after another until the deadline.
    pub(super) async fn read<T, F>(&self, call: impl Fn(Member) -> F) -> Result<(T, usize), Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let outcome = self.repeated(call).await;
        self.session.note(&outcome);
        outcome
    }

    /// The same, of what some releases of etcd let only root do: that is said once, and nothing else depends on it.
    pub(super) async fn maintain<T, F>(&self, task: Task, call: impl Fn(Member) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let outcome = self.repeated(call).await;
        self.session.note_task(task, &outcome);
        outcome.map(|(value, _)| value)
    }

    async fn repeated<T, F>(&self, call: impl Fn(Member) -> F) -> Result<(T, usize), Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        // With half the time for each, one member that is stopped does not use up all of it.
        let each = if self.all.len() > 1 {
            self.deadline / 2
        } else {
            self.deadline
        };
        self.attempts(each, |kind| matches!(kind, Kind::NotSent | Kind::MaybeApplied), call)
            .await
    }

    /// Makes a call that may be applied at most once: it is sent to another member only if it certainly was not sent.
    pub(super) async fn write<T, F>(&self, call: impl Fn(Member) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let outcome = self.attempts(self.deadline, |kind| kind == Kind::NotSent, call).await;
        self.session.note(&outcome);
        outcome.map(|(value, _)| value)
    }

    async fn attempts<T, F>(
        &self,
        each: Duration,
        may_repeat: impl Fn(Kind) -> bool,
        call: impl Fn(Member) -> F,
    ) -> Result<(T, usize), Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let end = Instant::now() + self.deadline;
        let (mut tried, mut pause) = (0, FIRST_PAUSE);
        loop {
            let Some(Current { member, number }) = self.current() else {
                return Err(late());
            };
            let outcome = self.as_user(&member, each, end, &call).await;
            let failure = match outcome {
                Ok(value) => return Ok((value, number)),
                Err(failure) => failure,
            };
            let kind = classify(&failure);
            if matches!(kind, Kind::NotSent | Kind::MaybeApplied) {
                self.leave(number);
            }
            tried += 1;
            let mut from = Instant::now();
            if tried % self.all.len() == 0 {
                from += pause;
                pause *= 2;
            }
            if !may_repeat(kind) || from >= end {
                return Err(failure);
            }
            tokio::time::sleep_until(from).await;
        }
    }

    /// Makes a call of one member with the token of the user, if there is one; once again with another token, if that one is over.
    async fn as_user<T, F>(
        &self,
        member: &Member,
        each: Duration,
        end: Instant,
        call: &impl Fn(Member) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut is_renewed = false;
        loop {
            let token = self.session.token(&member.auth, end).await?;
            let until = end.min(Instant::now() + each);
            let failure = match tokio::time::timeout_at(until, call(member.clone())).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => failure(error),
                Err(_) => late(),
            };
            if is_renewed || token.is_none() || classify(&failure) != Kind::TokenOver {
                return Err(failure);
            }
            self.session.renew(&member.auth, &token, end).await?;
            is_renewed = true;
        }
    }
}

/// What is reported of a call that was not answered.
pub(super) fn late() -> Failure {
    Failure {
        code: code::DEADLINE_EXCEEDED,
        message: "no answer in time".into(),
        sent: Sent::Maybe,
    }
}

/// What the client reports, in the words of `classify`.
pub(super) fn failure(error: Error) -> Failure {
    let (code, message, sent) = match error {
        Error::GRpcStatus(status) => {
            let mut source = status.source();
            let mut sent = Sent::Maybe;
            while let Some(error) = source {
                if error.is::<tonic::ConnectError>() {
                    sent = Sent::No;
                }
                source = error.source();
            }
            (status.code() as i32, status.message().to_owned(), sent)
        }
        // The client says so when it was answered that nothing is left of the lease's time.
        Error::LeaseKeepAliveError(why) => (code::NOT_FOUND, why, Sent::Maybe),
        other => (code::UNKNOWN, other.to_string(), Sent::Maybe),
    };
    Failure { code, message, sent }
}
