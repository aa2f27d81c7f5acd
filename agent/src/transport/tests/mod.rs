//! Tests of the way out, with real sockets on loopback and receivers that do as they please.

mod close_up;
mod evidence;
mod hostile;
mod http1;
mod http2;
mod oauth;
mod tls;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_common::egress::Policy;
use postrider_common::entropy::SystemEntropy;
use postrider_common::id::{AccountId, AgentId, EventId, EventName, Uid, WebhookId};
use postrider_common::model::segment::Event;
use postrider_common::model::testing::{Test, Transcript};
use postrider_common::model::webhook::{Auth, SigningSecret, Webhook, WhenInactive};
use postrider_common::net::{Connection, Dialer, ResolveError, Resolver, TcpDialer};
use postrider_common::retry;
use postrider_common::secret::Keyring;
use postrider_common::task::Group;
use postrider_common::time::{SystemClock, Timestamp};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::Limits;
use super::tls::{Roots, client_config};
use crate::attempt::sender::{Deps, HttpSender};
use crate::attempt::{Attempt, Made, Outcome, Reason, Sender as _, Sent};

/// How long a test waits for what must happen.
const SOON: Duration = Duration::from_secs(10);

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Dials loopback only, and tells what it was asked to dial.
#[derive(Default)]
struct Recorder {
    dialled: Mutex<Vec<SocketAddr>>,
}

impl Recorder {
    fn dialled(&self) -> Vec<SocketAddr> {
        self.dialled.lock().unwrap().clone()
    }
}

#[async_trait]
impl Dialer for Recorder {
    async fn dial(&self, address: SocketAddr) -> io::Result<Connection> {
        self.dialled.lock().unwrap().push(address);
        if address.ip().is_loopback() {
            TcpDialer.dial(address).await
        } else {
            Err(io::Error::other("tests dial loopback only"))
        }
    }
}

/// Gives one answer for ever.
struct Names(Result<Vec<IpAddr>, ResolveError>);

impl Names {
    fn none() -> Arc<Self> {
        Arc::new(Self(Err(ResolveError::NotFound)))
    }

    fn loopback() -> Arc<Self> {
        Arc::new(Self(Ok(vec![IpAddr::from([127, 0, 0, 1])])))
    }
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, _: &str) -> Result<Vec<IpAddr>, ResolveError> {
        self.0.clone()
    }
}

fn loopback() -> Policy {
    Policy::allowing(["127.0.0.0/8".parse().unwrap()])
}

fn keyring() -> (Arc<Keyring>, SystemEntropy) {
    let entropy = SystemEntropy::seeded(7);
    (Arc::new(Keyring::parse(&Keyring::generate(&entropy)).unwrap()), entropy)
}

/// A sender with what it was made of.
struct Bench {
    sender: HttpSender,
    dialer: Arc<Recorder>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Names::none(), loopback(), b"", Limits::default())
    }

    fn with(names: Arc<Names>, policy: Policy, authorities: &[u8], limits: Limits) -> Self {
        let dialer = Arc::new(Recorder::default());
        let sender = sender(
            Arc::clone(&dialer) as _,
            Arc::clone(&names) as _,
            policy,
            authorities,
            limits,
        );
        Self { sender, dialer }
    }

    async fn send(&self, webhook: &Arc<Webhook>) -> Outcome {
        self.make(webhook).await.outcome
    }

    async fn test(&self, webhook: &Arc<Webhook>) -> Transcript {
        let agent = AgentId::new("agent-1").unwrap();
        timeout(SOON * 2, self.sender.test(&agent, test_of(webhook)))
            .await
            .expect("a test ends")
    }

    async fn make(&self, webhook: &Arc<Webhook>) -> Made {
        timeout(SOON * 2, self.sender.send(attempt(webhook)))
            .await
            .expect("an attempt ends")
    }
}

/// The test of `webhook` with the event of [`attempt`].
fn test_of(webhook: &Arc<Webhook>) -> Test {
    Test {
        webhook: Webhook::clone(webhook),
        event: Event::clone(&attempt(webhook).events[0].event),
    }
}

fn sender(
    dialer: Arc<dyn Dialer>,
    names: Arc<dyn Resolver>,
    policy: Policy,
    authorities: &[u8],
    limits: Limits,
) -> HttpSender {
    HttpSender::new(deps(dialer, names, policy, authorities, limits))
}

fn deps(dialer: Arc<dyn Dialer>, names: Arc<dyn Resolver>, policy: Policy, authorities: &[u8], limits: Limits) -> Deps {
    Deps {
        dialer,
        resolver: names,
        policy: Arc::new(policy),
        keyring: keyring().0,
        clock: Arc::new(SystemClock),
        tls: client_config(Roots::BuiltIn, authorities).unwrap(),
        limits,
        counters: Arc::default(),
    }
}

