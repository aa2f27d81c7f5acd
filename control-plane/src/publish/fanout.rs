//! Decides which shards get which events for which webhooks. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use postrider_common::model::segment::Event;
use postrider_common::planted::{self, Bug};
use postrider_common::shard::ShardId;
use postrider_common::store::MAX_OPS;
use postrider_common::store::once::LANE_OPS;

use super::judge::Judge;
use crate::catalog::{Subscriber, Table};

/// Most deliveries that one request may cause. One transaction holds them all; with more, their numbers alone would outgrow it.
pub(crate) const MAX_DELIVERIES: usize = 200_000;

/// Most shards that one request may touch: the operations of one transaction, less the request's dedupe key and the lane's mark.
pub(crate) const MAX_SHARDS: usize = MAX_OPS - LANE_OPS - 1;

/// Bytes of a stored event besides its texts and body: tags, lengths and numbers, rounded up.
const EVENT_OVERHEAD: usize = 64;

/// Bytes of a stored target besides its texts: tags, lengths and the revision, rounded up.
const TARGET_OVERHEAD: usize = 32;

/// Most bytes of one event's index in a target.
const INDEX_BYTES: usize = 3;

/// What becomes of the events of one request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Fanout {
    /// For each event of the request, how many webhooks want it.
    pub(crate) matched: Vec<u32>,
    /// What each shard gets; no shard twice.
    pub(crate) parts: Vec<Part>,
    /// How often a filter had no value: the event did not match.
    pub(crate) filter_errors: usize,
    /// How often a filter could not be asked: the event matched.
    pub(crate) filter_skips: usize,
}

/// What one shard gets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    /// The shard.
    pub(crate) shard: ShardId,
    /// Events that some webhook of the shard wants: each once, in the request's order.
    pub(crate) events: Vec<Arc<Event>>,
    /// Who gets which; no webhook twice.
    pub(crate) shares: Vec<Share>,
    /// Most bytes that this takes in a segment, before compression.
    pub(crate) bytes: usize,
    /// The request's number of the last event.
    last: usize,
}

/// What one webhook gets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Share {
    /// The webhook.
    pub(crate) subscriber: Arc<Subscriber>,
    /// Indexes into the part's events, ascending.
    pub(crate) events: Vec<u32>,
}

/// A request that no single transaction can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooWide;

/// Finds the webhooks in `table` that want each of `events`: by its name, and if their filter is true for it. `spent` says how
/// long the request has taken.
///
/// # Errors
/// [`TooWide`] beyond [`MAX_DELIVERIES`] or [`MAX_SHARDS`].
pub(crate) fn fan_out(events: &[Arc<Event>], table: &Table, spent: &dyn Fn() -> Duration) -> Result<Fanout, TooWide> {
    let mut fanout = Fanout {
        matched: Vec::with_capacity(events.len()),
        ..Fanout::default()
    };
    let mut judge = Judge::new(spent);
    // Where each webhook's share is: the part and its place in it.
    let mut shares: HashMap<*const Subscriber, (usize, usize)> = HashMap::new();
    let mut before: Option<&Arc<Event>> = None;
    let mut matching = Vec::new();
    let mut deliveries = 0;
    for (number, event) in events.iter().enumerate() {
        if before.is_none_or(|before| before.name != event.name) {
            matching = table.matching(&event.name);
        }
        before = Some(event);
        judge.next(event);
        let mut matched = 0;
        for &subscriber in &matching {
            if subscriber
                .filter
                .as_ref()
                .is_some_and(|filter| !judge.lets_through(filter) && !planted::is(Bug::FilterIgnored))
            {
                continue;
            }
            matched += 1;
            let place = shares.entry(Arc::as_ptr(subscriber));
            let (part, share) = *place.or_insert_with(|| new_share(&mut fanout.parts, subscriber));
            if let Some(part) = fanout.parts.get_mut(part) {
                part.add(number, event, share);
            }
        }
        deliveries += matched;
        if deliveries > MAX_DELIVERIES {
            return Err(TooWide);
        }
        fanout.matched.push(u32::try_from(matched).unwrap_or(u32::MAX));
    }
    (fanout.filter_errors, fanout.filter_skips) = judge.troubles();
    if fanout.parts.len() > MAX_SHARDS {
        return Err(TooWide);
    }
    Ok(fanout)
}

fn new_share(parts: &mut Vec<Part>, subscriber: &Arc<Subscriber>) -> (usize, usize) {
    let index = parts.iter().position(|part| part.shard == subscriber.shard);
    let index = index.unwrap_or_else(|| {
        parts.push(Part {
            shard: subscriber.shard,
            events: Vec::new(),
            shares: Vec::new(),
            bytes: 0,
            last: usize::MAX,
        });
        parts.len() - 1
    });
    let Some(part) = parts.get_mut(index) else {
        return (index, 0);
    };
    let webhook = &subscriber.webhook;
    let texts = webhook.account.as_str().len() + webhook.id.as_str().len() + webhook.uid.as_str().len();
    part.bytes += texts + TARGET_OVERHEAD;
    part.shares.push(Share {
        subscriber: subscriber.clone(),
        events: Vec::new(),
    });
    (index, part.shares.len() - 1)
}

