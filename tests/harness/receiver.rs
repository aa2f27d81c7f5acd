//! A receiver of webhooks: records every request, checks who sent it, answers as it was told to, goes down and comes back.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use postrider_common::task::Group;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::port::Reserved;
use crate::wait;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its method.
    pub method: String,
    /// Its path, which says which webhook it is for.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// When its last byte had arrived.
    pub arrived: Instant,
    /// What was wrong with its proof of who sent it; `Ok` if that is what the path expects.
    pub proof: Result<(), String>,
    /// What it was answered.
    pub status: StatusCode,
}

impl Received {
    /// The value of a header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Its body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

/// The proof that requests of one path must bring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// None, and no header that looks like one.
    None,
    /// RFC 7617.
    Basic {
        /// The user name.
        username: String,
        /// The password.
        password: String,
    },
    /// Standard Webhooks, under this secret (`whsec_…`).
    Signature(String),
}

/// What a request is answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// How long the answer takes.
    pub delay: Duration,
    /// Extra headers.
    pub headers: Vec<(&'static str, String)>,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// An answer at once.
    pub const fn status(status: StatusCode) -> Self {
        Self {
            status,
            delay: Duration::ZERO,
            headers: Vec::new(),
            body: String::new(),
        }
    }

    /// The same answer, after `delay`.
    #[must_use]
    pub const fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The same answer with a body.
    #[must_use]
    pub fn saying(mut self, body: &str) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    /// The same answer with one more header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

/// What arrived so far.
#[derive(Debug, Default)]
pub struct Log {
    requests: Vec<Received>,
    /// How often each (path, webhook-id) was answered with a 2xx.
    accepted: BTreeMap<(String, String), usize>,
    unproven: usize,
}

impl Log {
    /// All requests, in order of arrival.
    pub fn requests(&self) -> &[Received] {
        &self.requests
    }

    /// The requests of one path.
    pub fn of(&self, path: &str) -> Vec<&Received> {
        self.requests.iter().filter(|request| request.path == path).collect()
    }

    /// How many different (path, webhook-id) were answered with a 2xx.
    pub fn distinct(&self) -> usize {
        self.accepted.len()
    }

    /// How many requests were answered with a 2xx although the same (path, webhook-id) had been before.
    pub fn repeats(&self) -> usize {
        self.accepted.values().map(|count| count - 1).sum()
    }

    /// Whether an event was answered with a 2xx.
    pub fn has(&self, path: &str, id: &str) -> bool {
        self.accepted.contains_key(&(path.to_owned(), id.to_owned()))
    }

    /// How many requests did not bring the proof that their path expects.
    pub fn unproven(&self) -> usize {
        self.unproven
    }

    fn add(&mut self, request: Received) {
        if request.status.is_success() {
            let id = request.header("webhook-id").to_owned();
            *self.accepted.entry((request.path.clone(), id)).or_default() += 1;
        }
        self.unproven += usize::from(request.proof.is_err());
        self.requests.push(request);
    }
}

#[derive(Default)]
struct State {
    log: Mutex<Log>,
    changed: Notify,
    proofs: Mutex<BTreeMap<String, Proof>>,
    scripts: Mutex<BTreeMap<String, Script>>,
}

#[derive(Default)]
struct Script {
    next: VecDeque<Answer>,
    then: Option<Answer>,
}

/// A receiver on a port of its own. Answers 204 unless told otherwise.
pub struct Receiver {
    port: Reserved,
    state: Arc<State>,
    serving: Option<Group>,
}

impl Receiver {
    /// Starts to receive.
    pub fn start() -> Self {
        let mut receiver = Self {
            port: Reserved::new(),
            state: Arc::default(),
            serving: None,
        };
        receiver.up();
        receiver
    }

    /// Its address.
    pub const fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The URL of a path, which starts with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// Serves again after [`Self::down`].
    pub fn up(&mut self) {
        let group = Group::default();
        let state = self.state.clone();
        crate::http::serve(&group, self.port.listen(), move |request| {
            answer(state.clone(), request)
        });
        self.serving = Some(group);
    }

    /// Cuts all connections and refuses new ones.
    pub async fn down(&mut self) {
        if let Some(group) = self.serving.take() {
            group.shut_down(Duration::from_secs(5)).await;
        }
    }

    /// Says what proof requests of a path must bring; unless said, none is looked for.
    pub fn expect(&self, path: &str, proof: Proof) {
        lock(&self.state.proofs).insert(path.to_owned(), proof);
    }

    /// Answers the next requests of a path with `next`, one each, and all later ones with the last of them.
    pub fn script(&self, path: &str, next: impl IntoIterator<Item = Answer>) {
        let next: VecDeque<Answer> = next.into_iter().collect();
        let then = next.back().cloned();
        lock(&self.state.scripts).insert(path.to_owned(), Script { next, then });
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
            let (total, distinct) = (log.requests().len(), log.distinct());
            drop(log);
            panic!(
                "gave up after {deadline:?} waiting for {what}: {total} requests arrived, {distinct} different ones accepted"
            );
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(group) = &self.serving {
            group.token().cancel();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        // The sender was cut: such a request did not arrive.
        return Response::new(Full::default());
    };
    let body = body.to_bytes();
    let path = head.uri.path().to_owned();
    let answer = {
        let mut scripts = lock(&state.scripts);
        let script = scripts.get_mut(&path);
        script.and_then(|script| script.next.pop_front().or_else(|| script.then.clone()))
    };
    let answer = answer.unwrap_or_else(|| Answer::status(StatusCode::NO_CONTENT));
    let proof = lock(&state.proofs).get(&path).cloned();
    let proof = proof.map_or(Ok(()), |proof| check(&proof, &head.headers, &body));
    lock(&state.log).add(Received {
        method: head.method.to_string(),
        path,
        headers: head.headers,
        body,
        arrived: Instant::now(),
        proof,
        status: answer.status,
    });
    state.changed.notify_waiters();
    if !answer.delay.is_zero() {
        sleep(answer.delay).await;
    }
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    let body = Full::from(answer.body);
    response.body(body).expect("scripted headers are valid")
}

/// Checks a request's proof by other code than ours.
fn check(proof: &Proof, headers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let authorization = headers
        .get(http::header::AUTHORIZATION)
        .map(|value| value.to_str().unwrap_or("not text"));
    let signed = headers.contains_key("webhook-signature");
    match proof {
        Proof::None if authorization.is_some() || signed => Err("there is a proof where none is wanted".to_owned()),
        Proof::None => Ok(()),
        Proof::Basic { username, password } => {
            let authorization = authorization.ok_or("no authorization")?;
            let (scheme, token) = authorization.split_once(' ').ok_or("authorization without a token")?;
            let decoded = STANDARD.decode(token).map_err(|error| format!("not base64: {error}"))?;
            if scheme.eq_ignore_ascii_case("basic") && decoded == format!("{username}:{password}").into_bytes() {
                Ok(())
            } else {
                Err(format!("wrong credentials: {authorization}"))
            }
        }
        Proof::Signature(secret) => {
            let webhook = standardwebhooks::Webhook::new(secret).map_err(|error| error.to_string())?;
            webhook.verify(body, headers).map_err(|error| error.to_string())
        }
    }
}
