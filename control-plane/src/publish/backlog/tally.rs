//! Adds up how many bytes of stored segments are whose. Pure.

use std::collections::HashMap;

use postrider_common::id::AccountId;
use postrider_common::key::{self, Key};
use postrider_common::model::segment::Segment;

/// What a delivery takes besides its event's body: ids, names, times, how far it got.
const DELIVERY_BYTES: u64 = 64;

/// The bytes of one segment, by account.
type Shares = Box<[(AccountId, u64)]>;

/// The bytes of every segment that was seen, by its key: a value never changes under its key, so each is read once.
#[derive(Debug, Default)]
pub(super) struct Tally(HashMap<Key, Shares>);

impl Tally {
    /// Whether the segment still has to be read.
    pub(super) fn is_new(&self, key: &Key) -> bool {
        !self.0.contains_key(key)
    }

    /// Notes a segment that belongs to one account, as its key says.
    pub(super) fn note_of_one(&mut self, key: Key, size: usize) {
        let placed = key::parse_parked(&key).or_else(|| key::parse_dead(&key));
        let shares = placed.map(|placed| (placed.account, bytes(&key, size)));
        self.0.insert(key, shares.into_iter().collect());
    }

    /// Notes a segment of the queue, which many accounts may share: each has the part of the stored bytes that its deliveries have of the unpacked ones.
    pub(super) fn note_of_many(&mut self, key: Key, size: usize, segment: Option<&Segment>) {
        let weights = segment.map(weights).unwrap_or_default();
        let total: u64 = weights.values().sum();
        let size = bytes(&key, size);
        let share = |weight: u64| u128::from(size) * u128::from(weight) / u128::from(total.max(1));
        let shares = weights.into_iter().map(|(account, weight)| {
            let share = u64::try_from(share(weight)).unwrap_or(u64::MAX);
            // No share is rounded to nothing.
            (account, share.max(1))
        });
        self.0.insert(key, shares.collect());
    }

    /// Forgets segments that are not in the store any more.
    pub(super) fn keep(&mut self, seen: impl Fn(&Key) -> bool) {
        self.0.retain(|key, _| seen(key));
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The bytes of all segments, by account.
    pub(super) fn totals(&self) -> HashMap<AccountId, u64> {
        let mut totals: HashMap<AccountId, u64> = HashMap::new();
        for (account, share) in self.0.values().flatten() {
            match totals.get_mut(account) {
                Some(total) => *total += share,
                None => {
                    totals.insert(account.clone(), *share);
                }
            }
        }
        totals
    }
}

fn bytes(key: &Key, size: usize) -> u64 {
    (key.as_str().len() + size) as u64
}

fn weights(segment: &Segment) -> HashMap<AccountId, u64> {
    let mut weights = HashMap::new();
    for target in &segment.targets {
        let events = target.deliveries.iter();
        let events = events.filter_map(|delivery| segment.events.get(delivery.event as usize));
        let weight: u64 = events.map(|event| event.data.len() as u64 + DELIVERY_BYTES).sum();
        *weights.entry(target.account.clone()).or_default() += weight;
    }
    weights
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use postrider_common::id::WebhookId;
    use postrider_common::key::{Parked, ParkedKind};
    use postrider_common::model::segment::{Delivery, DeliveryState, Event, Target};
    use postrider_common::shard::ShardId;
    use postrider_common::store::Revision;
    use postrider_common::time::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::view::tests::webhook;

    fn segment(targets: &[(&str, usize)]) -> Segment {
        let event = |(account, size): &(&str, usize)| {
            Arc::new(Event {
                account: AccountId::new(account).unwrap(),
                id: postrider_common::id::EventId::new("e").unwrap(),
                name: postrider_common::id::EventName::new("A").unwrap(),
                timestamp: Timestamp::from_millis(1),
                ordering_key: None,
                expire_time: None,
                not_before_time: None,
                event_info: None,
                data: vec![b'x'; *size].into(),
                accept_time: Timestamp::from_millis(1),
                traceparent: None,
                category: postrider_common::model::event_type::Category::default(),
            })
        };
        let target = |(index, (account, _)): (u32, &(&str, usize))| {
            let webhook = webhook(account, "w", &["*"]);
            Target {
                account: webhook.account,
                webhook: webhook.id,
                webhook_uid: webhook.uid,
                webhook_revision: Revision(1),
                deliveries: vec![Delivery {
                    event: index,
                    state: DeliveryState::default(),
                }],
            }
        };
        Segment {
            events: targets.iter().map(event).collect(),
            targets: (0_u32..).zip(targets).map(target).collect(),
            batch: None,
        }
    }

    fn of(tally: &Tally, account: &str) -> u64 {
        let totals = tally.totals();
        totals.get(&AccountId::new(account).unwrap()).copied().unwrap_or(0)
    }

    #[test]
    fn what_is_parked_or_dead_counts_for_the_account_in_its_key_until_it_is_gone() {
        let placed = Parked {
            shard: ShardId(3),
            account: AccountId::new("a").unwrap(),
            webhook: WebhookId::new("w").unwrap(),
            due: Timestamp::from_millis(5),
            epoch: 1,
            number: 2,
            count: 7,
            kind: ParkedKind::Single,
        };
        let (parked, dead) = (key::parked_segment(&placed), key::dead_segment(&placed));
        let mut tally = Tally::default();
        tally.note_of_one(parked.clone(), 1000);
        tally.note_of_one(dead.clone(), 500);
        assert!(!tally.is_new(&parked));
        assert_eq!(
            of(&tally, "a"),
            1500 + (parked.as_str().len() + dead.as_str().len()) as u64
        );
        tally.keep(|key| *key != parked);
        assert!(tally.is_new(&parked));
        assert_eq!(of(&tally, "a"), 500 + dead.as_str().len() as u64);
    }

    proptest! {
        #[test]
        fn the_shares_of_a_queue_segment_are_its_bytes_and_nobody_has_none(
            sizes in proptest::collection::vec(("[a-c]", 0..5000_usize), 1..6), size in 1000..100_000_usize,
        ) {
            let targets: Vec<(&str, usize)> = sizes.iter().map(|(account, size)| (account.as_str(), *size)).collect();
            let key = key::segment(ShardId(1), "w", 1);
            let whole = bytes(&key, size);
            let mut tally = Tally::default();
            tally.note_of_many(key, size, Some(&segment(&targets)));
            let sum: u64 = tally.totals().values().sum();
            prop_assert!(sum <= whole + 3 && sum + 3 >= whole, "{} of {}", sum, whole);
            for (account, _) in targets {
                prop_assert!(of(&tally, account) > 0);
            }
        }
    }
}
