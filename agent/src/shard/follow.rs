//! Follows all keys below a prefix: a list, then a watch from its revision.

use std::time::Duration;

use futures_util::StreamExt as _;
use postrider_common::key::Key;
use postrider_common::store::{Changes, Entry, Revision, SharedStore, WatchError, list_all};
use postrider_common::task;
use tokio::sync::watch;

/// Pause before a store that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// What was seen.
#[derive(Debug)]
pub enum Update {
    /// Everything, as of a revision.
    Reset(Vec<Entry>, Revision),
    /// What changed since.
    Changes(Changes),
}

/// How far it got.
#[derive(Debug, Clone)]
pub struct Handle {
    seen: watch::Receiver<Option<Revision>>,
}

impl Handle {
    /// Returns when the first listing was applied.
    pub async fn synced(&self) {
        let mut seen = self.seen.clone();
        // An error means that it was stopped: whoever waits is being stopped, too.
        if seen.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Follows `prefix` until the group is told to stop.
pub fn spawn(
    group: &task::Group,
    name: &'static str,
    store: SharedStore,
    prefix: Key,
    keys_only: bool,
    mut apply: impl FnMut(Update) + Send + 'static,
) -> Handle {
    let (seen, receiver) = watch::channel(None);
    let stop = group.token().clone();
    let follow = async move {
        loop {
            let Ok((entries, revision)) = list_all(store.as_ref(), &prefix, keys_only).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            apply(Update::Reset(entries, revision));
            seen.send_replace(Some(revision));
            let mut last = revision;
            'watch: loop {
                let Ok(mut watch) = store.watch(&prefix, last.next()).await else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                while let Some(changes) = watch.next().await {
                    match changes {
                        Ok(changes) => {
                            last = changes.revision;
                            apply(Update::Changes(changes));
                            seen.send_replace(Some(last));
                        }
                        Err(WatchError::Compacted) => break 'watch,
                        Err(WatchError::Ended(_)) => break,
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    group.spawn(name, async move {
        stop.run_until_cancelled_owned(follow).await;
    });
    Handle { seen: receiver }
}
