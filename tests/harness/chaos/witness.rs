//! The receiver of a course: verifies every request, answers it, and writes one line of its log for each.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use postrider_common::task::Group;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::checker::{Arrival, Micros, Number, Sender};
use super::course::{Course, data, event_number, webhook_number};
use crate::http::{Peer, serve};
use crate::port::Reserved;
use crate::wait;

/// What arrived so far.
#[derive(Debug, Default)]
pub struct Log {
    /// One for each request that named a webhook and an event.
    pub arrivals: Vec<Arrival>,
    /// How many did not.
    pub strangers: usize,
    /// What was taken.
    taken: HashSet<(u16, Number)>,
}

impl Log {
    /// How many different deliveries were taken.
    pub fn taken(&self) -> usize {
        self.taken.len()
    }
}

struct State {
    course: Course,
    start: Instant,
    /// By webhook.
    secrets: Mutex<Vec<Option<standardwebhooks::Webhook>>>,
    delay: Duration,
    away: Option<IpAddr>,
    log: Mutex<Log>,
    changed: Notify,
}

/// A receiver on a port of its own.
pub struct Witness {
    state: Arc<State>,
    port: Reserved,
    serving: Group,
}

impl Witness {
    /// Starts to receive, on `address`; takes what it takes after `delay`. Requests from the address `away` are noted as from a namespace.
    pub fn start(course: &Course, address: Ipv4Addr, away: Option<Ipv4Addr>, delay: Duration) -> Self {
        let state = Arc::new(State {
            course: course.clone(),
            start: Instant::now(),
            secrets: Mutex::default(),
            delay,
            away: away.map(IpAddr::V4),
            log: Mutex::default(),
            changed: Notify::new(),
        });
        let (port, serving) = (Reserved::on(address), Group::default());
        let shared = state.clone();
        serve(&serving, port.listen(), move |request| answer(shared.clone(), request));
        Self { state, port, serving }
    }

    /// Its URL, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.port.address())
    }

    /// Its address.
    pub const fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Learns the signing secrets of the webhooks, in their order.
    pub fn learn(&self, secrets: &[String]) {
        let secrets = secrets.iter().map(|secret| standardwebhooks::Webhook::new(secret).ok());
        *lock(&self.state.secrets) = secrets.collect();
    }

    /// When this run began.
    pub fn start_of_run(&self) -> Instant {
        self.state.start
    }

    /// Microseconds since the run began.
    pub fn now(&self) -> Micros {
        micros(self.state.start.elapsed())
    }

    /// Looks at what arrived so far.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.state.log)
    }

    /// Waits until `condition` holds for what arrived.
    ///
    /// # Panics
    /// After `deadline`, saying `what` was waited for and how much had arrived.
    pub async fn until(&self, what: &str, deadline: Duration, condition: impl Fn(&Log) -> bool) {
        if !wait::notified(&self.state.changed, deadline, || condition(&self.log())).await {
            let log = self.log();
            let (all, taken) = (log.arrivals.len(), log.taken());
            drop(log);
            panic!("gave up after {deadline:?} waiting for {what}: {all} requests arrived, {taken} deliveries taken");
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.serving.token().cancel();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whole microseconds.
pub(crate) fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let Ok(body) = body.collect().await else {
        // The sender was cut: such a request did not arrive.
        return response;
    };
    let arrival = state.read(&head, &body.to_bytes());
    let taken = arrival.is_none_or(|arrival| arrival.taken);
    state.note(arrival);
    if !taken {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    } else if !state.delay.is_zero() {
        sleep(state.delay).await;
    }
    response
}

impl State {
    fn read(&self, head: &Parts, body: &[u8]) -> Option<Arrival> {
        let header = |name: &str| head.headers.get(name)?.to_str().ok();
        let event = event_number(header("webhook-id")?)?;
        let webhook = webhook_number(head.uri.path().trim_start_matches('/'))?;
        let attempt = header("webhook-attempt")?.parse().ok()?;
        let mut hash = DefaultHasher::new();
        hash.write(body);
        let away = head.extensions.get::<Peer>().map(|peer| peer.0.ip()) == self.away && self.away.is_some();
        Some(Arrival {
            webhook,
            event,
            at: micros(self.start.elapsed()),
            taken: !self.course.is_refused(event, attempt),
            genuine: holds(body, event) && self.is_signed(webhook, head, body),
            body: hash.finish(),
            sender: if away { Sender::Namespace } else { Sender::Here },
        })
    }

    fn is_signed(&self, webhook: u16, head: &Parts, body: &[u8]) -> bool {
        let secrets = lock(&self.secrets);
        let secret = secrets.get(usize::from(webhook)).and_then(Option::as_ref);
        secret.is_some_and(|secret| secret.verify(body, &head.headers).is_ok())
    }

    fn note(&self, arrival: Option<Arrival>) {
        let mut log = lock(&self.log);
        match arrival {
            Some(arrival) => {
                log.arrivals.push(arrival);
                if arrival.taken {
                    log.taken.insert((arrival.webhook, arrival.event));
                }
            }
            None => log.strangers += 1,
        }
        drop(log);
        self.changed.notify_waiters();
    }
}

/// Whether a body is an envelope with the one event of this number, and its data as it was published.
fn holds(body: &[u8], event: Number) -> bool {
    let data = data(event as usize);
    let end = body.strip_suffix(b"}]}").and_then(|body| body.strip_suffix(&data[..]));
    end.is_some_and(|body| {
        body.ends_with(b"\"data\":") && body.windows(10).filter(|window| window == b"\"eventId\":").count() == 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_that_holds_what_was_published_is_told_from_others() {
        let envelope = |data: &str| format!("{{\"accountId\":1,\"events\":[{{\"eventId\":\"e-3\",\"data\":{data}}}]}}");
        let right = envelope(std::str::from_utf8(&data(3)).unwrap());
        assert!(holds(right.as_bytes(), 3));
        assert!(!holds(right.as_bytes(), 4));
        assert!(!holds(right.replace("xxx", "xx").as_bytes(), 3));
        assert!(!holds(right.replace("\"data\"", "\"date\"").as_bytes(), 3));
        assert!(!holds(right.replace("[{", "[{\"eventId\":\"e-2\"},{").as_bytes(), 3));
    }
}
