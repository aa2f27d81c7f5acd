//! Tests of bodies and headers.

use std::num::NonZeroU64;

use std::sync::Arc;

use postrider_common::id::{EventId, EventName};
use postrider_common::model::segment::Event;
use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn sent(id: &str, name: &str, timestamp: i64, info: &str, data: &[u8]) -> Sent {
    let event = Event {
        account: AccountId::new("1010").unwrap(),
        id: EventId::new(id).unwrap(),
        name: EventName::new(name).unwrap(),
        timestamp: Timestamp::from_millis(timestamp),
        ordering_key: None,
        expire_time: None,
        event_info: None,
        data: Bytes::copy_from_slice(data),
        accept_time: Timestamp::default(),
        traceparent: None,
        category: postrider_common::model::event_type::Category::default(),
        not_before_time: None,
    };
    Sent {
        event: Arc::new(event),
        event_info: info.into(),
    }
}

fn account(text: &str) -> AccountId {
    AccountId::new(text).unwrap()
}

#[test]
fn the_envelope_of_the_sample_event_is_exactly_this() {
    let data = br#"{"userId":4279332,"loId":"course:7374992","loInstanceId":"course:7376092_10250977","loType":"course","enrollmentSource":"ADMIN_ENROLL","dateEnrolled":1727414643}"#;
    let event = sent(
        "d5fb7071-10a9-46b2-9f9e-79dde346c052",
        "COURSE_ENROLLMENT_BATCH",
        1_727_414_643_000,
        "1727414643000-047210-84242-0",
        data,
    );
    let expected = concat!(
        r#"{"accountId":1010,"events":[{"eventId":"d5fb7071-10a9-46b2-9f9e-79dde346c052","eventName":"COURSE_ENROLLMENT_BATCH","#,
        r#""timestamp":1727414643000,"eventInfo":"1727414643000-047210-84242-0","data":{"userId":4279332,"loId":"course:7374992","#,
        r#""loInstanceId":"course:7376092_10250977","loType":"course","enrollmentSource":"ADMIN_ENROLL","dateEnrolled":1727414643}}]}"#,
    );
    assert_eq!(envelope(&account("1010"), &[event]), expected);
}

#[test]
fn an_account_prints_as_a_number_only_if_the_number_prints_as_the_account() {
    let cases = [
        ("0", "0"),
        ("1010", "1010"),
        ("9223372036854775807", "9223372036854775807"),
        ("9223372036854775808", "\"9223372036854775808\""),
        ("007", "\"007\""),
        ("00", "\"00\""),
        ("1e5", "\"1e5\""),
        ("1-0", "\"1-0\""),
        ("acme", "\"acme\""),
    ];
    for (id, printed) in cases {
        assert_eq!(
            envelope(&account(id), &[]),
            format!("{{\"accountId\":{printed},\"events\":[]}}")
        );
    }
}

