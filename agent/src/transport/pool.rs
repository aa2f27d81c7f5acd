//! The connections that are open: idle HTTP/1.1 ones to be used again, the youngest first, and shared HTTP/2 ones.
//!
//! Accounts share no connections: what one account's receiver does to a connection reaches nobody else. Nor do different client certificates.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use postrider_common::egress::{self, CanonicalUrl, Scheme};
use postrider_common::id::AccountId;
use postrider_common::model::webhook::HttpVersion;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_rustls::TlsConnector;

use super::Limits;
use super::channel::{Channel, Link, Shared};
use super::failure::Failure;
use super::tls::Identity;

/// How long a connection stays open without work: below the 60 s after which common servers close it, so that a request rarely meets one that is
/// being closed.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How old a connection may become: its name is resolved and judged again, and its certificate checked again, at least this often.
const MAX_AGE: Duration = Duration::from_secs(5 * 60);

/// How often connections that nobody asks for are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Whose connections to what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    account: AccountId,
    pub(super) scheme: Scheme,
    pub(super) host: egress::Host,
    pub(super) port: u16,
    pub(super) version: HttpVersion,
    /// Who we are there.
    pub(super) identity: Option<Identity>,
}

impl Key {
    pub(super) fn new(
        account: &AccountId,
        url: &CanonicalUrl,
        version: HttpVersion,
        identity: Option<&Identity>,
    ) -> Self {
        Self {
            account: account.clone(),
            scheme: url.scheme(),
            host: url.host().clone(),
            port: url.port(),
            version,
            identity: identity.cloned(),
        }
    }
}

/// Everything about one host and port, for one account.
pub(super) struct Host {
    pub(super) key: Key,
    /// Limits the requests under way.
    pub(super) permits: Semaphore,
    /// Held while a connection is made to a host that may speak HTTP/2, so that one is made and not one for each request that waits.
    pub(super) gate: Semaphore,
    /// The TLS of connections with a client certificate; made with the first.
    pub(super) tls: OnceLock<TlsConnector>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    idle: Vec<Idle>,
    shared: Option<(Shared, Instant)>,
    /// A host that chose HTTP/1.1 lately; its connections need not be made one by one.
    speaks_http1: bool,
    /// When a connection could last not be made, and why.
    failed: Option<(Instant, Failure)>,
}

struct Idle {
    link: Link,
    since: Instant,
    _place: Place,
}

impl Idle {
    fn is_usable(&self, now: Instant) -> bool {
        !self.link.is_closed() && now < self.since + IDLE_TIMEOUT && now < self.link.born + MAX_AGE
    }
}

/// One of the places for idle connections; given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let place = Self(Arc::clone(taken));
        // On refusal the new place is dropped, which takes the count back.
        (taken.fetch_add(1, Ordering::Relaxed) < limit).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl State {
    fn shared(&mut self, now: Instant) -> Option<Shared> {
        let (shared, used) = self.shared.as_mut()?;
        if shared.sender.is_closed() || now >= shared.born + MAX_AGE {
            // Requests under way hold handles of their own; with the last of them it is closed.
            self.shared = None;
            return None;
        }
        *used = now;
        Some(shared.clone())
    }
}

impl Host {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its connections are to be made one by one.
    pub(super) fn may_share(&self) -> bool {
        let may_be_http2 = match self.key.version {
            HttpVersion::Negotiated => self.key.scheme == Scheme::Https,
            HttpVersion::Http1 => false,
            HttpVersion::Http2 => true,
        };
        may_be_http2 && !self.lock().speaks_http1
    }

    /// The HTTP/2 connection, if there is one to be used.
    pub(super) fn shared(&self) -> Option<Shared> {
        self.lock().shared(Instant::now())
    }

    /// Takes the HTTP/2 connection with this number out of use.
    pub(super) fn forget(&self, number: u64) {
        let mut state = self.lock();
        if state.shared.as_ref().is_some_and(|(shared, _)| shared.number == number) {
            state.shared = None;
        }
    }

    /// Notes what the newest connection turned out to be.
    pub(super) fn opened(&self, channel: &Channel) {
        let mut state = self.lock();
        match channel {
            Channel::Http1(_) => state.speaks_http1 = true,
            Channel::Http2(shared) => {
                state.speaks_http1 = false;
                state.shared = Some((shared.clone(), Instant::now()));
            }
        }
    }

    /// Notes that no connection could be made.
    pub(super) fn failed(&self, failure: Failure) {
        self.lock().failed = Some((Instant::now(), failure));
    }

    /// Why no connection could be made at some time since `start`, if so.
    pub(super) fn failure_since(&self, start: Instant) -> Option<Failure> {
        self.lock()
            .failed
            .filter(|(at, _)| *at >= start)
            .map(|(_, failure)| failure)
    }
}

/// All hosts.
pub(super) struct Pool {
    hosts: Mutex<HashMap<Key, Arc<Host>>>,
    idle: Arc<AtomicUsize>,
    limits: Limits,
}

impl Pool {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            hosts: Mutex::default(),
            idle: Arc::default(),
            limits,
        }
    }

    /// The one place for this key's connections. It stays while anyone holds it or a connection is open.
    pub(super) fn host(&self, key: Key) -> Arc<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let host = hosts.entry(key).or_insert_with_key(|key| {
            Arc::new(Host {
                key: key.clone(),
                permits: Semaphore::new(self.limits.in_flight_per_host),
                gate: Semaphore::new(1),
                tls: OnceLock::new(),
                state: Mutex::default(),
            })
        });
        Arc::clone(host)
    }

    /// An open connection to send on: the shared one, or the one that became idle last (the others then get old and are closed).
    pub(super) fn take(&self, host: &Host) -> Option<Channel> {
        let now = Instant::now();
        loop {
            let mut state = host.lock();
            if let Some(shared) = state.shared(now) {
                return Some(Channel::Http2(shared));
            }
            let mut idle = state.idle.pop()?;
            drop(state);
            idle.link.look();
            if idle.is_usable(now) {
                return Some(Channel::Http1(idle.link));
            }
            idle.link.close();
        }
    }

    /// Keeps a connection on which nothing is under way, if there is room.
    pub(super) fn put(&self, host: &Host, link: Link) {
        let now = Instant::now();
        let Some(place) = Place::take(&self.idle, self.limits.idle) else {
            return link.close();
        };
        let idle = Idle {
            link,
            since: now,
            _place: place,
        };
        if idle.is_usable(now) {
            let mut state = host.lock();
            if state.idle.len() < self.limits.idle_per_host {
                return state.idle.push(idle);
            }
        }
        idle.link.close();
    }

    fn expire(&self) {
        let now = Instant::now();
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|_, host| {
            let mut state = host.lock();
            let over = state.idle.extract_if(.., |idle| {
                idle.link.look();
                !idle.is_usable(now)
            });
            over.for_each(|idle| idle.link.close());
            if state.shared.as_ref().is_some_and(|(shared, used)| {
                shared.sender.is_closed() || now >= *used + IDLE_TIMEOUT || now >= shared.born + MAX_AGE
            }) {
                state.shared = None;
            }
            let empty = state.idle.is_empty() && state.shared.is_none();
            drop(state);
            !(empty && Arc::strong_count(host) == 1)
        });
    }
}

/// Closes connections that stayed idle or became old, and forgets hosts that nobody uses, until the pool is gone.
pub(super) async fn sweep(pool: Weak<Pool>) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(pool) = pool.upgrade() else { return };
        pool.expire();
    }
}
