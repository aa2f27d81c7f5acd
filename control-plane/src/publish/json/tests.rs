//! Tests of JSON bodies.

use proptest::prelude::*;

use super::*;

fn json(numbers: BoxedStrategy<serde_json::Value>) -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        numbers,
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 40, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            proptest::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_number() -> BoxedStrategy<serde_json::Value> {
    prop_oneof![any::<i64>().prop_map(Into::into), any::<f64>().prop_map(Into::into)].boxed()
}

/// Numbers that `serde_json` reads exactly, and whose kind their text tells.
fn plain_number() -> BoxedStrategy<serde_json::Value> {
    let fraction = any::<i32>().prop_map(|number| (f64::from(number) + 0.5).into());
    prop_oneof![any::<i32>().prop_map(Into::into), fraction].boxed()
}

fn value(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(*value),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
        serde_json::Value::String(text) => Kind::StringValue(text.clone()),
        serde_json::Value::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values.iter().map(value).collect(),
        }),
        serde_json::Value::Object(map) => Kind::StructValue(Struct {
            fields: map.iter().map(|(key, json)| (key.clone(), value(json))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}

fn object(json: serde_json::Value) -> Struct {
    Struct {
        fields: [("x".to_owned(), value(&json))].into(),
    }
}

proptest! {
    #[test]
    fn the_text_of_every_json_value_passes(json in json(any_number())) {
        prop_assert_eq!(check(json.to_string().as_bytes()), Ok(()));
        prop_assert_eq!(check(serde_json::to_string_pretty(&json).unwrap().as_bytes()), Ok(()));
    }

    #[test]
    fn text_passes_only_if_a_strict_parser_reads_it(text in "[\\[\\]{}\",:0-9a-z\\\\u .eE+-]{0,24}|\"(\\\\u[dD][8-9a-fA-F]0[0-9]|a){0,3}\"") {
        // The strict parser refuses numbers beyond doubles, which are valid JSON: they cannot be told from bad ones here.
        let strict = serde_json::from_str::<serde_json::Value>(&text);
        let out_of_range = strict.as_ref().is_err_and(|error| error.to_string().contains("out of range"));
        prop_assert!(out_of_range || check(text.as_bytes()).is_ok() == strict.is_ok(), "{text}");
    }

    #[test]
    fn no_bytes_make_the_check_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = check(&bytes);
    }

    #[test]
    fn a_printed_struct_reads_as_the_value_it_was(json in json(plain_number())) {
        let text = print(&object(json.clone())).unwrap();
        prop_assert_eq!(check(&text), Ok(()));
        let read: serde_json::Value = serde_json::from_slice(&text).unwrap();
        prop_assert_eq!(&read["x"], &json);
    }

    #[test]
    fn a_printed_number_is_the_number_it_was(number in any::<f64>()) {
        let value = Value { kind: Some(Kind::NumberValue(number)) };
        let text = print(&Struct { fields: [("x".to_owned(), value)].into() });
        prop_assert_eq!(text.is_ok(), number.is_finite());
        if let Ok(text) = text {
            let text = String::from_utf8(text).unwrap();
            let number_text = text.strip_prefix("{\"x\":").unwrap().strip_suffix('}').unwrap();
            prop_assert_eq!(number_text.parse(), Ok(number));
        }
    }
}

#[test]
fn what_receivers_could_not_read_is_refused_with_its_place() {
    let cases: [(&[u8], &str, &str); 16] = [
        (b"", "INVALID_JSON", "EOF while parsing a value at line 1 column 0"),
        (b"\xef\xbb\xbf{}", "INVALID_JSON", "byte order mark"),
        (b"{} x", "INVALID_JSON", "trailing characters at line 1 column 4"),
        (b"{}{}", "INVALID_JSON", "trailing characters at line 1 column 3"),
        (b"NaN", "INVALID_JSON", "line 1 column 1"),
        (b"[Infinity]", "INVALID_JSON", "line 1 column 2"),
        (b"{\"a\":1,}", "INVALID_JSON", "line 1 column 8"),
        (b"{\n \"a\" 1}", "INVALID_JSON", "line 2 column 6"),
        (b"01", "INVALID_JSON", "line 1 column 2"),
        (b"[1,\n\"\xff\"]", "INVALID_JSON", "is not UTF-8 at line 2 column 2"),
        (b"\"\x01\"", "INVALID_JSON", "control character"),
        (b"\"\\x\"", "INVALID_JSON", "invalid escape"),
        (
            b"\"\\ud800\"",
            "INVALID_JSON",
            "half of a surrogate pair at line 1 column 2",
        ),
        (b"\"\\udc00\"", "INVALID_JSON", "half of a surrogate pair"),
        (b"\"\\ud800\\u0041\"", "INVALID_JSON", "half of a surrogate pair"),
        (
            b"\"\\\\\\ud83d\"",
            "INVALID_JSON",
            "half of a surrogate pair at line 1 column 4",
        ),
    ];
    for (text, reason, description) in cases {
        let flaw = check(text).unwrap_err();
        assert_eq!(flaw.reason, reason, "{text:?}");
        assert!(flaw.description.contains(description), "{text:?}: {}", flaw.description);
    }
}

#[test]
fn what_is_unusual_but_valid_passes() {
    for text in [
        "0",
        "null",
        "\"\"",
        " [ ] ",
        "{\"a\":1,\"a\":2}",
        "123456789012345678901234567890",
        "1e999",
        "-0.0e-0",
        "\"\\ud83d\\ude00 \\\\u \\u0041\"",
        "\"\\\\ud800\"",
        "\"[[[{{{\"",
    ] {
        assert_eq!(check(text.as_bytes()), Ok(()), "{text}");
    }
}

#[test]
fn nesting_is_allowed_up_to_the_limit() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |depth: usize| format!("{}0{}", open.repeat(depth), close.repeat(depth));
        assert_eq!(check(nested(MAX_DEPTH).as_bytes()), Ok(()));
        assert_eq!(check(nested(MAX_DEPTH + 1).as_bytes()), Err(too_deep()));
        assert_eq!(check(nested(20_000).as_bytes()), Err(too_deep()));
    }
    let siblings = format!("[{}[]]", "[],".repeat(1000));
    assert_eq!(check(siblings.as_bytes()), Ok(()));
    let mut json = serde_json::Value::Null;
    for _ in 0..MAX_DEPTH - 1 {
        json = vec![json].into();
    }
    assert!(print(&object(json.clone())).is_ok());
    assert_eq!(print(&object(vec![json].into())), Err(too_deep()));
}

#[test]
fn integral_numbers_print_as_integers_and_unwritable_ones_are_refused() {
    let number = |number: f64| {
        let fields = [(
            "x".to_owned(),
            Value {
                kind: Some(Kind::NumberValue(number)),
            },
        )]
        .into();
        print(&Struct { fields }).map(|text| String::from_utf8(text).unwrap())
    };
    for (value, text) in [
        (1.0, "1"),
        (-0.0, "0"),
        (1.5, "1.5"),
        (9_007_199_254_740_992.0, "9007199254740992"),
        (-9_007_199_254_740_992.0, "-9007199254740992"),
        (1e300, "1e+300"),
    ] {
        assert_eq!(number(value).unwrap(), format!("{{\"x\":{text}}}"));
    }
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(number(value).unwrap_err().reason, "NOT_FINITE");
    }
    let no_kind = Struct {
        fields: [("x".to_owned(), Value { kind: None })].into(),
    };
    assert_eq!(print(&no_kind).unwrap_err().reason, "INVALID_JSON");
}
