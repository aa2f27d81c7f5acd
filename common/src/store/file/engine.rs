//! The store's tables in the embedded database: what is on disk, and how a batch of tasks becomes one commit. Blocking.
//!
//! Each commit ends with an fsync. A batch may hold many writes; each has its own guards and its own revision.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use redb::{
    Database, DatabaseError, ReadOnlyTable, ReadableDatabase as _, ReadableTable as _, StorageError, Table,
    TableDefinition,
};

use super::history::{Past, Step};
use crate::key::Key;
use crate::store::{Change, Entry, Grant, Guard, LeaseId, NotApplied, Op, Revision, Write, WriteError};

/// Key to create revision, mod revision and lease (each 8 bytes, little endian; no lease is 0), then the value.
const ENTRIES: TableDefinition<&str, &[u8]> = TableDefinition::new("entries");

/// Lease to its time to live, in milliseconds.
const LEASES: TableDefinition<i64, u64> = TableDefinition::new("leases");

/// The keys of each lease.
const LEASED: TableDefinition<(i64, &str), ()> = TableDefinition::new("leased");

/// Counters, by the names below.
const FACTS: TableDefinition<&str, i64> = TableDefinition::new("facts");

const REVISION: &str = "revision";
const LAST_LEASE: &str = "last-lease";
const BYTES: &str = "bytes";

/// Bytes before the value of an entry.
const HEADER: usize = 24;

/// Most bytes of values in one page of a listing: a page is held in memory as a whole.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;

/// Opens the database; called again after the disk was full.
pub(super) type OpenDatabase = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

/// One thing to do.
#[derive(Debug)]
pub(super) enum Task {
    /// Apply a write.
    Write(Write),
    /// Make a lease.
    Grant(Duration),
    /// End a lease, because it ran out or was revoked.
    End(LeaseId),
}

/// What came of a [`Task`].
#[derive(Debug)]
pub(super) enum Done {
    /// A write.
    Written(Result<Revision, WriteError>),
    /// A new lease.
    Granted(Result<Grant, String>),
    /// A lease has ended.
    Ended(Result<LeaseId, String>),
}

/// Why nothing can be said to have been committed.
#[derive(Debug)]
pub(super) struct Failure {
    /// What the database said.
    pub(super) why: String,
    /// There was no room on the disk.
    pub(super) full: bool,
    /// The commit had begun, so it may be on the disk.
    pub(super) begun: bool,
}

impl Failure {
    fn new(error: impl Into<redb::Error>, begun: bool) -> Self {
        let error = error.into();
        let full = matches!(&error, redb::Error::Io(io) if matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded));
        Self {
            why: error.to_string(),
            full,
            begun,
        }
    }
}

/// Everything that goes wrong before a commit begins leaves nothing behind.
impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error, false)
    }
}

/// The database as one commit left it.
pub(super) struct Snapshot {
    entries: ReadOnlyTable<&'static str, &'static [u8]>,
    /// The revision that it shows.
    pub(super) revision: Revision,
    /// Bytes of all keys and values.
    pub(super) bytes: u64,
}

impl Snapshot {
    /// One entry.
    pub(super) fn get(&self, key: &Key) -> Result<Option<Entry>, StorageError> {
        let Some(stored) = self.entries.get_owned(key.as_str())? else {
            return Ok(None);
        };
        decode(key.clone(), stored.value(), Part::Whole).map(Some)
    }

    /// Entries below `prefix` after the key `after`, at most `limit` and not too many bytes, with `held` in place of what is
    /// stored; and whether there are more.
    pub(super) fn page(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
        part: Part,
        held: BTreeMap<Key, Option<Entry>>,
    ) -> Result<(Vec<Entry>, bool), StorageError> {
        let start = after.map_or(Bound::Included(prefix), |key| Bound::Excluded(key.as_str()));
        let mut stored = self.entries.range::<&str>((start, Bound::Unbounded))?;
        let mut advance = || match stored.next().transpose()? {
            Some((key, value)) if key.value().starts_with(prefix) => Ok(Some((Key::from_stored(key.value()), value))),
            _ => Ok::<_, StorageError>(None),
        };
        let is_wanted = |(key, _): &(Key, Option<Entry>)| after.is_none_or(|after| key > after);
        let mut held = held.into_iter().filter(is_wanted).peekable();
        let mut next = advance()?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        loop {
            let is_held = match (&next, held.peek()) {
                (None, None) => return Ok((entries, false)),
                (Some((stored, _)), Some((held, _))) => held <= stored,
                (stored, _) => stored.is_none(),
            };
            let entry = if is_held {
                let Some((key, entry)) = held.next() else { continue };
                if next.as_ref().is_some_and(|(stored, _)| *stored == key) {
                    next = advance()?;
                }
                entry.map(|entry| part.of(entry))
            } else {
                let Some((key, value)) = next.take() else { continue };
                next = advance()?;
                Some(decode(key, value.value(), part)?)
            };
            let Some(entry) = entry else { continue };
            if entries.len() >= limit || bytes > MAX_PAGE_BYTES {
                return Ok((entries, true));
            }
            bytes += entry.value.len();
            entries.push(entry);
        }
    }
}

