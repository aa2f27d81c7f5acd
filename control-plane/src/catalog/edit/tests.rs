//! Tests of the guarded writes: races, lost answers, quotas, request ids.

use std::sync::Arc;

use async_trait::async_trait;
use postrider_common::entropy::SystemEntropy;
use postrider_common::id::{AccountId, EventName, WebhookId};
use postrider_common::key::{DedupeKind, dedupe_global, webhook_count, webhooks};
use postrider_common::model::account::Account;
use postrider_common::model::event_type::{Category, EventType};
use postrider_common::model::webhook::{Auth, Webhook, WhenInactive};
use postrider_common::retry;
use postrider_common::store::memory::{Fault, MemoryStore};
use postrider_common::store::{
    Grant, LeaseError, LeaseId, ListRequest, Page, ReadError, Store, Usage, Watch, WatchError, list_all,
};
use postrider_common::time::SystemClock;

use super::*;

/// Gives way to other tasks before every call, so that calls of concurrent tasks alternate.
struct GivingWay(MemoryStore);

#[async_trait]
impl Store for GivingWay {
    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), ReadError> {
        tokio::task::yield_now().await;
        self.0.get(key).await
    }
    async fn get_all(&self, keys: &[Key]) -> Result<(Vec<Option<Entry>>, Revision), ReadError> {
        tokio::task::yield_now().await;
        self.0.get_all(keys).await
    }
    async fn list(&self, request: ListRequest) -> Result<Page, ReadError> {
        self.0.list(request).await
    }
    async fn write(&self, write: Write) -> Result<Revision, WriteError> {
        tokio::task::yield_now().await;
        self.0.write(write).await
    }
    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Watch, WatchError> {
        self.0.watch(prefix, from).await
    }
    async fn grant(&self, ttl: Duration) -> Result<Grant, ReadError> {
        self.0.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, LeaseError> {
        self.0.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), ReadError> {
        self.0.revoke(lease).await
    }
    async fn compact(&self, revision: Revision) -> Result<(), ReadError> {
        self.0.compact(revision).await
    }
    async fn usage(&self) -> Result<Usage, ReadError> {
        self.0.usage().await
    }
}

fn replica(store: &MemoryStore, seed: u64) -> Edit {
    let store: SharedStore = Arc::new(GivingWay(store.clone()));
    Edit::new(
        Arc::clone(&store),
        Arc::new(SystemClock),
        Arc::new(SystemEntropy::seeded(seed)),
        Arc::new(DedupeLease::new(store)),
    )
}

fn account() -> AccountId {
    AccountId::new("1010").unwrap()
}

fn id(name: &str) -> (AccountId, WebhookId) {
    (account(), WebhookId::new(name).unwrap())
}

fn webhook(edit: &Edit, name: &str) -> Webhook {
    Webhook {
        account: account(),
        id: WebhookId::new(name).unwrap(),
        uid: edit.entropy.uid(edit.now()),
        generation: 1,
        create_time: edit.now(),
        update_time: edit.now(),
        display_name: String::new(),
        description: String::new(),
        target_url: "https://example.com/".into(),
        auth: Auth::None,
        event_types: Vec::new(),
        filter: None,
        active: true,
        when_inactive: WhenInactive::Drop,
        max_in_flight: None,
        http_version: postrider_common::model::webhook::HttpVersion::Negotiated,
        payload_format: postrider_common::model::webhook::PayloadFormat::Envelope,
        batching: postrider_common::model::batching::Batching::default(),
        order: postrider_common::model::order::Order::default(),
        rate_limit: None,
        numbered: false,
        suspension: None,
        timeout: None,
        retry: retry::Policy::default(),
        headers: Vec::new(),
        labels: std::collections::BTreeMap::new(),
    }
}

fn request(number: u8, content: u8) -> Option<RequestKey> {
    Some(RequestKey {
        id: RequestId::new(&format!("7c1f0a52-3f64-4b52-9d6a-{number:012x}")).unwrap(),
        fingerprint: [content; 32],
    })
}

async fn create(edit: &Edit, name: &str, request: Option<RequestKey>) -> Result<Written<Webhook>, Error> {
    edit.create_webhook(webhook(edit, name), request, Apply::Store).await
}

