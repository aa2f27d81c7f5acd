//! Tests of leadership, with replicas on one store in memory, each through a link that can be cut.

use std::sync::Mutex;

use postrider_common::store::Store;
use postrider_common::store::link::Link;
use postrider_common::store::memory::{Fault, MemoryStore};

use super::*;

const TTL: Duration = Duration::from_secs(5);

/// Who leads at this moment, as told by the work of the terms.
#[derive(Clone, Default)]
struct Leading(Arc<watch::Sender<Vec<u8>>>, Arc<Mutex<Vec<Revision>>>);

impl Leading {
    async fn wait_for(&self, replicas: &[u8]) {
        let mut receiver = self.0.subscribe();
        let there = receiver.wait_for(|leading| leading == replicas);
        timeout(TTL * 4, there).await.expect("a leader in time").unwrap();
    }
}

struct Replica {
    group: task::Group,
    link: Link,
    handle: Handle,
}

fn replica(store: &MemoryStore, number: u8, leading: &Leading) -> Replica {
    let link = Link::new(Arc::new(store.clone()));
    let group = task::Group::default();
    let id = ControlPlaneId::new(&format!("c{number}")).unwrap();
    let leading = leading.clone();
    let handle = spawn(&group, Arc::new(link.clone()), id, TTL, move |term, over| {
        let leading = leading.clone();
        Box::pin(async move {
            leading.0.send_modify(|who| {
                assert!(who.is_empty(), "{number} leads besides {who:?}");
                who.push(number);
            });
            let mut terms = leading.1.lock().unwrap().clone();
            assert!(terms.last().is_none_or(|last| *last < term.revision));
            terms.push(term.revision);
            *leading.1.lock().unwrap() = terms;
            over.cancelled().await;
            leading.0.send_modify(Vec::clear);
        })
    });
    Replica { group, link, handle }
}

#[tokio::test(start_paused = true)]
async fn one_replica_leads_and_another_follows_at_once_when_it_stops() {
    let store = MemoryStore::default();
    let leading = Leading::default();
    let first = replica(&store, 1, &leading);
    leading.wait_for(&[1]).await;
    let second = replica(&store, 2, &leading);
    sleep(TTL * 5).await;
    assert!(first.handle.is_leader() && !second.handle.is_leader());
    let stopped = tokio::time::Instant::now();
    first.group.shut_down(TTL).await;
    leading.wait_for(&[2]).await;
    assert!(stopped.elapsed() < Duration::from_secs(1));
    assert!(!first.handle.is_leader() && second.handle.is_leader());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_loses_the_store_stops_leading_before_another_can() {
    let store = MemoryStore::default();
    let leading = Leading::default();
    let first = replica(&store, 1, &leading);
    leading.wait_for(&[1]).await;
    let second = replica(&store, 2, &leading);
    for (cut, follows) in [(&first, 2), (&second, 1), (&first, 2)] {
        cut.link.cut();
        // Two leaders at once fail in the work of the term.
        leading.wait_for(&[follows]).await;
        cut.link.join();
        sleep(TTL).await;
        assert_eq!(*leading.0.borrow(), [follows]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_guard_of_a_term_holds_during_the_term_only() {
    let store = MemoryStore::default();
    let leading = Leading::default();
    let first = replica(&store, 1, &leading);
    leading.wait_for(&[1]).await;
    let term = *leading.1.lock().unwrap().last().unwrap();
    let write = Write {
        guards: vec![Guard::Created(key::leader(), term)],
        ops: vec![Op::put(key::cell(), "")],
    };
    store.write(write.clone()).await.unwrap();
    first.group.shut_down(TTL).await;
    let _second = replica(&store, 2, &leading);
    leading.wait_for(&[2]).await;
    assert_eq!(store.write(write).await, Err(WriteError::Conflict));
}

#[tokio::test(start_paused = true)]
async fn a_campaign_whose_answer_was_lost_is_won_all_the_same() {
    let store = MemoryStore::default();
    let mut faults = [Fault::LostRequest, Fault::Away, Fault::LostAnswer].into_iter();
    store.inject(Box::new(move |_| faults.next()));
    let leading = Leading::default();
    let _first = replica(&store, 1, &leading);
    leading.wait_for(&[1]).await;
    let (entry, _) = store.get(&key::leader()).await.unwrap();
    assert_eq!(*leading.1.lock().unwrap(), [entry.unwrap().create_revision]);
}
