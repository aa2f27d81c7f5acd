//! Receivers that break rules, stall, flood and lure.

use super::*;

/// A timeout for attempts that must run into it.
const SHORT: Duration = Duration::from_millis(400);

/// Sends to a receiver that behaves so, with [`SHORT`] as timeout. Gives the outcome and how long it took.
async fn against<F, H>(handle: H) -> (Outcome, Duration)
where
    F: Future<Output = ()> + Send + 'static,
    H: Fn(usize, TcpStream) -> F + Send + 'static,
{
    let group = Group::default();
    let address = serve(&group, handle).await;
    let start = Instant::now();
    let outcome = Bench::new().send(&within(address, SHORT)).await;
    (outcome, start.elapsed())
}

fn was_cut(elapsed: Duration) -> bool {
    (SHORT..SHORT * 10).contains(&elapsed)
}

#[tokio::test]
async fn a_receiver_that_closes_before_it_answers_is_disconnected() {
    let (outcome, _) = against(|_, mut stream| async move {
        read_request(&mut stream).await;
    })
    .await;
    assert_eq!(outcome, failed(Reason::Disconnected));
}

#[tokio::test]
async fn a_receiver_that_breaks_off_within_the_head_is_disconnected() {
    let (outcome, _) = against(|_, mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await.unwrap();
    })
    .await;
    assert_eq!(outcome, failed(Reason::Disconnected));
}

