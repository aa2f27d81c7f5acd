//! Tests of suspending, on the store in memory.

use std::sync::Arc;

use postrider_common::model::webhook::{Auth, HttpVersion, PayloadFormat, WhenInactive, suspended};
use postrider_common::shard::ShardId;
use postrider_common::store::lease::Held;
use postrider_common::store::memory::{Fault, MemoryStore};
use postrider_common::store::{LeaseId, Revision, Store as _};
use postrider_common::time::Clock;
use tokio::time::Instant;

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
const SHARD: ShardId = ShardId(3);

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        NOW
    }
}

fn webhook() -> Webhook {
    Webhook {
        batching: postrider_common::model::batching::Batching::default(),
        order: postrider_common::model::order::Order::default(),
        account: AccountId::new("1010").unwrap(),
        id: WebhookId::new("a").unwrap(),
        uid: Uid::new("00000000-0000-7000-8000-000000000001").unwrap(),
        generation: 5,
        create_time: NOW,
        update_time: NOW,
        display_name: String::new(),
        description: String::new(),
        target_url: "https://example.com/hook".into(),
        auth: Auth::None,
        event_types: Vec::new(),
        active: true,
        when_inactive: WhenInactive::Drop,
        max_in_flight: None,
        timeout: None,
        http_version: HttpVersion::Negotiated,
        payload_format: PayloadFormat::Envelope,
        rate_limit: None,
        retry: postrider_common::retry::Policy::default(),
        headers: Vec::new(),
        labels: std::collections::BTreeMap::new(),
        suspension: None,
    }
}

async fn put(store: &MemoryStore, key: key::Key, value: Bytes) -> Revision {
    let ops = vec![Op::put(key, value)];
    let guards = Vec::new();
    store.write(Write { guards, ops }).await.unwrap()
}

/// A store with the webhook, and a request of the owner of its shard.
async fn ready() -> (MemoryStore, Request) {
    let store = MemoryStore::default();
    let webhook = webhook();
    put(
        &store,
        key::webhook(&webhook.account, &webhook.id),
        stored::encode_webhook(&webhook),
    )
    .await;
    let epoch = put(&store, key::owner(SHARD), Bytes::new()).await;
    let request = Request {
        account: webhook.account,
        webhook: webhook.id,
        uid: webhook.uid,
        generation: webhook.generation,
        reason: suspended::GONE,
        detail: "the receiver answered 410".into(),
        tenure: Tenure {
            shard: SHARD,
            epoch,
            lease: Held::new(LeaseId(1), Instant::now() + Duration::from_secs(3600)),
        },
    };
    (store, request)
}

async fn stored_webhook(store: &MemoryStore) -> Webhook {
    let webhook = webhook();
    let entry = store.get(&key::webhook(&webhook.account, &webhook.id)).await.unwrap().0;
    stored::decode_webhook(webhook.account, webhook.id, entry.unwrap().value).unwrap()
}

/// Lets a suspender work on the requests, one after the other, and returns when it has done with all.
async fn work(store: &MemoryStore, requests: Vec<Request>) {
    let shared: SharedStore = Arc::new(store.clone());
    let clock: SharedClock = Arc::new(Fixed);
    for request in requests {
        let within = tokio::time::timeout(Duration::from_secs(60), suspend(&shared, &clock, &request));
        within.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_webhook_is_suspended_once_with_the_reason_and_nothing_else_changes() {
    let (store, request) = ready().await;
    work(&store, vec![request.clone(); 3]).await;
    let now = stored_webhook(&store).await;
    let suspension = Suspension {
        reason: "GONE".into(),
        time: NOW,
        detail: "the receiver answered 410".into(),
        end_time: None,
    };
    let expected = Webhook {
        generation: 6,
        suspension: Some(suspension),
        ..webhook()
    };
    assert_eq!(now, expected);
    assert!(!now.is_serving());
}

#[tokio::test(start_paused = true)]
async fn a_handle_gets_it_done_and_refuses_what_does_not_fit() {
    let (store, request) = ready().await;
    let group = task::Group::default();
    let suspender = Suspender::spawn(&group, Arc::new(store.clone()), Arc::new(Fixed));
    // The task has not run yet.
    for _ in 0..QUEUE {
        assert!(suspender.suspend(request.clone()));
    }
    assert!(!suspender.suspend(request));
    let key = key::webhook(&webhook().account, &webhook().id);
    let mut changes = store.watch(&key, Revision(3)).await.unwrap();
    let change = tokio::time::timeout(Duration::from_secs(5), futures_util::StreamExt::next(&mut changes));
    assert!(change.await.unwrap().unwrap().is_ok());
    assert!(!stored_webhook(&store).await.is_serving());
    group.shut_down(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn lost_answers_and_an_absent_store_delay_it_and_no_more() {
    for fault in [Fault::LostAnswer, Fault::LostRequest, Fault::Away] {
        let (store, request) = ready().await;
        let mut faults = vec![fault; 3];
        store.inject(Box::new(move |_| faults.pop()));
        work(&store, vec![request]).await;
        let now = stored_webhook(&store).await;
        assert_eq!((now.generation, now.is_serving()), (6, false), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_full_is_not_waited_for() {
    let (store, request) = ready().await;
    store.inject(Box::new(|_| Some(Fault::Full)));
    work(&store, vec![request]).await;
    assert!(stored_webhook(&store).await.is_serving());
}

#[tokio::test(start_paused = true)]
async fn whoever_has_lost_the_shard_suspends_nothing() {
    let (store, request) = ready().await;
    let owner = key::owner(SHARD);
    let ops = vec![Op::delete(owner.clone())];
    let guards = Vec::new();
    store.write(Write { guards, ops }).await.unwrap();
    work(&store, vec![request.clone()]).await;
    put(&store, owner, Bytes::new()).await;
    work(&store, vec![request]).await;
    assert_eq!(stored_webhook(&store).await, webhook());
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_was_changed_replaced_retired_or_deleted_meanwhile_is_left_as_it_is() {
    let name = key::webhook(&webhook().account, &webhook().id);
    let changed = [
        Webhook {
            generation: 6,
            ..webhook()
        },
        Webhook {
            uid: Uid::new("00000000-0000-7000-8000-000000000002").unwrap(),
            ..webhook()
        },
        Webhook {
            active: false,
            ..webhook()
        },
    ];
    for changed in changed {
        let (store, request) = ready().await;
        put(&store, name.clone(), stored::encode_webhook(&changed)).await;
        work(&store, vec![request]).await;
        assert_eq!(stored_webhook(&store).await, changed);
    }
    let (store, request) = ready().await;
    let ops = vec![Op::delete(name.clone())];
    let guards = Vec::new();
    store.write(Write { guards, ops }).await.unwrap();
    work(&store, vec![request]).await;
    assert!(store.get(&name).await.unwrap().0.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_change_between_the_reading_and_the_writing_wins() {
    let (store, request) = ready().await;
    let name = key::webhook(&webhook().account, &webhook().id);
    let (entry, owner) = {
        let (mut entries, _) = store.get_all(&[name.clone(), key::owner(SHARD)]).await.unwrap();
        let owner = entries.pop().flatten();
        (entries.pop().flatten(), owner)
    };
    let Decision::Write(write) = decide(&request, entry, owner, NOW) else {
        panic!("nothing stands in the way");
    };
    put(&store, name, stored::encode_webhook(&webhook())).await;
    assert_eq!(store.write(write).await, Err(WriteError::Conflict));
}
