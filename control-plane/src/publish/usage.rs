//! Watches how full the store is: publishing is refused well before the store refuses everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postrider_common::store::SharedStore;
use tokio_util::sync::CancellationToken;

/// How often the store is asked: what is published in that time, at the highest rates, is a small part of what is kept free.
const EVERY: Duration = Duration::from_secs(5);

/// Percent of the quota that publishing may fill. A store that is quite full would refuse deletions' bookkeeping and new leases, too, and then
/// deliveries could not make room.
const PERCENT: u128 = 70;

/// Whether the store is too full to take events.
#[derive(Debug, Default)]
pub(super) struct Fullness(AtomicBool);

impl Fullness {
    /// As of the last time the store was asked.
    pub(super) fn is_full(&self) -> bool {
        // Nothing else is ordered by it.
        self.0.load(Ordering::Relaxed)
    }

    fn note(&self, full: bool, in_use: u64, quota: u64) {
        if self.0.swap(full, Ordering::Relaxed) != full {
            if full {
                tracing::error!(in_use, quota, "the store is nearly full: publishing is refused");
            } else {
                tracing::info!(in_use, quota, "the store has room again: publishing goes on");
            }
        }
    }
}

/// Keeps `fullness` up to date until `stop` is given. `quota` counts where the store names none of its own.
pub(super) async fn watch(store: SharedStore, quota: Option<u64>, fullness: Arc<Fullness>, stop: CancellationToken) {
    let look = async {
        loop {
            match store.usage().await {
                Ok(usage) => {
                    if let Some(quota) = usage.quota.or(quota) {
                        let full = u128::from(usage.in_use) * 100 > u128::from(quota) * PERCENT;
                        fullness.note(full, usage.in_use, quota);
                    }
                }
                // What was known last stays: a store that is away refuses writes by itself.
                Err(error) => tracing::debug!(%error, "the store did not say how full it is"),
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::select! {
        () = look => {}
        () = stop.cancelled() => {}
    }
}
