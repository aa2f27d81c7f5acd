//! Tests of admission.

use postrider_common::entropy::SystemEntropy;
use proptest::prelude::*;
use prost_types::value::Kind;

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_727_414_643_123);

fn admitted(request: Request) -> Result<Admitted, Vec<(String, &'static str)>> {
    admit(request, NOW, &SystemEntropy::seeded(1)).map_err(|refused| {
        let each = refused.violations.iter();
        each.map(|violation| (violation.field.clone(), violation.reason))
            .collect()
    })
}

fn mistakes(request: Request) -> Vec<(String, &'static str)> {
    admitted(request).unwrap_err()
}

fn event(data: impl Into<Bytes>) -> v1::Event {
    v1::Event {
        event_name: "A".into(),
        body: Some(v1::event::Body::DataJson(data.into())),
        ..v1::Event::default()
    }
}

fn request(events: Vec<v1::Event>) -> Request {
    Request {
        parent: "accounts/1010".into(),
        events,
        ..Request::default()
    }
}

fn one(change: impl FnOnce(&mut v1::Event)) -> Request {
    let mut event = event("{}");
    change(&mut event);
    request(vec![event])
}

fn largest() -> Vec<u8> {
    let mut body = vec![b' '; MAX_BODY_BYTES];
    body[0] = b'1';
    body
}

fn moment(seconds: i64, nanos: i32) -> Option<ProtoTimestamp> {
    Some(ProtoTimestamp { seconds, nanos })
}