/// How much of an entry is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// Not the value.
    KeyOnly,
}

impl Part {
    fn of(self, entry: Entry) -> Entry {
        match self {
            Self::Whole => entry,
            Self::KeyOnly => Entry {
                value: Bytes::new(),
                ..entry
            },
        }
    }
}

/// The open database, used by one writer.
pub(super) struct Engine {
    database: Database,
    revision: Revision,
    last_lease: i64,
    bytes: i64,
}

impl Engine {
    /// Opens the database and makes its tables, and returns the leases it holds.
    pub(super) fn open(open: &OpenDatabase) -> Result<(Self, Vec<Grant>), redb::Error> {
        let database = open()?;
        let transaction = database.begin_write()?;
        transaction.open_table(ENTRIES)?;
        transaction.open_table(LEASED)?;
        let mut leases = Vec::new();
        for lease in transaction.open_table(LEASES)?.iter()? {
            let (id, millis) = lease?;
            leases.push(Grant {
                id: LeaseId(id.value()),
                ttl: Duration::from_millis(millis.value()),
            });
        }
        let fact = |name| -> Result<Option<i64>, redb::Error> {
            Ok(transaction.open_table(FACTS)?.get(name)?.map(|fact| fact.value()))
        };
        let engine = (fact(REVISION)?, fact(LAST_LEASE)?, fact(BYTES)?);
        if engine.0.is_none() {
            transaction.commit()?;
        } else {
            transaction.abort()?;
        }
        let engine = Self {
            database,
            revision: Revision(engine.0.unwrap_or(1)),
            last_lease: engine.1.unwrap_or(0),
            bytes: engine.2.unwrap_or(0),
        };
        Ok((engine, leases))
    }

    /// The newest revision.
    pub(super) const fn revision(&self) -> Revision {
        self.revision
    }

    /// The database as it is now.
    pub(super) fn snapshot(&self) -> Result<Snapshot, redb::Error> {
        Ok(Snapshot {
            entries: self.database.begin_read()?.open_table(ENTRIES)?,
            revision: self.revision,
            bytes: u64::try_from(self.bytes).unwrap_or(0),
        })
    }

    /// Does all tasks in one commit. On an error none of them may be counted as done, and this engine is not to be used again.
    pub(super) fn commit(&mut self, tasks: &[Task]) -> Result<(Vec<Done>, Vec<Step>), Failure> {
        let transaction = self.database.begin_write()?;
        let (mut done, mut steps) = (Vec::with_capacity(tasks.len()), Vec::new());
        let counters = {
            let mut batch = Batch {
                entries: transaction.open_table(ENTRIES)?,
                leases: transaction.open_table(LEASES)?,
                leased: transaction.open_table(LEASED)?,
                revision: self.revision,
                last_lease: self.last_lease,
                bytes: self.bytes,
            };
            for task in tasks {
                let (outcome, changes) = match task {
                    Task::Write(write) => batch.write(write)?,
                    Task::Grant(ttl) => (Done::Granted(Ok(batch.grant(*ttl)?)), Vec::new()),
                    Task::End(lease) => (Done::Ended(Ok(*lease)), batch.end(*lease)?),
                };
                if !changes.is_empty() {
                    batch.revision = batch.revision.next();
                    steps.push(Step {
                        revision: batch.revision,
                        changes,
                    });
                }
                done.push(outcome);
            }
            let mut facts = transaction.open_table(FACTS)?;
            facts.insert(REVISION, batch.revision.0)?;
            facts.insert(LAST_LEASE, batch.last_lease)?;
            facts.insert(BYTES, batch.bytes)?;
            (batch.revision, batch.last_lease, batch.bytes)
        };
        let nothing = |done: &Done| matches!(done, Done::Written(_));
        if steps.is_empty() && done.iter().all(nothing) {
            transaction.abort()?;
        } else {
            transaction.commit().map_err(|error| Failure::new(error, true))?;
        }
        (self.revision, self.last_lease, self.bytes) = counters;
        Ok((done, steps))
    }
}

/// The tables while a batch is applied.
struct Batch<'a> {
    entries: Table<'a, &'static str, &'static [u8]>,
    leases: Table<'a, i64, u64>,
    leased: Table<'a, (i64, &'static str), ()>,
    revision: Revision,
    last_lease: i64,
    bytes: i64,
}