impl Part {
    fn add(&mut self, number: usize, event: &Arc<Event>, share: usize) {
        if self.last != number {
            self.last = number;
            self.events.push(event.clone());
            self.bytes += stored_bytes(event);
        }
        if let (Some(share), Ok(index)) = (self.shares.get_mut(share), u32::try_from(self.events.len() - 1)) {
            share.events.push(index);
            self.bytes += INDEX_BYTES;
        }
    }
}

/// Most bytes that an event takes in a segment, before compression.
fn stored_bytes(event: &Event) -> usize {
    let text = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
    event.account.as_str().len()
        + event.id.as_str().len()
        + event.name.as_str().len()
        + text(&event.ordering_key)
        + text(&event.event_info)
        + text(&event.traceparent)
        + event.data.len()
        + EVENT_OVERHEAD
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;
    use postrider_common::id::{AccountId, EventId, EventName};
    use postrider_common::time::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::view::tests::{subscriber, webhook};

    pub(crate) fn event(id: &str, name: &str, data: Bytes) -> Arc<Event> {
        Arc::new(Event {
            account: AccountId::new("a").unwrap(),
            id: EventId::new(id).unwrap(),
            name: EventName::new(name).unwrap(),
            timestamp: Timestamp::from_millis(1),
            ordering_key: None,
            expire_time: None,
            event_info: None,
            data,
            accept_time: Timestamp::from_millis(1),
            traceparent: None,
            category: postrider_common::model::event_type::Category::default(),
            not_before_time: None,
        })
    }

    proptest! {
        #[test]
        fn each_matching_webhook_gets_each_event_exactly_once_in_order_in_its_own_shard(
            names in proptest::collection::vec("[AB]{1,2}", 0..12),
            webhooks in proptest::collection::btree_map("[a-h]", proptest::collection::vec("[AB]{1,2}\\*?|\\*", 1..4), 0..6),
            shards in 1_u16..5,
        ) {
            let webhooks = webhooks.iter().map(|(id, patterns)| {
                let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
                webhook("a", id, &patterns)
            });
            let subscribers: Vec<_> = webhooks.map(|webhook| subscriber(webhook, shards)).collect();
            let events: Vec<_> = names.iter().enumerate().map(|(number, name)| event(&format!("e{number}"), name, Bytes::new())).collect();
            let fanout = fan_out(&events, &Table::new(subscribers.clone()), &|| Duration::ZERO).unwrap();
            for subscriber in &subscribers {
                let wanted: Vec<_> = events.iter().filter(|event| subscriber.webhook.wants(&event.name)).map(|event| &event.id).collect();
                let shares: Vec<_> = fanout.parts.iter()
                    .flat_map(|part| part.shares.iter().map(move |share| (part, share)))
                    .filter(|(_, share)| share.subscriber.webhook.id == subscriber.webhook.id)
                    .collect();
                prop_assert!(shares.len() <= 1 && shares.iter().all(|(part, _)| part.shard == subscriber.shard));
                let got: Vec<_> = shares.iter().flat_map(|(part, share)| share.events.iter().map(|index| &part.events[*index as usize].id)).collect();
                prop_assert_eq!(got, wanted);
            }
            for (event, matched) in events.iter().zip(&fanout.matched) {
                let wanted = subscribers.iter().filter(|subscriber| subscriber.webhook.wants(&event.name)).count();
                prop_assert_eq!(*matched as usize, wanted);
            }
            for part in &fanout.parts {
                // Nothing is stored that nobody wants, and nothing twice.
                let mut used: Vec<u32> = part.shares.iter().flat_map(|share| share.events.clone()).collect();
                used.sort_unstable();
                used.dedup();
                prop_assert_eq!(used.len(), part.events.len());
                let ids: std::collections::BTreeSet<_> = part.events.iter().map(|event| &event.id).collect();
                prop_assert_eq!(ids.len(), part.events.len());
                prop_assert_eq!(fanout.parts.iter().filter(|other| other.shard == part.shard).count(), 1);
            }
        }
    }

    #[test]
    fn a_request_that_no_transaction_can_hold_is_refused() {
        let events = vec![event("e", "A", Bytes::new()); 1000];
        let many = (0..=MAX_DELIVERIES / 1000).map(|number| subscriber(webhook("a", &format!("w{number}"), &["*"]), 1));
        let table = Table::new(many);
        assert_eq!(fan_out(&events, &table, &|| Duration::ZERO), Err(TooWide));
        assert!(fan_out(&events[1..900], &table, &|| Duration::ZERO).is_ok());
        let wide = Table::new((0..2000).map(|number| subscriber(webhook("a", &format!("w{number}"), &["*"]), 128)));
        assert_eq!(fan_out(&events[..1], &wide, &|| Duration::ZERO), Err(TooWide));
        let fitting = Table::new((0..2000).map(|number| subscriber(webhook("a", &format!("w{number}"), &["*"]), 64)));
        assert_eq!(
            fan_out(&events[..1], &fitting, &|| Duration::ZERO).unwrap().parts.len(),
            64
        );
    }
}
