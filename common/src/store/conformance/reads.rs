//! Laws of reading: single keys, several keys, listings.

use super::*;
use crate::store::LeaseId;

pub(super) async fn what_was_put_is_read_with_its_revisions(store: SharedStore) {
    assert_eq!(get(&store, "a/1").await, None);
    let created = put(&store, "a/1", "first").await;
    let modified = put(&store, "a/1", "second").await;
    let (entry, revision) = store.get(&key("a/1")).await.unwrap();
    let entry = entry.unwrap();
    assert_eq!(
        (entry.create_revision, entry.mod_revision, &entry.value[..]),
        (created, modified, &b"second"[..])
    );
    assert_eq!(entry.lease, None::<LeaseId>);
    assert!(revision >= modified);
    delete(&store, "a/1").await;
    assert_eq!(get(&store, "a/1").await, None);
}

pub(super) async fn several_keys_are_read_in_the_order_asked_as_of_one_moment(store: SharedStore) {
    put(&store, "a/1", "one").await;
    let newest = put(&store, "a/3", "three").await;
    let (entries, revision) = store.get_all(&[key("a/3"), key("a/2"), key("a/1")]).await.unwrap();
    let values: Vec<_> = entries
        .iter()
        .map(|entry| entry.as_ref().map(|entry| entry.value.to_vec()))
        .collect();
    assert_eq!(values, [Some(b"three".to_vec()), None, Some(b"one".to_vec())]);
    assert!(revision >= newest);
    assert_eq!(store.get_all(&[]).await.unwrap().0, []);
}

pub(super) async fn a_prefix_does_not_show_its_neighbours(store: SharedStore) {
    for name in ["a", "a.", "a/", "a/1", "a/z", "a0", "b/1", "A/1"] {
        put(&store, name, "v").await;
    }
    let page = store.list(listing("a/", None)).await.unwrap();
    assert_eq!(names(&page), ["a/", "a/1", "a/z"]);
    assert!(!page.more);
    assert_eq!(names(&store.list(listing("c/", None)).await.unwrap()), [""; 0]);
}

pub(super) async fn pages_of_one_listing_show_one_moment_while_writes_go_on(store: SharedStore) {
    for number in 0..9 {
        put(&store, &format!("a/{number}"), "old").await;
    }
    let first = ListRequest {
        limit: 3,
        ..listing("a/", None)
    };
    let first = store.list(first).await.unwrap();
    assert!(first.more);
    put(&store, "a/4", "new").await;
    delete(&store, "a/5").await;
    put(&store, "a/55", "new").await;
    delete(&store, "a/6").await;
    put(&store, "a/6", "new").await;
    put(&store, "a/9", "new").await;
    let mut shown: Vec<String> = names(&first).into_iter().map(str::to_owned).collect();
    for keys_only in [false, true] {
        let rest = ListRequest {
            after: first.entries.last().map(|entry| entry.key.clone()),
            revision: Some(first.revision),
            keys_only,
            ..listing("a/", None)
        };
        let rest = store.list(rest).await.unwrap();
        assert_eq!(names(&rest), ["a/3", "a/4", "a/5", "a/6", "a/7", "a/8"]);
        assert_eq!((rest.revision, rest.more), (first.revision, false));
        let value: &[u8] = if keys_only { b"" } else { b"old" };
        assert!(rest.entries.iter().all(|entry| entry.value == value));
        assert!(rest.entries.iter().all(|entry| entry.mod_revision <= first.revision));
        if keys_only {
            shown.extend(names(&rest).into_iter().map(str::to_owned));
        }
    }
    assert_eq!(shown.len(), 9);
    let now = pages(&store, "a/", 2, None).await;
    let now: Vec<&str> = now.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(
        now,
        ["a/0", "a/1", "a/2", "a/3", "a/4", "a/55", "a/6", "a/7", "a/8", "a/9"]
    );
}

pub(super) async fn a_page_ends_where_the_entries_end(store: SharedStore) {
    for number in 0..6 {
        put(&store, &format!("a/{number}"), "v").await;
    }
    put(&store, "b/1", "v").await;
    for limit in 1..=7 {
        assert_eq!(pages(&store, "a/", limit, None).await.len(), 6);
    }
    let exact = ListRequest {
        limit: 6,
        ..listing("a/", None)
    };
    assert!(!store.list(exact).await.unwrap().more);
    let last = ListRequest {
        after: Some(key("a/5")),
        ..listing("a/", None)
    };
    assert_eq!(names(&store.list(last).await.unwrap()), [""; 0]);
}
