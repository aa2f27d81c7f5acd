//! Every webhook, every event type, and what accounts set for publishing, in memory, compiled for matching, fed by the store.
//!
//! Publishing reads it without a lock: accounts are spread over buckets, a bucket is a map of finished tables behind one atomic pointer, and a
//! change replaces the table of its account and the map of its bucket. So a change costs the size of one account, however many webhooks there are.
//! What one account's table shows is always some true past state.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU16;
use std::sync::Arc;

use arc_swap::ArcSwap;
use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key::{self, Key};
use postrider_common::model::account::{Account, DEFAULT_MAX_BACKLOG_BYTES, UnknownEventTypes};
use postrider_common::model::webhook::Webhook;
use postrider_common::shard;
use postrider_common::store::mirror::{self, Update};
use postrider_common::store::{Change, Entry, Revision, SharedStore};
use postrider_common::task::Group;
use postrider_common::wire::stored;

use super::filter::Filter;
use super::types::{KnownType, Types};
use super::view::{Subscriber, Table};

/// How many buckets accounts are spread over: ten accounts each when there are ten thousand, and 16 KiB when there are none.
const BUCKETS: usize = 1024;

type Bucket = HashMap<AccountId, Arc<Table>>;

/// A webhook of an account: what it is now, or that it is gone.
type Changed = (WebhookId, Option<Arc<Subscriber>>);

/// Every webhook. Clones are the same catalog.
#[derive(Clone)]
pub(crate) struct Catalog {
    tables: Arc<Tables>,
    feed: mirror::Handle,
    types: Arc<ArcSwap<Types>>,
    types_feed: mirror::Handle,
    /// Of accounts that have other than the defaults: few, so this is small however many accounts there are.
    rules: Arc<ArcSwap<Rules>>,
    accounts_feed: mirror::Handle,
}

impl Catalog {
    /// Starts to follow the webhooks in `store`. `shards` is the cell's count.
    pub(crate) fn spawn(group: &Group, store: SharedStore, shards: NonZeroU16) -> Self {
        let tables = Arc::new(Tables::default());
        let applied = tables.clone();
        let apply = move |update| applied.apply(update, shards);
        let feed = mirror::spawn(group, "catalog", store.clone(), key::webhooks(), false, apply);
        let types: Arc<ArcSwap<Types>> = Arc::default();
        let applied = types.clone();
        let apply = move |update| apply_types(&applied, update);
        let types_feed = mirror::spawn(group, "event types", store.clone(), key::event_types(), false, apply);
        let rules: Arc<ArcSwap<Rules>> = Arc::default();
        let applied = rules.clone();
        let apply = move |update| apply_accounts(&applied, update);
        let accounts_feed = mirror::spawn(group, "accounts", store, key::accounts(), false, apply);
        Self {
            tables,
            feed,
            types,
            types_feed,
            rules,
            accounts_feed,
        }
    }

    /// The webhooks of an account, as they are now; empty for an account that has none.
    pub(crate) fn table(&self, account: &AccountId) -> Arc<Table> {
        let bucket = self.tables.bucket(account).load();
        bucket.get(account).cloned().unwrap_or_default()
    }

    /// The event types, as they are now.
    pub(crate) fn types(&self) -> Arc<Types> {
        self.types.load_full()
    }

    /// Waits until a change of event types is seen; false if the feed ended before. The caller sets the deadline.
    pub(crate) async fn types_reached(&self, revision: Revision) -> bool {
        self.types_feed.reached(revision).await
    }

    /// What the account does with events of types that the catalogue does not hold, as of now.
    pub(crate) fn unknown_event_types(&self, account: &AccountId) -> UnknownEventTypes {
        if self.rules.load().refusing.contains(account) {
            UnknownEventTypes::Refuse
        } else {
            UnknownEventTypes::Accept
        }
    }

