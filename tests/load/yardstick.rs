//! Yardsticks: what this machine can do at most, measured in the same run.

use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use postrider_tests::etcd_api::EtcdApi;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::sink::{RAW_PATH, Sink};

/// Connections of the raw limit: where a bare client is fastest on two cores.
const CONNECTIONS: usize = 64;

/// How many calls a second, and how long each took.
pub(crate) struct Yardstick {
    /// Calls a second.
    pub(crate) per_second: f64,
    /// Microseconds of each call.
    pub(crate) latency: Histogram<u64>,
}

/// A histogram of microseconds, up to ten minutes, to three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are valid")
}

/// A bare client against the sink: one request under way on each of 64 connections.
pub(crate) async fn raw_limit(sink: &Sink, size: usize, time: Duration) -> Yardstick {
    let body = Bytes::from(vec![b'x'; size]);
    let (address, end) = (sink.address(), Instant::now() + time);
    let client = move || {
        let body = body.clone();
        async move {
            let stream = TcpStream::connect(address).await.expect("the sink listens");
            stream.set_nodelay(true).expect("TCP_NODELAY is known");
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .expect("the sink speaks HTTP");
            let mut connections = JoinSet::new();
            connections.spawn(connection);
            let mut latency = histogram();
            while Instant::now() < end {
                let request = Request::post(RAW_PATH)
                    .header("host", "sink")
                    .body(Full::new(body.clone()));
                let start = Instant::now();
                let answer = sender
                    .send_request(request.expect("the request is valid"))
                    .await
                    .expect("the sink answers");
                answer.into_body().collect().await.expect("the sink answers to the end");
                latency.saturating_record(micros(start.elapsed()));
            }
            latency
        }
    };
    together(CONNECTIONS, time, client).await
}

/// Puts by `clients` clients on one connection, each its own key.
pub(crate) async fn etcd_puts(etcd: &EtcdApi, clients: usize, size: usize, time: Duration) -> Yardstick {
    let value = Bytes::from(vec![b'x'; size]);
    let end = Instant::now() + time;
    let mut number = 0;
    let client = move || {
        number += 1;
        let (etcd, value, key) = (etcd.clone(), value.clone(), format!("yardstick/{number}"));
        async move {
            let mut latency = histogram();
            while Instant::now() < end {
                let start = Instant::now();
                etcd.put(&key, value.clone()).await.expect("etcd takes a put");
                latency.saturating_record(micros(start.elapsed()));
            }
            latency
        }
    };
    together(clients, time, client).await
}

async fn together<F>(count: usize, time: Duration, client: impl FnMut() -> F) -> Yardstick
where
    F: Future<Output = Histogram<u64>> + Send + 'static,
{
    let mut clients: JoinSet<Histogram<u64>> = std::iter::repeat_with(client).take(count).collect();
    let mut latency = histogram();
    while let Some(each) = clients.join_next().await {
        latency += each.expect("a client ends well");
    }
    Yardstick {
        per_second: latency.len() as f64 / time.as_secs_f64(),
        latency,
    }
}

/// A duration in whole microseconds.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use postrider_tests::etcd::Etcd;

    use super::*;

    const SHORT: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn yardsticks_count_what_was_done() {
        let sink = Sink::start(0);
        let raw = raw_limit(&sink, 1024, SHORT).await;
        assert_eq!(raw.latency.len(), sink.requests() as u64);
        assert!(raw.per_second > 0.0 && sink.strangers() == 0);

        let etcd = Etcd::start(1).await;
        let before = etcd.client(0).revision().await.unwrap();
        let puts = etcd_puts(&etcd.client(0), 4, 1024, SHORT).await;
        let done = etcd.client(0).revision().await.unwrap() - before;
        assert!(done > 0);
        assert_eq!(puts.latency.len(), u64::try_from(done).unwrap());
    }
}
