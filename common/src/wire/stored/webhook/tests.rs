//! Tests of stored webhooks.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::failing::Failing;
use crate::model::webhook::Auth;
use crate::wire::stored::{decode_failing, encode_failing};

fn webhook() -> Webhook {
    Webhook {
        account: AccountId::new("a").unwrap(),
        id: WebhookId::new("w").unwrap(),
        uid: Uid::new("00000000-0000-7000-8000-000000000001").unwrap(),
        generation: 7,
        create_time: Timestamp::from_millis(1),
        update_time: Timestamp::from_millis(2),
        display_name: "Courses".into(),
        description: String::new(),
        target_url: "https://example.com/".into(),
        auth: Auth::None,
        event_types: vec![EventPattern::parse("COURSE_*").unwrap()],
        filter: None,
        active: true,
        when_inactive: WhenInactive::Hold,
        max_in_flight: NonZeroU32::new(3),
        timeout: None,
        http_version: HttpVersion::Negotiated,
        payload_format: PayloadFormat::Raw,
        batching: Batching::default(),
        order: Order::default(),
        rate_limit: RateLimit::new(2.5, None),
        numbered: true,
        retry: retry::Policy::default(),
        headers: vec![("x-a".into(), "1".into())],
        labels: BTreeMap::new(),
        suspension: None,
    }
}

fn decoded(bytes: Bytes) -> Webhook {
    decode_webhook(AccountId::new("a").unwrap(), WebhookId::new("w").unwrap(), bytes).unwrap()
}

proptest! {
    #[test]
    fn suspensions_rate_limits_and_filters_are_read_as_they_were_written(
        reason in "[A-Z]{0,9}", detail in "\\PC{0,20}", time in 0_i64..9_999_999, end in proptest::option::of(1_i64..9_999_999),
        rate in proptest::option::of((0.01..10_000.0, 0_u32..=10_000)), filter in proptest::option::of("\\PC{1,20}"),
    ) {
        let webhook = Webhook {
            suspension: Some(Suspension { reason, detail, time: Timestamp::from_millis(time), end_time: end.map(Timestamp::from_millis) }),
            filter,
            rate_limit: rate.and_then(|(per_second, burst)| RateLimit::new(per_second, NonZeroU32::new(burst))),
            ..webhook()
        };
        prop_assert_eq!(decoded(encode_webhook(&webhook)), webhook);
    }

    #[test]
    fn suspending_stored_bytes_changes_the_suspension_and_the_generation_only_and_keeps_what_is_unknown(
        before in proptest::option::of((0_i64..999, 1_i64..999)), now in 1_i64..999, unknown: [u8; 6],
    ) {
        let before = before.map(|(time, end)| {
            Suspension::begin(None, "GONE", "410", Timestamp::from_millis(time)).ended(Timestamp::from_millis(end))
        });
        let webhook = Webhook { suspension: before.clone(), ..webhook() };
        prop_assert!(webhook.is_serving());
        // Field 1000 of a later release.
        let mut stored = BytesMut::from(encode_webhook(&webhook).as_ref());
        let mut later = vec![0xc2, 0x3e, 6];
        later.extend(unknown);
        stored.extend_from_slice(&later);
        let suspension = Suspension::begin(before.as_ref(), "FAILING", "", Timestamp::from_millis(now));
        let bytes = suspend_webhook(&stored.freeze(), &webhook, &suspension);
        prop_assert!(bytes.windows(later.len()).any(|part| part == later));
        let suspended = decoded(bytes);
        prop_assert!(!suspended.is_serving() && suspended.active);
        prop_assert_eq!(suspended, Webhook {
            generation: 8, update_time: suspension.time, suspension: Some(suspension), ..webhook
        });
    }
}

#[test]
fn every_order_is_read_as_it_was_written_and_an_unknown_one_is_unreadable() {
    for ordering in [Ordering::None, Ordering::PerKey, Ordering::Strict] {
        for on_failure in [
            None,
            Some(OnFailure::DeadLetter),
            Some(OnFailure::Block),
            Some(OnFailure::ParkKey),
        ] {
            let order = Order { ordering, on_failure };
            let webhook = Webhook { order, ..webhook() };
            assert_eq!(decoded(encode_webhook(&webhook)), webhook);
        }
    }
    let stored: pb::Webhook = decode(encode_webhook(&webhook())).unwrap();
    for (ordering, on_failure) in [(3, 0), (0, 4)] {
        let stored = encode(&pb::Webhook {
            ordering,
            on_failure,
            ..stored.clone()
        });
        let account = AccountId::new("a").unwrap();
        assert!(decode_webhook(account, WebhookId::new("w").unwrap(), stored).is_err());
    }
}

#[test]
fn final_failures_are_read_as_they_were_written_and_those_of_a_later_release_are_left_out() {
    let never_retry = ["404", "TLS", "5xx"].map(|text| retry::Final::parse(text).unwrap());
    let mut webhook = webhook();
    webhook.retry.never_retry = never_retry.into();
    let bytes = encode_webhook(&webhook);
    assert_eq!(decoded(bytes.clone()), webhook);
    let mut stored: pb::Webhook = decode(bytes).unwrap();
    stored.retry.as_mut().unwrap().never_retry.insert(1, "LATER".into());
    assert_eq!(decoded(encode(&stored)), webhook);
}

#[test]
fn a_failing_webhook_is_read_as_it_was_written() {
    let failing = Failing {
        uid: webhook().uid,
        generation: 7,
        since: Timestamp::from_millis(1),
        last: Timestamp::from_millis(2),
        rest_until: Timestamp::from_millis(3),
    };
    assert_eq!(decode_failing(encode_failing(&failing)), Ok(failing));
}

#[test]
fn a_rate_limit_out_of_range_is_unreadable() {
    let mut stored: pb::Webhook = decode(encode_webhook(&webhook())).unwrap();
    stored.rate_limit = Some(pb::RateLimit {
        per_second: f64::NAN,
        burst: 0,
    });
    let account = AccountId::new("a").unwrap();
    assert!(decode_webhook(account, WebhookId::new("w").unwrap(), encode(&stored)).is_err());
}
