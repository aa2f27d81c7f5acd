//! Plain HTTP/1.1: a server on hyper, on which receivers of tests and the sink of the load test stand, and the least of a client.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postrider_common::task::Group;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Who made a request: in the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Serves `listener` with `answer` on tasks of `group`, until the group is shut down: then the port is closed, and connections are cut.
pub fn serve<F>(group: &Group, listener: TcpListener, answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static)
where
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let answer = Arc::new(answer);
    let connections = group.clone();
    let stop = group.token().clone();
    group.spawn("accept", async move {
        let accepting = async {
            loop {
                // Out of file descriptors, or a peer that left before it was accepted: others still come.
                let Ok((stream, peer)) = listener.accept().await else {
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let (answer, stop) = (answer.clone(), connections.token().clone());
                connections.spawn("connection", async move {
                    let service = service_fn(move |mut request: Request<Incoming>| {
                        request.extensions_mut().insert(Peer(peer));
                        let answered = answer(request);
                        async move { Ok::<_, Infallible>(answered.await) }
                    });
                    let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    // A peer that leaves ends its connection only.
                    let _ = stop.run_until_cancelled(serving).await;
                });
            }
        };
        stop.run_until_cancelled(accepting).await;
    });
}

/// What a program answers to GET `path`: the whole answer as text, its status line first.
///
/// # Panics
/// If there is no answer.
pub async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the program listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("the program takes requests");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the program answers");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The value of a series, such as `postrider_attempts_not_made_total`, in what a program answers to GET `/metrics`; 0 if it is not there.
pub fn counted(metrics: &str, series: &str) -> u64 {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_found_among_others() {
        let metrics = "a_total{reason=\"X\"} 3\na_total 4\nab_total 5\n";
        assert_eq!(counted(metrics, "a_total"), 4);
        assert_eq!(counted(metrics, "a_total{reason=\"X\"}"), 3);
        assert_eq!(counted(metrics, "c_total"), 0);
    }
}
