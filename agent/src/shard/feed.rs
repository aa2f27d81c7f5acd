//! Where a worker's work comes from: what the shard held when it was taken, the queue as it grows, and the reading of segments.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key::{self, Key, Parked};
use postrider_common::model::failing::Failing;
use postrider_common::model::usage::{Name, Usage};
use postrider_common::shard::ShardId;
use postrider_common::store::{ListRequest, ReadError, Revision, SharedStore, list_all};
use postrider_common::task;
use postrider_common::wire::stored;
use postrider_proto::stored as pb;
use tokio::sync::Notify;

use super::delivery::{Known, Place, Source, SourceId};
use super::ledger::batch;
use super::ledger::counts::Counts;
use super::queue::{Queue, Waiting};
use crate::catalog::Catalog;
use postrider_common::store::mirror::{self, Update};

/// Pause before a store that did not answer is asked again; doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between two tries.
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// What a shard held when it was taken.
#[derive(Debug, Default)]
pub struct Found {
    /// For the ledger: how far the last owner got, and what it counted.
    pub book: batch::Found,
    /// The parked segments.
    pub parked: Vec<Parked>,
    /// How many shards the cell has, if it says so.
    pub shard_count: Option<NonZeroU16>,
    /// Webhooks that were failing.
    pub failing: Vec<((AccountId, WebhookId), Failing)>,
    /// Webhooks of the parked segments that do not exist any more, as of a revision: nobody owned the shard when they were deleted.
    pub gone: BTreeMap<(AccountId, WebhookId), Revision>,
}

