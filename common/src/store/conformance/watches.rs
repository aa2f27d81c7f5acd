//! Laws of watching: replay, order, resumption, compaction.

use super::*;
use crate::store::ReadError;

pub(super) async fn a_watch_replays_the_past_and_follows(store: SharedStore) {
    let first = put(&store, "a/1", "1").await;
    put(&store, "b/1", "not below the prefix").await;
    put(&store, "a/2", "2").await;
    delete(&store, "a/1").await;
    let mut past = watch(&store, "a/", first).await;
    let (seen, _) = follow_count(&mut past, 3).await;
    assert_eq!(texts(&seen), ["a/1=1", "a/2=2", "a/1 gone"]);
    let live = put(&store, "a/3", "3").await;
    let (seen, last) = follow_count(&mut past, 1).await;
    assert_eq!(texts(&seen), ["a/3=3"]);
    assert!(last >= live);
    // From a revision that is still to come: what was before is not shown.
    let mut future = watch(&store, "a/", live.next()).await;
    put(&store, "a/4", "4").await;
    assert_eq!(texts(&follow_count(&mut future, 1).await.0), ["a/4=4"]);
}

pub(super) async fn a_watch_shows_whole_revisions_in_order(store: SharedStore) {
    let start = put(&store, "z/start", "").await;
    let mut live = watch(&store, "a/", start).await;
    let writing = async {
        let mut revisions = Vec::new();
        for round in 0..30 {
            let ops = (0..10).map(|number| Op::put(key(&format!("a/{number}")), format!("{round}")));
            revisions.push(store.write(guarded(Vec::new(), ops.collect())).await.unwrap());
        }
        revisions
    };
    let (revisions, items) = tokio::join!(writing, items(&mut live, 300));
    assert_eq!(whole(&items, 10), revisions);
}

/// Items of a watch that together show `count` changes.
async fn items(watch: &mut Watch, count: usize) -> Vec<Changes> {
    let mut items: Vec<Changes> = Vec::new();
    while items.iter().map(|item| item.changes.len()).sum::<usize>() < count {
        items.push(next(watch).await.unwrap());
    }
    items
}

/// The revisions that items of a watch show, each of which wrote `each` keys and must be within one item.
fn whole(items: &[Changes], each: usize) -> Vec<Revision> {
    let mut seen = Vec::new();
    for item in items {
        let mut within = Vec::new();
        for change in &item.changes {
            let Change::Put(entry) = change else {
                panic!("nothing was deleted")
            };
            assert!(entry.mod_revision <= item.revision);
            within.push(entry.mod_revision);
        }
        assert!(within.is_sorted());
        for revision in within.chunks(each) {
            assert!(revision.len() == each && revision.iter().all(|at| *at == revision[0]));
            seen.push(revision[0]);
        }
    }
    seen
}

pub(super) async fn two_watches_see_the_same_and_each_its_own_prefix(store: SharedStore) {
    let start = put(&store, "z/start", "").await;
    let mut first = watch(&store, "a/", start).await;
    let mut second = watch(&store, "a/", start).await;
    let mut other = watch(&store, "b/", start).await;
    for number in 0..20 {
        put(&store, &format!("a/{number}"), "v").await;
    }
    put(&store, "b/1", "v").await;
    let (seen, _) = follow_count(&mut first, 20).await;
    assert_eq!(seen, follow_count(&mut second, 20).await.0);
    drop(first);
    assert_eq!(texts(&follow_count(&mut other, 1).await.0), ["b/1=v"]);
    put(&store, "a/0", "w").await;
    assert_eq!(texts(&follow_count(&mut second, 1).await.0), ["a/0=w"]);
}

pub(super) async fn a_watch_from_after_the_last_seen_misses_nothing_and_repeats_nothing(store: SharedStore) {
    let mut from = put(&store, "z/start", "").await;
    let mut seen = Vec::new();
    for round in 0..5 {
        for number in 0..4 {
            put(&store, &format!("a/{number}"), &format!("{round}")).await;
        }
        let mut live = watch(&store, "a/", from).await;
        // However much the first item shows: the watch is dropped, and the next one goes on after it.
        let (part, last) = follow(&mut live, |part| !part.is_empty()).await;
        seen.extend(part);
        from = last.next();
    }
    let mut rest = watch(&store, "a/", from).await;
    put(&store, "a/end", "").await;
    let is_end = |changes: &[Change]| changes.last().is_some_and(|change| change.key().as_str() == "a/end");
    seen.extend(follow(&mut rest, is_end).await.0);
    let expected = (0..5).flat_map(|round| (0..4).map(move |number| format!("a/{number}={round}")));
    assert_eq!(texts(&seen[..20]), expected.collect::<Vec<_>>());
    assert_eq!(seen.len(), 21);
}

