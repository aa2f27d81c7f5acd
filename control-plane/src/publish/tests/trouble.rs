//! Full queues, a store that is away, forgets or is nearly full.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once_and_takes_again_when_it_has_drained() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    let bench = Bench::new(&store, 1).await;
    let body = format!("\"{}\"", "x".repeat(250_000));
    let mut pending = Vec::new();
    let refused = loop {
        match bench
            .publisher
            .submit(request(vec![event("", "A", body.clone()); 4], None))
        {
            Ok(taken) => pending.push(taken),
            Err(error) => break error,
        }
        assert!(pending.len() < 100, "the queue takes without end");
    };
    let Error::Quota {
        reason, retry_after, ..
    } = refused
    else {
        panic!("{refused:?}")
    };
    assert_eq!(reason, "PUBLISH_QUEUE_FULL");
    assert!(retry_after.is_some());
    assert_eq!(bench.publisher.counters.refused_queue.load(Ordering::Relaxed), 1);
    let taken = pending.len();
    assert!(
        join_all(pending.into_iter().map(Pending::outcome))
            .await
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(seen(&store).await.len(), taken * 4);
    assert!(
        bench
            .publish(request(vec![event("last", "A", "1")], None))
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn so_many_requests_wait_however_small_and_no_more_and_all_of_them_are_stored() {
    const MOST: usize = 16_384;
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    let bench = Bench::new(&store, 1).await;
    let counters = &bench.publisher.counters;
    let waiting = || [&counters.waiting, &counters.waiting_bytes].map(|gauge| gauge.load(Ordering::Relaxed));
    // Most follow another of their id.
    let submit = |number| {
        let id = number / 16;
        let event = event(&format!("e{id}"), "A", "1");
        bench.publisher.submit(request(vec![event], Some(id)))
    };
    let pending: Vec<Pending> = (0..MOST).map(|number| submit(number).unwrap()).collect();
    let full = submit(MOST).map(|_| ());
    assert!(
        matches!(
            full,
            Err(Error::Quota {
                reason: "PUBLISH_QUEUE_FULL",
                ..
            })
        ),
        "{full:?}"
    );
    let [count, bytes] = waiting();
    assert!(
        count == MOST as u64 && bytes > count,
        "{count} requests of {bytes} bytes"
    );
    let outcomes = join_all(pending.into_iter().map(Pending::outcome)).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(seen(&store).await.len(), MOST / 16);
    assert_eq!(waiting(), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn requests_do_not_wait_for_a_store_that_stays_away() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    let bench = Bench::new(&store, 1).await;
    store.inject(Box::new(|_| Some(Fault::Away)));
    let body = format!("\"{}\"", "x".repeat(250_000));
    let started = tokio::time::Instant::now();
    let calls = (0..20).map(|_| bench.publish(request(vec![event("", "A", body.clone()); 4], None)));
    let outcomes = join_all(calls).await;
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Err(Error::StoreAway(_)))),
        "{outcomes:?}"
    );
    assert!(started.elapsed() <= Duration::from_secs(11), "{:?}", started.elapsed());
    store.heal();
    assert!(bench.publish(request(vec![event("e", "A", "1")], None)).await.is_ok());
    assert_eq!(seen(&store).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_cannot_be_learned_is_said_and_the_request_id_settles_it() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    let bench = Bench::new(&store, 1).await;
    let equal = || request(vec![event("e", "A", "1")], Some(1));
    store.inject(Box::new(|write| is_publish(write).then_some(Fault::LostRequest)));
    let (first, second) = tokio::join!(bench.publish(equal()), bench.publish(equal()));
    assert!(matches!(
        (first, second),
        (Err(Error::OutcomeUnknown(_)), Err(Error::OutcomeUnknown(_)))
    ));
    store.heal();
    assert!(!bench.publish(equal()).await.unwrap().duplicate);
    assert!(bench.publish(equal()).await.unwrap().duplicate);
    assert_eq!(seen(&store).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_was_idle_for_days_begins_anew() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    let bench = Bench::new(&store, 1).await;
    for number in 0..3 {
        bench
            .publish(request(vec![event(&format!("e{number}"), "A", "1")], Some(number)))
            .await
            .unwrap();
        // Longer than the lease of the lane's mark.
        tokio::time::sleep(Duration::from_secs(30 * 3600)).await;
    }
    assert_eq!(seen(&store).await.len(), 3);
    assert_eq!(keys(&store, "dedupe/").await, 0);
    assert_eq!(keys(&store, "writers/").await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_the_store_lost_is_replaced() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    let bench = Bench::new(&store, 1).await;
    bench
        .publish(request(vec![event("e1", "A", "1")], Some(1)))
        .await
        .unwrap();
    let entry = list_all(&store, &Key::from_stored("dedupe/"), false)
        .await
        .unwrap()
        .0
        .remove(0);
    store.revoke(entry.lease.unwrap()).await.unwrap();
    bench
        .publish(request(vec![event("e2", "A", "1")], Some(2)))
        .await
        .unwrap();
    assert_eq!(seen(&store).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_too_large_for_any_transaction_is_refused_and_the_next_is_not() {
    let store = MemoryStore::default();
    for id in ["a", "b", "c", "d", "e", "f"] {
        put_webhook(&store, id, &["BIG"]).await;
    }
    let bench = Bench::new(&store, 1).await;
    // Texts that hardly compress, each another.
    let entropy = SystemEntropy::seeded(3);
    let noise = || format!("{:016x}", postrider_common::entropy::Entropy::next_u64(&entropy));
    let big = || {
        event(
            "",
            "BIG",
            format!("\"{}\"", (0..15_000).map(|_| noise()).collect::<String>()),
        )
    };
    let (refused, taken) = tokio::join!(
        bench.publish(request(vec![big(), big(), big(), big()], None)),
        bench.publish(request(vec![event("e", "BIG", "1")], None)),
    );
    let Err(Error::Invalid(violations)) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(
        violations.iter().map(|violation| violation.reason).collect::<Vec<_>>(),
        ["TOO_LARGE"]
    );
    assert!(taken.is_ok());
    assert_eq!(seen(&store).await.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_nearly_full_is_not_filled_further() {
    let store = MemoryStore::default();
    put_webhook(&store, "x", &["*"]).await;
    let bench = Bench::new(&store, 1).await;
    let filler = Key::from_stored("filler");
    for _ in 0..2 {
        // A version of its own each time: none is compacted.
        let ops = (0..40).map(|number| Op::put(Key::from_stored(&format!("filler/{number}")), vec![0; 30_000]));
        for _ in 0..25 {
            let write = Write {
                guards: Vec::new(),
                ops: ops.clone().collect(),
            };
            store.write(write).await.unwrap();
        }
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    let refused = bench.publish(request(vec![event("e", "A", "1")], None)).await;
    assert_eq!(refused, Err(Error::StoreFull));
    assert_eq!(bench.publisher.counters.refused_store.load(Ordering::Relaxed), 1);
    let (_, now) = store.get(&filler).await.unwrap();
    store.compact(now).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(bench.publish(request(vec![event("e", "A", "1")], None)).await.is_ok());
}
