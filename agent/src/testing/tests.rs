//! Tests of tests: each is made once, cut when nobody asks any more, and answered on the lease of who asked.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::StreamExt as _;
use postrider_common::egress::Policy;
use postrider_common::entropy::{Entropy as _, SystemEntropy};
use postrider_common::id::{AccountId, EventId, EventName, Uid, WebhookId};
use postrider_common::model::segment::Event;
use postrider_common::model::testing::{Test, TestOutcome};
use postrider_common::model::webhook::{Auth, Webhook, WhenInactive};
use postrider_common::net::TcpDialer;
use postrider_common::secret::Keyring;
use postrider_common::store::memory::{Fault, MemoryStore};
use postrider_common::store::{Change, LeaseId, Revision, Store as _, list_all};
use postrider_common::time::{SystemClock, Timestamp};
use postrider_common::wire::stored::{decode_transcript, encode_test};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::attempt::sender;
use crate::transport::tls::{Roots, client_config};

const SOON: Duration = Duration::from_secs(10);

struct World {
    store: MemoryStore,
    group: task::Group,
    agent: AgentId,
    entropy: SystemEntropy,
}

impl World {
    fn new() -> Self {
        let (store, group) = (MemoryStore::default(), task::Group::default());
        let entropy = SystemEntropy::seeded(5);
        let agent = AgentId::new("agent-1").unwrap();
        let sender = HttpSender::new(sender::Deps {
            dialer: Arc::new(TcpDialer),
            resolver: Arc::new(crate::transport::resolve::SystemResolver::new().unwrap()),
            policy: Arc::new(Policy::allowing(["127.0.0.0/8".parse().unwrap()])),
            keyring: Arc::new(Keyring::parse(&Keyring::generate(&entropy)).unwrap()),
            clock: Arc::new(SystemClock),
            tls: client_config(Roots::BuiltIn, b"").unwrap(),
            limits: crate::transport::Limits::default(),
            counters: Arc::default(),
        });
        let deps = Deps {
            store: Arc::new(store.clone()),
            agent: agent.clone(),
            sender: Arc::new(sender),
        };
        spawn(&group, deps);
        Self {
            store,
            group,
            agent,
            entropy,
        }
    }

    /// Asks for a test on a lease of its own.
    async fn ask(&self, receiver: SocketAddr) -> (Uid, LeaseId) {
        let lease = self.store.grant(Duration::from_secs(60)).await.unwrap().id;
        let id = self.entropy.uid(Timestamp::from_millis(1));
        let key = key::test(&self.agent, &id);
        let ops = vec![Op::put_leased(key, encode_test(test(receiver)), lease)];
        let write = Write {
            guards: Vec::new(),
            ops,
        };
        self.store.write(write).await.unwrap();
        (id, lease)
    }

    async fn answer(&self, id: &Uid) -> Transcript {
        let mut watch = self.store.watch(&key::test_answer(id), Revision(1)).await.unwrap();
        let answered = async {
            loop {
                for change in watch.next().await.unwrap().unwrap().changes {
                    if let Change::Put(entry) = change {
                        return decode_transcript(entry.value).unwrap();
                    }
                }
            }
        };
        timeout(SOON, answered).await.expect("an answer")
    }
}

fn test(receiver: SocketAddr) -> Test {
    let account = AccountId::new("1010").unwrap();
    Test {
        webhook: Webhook {
            account: account.clone(),
            id: WebhookId::new("w").unwrap(),
            uid: Uid::new("018f4c1e-7c55-7a3e-8b1a-2f4d5e6a7b8c").unwrap(),
            generation: 1,
            create_time: Timestamp::default(),
            update_time: Timestamp::default(),
            display_name: String::new(),
            description: String::new(),
            target_url: format!("http://{receiver}/hook"),
            auth: Auth::None,
            event_types: Vec::new(),
            active: false,
            when_inactive: WhenInactive::Drop,
            max_in_flight: None,
            http_version: postrider_common::model::webhook::HttpVersion::Negotiated,
            payload_format: postrider_common::model::webhook::PayloadFormat::Envelope,
            batching: postrider_common::model::batching::Batching::default(),
            order: postrider_common::model::order::Order::default(),
            filter: None,
            rate_limit: None,
            numbered: false,
            suspension: None,
            timeout: None,
            retry: postrider_common::retry::Policy::default(),
            headers: Vec::new(),
            labels: std::collections::BTreeMap::new(),
        },
        event: Event {
            account,
            id: EventId::new("test_1").unwrap(),
            name: EventName::new("COURSE_COMPLETED").unwrap(),
            timestamp: Timestamp::from_millis(1),
            ordering_key: None,
            expire_time: None,
            event_info: Some("info".into()),
            data: Bytes::from_static(b"{\"a\":1}"),
            accept_time: Timestamp::default(),
            traceparent: None,
            category: postrider_common::model::event_type::Category::default(),
            not_before_time: None,
        },
    }
}

