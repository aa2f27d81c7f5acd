//! A mirror: a list followed by a watch from its revision, so always some true past state of everything below a prefix.
//!
//! It resumes after every end of a watch at the revision after the last one seen, and lists again after a compaction. Nothing is shown
//! twice, nothing is left out, revisions never go back, unless the store itself was put back to an older state: that is listed anew.
//!
//! ```text
//!     list at R ──▶ Reset ──▶ watch from R+1 ──▶ Changes … ──ended──▶ pause ──▶ watch from last+1
//!         ▲                                          └──compacted──▶ pause ──┐
//!         └──────────────────────────────────────────────────────────────────┘
//! ```

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::watch;

use super::{Changes, Entry, ReadError, Revision, SharedStore, WatchError, list_all};
use crate::key::Key;
use crate::planted::{self, Bug};
use crate::task;

/// Pause before the first repetition; it doubles up to [`LAST_PAUSE`] and starts again with each sign of life.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause: what a mirror may lag behind a store that has come back.
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// What a mirror shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Everything that stands below the prefix at a revision, ordered by key: replaces all that was shown before.
    Reset(Vec<Entry>, Revision),
    /// What has happened since, in order.
    Changes(Changes),
}

/// Tells how far a mirror has come. Clones are of the same mirror.
#[derive(Debug, Clone)]
pub struct Handle {
    seen: watch::Receiver<Option<Revision>>,
}

impl Handle {
    /// The revision that was shown last; `None` until the first list.
    pub fn revision(&self) -> Option<Revision> {
        *self.seen.borrow()
    }

    /// Waits until everything up to `revision` has been shown. False if the mirror stopped before.
    ///
    /// `revision` must be that of a write *below the prefix*: a watch need not tell of others, so waiting for one of those may last until the
    /// next write below the prefix.
    pub async fn reached(&self, revision: Revision) -> bool {
        let mut seen = self.seen.clone();
        let there = seen.wait_for(|seen| seen.is_some_and(|seen| seen >= revision)).await;
        there.is_ok()
    }

    /// Waits until the first list has been shown, or the mirror has stopped.
    pub async fn synced(&self) {
        self.reached(Revision::default()).await;
    }

    /// Follows the revision that was shown last. The sender is gone once the mirror has stopped.
    pub fn subscribe(&self) -> watch::Receiver<Option<Revision>> {
        self.seen.clone()
    }
}

/// Starts a mirror of everything below `prefix`. It runs until the group is told to stop.
///
/// `apply` is called for each update, one after the other, and before the update's revision is told by the [`Handle`]: whoever waited for a
/// revision finds it applied. It runs on the mirror's task, so it must not block. With `keys_only` the entries of a [`Update::Reset`] have no
/// values; changes always have theirs.
pub fn spawn(
    group: &task::Group,
    name: &'static str,
    store: SharedStore,
    prefix: Key,
    keys_only: bool,
    apply: impl FnMut(Update) + Send + 'static,
) -> Handle {
    let (sender, seen) = watch::channel(None);
    let mirror = Mirror {
        name,
        store,
        prefix,
        keys_only,
        apply,
        seen: sender,
        last: None,
        pause: FIRST_PAUSE,
    };
    let stop = group.token().clone();
    group.spawn(name, async move {
        stop.run_until_cancelled_owned(mirror.run()).await;
    });
    Handle { seen }
}

struct Mirror<A> {
    name: &'static str,
    store: SharedStore,
    prefix: Key,
    keys_only: bool,
    apply: A,
    seen: watch::Sender<Option<Revision>>,
    /// Everything up to here was shown; `None` when a list is needed.
    last: Option<Revision>,
    pause: Duration,
}

impl<A: FnMut(Update)> Mirror<A> {
    async fn run(mut self) {
        loop {
            let Err(error) = self.follow().await;
            if error == WatchError::Compacted {
                self.last = None;
                if planted::is(Bug::CompactionIgnored) {
                    self.last = present(&self.store, &self.prefix).await;
                }
            }
            tracing::debug!(mirror = self.name, %error, "mirror interrupted");
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(LAST_PAUSE);
        }
    }

    /// Follows the store until something ends.
    async fn follow(&mut self) -> Result<std::convert::Infallible, WatchError> {
        let mut last = match self.last {
            Some(last) => last,
            None => self.list().await?,
        };
        if planted::is(Bug::WatchFromNow) {
            last = present(&self.store, &self.prefix).await.unwrap_or(last);
        }
        // The store bounds the silence of a watch by itself: it alone knows how to ask the other side for a sign of life.
        let mut watch = self.store.watch(&self.prefix, last.next()).await?;
        while let Some(changes) = watch.next().await {
            let changes = changes?;
            self.pause = FIRST_PAUSE;
            if changes.revision > last {
                last = changes.revision;
                if !changes.changes.is_empty() {
                    (self.apply)(Update::Changes(changes));
                }
                self.show(last);
            }
        }
        Err(WatchError::Ended("the stream is over".to_owned()))
    }

    async fn list(&mut self) -> Result<Revision, WatchError> {
        let (entries, revision) = list_all(&*self.store, &self.prefix, self.keys_only)
            .await
            .map_err(|error| match error {
                ReadError::Compacted => WatchError::Compacted,
                ReadError::Away(why) => WatchError::Ended(why),
            })?;
        (self.apply)(Update::Reset(entries, revision));
        self.show(revision);
        Ok(revision)
    }

    fn show(&mut self, revision: Revision) {
        self.last = Some(revision);
        self.seen.send_replace(Some(revision));
    }
}

/// The store's revision now. Only known bugs ask.
async fn present(store: &SharedStore, key: &Key) -> Option<Revision> {
    store.get(key).await.ok().map(|(_, at)| at)
}

#[cfg(test)]
mod tests;
