//! Tests of the store in a file: the laws, reopening, one process only, broken disks.

use std::collections::BTreeSet;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use bytes::Bytes;
use futures_util::future::join_all;
use proptest::prelude::*;
use redb::{BackendError, StorageBackend};
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::store::conformance::{self, model};
use crate::store::{Change, Guard, Op, SharedStore};

mod power;

/// A store whose directory goes with the test.
async fn fresh(directory: &TempDir, number: usize) -> SharedStore {
    let store = FileStore::open(&directory.path().join(format!("{number}")))
        .await
        .unwrap();
    Arc::new(store)
}

#[tokio::test(start_paused = true)]
async fn the_store_in_a_file_obeys_every_law() {
    let directory = tempfile::tempdir().unwrap();
    let made = std::cell::Cell::new(0);
    conformance::run(|| {
        made.set(made.get() + 1);
        fresh(&directory, made.get())
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_in_a_file_does_what_the_store_in_memory_does(history in model::histories(60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            model::agrees(fresh(&directory, 0).await, &history).await;
        });
    }
}

/// What a broken disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The file cannot grow.
    Full,
    /// Nothing can be written at all.
    NoWrites,
    /// An fsync fails.
    Sync,
    /// An fsync takes until the fault is over.
    Stuck,
}

/// A file on a disk that breaks when it is told to, and counts its fsyncs.
#[derive(Debug, Clone)]
struct Disk {
    fault: Arc<(Mutex<Fault>, Condvar)>,
    syncs: Arc<AtomicUsize>,
    file: Arc<redb::backends::FileBackend>,
}

/// Tells all files of a test's disk what to do.
#[derive(Clone)]
struct Disks {
    fault: Arc<(Mutex<Fault>, Condvar)>,
    syncs: Arc<AtomicUsize>,
}

impl Disks {
    fn new() -> Self {
        Self {
            fault: Arc::new((Mutex::new(Fault::None), Condvar::new())),
            syncs: Arc::default(),
        }
    }

    fn set(&self, fault: Fault) {
        *self.fault.0.lock().unwrap() = fault;
        self.fault.1.notify_all();
    }

    async fn open(&self, directory: &Path) -> FileStore {
        let path = directory.join(FILE);
        let (disks, file) = (self.clone(), path.clone());
        let open = move || {
            let file = std::fs::File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&file)?;
            Database::builder().create_with_backend(Disk {
                fault: Arc::clone(&disks.fault),
                syncs: Arc::clone(&disks.syncs),
                file: Arc::new(redb::backends::FileBackend::new(file)?),
            })
        };
        FileStore::open_with(directory, path, Box::new(open)).await.unwrap()
    }
}