    /// How many bytes may wait for an account in the store.
    pub(crate) fn backlog_quota(&self, account: &AccountId) -> u64 {
        let rules = self.rules.load();
        rules
            .backlogs
            .get(account)
            .copied()
            .unwrap_or(DEFAULT_MAX_BACKLOG_BYTES)
    }

    /// The least that any account may have waiting.
    pub(crate) fn least_backlog_quota(&self) -> u64 {
        let rules = self.rules.load();
        let least = rules.backlogs.values().copied().min();
        least.map_or(DEFAULT_MAX_BACKLOG_BYTES, |least| least.min(DEFAULT_MAX_BACKLOG_BYTES))
    }

    /// Waits until a change of accounts is seen; false if the feed ended before. The caller sets the deadline.
    pub(crate) async fn accounts_reached(&self, revision: Revision) -> bool {
        self.accounts_feed.reached(revision).await
    }

    /// Waits until a change of webhooks is seen; false if the feed ended before. The caller sets the deadline.
    pub(crate) async fn reached(&self, revision: Revision) -> bool {
        self.feed.reached(revision).await
    }

    /// Whether the first listings are in. Before that nothing may be matched: every event would seem to be wanted by nobody.
    pub(crate) fn is_synced(&self) -> bool {
        let feeds = [&self.feed, &self.types_feed, &self.accounts_feed];
        feeds.iter().all(|feed| feed.revision().is_some())
    }

    /// Waits for the first listings. The caller sets the deadline.
    pub(crate) async fn synced(&self) {
        self.feed.synced().await;
        self.types_feed.synced().await;
        self.accounts_feed.synced().await;
    }
}

/// What publishing must know of the accounts that have other than the defaults.
#[derive(Debug, Clone, Default)]
struct Rules {
    /// Events of types that are not in the catalogue are refused.
    refusing: HashSet<AccountId>,
    /// How many bytes may wait in the store.
    backlogs: HashMap<AccountId, u64>,
}

impl Rules {
    fn forget(&mut self, account: &AccountId) {
        self.refusing.remove(account);
        self.backlogs.remove(account);
    }

    fn add(&mut self, account: Account) {
        if let Some(most) = account.max_backlog_bytes {
            self.backlogs.insert(account.id.clone(), most);
        }
        if account.unknown_event_types == UnknownEventTypes::Refuse {
            self.refusing.insert(account.id);
        }
    }
}

struct Tables {
    buckets: Box<[ArcSwap<Bucket>]>,
    hasher: RandomState,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| ArcSwap::default()).collect(),
            hasher: RandomState::new(),
        }
    }
}

impl Tables {
    #[allow(clippy::cast_possible_truncation)] // Any bits of the hash will do.
    fn index(&self, account: &AccountId) -> usize {
        self.hasher.hash_one(account) as usize % BUCKETS
    }

    #[allow(clippy::indexing_slicing)] // There are as many as `index` counts on.
    fn bucket(&self, account: &AccountId) -> &ArcSwap<Bucket> {
        &self.buckets[self.index(account)]
    }

    fn apply(&self, update: Update, shards: NonZeroU16) {
        match update {
            Update::Reset(entries, _) => self.reset(entries, shards),
            Update::Changes(changes) => {
                let mut by_account: HashMap<AccountId, Vec<Changed>> = HashMap::new();
                for change in changes.changes {
                    let Some((account, id)) = key::parse_webhook(change.key()) else {
                        tracing::warn!(key = %change.key(), "a key among the webhooks is not a webhook's");
                        continue;
                    };
                    let subscriber = match change {
                        Change::Put(entry) => read(entry, shards),
                        Change::Delete(_) => None,
                    };
                    by_account.entry(account).or_default().push((id, subscriber));
                }
                for (account, changes) in by_account {
                    self.change(account, changes);
                }
            }
        }
    }

