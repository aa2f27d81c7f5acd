//! Tests of announcing, on the store in memory, with several leaders.

use std::num::NonZeroU16;

use postrider_common::entropy::SystemEntropy;
use postrider_common::id::{AccountId, ControlPlaneId, EventId, EventName, WebhookId};
use postrider_common::key::{Key, Parked};
use postrider_common::model::operational::{DELIVERY_DEAD_LETTERED, WEBHOOK_REACTIVATED, WEBHOOK_SUSPENDED};
use postrider_common::model::segment::{Delivery, DeliveryState, Event, Segment, Target};
use postrider_common::model::webhook::{Suspension, Webhook, WhenInactive};
use postrider_common::shard::ShardId;
use postrider_common::store::memory::{Fault, MemoryStore};
use postrider_common::store::{Op, Revision, Store as _, Write, list_all};
use postrider_common::time::{Clock, Timestamp};

use super::*;
use crate::catalog::Catalog;
use crate::catalog::dedupe::DedupeLease;
use crate::catalog::view::tests::webhook;
use crate::publish;

const NOW: Timestamp = Timestamp::from_millis(1_727_414_643_000);

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        NOW
    }
}

async fn write(store: &MemoryStore, op: Op) {
    let ops = vec![op];
    let guards = Vec::new();
    store.write(Write { guards, ops }).await.unwrap();
}

async fn put(store: &MemoryStore, webhook: &Webhook) {
    let key = key::webhook(&webhook.account, &webhook.id);
    write(store, Op::put(key, stored::encode_webhook(webhook))).await;
}

/// A control plane that leads until it is stopped.
struct Leader {
    group: task::Group,
    over: CancellationToken,
}

impl Leader {
    fn start(store: &MemoryStore, seed: u64) -> Self {
        let group = task::Group::default();
        let shared: SharedStore = Arc::new(store.clone());
        let publisher = Publisher::spawn(
            &group,
            publish::Deps {
                catalog: Catalog::spawn(&group, shared.clone(), NonZeroU16::new(8).unwrap()),
                lease: Arc::new(DedupeLease::new(shared.clone())),
                store: shared.clone(),
                clock: Arc::new(Fixed),
                entropy: Arc::new(SystemEntropy::seeded(seed)),
                control_plane: ControlPlaneId::new("cp").unwrap(),
                quota: None,
                counters: Arc::default(),
                backlog: Arc::default(),
                fullness: Arc::default(),
            },
        );
        let over = CancellationToken::new();
        let deps = Deps {
            store: shared,
            clock: Arc::new(Fixed),
            publisher,
        };
        group.spawn("announce", run(deps, over.clone()));
        Self { group, over }
    }

    async fn stop(self) {
        self.over.cancel();
        self.group.shut_down(Duration::from_secs(5)).await;
    }
}

/// Everything in the queue: which event for which webhook.
async fn queued(store: &MemoryStore) -> Vec<(String, String)> {
    let (entries, _) = list_all(store, &Key::from_stored("queue/"), false).await.unwrap();
    let mut all = Vec::new();
    for entry in entries {
        let segment = stored::unpack(entry.value).unwrap();
        for target in &segment.targets {
            for delivery in &target.deliveries {
                let event = &segment.events[delivery.event as usize];
                assert_eq!(event.accept_time, NOW);
                all.push((event.name.to_string(), target.webhook.to_string()));
            }
        }
    }
    all.sort();
    all
}

/// Waits until there is as much in the queue as expected, and for a while longer for what should not come.
async fn expect(store: &MemoryStore, expected: &[(&str, &str)]) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while queued(store).await.len() < expected.len() && tokio::time::Instant::now() < deadline {
        tokio::time::advance(Duration::from_millis(50)).await;
    }
    for _ in 0..100 {
        tokio::time::advance(Duration::from_millis(50)).await;
    }
    let mut expected: Vec<_> = expected
        .iter()
        .map(|(name, to)| (name.to_string(), to.to_string()))
        .collect();
    expected.sort();
    assert_eq!(queued(store).await, expected);
}

fn suspension() -> Suspension {
    Suspension::begin(None, "GONE", "the receiver answered 410", NOW)
}

