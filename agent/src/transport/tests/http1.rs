//! HTTP/1.1: what arrives, and which connections it arrives on.

use std::sync::atomic::{AtomicU64, Ordering};

use postrider_common::model::auth::SignatureHeaders;
use postrider_common::signature::Algorithm;
use secrecy::ExposeSecret as _;

use super::*;
use crate::transport::Counters;

#[tokio::test]
async fn the_request_arrives_as_documented() {
    let group = Group::default();
    let (address, mut requests) = answering(&group, OK).await;
    let mut hook = webhook(&format!("http://{address}/hook?a=b"));
    hook.headers = vec![
        ("x-team".to_owned(), "learning".to_owned()),
        ("host".to_owned(), "evil".to_owned()),
    ];
    let before = SystemClock.now_seconds();
    assert_eq!(Bench::new().send(&Arc::new(hook)).await, delivered(200));
    let (_, request) = requests.recv().await.unwrap();
    assert_eq!(request.line, "POST /hook?a=b HTTP/1.1");
    let body = r#"{"accountId":1010,"events":[{"eventId":"evt_1","eventName":"COURSE_COMPLETED","timestamp":1,"eventInfo":"1-000000-1-0","data":{"a": 1.0}}]}"#;
    assert_eq!(String::from_utf8(request.body.clone()).unwrap(), body);
    let timestamp: i64 = request.header("webhook-timestamp").unwrap().parse().unwrap();
    assert!((before..=SystemClock.now_seconds()).contains(&timestamp));
    let agent = format!("Postrider/{}", env!("CARGO_PKG_VERSION"));
    let length = body.len().to_string();
    let host = address.to_string();
    let expected = [
        ("host", host.as_str()),
        ("content-type", "application/json"),
        ("content-length", length.as_str()),
        ("user-agent", agent.as_str()),
        ("webhook-id", "evt_1"),
        ("webhook-attempt", "2"),
        ("x-team", "learning"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    for (name, value) in expected {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    assert_eq!(request.headers.len(), expected.len() + 1, "{:?}", request.headers);
}

trait NowSeconds {
    fn now_seconds(&self) -> i64;
}

impl NowSeconds for SystemClock {
    fn now_seconds(&self) -> i64 {
        postrider_common::time::Clock::now(self).as_seconds()
    }
}

#[tokio::test]
async fn a_signed_request_verifies_with_the_reference_library_and_each_live_secret() {
    let group = Group::default();
    let (address, mut requests) = answering(&group, OK).await;
    let (ring, entropy) = keyring();
    let mut hook = webhook(&format!("http://{address}/"));
    let secrets: Vec<_> = (0..3).map(|_| Algorithm::HmacSha256.generate(&entropy)).collect();
    let now = postrider_common::time::Clock::now(&SystemClock);
    let ends = [None, Some(now + Duration::from_secs(3600)), Some(now)];
    let stored = secrets
        .iter()
        .zip(ends)
        .enumerate()
        .map(|(index, (secret, expire_time))| {
            let id = format!("s{index}");
            let context = Webhook::seal_context(&hook.account, &hook.uid, &format!("signing/{id}"));
            SigningSecret {
                id,
                secret: ring.seal(secret.expose_secret(), &context, &entropy),
                create_time: now,
                expire_time,
            }
        });
    hook.auth = Auth::Signature {
        algorithm: Algorithm::HmacSha256,
        headers: SignatureHeaders::default(),
        secrets: stored.collect(),
    };
    assert_eq!(Bench::new().send(&Arc::new(hook)).await, delivered(200));
    let (_, request) = requests.recv().await.unwrap();
    let mut headers = http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, request.header(name).unwrap().parse().unwrap());
    }
    let verifies = secrets.iter().map(|secret| {
        let verifier = standardwebhooks::Webhook::from_bytes(secret.expose_secret().to_vec()).unwrap();
        verifier.verify(&request.body, &headers).is_ok()
    });
    assert_eq!(verifies.collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(request.header("webhook-signature").unwrap().split(' ').count(), 2);
}

#[tokio::test]
async fn basic_authentication_arrives_and_a_new_generation_is_used_at_once() {
    let group = Group::default();
    let (address, mut requests) = answering(&group, OK).await;
    let (ring, entropy) = keyring();
    let mut hook = webhook(&format!("http://{address}/"));
    let context = Webhook::seal_context(&hook.account, &hook.uid, "password");
    let bench = Bench::new();
    for (generation, password, expected) in [
        (1, "open sesame", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        (2, "x", "Basic QWxhZGRpbjp4"),
    ] {
        hook.generation = generation;
        hook.auth = Auth::Basic {
            username: "Aladdin".to_owned(),
            password: ring.seal(password.as_bytes(), &context, &entropy),
        };
        assert_eq!(bench.send(&Arc::new(hook.clone())).await, delivered(200));
        let (connection, request) = requests.recv().await.unwrap();
        assert_eq!(request.header("authorization"), Some(expected));
        assert_eq!(connection, 0, "the connection does not belong to the configuration");
    }
}

#[tokio::test]
async fn nothing_is_dialled_when_a_secret_cannot_be_opened_or_none_is_live() {
    let (ring, entropy) = keyring();
    let mut hook = webhook("http://127.0.0.1:8080/");
    let bench = Bench::new();
    hook.auth = Auth::Basic {
        username: "a".to_owned(),
        password: ring.seal(b"secret", "another place", &entropy),
    };
    assert!(matches!(
        bench.send(&Arc::new(hook.clone())).await,
        Outcome::NotMade { .. }
    ));
    hook.auth = Auth::Signature {
        algorithm: Algorithm::HmacSha256,
        headers: SignatureHeaders::default(),
        secrets: Vec::new(),
    };
    assert!(matches!(bench.send(&Arc::new(hook)).await, Outcome::NotMade { .. }));
    assert_eq!(bench.dialer.dialled(), []);
}

#[tokio::test]
async fn one_connection_serves_requests_that_follow_each_other() {
    let group = Group::default();
    let (address, mut requests) = answering(&group, OK).await;
    let bench = Bench::new();
    for _ in 0..20 {
        assert_eq!(bench.send(&to(address)).await, delivered(200));
        assert_eq!(requests.recv().await.unwrap().0, 0);
    }
}

#[tokio::test]
async fn accounts_share_no_connection() {
    let group = Group::default();
    let (address, mut requests) = answering(&group, OK).await;
    let bench = Bench::new();
    let mut other = webhook(&format!("http://{address}/"));
    other.account = AccountId::new("2020").unwrap();
    other.uid = Uid::new("018f4c1e-7c55-7a3e-8b1a-2f4d5e6a7b8d").unwrap();
    assert_eq!(bench.send(&to(address)).await, delivered(200));
    assert_eq!(bench.send(&Arc::new(other)).await, delivered(200));
    assert_eq!(requests.recv().await.unwrap().0, 0);
    assert_eq!(requests.recv().await.unwrap().0, 1);
}

#[tokio::test]
async fn a_limit_on_idle_connections_is_kept() {
    let group = Group::default();
    let (address, mut requests) = answering(&group, OK).await;
    let limits = Limits {
        idle: 0,
        ..Limits::default()
    };
    let bench = Bench::with(Names::none(), loopback(), b"", limits);
    for expected in 0..3 {
        assert_eq!(bench.send(&to(address)).await, delivered(200));
        assert_eq!(requests.recv().await.unwrap().0, expected);
    }
}

#[tokio::test]
async fn dropping_the_sender_closes_its_connections() {
    let group = Group::default();
    let (told, mut ended) = mpsc::unbounded_channel();
    let address = serve(&group, move |_, mut stream| {
        let told = told.clone();
        async move {
            while read_request(&mut stream).await.is_some() {
                stream.write_all(OK).await.unwrap();
            }
            let _ = told.send(());
        }
    })
    .await;
    let bench = Bench::new();
    assert_eq!(bench.send(&to(address)).await, delivered(200));
    assert!(ended.try_recv().is_err());
    drop(bench);
    timeout(SOON, ended.recv()).await.unwrap().unwrap();
}

/// Gives connections whose other end is a task of the test, in memory: what the one side does the other sees at once.
struct InMemory<H> {
    group: Group,
    handle: H,
}

#[async_trait]
impl<F, H> Dialer for InMemory<H>
where
    F: Future<Output = ()> + Send + 'static,
    H: Fn(tokio::io::DuplexStream) -> F + Send + Sync + 'static,
{
    async fn dial(&self, address: SocketAddr) -> io::Result<Connection> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        self.group.spawn("receiver", (self.handle)(theirs));
        Ok(Connection {
            io: Box::pin(ours),
            peer: address,
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_closed_while_idle_fails_no_attempt() {
    let dialer = InMemory {
        group: Group::default(),
        handle: |mut stream: tokio::io::DuplexStream| async move {
            read_request(&mut stream).await.unwrap();
            stream.write_all(OK).await.unwrap();
        },
    };
    let sender = sender(Arc::new(dialer), Names::none(), loopback(), b"", Limits::default());
    for _ in 0..100 {
        assert_eq!(
            sender
                .send(attempt(&to("127.0.0.1:8080".parse().unwrap())))
                .await
                .outcome,
            delivered(200)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_the_receiver_has_seen_is_never_sent_again() {
    let (told, mut seen) = mpsc::unbounded_channel();
    let dialer = InMemory {
        group: Group::default(),
        handle: move |mut stream: tokio::io::DuplexStream| {
            let told = told.clone();
            async move {
                let first = read_request(&mut stream).await;
                stream.write_all(OK).await.unwrap();
                let second = read_request(&mut stream).await;
                let _ = told.send([first, second].into_iter().flatten().count());
            }
        },
    };
    let sender = sender(Arc::new(dialer), Names::none(), loopback(), b"", Limits::default());
    let hook = to("127.0.0.1:8080".parse().unwrap());
    assert_eq!(sender.send(attempt(&hook)).await.outcome, delivered(200));
    assert_eq!(sender.send(attempt(&hook)).await.outcome, failed(Reason::Disconnected));
    assert_eq!(seen.recv().await, Some(2));
    assert!(seen.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_answers_early_still_gets_the_whole_request() {
    const BODY: usize = 1 << 20;
    let (told, mut seen) = mpsc::unbounded_channel();
    let go = Arc::new(tokio::sync::Notify::new());
    let reads_on = Arc::clone(&go);
    let dialer = InMemory {
        group: Group::default(),
        handle: move |mut stream: tokio::io::DuplexStream| {
            let (told, reads_on) = (told.clone(), Arc::clone(&reads_on));
            async move {
                let first = stream.read_u8().await.unwrap();
                stream.write_all(OK).await.unwrap();
                reads_on.notified().await;
                let request = read_request(&mut [first].chain(&mut stream)).await;
                let _ = told.send(request.map_or(0, |request| request.body.len()));
            }
        },
    };
    let sender = sender(Arc::new(dialer), Names::none(), loopback(), b"", Limits::default());
    let mut attempt = attempt(&to("127.0.0.1:8080".parse().unwrap()));
    Arc::make_mut(&mut attempt.events[0].event).data = vec![b'1'; BODY].into();
    assert_eq!(sender.send(attempt).await.outcome, delivered(200));
    go.notify_one();
    assert!(timeout(SOON, seen.recv()).await.unwrap().unwrap() > BODY);
}

#[tokio::test(start_paused = true)]
async fn idle_and_old_connections_are_closed() {
    let (told, mut lives) = mpsc::unbounded_channel();
    let dialer = InMemory {
        group: Group::default(),
        handle: move |mut stream: tokio::io::DuplexStream| {
            let told = told.clone();
            async move {
                let born = Instant::now();
                let mut served = 0;
                while read_request(&mut stream).await.is_some() {
                    stream.write_all(OK).await.unwrap();
                    served += 1;
                }
                let _ = told.send((served, born.elapsed().as_secs()));
            }
        },
    };
    let sender = sender(Arc::new(dialer), Names::none(), loopback(), b"", Limits::default());
    let hook = to("127.0.0.1:8080".parse().unwrap());
    assert_eq!(sender.send(attempt(&hook)).await.outcome, delivered(200));
    let (served, seconds) = lives.recv().await.unwrap();
    assert!(
        served == 1 && (30..=36).contains(&seconds),
        "idle: {served} in {seconds} s"
    );
    let mut ticks = tokio::time::interval(Duration::from_secs(10));
    let (served, seconds) = loop {
        tokio::select! {
            life = lives.recv() => break life.unwrap(),
            _ = ticks.tick() => assert_eq!(sender.send(attempt(&hook)).await.outcome, delivered(200)),
        }
    };
    assert!(
        served >= 30 && (300..=311).contains(&seconds),
        "busy: {served} in {seconds} s"
    );
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_limit_wait_for_their_turn_and_then_are_not_made() {
    let dialer = InMemory {
        group: Group::default(),
        handle: |mut stream: tokio::io::DuplexStream| async move {
            read_request(&mut stream).await.unwrap();
            let _ = stream.read_u8().await;
        },
    };
    let dialer: Arc<dyn Dialer> = Arc::new(dialer);
    let to_a_host = Limits {
        in_flight_per_host: 1,
        ..Limits::default()
    };
    let in_all = Limits {
        in_flight: 1,
        ..Limits::default()
    };
    for (limits, port) in [(to_a_host, 8080), (in_all, 8081)] {
        let counters = Arc::<Counters>::default();
        let sender = HttpSender::new(Deps {
            counters: Arc::clone(&counters),
            ..deps(Arc::clone(&dialer), Names::none(), loopback(), b"", limits)
        });
        let [first, second] = [8080, port].map(|port| to(SocketAddr::from(([127, 0, 0, 1], port))));
        let start = Instant::now();
        let (first, second) = tokio::join!(async { sender.send(attempt(&first)).await.outcome }, async {
            let outcome = sender.send(attempt(&second)).await.outcome;
            (outcome, start.elapsed())
        });
        assert_eq!(first, failed(Reason::Timeout));
        assert!(matches!(second.0, Outcome::NotMade { .. }));
        assert_eq!(second.1.as_secs(), 5);
        assert_eq!(start.elapsed().as_secs(), 15);
        assert_eq!(counters.waited.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_for_its_turn_is_made() {
    let dialer = InMemory {
        group: Group::default(),
        handle: |mut stream: tokio::io::DuplexStream| async move {
            while read_request(&mut stream).await.is_some() {
                stream.write_all(OK).await.unwrap();
            }
        },
    };
    let limits = Limits {
        in_flight: 1,
        ..Limits::default()
    };
    let sender = sender(Arc::new(dialer), Names::none(), loopback(), b"", limits);
    let hook = to("127.0.0.1:8080".parse().unwrap());
    let sent = (0..50).map(|_| async { sender.send(attempt(&hook)).await.outcome });
    let outcomes = futures_util::future::join_all(sent).await;
    assert_eq!(outcomes, vec![delivered(200); 50]);
}

#[tokio::test(start_paused = true)]
async fn a_body_of_16_kib_is_read_and_a_longer_or_slower_one_is_cut_and_counted_and_its_status_counts() {
    const MOST: usize = 16 << 10;
    // Bytes that are announced, that are sent, and how many of two answers are cut.
    for (announced, sent, cut) in [(MOST, MOST, 0), (MOST + 1, MOST + 1, 2), (2, 1, 2)] {
        let connections = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&connections);
        let dialer = InMemory {
            group: Group::default(),
            handle: move |mut stream: tokio::io::DuplexStream| {
                count.fetch_add(1, Ordering::Relaxed);
                async move {
                    while read_request(&mut stream).await.is_some() {
                        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {announced}\r\n\r\n");
                        let _ = stream.write_all(head.as_bytes()).await;
                        let _ = stream.write_all(&vec![b'x'; sent]).await;
                    }
                }
            },
        };
        let counters = Arc::<Counters>::default();
        let sender = HttpSender::new(Deps {
            counters: Arc::clone(&counters),
            ..deps(Arc::new(dialer), Names::none(), loopback(), b"", Limits::default())
        });
        let hook = to("127.0.0.1:8080".parse().unwrap());
        for _ in 0..2 {
            assert_eq!(sender.send(attempt(&hook)).await.outcome, delivered(200));
        }
        assert_eq!(counters.cut.load(Ordering::Relaxed), cut, "{announced} announced");
        // A connection whose answer was cut is not used again.
        assert_eq!(connections.load(Ordering::Relaxed), cut.max(1), "{announced} announced");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once_are_all_delivered_on_few_connections() {
    const AT_ONCE: usize = 32;
    const EACH: usize = 50;
    let group = Group::default();
    let (address, mut requests) = answering(&group, OK).await;
    let bench = Bench::new();
    let hook = to(address);
    let all = (0..AT_ONCE).map(|_| async {
        for _ in 0..EACH {
            assert_eq!(bench.send(&hook).await, delivered(200));
        }
    });
    futures_util::future::join_all(all).await;
    assert_eq!(requests.len(), AT_ONCE * EACH);
    assert_eq!(requests.recv().await.unwrap().1.line, "POST /hook?a=b HTTP/1.1");
    assert!(
        bench.dialer.dialled().len() <= AT_ONCE,
        "{}",
        bench.dialer.dialled().len()
    );
}
