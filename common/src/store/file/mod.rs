//! The store in one file, for one process: an embedded database, an fsync before every answer.
//!
//! One task writes (`writer`): it takes what waits, applies it in one commit (`engine`), shows the commit to readers and watchers, and answers.
//! Readers see the newest commit; a listing of a past revision undoes what `history` remembers. History lives in memory
//! and is bounded, so a watch from before the process started, or from too long ago, is compacted. Leases are on disk; when the file is
//! opened again they have their full time again, because nobody could have kept them alive.
//!
//! After an error of the disk nothing is answered OK: a full disk is tried again now and then, after opening the file anew; any
//! other error is for ever, because a second fsync may succeed without having written what the first one lost.

mod engine;
mod history;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use redb::{Database, DatabaseError, StorageError};
use tokio::sync::{mpsc, oneshot};

use self::engine::{Done, Engine, OpenDatabase, Part, Snapshot, Task};
use self::writer::{Job, MAX_WAITING, Shared, Writer};
use super::{
    Changes, Entry, Grant, LeaseError, LeaseId, ListRequest, NotApplied, Page, ReadError, Revision, Store, Usage,
    Watch, WatchError, Write, WriteError, check,
};
use crate::key::Key;
use crate::task::Group;

/// The name of the file in its directory.
const FILE: &str = "store.redb";

/// The ending of the file's name while the database is being made.
const HALF_MADE: &str = "half-made";

/// Bytes of the file that are kept in memory; the operating system caches the rest.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// How long a call waits for the disk: an fsync on a busy disk may take seconds, and a disk that takes longer is broken.
const DEADLINE: Duration = Duration::from_secs(10);

/// A store in a file. Clones share it; when the last is gone the file is closed.
#[derive(Clone)]
pub struct FileStore {
    path: Arc<PathBuf>,
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    _tasks: Arc<Group>,
}

/// Why a file store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory could not be made.
    #[error("the directory {directory} cannot be made: {source}")]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Another process, or this one, has it open.
    #[error("the store in {directory} is in use by another process")]
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// The file is not a store, or damaged, or cannot be read.
    #[error("the store in {directory} cannot be opened: {why}")]
    Database {
        /// The directory.
        directory: PathBuf,
        /// What the database said.
        why: String,
    },
}

impl FileStore {
    /// Opens the store in `directory`, which is made if there is none.
    ///
    /// # Errors
    /// As [`OpenError`]; one process at a time may have it open.
    pub async fn open(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.join(FILE);
        let file = path.clone();
        let open = move || open_or_make(&file);
        Self::open_with(directory, path, Box::new(open)).await
    }

    async fn open_with(directory: &Path, path: PathBuf, open: OpenDatabase) -> Result<Self, OpenError> {
        let directory = directory.to_owned();
        let opening = tokio::task::spawn_blocking(move || {
            if let Err(source) = std::fs::create_dir_all(&directory) {
                return Err(OpenError::Directory { directory, source });
            }
            let opened = Engine::open(&open).and_then(|(engine, leases)| Ok((engine.snapshot()?, engine, leases)));
            match opened {
                Ok((snapshot, engine, leases)) => Ok((snapshot, engine, leases, open)),
                Err(redb::Error::DatabaseAlreadyOpen) => Err(OpenError::InUse { directory }),
                Err(error) => Err(OpenError::Database {
                    directory,
                    why: error.to_string(),
                }),
            }
        });
        let (snapshot, engine, leases, open) = match opening.await {
            Ok(opened) => opened?,
            Err(error) => {
                return Err(OpenError::Database {
                    directory: path,
                    why: error.to_string(),
                });
            }
        };
        let shared = Arc::new(Shared::new(snapshot, leases));
        let (jobs, waiting) = mpsc::channel(MAX_WAITING);
        let tasks = Group::default();
        tasks.spawn(
            "store-writer",
            Writer::new(Arc::clone(&shared), open, engine).run(waiting),
        );
        Ok(Self {
            path: Arc::new(path),
            shared,
            jobs,
            _tasks: Arc::new(tasks),
        })
    }

    async fn ask(&self, task: Task) -> Result<Done, AskError> {
        let (reply, answer) = oneshot::channel();
        match self.jobs.send_timeout(Job { task, reply }, DEADLINE).await {
            Ok(()) => {}
            Err(_) => return Err(AskError::NotTaken),
        }
        match tokio::time::timeout(DEADLINE, answer).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) | Err(_) => Err(AskError::NoAnswer),
        }
    }

    /// The newest commit. A read of it blocks.
    fn newest(&self) -> Result<Arc<Snapshot>, ReadError> {
        self.shared.view(|view| view.newest.clone()).map_err(ReadError::Away)
    }
}

/// Opens the database in `file`, or makes one if there is none: under another name, which is given up once the database is whole and synced. What a
/// death or a power loss leaves of one that is half made could never be opened, and holds nothing.
fn open_or_make(file: &Path) -> Result<Database, DatabaseError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    if file.try_exists()? {
        return builder.create(file);
    }
    let half_made = file.with_extension(HALF_MADE);
    let database = match builder.create(&half_made) {
        Ok(database) => database,
        // Somebody makes it now, or it cannot be made.
        Err(error @ DatabaseError::DatabaseAlreadyOpen) => return Err(error),
        Err(error) if !half_made.try_exists()? => return Err(error),
        Err(_) => {
            std::fs::remove_file(&half_made)?;
            builder.create(&half_made)?
        }
    };
    // Whoever makes one holds its lock, so another process can have given it its name only before.
    if file.try_exists()? {
        drop(database);
        std::fs::remove_file(&half_made)?;
        return builder.create(file);
    }
    std::fs::rename(&half_made, file)?;
    // A name is kept by a sync of the directory, not by one of the file.
    if let Some(directory) = file.parent() {
        std::fs::File::open(directory)?.sync_all()?;
    }
    Ok(database)
}

