//! Keeps a copy of what stands below a prefix: a listing, then a watch from its revision. Stands in for `store::mirror`, whose shape it has.

use std::time::Duration;

use futures_util::StreamExt as _;
use postrider_common::key::Key;
use postrider_common::store::{Changes, Entry, ReadError, Revision, SharedStore, WatchError, list_all};
use postrider_common::task::Group;
use tokio::sync::watch;

/// Pause before listing or watching again: long enough not to burden a store in trouble, well below a leader change of etcd.
const PAUSE: Duration = Duration::from_millis(100);

/// What has become known.
pub(crate) enum Update {
    /// All that stands below the prefix, as of a revision: forget everything before.
    Reset(Vec<Entry>, Revision),
    /// What changed since.
    Changes(Changes),
}

/// What a feed has seen. Clones are of the same feed.
#[derive(Debug, Clone)]
pub(crate) struct Handle(watch::Receiver<Option<Revision>>);

impl Handle {
    /// Everything up to this revision has been applied; `None` before the first listing.
    pub(crate) fn revision(&self) -> Option<Revision> {
        *self.0.borrow()
    }

    /// Waits until everything up to `revision` has been applied; false if the feed ended before.
    pub(crate) async fn reached(&self, revision: Revision) -> bool {
        let mut seen = self.0.clone();
        seen.wait_for(|at| at.is_some_and(|at| at >= revision)).await.is_ok()
    }

    /// Waits for the first listing; for ever if the feed ended before.
    pub(crate) async fn synced(&self) {
        if !self.reached(Revision::default()).await {
            std::future::pending().await
        }
    }
}

/// Starts to feed `apply` with what stands below `prefix`.
pub(crate) fn spawn(
    group: &Group,
    name: &'static str,
    store: SharedStore,
    prefix: Key,
    keys_only: bool,
    mut apply: impl FnMut(Update) + Send + 'static,
) -> Handle {
    let (seen, handle) = watch::channel(None);
    let stop = group.token().clone();
    group.spawn(name, async move {
        let follow = async {
            loop {
                let Err(error) = follow(&store, &prefix, keys_only, &mut apply, &seen).await;
                tracing::debug!(feed = name, %error, "listing again");
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = follow => {}
            () = stop.cancelled() => {}
        }
    });
    Handle(handle)
}

async fn follow(
    store: &SharedStore,
    prefix: &Key,
    keys_only: bool,
    apply: &mut impl FnMut(Update),
    seen: &watch::Sender<Option<Revision>>,
) -> Result<std::convert::Infallible, ReadError> {
    let (entries, mut revision) = list_all(store.as_ref(), prefix, keys_only).await?;
    apply(Update::Reset(entries, revision));
    seen.send_replace(Some(revision));
    loop {
        let mut watch = match store.watch(prefix, revision.next()).await {
            Ok(watch) => watch,
            Err(WatchError::Compacted) => return Err(ReadError::Compacted),
            Err(WatchError::Ended(_)) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while let Some(next) = watch.next().await {
            match next {
                Ok(changes) => {
                    revision = revision.max(changes.revision);
                    apply(Update::Changes(changes));
                    seen.send_replace(Some(revision));
                }
                Err(WatchError::Compacted) => return Err(ReadError::Compacted),
                Err(WatchError::Ended(_)) => break,
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
