//! Tests of the transactions that the ledger draws up.

use std::sync::Arc;
use std::time::Duration;

use postrider_common::key;
use postrider_common::shard::ShardId;
use postrider_common::store::{Op, Revision, check};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;

use super::{BEGIN, event, segment};
use crate::shard::delivery::{Delivery, Destination, End, Moved, Place, Record, Source, SourceId};
use crate::shard::ledger::batch::{self, Book, DRAFT_OPS, Found};
use crate::shard::ledger::pack::{PACK_BYTES, PACK_DELIVERIES};
use postrider_common::model::bits::Bits;

/// A book with `sources` open sources of one delivery for each webhook of `webhooks`, and the deliveries.
fn open(shard: u16, sources: u64, webhooks: &[&str]) -> (Book, Vec<Delivery>) {
    let mut book = Book::new(ShardId(shard), Revision(5), Found::default());
    let mut deliveries = Vec::new();
    let targets: Vec<(&str, u32)> = webhooks.iter().map(|id| (*id, 1)).collect();
    for number in 0..sources {
        let id = SourceId(number);
        let key = key::segment(ShardId(shard), "w", number);
        let segment = segment(vec![event(&format!("e{number}"), BEGIN)], &targets, Revision(1));
        let source = Source::new(
            ShardId(shard),
            Revision(1),
            id,
            key.clone(),
            Place::Queue(Revision(9)),
            segment,
            &[],
        );
        let total = u32::try_from(webhooks.len()).unwrap();
        book.add(Record::Open {
            source: id,
            key,
            done: Bits::new(total),
        });
        deliveries.extend(source.targets.into_iter().flat_map(|target| target.deliveries));
    }
    (book, deliveries)
}

fn moved(mut delivery: Delivery, due: Timestamp) -> Record {
    delivery.state.due = due;
    Record::Moved(Box::new(Moved {
        to: Destination::Parked,
        orders: 0,
        delivery,
    }))
}

fn over(delivery: &Delivery) -> Record {
    Record::Over {
        source: delivery.source,
        index: delivery.index,
        origin: delivery.origin.clone(),
        end: End::Delivered,
    }
}

fn only(book: &Book) -> impl Iterator<Item = (u64, &Book)> {
    std::iter::once((1, book))
}

/// How many segments the last progress of some transactions names, and how many deliveries it says were delivered.
fn progress_of(drafts: &[Vec<Op>]) -> (usize, u64) {
    let put = |op: &Op| match op {
        Op::Put { key, value, .. } if *key == key::progress(ShardId(1)) => Some(value.clone()),
        Op::Put { .. } | Op::Delete { .. } => None,
    };
    let value = drafts.iter().flatten().filter_map(put).last().unwrap();
    let progress = stored::decode_progress(value).unwrap();
    let delivered = progress.usage.values().map(|usage| usage.delivered).sum();
    (progress.segments.len(), delivered)
}

/// Writes all, and gives back the operations of each transaction.
fn drain(book: &mut Book) -> Vec<Vec<Op>> {
    let mut drafts = Vec::new();
    while let Some(draft) = batch::draft(only(book), BEGIN) {
        check(&draft.write).unwrap();
        assert!(draft.write.ops.len() <= DRAFT_OPS);
        assert!(draft.parts[0].records > 0);
        batch::settle(book, &draft.parts[0]);
        drafts.push(draft.write.ops);
    }
    assert_eq!(book.pending(), 0);
    drafts
}

#[test]
fn a_thousand_finished_sources_are_deleted_in_full_transactions() {
    let (mut book, deliveries) = open(1, 1000, &["a"]);
    for delivery in &deliveries {
        book.add(over(delivery));
    }
    let drafts = drain(&mut book);
    let puts = drafts.iter().flatten().filter(|op| matches!(op, Op::Put { .. }));
    assert_eq!(puts.count(), drafts.len(), "the counts");
    assert_eq!(drafts.iter().map(Vec::len).sum::<usize>(), 1000 + drafts.len());
    assert!(drafts.len() <= 1000 / (DRAFT_OPS - 1) + 1, "{}", drafts.len());
}

#[test]
fn failures_of_one_webhook_with_like_due_times_go_into_one_segment_due_at_the_first() {
    let (mut book, deliveries) = open(1, 40, &["a"]);
    for (delivery, more) in deliveries.into_iter().zip(0..) {
        book.add(moved(delivery, BEGIN + Duration::from_millis(8_900 - more)));
    }
    let drafts = drain(&mut book);
    let puts: Vec<&Op> = drafts
        .iter()
        .flatten()
        .filter(|op| matches!(op, Op::Put { key, .. } if key::parse_parked(key).is_some()))
        .collect();
    let [Op::Put { key, value, .. }] = &puts[..] else {
        panic!("{puts:?}")
    };
    let parked = key::parse_parked(key).unwrap();
    assert_eq!((parked.count, parked.due), (40, BEGIN + Duration::from_millis(8_861)));
    assert_eq!(stored::unpack(value.clone()).unwrap().delivery_count(), 40);
}