impl Batch<'_> {
    fn write(&mut self, write: &Write) -> Result<(Done, Vec<Past>), StorageError> {
        for guard in &write.guards {
            if !self.holds(guard)? {
                return Ok((Done::Written(Err(WriteError::Conflict)), Vec::new()));
            }
        }
        for op in &write.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && self.leases.get(lease.0)?.is_none()
            {
                let gone = WriteError::NotApplied(NotApplied::LeaseGone);
                return Ok((Done::Written(Err(gone)), Vec::new()));
            }
        }
        let revision = self.revision.next();
        let mut changes = Vec::with_capacity(write.ops.len());
        for op in &write.ops {
            match op {
                Op::Put { key, value, lease } => changes.push(self.put(revision, key, value, *lease)?),
                Op::Delete { key } => changes.extend(self.delete(key)?),
            }
        }
        let revision = if changes.is_empty() { self.revision } else { revision };
        Ok((Done::Written(Ok(revision)), changes))
    }

    fn holds(&self, guard: &Guard) -> Result<bool, StorageError> {
        let stored = self.entries.get(guard.key().as_str())?;
        let entry = stored
            .map(|stored| decode(guard.key().clone(), stored.value(), Part::KeyOnly))
            .transpose()?;
        Ok(match guard {
            Guard::Absent(_) => entry.is_none(),
            Guard::Created(_, revision) => entry.is_some_and(|entry| entry.create_revision == *revision),
            Guard::Modified(_, revision) => entry.is_some_and(|entry| entry.mod_revision == *revision),
        })
    }

    fn put(
        &mut self,
        revision: Revision,
        key: &Key,
        value: &Bytes,
        lease: Option<LeaseId>,
    ) -> Result<Past, StorageError> {
        let before = self.take(key)?;
        let entry = Entry {
            key: key.clone(),
            value: value.clone(),
            create_revision: before.as_ref().map_or(revision, |entry| entry.create_revision),
            mod_revision: revision,
            lease,
        };
        let mut space = self.entries.insert_reserve(key.as_str(), HEADER + value.len())?;
        encode(&entry, space.as_mut());
        drop(space);
        if let Some(lease) = lease {
            self.leased.insert((lease.0, key.as_str()), ())?;
        }
        self.bytes += size(&entry);
        Ok(Past {
            change: Change::Put(entry),
            before,
        })
    }

    fn delete(&mut self, key: &Key) -> Result<Option<Past>, StorageError> {
        let Some(before) = self.take(key)? else { return Ok(None) };
        self.entries.remove(key.as_str())?;
        Ok(Some(Past {
            change: Change::Delete(key.clone()),
            before: Some(before),
        }))
    }

    /// What a key holds, counted as gone.
    fn take(&mut self, key: &Key) -> Result<Option<Entry>, StorageError> {
        let before = match self.entries.get(key.as_str())? {
            Some(stored) => decode(key.clone(), stored.value(), Part::Whole)?,
            None => return Ok(None),
        };
        if let Some(lease) = before.lease {
            self.leased.remove((lease.0, key.as_str()))?;
        }
        self.bytes -= size(&before);
        Ok(Some(before))
    }

    fn grant(&mut self, ttl: Duration) -> Result<Grant, StorageError> {
        self.last_lease += 1;
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.leases.insert(self.last_lease, millis)?;
        Ok(Grant {
            id: LeaseId(self.last_lease),
            ttl: Duration::from_millis(millis),
        })
    }

    fn end(&mut self, lease: LeaseId) -> Result<Vec<Past>, StorageError> {
        if self.leases.remove(lease.0)?.is_none() {
            return Ok(Vec::new());
        }
        let mut keys = Vec::new();
        for leased in self.leased.range((lease.0, "")..(lease.0.saturating_add(1), ""))? {
            keys.push(Key::from_stored(leased?.0.value().1));
        }
        let mut changes = Vec::with_capacity(keys.len());
        for key in keys {
            changes.extend(self.delete(&key)?);
        }
        Ok(changes)
    }
}

fn size(entry: &Entry) -> i64 {
    i64::try_from(entry.key.as_str().len() + entry.value.len()).unwrap_or(i64::MAX)
}

fn encode(entry: &Entry, space: &mut [u8]) {
    let lease = entry.lease.map_or(0, |lease| lease.0);
    let header = [entry.create_revision.0, entry.mod_revision.0, lease];
    let parts = header.iter().flat_map(|number| number.to_le_bytes());
    let (head, value) = space.split_at_mut(HEADER);
    head.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
    value.copy_from_slice(&entry.value);
}

fn decode(key: Key, stored: &[u8], part: Part) -> Result<Entry, StorageError> {
    let fields = stored.split_first_chunk::<8>().and_then(|(create, rest)| {
        let (modified, rest) = rest.split_first_chunk::<8>()?;
        let (lease, value) = rest.split_first_chunk::<8>()?;
        Some((create, modified, lease, value))
    });
    let Some((create, modified, lease, value)) = fields else {
        return Err(StorageError::Corrupted(format!("the entry {key} is too short")));
    };
    let lease = i64::from_le_bytes(*lease);
    Ok(Entry {
        key,
        value: match part {
            Part::Whole => Bytes::copy_from_slice(value),
            Part::KeyOnly => Bytes::new(),
        },
        create_revision: Revision(i64::from_le_bytes(*create)),
        mod_revision: Revision(i64::from_le_bytes(*modified)),
        lease: (lease != 0).then_some(LeaseId(lease)),
    })
}
