//! Reads stored segments as of one revision, and counts what was read.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use postrider_common::key::{self, Key};
use postrider_common::store::{Entry, ListRequest, Page, ReadError, Revision, Store};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;

use super::Subject;

/// Segments read in one request: a queue segment takes 70 KB as a rule, and most pages need one or two.
const READ_AT_ONCE: usize = 8;

/// Keys read in one request, where only keys are wanted.
const KEYS_AT_ONCE: usize = 2_000;

/// History segments whose keys are kept at hand: those of older ones are listed again.
const KEYS_KEPT: usize = 1_024;

/// What reading a segment costs besides its bytes, counted in bytes.
const SEGMENT_COST: usize = 2 << 10;

/// How far clocks of agents and control planes may be apart before a lookup by time misses something, in milliseconds.
const CLOCKS_APART: i64 = 60_000;

/// Reads for one call.
pub(crate) struct Shelves<'a> {
    store: &'a dyn Store,
    subject: &'a Subject,
    /// As of when; `None` until the first read said it.
    revision: Option<Revision>,
    progress: Option<BTreeMap<Key, Bytes>>,
    /// Bytes that may still be read.
    left: usize,
}

impl<'a> Shelves<'a> {
    /// Reads about `subject` as of `revision`, or as of the first read; up to about `most` bytes.
    pub(crate) const fn new(
        store: &'a dyn Store,
        subject: &'a Subject,
        revision: Option<Revision>,
        most: usize,
    ) -> Self {
        Self {
            store,
            subject,
            revision,
            progress: None,
            left: most,
        }
    }

    /// The webhook that is asked about.
    pub(crate) const fn subject(&self) -> &'a Subject {
        self.subject
    }

    /// As of when it was read.
    pub(crate) fn revision(&self) -> Revision {
        self.revision.unwrap_or_default()
    }

    /// Whether as much was read as one call may.
    pub(crate) const fn is_used_up(&self) -> bool {
        self.left == 0
    }

    /// The next segments below a prefix, and whether there are more.
    pub(crate) async fn next(&mut self, prefix: &Key, after: Option<&Key>) -> Result<Page, ReadError> {
        let request = ListRequest {
            prefix: prefix.clone(),
            after: after.cloned(),
            limit: READ_AT_ONCE,
            revision: None,
            keys_only: false,
        };
        let page = self.list(request).await?;
        page.entries.iter().for_each(|entry| self.count(entry));
        Ok(page)
    }

    /// One segment.
    pub(crate) async fn one(&mut self, key: &Key) -> Result<Option<Entry>, ReadError> {
        let request = ListRequest {
            prefix: key.clone(),
            after: None,
            limit: 1,
            revision: None,
            keys_only: false,
        };
        // The key itself is the first of those that begin with it.
        let found = self.list(request).await?.entries.into_iter().next();
        let found = found.filter(|entry| entry.key == *key);
        found.iter().for_each(|entry| self.count(entry));
        Ok(found)
    }

    /// How many segments of the queue were accepted before one.
    pub(crate) async fn ahead_of(&mut self, segment: &Entry) -> Result<u32, ReadError> {
        let mut request = ListRequest {
            prefix: key::queue(self.subject.shard),
            after: None,
            limit: KEYS_AT_ONCE,
            revision: None,
            keys_only: true,
        };
        let mut ahead = 0;
        loop {
            let page = self.list(request.clone()).await?;
            let before = |entry: &&Entry| entry.create_revision < segment.create_revision;
            let count = page.entries.iter().filter(before).count();
            ahead += u32::try_from(count).unwrap_or(u32::MAX);
            request.after = page.entries.last().map(|entry| entry.key.clone());
            if !page.more || request.after.is_none() {
                return Ok(ahead);
            }
        }
    }

    /// Which deliveries of a segment are over, as it is stored; empty if none is.
    pub(crate) async fn done(&mut self, segment: &Key) -> Result<Bytes, ReadError> {
        if self.progress.is_none() {
            let entry = self.one(&key::progress(self.subject.shard)).await?;
            let read = entry.map(|entry| stored::decode_progress(entry.value));
            let read = read.transpose().unwrap_or_else(|error| {
                tracing::error!(shard = %self.subject.shard, %error, "progress cannot be read");
                None
            });
            self.progress = Some(read.unwrap_or_default().segments);
        }
        let progress = self.progress.as_ref();
        Ok(progress
            .and_then(|progress| progress.get(segment).cloned())
            .unwrap_or_default())
    }

    /// The history segments before `before`, newest first: as many as are kept at hand. Those of before `since` are left out.
    pub(crate) async fn told_before(
        &mut self,
        before: Option<&Key>,
        since: Option<Timestamp>,
    ) -> Result<Vec<Key>, ReadError> {
        let since = since.map(|since| Timestamp::from_millis(since.as_millis().saturating_sub(CLOCKS_APART)));
        let mut request = ListRequest {
            prefix: key::history(self.subject.shard),
            after: since.map(|since| key::history_since(self.subject.shard, since)),
            limit: KEYS_AT_ONCE,
            revision: None,
            keys_only: true,
        };
        let mut kept: VecDeque<Key> = VecDeque::new();
        loop {
            let page = self.list(request.clone()).await?;
            request.after = page.entries.last().map(|entry| entry.key.clone());
            let keys = page.entries.into_iter().map(|entry| entry.key);
            kept.extend(keys.take_while(|key| before.is_none_or(|before| key < before)));
            kept.drain(..kept.len().saturating_sub(KEYS_KEPT));
            let beyond = request
                .after
                .as_ref()
                .zip(before)
                .is_some_and(|(last, before)| last >= before);
            if !page.more || beyond || request.after.is_none() {
                return Ok(kept.into_iter().rev().collect());
            }
        }
    }

    /// History segments, in the order asked. They never change: those that were trimmed meanwhile are left out.
    pub(crate) async fn told(&mut self, keys: &[Key]) -> Result<Vec<Entry>, ReadError> {
        let (entries, _) = self.store.get_all(keys).await?;
        let entries: Vec<Entry> = entries.into_iter().flatten().collect();
        entries.iter().for_each(|entry| self.count(entry));
        Ok(entries)
    }

    fn count(&mut self, entry: &Entry) {
        self.left = self.left.saturating_sub(entry.value.len() + SEGMENT_COST);
    }

    /// Lists as of the revision, or as of now if that is no longer kept: the leader compacts after seconds, a person takes longer to ask for the next page.
    async fn list(&mut self, mut request: ListRequest) -> Result<Page, ReadError> {
        request.revision = self.revision;
        let page = match self.store.list(request.clone()).await {
            Err(ReadError::Compacted) => {
                request.revision = None;
                self.progress = None;
                self.store.list(request).await?
            }
            page => page?,
        };
        self.revision = Some(page.revision);
        Ok(page)
    }
}
