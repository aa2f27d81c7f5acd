//! Tests of the mirror, against the store in memory through a link that can be disturbed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::store::link::Link;
use crate::store::memory::MemoryStore;
use crate::store::{Change, Op, Store, Write};

/// What an applied mirror holds, and a check of what it was shown.
#[derive(Default)]
struct Shown {
    entries: BTreeMap<Key, Entry>,
    revision: Revision,
    resets: usize,
}

impl Shown {
    fn apply(&mut self, update: Update) {
        let before = self.revision;
        match update {
            Update::Reset(entries, revision) => {
                self.entries = entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
                self.revision = revision;
                self.resets += 1;
            }
            Update::Changes(changes) => {
                assert!(!changes.changes.is_empty());
                assert!(changes.revision > before, "a mirror shows nothing twice");
                self.revision = changes.revision;
                for change in changes.changes {
                    match change {
                        Change::Put(entry) => {
                            assert!(entry.mod_revision > before && entry.mod_revision <= self.revision);
                            self.entries.insert(entry.key.clone(), entry);
                        }
                        Change::Delete(key) => {
                            assert!(self.entries.remove(&key).is_some(), "a deleted key was there");
                        }
                    }
                }
            }
        }
        assert!(self.revision >= before, "revisions never go back");
    }
}

fn start(group: &task::Group, store: SharedStore, keys_only: bool) -> (Handle, Arc<Mutex<Shown>>) {
    let shown = Arc::new(Mutex::new(Shown::default()));
    let target = Arc::clone(&shown);
    let prefix = Key::from_stored("a/");
    let handle = spawn(group, "test", store, prefix, keys_only, move |update| {
        target.lock().unwrap().apply(update);
    });
    (handle, shown)
}

async fn put(store: &dyn Store, key: &str) -> Revision {
    let ops = vec![Op::put(Key::from_stored(key), key.to_owned())];
    store
        .write(Write {
            guards: Vec::new(),
            ops,
        })
        .await
        .unwrap()
}

/// Whether the mirror gets there within a time that no back-off lasts.
async fn reached(handle: &Handle, revision: Revision) -> bool {
    let deadline = Duration::from_secs(60);
    tokio::time::timeout(deadline, handle.reached(revision)).await.unwrap()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(future)
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8),
    Delete(u8),
    Elsewhere,
    Compact,
    Cut,
    Join,
    EndWatches(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..8).prop_map(Step::Put),
        3 => (0_u8..8).prop_map(Step::Delete),
        1 => Just(Step::Elsewhere),
        1 => Just(Step::Compact),
        1 => Just(Step::Cut),
        1 => Just(Step::Join),
        1 => (0_usize..3).prop_map(Step::EndWatches),
        3 => (0_u64..200).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn at_rest_a_mirror_equals_the_list_at_its_revision(steps in proptest::collection::vec(step(), 0..60)) {
        run(async {
            let store = MemoryStore::default();
            let link = Link::new(Arc::new(store.clone()));
            let group = task::Group::default();
            let (handle, shown) = start(&group, Arc::new(link.clone()), false);
            for step in steps {
                let key = |number| Key::from_stored(&format!("a/{number}"));
                match step {
                    Step::Put(number) => { put(&store, key(number).as_str()).await; }
                    Step::Delete(number) => {
                        let ops = vec![Op::delete(key(number))];
                        store.write(Write { guards: Vec::new(), ops }).await.unwrap();
                    }
                    Step::Elsewhere => { put(&store, "b/1").await; }
                    Step::Compact => {
                        let (_, now) = store.get(&key(0)).await.unwrap();
                        store.compact(now).await.unwrap();
                    }
                    Step::Cut => link.cut(),
                    Step::Join => link.join(),
                    Step::EndWatches(items) => link.end_watches_after(items),
                    Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
                }
            }
            link.join();
            link.heal_watches();
            let last = put(&store, "a/last").await;
            prop_assert!(reached(&handle, last).await);
            let (entries, _) = list_all(&store, &Key::from_stored("a/"), false).await.unwrap();
            let shown = shown.lock().unwrap();
            prop_assert_eq!(shown.entries.values().cloned().collect::<Vec<_>>(), entries);
            prop_assert_eq!(Some(shown.revision), handle.revision());
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waited_for_a_revision_finds_it_applied() {
    let store = MemoryStore::default();
    let group = task::Group::default();
    put(&store, "a/before").await;
    let (handle, shown) = start(&group, Arc::new(store.clone()), false);
    assert_eq!(handle.revision(), None);
    handle.synced().await;
    assert!(
        shown
            .lock()
            .unwrap()
            .entries
            .contains_key(&Key::from_stored("a/before"))
    );
    let revision = put(&store, "a/after").await;
    assert!(reached(&handle, revision).await);
    assert!(shown.lock().unwrap().entries.contains_key(&Key::from_stored("a/after")));
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_fell_behind_a_compaction_lists_again() {
    let store = MemoryStore::default();
    let link = Link::new(Arc::new(store.clone()));
    let group = task::Group::default();
    put(&store, "a/1").await;
    link.end_watches_after(0);
    let (handle, shown) = start(&group, Arc::new(link.clone()), false);
    handle.synced().await;
    let ops = vec![Op::delete(Key::from_stored("a/1"))];
    store
        .write(Write {
            guards: Vec::new(),
            ops,
        })
        .await
        .unwrap();
    let last = put(&store, "a/2").await;
    store.compact(last).await.unwrap();
    link.heal_watches();
    assert!(reached(&handle, last).await);
    let shown = shown.lock().unwrap();
    assert_eq!(shown.resets, 2);
    assert_eq!(shown.entries.keys().map(Key::as_str).collect::<Vec<_>>(), ["a/2"]);
}

#[tokio::test(start_paused = true)]
async fn a_mirror_of_keys_lists_no_values() {
    let store = MemoryStore::default();
    let group = task::Group::default();
    put(&store, "a/1").await;
    let (handle, shown) = start(&group, Arc::new(store.clone()), true);
    handle.synced().await;
    assert!(
        shown
            .lock()
            .unwrap()
            .entries
            .values()
            .all(|entry| entry.value.is_empty())
    );
    let revision = put(&store, "a/2").await;
    assert!(reached(&handle, revision).await);
    assert_eq!(shown.lock().unwrap().entries[&Key::from_stored("a/2")].value, "a/2");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_mirror_that_has_stopped() {
    let group = task::Group::default();
    let (handle, _) = start(&group, Arc::new(MemoryStore::default()), false);
    handle.synced().await;
    group.shut_down(Duration::from_secs(1)).await;
    assert!(!handle.reached(Revision(1_000_000)).await);
    handle.synced().await;
}
