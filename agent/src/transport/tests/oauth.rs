//! Access tokens: got once for all requests of a webhook, by the same guarded way out, and never sent where none was had.

use postrider_common::model::auth::{ClientAuthentication, OAuth2, place};

use super::*;

/// The answer that grants a token.
pub(super) fn granting(token: &str, seconds: u32) -> Bytes {
    let body = format!("{{\"access_token\":\"{token}\",\"token_type\":\"Bearer\",\"expires_in\":{seconds}}}");
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into()
}

/// A token endpoint: answers number n with `answer(n)`, and tells what it was asked.
pub(super) async fn endpoint(
    group: &Group,
    answer: impl Fn(usize) -> Bytes + Send + Sync + 'static,
) -> (SocketAddr, mpsc::UnboundedReceiver<Request>) {
    let (told, asked) = mpsc::unbounded_channel();
    let shared = Arc::new((Mutex::new(0), answer));
    let address = serve(group, move |_, mut stream| {
        let (told, shared) = (told.clone(), Arc::clone(&shared));
        async move {
            while let Some(request) = read_request(&mut stream).await {
                let number = {
                    let mut count = shared.0.lock().unwrap();
                    *count += 1;
                    *count - 1
                };
                let _ = told.send(request);
                if stream.write_all(&(shared.1)(number)).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (address, asked)
}

/// A webhook whose tokens are had at `tokens`.
pub(super) fn hook(receiver: SocketAddr, tokens: &str) -> Arc<Webhook> {
    let (ring, entropy) = keyring();
    let mut hook = webhook(&format!("http://{receiver}/"));
    let context = Webhook::seal_context(&hook.account, &hook.uid, place::CLIENT_SECRET);
    hook.auth = Auth::OAuth2(OAuth2 {
        token_url: tokens.to_owned(),
        client_id: "ada".to_owned(),
        client_secret: ring.seal(b"secret", &context, &entropy),
        scopes: vec!["hooks".to_owned()],
        audience: String::new(),
        client_authentication: ClientAuthentication::Basic,
    });
    Arc::new(hook)
}

pub(super) fn all<T>(queue: &mut mpsc::UnboundedReceiver<T>) -> Vec<T> {
    std::iter::from_fn(|| queue.try_recv().ok()).collect()
}

#[tokio::test]
async fn many_requests_at_once_share_one_token() {
    let group = Group::default();
    let (tokens, mut asked) = endpoint(&group, |number| granting(&format!("t{number}"), 3600)).await;
    let (receiver, mut requests) = answering(&group, OK).await;
    let (bench, hook) = (Bench::new(), hook(receiver, &format!("http://{tokens}/token")));
    let sent = futures_util::future::join_all((0..20).map(|_| bench.send(&hook))).await;
    assert!(sent.iter().all(|outcome| *outcome == delivered(200)), "{sent:?}");
    assert_eq!(bench.send(&hook).await, delivered(200));
    let asked = all(&mut asked);
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].line, "POST /token HTTP/1.1");
    assert_eq!(asked[0].header("authorization"), Some("Basic YWRhOnNlY3JldA=="));
    assert_eq!(asked[0].body, b"grant_type=client_credentials&scope=hooks");
    let requests = all(&mut requests);
    assert_eq!(requests.len(), 21);
    for (_, request) in requests {
        assert_eq!(request.header("authorization"), Some("Bearer t0"));
    }
}

#[tokio::test]
async fn a_token_that_has_expired_is_not_used_again() {
    let group = Group::default();
    let (tokens, mut asked) = endpoint(&group, |number| granting(&format!("t{number}"), 0)).await;
    let (receiver, mut requests) = answering(&group, OK).await;
    let (bench, hook) = (Bench::new(), hook(receiver, &format!("http://{tokens}/token")));
    for number in 0..3 {
        assert_eq!(bench.send(&hook).await, delivered(200));
        let (_, request) = requests.recv().await.unwrap();
        assert_eq!(
            request.header("authorization"),
            Some(format!("Bearer t{number}").as_str())
        );
    }
    assert_eq!(all(&mut asked).len(), 3);
}

#[tokio::test]
async fn a_401_drops_the_token_once_and_not_the_next_one_at_once() {
    let group = Group::default();
    let (tokens, mut asked) = endpoint(&group, |number| granting(&format!("t{number}"), 3600)).await;
    let refusal = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
    let (receiver, mut requests) = answering(&group, refusal).await;
    let (bench, hook) = (Bench::new(), hook(receiver, &format!("http://{tokens}/token")));
    for token in ["t0", "t1", "t1", "t1"] {
        assert_eq!(bench.send(&hook).await, failed_with(Reason::Status, Some(401)));
        let (_, request) = requests.recv().await.unwrap();
        assert_eq!(
            request.header("authorization"),
            Some(format!("Bearer {token}").as_str())
        );
    }
    assert_eq!(all(&mut asked).len(), 2);
}

#[tokio::test]
async fn without_a_token_nothing_is_sent_and_the_attempt_says_why() {
    let group = Group::default();
    let (receiver, mut requests) = answering(&group, OK).await;
    let long = granting(&"x".repeat(70_000), 60);
    let answers = [
        Bytes::from_static(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n"),
        Bytes::from_static(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n"),
        Bytes::from_static(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
        Bytes::from_static(b"HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\n{"),
        Bytes::from_static(b"what?"),
        long,
    ];
    for answer in answers {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned();
        let address = serve(&group, move |_, mut stream| {
            let answer = answer.clone();
            async move {
                if read_request(&mut stream).await.is_some() {
                    let _ = stream.write_all(&answer).await;
                }
            }
        })
        .await;
        let hook = hook(receiver, &format!("http://{address}/"));
        assert_eq!(Bench::new().send(&hook).await, failed(Reason::Token), "{shown}");
    }
    let silent = serve(&group, |_, mut stream| async move {
        let _ = read_request(&mut stream).await;
        let _ = stream.read_u8().await;
    })
    .await;
    let mut slow = Webhook::clone(&hook(receiver, &format!("http://{silent}/")));
    slow.timeout = Some(Duration::from_millis(300));
    assert_eq!(Bench::new().send(&Arc::new(slow)).await, failed(Reason::Token));
    assert!(all(&mut requests).is_empty());
}

#[tokio::test]
async fn an_answer_of_a_token_endpoint_is_read_up_to_64_kib() {
    let group = Group::default();
    let (receiver, _requests) = answering(&group, OK).await;
    for (length, outcome) in [(64 << 10, delivered(200)), ((64 << 10) + 1, failed(Reason::Token))] {
        let (begin, end) = ("{\"access_token\":\"t\",\"more\":\"", "\"}");
        let more = "x".repeat(length - begin.len() - end.len());
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{begin}{more}{end}");
        let (tokens, _asked) = endpoint(&group, move |_| answer.clone().into()).await;
        let hook = hook(receiver, &format!("http://{tokens}/"));
        assert_eq!(Bench::new().send(&hook).await, outcome, "{length}");
    }
}

#[tokio::test]
async fn a_token_url_that_leads_to_a_forbidden_address_is_not_dialled() {
    let group = Group::default();
    let (receiver, mut requests) = answering(&group, OK).await;
    for url in [
        "http://10.0.0.1/",
        "http://169.254.169.254/token",
        "http://name.example.com/",
    ] {
        let names = Arc::new(Names(Ok(vec![IpAddr::from([10, 0, 0, 1])])));
        let bench = Bench::with(names, loopback(), b"", Limits::default());
        assert_eq!(bench.send(&hook(receiver, url)).await, failed(Reason::Token), "{url}");
        assert_eq!(bench.dialer.dialled(), []);
    }
    assert!(all(&mut requests).is_empty());
}
