//! Follows what waits in the store for each account: one that has too much waiting is refused before the store is full for all.
//!
//! Nothing of this is on the path of a publish but one look at a mostly empty table. Every [`EVERY`] the keys of queue, parked deliveries and dead letters are listed,
//! and values are read whose size is not known yet: what was delivered meanwhile is never read. As long as the whole store holds less than the least of
//! all quotas nobody can be above theirs, and nothing is listed at all. So an account can go above its quota by what it publishes in the time of one
//! listing and [`EVERY`]; what was accepted by any control plane is in the next listing of all of them.

mod tally;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use postrider_common::id::AccountId;
use postrider_common::key::{self, Key};
use postrider_common::store::{MAX_OPS, ReadError, SharedStore, Store, list_all};
use postrider_common::wire::stored;
use tokio_util::sync::CancellationToken;

use self::tally::Tally;
use crate::api::status::Error;
use crate::catalog::Catalog;

/// How often the store is looked at.
const EVERY: Duration = Duration::from_secs(2);

/// When a publisher that was refused may try again: a look later.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What waits for the accounts that have more waiting than they may.
#[derive(Debug, Default)]
pub(crate) struct Backlog(ArcSwap<HashMap<AccountId, u64>>);

impl Backlog {
    /// Whether `account`, which may have `quota` bytes waiting, may have more.
    ///
    /// # Errors
    /// [`Error::Quota`].
    pub(super) fn check(&self, account: &AccountId, quota: impl FnOnce() -> u64) -> Result<(), Error> {
        let over = self.0.load();
        let Some(waiting) = over.get(account) else {
            return Ok(());
        };
        let quota = quota();
        if *waiting < quota {
            // It was given a larger one since.
            return Ok(());
        }
        Err(Error::Quota {
            subject: format!("accounts/{account}"),
            reason: "BACKLOG_FULL",
            description: format!(
                "{waiting} bytes of events and dead letters wait for accounts/{account}, which may have {quota} (max_backlog_bytes); nothing was done"
            ),
            retry_after: Some(RETRY_AFTER),
        })
    }

    /// How many accounts have too much waiting.
    pub(crate) fn accounts_over(&self) -> usize {
        self.0.load().len()
    }

    fn note(&self, over: HashMap<AccountId, u64>) {
        let before = self.0.load();
        for (account, waiting) in &over {
            if !before.contains_key(account) {
                tracing::warn!(%account, waiting, "an account's backlog is full: its publishing is refused");
            }
        }
        for account in before.keys().filter(|account| !over.contains_key(*account)) {
            tracing::info!(%account, "an account's backlog has room again");
        }
        self.0.store(Arc::new(over));
    }
}

/// Keeps `backlog` up to date until `stop` is given.
pub(super) async fn watch(store: SharedStore, catalog: Catalog, backlog: Arc<Backlog>, stop: CancellationToken) {
    let look = async {
        catalog.synced().await;
        let mut tally = Tally::default();
        loop {
            match look(&*store, &catalog, &mut tally).await {
                Ok(over) => backlog.note(over),
                // What was known last stays.
                Err(error) => tracing::debug!(%error, "what waits for each account cannot be read"),
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    stop.run_until_cancelled(look).await;
}

/// The accounts that have more waiting than they may, and how much.
async fn look(store: &dyn Store, catalog: &Catalog, tally: &mut Tally) -> Result<HashMap<AccountId, u64>, ReadError> {
    if store.usage().await?.in_use < catalog.least_backlog_quota() {
        tally.clear();
        return Ok(HashMap::new());
    }
    let mut seen = HashSet::new();
    // In the order in which a delivery mostly moves, so that one that moves meanwhile is seen twice rather than never.
    for folder in [key::all_queues(), key::all_parked(), key::all_dead()] {
        let (entries, _) = list_all(store, &folder, true).await?;
        let keys: Vec<Key> = entries.into_iter().map(|entry| entry.key).collect();
        let new: Vec<Key> = keys.iter().filter(|key| tally.is_new(key)).cloned().collect();
        seen.extend(keys);
        for keys in new.chunks(MAX_OPS) {
            for entry in store.get_all(keys).await?.0.into_iter().flatten() {
                let size = entry.value.len();
                if folder == key::all_queues() {
                    // What cannot be read is reported by who would deliver it.
                    let segment = stored::unpack(entry.value).ok();
                    tally.note_of_many(entry.key, size, segment.as_ref());
                } else {
                    tally.note_of_one(entry.key, size);
                }
            }
        }
    }
    tally.keep(|key| seen.contains(key));
    let mut totals = tally.totals();
    totals.retain(|account, waiting| *waiting >= catalog.backlog_quota(account));
    Ok(totals)
}

#[cfg(test)]
mod tests;
