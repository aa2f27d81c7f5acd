//! Tests of publishing, from a request to what is in the store, with a store that fails.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use postrider_common::entropy::Entropy as _;
use postrider_common::entropy::SystemEntropy;
use postrider_common::id::AccountId;
use postrider_common::key::{self, Key};
use postrider_common::model::account::{Account, UnknownEventTypes};
use postrider_common::model::event_type::Category;
use postrider_common::store::memory::{Fault, MemoryStore};
use postrider_common::store::{Change, Op, Revision, Store, Write, list_all};
use postrider_common::time::{Clock, Timestamp};
use postrider_common::wire::stored;
use postrider_proto::v1;
use proptest::prelude::*;

use super::*;
use crate::catalog::view::tests::webhook;

mod repeated;
mod trouble;

pub(crate) struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_727_414_643_000)
    }
}

/// A publisher on a store in memory.
pub(crate) struct Bench {
    pub(crate) store: MemoryStore,
    pub(crate) group: Group,
    pub(crate) publisher: Publisher,
}

impl Bench {
    pub(crate) async fn new(store: &MemoryStore, seed: u64) -> Self {
        Self::at(store, seed, Arc::new(FixedClock)).await
    }

    async fn at(store: &MemoryStore, seed: u64, clock: SharedClock) -> Self {
        let group = Group::default();
        let shared: SharedStore = Arc::new(store.clone());
        let catalog = Catalog::spawn(&group, shared.clone(), NonZeroU16::new(8).unwrap());
        let deps = Deps {
            lease: Arc::new(DedupeLease::new(shared.clone())),
            store: shared,
            catalog,
            clock,
            entropy: Arc::new(SystemEntropy::seeded(seed)),
            control_plane: ControlPlaneId::new("cp").unwrap(),
            quota: Some(64 << 20),
            counters: Arc::default(),
            backlog: Arc::default(),
            fullness: Arc::default(),
        };
        let publisher = Publisher::spawn(&group, deps);
        publisher.ready().await.unwrap();
        Self {
            store: store.clone(),
            group,
            publisher,
        }
    }

    async fn publish(&self, request: Request) -> Outcome {
        self.publisher.submit(request)?.outcome().await
    }
}

pub(crate) async fn put_webhook(store: &MemoryStore, id: &str, patterns: &[&str]) -> Revision {
    let webhook = webhook("a", id, patterns);
    let op = Op::put(
        key::webhook(&webhook.account, &webhook.id),
        stored::encode_webhook(&webhook),
    );
    let write = Write {
        guards: Vec::new(),
        ops: vec![op],
    };
    store.write(write).await.unwrap()
}

async fn put_event_type(store: &MemoryStore, name: &str, category: Category, schema: Option<&'static str>) -> Revision {
    let mut event_type = screen::tests::event_type(name, category);
    event_type.schema = schema.map(Into::into);
    let op = Op::put(
        key::event_type(&event_type.name),
        stored::encode_event_type(&event_type),
    );
    let write = Write {
        guards: Vec::new(),
        ops: vec![op],
    };
    store.write(write).await.unwrap()
}

fn event(id: &str, name: &str, body: impl Into<bytes::Bytes>) -> v1::Event {
    v1::Event {
        event_id: id.into(),
        event_name: name.into(),
        body: Some(v1::event::Body::DataJson(body.into())),
        ..v1::Event::default()
    }
}

fn request(events: Vec<v1::Event>, request_id: Option<usize>) -> Request {
    Request {
        parent: "accounts/a".into(),
        events,
        request_id: request_id.map_or(String::new(), |number| format!("00000000-0000-4000-8000-{number:012x}")),
        traceparent: None,
    }
}

/// How often each event stands in the store for each webhook, with its body.
type Seen = HashMap<(String, String), Vec<bytes::Bytes>>;

fn note(seen: &mut Seen, segment: bytes::Bytes) {
    let segment = stored::unpack(segment).unwrap();
    for target in &segment.targets {
        for delivery in &target.deliveries {
            let event = &segment.events[delivery.event as usize];
            let place = (event.id.to_string(), target.webhook.to_string());
            seen.entry(place).or_default().push(event.data.clone());
        }
    }
}

async fn seen(store: &MemoryStore) -> Seen {
    let mut seen = Seen::new();
    let (entries, _) = list_all(store, &Key::from_stored("queue/"), false).await.unwrap();
    for entry in entries {
        note(&mut seen, entry.value);
    }
    seen
}

async fn keys(store: &MemoryStore, prefix: &str) -> usize {
    list_all(store, &Key::from_stored(prefix), true).await.unwrap().0.len()
}

fn is_publish(write: &Write) -> bool {
    write.ops.iter().any(|op| op.key().as_str().starts_with("writers/"))
}

