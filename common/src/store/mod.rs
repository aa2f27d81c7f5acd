//! The store: one small trait, shaped like etcd's KV, with three implementations that pass one conformance suite.
//!
//! - [`memory`]: for tests and simulations, with injectable faults.
//! - [`mod@file`]: embedded, for one process.
//! - [`etcd`]: the real thing.
//!
//! Every write is one atomic transaction with guards on revisions, never on values. A write that fails says what is known about
//! it: [`WriteError::Conflict`] (a guard did not hold: read again, decide again), [`WriteError::NotApplied`] (may be sent again)
//! or [`WriteError::Unknown`] (read back first). Everything above the trait is the same code for all three.

#[cfg(any(test, feature = "conformance"))]
#[doc(hidden)]
pub mod conformance;
pub mod etcd;
pub mod file;
pub mod lease;
pub mod link;
pub mod memory;
pub mod mirror;
pub mod once;
pub mod room;
pub mod url;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::key::Key;

/// Most operations that one [`Write`] may hold; etcd's own limit, for guards and operations each.
pub const MAX_OPS: usize = 128;

/// Most bytes of keys and values that one [`Write`] may hold: below etcd's 1.5 MiB a request, with room for framing.
pub const MAX_WRITE_BYTES: usize = 1_400_000;

/// A shared store.
pub type SharedStore = Arc<dyn Store>;

/// A point in the store's history. Every successful write has one of its own, larger than all before; the first is 1 or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub i64);

impl Revision {
    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Names a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// A lease as it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Its name.
    pub id: LeaseId,
    /// How long it lives without a keep-alive: as granted, not as asked for.
    pub ttl: Duration,
}

/// One entry of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: Key,
    /// Its value; empty in a listing of keys only.
    pub value: Bytes,
    /// When the key came into being (again, if it had been deleted).
    pub create_revision: Revision,
    /// When the value was last written.
    pub mod_revision: Revision,
    /// The lease it dies with.
    pub lease: Option<LeaseId>,
}

/// Asks for one page of the entries below a prefix, ordered by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListRequest {
    /// All keys that start with this text.
    pub prefix: Key,
    /// Only keys after this one: the last of the page before.
    pub after: Option<Key>,
    /// Most entries of the page; at least 1. A store may give fewer, never none while there are more.
    pub limit: usize,
    /// As of this revision; `None` means now. Pages of one listing pass the first page's revision.
    pub revision: Option<Revision>,
    /// Leave the values out.
    pub keys_only: bool,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The entries, ordered by key.
    pub entries: Vec<Entry>,
    /// There are more.
    pub more: bool,
    /// The revision that the page shows.
    pub revision: Revision,
}

/// Must hold for a write to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key does not exist.
    Absent(Key),
    /// The key exists and came into being at this revision.
    Created(Key, Revision),
    /// The key exists and was last written at this revision.
    Modified(Key, Revision),
}

impl Guard {
    /// The key that is guarded.
    pub const fn key(&self) -> &Key {
        match self {
            Self::Absent(key) | Self::Created(key, _) | Self::Modified(key, _) => key,
        }
    }
}

/// One operation of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The key.
        key: Key,
        /// Its value.
        value: Bytes,
        /// The lease it dies with.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; no error if it does not exist.
    Delete {
        /// The key.
        key: Key,
    },
}

impl Op {
    /// Sets a key that lives until it is deleted.
    pub fn put(key: Key, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key,
            value: value.into(),
            lease: None,
        }
    }

    /// Sets a key that dies with `lease`.
    pub fn put_leased(key: Key, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        Self::Put {
            key,
            value: value.into(),
            lease: Some(lease),
        }
    }

    /// Deletes a key.
    pub const fn delete(key: Key) -> Self {
        Self::Delete { key }
    }

    /// The key that is touched.
    pub const fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.as_str().len() + value.len(),
            Self::Delete { key } => key.as_str().len(),
        }
    }
}

/// One atomic write: all operations are applied if every guard holds, else none. No key may be touched twice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Write {
    /// What must hold. At most [`MAX_OPS`].
    pub guards: Vec<Guard>,
    /// What to do. At most [`MAX_OPS`].
    pub ops: Vec<Op>,
}

/// What happened to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was written.
    Put(Entry),
    /// It was deleted, or its lease ran out.
    Delete(Key),
}

impl Change {
    /// The key that changed.
    pub const fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete(key) => key,
        }
    }
}

/// All that happened below a watched prefix in some revisions: whole revisions, in order, each key's changes in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The watch has now seen everything up to and including this revision.
    pub revision: Revision,
    /// What happened; empty in a mere sign of life.
    pub changes: Vec<Change>,
}

/// What changes below a prefix, as it happens.
pub type Watch = BoxStream<'static, Result<Changes, WatchError>>;

/// What the store holds in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes on disk.
    pub size: u64,
    /// Bytes of it that are in use.
    pub in_use: u64,
    /// Bytes it may grow to, if it says so.
    pub quota: Option<u64>,
    /// It takes no more: writes that put something are refused as [`NotApplied::Full`].
    pub full: bool,
}

/// Why a read failed. Reads may always be repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The revision asked for is no longer kept: list again from a new one.
    #[error("the revision asked for has been compacted")]
    Compacted,
    /// The store did not answer, or not in time.
    #[error("the store is away: {0}")]
    Away(String),
}

/// Why a write failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A guard did not hold; nothing was applied. Read again, decide again.
    #[error("a guard did not hold")]
    Conflict,
    /// Certainly not applied; may be sent again.
    #[error("not applied: {0}")]
    NotApplied(NotApplied),
    /// It may have been applied, now or still to come: read back first, never send again blindly.
    #[error("the outcome is not known: {0}")]
    Unknown(String),
}

