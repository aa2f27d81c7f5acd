//! Watches how full the store is: publishing, and then creating, is refused well before the store refuses everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use postrider_common::store::{SharedStore, Usage};
use tokio_util::sync::CancellationToken;

/// How often the store is asked: what is published in that time, at the highest rates, is a small part of what is kept free.
const EVERY: Duration = Duration::from_secs(5);

/// Percent of the quota that publishing may fill. A store that is quite full would refuse deletions' bookkeeping and new leases, too, and then
/// deliveries could not make room.
const PUBLISH_PERCENT: u128 = 70;

/// Percent of the quota up to which webhooks, accounts and event types may be created: they are small, and needed to see to what fills the store;
/// but the rest is for what deliveries have to write.
const CREATE_PERCENT: u128 = 85;

/// How full the store is, as of the last time it was asked.
#[derive(Debug, Default)]
pub(crate) struct Fullness {
    /// Bytes on disk, as far as is known.
    pub(crate) size: AtomicU64,
    /// Bytes of it that are in use.
    pub(crate) in_use: AtomicU64,
    /// Bytes it may grow to; 0 if there is no limit, or it is not known yet.
    pub(crate) quota: AtomicU64,
    /// 0: takes everything; 1: no events; 2: nothing new.
    level: AtomicU8,
}

impl Fullness {
    /// Events are refused.
    pub(crate) fn is_full(&self) -> bool {
        // Nothing else is ordered by it.
        self.level.load(Ordering::Relaxed) >= 1
    }

    /// So is whatever else would stay in the store.
    pub(crate) fn is_quite_full(&self) -> bool {
        self.level.load(Ordering::Relaxed) >= 2
    }

    pub(crate) fn note(&self, usage: &Usage, quota: Option<u64>) {
        self.size.store(usage.size, Ordering::Relaxed);
        self.in_use.store(usage.in_use, Ordering::Relaxed);
        self.quota.store(quota.unwrap_or(0), Ordering::Relaxed);
        let above = |percent| quota.is_some_and(|quota| u128::from(usage.in_use) * 100 > u128::from(quota) * percent);
        let level = u8::from(above(PUBLISH_PERCENT)) + u8::from(above(CREATE_PERCENT));
        let before = self.level.swap(level, Ordering::Relaxed);
        let in_use = usage.in_use;
        match level {
            _ if level == before => {}
            0 => tracing::info!(in_use, quota, "the store has room again: publishing goes on"),
            1 => tracing::error!(in_use, quota, "the store is nearly full: publishing is refused"),
            _ => tracing::error!(
                in_use,
                quota,
                "the store is nearly full: publishing and creating are refused"
            ),
        }
    }
}

/// Keeps `fullness` up to date until `stop` is given. `quota` counts where the store names none of its own.
pub(crate) async fn watch(store: SharedStore, quota: Option<u64>, fullness: Arc<Fullness>, stop: CancellationToken) {
    let look = async {
        loop {
            match store.usage().await {
                Ok(usage) => fullness.note(&usage, usage.quota.or(quota)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing_stops_above_70_percent_of_the_quota_and_creating_above_85() {
        let fullness = Fullness::default();
        let usage = |in_use| Usage {
            size: 1000,
            in_use,
            quota: None,
            full: false,
        };
        for (in_use, full, quite_full) in [
            (700, false, false),
            (701, true, false),
            (850, true, false),
            (851, true, true),
            (700, false, false),
        ] {
            fullness.note(&usage(in_use), Some(1000));
            assert_eq!(
                (fullness.is_full(), fullness.is_quite_full()),
                (full, quite_full),
                "{in_use}"
            );
        }
        fullness.note(&usage(u64::MAX), None);
        assert!(!fullness.is_full());
    }
}