pub(super) async fn below_the_compaction_nothing_is_listed_or_watched(store: SharedStore) {
    let old = put(&store, "a/1", "1").await;
    put(&store, "a/1", "2").await;
    delete(&store, "a/2").await;
    let kept = put(&store, "a/3", "3").await;
    let newest = put(&store, "a/1", "4").await;
    store.compact(kept).await.unwrap();
    assert_eq!(store.list(listing("a/", Some(old))).await, Err(ReadError::Compacted));
    let ended = match store.watch(&key("a/"), old).await {
        Ok(mut watch) => next(&mut watch).await.map(|item| texts(&item.changes)),
        Err(error) => Err(error),
    };
    assert_eq!(ended, Err(WatchError::Compacted));
    // What is not older than the compaction is still there.
    let page = store.list(listing("a/", Some(kept))).await.unwrap();
    assert_eq!(names(&page), ["a/1", "a/3"]);
    assert_eq!(&page.entries[0].value[..], b"2");
    let mut live = watch(&store, "a/", kept.next()).await;
    assert_eq!(texts(&follow_count(&mut live, 1).await.0), ["a/1=4"]);
    // Again, and below: no error.
    store.compact(kept).await.unwrap();
    store.compact(old).await.unwrap();
    store.compact(newest).await.unwrap();
    assert_eq!(store.list(listing("a/", Some(kept))).await, Err(ReadError::Compacted));
    assert_eq!(get(&store, "a/3").await.unwrap().create_revision, kept);
}

pub(super) async fn a_watch_that_has_nothing_to_show_survives_compaction(store: SharedStore) {
    let start = put(&store, "quiet/start", "").await;
    let mut quiet = watch(&store, "quiet/", start).await;
    follow_count(&mut quiet, 1).await;
    let mut newest = start;
    for number in 0..10 {
        newest = put(&store, "busy/1", &format!("{number}")).await;
        // A store may need a moment of its own to see that the quiet watch has missed nothing.
        let mut busy = watch(&store, "busy/", newest).await;
        tokio::select! {
            biased;
            item = next(&mut quiet) => panic!("a quiet watch shows {item:?}"),
            seen = follow_count(&mut busy, 1) => assert_eq!(seen.0.len(), 1),
        }
    }
    store.compact(newest).await.unwrap();
    put(&store, "quiet/1", "v").await;
    assert_eq!(texts(&follow_count(&mut quiet, 1).await.0), ["quiet/1=v"]);
}

pub(super) async fn big_values_are_replayed_by_one_watch(store: SharedStore) {
    const SIZE: usize = 1_000_000;
    let mut first = None;
    for number in 0..6_u8 {
        let write = one(Op::put(key(&format!("a/{number}")), vec![number; SIZE]));
        let revision = store.write(write).await.unwrap();
        first.get_or_insert(revision);
    }
    let mut past = watch(&store, "a/", first.unwrap()).await;
    let (seen, _) = follow_count(&mut past, 6).await;
    for (number, change) in (0_u8..).zip(&seen) {
        let Change::Put(entry) = change else {
            panic!("nothing was deleted")
        };
        assert!(entry.value.len() == SIZE && entry.value.iter().all(|byte| *byte == number));
    }
    assert_eq!(pages(&store, "a/", 100, None).await.len(), 6);
    let keys: Vec<Key> = (0..6).map(|number| key(&format!("a/{number}"))).collect();
    assert!(store.get_all(&keys).await.unwrap().0.iter().all(Option::is_some));
}

pub(super) async fn big_revisions_of_many_keys_are_replayed_whole(store: SharedStore) {
    let mut revisions = Vec::new();
    for round in 0..8_u8 {
        // As much as a write may hold: a server that splits what it replays splits within a revision.
        let ops = (0..13).map(|number| Op::put(key(&format!("a/{number}")), vec![round; 100_000]));
        revisions.push(store.write(guarded(Vec::new(), ops.collect())).await.unwrap());
    }
    let mut past = watch(&store, "a/", revisions[0]).await;
    assert_eq!(whole(&items(&mut past, 8 * 13).await, 13), revisions);
}
