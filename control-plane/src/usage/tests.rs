//! Tests of the counts, on a store in memory.

use std::num::NonZeroU16;
use std::sync::Arc;

use postrider_common::id::{EventId, EventName, Uid, WebhookId};
use postrider_common::model::segment::{Delivery, DeliveryState, Event, Segment, Target};
use postrider_common::model::usage::{Dropped, Usage};
use postrider_common::store::memory::MemoryStore;
use postrider_common::store::{Op, Write};
use postrider_common::time::Timestamp;

use super::*;
use crate::catalog::view::tests::webhook;

const SHARDS: NonZeroU16 = NonZeroU16::new(4).unwrap();

fn account() -> AccountId {
    AccountId::new("a").unwrap()
}

fn uid(number: u32) -> Uid {
    Uid::new(&format!("00000000-0000-7000-8000-{number:012}")).unwrap()
}

fn queued(id: &WebhookId, uid: &Uid, count: u32) -> Segment {
    let event = Event {
        account: account(),
        id: EventId::new("e").unwrap(),
        name: EventName::new("A").unwrap(),
        timestamp: Timestamp::from_millis(1),
        ordering_key: None,
        expire_time: None,
        not_before_time: None,
        event_info: None,
        data: "{}".into(),
        accept_time: Timestamp::from_millis(1),
        traceparent: None,
        category: postrider_common::model::event_type::Category::default(),
    };
    let delivery = |event| Delivery {
        event,
        state: DeliveryState::default(),
    };
    Segment {
        events: std::iter::repeat_with(|| Arc::new(event.clone()))
            .take(count as usize)
            .collect(),
        targets: vec![Target {
            account: account(),
            webhook: id.clone(),
            webhook_uid: uid.clone(),
            webhook_revision: Revision(1),
            deliveries: (0..count).map(delivery).collect(),
        }],
        batch: None,
    }
}

fn counted(uid: &Uid) -> Usage {
    let mut usage = Usage {
        uid: Some(uid.clone()),
        taken: 10,
        delivered: 4,
        dead: 2,
        ..Usage::default()
    };
    usage.drop_more(Dropped::Cancelled, 1);
    usage
}

#[tokio::test]
async fn counts_come_from_the_progress_the_keys_and_the_queue_and_those_of_former_webhooks_are_kept_apart() {
    let store = MemoryStore::default();
    let id = WebhookId::new("w").unwrap();
    let shard = shard::of(&account(), &id, SHARDS);
    let mut present = webhook("a", "w", &["*"]);
    present.uid = uid(2);
    let name = (account(), Some(id.clone()));
    let first = key::segment(shard, "writer", 1);
    // The progress counts more than the key does, and says that one of the three that are queued is over.
    let usage = [(name.clone(), counted(&uid(2)))];
    let segments = [(first.clone(), vec![0b010_u8])];
    let progress = stored::encode_progress(
        segments.iter().map(|(key, done)| (key, done.as_slice())),
        usage.iter().map(|(name, usage)| (name, usage)),
    );
    let of_others = Usage {
        taken: 7,
        delivered: 7,
        ..Usage::default()
    };
    let ops = vec![
        Op::put(key::webhook(&account(), &id), stored::encode_webhook(&present)),
        Op::put(key::progress(shard), progress),
        Op::put(key::usage_of(shard, &name), stored::encode_usage(&Usage::default())),
        Op::put(
            key::usage_of(shard, &(account(), None)),
            stored::encode_usage(&of_others),
        ),
        Op::put(first, stored::pack(queued(&id, &uid(2), 3))),
        Op::put(key::segment(shard, "writer", 2), stored::pack(queued(&id, &uid(1), 5))),
    ];
    store
        .write(Write {
            guards: Vec::new(),
            ops,
        })
        .await
        .unwrap();
    let usage = of_account(&store, SHARDS, &account()).await.unwrap();
    let (_, counts) = &usage.webhooks[&id];
    assert_eq!(
        (counts.accepted(), counts.delivered(), counts.waiting(), counts.dead()),
        (12, 4, 5, 2)
    );
    assert_eq!(counts.dropped(Dropped::Cancelled), 1);
    assert_eq!(
        (
            usage.deleted.accepted(),
            usage.deleted.delivered(),
            usage.deleted.waiting()
        ),
        (12, 7, 5)
    );
    let total = usage.total();
    assert_eq!(
        (total.accepted(), total.delivered(), total.waiting(), total.dead()),
        (24, 11, 10, 2)
    );
}