impl Disk {
    fn check(&self, fault: Fault, kind: io::ErrorKind) -> io::Result<()> {
        if *self.fault.0.lock().unwrap() == fault {
            return Err(kind.into());
        }
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check(Fault::Full, io::ErrorKind::StorageFull)?;
        self.check(Fault::NoWrites, io::ErrorKind::StorageFull)?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let mut fault = self.fault.0.lock().unwrap();
        while *fault == Fault::Stuck {
            fault = self.fault.1.wait(fault).unwrap();
        }
        drop(fault);
        self.check(Fault::Sync, io::ErrorKind::Other)?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(Fault::NoWrites, io::ErrorKind::StorageFull)?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    // Without its locks the file could be opened again while it is still being closed.

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

fn key(text: &str) -> Key {
    Key::from_stored(text)
}

fn put(name: &str, value: &str) -> Write {
    Write {
        guards: Vec::new(),
        ops: vec![Op::put(key(name), value.to_owned())],
    }
}

async fn value(store: &FileStore, name: &str) -> Option<Bytes> {
    store.get(&key(name)).await.unwrap().0.map(|entry| entry.value)
}

/// Opens a store again: the file is closed a moment after its last user is gone.
async fn reopen(directory: &Path) -> FileStore {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        match FileStore::open(directory).await {
            Ok(store) => return store,
            Err(OpenError::InUse { .. }) if Instant::now() < end => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn what_was_written_is_there_when_the_file_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).await.unwrap();
    let first = store.write(put("a/1", "1")).await.unwrap();
    store.write(put("a/2", "2")).await.unwrap();
    store.write(put("a/1", "3")).await.unwrap();
    let last = store
        .write(Write {
            guards: vec![Guard::Created(key("a/1"), first)],
            ops: vec![Op::delete(key("a/2"))],
        })
        .await
        .unwrap();
    let usage = store.usage().await.unwrap();
    assert_eq!(usage.in_use, 4);
    drop(store);
    let store = reopen(directory.path()).await;
    let (entry, revision) = store.get(&key("a/1")).await.unwrap();
    let entry = entry.unwrap();
    assert_eq!((entry.create_revision, &entry.value[..]), (first, &b"3"[..]));
    assert_eq!(revision, last);
    assert_eq!(value(&store, "a/2").await, None);
    assert_eq!(store.usage().await.unwrap().in_use, 4);
    // The past is not on disk: who asks for it lists again.
    let mut past = store.watch(&key("a/"), last).await.unwrap();
    assert_eq!(past.next().await, Some(Err(WatchError::Compacted)));
    let mut live = store.watch(&key("a/"), last.next()).await.unwrap();
    let next = store.write(put("a/4", "4")).await.unwrap();
    assert!(next > last);
    assert_eq!(live.next().await.unwrap().unwrap().revision, next);
}

#[tokio::test(start_paused = true)]
async fn leases_outlive_a_restart_and_have_their_full_time_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).await.unwrap();
    let grant = store.grant(Duration::from_secs(10)).await.unwrap();
    let leased = Write {
        guards: Vec::new(),
        ops: vec![Op::put_leased(key("a/1"), "v", grant.id)],
    };
    let revision = store.write(leased).await.unwrap();
    tokio::time::advance(Duration::from_secs(9)).await;
    drop(store);
    let store = reopen(directory.path()).await;
    let opened = Instant::now();
    let mut live = store.watch(&key("a/"), revision.next()).await.unwrap();
    assert_eq!(
        live.next().await.unwrap().unwrap().changes,
        [Change::Delete(key("a/1"))]
    );
    assert!(opened.elapsed() >= Duration::from_secs(10));
    assert_eq!(store.keep_alive(grant.id).await, Err(LeaseError::Gone));
    assert!(store.grant(Duration::from_secs(10)).await.unwrap().id != grant.id);
}

#[tokio::test]
async fn a_second_open_is_refused_with_the_name_of_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let _store = FileStore::open(directory.path()).await.unwrap();
    let error = FileStore::open(directory.path()).await.err().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }));
    assert!(error.to_string().contains(directory.path().to_str().unwrap()));
}

#[tokio::test]
async fn what_is_not_a_store_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(FILE), vec![7; 100_000]).unwrap();
    assert!(matches!(
        FileStore::open(directory.path()).await,
        Err(OpenError::Database { .. })
    ));
    let file = directory.path().join(FILE);
    assert!(matches!(FileStore::open(&file).await, Err(OpenError::Directory { .. })));
}

#[tokio::test]
async fn what_was_left_of_a_store_that_was_half_made_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let half_made = directory.path().join(FILE).with_extension(HALF_MADE);
    // It has its length, and nothing was written to it.
    std::fs::write(&half_made, vec![0; 1_000_000]).unwrap();
    let store = FileStore::open(directory.path()).await.unwrap();
    store.write(put("a/1", "kept")).await.unwrap();
    assert!(!half_made.exists());
    drop(store);
    let store = reopen(directory.path()).await;
    assert_eq!(value(&store, "a/1").await.unwrap(), "kept");
}

#[tokio::test]
async fn writes_that_wait_for_each_other_share_an_fsync_and_each_has_its_revision() {
    let directory = tempfile::tempdir().unwrap();
    let disks = Disks::new();
    let store = disks.open(directory.path()).await;
    disks.syncs.store(0, Ordering::Relaxed);
    let writes = (0..60).map(|number| store.write(put(&format!("a/{number}"), "v")));
    let revisions: BTreeSet<Revision> = join_all(writes).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(revisions.len(), 60);
    assert!(disks.syncs.load(Ordering::Relaxed) <= 6);
    // One of two that exclude each other loses, also within one commit.
    let taken = put("a/61", "v");
    let taken = || Write {
        guards: vec![Guard::Absent(key("a/61"))],
        ..taken.clone()
    };
    let (first, second) = tokio::join!(store.write(taken()), store.write(taken()));
    assert_eq!((first.is_ok(), second), (true, Err(WriteError::Conflict)));
}