#[test]
fn deliveries_due_much_later_or_of_other_webhooks_go_into_segments_of_their_own() {
    let (mut book, deliveries) = open(1, 20, &["a", "b"]);
    for (delivery, number) in deliveries.into_iter().zip(0_u64..) {
        let due = if number % 4 < 2 { 5_000 } else { 300_000 };
        book.add(moved(delivery, BEGIN + Duration::from_millis(due)));
    }
    let drafts = drain(&mut book);
    let parked = |op: &&Op| matches!(op, Op::Put { key, .. } if key::parse_parked(key).is_some());
    assert_eq!(drafts.iter().flatten().filter(parked).count(), 4);
}

#[test]
fn no_segment_holds_more_than_its_limits_and_a_large_event_has_one_of_its_own() {
    let mut book = Book::new(ShardId(1), Revision(5), Found::default());
    let (_, small) = open(1, 600, &["a"]);
    for (number, mut delivery) in (0..).zip(small) {
        if number % 100 == 0 {
            let mut event = (*delivery.event).clone();
            event.data = vec![b'x'; 300 << 10].into();
            delivery.event = Arc::new(event);
        }
        let key = key::segment(ShardId(1), "w", number);
        book.add(Record::Open {
            source: delivery.source,
            key,
            done: Bits::new(1),
        });
        book.add(moved(delivery, BEGIN));
    }
    let mut count = 0;
    for op in drain(&mut book).into_iter().flatten() {
        let Op::Put { key, value, .. } = op else { continue };
        if key == key::progress(ShardId(1)) {
            continue;
        }
        let segment = stored::unpack(value).unwrap();
        count += segment.delivery_count();
        assert!(segment.delivery_count() <= PACK_DELIVERIES);
        let bytes: usize = segment.events.iter().map(|event| event.data.len()).sum();
        assert!(bytes <= PACK_BYTES || segment.delivery_count() == 1, "{bytes}");
    }
    assert_eq!(count, 600);
}

#[test]
fn progress_is_put_while_a_source_is_partly_over_and_deleted_with_its_last_bit() {
    let (mut book, deliveries) = open(1, 1, &["a", "b"]);
    book.add(over(&deliveries[0]));
    let first = drain(&mut book);
    let Op::Put { key, value, .. } = &first[0][0] else {
        panic!("{first:?}")
    };
    assert_eq!(*key, key::progress(ShardId(1)));
    let progress = stored::decode_progress(value.clone()).unwrap().segments;
    assert_eq!(progress[&key::segment(ShardId(1), "w", 0)][..], [0b01]);
    book.add(over(&deliveries[1]));
    let second = drain(&mut book);
    assert_eq!(second[0][0], Op::delete(key::segment(ShardId(1), "w", 0)));
    assert_eq!(progress_of(&second), (0, 2));
}

#[test]
fn progress_of_segments_that_are_still_to_be_opened_is_kept() {
    let found = Found {
        progress: Some([(key::segment(ShardId(1), "w", 77), vec![0b101].into())].into()),
        ..Found::default()
    };
    let mut book = Book::new(ShardId(1), Revision(5), found);
    let (_, deliveries) = open(1, 1, &["a", "b"]);
    let key = key::segment(ShardId(1), "w", 0);
    book.add(Record::Open {
        source: SourceId(0),
        key: key.clone(),
        done: Bits::new(2),
    });
    book.add(over(&deliveries[0]));
    let drafts = drain(&mut book);
    assert_eq!(progress_of(&drafts).0, 2);
    book.add(over(&deliveries[1]));
    let drafts = drain(&mut book);
    assert_eq!(drafts[0][0], Op::delete(key));
    assert_eq!(progress_of(&drafts).0, 1);
}

#[test]
fn a_source_that_was_over_when_it_was_opened_is_deleted() {
    let mut book = Book::new(ShardId(1), Revision(5), Found::default());
    let key = key::segment(ShardId(1), "w", 0);
    book.add(Record::Open {
        source: SourceId(0),
        key: key.clone(),
        done: Bits::read(&[0xff], 8),
    });
    assert_eq!(drain(&mut book), [vec![Op::delete(key)]]);
}

#[test]
fn one_transaction_holds_the_records_of_many_shards_each_with_its_guard() {
    let mut books = Vec::new();
    for shard in 0..64 {
        let (mut book, deliveries) = open(shard, 1, &["a"]);
        book.add(over(&deliveries[0]));
        books.push((u64::from(shard), book));
    }
    let all = || books.iter().map(|(name, book)| (*name, book));
    let draft = batch::draft(all(), BEGIN).unwrap();
    // Each shard has a segment to be deleted and its counts to be put.
    assert_eq!((draft.write.guards.len(), draft.write.ops.len()), (63, 2 * 63));
    check(&draft.write).unwrap();
}
