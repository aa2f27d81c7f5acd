//! HTTP to receivers: one guarded, bounded, pooled way out.
//!
//! ```text
//! post ▸ idle connection? ──yes──────────────────────────────────────────────▸ send ▸ status ▸ drain ▸ idle again
//!                   └─no─▸ guard: resolve ▸ judge every address ▸ dial ▸ TLS ▸───┘
//! ```
//!
//! The guard is the connector itself: a filter in a resolver is never asked about addresses that stand in the URL. Redirects are not followed, proxies
//! of the environment are not used, nothing is decompressed, and no more of an answer is read than its head and 16 KiB.
//!
//! A request that came back from a reused connection before anything of it was written is sent once more on a fresh one: the receiver had closed
//! the connection while it was idle. Every other failure is the attempt's.

mod body;
mod channel;
mod connect;
mod failure;
mod guard;
mod observer;
mod pool;
pub mod resolve;
pub mod tls;
mod trace;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{Response, Uri};
use hyper::body::Incoming;
use postrider_common::egress::{CanonicalUrl, Policy, Scheme};
use postrider_common::id::AccountId;
use postrider_common::model::testing;
use postrider_common::model::webhook::HttpVersion;
use postrider_common::net::{SharedDialer, SharedResolver};
use postrider_common::task::Group;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

pub use self::body::{BODY_PATIENCE, Kept};
pub use self::channel::Message;
use self::channel::{Channel, SendError};
use self::connect::Connector;
pub use self::failure::Failure;
use self::pool::{Host, Key, Pool};
pub use self::trace::{CloseUp, Trace};
use crate::attempt::Reason;

/// How long a request waits for its turn when a limit is reached. Longer than a burst lasts; much shorter than the time after which a shard's worker
/// should look again at what is worth sending.
const ADMISSION_PATIENCE: Duration = testing::TURN;

/// How much may be under way and kept open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests under way at once, in all. Each holds a connection, its buffers and its body.
    pub in_flight: usize,
    /// Requests under way at once to one host and port for one account.
    pub in_flight_per_host: usize,
    /// Idle connections, in all. Each costs a file descriptor and about 16 KiB.
    pub idle: usize,
    /// Idle connections to one host and port for one account.
    pub idle_per_host: usize,
}

impl Default for Limits {
    /// Room for all attempts of an agent and whatever else it asks: which of them may be made is decided before; as many idle connections to a host as
    /// requests may be under way to it, so that none is opened again under a steady load.
    fn default() -> Self {
        Self {
            in_flight: 16 * 1024,
            in_flight_per_host: 256,
            idle: 2048,
            idle_per_host: 256,
        }
    }
}

/// What happened on the way out since the agent started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that had to wait because as many were under way as may be, in all or to their host.
    pub waited: AtomicU64,
    /// Answers whose body was not read to its end.
    pub cut: AtomicU64,
}

/// Where a webhook's requests go. Cheap to clone.
#[derive(Clone)]
pub struct Target {
    host: Arc<Host>,
    /// `/path?query`, for HTTP/1.1.
    path: Uri,
    /// The whole URL, for HTTP/2.
    url: Uri,
    /// The `host` header, for HTTP/1.1.
    authority: HeaderValue,
}

impl Target {
    /// Whom requests name as their host.
    pub const fn authority(&self) -> &HeaderValue {
        &self.authority
    }
}

/// A URL that cannot be put into a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the URL cannot be put into a request")]
pub struct InvalidTarget;

/// A final answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// What was kept of its body.
    pub body: Kept,
}

/// How many bytes of an answer's body are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Of a 2xx.
    pub of_success: usize,
    /// Of any other.
    pub of_failure: usize,
    /// How long is waited for the body's end.
    pub patience: Duration,
}

/// The right to have one request under way.
#[derive(Debug)]
pub struct Permit<'a> {
    _host: SemaphorePermit<'a>,
    _all: SemaphorePermit<'a>,
}

/// The way out. Dropping it closes every connection.
pub struct Transport {
    pool: Arc<Pool>,
    connector: Connector,
    in_flight: Semaphore,
    counters: Arc<Counters>,
}

impl Drop for Transport {
    fn drop(&mut self) {
        // They end in order when their senders are dropped. But HTTP/2 connections hold the group that holds them: one whose receiver does not let it
        // end would stay for ever.
        self.connector.close();
    }
}

impl Transport {
    /// A transport without connections. Must be called within a tokio runtime.
    pub fn new(
        dialer: SharedDialer,
        resolver: SharedResolver,
        policy: Arc<Policy>,
        tls: tls::Tls,
        limits: Limits,
        counters: Arc<Counters>,
    ) -> Self {
        let tasks = Group::default();
        let pool = Arc::new(Pool::new(limits));
        tasks.spawn("idle connection sweeper", pool::sweep(Arc::downgrade(&pool)));
        Self {
            pool,
            connector: Connector::new(guard::Guard::new(dialer, resolver, policy), tls, tasks),
            in_flight: Semaphore::new(limits.in_flight),
            counters,
        }
    }