/// How many webhooks there are, and how many the count says.
async fn counts(store: &MemoryStore) -> (usize, u32) {
    let stored = list_all(store, &webhooks(), true).await.unwrap().0.len();
    let entry = store.get(&webhook_count(&account())).await.unwrap().0;
    let counted = entry.map_or(0, |entry| decode::<stored::WebhookCount>(entry.value).unwrap().count);
    (stored, counted)
}

#[tokio::test(start_paused = true)]
async fn the_quota_holds_when_two_replicas_create_at_the_same_moment() {
    let store = MemoryStore::default();
    let (one, two) = (replica(&store, 1), replica(&store, 2));
    let names: Vec<String> = (0..8).map(|number| format!("w{number}")).collect();
    let each = |edit| names.iter().map(move |name| create(edit, name, None));
    let (first, second) = tokio::join!(
        futures_util::future::join_all(each(&one).take(4)),
        futures_util::future::join_all(each(&two).skip(4)),
    );
    let (created, refused): (Vec<_>, Vec<_>) = first.into_iter().chain(second).partition(Result::is_ok);
    assert_eq!((created.len(), refused.len()), (5, 3));
    for error in refused {
        assert!(
            matches!(
                error,
                Err(Error::Quota {
                    reason: "WEBHOOK_QUOTA",
                    ..
                })
            ),
            "{error:?}"
        );
    }
    assert_eq!(counts(&store).await, (5, 5));
}

