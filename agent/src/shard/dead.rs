//! What becomes of dead letters that are looked at again: revived, dropped, or left. Pure.

use std::sync::Arc;
use std::time::Duration;

use postrider_common::id::Uid;
use postrider_common::key::Parked;
use postrider_common::model::command::{Filter, Rate};
use postrider_common::model::segment::{DeliveryState, Segment};
use postrider_common::model::usage::Dropped;
use postrider_common::store::Revision;
use postrider_common::time::Timestamp;

use super::delivery::{Delivery, Origin, Rewrite, SourceId};

/// Of dead letters that are revived at a rate, those that go within this time share a stored segment: it is read when the first is due, and the others
/// wait in memory.
const REVIVED_TOGETHER: Duration = Duration::from_secs(2);

/// Dead letters of one segment that share a stored segment at least, however low the rate: a segment each would cost the store more than they do.
const REVIVED_AT_LEAST: usize = 8;

/// What is looked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Search {
    /// Those that are to wait again.
    Revive {
        /// Which.
        filter: Filter,
        /// How fast.
        rate: Option<Rate>,
        /// When the first is due.
        from: Timestamp,
    },
    /// Those that are to be dropped.
    Drop(Filter, Dropped),
    /// Those that died before this moment.
    Expire(Timestamp),
    /// Those of webhooks that did not exist any more at this revision.
    Former(Revision),
}

/// Says what becomes of the dead letters of one segment; `None` if they stay as they are. `uid` is that of the webhook which is meant; `revived` counts
/// what was revived so far.
pub fn rewrite(
    at: &Parked,
    segment: &Segment,
    search: &Search,
    uid: Option<&Uid>,
    revived: &mut u64,
) -> Option<Rewrite> {
    let mut rewrite = Rewrite {
        segment: at.clone(),
        kept: Vec::new(),
        revived: Vec::new(),
        dropped: Vec::new(),
        note: None,
    };
    let mut waits: Vec<Delivery> = Vec::new();
    for target in &segment.targets {
        let origin = Arc::new(Origin {
            account: target.account.clone(),
            webhook: target.webhook.clone(),
            uid: target.webhook_uid.clone(),
            revision: target.webhook_revision,
        });
        let mut dropped = 0;
        for delivery in &target.deliveries {
            let Some(event) = segment.events.get(delivery.event as usize) else {
                continue;
            };
            let meant = uid.is_none_or(|uid| *uid == target.webhook_uid);
            let state = &delivery.state;
            let found = meant
                && match search {
                    Search::Revive { filter, .. } | Search::Drop(filter, _) => filter.fits(event, state),
                    Search::Expire(before) => state.due < *before,
                    Search::Former(as_of) => target.webhook_revision < *as_of,
                };
            let again = |state| Delivery {
                source: SourceId(0),
                index: 0,
                origin: origin.clone(),
                event: event.clone(),
                state,
                bytes: 0,
                batch: None,
            };
            match search {
                Search::Revive { rate, from, .. } if found => {
                    let due = rate.map_or(*from, |rate| rate.due(*from, *revived));
                    *revived += 1;
                    waits.push(again(DeliveryState {
                        due,
                        alone: true,
                        sequence: state.sequence,
                        position: state.position,
                        renewed: Some(due),
                        ..DeliveryState::default()
                    }));
                }
                _ if found => dropped += 1,
                _ => rewrite.kept.push(again(state.clone())),
            }
        }
        if dropped > 0 {
            rewrite.dropped.push((origin, search.dropped(), dropped));
        }
    }
    rewrite.revived = together(waits);
    (!rewrite.revived.is_empty() || !rewrite.dropped.is_empty()).then_some(rewrite)
}

impl Search {
    /// Why what is found is dropped.
    const fn dropped(&self) -> Dropped {
        match self {
            Self::Drop(_, why) => *why,
            Self::Former(_) => Dropped::WebhookDeleted,
            Self::Expire(_) | Self::Revive { .. } => Dropped::Expired,
        }
    }
}

