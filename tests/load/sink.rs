//! The sink: takes every request, and notes when which event arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use postrider_common::task::Group;
use postrider_tests::port::Reserved;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// What an event's id begins with; its number follows.
pub(crate) const ID: &str = "load-";

/// The path whose requests are counted only.
pub(crate) const RAW_PATH: &str = "/raw";

/// The path whose requests are refused while the sink is told to.
pub(crate) const REFUSED_PATH: &str = "/refused";

/// A running sink. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Sink {
    counts: Arc<Counts>,
    port: Arc<Reserved>,
    /// Stopped with the process.
    _serving: Group,
}

struct Counts {
    start: Instant,
    /// For each event, nanoseconds from `start` to its first arrival; 0 means not yet.
    arrivals: Vec<AtomicU64>,
    arrived: AtomicUsize,
    doubled: AtomicUsize,
    strangers: AtomicUsize,
    requests: AtomicUsize,
    refusing: AtomicBool,
    changed: Notify,
    /// How many arrivals are waited for; every one after that wakes who waits.
    wanted: AtomicUsize,
}

impl Sink {
    /// Starts a sink for `events` events.
    pub(crate) fn start(events: usize) -> Self {
        let counts = Arc::new(Counts {
            start: Instant::now(),
            arrivals: std::iter::repeat_with(AtomicU64::default).take(events).collect(),
            arrived: AtomicUsize::default(),
            doubled: AtomicUsize::default(),
            strangers: AtomicUsize::default(),
            requests: AtomicUsize::default(),
            refusing: AtomicBool::default(),
            changed: Notify::new(),
            wanted: AtomicUsize::new(usize::MAX),
        });
        let port = Reserved::new();
        let group = Group::default();
        let shared = counts.clone();
        postrider_tests::http::serve(&group, port.listen(), move |request| answer(shared.clone(), request));
        Self {
            counts,
            port: Arc::new(port),
            _serving: group,
        }
    }

    /// The URL of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.port.address())
    }

    /// Its address.
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.port.address()
    }

    /// Nanoseconds since the sink started, never 0.
    pub(crate) fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    /// A moment as nanoseconds since the sink started, never 0.
    pub(crate) fn at(&self, moment: Instant) -> u64 {
        nanos(moment.duration_since(self.counts.start))
    }

    /// When an event arrived first; `None` if it did not.
    pub(crate) fn arrival(&self, event: usize) -> Option<u64> {
        Some(self.counts.arrivals[event].load(Ordering::Relaxed)).filter(|&arrival| arrival > 0)
    }

    /// Refuses requests to [`REFUSED_PATH`] from now on, or takes them.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.counts.refusing.store(refuse, Ordering::SeqCst);
    }

    /// How many requests came.
    pub(crate) fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::Relaxed)
    }

    /// How often an event came again.
    pub(crate) fn doubled(&self) -> usize {
        self.counts.doubled.load(Ordering::Relaxed)
    }

    /// How many requests named no event of ours.
    pub(crate) fn strangers(&self) -> usize {
        self.counts.strangers.load(Ordering::Relaxed)
    }

    /// Counts an arrival of the event with this id.
    #[cfg(test)]
    pub(crate) fn note(&self, id: &str) {
        self.counts.note(id.as_bytes(), self.now());
    }

    /// Waits until `events` events have arrived; false if they have not within `deadline`.
    pub(crate) async fn wait(&self, events: usize, deadline: Duration) -> bool {
        self.counts.wanted.store(events, Ordering::SeqCst);
        let waiting = async {
            loop {
                let changed = self.counts.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.counts.arrived.load(Ordering::SeqCst) >= events {
                    return;
                }
                changed.await;
            }
        };
        timeout(deadline, waiting).await.is_ok()
    }
}

impl Counts {
    fn note(&self, id: &[u8], now: u64) {
        let number = id
            .strip_prefix(ID.as_bytes())
            .and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
        let Some(arrival) = number.and_then(|number: usize| self.arrivals.get(number)) else {
            self.strangers.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if arrival
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_err()
        {
            self.doubled.fetch_add(1, Ordering::Relaxed);
        } else if self.arrived.fetch_add(1, Ordering::SeqCst) + 1 >= self.wanted.load(Ordering::SeqCst) {
            self.changed.notify_waiters();
        }
    }
}

async fn answer(counts: Arc<Counts>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let Ok(body) = body.collect().await else {
        return response;
    };
    counts.requests.fetch_add(1, Ordering::Relaxed);
    if head.uri.path() == REFUSED_PATH && counts.refusing.load(Ordering::SeqCst) {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    if head.uri.path() != RAW_PATH {
        let now = nanos(counts.start.elapsed());
        let id = head.headers.get("webhook-id").map_or(&b""[..], |id| id.as_bytes());
        if id.starts_with(ID.as_bytes()) {
            counts.note(id, now);
        } else {
            // Several events in one request: the header names the batch.
            event_ids(&body.to_bytes()).for_each(|id| counts.note(id, now));
        }
    }
    response
}

/// Whole nanoseconds, never 0.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// The ids of the events in an envelope.
fn event_ids(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    const BEFORE: &[u8] = b"\"eventId\":\"";
    let starts = body
        .windows(BEFORE.len())
        .enumerate()
        .filter(|(_, window)| *window == BEFORE);
    starts.filter_map(|(start, _)| body[start + BEFORE.len()..].split(|&byte| byte == b'"').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_of_an_envelope_is_found() {
        let body = br#"{"accountId":1010,"events":[{"eventId":"load-7","data":{"a":"eventId"}},{"eventId":"load-12","data":1}]}"#;
        let ids: Vec<&[u8]> = event_ids(body).collect();
        assert_eq!(ids, [b"load-7".as_slice(), b"load-12"]);
    }

    #[tokio::test]
    async fn repeats_and_strangers_are_counted_and_arrivals_wake_who_waits() {
        let sink = Sink::start(2);
        for (id, now) in [(b"load-1".as_slice(), 5), (b"load-1", 6), (b"load-2", 7), (b"x", 8)] {
            sink.counts.note(id, now);
        }
        assert_eq!(
            (sink.arrival(0), sink.arrival(1), sink.doubled(), sink.strangers()),
            (None, Some(5), 1, 2)
        );
        assert!(sink.wait(1, Duration::from_secs(5)).await);
        assert!(!sink.wait(2, Duration::from_millis(1)).await);
    }
}
