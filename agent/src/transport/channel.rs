//! One connection's sending side: one request in, its answer's head out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::Target;
use super::failure::{Failure, InFull, is_refused};
use super::pool::Host;
use super::trace::{Phase, Trace};
use crate::attempt::Reason;

/// What the connections carry.
pub(super) type Body = Full<Bytes>;

/// How many 1xx answers may come before the final one. None is ever asked for; an endless stream of them would cost processor time until the
/// deadline.
const MAX_INFORMATIONAL: u32 = 8;

/// How long a reused connection may take to be ready for the next request. It is, at once, unless it still writes the last one's body to a receiver
/// that answered without reading it.
const READY_PATIENCE: Duration = Duration::from_millis(100);

/// A request, before it is put into the form that the connection's protocol wants.
pub struct Message {
    /// Its headers, without those that frame it.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no answer.
pub(super) enum SendError {
    /// The receiver cannot have processed the request: here it is again.
    Unsent(Message),
    /// The attempt failed.
    Failed(Failure),
}

impl SendError {
    fn failed(error: &hyper::Error, trace: &mut Trace) -> Self {
        Self::Failed(trace.fail(Failure::of_exchange(error), InFull(error)))
    }
}

/// The sending side of a connection.
pub(super) enum Channel {
    /// HTTP/1.1: one request at a time.
    Http1 {
        sender: http1::SendRequest<Body>,
        born: Instant,
        peer: SocketAddr,
    },
    /// HTTP/2: shared.
    Http2(Shared),
}

/// A handle on a connection that serves many requests at once.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) sender: http2::SendRequest<Body>,
    pub(super) born: Instant,
    pub(super) peer: SocketAddr,
    /// Tells connections apart.
    pub(super) number: u64,
}

impl Channel {
    /// Whether a reused connection can take a request.
    pub(super) async fn is_ready(&mut self) -> bool {
        match self {
            Self::Http1 { sender, .. } => matches!(timeout(READY_PATIENCE, sender.ready()).await, Ok(Ok(()))),
            Self::Http2(shared) => !shared.sender.is_closed(),
        }
    }

    /// Where it goes.
    const fn peer(&self) -> SocketAddr {
        match self {
            Self::Http1 { peer, .. } | Self::Http2(Shared { peer, .. }) => *peer,
        }
    }

    /// Sends the request and waits for the head of the final answer. The channel comes back with it, to be reused once the body has been read.
    pub(super) async fn send(
        self,
        target: &Target,
        message: Message,
        trace: &mut Trace,
    ) -> Result<(Response<Incoming>, Self), SendError> {
        trace.address = Some(self.peer());
        trace.begin(Phase::Answer);
        let (response, channel) = self.exchange(target, message, trace).await?;
        trace.answered(response.version());
        Ok((response, channel))
    }

    async fn exchange(
        self,
        target: &Target,
        message: Message,
        trace: &mut Trace,
    ) -> Result<(Response<Incoming>, Self), SendError> {
        match self {
            Self::Http1 { mut sender, born, peer } => {
                let response = send_http1(&mut sender, target, message, trace).await?;
                Ok((response, Self::Http1 { sender, born, peer }))
            }
            Self::Http2(shared) => {
                // An HTTP/2 connection on which a request failed or ran into its deadline may be dead without anyone having said so: the next request
                // makes a new one. Those under way on it are not cut.
                let mut suspicion = Suspicion(Some((&target.host, shared.number)));
                let mut sender = shared.sender.clone();
                let response = send_http2(&mut sender, target, message, trace).await?;
                suspicion.0 = None;
                Ok((response, Self::Http2(shared)))
            }
        }
    }
}

async fn send_http1(
    sender: &mut http1::SendRequest<Body>,
    target: &Target,
    message: Message,
    trace: &mut Trace,
) -> Result<Response<Incoming>, SendError> {
    let mut request = Request::new(Full::new(message.body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = target.path.clone();
    *request.headers_mut() = message.headers;
    request.headers_mut().insert(HOST, target.authority.clone());
    let flood = Arc::new(Flood::default());
    let counter = Arc::clone(&flood);
    hyper::ext::on_informational(&mut request, move |_| counter.count());
    let answer = tokio::select! {
        biased;
        answer = sender.try_send_request(request) => answer,
        () = flood.too_many.notified() => {
            let failure = trace.fail(Failure::Receiver(Reason::Protocol), "too many 1xx answers before the final one");
            return Err(SendError::Failed(failure));
        }
    };
    answer.map_err(|mut error| match error.take_message() {
        Some(request) => {
            let (mut parts, body) = request.into_parts();
            parts.headers.remove(HOST);
            SendError::Unsent(Message {
                headers: parts.headers,
                body: bytes_of(body),
            })
        }
        None => SendError::failed(error.error(), trace),
    })
}

async fn send_http2(
    sender: &mut http2::SendRequest<Body>,
    target: &Target,
    message: Message,
    trace: &mut Trace,
) -> Result<Response<Incoming>, SendError> {
    let mut request = Request::new(Full::new(message.body.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = target.url.clone();
    *request.headers_mut() = message.headers.clone();
    let answer = sender.try_send_request(request).await;
    answer.map_err(|error| {
        if error.message().is_some() || is_refused(error.error()) {
            SendError::Unsent(message)
        } else {
            SendError::failed(error.error(), trace)
        }
    })
}

/// The bytes of a body that was not sent.
fn bytes_of(mut body: Body) -> Bytes {
    use hyper::body::Body as _;
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(&mut body).poll_frame(&mut context) {
        std::task::Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        std::task::Poll::Ready(_) | std::task::Poll::Pending => Bytes::new(),
    }
}

/// Takes an HTTP/2 connection out of the pool when dropped, unless it was cleared of the suspicion.
struct Suspicion<'a>(Option<(&'a Host, u64)>);

impl Drop for Suspicion<'_> {
    fn drop(&mut self) {
        if let Some((host, number)) = self.0 {
            host.forget(number);
        }
    }
}

/// Counts the 1xx answers to one request.
#[derive(Default)]
struct Flood {
    seen: AtomicU32,
    too_many: Notify,
}

impl Flood {
    fn count(&self) {
        if self.seen.fetch_add(1, Ordering::Relaxed) >= MAX_INFORMATIONAL {
            self.too_many.notify_one();
        }
    }
}