    fn reset(&self, entries: Vec<Entry>, shards: NonZeroU16) {
        let mut by_account: HashMap<AccountId, Vec<Arc<Subscriber>>> = HashMap::new();
        for subscriber in entries.into_iter().filter_map(|entry| read(entry, shards)) {
            let account = subscriber.webhook.account.clone();
            by_account.entry(account).or_default().push(subscriber);
        }
        let mut fresh: Vec<Bucket> = self.buckets.iter().map(|_| Bucket::default()).collect();
        for (account, subscribers) in by_account {
            if let Some(bucket) = fresh.get_mut(self.index(&account)) {
                bucket.insert(account, Arc::new(Table::new(subscribers)));
            }
        }
        for (bucket, fresh) in self.buckets.iter().zip(fresh) {
            bucket.store(Arc::new(fresh));
        }
    }

    /// Only the feed's own task writes, so nothing can come between the load and the store.
    fn change(&self, account: AccountId, changes: Vec<Changed>) {
        let place = self.bucket(&account);
        let mut bucket = Bucket::clone(&place.load());
        let table = bucket.get(&account).cloned().unwrap_or_default().changed(changes);
        if table.is_empty() {
            bucket.remove(&account);
        } else {
            bucket.insert(account, Arc::new(table));
        }
        place.store(Arc::new(bucket));
    }
}

/// Only the feed's own task writes, so nothing can come between the load and the store.
fn apply_types(types: &ArcSwap<Types>, update: Update) {
    let put = |entry: Entry| {
        let name = key::parse_event_type(&entry.key)?;
        match stored::decode_event_type(name.clone(), entry.value) {
            Ok(event_type) => {
                let (known, flaw) = KnownType::new(&event_type);
                if let Some(flaw) = flaw {
                    tracing::error!(key = %entry.key, %flaw, "a stored schema does not compile: events are not checked against it");
                }
                Some((name, Some(Arc::new(known))))
            }
            Err(error) => {
                tracing::error!(key = %entry.key, %error, "a stored event type cannot be read: it counts as unknown");
                Some((name, None))
            }
        }
    };
    let changed = match update {
        Update::Reset(entries, _) => Types::default().changed(entries.into_iter().filter_map(put)),
        Update::Changes(changes) => {
            types
                .load()
                .changed(changes.changes.into_iter().filter_map(|change| match change {
                    Change::Put(entry) => put(entry),
                    Change::Delete(key) => Some((key::parse_event_type(&key)?, None)),
                }))
        }
    };
    types.store(Arc::new(changed));
}

/// Only the feed's own task writes, so nothing can come between the load and the store.
fn apply_accounts(rules: &ArcSwap<Rules>, update: Update) {
    let (mut next, changes) = match update {
        Update::Reset(entries, _) => (Rules::default(), entries.into_iter().map(Change::Put).collect()),
        Update::Changes(changes) => (Rules::clone(&rules.load()), changes.changes),
    };
    for change in changes {
        let Some(id) = key::parse_account(change.key()) else {
            continue;
        };
        next.forget(&id);
        let Change::Put(entry) = change else { continue };
        match stored::decode_account(id, entry.value) {
            Ok(account) => next.add(account),
            Err(error) => {
                tracing::error!(key = %entry.key, %error, "a stored account cannot be read: it counts as one with the defaults");
            }
        }
    }
    rules.store(Arc::new(next));
}

/// A webhook that this release cannot read is left out: no event can be matched against what is not understood.
fn read(entry: Entry, shards: NonZeroU16) -> Option<Arc<Subscriber>> {
    let Some((account, id)) = key::parse_webhook(&entry.key) else {
        tracing::warn!(key = %entry.key, "a key among the webhooks is not a webhook's");
        return None;
    };
    let shard = shard::of(&account, &id, shards);
    match stored::decode_webhook(account, id, entry.value) {
        Ok(webhook) => Some(Arc::new(Subscriber {
            filter: filter(&webhook, &entry.key),
            webhook: Arc::new(webhook),
            revision: entry.mod_revision,
            shard,
        })),
        Err(error) => {
            tracing::error!(key = %entry.key, %error, "a stored webhook cannot be read: it gets no events");
            None
        }
    }
}

