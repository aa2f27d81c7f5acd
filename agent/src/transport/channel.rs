//! One connection's sending side: one request in, its answer's head out.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
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

/// A connection to send on.
pub(super) enum Channel {
    /// HTTP/1.1: one request at a time.
    Http1(Link),
    /// HTTP/2: shared.
    Http2(Shared),
}

/// An HTTP/1.1 connection. It has no task of its own: whoever holds it drives it, so that a request costs no wake-ups but its attempt's, and what is
/// dropped is cut at once.
pub(super) struct Link {
    sender: http1::SendRequest<Body>,
    /// `None` once it is over.
    connection: Option<Driver>,
    pub(super) born: Instant,
    pub(super) peer: SocketAddr,
}

/// What a connection has to do. How it ends is told to the request that it ends under.
pub(super) type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

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
            Self::Http1(link) => link.is_idle() || matches!(timeout(READY_PATIENCE, link.ready()).await, Ok(Ok(()))),
            Self::Http2(shared) => !shared.sender.is_closed(),
        }
    }

    /// Where it goes.
    const fn peer(&self) -> SocketAddr {
        match self {
            Self::Http1(Link { peer, .. }) | Self::Http2(Shared { peer, .. }) => *peer,
        }
    }

    /// Waits for something that comes over this connection.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        match self {
            Self::Http1(link) => link.during(work).await,
            Self::Http2(_) => work.await,
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
            Self::Http1(mut link) => {
                let response = send_http1(&mut link, target, message, trace).await?;
                Ok((response, Self::Http1(link)))
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

impl Link {
    /// A new connection.
    pub(super) fn new(sender: http1::SendRequest<Body>, connection: Driver, peer: SocketAddr) -> Self {
        Self {
            sender,
            connection: Some(connection),
            born: Instant::now(),
            peer,
        }
    }

    /// Nothing is under way on it, as far as it was driven.
    pub(super) fn is_idle(&self) -> bool {
        self.sender.is_ready()
    }

    /// It is over, as far as it was driven.
    pub(super) const fn is_closed(&self) -> bool {
        self.connection.is_none()
    }

    /// Does what can be done now, with nobody to be woken when more can: also notices that the other side has closed it.
    pub(super) fn look(&mut self) {
        self.drive(&mut Context::from_waker(Waker::noop()));
    }

    /// Ends it in order, if that can be done at once.
    pub(super) fn close(self) {
        let Self { sender, connection, .. } = self;
        drop(sender);
        if let Some(mut connection) = connection {
            let _ = connection.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// Waits until nothing is under way on it.
    ///
    /// # Errors
    /// It is over.
    pub(super) async fn ready(&mut self) -> hyper::Result<()> {
        poll_fn(|context| {
            self.drive(context);
            self.sender.poll_ready(context)
        })
        .await
    }

    async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            self.drive(context);
            work.as_mut().poll(context)
        })
        .await
    }

    fn drive(&mut self, context: &mut Context<'_>) {
        let over = self
            .connection
            .as_mut()
            .is_some_and(|connection| connection.as_mut().poll(context).is_ready());
        if over {
            // With it goes what it still held: a request learns of the end by that.
            self.connection = None;
        }
    }
}

async fn send_http1(
    link: &mut Link,
    target: &Target,
    message: Message,
    trace: &mut Trace,
) -> Result<Response<Incoming>, SendError> {
    let mut request = Request::new(Full::new(message.body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = target.path.clone();
    *request.headers_mut() = message.headers;
    request.headers_mut().insert(HOST, target.authority.clone());
    let informational = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&informational);
    hyper::ext::on_informational(&mut request, move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let mut answer = pin!(link.sender.try_send_request(request));
    let answer = poll_fn(|context| {
        link.drive(context);
        match answer.as_mut().poll(context) {
            // An answer that comes with too many is none of a receiver's that wants well.
            Poll::Pending if informational.load(Ordering::Relaxed) > MAX_INFORMATIONAL => Poll::Ready(None),
            other => other.map(Some),
        }
    });
    let Some(answer) = answer.await else {
        let failure = trace.fail(
            Failure::Receiver(Reason::Protocol),
            "too many 1xx answers before the final one",
        );
        return Err(SendError::Failed(failure));
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
    match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        Poll::Ready(_) | Poll::Pending => Bytes::new(),
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
