//! Tests of refusing an account with a full backlog, on a store in memory.

use std::sync::atomic::Ordering;

use postrider_common::id::{RequestId, Uid, WebhookId};
use postrider_common::key::{Parked, ParkedKind};
use postrider_common::model::account::Account;
use postrider_common::shard::ShardId;
use postrider_common::store::memory::MemoryStore;
use postrider_common::store::{Op, Write};
use postrider_common::time::Timestamp;
use postrider_proto::v1;

use super::*;
use crate::catalog::view::tests::webhook;
use crate::publish::tests::{Bench, put_webhook};
use crate::publish::{Outcome, Request};

/// The tests' quota: larger than what the store holds besides.
const QUOTA: u64 = 100_000;

async fn write(store: &MemoryStore, op: Op) {
    let write = Write {
        guards: Vec::new(),
        ops: vec![op],
    };
    let revision = store.write(write).await.unwrap();
    // What is over is not to be counted by this store either.
    store.compact(revision).await.unwrap();
}

async fn put_quota(store: &MemoryStore, account: &str, quota: u64) {
    let id = AccountId::new(account).unwrap();
    let uid = Uid::new("00000000-0000-7000-8000-000000000001").unwrap();
    let account = Account {
        max_backlog_bytes: Some(quota),
        ..Account::new(id.clone(), uid, Timestamp::from_millis(1))
    };
    write(store, Op::put(key::account(&id), stored::encode_account(&account))).await;
}

fn placed(account: &str) -> Parked {
    Parked {
        shard: ShardId(1),
        account: AccountId::new(account).unwrap(),
        webhook: WebhookId::new("x").unwrap(),
        due: Timestamp::from_millis(5),
        epoch: 1,
        number: 1,
        count: 1,
        kind: ParkedKind::Single,
    }
}

async fn publish(bench: &Bench, account: &str, size: usize) -> Outcome {
    let event = v1::Event {
        event_name: "A".into(),
        // Does not compress to nothing.
        body: Some(v1::event::Body::DataJson(noise(size).into())),
        ..v1::Event::default()
    };
    let request = Request {
        parent: format!("accounts/{account}"),
        events: vec![event],
        ..Request::default()
    };
    bench.publisher.submit(request)?.outcome().await
}

fn noise(size: usize) -> String {
    let mut state = 1_u64;
    let digit = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'a' + u8::try_from((state >> 33) % 26).unwrap())
    };
    format!("\"{}\"", (0..size).map(digit).collect::<String>())
}

fn is_refused(outcome: &Outcome) -> bool {
    match outcome {
        Ok(_) => false,
        Err(Error::Quota {
            subject,
            reason: "BACKLOG_FULL",
            description,
            retry_after: Some(_),
        }) => {
            assert_eq!(subject, "accounts/a");
            assert!(description.contains("max_backlog_bytes"), "{description}");
            true
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// Two looks later.
async fn looked() {
    tokio::time::sleep(EVERY * 2 + Duration::from_millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn an_account_with_too_much_in_the_queue_is_refused_until_it_is_delivered_and_others_are_not() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    put_quota(&store, "a", QUOTA).await;
    let bench = Bench::new(&store, 1).await;
    let webhook = webhook("b", "x", &["*"]);
    let place = key::webhook(&webhook.account, &webhook.id);
    write(&store, Op::put(place, stored::encode_webhook(&webhook))).await;
    // Another control plane accepts it: this one has to see it in the store.
    let other = Bench::new(&store, 2).await;
    assert!(publish(&other, "a", 200_000).await.is_ok());
    looked().await;
    assert!(is_refused(&publish(&bench, "a", 1).await));
    assert!(is_refused(&publish(&other, "a", 1).await));
    assert!(publish(&bench, "b", 1).await.is_ok());
    assert_eq!(bench.publisher.counters().refused_backlog.load(Ordering::Relaxed), 1);
    for entry in list_all(&store, &key::all_queues(), true).await.unwrap().0 {
        write(&store, Op::delete(entry.key)).await;
    }
    looked().await;
    assert!(publish(&bench, "a", 1).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_is_parked_and_what_is_dead_count_and_a_larger_quota_counts_at_once() {
    for key in [key::parked_segment(&placed("a")), key::dead_segment(&placed("a"))] {
        let store = MemoryStore::default();
        put_webhook(&store, "x", &["*"]).await;
        put_quota(&store, "a", QUOTA).await;
        let bench = Bench::new(&store, 1).await;
        write(&store, Op::put(key.clone(), vec![7; 200_000])).await;
        looked().await;
        assert!(is_refused(&publish(&bench, "a", 1).await), "{key}");
        put_quota(&store, "a", 1_000_000).await;
        let (_, revision) = store.get(&key).await.unwrap();
        assert!(bench.publisher.catalog.accounts_reached(revision).await);
        assert!(publish(&bench, "a", 1).await.is_ok(), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_system_announces_is_not_refused() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["postrider.*"]).await;
    put_quota(&store, "a", QUOTA).await;
    let bench = Bench::new(&store, 1).await;
    write(&store, Op::put(key::parked_segment(&placed("a")), vec![7; 200_000])).await;
    looked().await;
    let request = RequestId::new("00000000-0000-4000-8000-000000000001").unwrap();
    let about = WebhookId::new("other").unwrap();
    let announced = bench.publisher.announce(&operational(), &request, &about);
    let announced = announced.unwrap().outcome().await.unwrap();
    assert_eq!(announced.answer.events[0].1, 1, "it is stored");
}

fn operational() -> postrider_common::model::segment::Event {
    postrider_common::model::segment::Event {
        account: AccountId::new("a").unwrap(),
        id: postrider_common::id::EventId::new("e").unwrap(),
        name: postrider_common::id::EventName::new("postrider.test").unwrap(),
        timestamp: Timestamp::from_millis(1),
        ordering_key: None,
        expire_time: None,
        not_before_time: None,
        event_info: None,
        data: "{}".into(),
        accept_time: Timestamp::from_millis(1),
        traceparent: None,
        category: postrider_common::model::event_type::Category::default(),
    }
}
