//! The lease of dedupe keys: the answer of a request that carried a request id is kept for at least 25 hours.
//!
//! No lease is ever kept alive: a new one is taken every hour, and the old ones run out with the keys they hold.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use postrider_common::store::{LeaseId, ReadError, SharedStore};
use tokio::time::Instant;

/// How long a lease lives: the 24 hours that the API promises, the hour during which it is given out, and an hour to spare for clocks that run
/// at different speeds.
const TTL: Duration = Duration::from_secs(26 * 3600);

/// How long one lease is given out.
const GIVEN_OUT_FOR: Duration = Duration::from_secs(3600);

/// Holds the lease that new dedupe keys are put on.
pub(crate) struct DedupeLease {
    store: SharedStore,
    current: Mutex<Option<(LeaseId, Instant)>>,
}

impl DedupeLease {
    /// A holder that has no lease yet.
    pub(crate) fn new(store: SharedStore) -> Self {
        Self {
            store,
            current: Mutex::new(None),
        }
    }

    /// A lease that lives 25 hours at least. Callers who meet while there is none each take one: that costs a lease, not a wait.
    ///
    /// # Errors
    /// When a lease is needed and the store does not grant one.
    pub(crate) async fn current(&self) -> Result<LeaseId, ReadError> {
        let asked = Instant::now();
        if let Some((lease, until)) = *self.lock()
            && asked < until
        {
            return Ok(lease);
        }
        let grant = self.store.grant(TTL).await?;
        *self.lock() = Some((grant.id, asked + GIVEN_OUT_FOR));
        Ok(grant.id)
    }

    /// Forgets the lease: a write said that it is gone.
    pub(crate) fn invalidate(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(LeaseId, Instant)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use postrider_common::key::Key;
    use postrider_common::store::memory::MemoryStore;
    use postrider_common::store::{Op, Store as _, Write};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_key_lives_25_hours_and_dies_within_26() {
        let store = MemoryStore::default();
        let holder = DedupeLease::new(Arc::new(store.clone()));
        let first = holder.current().await.unwrap();
        tokio::time::advance(Duration::from_secs(3599)).await;
        assert_eq!(holder.current().await.unwrap(), first);
        let key = Key::from_stored("dedupe/a/x");
        let op = Op::put_leased(key.clone(), "x", first);
        store
            .write(Write {
                guards: vec![],
                ops: vec![op],
            })
            .await
            .unwrap();
        tokio::time::advance(Duration::from_secs(25 * 3600)).await;
        assert!(store.get(&key).await.unwrap().0.is_some());
        assert_ne!(holder.current().await.unwrap(), first);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(store.get(&key).await.unwrap().0.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_gone_is_given_out_no_more() {
        let holder = DedupeLease::new(Arc::new(MemoryStore::default()));
        let first = holder.current().await.unwrap();
        holder.invalidate();
        assert_ne!(holder.current().await.unwrap(), first);
    }
}