/// Cuts what was revived into groups of nearly the same due time.
fn together(waits: Vec<Delivery>) -> Vec<Vec<Delivery>> {
    let mut groups: Vec<Vec<Delivery>> = Vec::new();
    for delivery in waits {
        let fits = |group: &&mut Vec<Delivery>| {
            let first = group.first().map(|first| first.state.due).unwrap_or_default();
            group.len() < REVIVED_AT_LEAST || delivery.state.due.saturating_since(first) <= REVIVED_TOGETHER
        };
        match groups.last_mut().filter(fits) {
            Some(group) => group.push(delivery),
            None => groups.push(vec![delivery]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use postrider_common::id::{AccountId, WebhookId};
    use postrider_common::key::ParkedKind;
    use postrider_common::shard::ShardId;
    use proptest::prelude::*;

    use super::*;
    use crate::shard::tests::{BEGIN, event, segment, uid};

    fn at(count: u32) -> Parked {
        Parked {
            shard: ShardId(1),
            account: AccountId::new("1010").unwrap(),
            webhook: WebhookId::new("a").unwrap(),
            due: BEGIN,
            epoch: 1,
            number: 1,
            count,
            kind: ParkedKind::Single,
        }
    }

    fn dead(count: u32) -> Segment {
        let events = (0..count).map(|number| event(&format!("e{number}"), BEGIN)).collect();
        segment(events, &[("a", 1)], Revision(1))
    }

    proptest! {
        #[test]
        fn nothing_gets_lost_and_revived_ones_keep_the_rate(
            count in 1_u32..256, wanted in proptest::collection::btree_set(0_u32..256, 0..256), rate in 0.1_f64..1000.0, before in 0_u64..1000,
        ) {
            let filter = Filter {
                event_ids: wanted.iter().map(|number| postrider_common::id::EventId::new(&format!("e{number}")).unwrap()).collect(),
                ..Filter::default()
            };
            let fitting = if wanted.is_empty() { count as usize } else { wanted.range(..count).count() };
            let rate = Rate::new(rate).unwrap();
            let search = Search::Revive { filter, rate: Some(rate), from: BEGIN };
            let mut revived = before;
            let rewritten = rewrite(&at(count), &dead(count), &search, Some(&uid(1)), &mut revived);
            prop_assert_eq!(revived - before, fitting as u64);
            prop_assert_eq!(rewritten.is_some(), fitting > 0);
            if let Some(rewritten) = rewritten {
                let waits: Vec<_> = rewritten.revived.iter().flatten().collect();
                prop_assert_eq!(waits.len() + rewritten.kept.len(), count as usize);
                for (delivery, number) in waits.iter().zip(before..) {
                    prop_assert_eq!(delivery.state.due, rate.due(BEGIN, number));
                }
                for group in &rewritten.revived {
                    let span = group.last().unwrap().state.due.saturating_since(group[0].state.due);
                    prop_assert!(span <= REVIVED_TOGETHER || group.len() <= REVIVED_AT_LEAST);
                }
            }
        }
    }

    #[test]
    fn dead_letters_of_another_webhook_of_the_same_name_are_not_revived_but_dropped_when_asked_for() {
        let search = Search::Revive {
            filter: Filter::default(),
            rate: None,
            from: BEGIN,
        };
        assert_eq!(rewrite(&at(3), &dead(3), &search, Some(&uid(2)), &mut 0), None);
        // They matched at revision 1.
        let former = Search::Former(Revision(2));
        let rewritten = rewrite(&at(3), &dead(3), &former, None, &mut 0).unwrap();
        assert_eq!((rewritten.kept.len(), rewritten.dropped[0].2), (0, 3));
        assert_eq!(
            rewrite(&at(3), &dead(3), &Search::Former(Revision(1)), None, &mut 0),
            None
        );
    }
}
