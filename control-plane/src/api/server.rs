//! The gRPC server's limits, and the last word on every status.
//!
//! tonic answers an oversized message with OUT_OF_RANGE, a call that took too long with CANCELLED and what it has no code for with UNKNOWN: none of
//! these tells a caller what to do. The layer here gives RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED and INTERNAL instead, and what is no protobuf a reason.

use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::layer::util::{Identity, Stack};
use tower::{Layer, Service};

use super::MAX_MESSAGE_BYTES;
use super::calls::{Call, Calls};
use super::status::DOMAIN;

/// Calls under way on one connection: each may make the server hold one message.
const MAX_STREAMS: u32 = 128;

/// Bytes of metadata of one call.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// How long a connection may be silent before it is asked for a sign of life: below the timeouts of common load balancers (60 s).
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);

/// How long that sign may take.
const KEEP_ALIVE_FOR: Duration = Duration::from_secs(10);

/// How long a call may take until its answer begins: far above the store's own deadlines together, and short enough that a caller who never sends
/// the message it announced does not hold its place for long.
const CALL_FOR: Duration = Duration::from_secs(30);

/// The call that lasts as long as a receiver takes, twice if an agent dies: its own deadlines end it before.
const TEST_WEBHOOK: &str = "/postrider.v1.WebhookService/TestWebhook";

/// How long it may take: twice the longest timeout of a webhook, and what [`crate::testing`] adds to it.
const TEST_FOR: Duration = Duration::from_secs(2 * 60 + 30);

/// A server with the limits that every listener of the API has, and [`StatusLayer`], which counts in `calls`.
pub(crate) fn server_builder(calls: Calls) -> Server<Stack<StatusLayer, Identity>> {
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_FOR))
        .http2_adaptive_window(Some(true))
        .tcp_nodelay(true)
        .tcp_keepalive(Some(KEEP_ALIVE_EVERY))
        .layer(StatusLayer { calls })
}

/// Lets no status leave that says nothing, and no call last for ever; counts them.
#[derive(Debug, Clone, Default)]
pub(crate) struct StatusLayer {
    calls: Calls,
}

impl<S> Layer<S> for StatusLayer {
    type Service = StatusService<S>;

    fn layer(&self, inner: S) -> StatusService<S> {
        StatusService {
            inner,
            calls: self.calls.clone(),
        }
    }
}

/// The service of [`StatusLayer`].
#[derive(Debug, Clone)]
pub(crate) struct StatusService<S> {
    inner: S,
    calls: Calls,
}

impl<S, B> Service<http::Request<B>> for StatusService<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let limit = if request.uri().path() == TEST_WEBHOOK {
            TEST_FOR
        } else {
            CALL_FOR
        };
        let call = Call::begun(&self.calls, request.uri().path());
        let answer = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            let answer = match tokio::time::timeout(limit, answer).await {
                Ok(Ok(answer)) => judge(answer?),
                Ok(Err(_)) => {
                    tracing::error!("a call panicked");
                    with_reason(Code::Internal, "INTERNAL", "internal error").into_http()
                }
                Err(_) => with_reason(
                    Code::DeadlineExceeded,
                    "DEADLINE_EXCEEDED",
                    "the call took too long; repeat it with the same request_id",
                )
                .into_http(),
            };
            Ok(call.answered(answer))
        })
    }
}

/// A status that is known before the answer's body stands in its headers.
fn judge(answer: http::Response<Body>) -> http::Response<Body> {
    let Some(status) = Status::from_header_map(answer.headers()) else {
        return answer;
    };
    if status.code() == Code::Unknown {
        tracing::error!(message = status.message(), "a call ended without a known status");
        return with_reason(Code::Internal, "INTERNAL", "internal error").into_http();
    }
    // Ours say why: see [`super::status`].
    if status.details().is_empty() {
        judged(status).into_http()
    } else {
        answer
    }
}

/// What leaves instead of the status of a message that could not be read.
pub(super) fn judged(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => with_reason(
            Code::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
            &format!("the message is larger than {MAX_MESSAGE_BYTES} bytes"),
        ),
        Code::InvalidArgument => with_reason(Code::InvalidArgument, "MALFORMED_MESSAGE", status.message()),
        _ => status,
    }
}

fn with_reason(code: Code, reason: &str, message: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, std::collections::HashMap::new());
    Status::with_error_details(code, message, details)
}
