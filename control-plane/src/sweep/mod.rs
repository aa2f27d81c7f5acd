//! Sweeping: the leader makes the store forget its history.
//!
//! A store such as etcd keeps every revision until it is compacted; its own compaction runs every five minutes, in which a busy queue grows it
//! tenfold. Watches and paged listings need only the last seconds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use postrider_common::key;
use postrider_common::store::{ReadError, Revision, SharedStore, Store};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often: a compaction of two seconds' writes is small enough not to be felt.
const INTERVAL: Duration = Duration::from_secs(2);

/// How much history is kept: a watch that was interrupted is resumed within a second or two, a long listing takes less.
const KEPT: Duration = Duration::from_secs(5);

/// What the leader did about the store's history.
#[derive(Debug, Default)]
pub struct Counters {
    /// Compactions.
    pub compactions: AtomicU64,
    /// The revision of the last one: what is older is forgotten. 0 in a process that did not lead yet.
    pub compacted: AtomicI64,
    /// The newest revision that was seen.
    pub newest: AtomicI64,
}

/// Compacts until `over` is cancelled.
pub async fn run(store: SharedStore, counters: Arc<Counters>, over: CancellationToken) {
    over.run_until_cancelled(sweep(&*store, &counters)).await;
}

async fn sweep(store: &dyn Store, counters: &Counters) {
    let mut history = History::default();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let turn = turn(store, &mut history).await;
        if let Some((_, newest)) = history.seen.back() {
            counters.newest.store(newest.0, Ordering::Relaxed);
        }
        match turn {
            Ok(Some(revision)) => {
                counters.compactions.fetch_add(1, Ordering::Relaxed);
                counters.compacted.store(revision.0, Ordering::Relaxed);
                tracing::trace!(%revision, "compacted");
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "not compacted"),
        }
    }
}

async fn turn(store: &dyn Store, history: &mut History) -> Result<Option<Revision>, ReadError> {
    let (_, revision) = store.get(&key::cell()).await?;
    let now = Instant::now();
    let Some(old) = history.see(now, revision) else {
        return Ok(None);
    };
    store.compact(old).await?;
    history.compacted = Some(old);
    Ok(Some(old))
}

/// When which revision was the newest.
#[derive(Default)]
struct History {
    seen: VecDeque<(Instant, Revision)>,
    compacted: Option<Revision>,
}

impl History {
    /// Notes the newest revision, and answers the one that may be compacted to, if that has not been done.
    fn see(&mut self, now: Instant, revision: Revision) -> Option<Revision> {
        self.seen.push_back((now, revision));
        let old = |(at, _): &(Instant, Revision)| now.duration_since(*at) >= KEPT;
        while self.seen.get(1).is_some_and(old) {
            self.seen.pop_front();
        }
        let (_, revision) = self.seen.front().filter(|seen| old(seen))?;
        Some(*revision).filter(|revision| self.compacted.is_none_or(|compacted| *revision > compacted))
    }
}

#[cfg(test)]
mod tests {
    use postrider_common::store::memory::MemoryStore;
    use postrider_common::store::{ListRequest, Op, Write};

    use super::*;

    async fn put(store: &dyn Store) -> Revision {
        let ops = vec![Op::put(key::cell(), "")];
        store
            .write(Write {
                guards: Vec::new(),
                ops,
            })
            .await
            .unwrap()
    }

    async fn is_kept(store: &dyn Store, revision: Revision) -> bool {
        let request = ListRequest {
            prefix: key::cell(),
            after: None,
            limit: 1,
            revision: Some(revision),
            keys_only: true,
        };
        store.list(request).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn history_is_kept_for_five_seconds_and_not_for_ten() {
        let store = MemoryStore::default();
        let over = CancellationToken::new();
        let group = postrider_common::task::Group::default();
        let counters = Arc::new(Counters::default());
        let first = put(&store).await;
        group.spawn("sweep", run(Arc::new(store.clone()), counters.clone(), over.clone()));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let second = put(&store).await;
        tokio::time::sleep(KEPT - Duration::from_millis(100)).await;
        assert!(is_kept(&store, first).await);
        tokio::time::sleep(KEPT).await;
        assert!(!is_kept(&store, first).await);
        assert!(is_kept(&store, second).await);
        assert_eq!(counters.compacted.load(Ordering::Relaxed), second.0);
        assert_eq!(counters.newest.load(Ordering::Relaxed), second.0);
        assert!(counters.compactions.load(Ordering::Relaxed) >= 1);
        over.cancel();
        group.shut_down(KEPT).await;
    }

    #[test]
    fn a_store_that_stands_still_is_compacted_once() {
        let begun = Instant::now();
        let mut history = History::default();
        let turns = (0..10).map(|turn| history_turn(&mut history, begun + INTERVAL * turn, Revision(7)));
        let compactions: Vec<_> = turns.flatten().collect();
        assert_eq!(compactions, [Revision(7)]);
        assert!(history.seen.len() <= 5);
    }

    fn history_turn(history: &mut History, now: Instant, revision: Revision) -> Option<Revision> {
        let old = history.see(now, revision)?;
        history.compacted = Some(old);
        Some(old)
    }
}
