//! Tests of filters: what they say, what is refused, and what they may cost.

use bytes::Bytes;
use postrider_common::id::{AccountId, EventId, EventName};
use postrider_common::model::event_type::Category;
use postrider_common::model::segment::Event;
use postrider_common::time::Timestamp;
use proptest::prelude::*;

use super::*;

fn event(data: &str) -> Event {
    Event {
        account: AccountId::new("a").unwrap(),
        id: EventId::new("e-1").unwrap(),
        name: EventName::new("ORDER_PAID").unwrap(),
        timestamp: Timestamp::from_millis(1_727_414_643_000),
        ordering_key: Some("customer-7".into()),
        expire_time: None,
        event_info: None,
        data: Bytes::from(data.to_owned()),
        accept_time: Timestamp::from_millis(1),
        traceparent: None,
        category: Category::default(),
        not_before_time: None,
    }
}

const ORDER: &str = r#"{"amount": 120, "rate": 0.5, "country": "DE", "note": null, "paid": true, "tags": ["new", "größe"], "large": 18446744073709551615,
    "items": [{"sku": "A", "sizes": [1, 2]}, {"sku": "B", "sizes": [3]}], "a-b": {"x": 1}}"#;

fn judge(text: &str, data: &str) -> Verdict {
    let event = event(data);
    let filter = Filter::compile(text).unwrap_or_else(|flaws| panic!("{text}: {flaws:?}"));
    filter.judge(&Facts::of(&event).unwrap())
}

#[test]
fn what_is_true_of_an_event_matches() {
    for text in [
        "true",
        "event.eventName == 'ORDER_PAID' && event.eventId == \"e-1\"",
        "event.timestamp == 1727414643000",
        "event.orderingKey.startsWith('customer-')",
        "event.data.amount > 100",
        "event.data.amount >= 120.0 && event.data.amount / 7 == 17 && event.data.amount % 7 == 1",
        "event.data.rate < 1 && event.data.rate * 2.0 == 1.0",
        "event.data.country in ['DE', 'FR']",
        "event.data.note == null",
        "event.data.paid",
        "!(event.data.amount < 100) && -event.data.amount == -120",
        "has(event.data.amount) && !has(event.data.missing) && !has(event.eventInfo)",
        "has(event.data.missing) ? event.data.missing == 1 : true",
        "event.data.missing == 1 || event.data.paid",
        "'new' in event.data.tags && 'amount' in event.data",
        "event.data.tags == ['new', 'größe'] && ['new', 'größe'] == event.data.tags",
        "size(event.data.tags) == 2 && event.data.tags[1].size() == 5",
        "event.data.tags.exists(tag, tag.endsWith('e'))",
        "event.data.items.all(item, item.sku != 'C')",
        "event.data.items.exists_one(item, 3 in item.sizes)",
        "event.data.items.exists(item, item.sizes.exists(size, size > 2 && item.sku == 'B'))",
        "event.data.items.filter(item, item.sku == 'A').size() == 1",
        "event.data.items.filter(item, item.sku == 'A')[0].sizes[1] == 2",
        "event.data['a-b'].x == 1 && event['data']['a-b']['x'] == 1",
        "event.data.country.matches('^[A-Z]{2}$') && !event.data.country.matches('F')",
        "event.data.large > 9223372036854775807",
        "event.data.country + 'U' == 'DEU'",
        "double(event.data.amount) / 50.0 > 2.0 && int('12') == 12",
        "event.data.items.exists(event, event.sku == 'A') // the name is taken for the loop",
    ] {
        assert_eq!(judge(text, ORDER), Verdict::Matches, "{text}");
    }
}