/// Follows the queue as agents do, and deletes what it has seen.
async fn agent(store: MemoryStore, seen: Arc<Mutex<Seen>>) {
    use futures_util::StreamExt as _;
    let mut watch = store.watch(&Key::from_stored("queue/"), Revision(1)).await.unwrap();
    while let Some(Ok(changes)) = watch.next().await {
        for change in changes.changes {
            let Change::Put(entry) = change else { continue };
            note(&mut seen.lock().unwrap(), entry.value);
            let ops = vec![Op::delete(entry.key)];
            store
                .write(Write {
                    guards: Vec::new(),
                    ops,
                })
                .await
                .unwrap();
        }
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(future)
}

/// One request of a scenario: names of its events, its id, and whether others may run before it.
type Step = (Vec<String>, Option<usize>, bool);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let names = proptest::collection::vec("[AB]|NOBODY", 1..4);
    proptest::collection::vec((names, proptest::option::of(0_usize..6), any::<bool>()), 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_was_answered_ok_is_stored_exactly_once_whatever_the_store_does(
        steps in steps(), faults in proptest::collection::vec(0_u8..10, 0..60), away_for_long: bool, agents_delete: bool,
    ) {
        run(async {
            let store = MemoryStore::default();
            put_webhook(&store, "x", &["A"]).await;
            put_webhook(&store, "y", &["A", "B"]).await;
            put_webhook(&store, "z", &["A*", "B"]).await;
            let bench = Bench::new(&store, 1).await;
            let mut faults = faults.into_iter();
            store.inject(Box::new(move |write| match faults.next() {
                _ if !is_publish(write) => None,
                Some(1 | 2) => Some(Fault::LostAnswer),
                Some(3 | 4) => Some(Fault::LostRequest),
                Some(5) => Some(Fault::Away),
                Some(6) => Some(Fault::Full),
                // For longer than any deadline.
                None if away_for_long => Some(Fault::LostRequest),
                _ => None,
            }));
            let deleted = Arc::new(Mutex::new(Seen::new()));
            let mut agents = tokio::task::JoinSet::new();
            if agents_delete {
                agents.spawn(agent(store.clone(), deleted.clone()));
            }
            let mut pending = Vec::new();
            for (number, (names, request_id, pause)) in steps.iter().enumerate() {
                // The same request id comes with the same events, but for one of them now and then.
                let id = request_id.map_or(format!("s{number}"), |id| format!("r{id}"));
                let events = names.iter().enumerate();
                let events = events.map(|(index, name)| event(&format!("{id}-{}-{index}", names.len()), name, format!("{{\"n\":\"{name}\"}}")));
                pending.push(bench.publisher.submit(request(events.collect(), *request_id)).unwrap());
                if *pause {
                    tokio::time::sleep(Duration::from_millis(7)).await;
                }
            }
            let outcomes = join_all(pending.into_iter().map(Pending::outcome)).await;
            store.heal();
            bench.group.shut_down(Duration::from_secs(60)).await;
            // What was under way when the store healed has had its last chance.
            let mut found = seen(&store).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            for (place, bodies) in deleted.lock().unwrap().drain() {
                found.entry(place).or_default().extend(bodies);
            }
            // Nothing is ever stored twice.
            for (place, bodies) in &found {
                prop_assert_eq!(bodies.len(), 1, "{:?}", place);
            }
            let mut by_request: HashMap<usize, Answer> = HashMap::new();
            for ((names, request_id, _), outcome) in steps.iter().zip(&outcomes) {
                match outcome {
                    Ok(published) => {
                        prop_assert_eq!(published.answer.events.len(), names.len());
                        for ((id, matched), name) in published.answer.events.iter().zip(names) {
                            let webhooks: &[&str] = match name.as_str() { "A" => &["x", "y", "z"], "B" => &["y", "z"], _ => &[] };
                            prop_assert_eq!(*matched as usize, webhooks.len());
                            for webhook in webhooks {
                                let bodies = found.get(&(id.to_string(), (*webhook).to_owned()));
                                prop_assert_eq!(bodies.cloned(), Some(vec![bytes::Bytes::from(format!("{{\"n\":\"{name}\"}}"))]));
                            }
                        }
                        if let Some(id) = request_id {
                            let first = by_request.entry(*id).or_insert_with(|| published.answer.clone());
                            prop_assert_eq!(&*first, &published.answer);
                        }
                    }
                    Err(Error::Exists { .. }) => prop_assert!(request_id.is_some()),
                    Err(Error::StoreAway(_) | Error::StoreFull | Error::OutcomeUnknown(_)) => {}
                    Err(other) => prop_assert!(false, "{:?}", other),
                }
            }
            // What was certainly not done is not there.
            for (number, ((names, request_id, _), outcome)) in steps.iter().zip(&outcomes).enumerate() {
                if request_id.is_none() && matches!(outcome, Err(Error::StoreAway(_) | Error::StoreFull)) {
                    for index in 0..names.len() {
                        let id = format!("s{number}-{}-{index}", names.len());
                        prop_assert!(!found.keys().any(|(event, _)| *event == id));
                    }
                }
            }
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_for_events_that_nobody_wants_but_the_answer_to_a_request_id() {
    let store = MemoryStore::default();
    let bench = Bench::new(&store, 1).await;
    let before = store.get(&key::cell()).await.unwrap().1;
    let published = bench.publish(request(vec![event("e", "A", "1")], None)).await.unwrap();
    assert_eq!(published.answer.events[0].1, 0);
    assert_eq!(store.get(&key::cell()).await.unwrap().1, before);
    bench
        .publish(request(vec![event("e", "A", "1")], Some(1)))
        .await
        .unwrap();
    assert!(
        bench
            .publish(request(vec![event("e", "A", "1")], Some(1)))
            .await
            .unwrap()
            .duplicate
    );
    assert_eq!((keys(&store, "dedupe/").await, keys(&store, "queue/").await), (1, 0));
    assert_eq!(bench.publisher.counters.events.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn what_waits_together_is_written_together() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    let bench = Bench::new(&store, 1).await;
    let calls = (0..50).map(|number| bench.publish(request(vec![event(&format!("e{number}"), "A", "1")], None)));
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(bench.publisher.counters.transactions.load(Ordering::Relaxed), 1);
    assert_eq!(keys(&store, "queue/").await, 1);
    assert_eq!(seen(&store).await.len(), 50);
}

#[tokio::test(start_paused = true)]
async fn whoever_goes_away_changes_nothing_of_what_is_stored() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    let bench = Bench::new(&store, 1).await;
    drop(
        bench
            .publisher
            .submit(request(vec![event("e", "A", "1")], None))
            .unwrap(),
    );
    bench.group.shut_down(Duration::from_secs(10)).await;
    assert_eq!(seen(&store).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_refuses_new_requests_and_commits_those_that_were_taken() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    let bench = Bench::new(&store, 1).await;
    let body = format!("\"{}\"", "x".repeat(200_000));
    let submit = |number: usize, id| {
        bench
            .publisher
            .submit(request(vec![event(&format!("e{number}"), "A", body.clone())], id))
    };
    let pending: Vec<_> = (0..20)
        .map(|number| submit(number, Some(number / 2)).unwrap())
        .collect();
    bench.group.token().cancel();
    assert!(matches!(submit(99, None), Err(Error::Stopping)));
    let outcomes = join_all(pending.into_iter().map(Pending::outcome)).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 10);
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Ok(_) | Err(Error::Exists { .. })))
    );
    bench.group.shut_down(Duration::from_secs(10)).await;
    assert_eq!(seen(&store).await.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_new_webhook_gets_what_is_published_once_its_revision_is_reached() {
    let store = MemoryStore::default();
    let bench = Bench::new(&store, 1).await;
    let revision = put_webhook(&store, "x", &["*"]).await;
    assert!(bench.publisher.catalog.reached(revision).await);
    bench.publish(request(vec![event("e", "A", "1")], None)).await.unwrap();
    assert_eq!(seen(&bench.store).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_event_is_stored_with_the_category_that_its_type_has() {
    let store = MemoryStore::default();
    put_webhook(&store, "w", &["*"]).await;
    put_event_type(&store, "SLOW", Category::NonRealTime, None).await;
    let bench = Bench::new(&store, 1).await;
    let events = vec![event("e1", "SLOW", "{}"), event("e2", "UNKNOWN", "{}")];
    bench.publish(request(events, None)).await.unwrap();
    let (entries, _) = list_all(&store, &Key::from_stored("queue/"), false).await.unwrap();
    let segment = stored::unpack(entries[0].value.clone()).unwrap();
    let categories: Vec<_> = segment.events.iter().map(|event| event.category).collect();
    assert_eq!(categories, [Category::NonRealTime, Category::RealTime]);
    bench.group.shut_down(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn events_of_unknown_types_are_counted_or_refused_as_the_account_says() {
    let store = MemoryStore::default();
    put_webhook(&store, "w", &["*"]).await;
    put_event_type(&store, "KNOWN", Category::RealTime, None).await;
    let bench = Bench::new(&store, 1).await;
    let events = || vec![event("", "KNOWN", "{}"), event("", "NEW", "{}")];
    bench.publish(request(events(), None)).await.unwrap();
    let counted = || bench.publisher.counters().unknown_type_events.load(Ordering::Relaxed);
    assert_eq!(counted(), 1);
    let now = Timestamp::from_millis(1);
    let mut account = Account::new(AccountId::new("a").unwrap(), SystemEntropy::seeded(1).uid(now), now);
    account.unknown_event_types = UnknownEventTypes::Refuse;
    let op = Op::put(key::account(&account.id), stored::encode_account(&account));
    let write = Write {
        guards: Vec::new(),
        ops: vec![op],
    };
    let revision = store.write(write).await.unwrap();
    assert!(bench.publisher.catalog.accounts_reached(revision).await);
    let stored = keys(&store, "queue/").await;
    assert!(matches!(
        bench.publish(request(events(), None)).await,
        Err(Error::Invalid(_))
    ));
    assert_eq!((counted(), keys(&store, "queue/").await), (1, stored));
    bench
        .publish(request(vec![event("", "KNOWN", "{}")], None))
        .await
        .unwrap();
    bench.group.shut_down(Duration::from_secs(1)).await;
}
