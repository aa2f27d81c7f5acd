//! One account's webhooks, compiled for matching: which of them want an event of a given name. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use postrider_common::id::{EventName, WebhookId};
use postrider_common::model::operational::{PREFIX, is_operational};
use postrider_common::model::webhook::{EventPattern, Webhook};
use postrider_common::shard::ShardId;
use postrider_common::store::Revision;

/// A webhook as events are matched against it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Subscriber {
    /// The webhook.
    pub(crate) webhook: Arc<Webhook>,
    /// The store revision of this configuration.
    pub(crate) revision: Revision,
    /// The webhook's shard.
    pub(crate) shard: ShardId,
}

/// The webhooks of one account. It never changes: a change makes a new one.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// All of them, ordered by id.
    subscribers: Vec<Arc<Subscriber>>,
    /// Indexes of those that want exactly this name.
    exact: HashMap<EventName, Vec<u32>>,
    /// Indexes of those that want every name with this beginning.
    prefixes: HashMap<Box<str>, Vec<u32>>,
    /// The lengths of the prefixes, each once: a name is looked up once for each, however many prefixes there are.
    lengths: Vec<usize>,
}

impl Table {
    /// Compiles webhooks. Of several with one id the last counts.
    pub(crate) fn new(subscribers: impl IntoIterator<Item = Arc<Subscriber>>) -> Self {
        let by_id = subscribers
            .into_iter()
            .map(|subscriber| (subscriber.webhook.id.clone(), subscriber));
        Self::compile(by_id.collect())
    }

    /// The table after changes: `None` takes a webhook out.
    #[must_use]
    pub(crate) fn changed(&self, changes: impl IntoIterator<Item = (WebhookId, Option<Arc<Subscriber>>)>) -> Self {
        let unchanged = self.subscribers.iter();
        let mut by_id: BTreeMap<WebhookId, Arc<Subscriber>> = unchanged
            .map(|subscriber| (subscriber.webhook.id.clone(), subscriber.clone()))
            .collect();
        for (id, subscriber) in changes {
            match subscriber {
                Some(subscriber) => by_id.insert(id, subscriber),
                None => by_id.remove(&id),
            };
        }
        Self::compile(by_id)
    }

    fn compile(by_id: BTreeMap<WebhookId, Arc<Subscriber>>) -> Self {
        let mut table = Self::default();
        for (index, subscriber) in (0_u32..).zip(by_id.into_values()) {
            let webhook = &subscriber.webhook;
            if webhook.takes_events() {
                for pattern in &webhook.event_types {
                    match pattern {
                        EventPattern::Exact(name) => table.exact.entry(name.clone()).or_default().push(index),
                        EventPattern::Prefix(prefix) => {
                            table.prefixes.entry(prefix.as_str().into()).or_default().push(index);
                        }
                    }
                }
            }
            table.subscribers.push(subscriber);
        }
        table.lengths = table.prefixes.keys().map(|prefix| prefix.len()).collect();
        table.lengths.sort_unstable();
        table.lengths.dedup();
        table
    }

    /// The webhooks that events of this name go to, ordered by id; each once, however many of its patterns match.
    pub(crate) fn matching(&self, name: &EventName) -> Vec<&Arc<Subscriber>> {
        // A beginning that is too short to name operational events does not cover them.
        let shortest = if is_operational(name) { PREFIX.len() } else { 0 };
        let lengths = self.lengths.iter().filter(|length| **length >= shortest);
        let beginnings = lengths.filter_map(|length| name.as_str().get(..*length));
        let by_prefix = beginnings.filter_map(|beginning| self.prefixes.get(beginning));
        let mut indexes: Vec<u32> = self
            .exact
            .get(name)
            .into_iter()
            .chain(by_prefix)
            .flatten()
            .copied()
            .collect();
        indexes.sort_unstable();
        indexes.dedup();
        let subscriber = |index: u32| self.subscribers.get(index as usize);
        indexes.into_iter().filter_map(subscriber).collect()
    }

