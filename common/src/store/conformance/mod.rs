//! The laws that every store obeys, as one suite: `run` takes a maker of empty stores and checks each law on a store of its own.
//!
//! Revisions of a store may grow by themselves (other keys, below other prefixes), so laws compare revisions and never count
//! them. Waiting is waiting for a condition, with a deadline.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A law that fails panics.

mod leases;
pub mod model;
mod reads;
mod watches;
mod writes;

use std::time::Duration;

use futures_util::StreamExt as _;

use super::{Change, Changes, Entry, Guard, ListRequest, Op, Page, Revision, SharedStore, Watch, WatchError, Write};
use crate::key::Key;

/// How long a law waits for what must come: longer than any lease of these laws, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

macro_rules! check_laws {
    ($make:ident: $($law:path,)*) => {
        $(
            tracing::info!(law = stringify!($law), "checking");
            Box::pin($law($make().await)).await;
        )*
    };
}

/// Checks every law. `make` gives an empty store each time.
///
/// # Panics
/// At the line of the law that does not hold.
pub async fn run<F: Future<Output = SharedStore>>(make: impl Fn() -> F) {
    check_laws!(make:
        reads::what_was_put_is_read_with_its_revisions,
        reads::several_keys_are_read_in_the_order_asked_as_of_one_moment,
        reads::a_prefix_does_not_show_its_neighbours,
        reads::pages_of_one_listing_show_one_moment_while_writes_go_on,
        reads::a_page_ends_where_the_entries_end,
        writes::revisions_grow_with_every_write,
        writes::guards_hold_or_nothing_is_applied,
        writes::a_key_that_was_deleted_and_made_again_is_another_key,
        writes::a_write_is_applied_as_a_whole,
        writes::too_many_operations_are_refused_and_128_are_not,
        writes::a_key_touched_twice_and_too_many_bytes_are_refused,
        writes::of_many_writers_with_one_guard_one_wins,
        watches::a_watch_replays_the_past_and_follows,
        watches::a_watch_shows_whole_revisions_in_order,
        watches::two_watches_see_the_same_and_each_its_own_prefix,
        watches::a_watch_from_after_the_last_seen_misses_nothing_and_repeats_nothing,
        watches::below_the_compaction_nothing_is_listed_or_watched,
        watches::a_watch_that_has_nothing_to_show_survives_compaction,
        watches::big_values_are_replayed_by_one_watch,
        watches::big_revisions_of_many_keys_are_replayed_whole,
        leases::keys_die_with_their_lease_and_watchers_see_it,
        leases::a_lease_that_is_kept_alive_lives,
        leases::a_revoked_lease_is_gone_with_its_keys,
        leases::a_write_that_names_a_dead_lease_is_refused,
        leases::a_key_put_again_without_its_lease_outlives_it,
    );
}

fn key(text: &str) -> Key {
    Key::from_stored(text)
}

fn one(op: Op) -> Write {
    guarded(Vec::new(), vec![op])
}

const fn guarded(guards: Vec<Guard>, ops: Vec<Op>) -> Write {
    Write { guards, ops }
}

async fn put(store: &SharedStore, name: &str, value: &str) -> Revision {
    let value = value.as_bytes().to_vec();
    store.write(one(Op::put(key(name), value))).await.unwrap()
}

async fn delete(store: &SharedStore, name: &str) -> Revision {
    store.write(one(Op::delete(key(name)))).await.unwrap()
}

async fn get(store: &SharedStore, name: &str) -> Option<Entry> {
    store.get(&key(name)).await.unwrap().0
}

fn listing(prefix: &str, revision: Option<Revision>) -> ListRequest {
    ListRequest {
        prefix: key(prefix),
        after: None,
        limit: 1000,
        revision,
        keys_only: false,
    }
}

fn names(page: &Page) -> Vec<&str> {
    page.entries.iter().map(|entry| entry.key.as_str()).collect()
}

/// All pages of a listing of at most `limit` entries each, as of `revision` or the first page's.
async fn pages(store: &SharedStore, prefix: &str, limit: usize, revision: Option<Revision>) -> Vec<Entry> {
    let mut request = ListRequest {
        limit,
        ..listing(prefix, revision)
    };
    let mut entries = Vec::new();
    loop {
        let page = store.list(request.clone()).await.unwrap();
        assert!(page.entries.len() <= limit);
        assert!(!page.entries.is_empty() || !page.more);
        entries.extend(page.entries);
        if !page.more {
            return entries;
        }
        request.revision = Some(page.revision);
        request.after = entries.last().map(|entry| entry.key.clone());
    }
}

async fn watch(store: &SharedStore, prefix: &str, from: Revision) -> Watch {
    store.watch(&key(prefix), from).await.unwrap()
}

/// What a watch shows next, or how it ends; mere signs of life are passed over.
async fn next(watch: &mut Watch) -> Result<Changes, WatchError> {
    let shown = async {
        loop {
            match watch.next().await.expect("a watch ended without an error") {
                Ok(item) if item.changes.is_empty() => {}
                other => return other,
            }
        }
    };
    tokio::time::timeout(PATIENCE, shown)
        .await
        .expect("a watch shows nothing")
}

/// Items of a watch until `is_enough`; the revisions must grow, and no change may be newer than its item says.
async fn follow(watch: &mut Watch, mut is_enough: impl FnMut(&[Change]) -> bool) -> (Vec<Change>, Revision) {
    let (mut seen, mut last) = (Vec::new(), Revision(0));
    while !is_enough(&seen) {
        let item = next(watch).await.unwrap();
        assert!(item.revision >= last, "a watch went back");
        for change in &item.changes {
            if let Change::Put(entry) = change {
                assert!(entry.mod_revision > last && entry.mod_revision <= item.revision);
            }
        }
        last = item.revision;
        seen.extend(item.changes);
    }
    (seen, last)
}

/// Items of a watch until `count` changes were seen, and not more.
async fn follow_count(watch: &mut Watch, count: usize) -> (Vec<Change>, Revision) {
    let followed = follow(watch, |seen| seen.len() >= count).await;
    assert_eq!(followed.0.len(), count);
    followed
}

fn text(change: &Change) -> String {
    match change {
        Change::Put(entry) => format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)),
        Change::Delete(key) => format!("{key} gone"),
    }
}

fn texts(changes: &[Change]) -> Vec<String> {
    changes.iter().map(text).collect()
}
