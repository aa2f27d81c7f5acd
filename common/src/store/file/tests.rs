//! Tests of the store in a file: the laws, reopening, one process only, broken disks.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::SharedStore;
use crate::store::conformance::{self, model};

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
