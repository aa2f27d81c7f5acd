//! Tests of what operational events say.

use postrider_common::id::AccountId;
use postrider_common::key::Parked;
use postrider_common::model::segment::{Delivery, DeliveryState, Target};
use postrider_common::model::webhook::Suspension;
use postrider_common::shard::ShardId;
use postrider_common::store::Revision;

use super::*;
use crate::catalog::view::tests::webhook;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn names(announcements: &[Announcement]) -> Vec<&str> {
    announcements.iter().map(|one| one.event.name.as_str()).collect()
}

fn json(announcement: &Announcement) -> serde_json::Value {
    serde_json::from_slice(&announcement.event.data).unwrap()
}

#[test]
fn a_suspension_and_its_end_are_said_once_each_whoever_says_it() {
    let mut webhook = webhook("1010", "a", &["A"]);
    assert!(of_webhook(&webhook, NOW).is_empty());
    let suspension = Suspension::begin(None, "GONE", "the receiver answered 410", NOW);
    webhook.suspension = Some(suspension.clone());
    let begun = of_webhook(&webhook, NOW);
    assert_eq!(names(&begun), [WEBHOOK_SUSPENDED]);
    assert_eq!(
        json(&begun[0]),
        serde_json::json!({
            "webhook": "accounts/1010/webhooks/a", "uid": webhook.uid.as_str(), "reason": "GONE",
            "detail": "the receiver answered 410", "suspendTime": "2023-11-14T22:13:20Z",
        })
    );
    assert_eq!(begun[0].request.as_str(), begun[0].event.id.as_str());
    assert_eq!((begun[0].event.timestamp, begun[0].about.as_str()), (NOW, "a"));
    // Other changes of the webhook make no other announcement.
    webhook.display_name = "changed".into();
    webhook.generation += 1;
    assert_eq!(of_webhook(&webhook, NOW + RECENT / 2), begun);
    let end = NOW + Duration::from_secs(5);
    webhook.suspension = Some(suspension.ended(end));
    let ended = of_webhook(&webhook, end);
    assert_eq!(names(&ended), [WEBHOOK_REACTIVATED]);
    assert_eq!(json(&ended[0])["reactivateTime"], "2023-11-14T22:13:25Z");
    let again = Suspension::begin(webhook.suspension.as_ref(), "FAILING", "", end);
    webhook.suspension = Some(again);
    let both = of_webhook(&webhook, end);
    assert_eq!(names(&both), [WEBHOOK_SUSPENDED, WEBHOOK_REACTIVATED]);
    assert_eq!(both[1], ended[0]);
    assert_ne!(both[0].request, begun[0].request);
}

#[test]
fn what_is_a_day_old_is_said_no_more() {
    let mut webhook = webhook("1010", "a", &["A"]);
    webhook.suspension = Some(Suspension::begin(None, "GONE", "", NOW));
    let last = NOW + (RECENT - Duration::from_millis(1));
    assert_eq!(of_webhook(&webhook, last).len(), 1);
    assert!(of_webhook(&webhook, NOW + RECENT).is_empty());
    assert!(is_recent_death(NOW, NOW) && !is_recent_death(NOW, NOW + RECENT_DEATH));
}

/// A segment of dead letters with these event names.
fn dead(names: &[&str]) -> (Key, Segment) {
    let account = AccountId::new("1010").unwrap();
    let event = |(number, name): (usize, &&str)| {
        Arc::new(Event {
            account: account.clone(),
            id: EventId::new(&format!("e{number}")).unwrap(),
            name: EventName::new(name).unwrap(),
            timestamp: NOW,
            ordering_key: None,
            expire_time: None,
            event_info: None,
            data: "{}".into(),
            accept_time: NOW,
            traceparent: None,
            category: postrider_common::model::event_type::Category::RealTime,
            not_before_time: None,
        })
    };
    let count = u32::try_from(names.len()).unwrap();
    let deliveries = (0..count).map(|event| Delivery {
        event,
        state: DeliveryState {
            alone: false,
            attempts: 3,
            due: NOW + Duration::from_secs(event.into()),
            reason: "TIMEOUT".into(),
            status: None,
            ..DeliveryState::default()
        },
    });
    let webhook = webhook("1010", "a", &["A"]);
    let segment = Segment {
        batch: None,
        events: names.iter().enumerate().map(event).collect(),
        targets: vec![Target {
            account: account.clone(),
            webhook: webhook.id.clone(),
            webhook_uid: webhook.uid,
            webhook_revision: Revision(1),
            deliveries: deliveries.collect(),
        }],
    };
    let key = key::dead_segment(&Parked {
        kind: key::ParkedKind::Single,
        shard: ShardId(3),
        account,
        webhook: webhook.id,
        due: NOW,
        epoch: 7,
        number: 1,
        count,
    });
    (key, segment)
}

#[test]
fn dead_letters_are_listed_with_their_reasons_up_to_a_bound() {
    let (key, segment) = dead(&["A"; 250]);
    let announcement = of_dead(&key, &segment).unwrap();
    assert_eq!(names(std::slice::from_ref(&announcement)), [DELIVERY_DEAD_LETTERED]);
    assert_eq!((announcement.event.timestamp, announcement.about.as_str()), (NOW, "a"));
    let data = json(&announcement);
    assert_eq!(data["webhook"], "accounts/1010/webhooks/a");
    assert_eq!(
        (&data["count"], data["events"].as_array().unwrap().len()),
        (&serde_json::json!(250), MOST_LISTED)
    );
    assert_eq!(
        data["events"][0],
        serde_json::json!({
            "eventId": "e0", "eventName": "A", "reason": "TIMEOUT", "attempts": 3, "deathTime": "2023-11-14T22:13:20Z",
        })
    );
    assert_eq!(of_dead(&key, &segment), Some(announcement));
}

#[test]
fn a_dead_letter_of_an_operational_event_causes_none() {
    let (key, segment) = dead(&[DELIVERY_DEAD_LETTERED, WEBHOOK_SUSPENDED]);
    assert_eq!(of_dead(&key, &segment), None);
    let (key, segment) = dead(&[WEBHOOK_SUSPENDED, "A"]);
    assert_eq!(json(&of_dead(&key, &segment).unwrap())["count"], 1);
}
