//! Laws of writing: guards, atomicity, limits, revisions.

use futures_util::future::join_all;

use super::*;
use crate::store::{MAX_OPS, MAX_WRITE_BYTES, NotApplied, WriteError};

fn is_invalid(outcome: &Result<Revision, WriteError>) -> bool {
    matches!(outcome, Err(WriteError::NotApplied(NotApplied::Invalid(_))))
}

pub(super) async fn revisions_grow_with_every_write(store: SharedStore) {
    let mut last = Revision(0);
    for number in 0..5 {
        let revision = put(&store, &format!("a/{}", number % 2), "v").await;
        assert!(revision > last);
        last = revision;
    }
    let revision = delete(&store, "a/1").await;
    assert!(revision > last);
    // Deleting what is not there is no error.
    assert!(delete(&store, "a/1").await >= revision);
    let writes = (0..40).map(|number| {
        let store = &store;
        async move { put(store, &format!("c/{number}"), "v").await }
    });
    let mut revisions = join_all(writes).await;
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 40);
    assert!(revisions[0] > last);
}

pub(super) async fn guards_hold_or_nothing_is_applied(store: SharedStore) {
    let created = put(&store, "a/1", "1").await;
    let modified = put(&store, "a/1", "2").await;
    let holding = [
        Guard::Absent(key("a/2")),
        Guard::Created(key("a/1"), created),
        Guard::Modified(key("a/1"), modified),
    ];
    let failing = [
        Guard::Absent(key("a/1")),
        Guard::Created(key("a/1"), modified),
        Guard::Modified(key("a/1"), created),
        Guard::Created(key("a/2"), created),
        Guard::Modified(key("a/2"), Revision(0)),
    ];
    for guard in &failing {
        let mut guards = holding.to_vec();
        guards.push(guard.clone());
        let outcome = store
            .write(guarded(guards, vec![Op::put(key("a/3"), "no"), Op::delete(key("a/1"))]))
            .await;
        assert_eq!(outcome, Err(WriteError::Conflict), "{guard:?}");
    }
    assert_eq!(get(&store, "a/3").await, None);
    assert_eq!(get(&store, "a/1").await.unwrap().mod_revision, modified);
    let write = guarded(holding.to_vec(), vec![Op::put(key("a/3"), "yes")]);
    store.write(write).await.unwrap();
    assert!(get(&store, "a/3").await.is_some());
}

pub(super) async fn a_key_that_was_deleted_and_made_again_is_another_key(store: SharedStore) {
    let first = put(&store, "a/1", "v").await;
    delete(&store, "a/1").await;
    let second = put(&store, "a/1", "v").await;
    assert!(second > first);
    assert_eq!(get(&store, "a/1").await.unwrap().create_revision, second);
    let old = guarded(vec![Guard::Created(key("a/1"), first)], vec![Op::delete(key("a/1"))]);
    assert_eq!(store.write(old).await, Err(WriteError::Conflict));
    let new = guarded(vec![Guard::Created(key("a/1"), second)], vec![Op::delete(key("a/1"))]);
    store.write(new).await.unwrap();
}

pub(super) async fn a_write_is_applied_as_a_whole(store: SharedStore) {
    put(&store, "a/old", "v").await;
    let ops = vec![
        Op::put(key("a/1"), "1"),
        Op::delete(key("a/old")),
        Op::put(key("a/2"), "2"),
        Op::delete(key("a/never")),
    ];
    let revision = store.write(guarded(Vec::new(), ops)).await.unwrap();
    let page = store.list(listing("a/", None)).await.unwrap();
    assert_eq!(names(&page), ["a/1", "a/2"]);
    assert!(
        page.entries
            .iter()
            .all(|entry| entry.mod_revision == revision && entry.create_revision == revision)
    );
}

pub(super) async fn too_many_operations_are_refused_and_128_are_not(store: SharedStore) {
    let full = |count| {
        let numbers = 0..count;
        let guards = numbers.clone().map(|number| Guard::Absent(key(&format!("g/{number}"))));
        let ops = numbers.map(|number| Op::put(key(&format!("a/{number}")), "v"));
        guarded(guards.collect(), ops.collect())
    };
    let too_many = full(MAX_OPS + 1);
    assert!(is_invalid(&store.write(too_many.clone()).await));
    assert!(is_invalid(&store.write(guarded(too_many.guards, Vec::new())).await));
    assert!(is_invalid(&store.write(guarded(Vec::new(), too_many.ops)).await));
    assert_eq!(store.list(listing("a/", None)).await.unwrap().entries.len(), 0);
    store.write(full(MAX_OPS)).await.unwrap();
    assert_eq!(pages(&store, "a/", 100, None).await.len(), MAX_OPS);
    let keys: Vec<Key> = (0..MAX_OPS).map(|number| key(&format!("a/{number}"))).collect();
    let (entries, _) = store.get_all(&keys).await.unwrap();
    assert!(
        entries
            .iter()
            .zip(&keys)
            .all(|(entry, key)| entry.as_ref().unwrap().key == *key)
    );
}

pub(super) async fn a_key_touched_twice_and_too_many_bytes_are_refused(store: SharedStore) {
    let twice = vec![Op::put(key("a/1"), "1"), Op::delete(key("a/1"))];
    assert!(is_invalid(&store.write(guarded(Vec::new(), twice)).await));
    let sized = |size: usize| one(Op::put(key("a/1"), vec![7; size - 3]));
    assert!(is_invalid(&store.write(sized(MAX_WRITE_BYTES + 1)).await));
    assert_eq!(get(&store, "a/1").await, None);
    store.write(sized(MAX_WRITE_BYTES)).await.unwrap();
    assert_eq!(get(&store, "a/1").await.unwrap().value.len(), MAX_WRITE_BYTES - 3);
}

pub(super) async fn of_many_writers_with_one_guard_one_wins(store: SharedStore) {
    let writes = (0..16).map(|number: usize| {
        let write = guarded(
            vec![Guard::Absent(key("a/1"))],
            vec![Op::put(key("a/1"), vec![u8::try_from(number).unwrap()])],
        );
        store.write(write)
    });
    let outcomes = join_all(writes).await;
    let won: Vec<usize> = (0..16).filter(|number| outcomes[*number].is_ok()).collect();
    let lost = outcomes
        .iter()
        .filter(|outcome| **outcome == Err(WriteError::Conflict))
        .count();
    assert_eq!((won.len(), lost), (1, 15));
    assert_eq!(get(&store, "a/1").await.unwrap().value[0] as usize, won[0]);
}
