//! Tests of the catalog.

use std::sync::Arc;
use std::time::Duration;

use postrider_common::key;
use postrider_common::model::webhook::Webhook;
use postrider_common::store::memory::MemoryStore;
use postrider_common::store::{Op, Revision, Store as _, Write};
use postrider_common::task::Group;
use postrider_common::wire::stored;

use super::{uid, webhook};
use crate::catalog::{Catalog, Changed, Name};
use crate::shard::delivery::Known;

async fn write(store: &MemoryStore, op: Op) -> Revision {
    let write = Write {
        guards: Vec::new(),
        ops: vec![op],
    };
    store.write(write).await.unwrap()
}

async fn put(store: &MemoryStore, webhook: &Webhook) -> Revision {
    let key = key::webhook(&webhook.account, &webhook.id);
    write(store, Op::put(key, stored::encode_webhook(webhook))).await
}

/// The group comes last, and must be kept: its tasks end with it.
async fn started() -> (MemoryStore, Catalog, Webhook, Name, Revision, Group) {
    let store = MemoryStore::default();
    let config = webhook("a");
    let revision = put(&store, &config).await;
    let group = Group::default();
    let catalog = Catalog::spawn(&group, Arc::new(store.clone()));
    catalog.synced().await;
    let name = (config.account.clone(), config.id.clone());
    (store, catalog, config, name, revision, group)
}

#[tokio::test(start_paused = true)]
async fn no_configuration_older_than_the_one_asked_for_is_ever_given() {
    let (store, catalog, mut config, name, first, _group) = started().await;
    assert!(matches!(catalog.resolve(&name, &uid(1), first).await, Known::Found(_, at) if at == first));
    config.generation = 2;
    // The mirror has not run since.
    let second = put(&store, &config).await;
    assert!(catalog.peek(&name, &uid(1), second).is_none());
    let known = catalog.resolve(&name, &uid(1), second).await;
    assert!(matches!(known, Known::Found(webhook, at) if at == second && webhook.generation == 2));
}

#[tokio::test(start_paused = true)]
async fn a_webhook_is_gone_only_when_the_store_says_so() {
    let (store, catalog, mut config, name, first, _group) = started().await;
    let new = webhook("b");
    let new_name = (new.account.clone(), new.id.clone());
    // Not in the mirror yet, and found all the same.
    let at = put(&store, &new).await;
    assert!(matches!(catalog.current(&new_name), Known::Absent(_)));
    assert!(matches!(
        catalog.resolve(&new_name, &uid(1), at).await,
        Known::Found(..)
    ));
    config.uid = uid(2);
    let second = put(&store, &config).await;
    assert!(matches!(catalog.resolve(&name, &uid(1), second).await, Known::Replaced));
    let mut changes = catalog.changes();
    let third = write(&store, Op::delete(key::webhook(&name.0, &name.1))).await;
    loop {
        let changed = tokio::time::timeout(Duration::from_secs(5), changes.recv())
            .await
            .unwrap();
        if changed.unwrap() == Changed::One(name.clone()) && matches!(catalog.current(&name), Known::Absent(_)) {
            break;
        }
    }
    assert!(matches!(catalog.resolve(&name, &uid(2), first).await, Known::Absent(at) if at == third));
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_cannot_be_read_is_not_gone() {
    let (store, catalog, _, name, _, _group) = started().await;
    let at = write(&store, Op::put(key::webhook(&name.0, &name.1), "\u{1}\u{2}\u{3}")).await;
    assert!(matches!(catalog.resolve(&name, &uid(1), at).await, Known::Unreadable));
}