#[test]
fn what_is_false_differs_and_what_has_no_value_fails() {
    for text in [
        "false",
        "event.data.amount < 100",
        "event.data.tags.exists(tag, tag == 'old')",
        "event.data.country == 7",
    ] {
        assert_eq!(judge(text, ORDER), Verdict::Differs, "{text}");
    }
    for text in [
        "event.data.missing == 1",
        "event.eventInfo == 'x'",
        "event.data.amount.deeper == 1",
        "event.data.tags[2] == 'x'",
        "event.data.amount > 'x'",
        "event.data.amount / 0 == 1",
        "event.data.amount + 0.5 > 1.0",
        "event.data.amount",
        "event.data.country.matches('x') || event.data.amount.matches('x')",
        "event.data.amount * 9223372036854775807 > 0",
        "event.data.tags.all(tag, tag)",
        "int(event.data.country) == 1",
    ] {
        assert_eq!(judge(text, ORDER), Verdict::Failed, "{text}");
    }
}

#[test]
fn bodies_of_every_kind_can_be_asked_about() {
    for (data, text) in [
        ("[1, 2]", "event.data[0] == 1"),
        ("7", "event.data == 7"),
        ("\"x\"", "event.data == 'x'"),
        ("null", "event.data == null"),
        ("true", "event.data"),
        ("-0.0", "event.data == 0"),
        ("1e300", "event.data > 9223372036854775807"),
        ("{\"n\": 1, \"n\": 2}", "event.data.n == 2"),
    ] {
        assert_eq!(judge(text, data), Verdict::Matches, "{data}");
    }
    assert!(Facts::of(&event("1e999")).is_none(), "no double holds it");
}

fn refused(text: &str) -> Vec<(&'static str, String)> {
    let flaws = Filter::compile(text).expect_err(text);
    flaws.into_iter().map(|flaw| (flaw.reason, flaw.description)).collect()
}

#[test]
fn what_is_no_filter_is_refused_with_its_reason() {
    let many = |count: usize, one: &str| vec![one; count].join("&&");
    let rows = [
        (" ", "MALFORMED"),
        ("event.data.x = 3", "MALFORMED"),
        ("event.data.x ==", "MALFORMED"),
        ("'abc", "MALFORMED"),
        ("event.?data.x == 1", "MALFORMED"),
        ("event.exists(x)", "UNKNOWN_NAME"),
        ("data.x == 1", "UNKNOWN_NAME"),
        ("event.name == 'x'", "UNKNOWN_NAME"),
        ("event.data.tags.exists(t, u == 1)", "UNKNOWN_NAME"),
        ("event.data.tags.exists(t, t == 1) && t == 1", "UNKNOWN_NAME"),
        ("now() > 1", "UNKNOWN_NAME"),
        ("size() == 1", "UNKNOWN_NAME"),
        ("event.data.size(1) == 1", "UNKNOWN_NAME"),
        ("type(event) == int", "UNKNOWN_NAME"),
        ("timestamp('2020-01-01T00:00:00Z') == event.timestamp", "UNKNOWN_NAME"),
        ("matches(event.data, 'x')", "UNKNOWN_NAME"),
        ("optional.none() == 1", "UNKNOWN_NAME"),
        ("event.data.map(x, [x, x]).map(x, [x, x]).size() > 1", "UNSUPPORTED"),
        ("event.data.map(x, x > 1, x + 1) == []", "UNSUPPORTED"),
        ("{'a': 1}.a == 1", "UNSUPPORTED"),
        ("Message{a: 1}.a == 1", "UNSUPPORTED"),
        ("event.data == b'x'", "UNSUPPORTED"),
        ("event.data.x.matches(event.data.y)", "PATTERN"),
        ("event.data.x.matches('(')", "PATTERN"),
        ("event.data.x.matches('(?=a)b')", "PATTERN"),
        ("event.data.x.matches('(a{100}){100}{100}')", "PATTERN"),
        ("1", "NOT_BOOLEAN"),
        ("'true'", "NOT_BOOLEAN"),
        ("[true]", "NOT_BOOLEAN"),
        ("event", "NOT_BOOLEAN"),
        ("event.eventName", "NOT_BOOLEAN"),
        ("1 + 1", "NOT_BOOLEAN"),
        ("event.data.paid ? 1 : true", "NOT_BOOLEAN"),
        ("event.data.filter(x, true)", "NOT_BOOLEAN"),
        ("a.b.exists(c, 1 == 1) == null", "UNKNOWN_NAME"),
    ];
    for (text, reason) in rows {
        let found = refused(text);
        assert!(found.iter().all(|(found, _)| *found == reason), "{text}: {found:?}");
    }
    let long = [
        (format!("true{}", " ".repeat(MAX_BYTES)), "TOO_LARGE"),
        ("(".repeat(10_000), "TOO_LARGE"),
        (many(300, "true"), "TOO_COMPLEX"),
        (
            format!("true == ({}true{})", "!(".repeat(50), ")".repeat(50)),
            "TOO_COMPLEX",
        ),
        (format!("{}1{} == []", "[".repeat(20), "]".repeat(20)), "TOO_COMPLEX"),
        (format!("event.data{} == 1", ".x".repeat(19)), "TOO_COMPLEX"),
        (format!("event.data in [{}]", vec!["1"; 400].join(",")), "TOO_COMPLEX"),
        (format!("event.data.x.matches('{}')", "x".repeat(257)), "PATTERN"),
        (
            "event.data.exists(a, a.exists(b, b.exists(c, c.exists(d, d))))".into(),
            "TOO_COMPLEX",
        ),
    ];
    for (text, reason) in long {
        let found = refused(&text);
        assert!(found.iter().all(|(found, _)| *found == reason), "{text}: {found:?}");
    }
}

