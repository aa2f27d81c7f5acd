//! Follows what the history tells, as it is written, through the store: of whichever agents.
//!
//! ```text
//!     resume at R ──▶ list what was written after R ──▶ watch ──ended──▶ pause ──▶ watch
//!     begin now ──────────────────────────────────────▶   └──compacted──▶ list
//! ```
//!
//! Segments stand in the store for long, and each key says at which revision it was written: so a watch that fell behind loses nothing. Nothing runs
//! while nobody asks for more: a slow reader costs a slow watch of the store and no memory.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures_util::StreamExt as _;
use postrider_common::key::Key;
use postrider_common::store::{
    Change, Changes, Entry, ListRequest, ReadError, Revision, SharedStore, Watch, WatchError,
};
use tokio::time::{Instant, sleep, timeout};

/// How long nothing may happen before a sign of life is given.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Pause before a store that is away is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// How long a store may be away before the follower is told.
const AWAY_FOR: Duration = Duration::from_secs(10);

/// Segments that may have been written since a follower stopped: some minutes of a busy cell. Their keys are kept while he catches up.
pub(super) const MISSED: usize = 20_000;

/// Segments read in one request.
const READ_AT_ONCE: usize = 16;

/// Keys read in one request.
const KEYS_AT_ONCE: usize = 2_000;

/// Why following ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The store is away.
    Away(String),
    /// Too much was written since the revision from which to resume.
    TooMuch,
}

/// Follows one prefix of the history.
pub(crate) struct Follower {
    store: SharedStore,
    prefix: Key,
    /// Everything up to here was shown.
    seen: Revision,
    watch: Option<Watch>,
    /// What was written while nobody watched, by its revision.
    missed: VecDeque<(Revision, Vec<Key>)>,
    /// The revision up to which `missed` goes.
    missed_to: Option<Revision>,
    away_since: Option<Instant>,
    /// When something was shown last.
    shown: Option<Instant>,
}

/// What was written at some revisions.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// History segments; none in a sign of life.
    pub(crate) segments: Vec<Entry>,
    /// Everything up to here was shown.
    pub(crate) revision: Revision,
}

impl Follower {
    /// Follows from now on.
    ///
    /// # Errors
    /// When the store is away.
    pub(crate) async fn begin(store: SharedStore, prefix: Key) -> Result<Self, ReadError> {
        let (_, seen) = store.get(&prefix).await?;
        Ok(Self::new(store, prefix, seen))
    }

    /// Goes on after a revision.
    pub(crate) fn resume(store: SharedStore, prefix: Key, after: Revision) -> Self {
        Self::new(store, prefix, after)
    }

    const fn new(store: SharedStore, prefix: Key, seen: Revision) -> Self {
        Self {
            store,
            prefix,
            seen,
            watch: None,
            missed: VecDeque::new(),
            missed_to: None,
            away_since: None,
            shown: None,
        }
    }

    /// Everything up to here was shown.
    pub(crate) const fn seen(&self) -> Revision {
        self.seen
    }

    /// The next news, or a sign of life.
    ///
    /// # Errors
    /// Why it cannot be followed any more; [`Follower::seen`] says from where another one can.
    pub(crate) async fn next(&mut self) -> Result<News, End> {
        loop {
            match self.step().await {
                Ok(Some(news)) => {
                    self.away_since = None;
                    self.shown = Some(Instant::now());
                    self.seen = news.revision;
                    return Ok(news);
                }
                Ok(None) => self.away_since = None,
                Err(End::TooMuch) => return Err(End::TooMuch),
                Err(End::Away(why)) => {
                    let since = *self.away_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > AWAY_FOR {
                        return Err(End::Away(why));
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// One step; `None` if it showed nothing.
    async fn step(&mut self) -> Result<Option<News>, End> {
        if let Some(news) = self.catch_up().await? {
            return Ok(Some(news));
        }
        let watch = match &mut self.watch {
            Some(watch) => watch,
            None => match self.store.watch(&self.prefix, self.seen.next()).await {
                Ok(watch) => self.watch.insert(watch),
                Err(WatchError::Compacted) => {
                    self.look_for_missed().await?;
                    return Ok(None);
                }
                Err(WatchError::Ended(why)) => return Err(End::Away(why)),
            },
        };
        match timeout(SIGN_OF_LIFE, watch.next()).await {
            Err(_) => Ok(Some(News {
                segments: Vec::new(),
                revision: self.seen,
            })),
            Ok(Some(Ok(changes))) => {
                let news = news(changes, self.seen);
                self.seen = news.revision;
                // What was only trimmed is no news.
                let quiet = self.shown.is_none_or(|shown| shown.elapsed() >= SIGN_OF_LIFE);
                Ok(Some(news).filter(|news| quiet || !news.segments.is_empty()))
            }
            Ok(Some(Err(WatchError::Compacted))) => {
                self.watch = None;
                self.look_for_missed().await?;
                Ok(None)
            }
            Ok(Some(Err(WatchError::Ended(_))) | None) => {
                self.watch = None;
                // So that a store that ends every watch at once is not asked without a pause.
                sleep(PAUSE).await;
                Ok(None)
            }
        }
    }

    /// Finds what was written after `seen`.
    async fn look_for_missed(&mut self) -> Result<(), End> {
        let mut request = ListRequest {
            prefix: self.prefix.clone(),
            after: None,
            limit: KEYS_AT_ONCE,
            revision: None,
            keys_only: true,
        };
        let mut missed: BTreeMap<Revision, Vec<Key>> = BTreeMap::new();
        let mut count = 0;
        let revision = loop {
            let page = self.store.list(request.clone()).await.map_err(away)?;
            request.revision = Some(page.revision);
            request.after = page.entries.last().map(|entry| entry.key.clone());
            for entry in page.entries {
                if entry.create_revision > self.seen {
                    missed.entry(entry.create_revision).or_default().push(entry.key);
                    count += 1;
                }
            }
            if count > MISSED {
                return Err(End::TooMuch);
            }
            if !page.more || request.after.is_none() {
                break page.revision;
            }
        };
        self.missed = missed.into_iter().collect();
        self.missed_to = Some(revision);
        Ok(())
    }

    /// What was written at the next revision that was missed.
    async fn catch_up(&mut self) -> Result<Option<News>, End> {
        let Some((revision, keys)) = self.missed.front() else {
            let caught_up = self.missed_to.take();
            self.seen = caught_up.map_or(self.seen, |revision| self.seen.max(revision));
            return Ok(None);
        };
        let mut segments = Vec::with_capacity(keys.len());
        for keys in keys.chunks(READ_AT_ONCE) {
            let (entries, _) = self.store.get_all(keys).await.map_err(away)?;
            segments.extend(entries.into_iter().flatten());
        }
        let news = News {
            segments,
            revision: *revision,
        };
        self.missed.pop_front();
        Ok(Some(news))
    }
}

fn away(error: ReadError) -> End {
    End::Away(error.to_string())
}

fn news(changes: Changes, seen: Revision) -> News {
    let put = |change| match change {
        Change::Put(entry) => Some(entry),
        Change::Delete(_) => None,
    };
    let segments: Vec<Entry> = changes.changes.into_iter().filter_map(put).collect();
    News {
        segments,
        revision: changes.revision.max(seen),
    }
}
