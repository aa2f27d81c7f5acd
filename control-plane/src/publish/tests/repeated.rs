//! Requests that come again under their ids.

use super::*;

/// An hour later.
struct LaterClock;

impl Clock for LaterClock {
    fn now(&self) -> Timestamp {
        FixedClock.now() + Duration::from_hours(1)
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_equal_requests_at_once_one_is_stored_and_all_are_answered_alike() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    // Two control planes: their queues know nothing of each other.
    let (first, second) = (Bench::new(&store, 1).await, Bench::new(&store, 2).await);
    let equal = || request(vec![event("e", "A", "1")], Some(1));
    let calls = (0..100).map(|number| {
        if number % 2 == 0 {
            first.publish(equal())
        } else {
            second.publish(equal())
        }
    });
    let outcomes: Vec<Published> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|published| !published.duplicate).count(), 1);
    assert!(outcomes.iter().all(|published| published.answer == outcomes[0].answer));
    assert_eq!(seen(&store).await.values().map(Vec::len).collect::<Vec<_>>(), [1]);
    // The same again much later, and with other events.
    tokio::time::sleep(Duration::from_secs(24 * 3600 - 1)).await;
    let again = first.publish(equal()).await.unwrap();
    assert_eq!((again.duplicate, &again.answer), (true, &outcomes[0].answer));
    let other = first.publish(request(vec![event("e", "A", "2")], Some(1))).await;
    assert!(
        matches!(
            other,
            Err(Error::Exists {
                reason: "REQUEST_ID_REUSED",
                ..
            })
        ),
        "{other:?}"
    );
    let duplicates = [&first, &second].map(|bench| bench.publisher.counters.duplicates.load(Ordering::Relaxed));
    assert_eq!(duplicates.iter().sum::<u64>(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_reused_request_id_does_not_hold_up_those_who_share_its_transaction() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    let bench = Bench::new(&store, 1).await;
    bench
        .publish(request(vec![event("old", "A", "1")], Some(1)))
        .await
        .unwrap();
    let calls = [
        request(vec![event("plain", "A", "1")], None),
        request(vec![event("other", "A", "1")], Some(1)),
        request(vec![event("old", "A", "1")], Some(1)),
        request(vec![event("new", "A", "1")], Some(2)),
    ];
    let outcomes = join_all(calls.map(|call| bench.publish(call))).await;
    assert!(!outcomes[0].as_ref().unwrap().duplicate);
    assert!(matches!(outcomes[1], Err(Error::Exists { .. })));
    assert!(outcomes[2].as_ref().unwrap().duplicate);
    assert!(!outcomes[3].as_ref().unwrap().duplicate);
    let mut ids: Vec<_> = seen(&store).await.into_keys().map(|(event, _)| event).collect();
    ids.sort();
    assert_eq!(ids, ["new", "old", "plain"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_once_is_answered_alike_when_it_has_expired_since() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    let expiring = |id| {
        let mut event = event("e", "A", "1");
        event.expire_time = Some(prost_types::Timestamp {
            seconds: FixedClock.now().as_millis() / 1000 + 60,
            nanos: 0,
        });
        request(vec![event], id)
    };
    let bench = Bench::new(&store, 1).await;
    let first = bench.publish(expiring(Some(1))).await.unwrap();
    let bench = Bench::at(&store, 2, Arc::new(LaterClock)).await;
    let again = bench.publish(expiring(Some(1))).await.unwrap();
    assert_eq!((again.answer, again.duplicate), (first.answer, true));
    // Another request under the same id, one with another id, and one with none.
    let mut other = expiring(Some(1));
    other.events[0].event_name = "B".into();
    assert!(matches!(bench.publish(other).await, Err(Error::Exists { .. })));
    for id in [Some(2), None] {
        assert!(matches!(bench.publish(expiring(id)).await, Err(Error::Invalid(_))));
    }
    assert_eq!(seen(&store).await.len(), 1);
}