#[tokio::test]
async fn a_reset_before_the_answer_is_disconnected() {
    let (outcome, _) = against(|_, mut stream| async move {
        read_request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    assert_eq!(outcome, failed(Reason::Disconnected));
}

#[tokio::test]
async fn a_reset_after_a_2xx_status_is_a_delivery() {
    let (outcome, _) = against(|_, mut stream| async move {
        read_request(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 100\r\n\r\nabc")
            .await
            .unwrap();
        // The reset would overtake what was not yet read: wait until the other side has closed or the test is over.
        let _ = timeout(SOON, stream.read_u8()).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    assert_eq!(outcome, delivered(202));
}

#[tokio::test]
async fn nobody_listening_is_a_failure_to_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert_eq!(Bench::new().send(&to(address)).await, failed(Reason::Connect));
}

#[tokio::test]
async fn silence_is_cut_at_the_deadline() {
    let (outcome, elapsed) = against(|_, mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.read_u8().await;
    })
    .await;
    assert_eq!(outcome, failed(Reason::Timeout));
    assert!(was_cut(elapsed), "{elapsed:?}");
}

#[tokio::test]
async fn a_trickle_of_headers_is_cut_at_the_deadline() {
    let (outcome, elapsed) = against(|_, mut stream| async move {
        read_request(&mut stream).await;
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while stream.write_all(b"a").await.is_ok() {
            ticks.tick().await;
        }
    })
    .await;
    assert_eq!(outcome, failed(Reason::Timeout));
    assert!(was_cut(elapsed), "{elapsed:?}");
}

#[tokio::test]
async fn a_stalled_body_does_not_hold_the_outcome() {
    let group = Group::default();
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000000000\r\n\r\nabc";
    let address = serve(&group, move |_, stream| answer_once(stream, answer)).await;
    let start = Instant::now();
    assert_eq!(Bench::new().send(&to(address)).await, delivered(200));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_endless_body_is_read_no_further_than_needed() {
    let group = Group::default();
    let (told, mut written) = mpsc::unbounded_channel();
    let address = serve(&group, move |_, mut stream| {
        let told = told.clone();
        async move {
            read_request(&mut stream).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                .await;
            let chunk = [b"1000\r\n".as_slice(), &[b'x'; 0x1000], b"\r\n"].concat();
            let mut bytes = 0_usize;
            while stream.write_all(&chunk).await.is_ok() {
                bytes += chunk.len();
            }
            let _ = told.send(bytes);
        }
    })
    .await;
    let bench = Bench::new();
    assert_eq!(bench.send(&to(address)).await, delivered(200));
    // That it ends at all means that we closed; what it wrote stands in the kernel's buffers.
    let bytes = timeout(SOON, written.recv()).await.unwrap().unwrap();
    assert!(bytes < 32 * 1024 * 1024, "{bytes}");
    assert_eq!(bench.send(&to(address)).await, delivered(200));
    assert_eq!(bench.dialer.dialled().len(), 2, "the connection is not used again");
}

#[tokio::test]
async fn too_many_or_too_long_headers_break_the_protocol() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(101));
    assert_eq!(outcome_of(many).await, failed(Reason::Protocol));
    let enough = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{}\r\n", "x: y\r\n".repeat(99));
    assert_eq!(outcome_of(enough).await, delivered(200));
    let of = |bytes| {
        let long = "y".repeat(bytes);
        outcome_of(format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx: {long}\r\n\r\n"))
    };
    assert_eq!(of(60_000).await, delivered(200));
    // What comes with the last bytes that still fit may be read as well.
    assert_eq!(of(140_000).await, failed(Reason::Protocol));
}

#[tokio::test]
async fn what_is_not_http_breaks_the_protocol() {
    for answer in [
        "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        "hello\r\n\r\n",
        "<html>HTTP/0.9</html>\r\n\r\n",
        "HTTP/1.1 099 Low\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 20 Short\r\ncontent-length: 0\r\n\r\n",
        "HTTP/3.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "\u{0}\u{1}\u{2}\u{3}\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        assert_eq!(outcome_of(answer).await, failed(Reason::Protocol), "{answer}");
    }
}

#[tokio::test]
async fn a_status_that_is_no_final_one_breaks_the_protocol() {
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
    assert_eq!(outcome_of(upgrade).await, failed_with(Reason::Protocol, Some(101)));
    let beyond = "HTTP/1.1 999 Beyond\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(outcome_of(beyond).await, failed_with(Reason::Protocol, Some(999)));
}

#[tokio::test]
async fn a_few_informational_answers_are_passed_over_and_many_break_the_protocol() {
    let hint = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
    let few = hint.repeat(8) + "HTTP/1.1 204 No Content\r\n\r\n";
    assert_eq!(outcome_of(few).await, delivered(204));
    let (outcome, elapsed) = against(move |_, mut stream| async move {
        read_request(&mut stream).await;
        while stream.write_all(hint.as_bytes()).await.is_ok() {}
    })
    .await;
    assert_eq!(outcome, failed(Reason::Protocol));
    assert!(elapsed < SHORT, "{elapsed:?}");
}

#[tokio::test]
async fn every_2xx_is_a_delivery() {
    for (status, rest) in [
        (200, ""),
        (201, "content-length: 0\r\n"),
        (204, ""),
        (205, "content-length: 0\r\n"),
        (206, ""),
        (299, ""),
    ] {
        let group = Group::default();
        let address = serve(&group, move |_, mut stream| async move {
            read_request(&mut stream).await;
            let _ = stream
                .write_all(format!("HTTP/1.1 {status} X\r\n{rest}\r\n").as_bytes())
                .await;
        })
        .await;
        assert_eq!(Bench::new().send(&to(address)).await, delivered(status));
    }
}

#[tokio::test]
async fn compressed_answers_are_neither_asked_for_nor_decoded() {
    let group = Group::default();
    let mut answer = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 12\r\n\r\n".to_vec();
    answer.extend_from_slice(b"\x1f\x8b\x08bombbombb");
    let (address, mut requests) = answering(&group, answer).await;
    let bench = Bench::new();
    assert_eq!(bench.send(&to(address)).await, delivered(200));
    assert_eq!(bench.send(&to(address)).await, delivered(200));
    for _ in 0..2 {
        let (connection, request) = requests.recv().await.unwrap();
        assert_eq!(request.header("accept-encoding"), None);
        assert_eq!(connection, 0);
    }
}

#[tokio::test]
async fn redirects_are_never_followed() {
    for status in [301, 302, 303, 307, 308] {
        let group = Group::default();
        let answer =
            format!("HTTP/1.1 {status} Moved\r\nlocation: http://169.254.169.254/latest\r\ncontent-length: 0\r\n\r\n");
        let (address, _requests) = answering(&group, answer).await;
        let bench = Bench::new();
        assert_eq!(
            bench.send(&to(address)).await,
            failed_with(Reason::Redirect, Some(status))
        );
        assert_eq!(bench.dialer.dialled(), [address]);
    }
}

#[tokio::test]
async fn a_receiver_that_asks_for_rest_gets_it() {
    for (answer, reason, status, wait) in [
        ("429 X\r\nretry-after: 7\r\n", Reason::Throttled, 429, Some(7)),
        ("429 X\r\n", Reason::Throttled, 429, None),
        ("429 X\r\nretry-after: -1\r\n", Reason::Throttled, 429, None),
        (
            "503 X\r\nretry-after: 1000000000\r\n",
            Reason::Throttled,
            503,
            Some(86_400),
        ),
        ("503 X\r\nretry-after: garbage\r\n", Reason::Status, 503, None),
        ("503 X\r\n", Reason::Status, 503, None),
        ("500 X\r\nretry-after: 7\r\n", Reason::Status, 500, None),
        ("410 X\r\n", Reason::Gone, 410, None),
    ] {
        let outcome = outcome_of(format!("HTTP/1.1 {answer}content-length: 0\r\n\r\n")).await;
        let expected = Outcome::Failed {
            reason,
            status: Some(status),
            retry_after: wait.map(Duration::from_secs),
        };
        assert_eq!(outcome, expected, "{answer}");
    }
}

#[tokio::test]
async fn a_dropped_attempt_cuts_its_connection() {
    let group = Group::default();
    let (told, mut events) = mpsc::unbounded_channel();
    let address = serve(&group, move |_, mut stream| {
        let told = told.clone();
        async move {
            read_request(&mut stream).await;
            let _ = told.send("request");
            let _ = stream.read_u8().await;
            let _ = told.send("closed");
        }
    })
    .await;
    let (bench, hook) = (Bench::new(), to(address));
    tokio::select! {
        outcome = bench.send(&hook) => panic!("{outcome:?}"),
        event = events.recv() => assert_eq!(event, Some("request")),
    }
    assert_eq!(timeout(SOON, events.recv()).await.unwrap(), Some("closed"));
}

#[tokio::test]
async fn a_forbidden_target_is_never_dialled_however_it_came_into_the_store() {
    let urls = [
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:10.0.0.1]/",
        "http://2130706433/",
        "http://a.example.com/",
        "http://localhost/",
        "http://8.8.8.8:22/",
        "http://user@8.8.8.8/",
        "file:///etc/passwd",
        "",
    ];
    for url in urls {
        let bench = Bench::with(Names::loopback(), Policy::default(), b"", Limits::default());
        assert_eq!(
            bench.send(&Arc::new(webhook(url))).await,
            failed(Reason::BlockedAddress),
            "{url}"
        );
        assert_eq!(bench.dialer.dialled(), [], "{url}");
    }
}

#[tokio::test]
async fn a_header_that_cannot_be_sent_fails_the_attempt_and_nothing_is_dialled() {
    let mut hook = webhook("http://127.0.0.1:8080/");
    hook.headers = vec![("x-a".to_owned(), "b\r\nwebhook-id: forged".to_owned())];
    let bench = Bench::new();
    assert_eq!(bench.send(&Arc::new(hook)).await, failed(Reason::Protocol));
    assert_eq!(bench.dialer.dialled(), []);
}

#[tokio::test]
async fn an_answer_of_two_lengths_is_heeded_but_its_connection_is_not_used_again() {
    let group = Group::default();
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let (address, _requests) = answering(&group, answer).await;
    let bench = Bench::new();
    for expected in 1..3 {
        assert_eq!(bench.send(&to(address)).await, delivered(200));
        assert_eq!(bench.dialer.dialled().len(), expected);
    }
}
