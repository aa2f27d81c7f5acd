//! HTTP/2 over TLS: one connection for all, and requests that were refused unprocessed.

use std::sync::atomic::{AtomicUsize, Ordering};

use h2::Reason as Code;
use h2::server::SendResponse;
use postrider_common::model::webhook::HttpVersion;
use tokio_rustls::server::TlsStream;

use super::tls::Authority;
use super::*;

pub(super) type Stream = h2::server::Connection<TlsStream<TcpStream>, Bytes>;

/// Serves HTTP/2 with `handle` for each connection. Gives a bench that believes it, and its webhook.
pub(super) async fn serve_http2<F, H>(group: &Group, handle: H) -> (Bench, Arc<Webhook>)
where
    F: Future<Output = ()> + Send + 'static,
    H: Fn(usize, Stream) -> F + Clone + Send + Sync + 'static,
{
    let authority = Authority::new();
    let acceptor = authority.acceptor(&["a.example.com"], &[b"h2"], |_| ());
    let address = serve(group, move |number, stream| {
        let (acceptor, handle) = (acceptor.clone(), handle.clone());
        async move {
            let stream = acceptor.accept(stream).await.unwrap();
            let connection = h2::server::Builder::new()
                .max_concurrent_streams(8)
                .handshake(stream)
                .await
                .unwrap();
            handle(number, connection).await;
        }
    })
    .await;
    let bench = Bench::with(
        Names::loopback(),
        loopback(),
        authority.pem().as_bytes(),
        Limits::default(),
    );
    let hook = Arc::new(webhook(&format!("https://a.example.com:{}/hook?a=b", address.port())));
    (bench, hook)
}

pub(super) fn answer(respond: &mut SendResponse<Bytes>, status: u16) {
    let response = http::Response::builder().status(status).body(()).unwrap();
    respond.send_response(response, true).unwrap();
}

#[tokio::test]
async fn requests_at_once_share_one_connection_and_keep_to_its_limit_of_streams() {
    let group = Group::default();
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let (bench, hook) = serve_http2(&group, move |_, mut connection| {
        let count = Arc::clone(&count);
        async move {
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.uri().path_and_query().unwrap(), "/hook?a=b");
                assert!(
                    request
                        .uri()
                        .authority()
                        .unwrap()
                        .as_str()
                        .starts_with("a.example.com:")
                );
                assert_eq!(request.headers()["webhook-id"], "evt_1");
                assert!(!request.headers().contains_key("host"));
                count.fetch_add(1, Ordering::Relaxed);
                answer(&mut respond, 200);
            }
        }
    })
    .await;
    let outcomes = futures_util::future::join_all((0..50).map(|_| bench.send(&hook))).await;
    assert_eq!(outcomes, vec![delivered(200); 50]);
    assert_eq!(served.load(Ordering::Relaxed), 50);
    assert_eq!(bench.dialer.dialled().len(), 1);
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_once_and_costs_no_attempt() {
    let group = Group::default();
    let (bench, hook) = serve_http2(&group, |number, mut connection| async move {
        let mut seen = 0;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            seen += 1;
            if number == 0 && seen == 2 {
                respond.send_reset(Code::REFUSED_STREAM);
            } else {
                answer(&mut respond, 200);
            }
        }
    })
    .await;
    assert_eq!(bench.send(&hook).await, delivered(200));
    assert_eq!(bench.send(&hook).await, delivered(200));
    assert_eq!(bench.dialer.dialled().len(), 2);
}

#[tokio::test]
async fn a_stream_that_was_reset_for_another_reason_is_a_failed_attempt() {
    let group = Group::default();
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let (bench, hook) = serve_http2(&group, move |_, mut connection| {
        let count = Arc::clone(&count);
        async move {
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                if count.fetch_add(1, Ordering::Relaxed) == 1 {
                    respond.send_reset(Code::INTERNAL_ERROR);
                } else {
                    answer(&mut respond, 200);
                }
            }
        }
    })
    .await;
    assert_eq!(bench.send(&hook).await, delivered(200));
    assert_eq!(bench.send(&hook).await, failed(Reason::Disconnected));
    assert_eq!(bench.send(&hook).await, delivered(200));
    assert_eq!(seen.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_connection_that_says_goodbye_is_replaced_and_costs_no_attempt() {
    let group = Group::default();
    let (bench, hook) = serve_http2(&group, |_, mut connection| async move {
        let mut seen = 0;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            answer(&mut respond, 200);
            seen += 1;
            if seen == 2 {
                connection.graceful_shutdown();
            }
        }
    })
    .await;
    for _ in 0..10 {
        assert_eq!(bench.send(&hook).await, delivered(200));
    }
    assert!(bench.dialer.dialled().len() >= 3, "{:?}", bench.dialer.dialled());
}