proptest! {
    #[test]
    fn the_envelope_is_json_that_says_what_was_published(
        id in "[A-Za-z0-9_:-]{1,64}", name in "[A-Za-z][A-Za-z0-9_.:-]{0,20}", time: i64, info in "\\PC*|[\\x00-\\x1f\"\\\\]{1,5}", count in 0_usize..4,
        account_id in "[a-z0-9][a-z0-9-]{0,20}",
    ) {
        let data: &[u8] = b"{\"a\" : 1.0 , \"big\":12345678901234567890123, \"a\":2}";
        let events = vec![sent(&id, &name, time, &info, data); count];
        let body = envelope(&account(&account_id), &events);
        let value: Value = serde_json::from_slice(&body).unwrap();
        let shown = match &value["accountId"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        prop_assert_eq!(shown, account_id);
        prop_assert_eq!(value["events"].as_array().unwrap().len(), count);
        for event in value["events"].as_array().unwrap() {
            prop_assert_eq!(&event["eventId"], &id);
            prop_assert_eq!(&event["eventName"], &name);
            prop_assert_eq!(&event["timestamp"], &time);
            prop_assert_eq!(&event["eventInfo"], &info);
        }
        let copies = body.windows(data.len()).filter(|window| *window == data).count();
        prop_assert_eq!(copies, count);
    }

    #[test]
    fn no_static_header_can_frame_the_message_or_pass_for_ours(
        name in "host|content-length|transfer-encoding|connection|te|upgrade|expect|webhook-[a-z]{1,9}|proxy-[a-z]{1,9}|accept-encoding|\
            content-type|user-agent|traceparent|keep-alive|trailer",
        upper: bool, value in "[!-~]{1,9}",
    ) {
        let name = if upper { name.to_uppercase() } else { name };
        let plain = base_headers(&[]).unwrap();
        prop_assert_eq!(base_headers(&[(name, value)]).unwrap(), plain);
    }
}

#[test]
fn empty_data_is_null() {
    let body = envelope(&account("a"), &[sent("e", "E", 1, "i", b"")]);
    assert!(body.ends_with(br#""data":null}]}"#), "{body:?}");
}

#[test]
fn the_headers_of_an_attempt_are_these() {
    let mut headers = base_headers(&[("x-team".to_owned(), "learning".to_owned())]).unwrap();
    let now = Timestamp::from_millis(1_727_414_643_999);
    add_attempt_headers(
        &mut headers,
        "evt_1",
        3,
        NonZeroU64::new(7),
        now,
        Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    )
    .unwrap();
    let seen: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    let agent = format!("Postrider/{}", env!("CARGO_PKG_VERSION"));
    let expected = [
        ("content-type", "application/json"),
        ("user-agent", agent.as_str()),
        ("x-team", "learning"),
        ("webhook-id", "evt_1"),
        ("webhook-timestamp", "1727414643"),
        ("webhook-attempt", "3"),
        ("webhook-sequence", "7"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    for pair in expected {
        assert!(seen.contains(&pair), "{pair:?} in {seen:?}");
    }
    assert_eq!(seen.len(), expected.len());
}

#[test]
fn what_is_no_header_is_refused_without_repeating_its_value() {
    let error = base_headers(&[("x-key".to_owned(), "secret\r\nx: y".to_owned())]).unwrap_err();
    assert_eq!(error.to_string(), "the header x-key cannot be sent");
    assert!(base_headers(&[("x y".to_owned(), "v".to_owned())]).is_err());
    let mut headers = HeaderMap::new();
    assert!(add_attempt_headers(&mut headers, "a\nb", 1, None, Timestamp::default(), None).is_err());
    add_attempt_headers(&mut headers, "a", 1, None, Timestamp::default(), Some("bad\r\nvalue")).unwrap();
    assert!(!headers.contains_key(TRACEPARENT));
}

#[test]
fn a_cloud_event_and_raw_data_are_exactly_these() {
    let mut plain = sent(
        "evt_1",
        "COURSE_COMPLETED",
        1_727_414_643_000,
        "5% \"é\"",
        br#"{"n": 1.0}"#,
    );
    let mut event = (*plain.event).clone();
    event.ordering_key = Some("user/7".into());
    plain.event = Arc::new(event);
    let base = base_headers(&[("ce-source".to_owned(), "mine".to_owned())]).unwrap();
    let made = |format| {
        let mut headers = base.clone();
        let made = body(format, &account("1010"), std::slice::from_ref(&plain), &mut headers).unwrap();
        (String::from_utf8(made.to_vec()).unwrap(), headers)
    };

    let (text, headers) = made(PayloadFormat::CloudEventsStructured);
    let expected = concat!(
        r#"{"specversion":"1.0","id":"evt_1","source":"/accounts/1010","type":"COURSE_COMPLETED","time":"2024-09-27T05:24:03Z","#,
        r#""eventinfo":"5% \"é\"","partitionkey":"user/7","datacontenttype":"application/json","data":{"n": 1.0}}"#,
    );
    assert_eq!(text, expected);
    assert_eq!(headers[CONTENT_TYPE], "application/cloudevents+json; charset=utf-8");

    let (text, headers) = made(PayloadFormat::CloudEventsBinary);
    assert_eq!(text, r#"{"n": 1.0}"#);
    let expected = [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "evt_1"),
        ("ce-source", "/accounts/1010"),
        ("ce-type", "COURSE_COMPLETED"),
        ("ce-time", "2024-09-27T05:24:03Z"),
        ("ce-eventinfo", "5%25%20%22%C3%A9%22"),
        ("ce-partitionkey", "user/7"),
    ];
    for (name, value) in expected {
        assert_eq!(headers.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
    }

    assert_eq!(made(PayloadFormat::Raw), (r#"{"n": 1.0}"#.to_owned(), base.clone()));
    assert_eq!(made(PayloadFormat::Envelope).1, base);
}

proptest! {
    #[test]
    fn a_cloud_event_says_what_was_published_in_both_modes(
        id in "[A-Za-z0-9_:-]{1,64}", name in "[A-Za-z][A-Za-z0-9_.:-]{0,20}", time in 0..253_402_300_799_999_i64, info in "\\PC{1,9}|[\\x00-\\x1f\"%]{1,5}",
    ) {
        let data: &[u8] = b"{\"a\" : 1.0 , \"big\":12345678901234567890123, \"a\":2}";
        let event = [sent(&id, &name, time, &info, data)];
        let mut headers = HeaderMap::new();
        let document = body(PayloadFormat::CloudEventsStructured, &account("acme"), &event, &mut headers).unwrap();
        let value: Value = serde_json::from_slice(&document).unwrap();
        let end = [b"\"data\":", data, b"}"].concat();
        prop_assert!(document.ends_with(&end));
        let alone = body(PayloadFormat::CloudEventsBinary, &account("acme"), &event, &mut headers).unwrap();
        prop_assert_eq!(&alone[..], data);
        for (attribute, wanted) in [("id", &id), ("type", &name), ("eventinfo", &info)] {
            prop_assert_eq!(&value[attribute], wanted);
            let header = headers[format!("ce-{attribute}")].to_str().unwrap();
            prop_assert_eq!(percent_encoding::percent_decode_str(header).decode_utf8().unwrap(), wanted.as_str());
        }
    }
}
