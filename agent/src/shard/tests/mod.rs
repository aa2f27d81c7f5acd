//! Tests of the shard worker: what they share.

mod batch;
mod catalog;
mod order;
mod state;
mod worker;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use postrider_common::id::{AccountId, EventId, EventName, Uid, WebhookId};
use postrider_common::model::segment::{Delivery, DeliveryState, Event, Segment, Target};
use postrider_common::model::webhook::{Auth, Webhook, WhenInactive};
use postrider_common::retry;
use postrider_common::store::Revision;
use postrider_common::time::{Clock, Timestamp};
use tokio::time::Instant;

/// When the tests begin.
pub(super) const BEGIN: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// A wall clock that goes with tokio's.
pub(super) struct TestClock(Instant);

impl TestClock {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        BEGIN + self.0.elapsed()
    }
}

pub(super) fn uid(number: u32) -> Uid {
    Uid::new(&format!("00000000-0000-7000-8000-{number:012}")).unwrap()
}

pub(super) fn account() -> AccountId {
    AccountId::new("1010").unwrap()
}

pub(super) fn webhook(id: &str) -> Webhook {
    Webhook {
        account: account(),
        id: WebhookId::new(id).unwrap(),
        uid: uid(1),
        generation: 1,
        create_time: BEGIN,
        update_time: BEGIN,
        display_name: String::new(),
        description: String::new(),
        target_url: "https://example.com/hook".into(),
        auth: Auth::None,
        event_types: Vec::new(),
        active: true,
        when_inactive: WhenInactive::Hold,
        max_in_flight: NonZeroU32::new(4),
        http_version: postrider_common::model::webhook::HttpVersion::Negotiated,
        payload_format: postrider_common::model::webhook::PayloadFormat::Envelope,
        batching: postrider_common::model::batching::Batching::default(),
        order: postrider_common::model::order::Order::default(),
        rate_limit: None,
        suspension: None,
        timeout: None,
        retry: retry::Policy {
            max_attempts: NonZeroU32::new(5),
            initial_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(10),
            ..retry::Policy::default()
        },
        headers: Vec::new(),
        labels: std::collections::BTreeMap::default(),
    }
}

pub(super) fn event(id: &str, accepted: Timestamp) -> Arc<Event> {
    Arc::new(Event {
        account: account(),
        id: EventId::new(id).unwrap(),
        name: EventName::new("CREATED").unwrap(),
        timestamp: accepted,
        ordering_key: None,
        expire_time: None,
        event_info: None,
        data: format!("{{\"id\":\"{id}\"}}").into(),
        accept_time: accepted,
        traceparent: None,
        category: postrider_common::model::event_type::Category::default(),
        not_before_time: None,
    })
}

/// A segment in which every webhook of `webhooks` gets every event of `events`.
pub(super) fn segment(events: Vec<Arc<Event>>, webhooks: &[(&str, u32)], revision: Revision) -> Segment {
    let count = u32::try_from(events.len()).unwrap();
    let target = |(id, number): &(&str, u32)| Target {
        account: account(),
        webhook: WebhookId::new(id).unwrap(),
        webhook_uid: uid(*number),
        webhook_revision: revision,
        deliveries: (0..count)
            .map(|event| Delivery {
                event,
                state: DeliveryState::default(),
            })
            .collect(),
    };
    Segment {
        events,
        targets: webhooks.iter().map(target).collect(),
        batch: None,
    }
}