/// Webhook `down`, which is suspended and asks for everything; `ops`, which asks for what the system tells; and `all`, which asks for `*`.
async fn webhooks(store: &MemoryStore) -> Webhook {
    let down = Webhook {
        suspension: Some(suspension()),
        // Even so it is not told of itself.
        when_inactive: WhenInactive::Hold,
        ..webhook("a", "down", &["*", "postrider.*"])
    };
    put(store, &down).await;
    put(store, &webhook("a", "ops", &["postrider.*"])).await;
    put(store, &webhook("a", "all", &["*"])).await;
    put(store, &webhook("b", "other", &["postrider.*"])).await;
    down
}

#[tokio::test(start_paused = true)]
async fn a_suspension_and_its_end_are_told_once_to_the_others_however_many_lead() {
    let store = MemoryStore::default();
    let mut down = webhooks(&store).await;
    let mut faults = vec![Fault::LostAnswer, Fault::Away, Fault::LostRequest];
    store.inject(Box::new(move |_| faults.pop()));
    let first = Leader::start(&store, 1);
    expect(&store, &[(WEBHOOK_SUSPENDED, "ops")]).await;
    down.display_name = "changed".into();
    put(&store, &down).await;
    expect(&store, &[(WEBHOOK_SUSPENDED, "ops")]).await;
    first.stop().await;
    let second = Leader::start(&store, 2);
    expect(&store, &[(WEBHOOK_SUSPENDED, "ops")]).await;
    down.suspension = Some(suspension().ended(NOW));
    put(&store, &down).await;
    let both = [(WEBHOOK_SUSPENDED, "ops"), (WEBHOOK_REACTIVATED, "ops")];
    expect(&store, &both).await;
    second.stop().await;
    let third = Leader::start(&store, 3);
    expect(&store, &both).await;
    third.stop().await;
}

/// Dead letters of webhook `down`.
async fn die(store: &MemoryStore, number: u64, name: &str) {
    let account = AccountId::new("a").unwrap();
    let down = webhook("a", "down", &["*"]);
    let event = Event {
        account: account.clone(),
        id: EventId::new(&format!("e{number}")).unwrap(),
        name: EventName::new(name).unwrap(),
        timestamp: NOW,
        ordering_key: None,
        expire_time: None,
        event_info: None,
        data: "{}".into(),
        accept_time: NOW,
        traceparent: None,
        category: postrider_common::model::event_type::Category::RealTime,
        not_before_time: None,
    };
    let state = DeliveryState {
        alone: false,
        attempts: 1,
        due: NOW,
        reason: "TIMEOUT".into(),
        status: None,
        ..DeliveryState::default()
    };
    let segment = Segment {
        batch: None,
        events: vec![Arc::new(event)],
        targets: vec![Target {
            account: account.clone(),
            webhook: down.id,
            webhook_uid: down.uid,
            webhook_revision: Revision(1),
            deliveries: vec![Delivery { event: 0, state }],
        }],
    };
    let key = key::dead_segment(&Parked {
        kind: key::ParkedKind::Single,
        shard: ShardId(1),
        account,
        webhook: WebhookId::new("down").unwrap(),
        due: NOW,
        epoch: 1,
        number,
        count: 1,
    });
    write(store, Op::put(key, stored::pack(segment))).await;
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_told_once_for_each_segment_and_never_in_a_circle() {
    let store = MemoryStore::default();
    put(&store, &webhook("a", "ops", &["postrider.delivery.*"])).await;
    put(&store, &webhook("a", "down", &["*"])).await;
    die(&store, 1, "A").await;
    let first = Leader::start(&store, 1);
    expect(&store, &[(DELIVERY_DEAD_LETTERED, "ops")]).await;
    die(&store, 2, "A").await;
    die(&store, 3, DELIVERY_DEAD_LETTERED).await;
    let both = [(DELIVERY_DEAD_LETTERED, "ops"); 2];
    expect(&store, &both).await;
    first.stop().await;
    let second = Leader::start(&store, 2);
    expect(&store, &both).await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn where_nobody_asks_nothing_is_written_for_dead_letters() {
    let store = MemoryStore::default();
    put(&store, &webhook("a", "all", &["*"])).await;
    put(&store, &webhook("a", "down", &["postrider.*"])).await;
    die(&store, 1, "A").await;
    let before = store.get(&key::cell()).await.unwrap().1;
    let leader = Leader::start(&store, 1);
    expect(&store, &[]).await;
    assert_eq!(store.get(&key::cell()).await.unwrap().1, before);
    leader.stop().await;
}
