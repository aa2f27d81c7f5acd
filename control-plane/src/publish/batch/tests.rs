//! Tests of batches.

use std::sync::Arc;

use postrider_common::id::{AccountId, RequestId};
use postrider_common::store::{Op, check};
use proptest::prelude::*;

use super::*;
use crate::catalog::Table;
use crate::catalog::view::tests::{subscriber, webhook};
use crate::publish::fanout::{fan_out, tests::event};
use crate::publish::idempotency;

/// A delivery: webhook, event and body.
type Told = (String, String, Bytes);

fn noise(seed: u64, length: usize) -> Bytes {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect::<Vec<u8>>().into()
}

fn work(number: usize, events: &[(String, usize)], dedupe: bool, table: &Table) -> (Work, Vec<Told>) {
    let account = AccountId::new("a").unwrap();
    let events: Vec<_> = events
        .iter()
        .enumerate()
        .map(|(index, (name, length))| {
            event(
                &format!("e{number}-{index}"),
                name,
                noise((number * 1000 + index) as u64, *length),
            )
        })
        .collect();
    let mut told = Vec::new();
    for event in &events {
        for subscriber in table.matching(&event.name) {
            told.push((
                subscriber.webhook.id.to_string(),
                event.id.to_string(),
                event.data.clone(),
            ));
        }
    }
    let fanout = fan_out(&events, table, &|| std::time::Duration::ZERO).unwrap();
    let ids = events.iter().map(|event| event.id.clone());
    let answer = Answer {
        events: ids.zip(fanout.matched).collect(),
        publish_time: Timestamp::from_millis(1),
    };
    let request = RequestId::new(&format!("00000000-0000-4000-8000-{number:012x}")).unwrap();
    let work = Work {
        parts: fanout.parts,
        dedupe: dedupe.then(|| idempotency::dedupe(Identity::new(&account, &request, [7; 32]), &answer)),
        answer,
    };
    (work, told)
}

fn stored(write: &Write) -> Vec<Told> {
    let mut told = Vec::new();
    for op in &write.ops {
        let Op::Put { key, value, lease } = op else {
            panic!("a deletion")
        };
        if !key.as_str().starts_with("queue/") {
            assert!(lease.is_some());
            continue;
        }
        let segment = stored::unpack(value.clone()).unwrap();
        for target in &segment.targets {
            for delivery in &target.deliveries {
                let event = &segment.events[delivery.event as usize];
                told.push((target.webhook.to_string(), event.id.to_string(), event.data.clone()));
            }
        }
    }
    told
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn batches_lose_and_double_nothing_and_stay_within_the_limits_of_the_store(
        requests in proptest::collection::vec((proptest::collection::vec(("[AB]", 0_usize..60_000), 1..8), any::<bool>()), 1..40),
        webhooks in proptest::collection::btree_set("[a-z]", 1..12), shards in 1_u16..64, limit in 0..2 * MAX_UNPACKED,
    ) {
        let table = Table::new(webhooks.iter().map(|id| subscriber(webhook("a", id, &["A", "*"]), shards)));
        let works = requests.iter().enumerate().map(|(number, (events, dedupe))| work(number, events, *dedupe, &table));
        let mut waiting: std::collections::VecDeque<_> = works.collect();
        let mut sequence = 0;
        while !waiting.is_empty() {
            let mut load = Load::new(limit);
            let mut batch = Vec::new();
            while waiting.front().is_some_and(|(work, _)| load.take_in(work)) {
                batch.push(waiting.pop_front().unwrap());
            }
            prop_assert!(!batch.is_empty());
            sequence += 1;
            let sealed = seal(batch.iter().map(|(work, _)| work), "w", sequence, LeaseId(1));
            prop_assert!(sealed.fits() || batch.len() == 1);
            if sealed.fits() {
                prop_assert!(check(&sealed.write).is_ok());
                prop_assert!(sealed.write.ops.len() + LANE_OPS <= MAX_OPS && sealed.write.guards.len() + LANE_OPS <= MAX_OPS);
                let estimate: usize = batch.iter().map(|(work, _)| work.bytes()).sum();
                prop_assert!(batch.len() == 1 || estimate <= limit.min(MAX_UNPACKED));
                prop_assert!(sealed.packed <= estimate + sealed.write.ops.len() * 128, "{} of {estimate}", sealed.packed);
                let mut expected: Vec<Told> = batch.iter().flat_map(|(_, told)| told.clone()).collect();
                let mut got = stored(&sealed.write);
                expected.sort();
                got.sort();
                prop_assert_eq!(got, expected);
            }
        }
    }
}

#[test]
fn a_transaction_takes_requests_up_to_the_operations_of_the_store() {
    let table = Table::new([subscriber(webhook("a", "w", &["*"]), 1)]);
    let mut load = Load::new(MAX_UNPACKED);
    let works: Vec<_> = (0..200)
        .map(|number| work(number, &[("A".into(), 1)], true, &table).0)
        .collect();
    let taken: Vec<&Work> = works.iter().take_while(|work| load.take_in(work)).collect();
    // One segment, one mark, and the rest dedupe keys.
    assert_eq!(taken.len(), MAX_OPS - LANE_OPS - 1);
    let sealed = seal(taken.into_iter(), "w", 1, LeaseId(1));
    assert_eq!(sealed.write.ops.len(), MAX_OPS - LANE_OPS);
    assert!(check(&sealed.write).is_ok());
}

#[test]
fn an_event_for_several_webhooks_of_a_shard_is_stored_once_and_one_webhook_has_one_target() {
    let webhooks = ["x", "y", "z"].map(|id| subscriber(webhook("a", id, &["*"]), 1));
    let newer = webhooks.clone().map(|subscriber| {
        let revision = postrider_common::store::Revision(9);
        Arc::new(crate::catalog::Subscriber {
            filter: None,
            revision,
            ..(*subscriber).clone()
        })
    });
    let (first, _) = work(1, &[("A".into(), 10)], false, &Table::new(newer));
    let (second, _) = work(2, &[("A".into(), 10)], false, &Table::new(webhooks));
    let sealed = seal([&first, &second].into_iter(), "w", 1, LeaseId(1));
    let Some(Op::Put { value, .. }) = sealed.write.ops.first() else {
        panic!()
    };
    let segment = stored::unpack(value.clone()).unwrap();
    assert_eq!(
        (segment.events.len(), segment.targets.len(), segment.delivery_count()),
        (2, 3, 6)
    );
    assert!(segment.targets.iter().all(|target| target.webhook_revision.0 == 9));
}