/// Why the writer did not answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("the disk is too slow: too many writes wait for it")]
    NotTaken,
    #[error("the disk did not answer")]
    NoAnswer,
}

async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, ReadError> {
    match tokio::time::timeout(DEADLINE, tokio::task::spawn_blocking(read)).await {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(error))) => Err(ReadError::Away(error.to_string())),
        Ok(Err(error)) => Err(ReadError::Away(error.to_string())),
        Err(_) => Err(ReadError::Away(AskError::NoAnswer.to_string())),
    }
}

#[async_trait]
impl Store for FileStore {
    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), ReadError> {
        let (snapshot, key) = (self.newest()?, key.clone());
        blocking(move || Ok((snapshot.get(&key)?, snapshot.revision))).await
    }

    async fn get_all(&self, keys: &[Key]) -> Result<(Vec<Option<Entry>>, Revision), ReadError> {
        let (snapshot, keys) = (self.newest()?, keys.to_vec());
        blocking(move || {
            let entries = keys.iter().map(|key| snapshot.get(key)).collect::<Result<_, _>>()?;
            Ok((entries, snapshot.revision))
        })
        .await
    }

    async fn list(&self, request: ListRequest) -> Result<Page, ReadError> {
        let (snapshot, revision, held) = self.shared.view(|view| {
            let snapshot = view.newest.clone().map_err(ReadError::Away)?;
            let revision = request.revision.unwrap_or(snapshot.revision);
            if revision > snapshot.revision {
                return Err(ReadError::Away(format!("revision {revision} is in the future")));
            }
            let held = view.history.at(request.prefix.as_str(), revision)?;
            Ok((snapshot, revision, held))
        })?;
        let part = if request.keys_only { Part::KeyOnly } else { Part::Whole };
        blocking(move || {
            let limit = request.limit.max(1);
            let (entries, more) = snapshot.page(request.prefix.as_str(), request.after.as_ref(), limit, part, held)?;
            Ok(Page {
                entries,
                more,
                revision,
            })
        })
        .await
    }

    async fn write(&self, write: Write) -> Result<Revision, WriteError> {
        check(&write)?;
        match self.ask(Task::Write(write)).await {
            Ok(Done::Written(outcome)) => outcome,
            Ok(Done::Granted(_) | Done::Ended(_)) => Err(WriteError::Unknown("a wrong answer".into())),
            Err(error @ AskError::NotTaken) => Err(WriteError::NotApplied(NotApplied::Away(error.to_string()))),
            Err(error @ AskError::NoAnswer) => Err(WriteError::Unknown(error.to_string())),
        }
    }

    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Watch, WatchError> {
        let start = (self.clone(), prefix.clone(), from, self.shared.changed.subscribe());
        let stream = futures_util::stream::unfold(Some(start), |cursor| async move {
            let (store, prefix, mut from, mut changed) = cursor?;
            loop {
                changed.mark_unchanged();
                let seen = store.shared.view(|view| {
                    let newest = view.newest.as_ref().map_err(|why| WatchError::Ended(why.clone()))?;
                    Ok((newest.revision, view.history.since(prefix.as_str(), from)?))
                });
                match seen {
                    Err(error) => return Some((Err(error), None)),
                    // Seen up to here, though there was nothing of interest: what a compaction takes is not missed.
                    Ok((revision, changes)) if changes.is_empty() => from = from.max(revision.next()),
                    Ok((revision, changes)) => {
                        let next = (store, prefix, revision.next(), changed);
                        return Some((Ok(Changes { revision, changes }), Some(next)));
                    }
                }
                if changed.changed().await.is_err() {
                    return Some((Err(WatchError::Ended("the store was closed".into())), None));
                }
            }
        });
        Ok(stream.boxed())
    }

    async fn grant(&self, ttl: Duration) -> Result<Grant, ReadError> {
        match self.ask(Task::Grant(ttl)).await {
            Ok(Done::Granted(granted)) => granted.map_err(ReadError::Away),
            Ok(Done::Written(_) | Done::Ended(_)) => Err(ReadError::Away("a wrong answer".into())),
            Err(error) => Err(ReadError::Away(error.to_string())),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, LeaseError> {
        // A store that is broken must not seem to keep its leases: their holders would wait for it for ever.
        self.newest().map_err(|error| LeaseError::Away(error.to_string()))?;
        self.shared.keep_alive(lease).ok_or(LeaseError::Gone)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), ReadError> {
        match self.ask(Task::End(lease)).await {
            Ok(Done::Ended(ended)) => ended.map(|_| ()).map_err(ReadError::Away),
            Ok(Done::Written(_) | Done::Granted(_)) => Err(ReadError::Away("a wrong answer".into())),
            Err(error) => Err(ReadError::Away(error.to_string())),
        }
    }

    async fn compact(&self, revision: Revision) -> Result<(), ReadError> {
        let newest = self.newest()?.revision;
        self.shared.view(|view| view.history.compact(revision.min(newest)));
        Ok(())
    }

    async fn usage(&self) -> Result<Usage, ReadError> {
        let (snapshot, path) = (self.newest()?, Arc::clone(&self.path));
        let size = blocking(move || Ok(std::fs::metadata(path.as_path())?.len())).await?;
        Ok(Usage {
            size,
            in_use: snapshot.bytes,
            quota: None,
            full: self.shared.full.load(Ordering::Relaxed),
        })
    }
}

#[cfg(test)]
mod tests;