#[tokio::test]
async fn a_connection_on_which_a_request_ran_into_its_deadline_is_not_used_again() {
    let group = Group::default();
    let (bench, hook) = serve_http2(&group, |number, mut connection| async move {
        let mut kept = Vec::new();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            if number == 0 {
                kept.push(respond);
            } else {
                answer(&mut respond, 200);
            }
        }
    })
    .await;
    let mut hook = Webhook::clone(&hook);
    hook.timeout = Some(Duration::from_millis(500));
    let hook = Arc::new(hook);
    assert_eq!(bench.send(&hook).await, failed(Reason::Timeout));
    assert_eq!(bench.send(&hook).await, delivered(200));
}

#[tokio::test]
async fn those_who_wait_for_a_connection_share_its_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let bench = Bench::new();
    let hook = Arc::new(webhook(&format!("https://127.0.0.1:{port}/")));
    let outcomes = futures_util::future::join_all((0..20).map(|_| bench.send(&hook))).await;
    assert_eq!(outcomes, vec![failed(Reason::Connect); 20]);
    assert!(bench.dialer.dialled().len() < 20, "{:?}", bench.dialer.dialled());
}

#[tokio::test]
async fn dropping_the_sender_closes_its_http2_connections() {
    let group = Group::default();
    let (told, mut ended) = mpsc::unbounded_channel();
    let (bench, hook) = serve_http2(&group, move |_, mut connection| {
        let told = told.clone();
        async move {
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                answer(&mut respond, 200);
            }
            let _ = told.send(());
        }
    })
    .await;
    assert_eq!(bench.send(&hook).await, delivered(200));
    assert!(ended.try_recv().is_err());
    drop(bench);
    timeout(SOON, ended.recv()).await.unwrap().unwrap();
}

/// Answers every request with 200 and tells its version.
async fn answer_all<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(stream: S) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.version(), http::Version::HTTP_2);
        assert_eq!(request.uri().scheme_str(), Some("http"));
        answer(&mut respond, 200);
    }
}

#[tokio::test]
async fn http2_without_tls_is_spoken_by_prior_knowledge_on_one_connection() {
    let group = Group::default();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let address = serve(&group, move |_, stream| {
        count.fetch_add(1, Ordering::Relaxed);
        answer_all(stream)
    })
    .await;
    let bench = Bench::new();
    let mut hook = webhook(&format!("http://{address}/hook"));
    hook.http_version = HttpVersion::Http2;
    let hook = Arc::new(hook);
    for _ in 0..5 {
        assert_eq!(bench.send(&hook).await, Outcome::Delivered { status: 200 });
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_receiver_that_does_not_speak_the_version_asked_for_fails_the_attempt() {
    let group = Group::default();
    let address = serve(&group, |_, mut stream| async move {
        use tokio::io::AsyncWriteExt as _;
        let _ = stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            .await;
    })
    .await;
    let bench = Bench::new();
    let mut hook = webhook(&format!("http://{address}/hook"));
    hook.http_version = HttpVersion::Http2;
    let outcome = bench.send(&Arc::new(hook)).await;
    assert!(matches!(outcome, Outcome::Failed { status: None, .. }), "{outcome:?}");
}

#[tokio::test]
async fn only_http1_is_offered_where_only_that_is_asked_for() {
    let group = Group::default();
    let authority = Authority::new();
    let acceptor = authority.acceptor(&["a.example.com"], &[b"h2", b"http/1.1"], |_| ());
    let address = serve(&group, move |_, stream| {
        let acceptor = acceptor.clone();
        async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut stream = acceptor.accept(stream).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
            let mut head = [0; 16];
            stream.read_exact(&mut head).await.unwrap();
            assert!(head.starts_with(b"POST /hook"));
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await
                .unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
    })
    .await;
    let bench = Bench::with(
        Names::loopback(),
        loopback(),
        authority.pem().as_bytes(),
        Limits::default(),
    );
    let mut hook = webhook(&format!("https://a.example.com:{}/hook", address.port()));
    hook.http_version = HttpVersion::Http1;
    assert_eq!(bench.send(&Arc::new(hook)).await, Outcome::Delivered { status: 200 });
}
