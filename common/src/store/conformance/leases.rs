//! Laws of leases.

use tokio::time::Instant;

use super::*;
use crate::store::{LeaseError, NotApplied, WriteError};

/// The shortest lease that every store grants as asked.
const SHORT: Duration = Duration::from_secs(3);

pub(super) async fn keys_die_with_their_lease_and_watchers_see_it(store: SharedStore) {
    let start = put(&store, "a/stays", "v").await;
    let before = Instant::now();
    let grant = store.grant(SHORT).await.unwrap();
    assert!(grant.ttl >= SHORT);
    let mut live = watch(&store, "a/", start.next()).await;
    let ops = ["a/1", "a/2"].map(|name| Op::put_leased(key(name), "v", grant.id));
    store.write(guarded(Vec::new(), ops.to_vec())).await.unwrap();
    assert_eq!(get(&store, "a/1").await.unwrap().lease, Some(grant.id));
    let (seen, last) = follow_count(&mut live, 4).await;
    let mut gone = texts(&seen[2..]);
    gone.sort();
    assert_eq!(gone, ["a/1 gone", "a/2 gone"]);
    assert!(before.elapsed() >= grant.ttl);
    assert!(last > start);
    assert_eq!(get(&store, "a/1").await, None);
    assert!(get(&store, "a/stays").await.is_some());
    assert_eq!(store.keep_alive(grant.id).await, Err(LeaseError::Gone));
}

pub(super) async fn a_lease_that_is_kept_alive_lives(store: SharedStore) {
    let grant = store.grant(SHORT).await.unwrap();
    store
        .write(one(Op::put_leased(key("a/1"), "v", grant.id)))
        .await
        .unwrap();
    let start = Instant::now();
    let mut beat = tokio::time::interval(SHORT / 3);
    while start.elapsed() < grant.ttl * 2 {
        beat.tick().await;
        let ttl = store.keep_alive(grant.id).await.unwrap();
        assert!(ttl > Duration::ZERO && ttl <= grant.ttl);
    }
    assert!(get(&store, "a/1").await.is_some());
    store.revoke(grant.id).await.unwrap();
}

pub(super) async fn a_revoked_lease_is_gone_with_its_keys(store: SharedStore) {
    let grant = store.grant(Duration::from_secs(60)).await.unwrap();
    let revision = store
        .write(one(Op::put_leased(key("a/1"), "v", grant.id)))
        .await
        .unwrap();
    let mut live = watch(&store, "a/", revision.next()).await;
    store.revoke(grant.id).await.unwrap();
    assert_eq!(texts(&follow_count(&mut live, 1).await.0), ["a/1 gone"]);
    assert_eq!(get(&store, "a/1").await, None);
    assert_eq!(store.keep_alive(grant.id).await, Err(LeaseError::Gone));
    // Again: no error.
    store.revoke(grant.id).await.unwrap();
}

pub(super) async fn a_write_that_names_a_dead_lease_is_refused(store: SharedStore) {
    let grant = store.grant(Duration::from_secs(60)).await.unwrap();
    let other = store.grant(Duration::from_secs(60)).await.unwrap();
    assert_ne!(grant.id, other.id);
    store.revoke(grant.id).await.unwrap();
    let ops = vec![
        Op::put(key("a/1"), "v"),
        Op::put_leased(key("a/2"), "v", other.id),
        Op::put_leased(key("a/3"), "v", grant.id),
    ];
    let gone = Err(WriteError::NotApplied(NotApplied::LeaseGone));
    assert_eq!(store.write(guarded(Vec::new(), ops.clone())).await, gone);
    assert_eq!(store.list(listing("a/", None)).await.unwrap().entries, []);
    // A guard that does not hold is a conflict all the same.
    let conflict = guarded(vec![Guard::Modified(key("a/1"), Revision(1))], ops);
    assert_eq!(store.write(conflict).await, Err(WriteError::Conflict));
    store.revoke(other.id).await.unwrap();
}

pub(super) async fn a_key_put_again_without_its_lease_outlives_it(store: SharedStore) {
    let grant = store.grant(Duration::from_secs(60)).await.unwrap();
    let other = store.grant(Duration::from_secs(60)).await.unwrap();
    for name in ["a/1", "a/2", "a/3"] {
        store
            .write(one(Op::put_leased(key(name), "v", grant.id)))
            .await
            .unwrap();
    }
    put(&store, "a/1", "v").await;
    store
        .write(one(Op::put_leased(key("a/2"), "v", other.id)))
        .await
        .unwrap();
    store.revoke(grant.id).await.unwrap();
    assert_eq!(names(&store.list(listing("a/", None)).await.unwrap()), ["a/1", "a/2"]);
    store.revoke(other.id).await.unwrap();
    assert_eq!(names(&store.list(listing("a/", None)).await.unwrap()), ["a/1"]);
}