#[tokio::test(start_paused = true)]
async fn one_of_two_replicas_that_create_the_same_webhook_wins() {
    let store = MemoryStore::default();
    let (one, two) = (replica(&store, 1), replica(&store, 2));
    let (first, second) = tokio::join!(create(&one, "a", None), create(&two, "a", None));
    assert!(first.is_ok());
    assert!(matches!(
        second,
        Err(Error::Exists {
            reason: "RESOURCE_EXISTS",
            ..
        })
    ));
    assert_eq!(counts(&store).await, (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_same_request_at_two_replicas_creates_one_webhook_and_both_answer_it() {
    let store = MemoryStore::default();
    let (one, two) = (replica(&store, 1), replica(&store, 2));
    // Without an id of the caller's each replica makes one of its own: the request id alone tells that they are the same.
    let (first, second) = tokio::join!(create(&one, "x1", request(1, 1)), create(&two, "x2", request(1, 1)));
    assert_eq!(first.unwrap().value, second.unwrap().value);
    assert_eq!(counts(&store).await, (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_request_id_answers_the_resource_as_it_is_now_and_refuses_other_content() {
    let store = MemoryStore::default();
    let edit = replica(&store, 1);
    let created = create(&edit, "a", request(1, 1)).await.unwrap();
    let change = |present: &Webhook| {
        Ok(Webhook {
            display_name: "new".into(),
            ..present.clone()
        })
    };
    let changed = edit.update(&id("a"), None, Apply::Store, change).await.unwrap();
    assert!(changed.revision > created.revision);
    assert_eq!(create(&edit, "a", request(1, 1)).await.unwrap(), changed);
    let reused = create(&edit, "b", request(1, 2)).await;
    assert!(matches!(
        reused,
        Err(Error::Exists {
            reason: "REQUEST_ID_REUSED",
            ..
        })
    ));
    // Deleted, and another made under its name: the request did not create that one.
    edit.delete_webhook(&id("a"), None, Missing::Refused).await.unwrap();
    for _ in 0..2 {
        let again = create(&edit, "a", request(1, 1)).await;
        assert!(matches!(
            again,
            Err(Error::Exists {
                reason: "CREATED_AND_DELETED",
                ..
            })
        ));
        let _ = create(&edit, "a", None).await;
    }
    assert_eq!(counts(&store).await, (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_or_request_is_settled_and_applied_once() {
    for fault in [Fault::LostAnswer, Fault::LostRequest] {
        let store = MemoryStore::default();
        let edit = replica(&store, 1);
        let strike = || {
            let mut faults = vec![fault];
            store.inject(Box::new(move |_| faults.pop()));
        };
        strike();
        let created = create(&edit, "a", None).await.unwrap();
        assert_eq!(edit.get::<Webhook>(&id("a")).await.unwrap(), created.value);
        assert_eq!(counts(&store).await, (1, 1));
        strike();
        let change = |present: &Webhook| {
            Ok(Webhook {
                active: false,
                ..present.clone()
            })
        };
        let changed = edit.update(&id("a"), None, Apply::Store, change).await.unwrap();
        assert_eq!(changed.value.generation, 2);
        assert_eq!(edit.get::<Webhook>(&id("a")).await.unwrap(), changed.value);
        strike();
        edit.delete_webhook(&id("a"), None, Missing::Refused).await.unwrap();
        assert_eq!(counts(&store).await, (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_cannot_be_learned_is_said_to_be_unknown_and_a_repeat_is_safe() {
    let store = MemoryStore::default();
    let edit = replica(&store, 1);
    store.inject(Box::new(|_| Some(Fault::LostRequest)));
    let lost = create(&edit, "a", request(1, 1)).await;
    assert!(matches!(lost, Err(Error::OutcomeUnknown(_))), "{lost:?}");
    store.heal();
    create(&edit, "a", request(1, 1)).await.unwrap();
    assert_eq!(counts(&store).await, (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_or_full_is_told_apart_and_changes_nothing() {
    let store = MemoryStore::default();
    let edit = replica(&store, 1);
    store.inject(Box::new(|_| Some(Fault::Away)));
    assert!(matches!(create(&edit, "a", None).await, Err(Error::StoreAway(_))));
    store.inject(Box::new(|_| Some(Fault::Full)));
    assert_eq!(create(&edit, "a", None).await, Err(Error::StoreFull));
    assert_eq!(counts(&store).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_change_that_fills_the_store_is_made_though_the_store_says_that_it_is_full() {
    let store = MemoryStore::default();
    let edit = replica(&store, 1);
    let change = |present: &Webhook| {
        Ok(Webhook {
            description: "changed".to_owned(),
            ..present.clone()
        })
    };
    store.inject(Box::new(|_| Some(Fault::Filled)));
    create(&edit, "a", None).await.unwrap();
    let changed = edit.update(&id("a"), None, Apply::Store, change).await.unwrap();
    assert_eq!(changed.value.description, "changed");
    assert_eq!(counts(&store).await, (1, 1));
    edit.delete_webhook(&id("a"), None, Missing::Refused).await.unwrap();
    assert_eq!(counts(&store).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dedupe_lease_that_is_gone_is_replaced() {
    let store = MemoryStore::default();
    let edit = replica(&store, 1);
    let lease = edit.dedupe.current().await.unwrap();
    store.revoke(lease).await.unwrap();
    create(&edit, "a", request(1, 1)).await.unwrap();
    assert_ne!(edit.dedupe.current().await.unwrap(), lease);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_webhook_makes_room_and_the_first_webhook_makes_the_account() {
    let store = MemoryStore::default();
    let edit = replica(&store, 1);
    assert!(matches!(
        edit.get::<Account>(&account()).await,
        Err(Error::NotFound { .. })
    ));
    for number in 0..5 {
        create(&edit, &format!("w{number}"), None).await.unwrap();
    }
    assert_eq!(edit.get::<Account>(&account()).await.unwrap().webhook_quota(), 5);
    assert!(matches!(create(&edit, "w5", None).await, Err(Error::Quota { .. })));
    edit.delete_webhook(&id("w0"), None, Missing::Refused).await.unwrap();
    create(&edit, "w5", None).await.unwrap();
    let allow_one = |present: &Account| {
        Ok(Account {
            max_webhooks: Some(1),
            ..present.clone()
        })
    };
    edit.update(&account(), None, Apply::Store, allow_one).await.unwrap();
    edit.delete_webhook(&id("w5"), None, Missing::Refused).await.unwrap();
    assert!(matches!(create(&edit, "w5", None).await, Err(Error::Quota { .. })));
    assert_eq!(counts(&store).await, (4, 4));
}

#[tokio::test(start_paused = true)]
async fn a_stale_etag_and_a_missing_resource_change_nothing() {
    let store = MemoryStore::default();
    let edit = replica(&store, 1);
    let stale = create(&edit, "a", None).await.unwrap().value.etag();
    let change = |present: &Webhook| {
        Ok(Webhook {
            active: !present.active,
            ..present.clone()
        })
    };
    edit.update(&id("a"), Some(&stale), Apply::Store, change).await.unwrap();
    let before = store.get(&webhooks()).await.unwrap().1;
    let again = edit.update(&id("a"), Some(&stale), Apply::Store, change).await;
    assert!(matches!(again, Err(Error::EtagMismatch { .. })));
    let gone = edit.delete_webhook(&id("a"), Some(&stale), Missing::Refused).await;
    assert!(matches!(gone, Err(Error::EtagMismatch { .. })));
    let checked = edit.update(&id("a"), None, Apply::CheckOnly, change).await.unwrap();
    assert_eq!((checked.value.generation, checked.revision), (3, Revision(0)));
    let keep = |present: &Webhook| Ok(present.clone());
    let same = edit.update(&id("a"), None, Apply::Store, keep).await.unwrap();
    assert_eq!(same.value.generation, 2);
    let missing = edit.delete_webhook(&id("b"), None, Missing::Refused).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })));
    assert_eq!(
        edit.delete_webhook(&id("b"), None, Missing::Allowed).await,
        Ok(Revision(0))
    );
    assert_eq!(store.get(&webhooks()).await.unwrap().1, before);
}

#[tokio::test(start_paused = true)]
async fn both_of_two_updates_at_the_same_moment_are_kept() {
    let store = MemoryStore::default();
    let (one, two) = (replica(&store, 1), replica(&store, 2));
    create(&one, "a", None).await.unwrap();
    let name = |present: &Webhook| {
        Ok(Webhook {
            display_name: "name".into(),
            ..present.clone()
        })
    };
    let text = |present: &Webhook| {
        Ok(Webhook {
            description: "text".into(),
            ..present.clone()
        })
    };
    let at = id("a");
    let (first, second) = tokio::join!(
        one.update(&at, None, Apply::Store, name),
        two.update(&at, None, Apply::Store, text)
    );
    assert!(first.is_ok() && second.is_ok());
    let now: Webhook = one.get(&at).await.unwrap();
    assert_eq!(
        (now.display_name.as_str(), now.description.as_str(), now.generation),
        ("name", "text", 3)
    );
}

#[tokio::test(start_paused = true)]
async fn event_types_are_created_once_and_deleted() {
    let store = MemoryStore::default();
    let edit = replica(&store, 1);
    let name = EventName::new("COURSE_ENROLLMENT").unwrap();
    let event_type = EventType {
        name: name.clone(),
        uid: edit.entropy.uid(edit.now()),
        generation: 1,
        display_name: String::new(),
        description: String::new(),
        category: Category::NonRealTime,
        schema: None,
        example: None,
        deprecated: false,
        create_time: edit.now(),
        update_time: edit.now(),
    };
    let key = || request(1, 1).map(|request| (dedupe_global(DedupeKind::CreateEventType, &request.id), request));
    for _ in 0..2 {
        let written = edit
            .create(&name, event_type.clone(), key(), Apply::Store)
            .await
            .unwrap();
        assert_eq!(written.value, event_type);
    }
    let exists = edit.create(&name, event_type.clone(), None, Apply::Store).await;
    assert!(matches!(exists, Err(Error::Exists { .. })));
    edit.delete::<EventType>(&name, None, Missing::Refused).await.unwrap();
    assert!(matches!(
        edit.get::<EventType>(&name).await,
        Err(Error::NotFound { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_created_in_a_store_that_is_85_percent_full() {
    let store = MemoryStore::default();
    let fullness = Arc::new(Fullness::default());
    let edit = replica(&store, 1).mindful_of(fullness.clone());
    let in_use = |in_use| Usage {
        size: 100,
        in_use,
        quota: Some(100),
        full: false,
    };
    fullness.note(&in_use(85), Some(100));
    let created = create(&edit, "first", None).await;
    assert!(created.is_ok(), "{created:?}");
    fullness.note(&in_use(86), Some(100));
    let refused = create(&edit, "second", None).await;
    assert_eq!(refused.map(drop), Err(Error::StoreFull));
    let refused = edit
        .create_webhook(webhook(&edit, "second"), None, Apply::CheckOnly)
        .await;
    assert_eq!(refused.map(drop), Err(Error::StoreFull));
    fullness.note(&in_use(10), Some(100));
    assert!(create(&edit, "second", None).await.is_ok());
}