fn webhook(url: &str) -> Webhook {
    Webhook {
        account: AccountId::new("1010").unwrap(),
        id: WebhookId::new("w").unwrap(),
        uid: Uid::new("018f4c1e-7c55-7a3e-8b1a-2f4d5e6a7b8c").unwrap(),
        generation: 1,
        create_time: Timestamp::default(),
        update_time: Timestamp::default(),
        display_name: String::new(),
        description: String::new(),
        target_url: url.to_owned(),
        auth: Auth::None,
        event_types: Vec::new(),
        filter: None,
        active: true,
        when_inactive: WhenInactive::Drop,
        max_in_flight: None,
        http_version: postrider_common::model::webhook::HttpVersion::Negotiated,
        payload_format: postrider_common::model::webhook::PayloadFormat::Envelope,
        batching: postrider_common::model::batching::Batching::default(),
        order: postrider_common::model::order::Order::default(),
        rate_limit: None,
        numbered: false,
        suspension: None,
        timeout: None,
        retry: retry::Policy::default(),
        headers: Vec::new(),
        labels: std::collections::BTreeMap::new(),
    }
}

fn to(address: SocketAddr) -> Arc<Webhook> {
    Arc::new(webhook(&format!("http://{address}/hook?a=b")))
}

fn within(address: SocketAddr, limit: Duration) -> Arc<Webhook> {
    let mut webhook = webhook(&format!("http://{address}/"));
    webhook.timeout = Some(limit);
    Arc::new(webhook)
}

fn attempt(webhook: &Arc<Webhook>) -> Attempt {
    let event = Event {
        account: webhook.account.clone(),
        id: EventId::new("evt_1").unwrap(),
        name: EventName::new("COURSE_COMPLETED").unwrap(),
        timestamp: Timestamp::from_millis(1),
        ordering_key: None,
        expire_time: None,
        event_info: None,
        data: Bytes::from_static(b"{\"a\": 1.0}"),
        accept_time: Timestamp::default(),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        category: postrider_common::model::event_type::Category::default(),
        not_before_time: None,
    };
    Attempt {
        webhook: Arc::clone(webhook),
        events: vec![Sent {
            event: Arc::new(event),
            event_info: "1-000000-1-0".into(),
        }],
        id: "evt_1".into(),
        number: 2,
        sequence: None,
    }
}

const fn delivered(status: u16) -> Outcome {
    Outcome::Delivered { status }
}

const fn failed(reason: Reason) -> Outcome {
    failed_with(reason, None)
}

const fn failed_with(reason: Reason, status: Option<u16>) -> Outcome {
    Outcome::Failed {
        reason,
        status,
        retry_after: None,
    }
}

/// Accepts connections on a port of its own, and gives each with its number (from 0) to `handle`.
async fn serve<F, H>(group: &Group, handle: H) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
    H: Fn(usize, TcpStream) -> F + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = group.clone();
    group.spawn("listener", async move {
        let mut number = 0;
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn("connection", handle(number, stream));
            number += 1;
        }
    });
    address
}

/// A receiver that answers the same to every request, on connections that it keeps open. Tells the number of the connection of each request.
async fn answering(group: &Group, answer: impl Into<Bytes>) -> (SocketAddr, mpsc::UnboundedReceiver<(usize, Request)>) {
    let (told, requests) = mpsc::unbounded_channel();
    let answer = answer.into();
    let address = serve(group, move |number, mut stream| {
        let (told, answer) = (told.clone(), answer.clone());
        async move {
            while let Some(request) = read_request(&mut stream).await {
                let _ = told.send((number, request));
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (address, requests)
}

/// A request as it came over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Reads one request, `None` at the connection's end.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next().unwrap().to_owned();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut request = Request {
        line,
        headers,
        body: Vec::new(),
    };
    request.body = vec![0; request.header("content-length").unwrap().parse().unwrap()];
    stream.read_exact(&mut request.body).await.ok()?;
    Some(request)
}

/// Answers once and keeps the connection open until the other side closes it.
async fn answer_once(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) {
    if read_request(&mut stream).await.is_some() {
        let _ = stream.write_all(answer).await;
        let _ = stream.read_u8().await;
    }
}

/// What a receiver gets for this answer.
async fn outcome_of(answer: impl Into<Bytes>) -> Outcome {
    let group = Group::default();
    let answer = answer.into();
    let address = serve(&group, move |_, stream| {
        let answer = answer.clone();
        async move { answer_once(stream, &answer).await }
    })
    .await;
    Bench::new().send(&to(address)).await
}