#[test]
fn a_request_becomes_events_with_the_moment_of_acceptance_and_ids_of_their_own() {
    let mut given = event(r#"{"a":1,"a":123456789012345678901234567890}"#);
    given.event_id = "x:1".into();
    given.timestamp = moment(7, 8_999_999);
    given.expire_time = moment(253_402_300_799, 999_999_999);
    given.ordering_key = "k!".into();
    given.event_info = "é".repeat(MAX_EVENT_INFO);
    let mut request = request(vec![event("[]"), given]);
    request.traceparent = traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let admitted = admitted(request).unwrap();
    assert_eq!(admitted.account.as_str(), "1010");
    assert_eq!(admitted.identity, None);
    let [plain, full] = admitted.events.as_slice() else {
        panic!()
    };
    assert_eq!(plain.id.as_str().len(), 36);
    assert_eq!(plain.id.as_str().as_bytes()[14], b'7');
    assert_eq!((plain.timestamp, plain.accept_time), (NOW, NOW));
    assert_eq!((plain.expire_time, plain.event_info.clone()), (None, None));
    assert_eq!(full.id.as_str(), "x:1");
    assert_eq!(full.timestamp, Timestamp::from_millis(7_008));
    assert_eq!(full.expire_time, Some(Timestamp::MAX));
    assert_eq!(full.ordering_key.as_deref(), Some("k!"));
    assert_eq!(&full.data[..], br#"{"a":1,"a":123456789012345678901234567890}"#);
    assert!(full.traceparent.is_some());
}

#[test]
fn each_mistake_is_named_by_its_path_and_reason() {
    let cases: Vec<(Request, &str, &str)> = vec![
        (
            Request {
                parent: String::new(),
                ..one(|_| ())
            },
            "parent",
            "REQUIRED",
        ),
        (
            Request {
                parent: "accounts/".into(),
                ..one(|_| ())
            },
            "parent",
            "MALFORMED",
        ),
        (
            Request {
                parent: "accounts/A".into(),
                ..one(|_| ())
            },
            "parent",
            "MALFORMED",
        ),
        (
            Request {
                parent: "accounts/a/webhooks/b".into(),
                ..one(|_| ())
            },
            "parent",
            "MALFORMED",
        ),
        (
            Request {
                parent: "tenants/a".into(),
                ..one(|_| ())
            },
            "parent",
            "MALFORMED",
        ),
        (
            Request {
                request_id: "x".into(),
                ..one(|_| ())
            },
            "request_id",
            "MALFORMED",
        ),
        (request(vec![]), "events", "REQUIRED"),
        (request(vec![event("1"); MAX_EVENTS + 1]), "events", "TOO_MANY"),
        (
            one(|event| event.event_id = "a.b".into()),
            "events[0].event_id",
            "MALFORMED",
        ),
        (
            one(|event| event.event_id = "é".into()),
            "events[0].event_id",
            "MALFORMED",
        ),
        (
            one(|event| event.event_id = "a".repeat(65)),
            "events[0].event_id",
            "MALFORMED",
        ),
        (
            one(|event| event.event_name = String::new()),
            "events[0].event_name",
            "REQUIRED",
        ),
        (
            one(|event| event.event_name = ".a".into()),
            "events[0].event_name",
            "MALFORMED",
        ),
        (
            one(|event| event.event_name = "a".repeat(129)),
            "events[0].event_name",
            "MALFORMED",
        ),
        (
            one(|event| event.event_name = "postrider.webhook.suspended".into()),
            "events[0].event_name",
            "RESERVED",
        ),
        (
            one(|event| event.timestamp = moment(-1, 0)),
            "events[0].timestamp",
            "OUT_OF_RANGE",
        ),
        (
            one(|event| event.timestamp = moment(253_402_300_800, 0)),
            "events[0].timestamp",
            "OUT_OF_RANGE",
        ),
        (
            one(|event| event.timestamp = moment(i64::MAX, 0)),
            "events[0].timestamp",
            "OUT_OF_RANGE",
        ),
        (
            one(|event| event.timestamp = moment(1, -1)),
            "events[0].timestamp",
            "OUT_OF_RANGE",
        ),
        (
            one(|event| event.timestamp = moment(1, 1_000_000_000)),
            "events[0].timestamp",
            "OUT_OF_RANGE",
        ),
        (
            one(|event| event.expire_time = moment(1_727_414_643, 123_000_000)),
            "events[0].expire_time",
            "NOT_IN_FUTURE",
        ),
        (
            one(|event| event.expire_time = moment(253_402_300_800, 0)),
            "events[0].expire_time",
            "OUT_OF_RANGE",
        ),
        (
            one(|event| event.not_before_time = moment(1_727_414_643 + 30 * 24 * 3600 + 1, 0)),
            "events[0].not_before_time",
            "OUT_OF_RANGE",
        ),
        (
            one(|event| event.not_before_time = moment(-1, 0)),
            "events[0].not_before_time",
            "OUT_OF_RANGE",
        ),
        (
            one(|event| {
                event.expire_time = moment(1_727_414_700, 0);
                event.not_before_time = moment(1_727_414_700, 0);
            }),
            "events[0].not_before_time",
            "INCOMPATIBLE",
        ),
        (
            one(|event| event.ordering_key = "a b".into()),
            "events[0].ordering_key",
            "MALFORMED",
        ),
        (
            one(|event| event.ordering_key = "a".repeat(129)),
            "events[0].ordering_key",
            "MALFORMED",
        ),
        (
            one(|event| event.event_info = "é".repeat(257)),
            "events[0].event_info",
            "TOO_LONG",
        ),
        (one(|event| event.body = None), "events[0].data", "REQUIRED"),
        (request(vec![event("")]), "events[0].data_json", "INVALID_JSON"),
        (
            request(vec![event("{\"a\":NaN}")]),
            "events[0].data_json",
            "INVALID_JSON",
        ),
        (
            request(vec![event("[".repeat(128) + &"]".repeat(128))]),
            "events[0].data_json",
            "TOO_DEEP",
        ),
        (
            request(vec![event(vec![b' '; MAX_BODY_BYTES + 1])]),
            "events[0].data_json",
            "TOO_LARGE",
        ),
        (request(vec![event(largest()); 5]), "events", "TOO_LARGE"),
    ];
    for (request, field, reason) in cases {
        assert_eq!(mistakes(request), [(field.to_owned(), reason)]);
    }
}

#[test]
fn all_mistakes_of_a_request_are_named_at_once_and_none_is_accepted() {
    let mut bad = request(vec![event("1"); 18]);
    bad.parent = "x".into();
    bad.request_id = "y".into();
    bad.events[3].body = Some(v1::event::Body::DataJson("{".into()));
    bad.events[17].event_name = "1".into();
    bad.events[17].event_id = " ".into();
    let expected = [
        ("parent", "MALFORMED"),
        ("request_id", "MALFORMED"),
        ("events[3].data_json", "INVALID_JSON"),
        ("events[17].event_id", "MALFORMED"),
        ("events[17].event_name", "MALFORMED"),
    ];
    assert_eq!(
        mistakes(bad),
        expected.map(|(field, reason)| (field.to_owned(), reason))
    );
}

#[test]
fn the_largest_request_is_accepted() {
    let body = largest();
    assert_eq!(body.len(), MAX_BODY_BYTES);
    assert!(admitted(request(vec![event(body); 4])).is_ok());
    assert!(admitted(request(vec![event("1"); MAX_EVENTS])).is_ok());
}

#[test]
fn a_struct_becomes_json_text() {
    let fields = [
        ("a", Kind::NumberValue(1_727_414_643_000.0)),
        ("b", Kind::StringValue("é\n".into())),
    ];
    let fields = fields.map(|(key, kind)| (key.to_owned(), prost_types::Value { kind: Some(kind) }));
    let object = prost_types::Struct { fields: fields.into() };
    let accepted = admitted(one(|event| event.body = Some(v1::event::Body::Data(object)))).unwrap();
    assert_eq!(
        &accepted.events[0].data[..],
        "{\"a\":1727414643000,\"b\":\"é\\n\"}".as_bytes()
    );
    let nan = prost_types::Value {
        kind: Some(Kind::NumberValue(f64::NAN)),
    };
    let object = prost_types::Struct {
        fields: [("a".to_owned(), nan)].into(),
    };
    let refused = mistakes(one(|event| event.body = Some(v1::event::Body::Data(object))));
    assert_eq!(refused, [("events[0].data".to_owned(), "NOT_FINITE")]);
}

#[test]
fn the_fingerprint_is_of_the_events_as_they_were_given() {
    let fingerprint = |events| {
        let request_id = "7c1f0a52-3f64-4b52-9d6a-0d5f3f6f7a11".into();
        admitted(Request {
            request_id,
            ..request(events)
        })
        .unwrap()
        .identity
        .unwrap()
        .fingerprint
    };
    assert_eq!(fingerprint(vec![event("1")]), fingerprint(vec![event("1")]));
    assert_ne!(fingerprint(vec![event("1")]), fingerprint(vec![event("1 ")]));
    assert_ne!(fingerprint(vec![event("1")]), fingerprint(vec![event("1"), event("1")]));
}

#[test]
fn only_a_valid_trace_context_is_passed_on() {
    let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(traceparent(valid).as_deref(), Some(valid));
    for bad in [
        "",
        "00",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
    ] {
        assert_eq!(traceparent(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn no_texts_make_admission_panic_and_every_mistake_has_a_path(
        parent in "(accounts/)?\\PC{0,9}", id in "\\PC{0,9}", name in "\\PC{0,9}", key in "\\PC{0,9}", body in proptest::collection::vec(any::<u8>(), 0..9),
        seconds: i64, nanos: i32,
    ) {
        let mut event = event(body);
        event.event_id = id;
        event.event_name = name;
        event.ordering_key = key;
        event.timestamp = moment(seconds, nanos);
        event.expire_time = moment(seconds, nanos);
        event.not_before_time = moment(seconds, nanos);
        if let Err(mistakes) = admitted(Request { parent, ..request(vec![event]) }) {
            prop_assert!(!mistakes.is_empty());
            prop_assert!(mistakes.iter().all(|(field, _)| field == "parent" || field.starts_with("events[0].")));
        }
    }
}
