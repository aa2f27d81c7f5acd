//! A receiver: takes the demonstration's webhooks on a socket of its own and checks each one as a receiver should.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use standardwebhooks::Webhook;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How a path expects its requests to be authenticated.
pub(crate) enum Expected {
    /// Not at all.
    Nothing,
    /// RFC 7617.
    Basic { username: String, password: String },
    /// Standard Webhooks, with this secret in its text form.
    Signature(String),
}

/// One request that arrived.
pub(crate) struct Arrival {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// What was checked, or what is wrong.
    pub(crate) verified: Result<&'static str, String>,
}

/// Receives until the receiving half of `arrivals` is dropped.
pub(crate) async fn run(listener: TcpListener, expected: BTreeMap<String, Expected>, arrivals: mpsc::Sender<Arrival>) {
    let expected = Arc::new(expected);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let (expected, arrivals) = (expected.clone(), arrivals.clone());
                let service = service_fn(move |request| receive(request, expected.clone(), arrivals.clone()));
                connections.spawn(async move {
                    // A connection that breaks is its sender's loss: it will try again.
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
            Some(_) = connections.join_next() => {}
            () = arrivals.closed() => return,
        }
    }
}

async fn receive(
    request: Request<Incoming>,
    expected: Arc<BTreeMap<String, Expected>>,
    arrivals: mpsc::Sender<Arrival>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let Ok(body) = body.collect().await else {
        return Ok(answer(StatusCode::BAD_REQUEST));
    };
    let body = body.to_bytes();
    let verified = match expected.get(&path) {
        Some(expected) => verify(expected, &parts.headers, &body),
        None => Err("nobody listens on this path".to_owned()),
    };
    let status = if verified.is_ok() {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::UNAUTHORIZED
    };
    let _ = arrivals
        .send(Arrival {
            path,
            headers: parts.headers,
            body,
            verified,
        })
        .await;
    Ok(answer(status))
}

fn answer(status: StatusCode) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    response
}

fn verify(expected: &Expected, headers: &HeaderMap, body: &[u8]) -> Result<&'static str, String> {
    match expected {
        Expected::Nothing => Ok("no authentication asked for"),
        Expected::Basic { username, password } => {
            let wanted = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
            match headers.get(header::AUTHORIZATION) {
                Some(given) if given.as_bytes() == wanted.as_bytes() => Ok("user name and password are right"),
                Some(_) => Err("user name or password is wrong".to_owned()),
                None => Err("there is no authorization header".to_owned()),
            }
        }
        Expected::Signature(secret) => {
            let webhook = Webhook::new(secret).map_err(|error| error.to_string())?;
            webhook.verify(body, headers).map_err(|error| error.to_string())?;
            Ok("the signature fits id, timestamp and body")
        }
    }
}