/// A filter that does not compile (an earlier release stored it) lets everything through: what a receiver did not want it can throw away, what it
/// never got it cannot miss.
fn filter(webhook: &Webhook, key: &Key) -> Option<Arc<Filter>> {
    match Filter::compile(webhook.filter.as_deref()?) {
        Ok(filter) => Some(Arc::new(filter)),
        Err(flaws) => {
            let flaw = flaws.first().map_or("", |flaw| flaw.description.as_str());
            tracing::error!(%key, %flaw, "a stored filter does not compile: the webhook gets every event that it asks for by name");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postrider_common::id::EventName;
    use postrider_common::store::memory::MemoryStore;
    use postrider_common::store::{Op, Store, Write};

    use super::*;
    use crate::catalog::view::tests::webhook;

    async fn put(store: &MemoryStore, account: &str, id: &str, patterns: &[&str]) -> Revision {
        let webhook = webhook(account, id, patterns);
        let op = Op::put(
            key::webhook(&webhook.account, &webhook.id),
            stored::encode_webhook(&webhook),
        );
        write(store, op).await
    }

    async fn write(store: &MemoryStore, op: Op) -> Revision {
        let write = Write {
            guards: Vec::new(),
            ops: vec![op],
        };
        store.write(write).await.unwrap()
    }

    fn matching(catalog: &Catalog, account: &str, name: &str) -> Vec<String> {
        let table = catalog.table(&AccountId::new(account).unwrap());
        let matching = table.matching(&EventName::new(name).unwrap());
        matching
            .iter()
            .map(|subscriber| subscriber.webhook.id.to_string())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_catalog_shows_what_was_there_and_follows_what_changes() {
        let store = MemoryStore::default();
        put(&store, "a", "old", &["X"]).await;
        let group = Group::default();
        let catalog = Catalog::spawn(&group, Arc::new(store.clone()), shard::DEFAULT_COUNT);
        catalog.synced().await;
        assert!(catalog.is_synced());
        assert_eq!(matching(&catalog, "a", "X"), ["old"]);
        let revision = put(&store, "a", "new", &["X*"]).await;
        assert!(catalog.reached(revision).await);
        assert_eq!(matching(&catalog, "a", "X"), ["new", "old"]);
        assert_eq!(matching(&catalog, "b", "X"), [""; 0]);
        let table = catalog.table(&AccountId::new("a").unwrap());
        let new = table.matching(&EventName::new("XY").unwrap())[0].clone();
        assert_eq!(new.revision, revision);
        assert_eq!(
            new.shard,
            shard::of(&new.webhook.account, &new.webhook.id, shard::DEFAULT_COUNT)
        );
        let gone = Op::delete(Key::from_stored("webhooks/a/old"));
        assert!(catalog.reached(write(&store, gone).await).await);
        assert_eq!(matching(&catalog, "a", "X"), ["new"]);
        group.shut_down(Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_webhook_that_cannot_be_read_is_left_out_and_the_others_stay() {
        let store = MemoryStore::default();
        put(&store, "a", "good", &["*"]).await;
        write(&store, Op::put(Key::from_stored("webhooks/a/bad"), "garbage")).await;
        write(&store, Op::put(Key::from_stored("webhooks/strange"), "garbage")).await;
        let group = Group::default();
        let catalog = Catalog::spawn(&group, Arc::new(store.clone()), shard::DEFAULT_COUNT);
        catalog.synced().await;
        assert_eq!(matching(&catalog, "a", "X"), ["good"]);
        let broken = Op::put(Key::from_stored("webhooks/a/good"), "garbage");
        assert!(catalog.reached(write(&store, broken).await).await);
        assert!(catalog.table(&AccountId::new("a").unwrap()).is_empty());
        group.shut_down(Duration::from_secs(1)).await;
    }
}