#[test]
fn every_mistake_is_named_and_syntax_errors_have_a_place() {
    let reasons: Vec<_> = refused("foo + event.bar + bar()")
        .into_iter()
        .map(|(reason, _)| reason)
        .collect();
    assert_eq!(reasons, ["UNKNOWN_NAME", "UNKNOWN_NAME", "UNKNOWN_NAME", "NOT_BOOLEAN"]);
    let (_, description) = refused("event.data.x ==\n && 3").remove(0);
    assert!(description.starts_with("line 2, column 2: "), "{description}");
}

#[test]
fn the_largest_filters_that_are_taken_fit_half_of_a_threads_stack() {
    let within = std::thread::Builder::new().stack_size(1 << 20).spawn(|| {
        let texts = [
            format!("{}true", "!".repeat(MAX_TOKENS - 1)),
            format!("event.data{} == 1", ".x".repeat(17)),
            format!("1{} == 1", " + 1".repeat(18)),
            format!("event.data{} == 1", ".size()".repeat(17)),
            format!("{}true{}", "event.data[".repeat(14), "]".repeat(14)),
            format!("{}true{}", "(true == ".repeat(15), ")".repeat(15)),
            "event.data.exists(a, a.exists(b, b.exists(c, c == 1)))".to_owned(),
        ];
        for text in texts {
            judge(&text, "[[[1]]]");
        }
        // What is not taken must not get far.
        for (open, close) in [
            ("(", ")"),
            ("[", "]"),
            ("{", "}"),
            ("-(", ")"),
            ("a[", "]"),
            ("f(", ")"),
            ("a?b:", ""),
            ("a==", ""),
            ("a.", ""),
        ] {
            for count in [10, 50, 120, 250, 500] {
                let _ = Filter::compile(&format!("{}a{}", open.repeat(count), close.repeat(count)));
                let _ = Filter::compile(&open.repeat(count));
            }
        }
    });
    within.unwrap().join().unwrap();
}

