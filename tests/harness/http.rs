//! A plain HTTP/1.1 server on hyper: what receivers of tests and the sink of the load test stand on.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postrider_common::task::Group;
use tokio::net::TcpListener;

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
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let (answer, stop) = (answer.clone(), connections.token().clone());
                connections.spawn("connection", async move {
                    let service = service_fn(move |request| {
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
