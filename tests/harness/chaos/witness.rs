//! The receiver of a course: verifies every request, answers it, and writes one line of its log for each.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use postrider_common::task::Group;
use postrider_common::time::{Clock as _, SystemClock};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::checker::{Arrival, Micros, Number, Sender};
use super::course::{Course, event_number, webhook_number};
use super::trap::{Point, Sprung, Traps};
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
    /// The furthest that a sender's clock was from this machine's, in seconds, by what it signed.
    pub furthest_clock: u64,
    /// What was taken.
    taken: HashSet<(u16, Number)>,
}

impl Log {
    /// How many different deliveries were taken.
    pub fn taken(&self) -> usize {
        self.taken.len()
    }

    /// Whether a delivery was taken.
    pub fn has(&self, webhook: u16, event: Number) -> bool {
        self.taken.contains(&(webhook, event))
    }
}

struct State {
    course: Course,
    start: Instant,
    /// By webhook.
    secrets: Mutex<Vec<Option<standardwebhooks::Webhook>>>,
    delay: Duration,
    away: Option<IpAddr>,
    /// Senders' clocks may be anywhere.
    any_time: AtomicBool,
    /// Each connection takes one request.
    closes: AtomicBool,
    traps: Traps,
    log: Mutex<Log>,
    changed: Notify,
}

/// A receiver on a port of its own.
pub struct Witness {
    state: Arc<State>,
    host: String,
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
            any_time: AtomicBool::new(false),
            closes: AtomicBool::new(false),
            traps: Traps::default(),
            log: Mutex::default(),
            changed: Notify::new(),
        });
        let (port, serving) = (Reserved::on(address), Group::default());
        let shared = state.clone();
        serve(&serving, port.listen(), move |request| answer(shared.clone(), request));
        Self {
            state,
            host: address.to_string(),
            port,
            serving,
        }
    }

    /// It is called by this name from now on, and closes each connection after one request, so that whoever sends asks for the name's address each time.
    #[must_use]
    pub fn named(mut self, host: &str) -> Self {
        self.state.closes.store(true, Ordering::SeqCst);
        host.clone_into(&mut self.host);
        self
    }

    /// Its URL, without a path.
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.host, self.port.address().port())
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

    /// From now on signatures are not asked to be of the present: senders' clocks are made to be wrong.
    pub fn take_any_time(&self) {
        self.state.any_time.store(true, Ordering::SeqCst);
    }

    /// Kills the process at this point of the next request that is to be taken for one of these webhooks, which must be its own. Returns when it was.
    ///
    /// # Panics
    /// After `deadline`.
    pub async fn kill_at(&self, point: Point, webhooks: &[usize], pid: u32, deadline: Duration) -> Sprung {
        let sprung = self.state.traps.set(point, webhooks, pid);
        match timeout(deadline, sprung).await {
            Ok(Ok(sprung)) => sprung,
            _ => panic!("no request for {webhooks:?} within {deadline:?}"),
        }
    }

    /// How many requests for these webhooks had come by `to`, and not before `from`.
    pub fn arrived(&self, webhooks: &[usize], from: Micros, to: Micros) -> usize {
        let log = self.log();
        let theirs = log.arrivals.iter().filter(|arrival| (from..=to).contains(&arrival.at));
        theirs
            .filter(|arrival| webhooks.contains(&usize::from(arrival.webhook)))
            .count()
    }

    /// When this run began.
    pub fn start_of_run(&self) -> Instant {
        self.state.start
    }

    /// Microseconds since the run began.
    pub fn now(&self) -> Micros {
        self.state.now()
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
    if state.closes.load(Ordering::SeqCst) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(http::header::CONNECTION, close);
    }
    let Ok(body) = body.collect().await else {
        // The sender was cut: such a request did not arrive.
        return response;
    };
    let arrival = state.read(&head, &body.to_bytes());
    let taken = arrival.is_none_or(|arrival| arrival.taken);
    state.note(arrival, &head);
    if let Some(trap) = state.traps.spring(Point::Read, arrival) {
        // The answer must not come before the kill: it never does. Whoever waits for it goes, and with its connection this.
        let at = state.now();
        state.traps.killing.spawn("kill", async move { trap.kill(at).await });
        return std::future::pending().await;
    }
    if !taken {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    } else if !state.delay.is_zero() {
        sleep(state.delay).await;
    }
    if let Some(trap) = state.traps.spring(Point::Answered, arrival) {
        // Beside it: the answer goes out while the killer starts.
        let at = state.now();
        state.traps.killing.spawn("kill", async move { trap.kill(at).await });
    }
    response
}

impl State {
    fn now(&self) -> Micros {
        micros(self.start.elapsed())
    }

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
            genuine: holds(body, &self.course.data(event as usize)) && self.is_signed(webhook, head, body),
            body: hash.finish(),
            sender: if away { Sender::Namespace } else { Sender::Here },
        })
    }

    fn is_signed(&self, webhook: u16, head: &Parts, body: &[u8]) -> bool {
        let secrets = lock(&self.secrets);
        let secret = secrets.get(usize::from(webhook)).and_then(Option::as_ref);
        secret.is_some_and(|secret| {
            if self.any_time.load(Ordering::SeqCst) {
                is_signed_at_some_time(secret, head, body)
            } else {
                secret.verify(body, &head.headers).is_ok()
            }
        })
    }

    fn note(&self, arrival: Option<Arrival>, head: &Parts) {
        let signed = head.headers.get("webhook-timestamp");
        let signed = signed.and_then(|at| at.to_str().ok()?.parse::<i64>().ok());
        let now = SystemClock.now().as_seconds();
        let mut log = lock(&self.log);
        log.furthest_clock = log.furthest_clock.max(signed.map_or(0, |at| at.abs_diff(now)));
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

/// Whether a request is signed, for the moment that it names itself.
fn is_signed_at_some_time(secret: &standardwebhooks::Webhook, head: &Parts, body: &[u8]) -> bool {
    let header = |name: &str| head.headers.get(name)?.to_str().ok();
    let signed = || {
        let at = header("webhook-timestamp")?.parse().ok()?;
        let signature = secret.sign(header("webhook-id")?, at, body).ok()?;
        Some(header("webhook-signature")?.split(' ').any(|given| given == signature))
    };
    signed().unwrap_or(false)
}

/// Whether a body is an envelope with one event, and this data of it.
fn holds(body: &[u8], data: &[u8]) -> bool {
    let end = body.strip_suffix(b"}]}").and_then(|body| body.strip_suffix(data));
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
        let course = Course::of(5, 1);
        let data = course.data(3);
        let right = envelope(std::str::from_utf8(&data).unwrap());
        assert!(holds(right.as_bytes(), &data));
        assert!(!holds(right.as_bytes(), &course.data(4)));
        assert!(!holds(right.replace("\"pad\":\"", "\"pad\":\"A").as_bytes(), &data));
        assert!(!holds(right.replace("\"data\"", "\"date\"").as_bytes(), &data));
        assert!(!holds(
            right.replace("[{", "[{\"eventId\":\"e-2\"},{").as_bytes(),
            &data
        ));
    }
}
