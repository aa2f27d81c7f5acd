//! What became of an account's deliveries: the owners' counts and the queues, as of one revision.
//!
//! The owner of a shard counts a delivery when it takes it from the queue; what is still in the queue, and whose bit in the shard's progress is not
//! set, waits to be counted. Both together are exact at every revision of the store.

mod counts;

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use postrider_common::id::AccountId;
use postrider_common::key::{self, Key};
use postrider_common::model::bits::Bits;
use postrider_common::shard::{self, ShardId};
use postrider_common::store::{Entry, ReadError, Revision, Store, list_all, list_all_at};
use postrider_common::wire::stored::{self, Progress};

pub(crate) use self::counts::{AccountUsage, Counts};

/// How often it begins anew because the store has forgotten the revision that it was reading: the leader keeps some seconds, so once is rare.
const TRIES: u32 = 3;

/// Counts what became of an account's deliveries.
///
/// # Errors
/// StoreAway, also when the queues cannot be read within the time for which the store keeps a revision.
pub(crate) async fn of_account(
    store: &dyn Store,
    shards: NonZeroU16,
    account: &AccountId,
) -> Result<AccountUsage, ReadError> {
    for _ in 1..TRIES {
        match read(store, shards, account).await {
            Err(ReadError::Compacted) => {}
            other => return other,
        }
    }
    read(store, shards, account).await
}

async fn read(store: &dyn Store, shards: NonZeroU16, account: &AccountId) -> Result<AccountUsage, ReadError> {
    let (webhooks, revision) = list_all(store, &key::webhooks_of(account), false).await?;
    let mut usage = AccountUsage::default();
    let mut of_shard: BTreeMap<ShardId, ()> = BTreeMap::new();
    for entry in webhooks {
        let Some((_, id)) = key::parse_webhook(&entry.key) else {
            continue;
        };
        of_shard.insert(shard::of(account, &id, shards), ());
        match stored::decode_webhook(account.clone(), id, entry.value) {
            Ok(webhook) => usage.add_webhook(webhook.id, webhook.uid),
            Err(error) => tracing::error!(key = %entry.key, %error, "a webhook cannot be read: it is not counted"),
        }
    }
    let mut progress = progress(store, revision).await?;
    for shard in shard::all(shards) {
        let progress = progress.remove(&key::progress(shard)).unwrap_or_default();
        let folded = list_all_at(store, &key::usage_in(shard, account), false, revision).await?;
        let ours = progress.usage.iter().filter(|((of, _), _)| of == account);
        for ((_, webhook), counted) in ours {
            usage.add(webhook.as_ref(), counted);
        }
        for entry in folded {
            let Some(name) = key::parse_usage(&entry.key) else {
                continue;
            };
            if progress.usage.contains_key(&name) {
                continue;
            }
            match stored::decode_usage(entry.value) {
                Ok(counted) => usage.add(name.1.as_ref(), &counted),
                Err(error) => tracing::error!(key = %entry.key, %error, "counts cannot be read"),
            }
        }
        if of_shard.contains_key(&shard) {
            queue(store, shard, revision, account, &progress, &mut usage).await?;
        }
    }
    Ok(usage)
}

/// The progress of every shard, by its key.
async fn progress(store: &dyn Store, revision: Revision) -> Result<BTreeMap<Key, Progress>, ReadError> {
    let entries = list_all_at(store, &key::all_progress(), false, revision).await?;
    let read = |entry: Entry| match stored::decode_progress(entry.value) {
        Ok(progress) => Some((entry.key, progress)),
        Err(error) => {
            tracing::error!(key = %entry.key, %error, "progress cannot be read");
            None
        }
    };
    Ok(entries.into_iter().filter_map(read).collect())
}

/// Adds what waits in the queue of a shard.
async fn queue(
    store: &dyn Store,
    shard: ShardId,
    revision: Revision,
    account: &AccountId,
    progress: &Progress,
    usage: &mut AccountUsage,
) -> Result<(), ReadError> {
    for entry in list_all_at(store, &key::queue(shard), false, revision).await? {
        let segment = match stored::unpack(entry.value) {
            Ok(segment) => segment,
            Err(error) => {
                tracing::error!(key = %entry.key, %error, "a segment cannot be read: it is not counted");
                continue;
            }
        };
        let total = u32::try_from(segment.delivery_count()).unwrap_or(u32::MAX);
        let done = progress.segments.get(&entry.key).map_or(&[][..], |done| done);
        let done = Bits::read(done, total);
        let mut index = 0;
        for target in segment.targets {
            let end = index + u32::try_from(target.deliveries.len()).unwrap_or(u32::MAX);
            if target.account == *account {
                let left = (index..end).filter(|index| !done.get(*index)).count();
                usage.add_queued(&target.webhook, &target.webhook_uid, left as u64);
            }
            index = end;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