/// Why a write was certainly not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotApplied {
    /// The store could not be reached.
    #[error("the store is away: {0}")]
    Away(String),
    /// The store takes no more (etcd's NOSPACE, a full disk). Of several writes at once etcd may apply those that fill it, and answer them with this:
    /// what must not be sent again for nothing goes through a lane ([`once`]).
    #[error("the store is full")]
    Full,
    /// A lease named by the write does not exist any more.
    #[error("the lease is gone")]
    LeaseGone,
    /// The write itself is not allowed: too many operations, too large, a key touched twice. Sending it again will not help.
    #[error("the write is not allowed: {0}")]
    Invalid(String),
}

/// Why a watch ended. Every end is an error: watch again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Revisions that it should have shown are no longer kept, or the store was put back to before them: list again.
    #[error("the watch fell behind the compaction")]
    Compacted,
    /// The connection ended: watch again from the revision after the last one seen.
    #[error("the watch ended: {0}")]
    Ended(String),
}

/// Why a lease could not be kept alive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// It has run out or was revoked: all its keys are gone.
    #[error("the lease is gone")]
    Gone,
    /// The store did not answer, or not in time; the lease may still live.
    #[error("the store is away: {0}")]
    Away(String),
}

/// A transactional, watchable map from keys to bytes. All methods have deadlines of their own and may be cancelled at any await; a write
/// that was cancelled may have been applied.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One entry, as of now.
    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), ReadError>;

    /// Several entries, all as of one moment, in the order asked. At most [`MAX_OPS`] keys.
    async fn get_all(&self, keys: &[Key]) -> Result<(Vec<Option<Entry>>, Revision), ReadError>;

    /// One page of the entries below a prefix.
    async fn list(&self, request: ListRequest) -> Result<Page, ReadError>;

    /// Applies a write if all its guards hold, and returns its revision.
    async fn write(&self, write: Write) -> Result<Revision, WriteError>;

    /// Watches all keys that start with `prefix`, from revision `from` (included) on.
    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Watch, WatchError>;

    /// Makes a lease.
    async fn grant(&self, ttl: Duration) -> Result<Grant, ReadError>;

    /// Prolongs a lease; answers how long it lives from the moment the request was sent.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, LeaseError>;

    /// Ends a lease and deletes its keys. No error if it does not exist.
    async fn revoke(&self, lease: LeaseId) -> Result<(), ReadError>;

    /// Forgets all history before `revision`. No error if that was done already.
    async fn compact(&self, revision: Revision) -> Result<(), ReadError>;

    /// What the store holds in all.
    async fn usage(&self) -> Result<Usage, ReadError>;
}

/// Lists everything below `prefix` at one revision, page by page.
///
/// # Errors
/// As [`Store::list`]; a listing that meets a compaction starts again by itself once.
pub async fn list_all(store: &dyn Store, prefix: &Key, keys_only: bool) -> Result<(Vec<Entry>, Revision), ReadError> {
    match list_once(store, prefix, keys_only, None).await {
        Err(ReadError::Compacted) => list_once(store, prefix, keys_only, None).await,
        other => other,
    }
}

/// All entries below a prefix at a revision, in the order of their keys.
///
/// # Errors
/// [`ReadError`]; [`ReadError::Compacted`] if the revision is no longer kept.
pub async fn list_all_at(
    store: &dyn Store,
    prefix: &Key,
    keys_only: bool,
    revision: Revision,
) -> Result<Vec<Entry>, ReadError> {
    let (entries, _) = list_once(store, prefix, keys_only, Some(revision)).await?;
    Ok(entries)
}

/// Entries a page when everything is listed: 500 values of at most 64 KiB stay below the 64 MiB that a client decodes.
const LIST_PAGE: usize = 500;

async fn list_once(
    store: &dyn Store,
    prefix: &Key,
    keys_only: bool,
    revision: Option<Revision>,
) -> Result<(Vec<Entry>, Revision), ReadError> {
    let mut request = ListRequest {
        prefix: prefix.clone(),
        after: None,
        limit: LIST_PAGE,
        revision,
        keys_only,
    };
    let mut entries = Vec::new();
    loop {
        let page = store.list(request.clone()).await?;
        entries.extend(page.entries);
        if !page.more {
            return Ok((entries, page.revision));
        }
        request.revision = Some(page.revision);
        request.after = entries.last().map(|entry| entry.key.clone());
    }
}

/// Checks what every implementation refuses in the same way.
///
/// # Errors
/// [`NotApplied::Invalid`] with what is wrong.
pub fn check(write: &Write) -> Result<(), WriteError> {
    let invalid = |why: String| Err(WriteError::NotApplied(NotApplied::Invalid(why)));
    if write.guards.len() > MAX_OPS || write.ops.len() > MAX_OPS {
        return invalid(format!(
            "{} guards and {} operations, at most {MAX_OPS} each",
            write.guards.len(),
            write.ops.len()
        ));
    }
    let size: usize = write.ops.iter().map(Op::size).sum();
    if size > MAX_WRITE_BYTES {
        return invalid(format!("{size} bytes, at most {MAX_WRITE_BYTES}"));
    }
    let mut keys: Vec<&Key> = write.ops.iter().map(Op::key).collect();
    keys.sort_unstable();
    if let Some([key, _]) = keys.array_windows().find(|[first, second]| first == second) {
        return invalid(format!("{key} is touched twice"));
    }
    Ok(())
}