#[test]
fn the_work_is_bounded_by_the_weight_of_the_event_and_the_form_of_the_expression() {
    let heavy = event(&format!("[{}1]", "1,".repeat(100_000)));
    let facts = Facts::of(&heavy).unwrap();
    let light = event("{\"amount\":1,\"tags\":[\"a\"]}");
    let light = Facts::of(&light).unwrap();
    let work = |text: &str, facts: &Facts<'_>| Filter::compile(text).unwrap().work(facts);
    // A field costs the same in every event.
    assert_eq!(
        work("event.data.amount > 100", &weightless()),
        work("event.data.amount > 100", &facts)
    );
    // Loops within loops go over an element's own elements: in proportion to the event.
    let nested = "event.data.exists(x, x.items.exists(y, y.size > 3))";
    assert!(work(nested, &facts) < 400 * facts.weight());
    // Over the whole event again for each element: not in proportion, and far too much.
    assert!(work("event.data.exists(x, x in event.data)", &facts) > 1_000 * facts.weight());
    assert!(work("event.data.exists(x, x in event.data)", &light) < 1_000_000);
}

/// An event of next to no weight.
fn weightless() -> Facts<'static> {
    let event: &'static Event = Box::leak(Box::new(event("1")));
    Facts::of(event).unwrap()
}

fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("event".to_owned()),
        Just("event.data".to_owned()),
        Just("event.eventName".to_owned()),
        Just("x".to_owned()),
        Just("y".to_owned()),
        Just("1".to_owned()),
        Just("'a'".to_owned()),
        Just("true".to_owned()),
    ];
    leaf.prop_recursive(5, 40, 3, |inner| {
        prop_oneof![
            (inner.clone(), "a|b|size").prop_map(|(of, field)| format!("{of}.{field}")),
            (inner.clone(), inner.clone()).prop_map(|(of, at)| format!("{of}[{at}]")),
            (inner.clone(), "==|!=|<|in|\\+|-|&&|\\|\\|", inner.clone())
                .prop_map(|(left, operator, right)| format!("({left} {operator} {right})")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            (inner.clone(), "contains|startsWith|endsWith", inner.clone())
                .prop_map(|(of, name, with)| format!("{of}.{name}({with})")),
            inner.clone().prop_map(|of| format!("size({of})")),
            inner.clone().prop_map(|of| format!("!{of}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[{a}, {b}]")),
            (inner.clone(), "exists|all|exists_one|filter", "x|y", inner)
                .prop_map(|(of, name, variable, with)| format!("{of}.{name}({variable}, {with})")),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_makes_compiling_panic(text in "\\PC{0,60}|([a-z.()\\[\\]{}'\"?:!&|=<>+*/%,0-9 -]|event|data|exists|has|matches){0,40}") {
        if let Err(flaws) = Filter::compile(&text) {
            prop_assert!(!flaws.is_empty());
        }
    }

    #[test]
    fn what_compiles_says_the_same_of_the_same_event_every_time(text in expression(), data in "\\{\"a\":(\\[(1|\"a\"|\\[\\]|\\[1,2\\])\\]|2|\"x\"),\"b\":\\{\"a\":1\\}\\}|\\[1,\"a\",\\[\\]\\]") {
        let event = event(&data);
        let facts = Facts::of(&event).unwrap();
        if let Ok(filter) = Filter::compile(&text) {
            let verdict = filter.judge(&facts);
            prop_assert_ne!(verdict, Verdict::Unjudged);
            prop_assert_eq!(filter.judge(&facts), verdict);
            prop_assert_eq!(Filter::compile(&text).unwrap(), filter);
        }
    }

    #[test]
    fn two_elements_take_no_more_work_than_one_that_weighs_as_much_as_both(text in expression(), first in 0_u64..1 << 20, second in 0_u64..1 << 20) {
        if let Ok(expression) = PrattParser::new().max_recursion_depth(MAX_NESTING).parse(&text) {
            let work = |weight| cost::of_element(&expression, weight);
            let apart = u128::from(work(first)) + u128::from(work(second));
            let together = u128::from(work(first + second)) + u128::from(work(0));
            // Divisions round, once in each loop.
            prop_assert!(apart <= together + together / 1000 + 1000, "{} > {}", apart, together);
        }
    }
}
