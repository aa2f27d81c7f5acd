//! Says where people look when the store takes no more: in the readiness of a process, and in a metric.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::SharedStore;
use crate::admin::Readiness;

/// How often the store is asked: nothing is decided by it.
const EVERY: Duration = Duration::from_secs(5);

/// What [`watch`] keeps up to date: 1 while the store takes no more, else 0.
pub type Full = Arc<AtomicI64>;

/// Keeps `readiness` and `full` up to date until `stop` is given.
pub async fn watch(store: SharedStore, readiness: Readiness, full: Full, stop: CancellationToken) {
    let look = async {
        loop {
            // A store that is away is not full for that; what was known last stays.
            if let Ok(usage) = store.usage().await {
                let before = full.swap(i64::from(usage.full), Ordering::Relaxed);
                if usage.full {
                    let why = "it takes no more (etcd: the NOSPACE alarm is raised; see `control-plane etcd-recover`)";
                    readiness.not_ready("store", why);
                } else {
                    readiness.ready("store");
                }
                match (before, usage.full) {
                    (0, true) => tracing::error!("the store takes no more"),
                    (1, false) => tracing::info!("the store takes writes again"),
                    _ => {}
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    stop.run_until_cancelled(look).await;
}
