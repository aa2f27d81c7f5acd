//! Finds a delivery that has not ended, by its event's id, in what the store holds of a shard.

use std::time::Duration;

use postrider_common::key::{self, Key, Parked};
use postrider_common::model::bits::Bits;
use postrider_common::shard::ShardId;
use postrider_common::store::{Entry, ListRequest, ReadError, Revision, SharedStore};
use postrider_common::wire::stored::{self, Progress};

use crate::shard::state::marks::Marked;

/// Values read at once: some megabyte of full segments.
const PAGE: usize = 16;

/// Pause before a store that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// Where a delivery stands.
pub(super) enum Standing {
    /// In a parked segment.
    Parked(Parked),
    /// In the queue.
    Queued,
    /// Nowhere: it has ended, or it never was.
    Nowhere,
}

/// Looks at everything that waits for a webhook, until the store answers.
pub(super) async fn find(store: SharedStore, shard: ShardId, marked: Marked) -> Standing {
    loop {
        match find_once(&store, shard, &marked).await {
            Ok(standing) => return standing,
            Err(error) => {
                tracing::warn!(%error, "what waits cannot be read for now");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn find_once(store: &SharedStore, shard: ShardId, marked: &Marked) -> Result<Standing, ReadError> {
    let (progress, revision) = store.get(&key::progress(shard)).await?;
    let progress = progress.and_then(|entry| stored::decode_progress(entry.value).ok());
    let progress = progress.unwrap_or_default();
    let parked = key::parked_of(shard, &marked.account, &marked.webhook);
    if let Some(key) = search(store, parked, revision, &progress, marked).await? {
        return Ok(key::parse_parked(&key).map_or(Standing::Nowhere, Standing::Parked));
    }
    let queued = search(store, key::queue(shard), revision, &progress, marked).await?;
    Ok(queued.map_or(Standing::Nowhere, |_| Standing::Queued))
}

/// The key of the first segment below a prefix that owes the delivery.
async fn search(
    store: &SharedStore,
    prefix: Key,
    revision: Revision,
    progress: &Progress,
    marked: &Marked,
) -> Result<Option<Key>, ReadError> {
    let mut request = ListRequest {
        prefix,
        after: None,
        limit: PAGE,
        revision: Some(revision),
        keys_only: false,
    };
    loop {
        let page = store.list(request.clone()).await?;
        request.after = page.entries.last().map(|entry| entry.key.clone());
        let found = page.entries.into_iter().find(|entry| owes(entry, progress, marked));
        if let Some(entry) = found {
            return Ok(Some(entry.key));
        }
        if !page.more {
            return Ok(None);
        }
    }
}

/// Whether a segment holds the delivery, and its bit is not set.
fn owes(entry: &Entry, progress: &Progress, marked: &Marked) -> bool {
    let Ok(segment) = stored::unpack(entry.value.clone()) else {
        return false;
    };
    let total = u32::try_from(segment.delivery_count()).unwrap_or(u32::MAX);
    let done = progress.segments.get(&entry.key).map_or(&[][..], |done| done);
    let done = Bits::read(done, total);
    let mut index = 0;
    for target in &segment.targets {
        let ours =
            target.account == marked.account && target.webhook == marked.webhook && target.webhook_uid == marked.uid;
        for delivery in &target.deliveries {
            let event = segment.events.get(delivery.event as usize);
            if ours && !done.get(index) && event.is_some_and(|event| event.id == marked.event) {
                return true;
            }
            index += 1;
        }
    }
    false
}