/// Gives every connection to the test.
async fn receiver(group: &task::Group) -> (SocketAddr, mpsc::UnboundedReceiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, connections) = mpsc::unbounded_channel();
    group.spawn("receiver", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = sender.send(stream);
        }
    });
    (address, connections)
}

async fn accept(connections: &mut mpsc::UnboundedReceiver<TcpStream>) -> TcpStream {
    timeout(SOON, connections.recv()).await.expect("a connection").unwrap()
}

async fn take(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"]}") {
        request.push(stream.read_u8().await.unwrap());
    }
    stream
        .write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok")
        .await
        .unwrap();
    String::from_utf8(request).unwrap()
}

#[tokio::test]
async fn a_test_shows_what_was_sent_and_what_came_back() {
    let world = World::new();
    let (address, mut connections) = receiver(&world.group).await;
    let (id, lease) = world.ask(address).await;
    let request = take(&mut accept(&mut connections).await).await;
    let transcript = world.answer(&id).await;
    assert_eq!(transcript.outcome, TestOutcome::Delivered);
    assert_eq!(transcript.agent, world.agent);
    assert_eq!(
        (transcript.resolved, transcript.address),
        (vec![address.ip()], Some(address))
    );
    assert!(transcript.phases.connect.is_some() && transcript.phases.first_byte.is_some());
    let sent = transcript.sent.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!(sent.body, body);
    let mut on_the_wire: Vec<_> = head.lines().skip(1).map(str::to_owned).collect();
    let mut shown: Vec<_> = sent
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    on_the_wire.sort();
    shown.sort();
    assert_eq!(shown, on_the_wire, "all headers, as they were sent");
    let answered = transcript.answered.unwrap();
    assert_eq!((answered.status, answered.version.as_str()), (202, "HTTP/1.1"));
    assert_eq!((answered.said.body.as_str(), answered.said.body_cut), ("ok", false));
    world.store.revoke(lease).await.unwrap();
    for prefix in [key::tests_of(&world.agent), key::test_answers()] {
        let left = list_all(&world.store, &prefix, true).await.unwrap().0;
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test]
async fn no_connection_is_used_for_two_tests() {
    let world = World::new();
    let (address, mut connections) = receiver(&world.group).await;
    for _ in 0..3 {
        let (id, _) = world.ask(address).await;
        take(&mut accept(&mut connections).await).await;
        assert_eq!(world.answer(&id).await.outcome, TestOutcome::Delivered);
    }
}

#[tokio::test]
async fn a_test_that_nobody_asks_for_any_more_is_cut() {
    let world = World::new();
    let (address, mut connections) = receiver(&world.group).await;
    let (_, lease) = world.ask(address).await;
    let mut stream = accept(&mut connections).await;
    world.store.revoke(lease).await.unwrap();
    let mut rest = Vec::new();
    // To the end of the connection, well before the timeout of the webhook.
    timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
}

#[tokio::test]
async fn tests_beyond_the_limit_wait_and_all_are_made_once() {
    let world = World::new();
    let (address, mut connections) = receiver(&world.group).await;
    let mut ids = Vec::new();
    for _ in 0..AT_ONCE + 3 {
        ids.push(world.ask(address).await.0);
    }
    let mut streams = Vec::new();
    for _ in 0..AT_ONCE {
        streams.push(accept(&mut connections).await);
    }
    assert!(connections.try_recv().is_err());
    for mut stream in streams {
        take(&mut stream).await;
    }
    for _ in 0..3 {
        take(&mut accept(&mut connections).await).await;
    }
    for id in &ids {
        assert_eq!(world.answer(id).await.outcome, TestOutcome::Delivered);
    }
    assert!(connections.try_recv().is_err(), "none is made twice");
}

#[tokio::test]
async fn an_answer_whose_write_fails_is_written_again() {
    for fault in [Fault::LostAnswer, Fault::LostRequest, Fault::Away] {
        let world = World::new();
        let (address, mut connections) = receiver(&world.group).await;
        let mut left = 2;
        world.store.inject(Box::new(move |write| {
            let answers = write.ops.iter().any(|op| key::parse_test_answer(op.key()).is_some());
            (answers && left > 0).then(|| {
                left -= 1;
                fault
            })
        }));
        let (id, _) = world.ask(address).await;
        take(&mut accept(&mut connections).await).await;
        assert_eq!(world.answer(&id).await.outcome, TestOutcome::Delivered);
        assert!(connections.try_recv().is_err());
    }
}