/// Reads what a shard holds, until the store answers. Only its owner writes these keys, so they do not change behind the owner's back.
pub async fn find(store: &SharedStore, catalog: &Catalog, shard: ShardId) -> Found {
    let mut pause = FIRST_PAUSE;
    loop {
        match find_once(store, shard).await {
            Ok(mut found) => {
                found.gone = find_gone(catalog, &found).await;
                return found;
            }
            Err(error) => tracing::warn!(%shard, %error, "what a shard holds cannot be read"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn find_once(store: &SharedStore, shard: ShardId) -> Result<Found, ReadError> {
    let mut found = Found::default();
    let (cell, _) = store.get(&key::cell()).await?;
    let cell = cell.and_then(|entry| stored::decode::<pb::Cell>(entry.value).ok());
    let count = cell.and_then(|cell| u16::try_from(cell.shard_count).ok());
    found.shard_count = count.and_then(NonZeroU16::new);
    let (progress, _) = store.get(&key::progress(shard)).await?;
    let mut counted = BTreeMap::new();
    if let Some(entry) = progress {
        let progress = stored::decode_progress(entry.value).inspect_err(
            |error| tracing::error!(%shard, %error, "progress cannot be read: what was under way may be repeated"),
        );
        let progress = progress.unwrap_or_default();
        found.book.progress = Some(progress.segments);
        counted = progress.usage;
    }
    found.book.counts = find_counts(store, shard, counted).await?;
    let (parked, _) = list_all(store.as_ref(), &key::parked(shard), true).await?;
    if let Some(progress) = found.book.progress.as_mut().filter(|progress| !progress.is_empty()) {
        let (queue, _) = list_all(store.as_ref(), &key::queue(shard), true).await?;
        let there: BTreeSet<&Key> = queue.iter().chain(&parked).map(|entry| &entry.key).collect();
        progress.retain(|key, _| there.contains(key));
    }
    for entry in parked {
        match key::parse_parked(&entry.key) {
            Some(parked) => found.parked.push(parked),
            None => tracing::error!(key = %entry.key, "not the key of a parked segment: it is left alone"),
        }
    }
    let (failing, _) = list_all(store.as_ref(), &key::failing(shard), false).await?;
    for entry in failing {
        match (key::parse_failing(&entry.key), stored::decode_failing(entry.value)) {
            (Some((account, webhook)), Ok(failing)) => found.failing.push(((account, webhook), failing)),
            (_, _) => tracing::warn!(key = %entry.key, "not a note of a failing webhook: it is left alone"),
        }
    }
    Ok(found)
}

/// Which webhooks do not exist any more. The store is asked after everything was found: so whatever was found of them was theirs.
async fn find_gone(catalog: &Catalog, found: &Found) -> BTreeMap<(AccountId, WebhookId), Revision> {
    let parked = found.parked.iter();
    let names: BTreeSet<_> = parked
        .map(|parked| (parked.account.clone(), parked.webhook.clone()))
        .collect();
    let mut gone = BTreeMap::new();
    for name in names {
        if let Some(at) = catalog.absent(&name).await {
            gone.insert(name, at);
        }
    }
    gone
}

/// The first dead letters of each webhook that has some in a shard: one read for each, however many they are.
pub async fn first_dead_letters(store: &SharedStore, shard: ShardId) -> Result<Vec<Parked>, ReadError> {
    let mut request = ListRequest {
        prefix: key::dead(shard),
        after: None,
        limit: 1,
        revision: None,
        keys_only: true,
    };
    let mut first = Vec::new();
    loop {
        let page = store.list(request.clone()).await?;
        let Some(entry) = page.entries.first() else {
            return Ok(first);
        };
        request.after = Some(match key::parse_dead(&entry.key) {
            Some(at) => {
                let last = key::after_dead_of(shard, &at.account, &at.webhook);
                first.push(at);
                last
            }
            None => entry.key.clone(),
        });
    }
}

/// What was counted: by the progress, and where that says nothing by keys.
async fn find_counts(
    store: &SharedStore,
    shard: ShardId,
    progress: BTreeMap<Name, Usage>,
) -> Result<Counts, ReadError> {
    let (entries, _) = list_all(store.as_ref(), &key::usage(shard), false).await?;
    let unfolded = progress.keys().cloned().collect();
    let mut totals = progress;
    for entry in entries {
        match (key::parse_usage(&entry.key), stored::decode_usage(entry.value)) {
            (Some(name), Ok(usage)) => drop(totals.entry(name).or_insert(usage)),
            (_, _) => tracing::error!(key = %entry.key, "counts cannot be read: they begin anew"),
        }
    }
    Ok(Counts::new(totals, unfolded))
}

/// The queue of a shard, fed by a mirror.
#[derive(Clone, Default)]
pub struct Feed {
    queue: Arc<Mutex<Queue>>,
}

impl Feed {
    /// Starts to follow the queue; `worker` is notified when it has grown.
    pub fn spawn(group: &task::Group, store: SharedStore, shard: ShardId, worker: Arc<Notify>) -> Self {
        let feed = Self::default();
        let queue = feed.queue.clone();
        let apply = move |update| {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            let first = !queue.is_listed();
            match update {
                Update::Reset(entries, revision) => queue.reset(entries, revision),
                Update::Changes(changes) => queue.changed(changes),
            }
            let news = first || !queue.is_empty();
            drop(queue);
            if news {
                worker.notify_one();
            }
        };
        mirror::spawn(group, "queue", store, key::queue(shard), true, apply);
        feed
    }

    /// The oldest segment, if its value is at hand.
    pub fn pop_kept(&self) -> Option<Waiting> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.next_is_kept().filter(|kept| *kept)?;
        queue.pop()
    }

    /// Whether everything was taken that it held when it was listed, and since.
    pub fn is_read(&self) -> bool {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.is_listed() && queue.is_empty()
    }

    /// Up to `most` of the oldest segments, if they have to be read.
    pub fn pop_unread(&self, most: usize) -> Vec<Waiting> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut popped = Vec::new();
        while popped.len() < most && queue.next_is_kept() == Some(false) {
            popped.extend(queue.pop());
        }
        popped
    }
}

/// A segment to be read.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What it is to be called.
    pub id: SourceId,
    /// Its key.
    pub key: Key,
    /// Where it stands.
    pub place: Place,
    /// Its bits as stored.
    pub done: Bytes,
}

/// What became of a wanted segment.
#[derive(Debug)]
pub enum Got {
    /// It was read; one [`Known`] for each of its targets.
    Source(Source, Vec<Known>),
    /// It is not in the store any more.
    Missing(Key),
    /// This release cannot read it. It stays in the store.
    Unreadable(Key),
}

/// Takes a stored value apart.
pub fn open(shard: ShardId, epoch: Revision, wanted: &Wanted, value: Bytes) -> Option<Source> {
    match stored::unpack(value) {
        Ok(segment) => Some(Source::new(
            shard,
            epoch,
            wanted.id,
            wanted.key.clone(),
            wanted.place,
            segment,
            &wanted.done,
        )),
        Err(error) => {
            tracing::error!(key = %wanted.key, %error, "a segment cannot be read: it is left in the store");
            None
        }
    }
}

/// What is known at once about all webhooks of a source.
pub fn peek(catalog: &Catalog, source: &Source) -> Option<Vec<Known>> {
    let peek = |target: &super::delivery::Target| {
        let origin = &target.origin;
        catalog.peek(
            &(origin.account.clone(), origin.webhook.clone()),
            &origin.uid,
            origin.revision,
        )
    };
    source.targets.iter().map(peek).collect()
}

/// What is known about all webhooks of a source, asking the store where the catalog is behind.
pub async fn resolve(catalog: &Catalog, source: &Source) -> Vec<Known> {
    let mut known = Vec::with_capacity(source.targets.len());
    for target in &source.targets {
        let origin = &target.origin;
        let name = (origin.account.clone(), origin.webhook.clone());
        known.push(catalog.resolve(&name, &origin.uid, origin.revision).await);
    }
    known
}

/// Reads segments, until the store answers. At most `store::MAX_OPS`.
pub async fn read(
    store: SharedStore,
    catalog: Catalog,
    (shard, epoch): (ShardId, Revision),
    wanted: Vec<Wanted>,
) -> Vec<Got> {
    let keys: Vec<Key> = wanted.iter().map(|wanted| wanted.key.clone()).collect();
    let mut pause = FIRST_PAUSE;
    let entries = loop {
        match store.get_all(&keys).await {
            Ok((entries, _)) => break entries,
            Err(error) => tracing::warn!(%shard, %error, "segments cannot be read for now"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    };
    let mut got = Vec::with_capacity(wanted.len());
    for (wanted, entry) in wanted.into_iter().zip(entries) {
        got.push(match entry {
            None => Got::Missing(wanted.key),
            Some(entry) => match open(shard, epoch, &wanted, entry.value) {
                None => Got::Unreadable(wanted.key),
                Some(source) => {
                    let known = resolve(&catalog, &source).await;
                    Got::Source(source, known)
                }
            },
        });
    }
    got
}