    /// Whether the account has no webhooks.
    pub(crate) fn is_empty(&self) -> bool {
        self.subscribers.is_empty()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::num::NonZeroU16;

    use postrider_common::id::{AccountId, Uid};
    use postrider_common::model::webhook::{Auth, Suspension, WhenInactive};
    use postrider_common::shard;
    use postrider_common::time::Timestamp;
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn webhook(account: &str, id: &str, patterns: &[&str]) -> Webhook {
        let number = id.bytes().fold(0_u64, |sum, byte| sum * 131 + u64::from(byte)) & 0xffff_ffff_ffff;
        Webhook {
            account: AccountId::new(account).unwrap(),
            id: WebhookId::new(id).unwrap(),
            uid: Uid::new(&format!("00000000-0000-7000-8000-{number:012x}")).unwrap(),
            generation: 1,
            create_time: Timestamp::from_millis(1),
            update_time: Timestamp::from_millis(1),
            display_name: String::new(),
            description: String::new(),
            target_url: "https://example.com/".into(),
            auth: Auth::None,
            event_types: patterns.iter().map(|text| EventPattern::parse(text).unwrap()).collect(),
            active: true,
            when_inactive: WhenInactive::Drop,
            max_in_flight: None,
            http_version: postrider_common::model::webhook::HttpVersion::Negotiated,
            payload_format: postrider_common::model::webhook::PayloadFormat::Envelope,
            batching: postrider_common::model::batching::Batching::default(),
            order: postrider_common::model::order::Order::default(),
            rate_limit: None,
            suspension: None,
            timeout: None,
            retry: postrider_common::retry::Policy::default(),
            headers: Vec::new(),
            labels: BTreeMap::new(),
        }
    }

    pub(crate) fn subscriber(webhook: Webhook, shards: u16) -> Arc<Subscriber> {
        Arc::new(Subscriber {
            shard: shard::of(&webhook.account, &webhook.id, NonZeroU16::new(shards).unwrap()),
            webhook: Arc::new(webhook),
            revision: Revision(7),
        })
    }

    fn pattern() -> impl Strategy<Value = String> {
        "[AB]{1,3}\\*?|\\*|postrider\\*|postrider\\.\\*|postrider\\.A\\*?"
    }

    fn webhooks() -> impl Strategy<Value = Vec<Webhook>> {
        let one = (
            "[a-d]",
            proptest::collection::vec(pattern(), 0..5),
            any::<bool>(),
            any::<bool>(),
            any::<bool>(),
        );
        let one = one.prop_map(|(id, patterns, active, hold, suspended)| {
            let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let when_inactive = if hold { WhenInactive::Hold } else { WhenInactive::Drop };
            Webhook {
                active,
                when_inactive,
                suspension: suspended.then(|| Suspension::begin(None, "GONE", "", Timestamp::from_millis(1))),
                ..webhook("a", &id, &patterns)
            }
        });
        proptest::collection::vec(one, 0..8)
    }

    proptest! {
        #[test]
        fn a_table_matches_exactly_the_webhooks_that_want_the_name_each_once(
            first in webhooks(), second in webhooks(), removed in "[a-d]", name in "[AB]{1,4}|postrider(\\.A)?",
        ) {
            let name = EventName::new(&name).unwrap();
            let mut model: BTreeMap<String, Webhook> = BTreeMap::new();
            for webhook in first.iter().chain(&second) {
                model.insert(webhook.id.to_string(), webhook.clone());
            }
            model.remove(&removed);
            let changes = second.iter().map(|webhook| (webhook.id.clone(), Some(subscriber(webhook.clone(), 4))));
            let removal = std::iter::once((WebhookId::new(&removed).unwrap(), None));
            let table = Table::new(first.iter().map(|webhook| subscriber(webhook.clone(), 4)));
            let table = table.changed(changes.chain(removal));
            let wanted: Vec<&Webhook> = model.values().filter(|webhook| webhook.wants(&name)).collect();
            let matched: Vec<&Webhook> = table.matching(&name).into_iter().map(|subscriber| &*subscriber.webhook).collect();
            prop_assert_eq!(matched, wanted);
        }
    }
}