    /// Where the requests of this account to this URL go, made with this client certificate.
    ///
    /// # Errors
    /// [`InvalidTarget`] if a certificate is to be shown where there is no TLS. Else a URL that was checked always fits.
    pub fn target(
        &self,
        account: &AccountId,
        url: &CanonicalUrl,
        version: HttpVersion,
        identity: Option<&tls::Identity>,
    ) -> Result<Target, InvalidTarget> {
        if identity.is_some() && url.scheme() == Scheme::Http {
            return Err(InvalidTarget);
        }
        Ok(Target {
            path: url.path_and_query().parse().map_err(|_| InvalidTarget)?,
            url: url.as_str().parse().map_err(|_| InvalidTarget)?,
            authority: url.authority().parse().map_err(|_| InvalidTarget)?,
            host: self.pool.host(Key::new(account, url, version, identity)),
        })
    }

    /// Lets one more request to this target be under way, if it may be now.
    pub fn try_admit<'a>(&'a self, target: &'a Target) -> Option<Permit<'a>> {
        let (host, all) = (target.host.permits.try_acquire(), self.in_flight.try_acquire());
        Some(Permit {
            _host: host.ok()?,
            _all: all.ok()?,
        })
    }

    /// Waits until one more request to this target may be under way.
    ///
    /// # Errors
    /// [`Failure::Local`] if its turn does not come soon.
    pub async fn admit<'a>(&'a self, target: &'a Target) -> Result<Permit<'a>, Failure> {
        self.counters.waited.fetch_add(1, Ordering::Relaxed);
        // The host's first, so that requests that wait for a slow host do not hold what others could use.
        let both = async {
            let host = target.host.permits.acquire().await.ok()?;
            let all = self.in_flight.acquire().await.ok()?;
            Some(Permit { _host: host, _all: all })
        };
        match timeout(ADMISSION_PATIENCE, both).await {
            Ok(Some(permit)) => Ok(permit),
            Ok(None) | Err(_) => Err(Failure::Local("too many requests are under way")),
        }
    }

    /// Posts a message and gives the answer. Dropping the future cuts the connection, or resets the HTTP/2 stream.
    ///
    /// # Errors
    /// [`Failure`] if there was no final answer until `deadline`. That its body breaks off is none: the status is the answer.
    pub async fn post(
        &self,
        target: &Target,
        message: Message,
        keep: Keep,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Answer, Failure> {
        let (response, mut channel) = match timeout_at(deadline, self.exchange(target, message, trace)).await {
            Ok(answered) => answered?,
            Err(_) => return Err(trace.late()),
        };
        let (head, body) = response.into_parts();
        let Keep {
            of_success,
            of_failure,
            patience,
        } = keep;
        let keep = if head.status.is_success() {
            of_success
        } else {
            of_failure
        };
        // The status is the answer; the rest is read mostly for the sake of the connection.
        let (drained, body) = channel.during(body::drain(body, keep, deadline, patience)).await;
        if drained == body::Drained::Cut {
            self.counters.cut.fetch_add(1, Ordering::Relaxed);
        }
        if !is_ambiguous(&head.headers) && drained == body::Drained::Whole {
            self.give_back(target, channel, trace);
        }
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }

    /// Posts a message and gives the answer's status and its body. For answers that matter, such as an access token.
    ///
    /// # Errors
    /// [`Failure`] if there was no whole answer until `deadline`, or its body is longer than `most` bytes.
    pub async fn fetch(
        &self,
        target: &Target,
        message: Message,
        most: usize,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<(u16, Bytes), Failure> {
        let whole = async {
            let (response, mut channel) = self.exchange(target, message, trace).await?;
            let ambiguous = is_ambiguous(response.headers());
            let status = response.status().as_u16();
            let body = channel.during(body::collect(response.into_body(), most)).await?;
            if !ambiguous {
                self.give_back(target, channel, trace);
            }
            Ok((status, body))
        };
        match timeout_at(deadline, whole).await {
            Ok(answered) => answered,
            Err(_) => Err(trace.late()),
        }
    }

    /// The answer that came over a connection was read to its end.
    fn give_back(&self, target: &Target, channel: Channel, trace: &Trace) {
        let Channel::Http1(mut link) = channel else { return };
        if trace.close_up.is_some() {
            return link.close();
        }
        link.look();
        if link.is_idle() {
            self.pool.put(&target.host, link);
        } else if !link.is_closed() {
            // The receiver answered before it had read the request to its end; it may still want to.
            self.connector.finish(link);
        }
    }

    async fn exchange(
        &self,
        target: &Target,
        mut message: Message,
        trace: &mut Trace,
    ) -> Result<(Response<Incoming>, Channel), Failure> {
        let alone = trace.close_up.is_some();
        if !alone
            && let Some(mut channel) = self.pool.take(&target.host)
            && channel.is_ready().await
        {
            match channel.send(target, message, trace).await {
                Ok(answered) => return Ok(answered),
                Err(SendError::Unsent(returned)) => message = returned,
                Err(SendError::Failed(failure)) => return Err(failure),
            }
        }
        // Boxed, since it is rare and takes some eight kilobytes: every attempt would be made, moved and freed with them.
        let channel = if alone {
            Box::pin(self.connector.connect(&target.host, trace)).await?
        } else {
            Box::pin(self.connector.open(&target.host, trace)).await?
        };
        channel.send(target, message, trace).await.map_err(|error| match error {
            SendError::Unsent(_) => trace.fail(
                Failure::Receiver(Reason::Disconnected),
                "the connection was closed before the request was sent",
            ),
            SendError::Failed(failure) => failure,
        })
    }
}

/// Two lengths (RFC 9112, section 6.3): where the body ends is a matter of opinion, and so is where the next answer begins.
fn is_ambiguous(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH)
}

#[cfg(test)]
mod tests;