#[tokio::test]
async fn a_disk_that_hangs_stops_neither_readers_nor_the_runtime() {
    let directory = tempfile::tempdir().unwrap();
    let disks = Disks::new();
    let store = disks.open(directory.path()).await;
    store.write(put("a/1", "old")).await.unwrap();
    disks.set(Fault::Stuck);
    let write = store.write(put("a/1", "new"));
    tokio::pin!(write);
    // Nothing that was not synced is shown.
    tokio::select! {
        biased;
        outcome = &mut write => panic!("written to a disk that hangs: {outcome:?}"),
        shown = value(&store, "a/1") => assert_eq!(shown.unwrap(), "old"),
    }
    disks.set(Fault::None);
    write.await.unwrap();
    assert_eq!(value(&store, "a/1").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_writes_and_takes_them_again_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let disks = Disks::new();
    let store = disks.open(directory.path()).await;
    let kept = store.write(put("a/1", "kept")).await.unwrap();
    let mut live = store.watch(&key("a/"), kept.next()).await.unwrap();
    disks.set(Fault::Full);
    let full = Err(WriteError::NotApplied(NotApplied::Full));
    for _ in 0..3 {
        assert_eq!(store.write(put("b/1", &"no".repeat(500_000))).await, full);
    }
    assert!(store.grant(Duration::from_secs(10)).await.is_err());
    assert!(store.usage().await.unwrap().full);
    disks.set(Fault::None);
    // Tried again after a pause, so that a disk that stays full is not opened anew for each write.
    assert_eq!(store.write(put("b/1", "no")).await, full);
    assert_eq!(value(&store, "a/1").await.unwrap(), "kept");
    tokio::time::advance(Duration::from_secs(6)).await;
    let next = store.write(put("a/2", "yes")).await.unwrap();
    assert!(!store.usage().await.unwrap().full);
    assert!(next > kept);
    assert_eq!(live.next().await.unwrap().unwrap().revision, next);
    assert_eq!(value(&store, "b/1").await, None);
    drop((store, live));
    let store = reopen(directory.path()).await;
    assert_eq!(value(&store, "a/2").await.unwrap(), "yes");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_a_full_disk_left_in_doubt_is_unknown_and_nothing_acknowledged_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let disks = Disks::new();
    let store = disks.open(directory.path()).await;
    store.write(put("a/1", "kept")).await.unwrap();
    disks.set(Fault::NoWrites);
    assert!(matches!(
        store.write(put("a/2", "perhaps")).await,
        Err(WriteError::Unknown(_))
    ));
    assert_eq!(
        store.write(put("a/3", "no")).await,
        Err(WriteError::NotApplied(NotApplied::Full))
    );
    // What cannot be told is not told.
    assert!(matches!(store.get(&key("a/2")).await, Err(ReadError::Away(_))));
    disks.set(Fault::None);
    tokio::time::advance(Duration::from_secs(6)).await;
    let revision = store.write(put("a/4", "yes")).await.unwrap();
    assert_eq!(value(&store, "a/1").await.unwrap(), "kept");
    assert_eq!(value(&store, "a/3").await, None);
    let mut live = store.watch(&key("a/"), revision).await.unwrap();
    assert_eq!(live.next().await.unwrap().unwrap().changes.len(), 1);
}

#[tokio::test]
async fn after_a_failed_fsync_nothing_is_answered_ok_until_the_store_is_opened_anew() {
    let directory = tempfile::tempdir().unwrap();
    let disks = Disks::new();
    let store = disks.open(directory.path()).await;
    let kept = store.write(put("a/1", "kept")).await.unwrap();
    let mut live = store.watch(&key("a/"), kept.next()).await.unwrap();
    disks.set(Fault::Sync);
    assert!(matches!(
        store.write(put("a/2", "perhaps")).await,
        Err(WriteError::Unknown(_))
    ));
    // The disk works again, but nobody knows what it lost.
    disks.set(Fault::None);
    let refused = store.write(put("a/3", "no")).await;
    assert!(matches!(refused, Err(WriteError::NotApplied(NotApplied::Away(_)))));
    assert!(matches!(store.get(&key("a/1")).await, Err(ReadError::Away(_))));
    assert!(matches!(live.next().await, Some(Err(WatchError::Ended(_)))));
    assert!(store.grant(Duration::from_secs(10)).await.is_err());
    drop((store, live));
    let store = reopen(directory.path()).await;
    assert_eq!(value(&store, "a/1").await.unwrap(), "kept");
    assert_eq!(value(&store, "a/3").await, None);
}
