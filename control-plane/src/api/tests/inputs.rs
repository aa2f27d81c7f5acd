//! Bad input of webhooks: every row is refused with its code, field and reason, on create and on update, and nothing is stored.

use v1::Webhook;

use super::*;

mod values;

/// A mistake: what it is, how a good webhook gets it, and what is said about it.
pub(super) type Row = (String, Box<dyn Fn(&mut Webhook)>, &'static str, &'static str);

pub(super) fn row(
    name: impl Into<String>,
    change: impl Fn(&mut Webhook) + 'static,
    field: &'static str,
    reason: &'static str,
) -> Row {
    (name.into(), Box::new(change), field, reason)
}

/// Every row on create, on update with a mask and on update without one where the mistake is a set field.
pub(super) async fn refused(rows: Vec<Row>) {
    let mut server = serve().await;
    let present = server.create("present", valid()).await;
    let before = server.revision().await;
    for (name, change, field, reason) in rows {
        let expected = vec![(field.to_owned(), reason.to_owned())];
        let mut webhook = valid();
        change(&mut webhook);
        let request = v1::CreateWebhookRequest {
            webhook: Some(webhook.clone()),
            ..create_request()
        };
        for validate_only in [false, true] {
            let request = v1::CreateWebhookRequest {
                validate_only,
                ..request.clone()
            };
            let status = server.webhooks.create_webhook(request).await.expect_err(&name);
            assert_eq!(mistakes(&status), expected, "create: {name}");
        }
        let request = v1::UpdateWebhookRequest {
            webhook: Some(Webhook {
                name: present.name.clone(),
                ..webhook
            }),
            update_mask: mask(&["*"]),
            validate_only: false,
        };
        let status = server.webhooks.update_webhook(request).await.expect_err(&name);
        assert_eq!(mistakes(&status), expected, "update: {name}");
    }
    assert_eq!(server.revision().await, before);
}

#[tokio::test]
async fn urls_that_are_not_listeners_are_refused() {
    let rows = [
        (vec![""], "REQUIRED"),
        (
            vec![
                "example.com",
                "//example.com/x",
                "/x",
                "http:127.0.0.1",
                "https:example.com",
            ],
            "RELATIVE",
        ),
        (
            vec![
                "ftp://example.com/",
                "file:///etc/passwd",
                "gopher://example.com/",
                "javascript:alert(1)",
                "ws://example.com/",
            ],
            "SCHEME",
        ),
        (
            vec!["http://u:p@example.com/", "http://u@example.com/"],
            "CREDENTIALS_IN_URL",
        ),
        (vec!["http://example.com/#x", "http://example.com/a?b#"], "FRAGMENT"),
        (
            vec![
                "http://example.com:0/",
                "http://example.com:65536/",
                "http://example.com:80:80/",
                "http://example.com:22/",
                "http://example.com:25/",
                "http://example.com:6379/",
            ],
            "PORT",
        ),
        (
            vec![
                "http://127.0.0.1/",
                "http://localhost/",
                "http://LOCALHOST./",
                "http://foo.localhost/",
                "http://2130706433/",
                "http://0x7f.1/",
                "http://0x7f000001/",
                "http://0x7f.0x0.0x0.0x1/",
                "http://0177.0.0.1/",
                "http://127.1/",
                "http://0/",
                "http://127.0.0.1./",
                "http://①②⑦.⓪.⓪.①/",
                "http://１２７.0.0.1/",
                "http://%31%32%37.0.0.1/",
                "http://[::1]/",
                "http://[::]/",
                "http://[::ffff:127.0.0.1]/",
                "http://[::ffff:7f00:1]/",
                "http://[::127.0.0.1]/",
                "http://[64:ff9b::7f00:1]/",
                "http://[64:ff9b::a9fe:a9fe]/",
                "http://[2002:7f00:1::1]/",
                "http://[fec0::1]/",
                "http://[fd00:ec2::254]/",
                "http://[fe80::1]/",
                "http://[ff02::1]/",
                "http://[100::1]/",
                "http://[2001:db8::1]/",
                "http://10.1.2.3/",
                "http://172.16.0.1/",
                "http://192.168.1.1/",
                "http://100.64.0.1/",
                "http://169.254.169.254/",
                "http://192.0.0.1/",
                "http://192.88.99.1/",
                "http://198.18.0.1/",
                "http://203.0.113.1/",
                "http://224.0.0.1/",
                "http://240.0.0.1/",
                "http://255.255.255.255/",
                "http://100.100.100.200/",
            ],
            "FORBIDDEN_ADDRESS",
        ),
        (
            vec![
                "http://256.256.256.256/",
                "http://1.2.3.4.5/",
                "http://4294967296/",
                "http://[fe80::1%25eth0]/",
                "http://[::1%lo]/",
                "http:///127.0.0.1",
                "http://",
                "http://a..b/",
                "http://.com/",
                "http://-a.com/",
                "http://xn--/",
            ],
            "HOST",
        ),
        (
            vec!["http:\\\\127.0.0.1\\", "http://example.com\\@169.254.169.254/"],
            "CONTROL_CHARACTER",
        ),
        (
            vec![
                "http://exa\tmple.com/",
                "http://example.com/\r\nx",
                " http://example.com/",
                "http://example.com/a b",
                "http://example.com/\u{7f}",
            ],
            "CONTROL_CHARACTER",
        ),
    ];
    let mut all = Vec::new();
    for (texts, reason) in rows {
        for text in texts {
            all.push(row(
                text,
                move |webhook| webhook.target_url = text.into(),
                "webhook.target_url",
                reason,
            ));
        }
    }
    let long: [(String, &'static str); 3] = [
        (format!("http://example.com/{}", "x".repeat(2048)), "TOO_LONG"),
        (format!("http://{}.com/", "a".repeat(64)), "HOST"),
        (format!("http://{}com/", "a.".repeat(126)), "HOST"),
    ];
    for (text, reason) in long {
        let name = text.clone();
        all.push(row(
            name,
            move |webhook| webhook.target_url.clone_from(&text),
            "webhook.target_url",
            reason,
        ));
    }
    refused(all).await;
}

#[tokio::test]
async fn headers_that_cannot_or_must_not_be_sent_are_refused() {
    let header = |name: &str, value: &str| v1::Header {
        name: name.into(),
        value: value.into(),
    };
    let one = |name: &'static str, value: &'static str, field, reason| {
        let header = header(name, value);
        row(
            format!("{name:?}: {value:?}"),
            move |webhook: &mut Webhook| webhook.headers = vec![header.clone()],
            field,
            reason,
        )
    };
    const NAME: &str = "webhook.headers[0].name";
    const VALUE: &str = "webhook.headers[0].value";
    let mut rows: Vec<Row> = ["a\r\nb", "a\0", "a\u{7f}", "café", "\t"]
        .map(|value| one("x-a", value, VALUE, "CONTROL_CHARACTER"))
        .into();
    rows.extend(["x a", "x:a", "", "é", ":authority", "x\r\n"].map(|name| one(name, "v", NAME, "MALFORMED")));
    let reserved = [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "TE",
        "Trailer",
        "Upgrade",
        "Expect",
        "Proxy-Authorization",
        "Proxy-X",
        "Keep-Alive",
        "webhook-id",
        "Webhook-Signature",
        "Content-Type",
        "User-Agent",
    ];
    rows.extend(reserved.map(|name| one(name, "v", NAME, "RESERVED")));
    let (a, b) = (header("X-A", "1"), header("x-a", "2"));
    rows.push(row(
        "a header twice",
        move |webhook| webhook.headers = vec![a.clone(), b.clone()],
        "webhook.headers[1].name",
        "DUPLICATE",
    ));
    let authorization = header("Authorization", "Bearer x");
    rows.push(row(
        "authorization beside basic",
        move |webhook| {
            webhook.headers = vec![authorization.clone()];
            webhook.auth = basic("alice", "correct horse");
        },
        NAME,
        "CONFLICT",
    ));
    let many = |count: usize, name: usize, value: usize| {
        let headers = (0..count).map(|index| v1::Header {
            name: format!("x{index:0name$}"),
            value: "v".repeat(value),
        });
        headers.collect::<Vec<_>>()
    };
    for (name, headers, field) in [
        ("33 headers", many(33, 1, 1), "webhook.headers"),
        ("a long name", many(1, 128, 1), NAME),
        ("a long value", many(1, 1, 2049), VALUE),
        ("more than 8 KiB", many(5, 1, 2000), "webhook.headers"),
    ] {
        rows.push(row(
            name,
            move |webhook| webhook.headers.clone_from(&headers),
            field,
            "TOO_LARGE",
        ));
    }
    refused(rows).await;
}

pub(super) fn delivery(
    change: impl Fn(&mut v1::DeliveryOptions) + 'static,
    field: &'static str,
    reason: &'static str,
) -> Row {
    let change = move |webhook: &mut Webhook| change(webhook.delivery.get_or_insert_default());
    row(format!("{field} {reason}"), change, field, reason)
}

fn retry(change: impl Fn(&mut v1::RetryPolicy) + 'static, field: &'static str, name: &str) -> Row {
    let change = move |webhook: &mut Webhook| change(webhook.retry.get_or_insert_default());
    row(format!("{field} {name}"), change, field, "OUT_OF_RANGE")
}

#[tokio::test]
async fn numbers_and_durations_out_of_range_are_refused() {
    let mut rows = Vec::new();
    let durations = [
        (0, 0),
        (0, 999_999_999),
        (60, 1_000_000),
        (-5, 0),
        (5, -1),
        (-5, 1),
        (315_576_000_001, 0),
        (i64::MAX, i32::MAX),
        (i64::MIN, i32::MIN),
        (5, 1_000_000_000),
    ];
    for (seconds, nanos) in durations {
        let value = prost_types::Duration { seconds, nanos };
        let (timeout, delay, most, age) = (value, value, value, value);
        rows.push(delivery(
            move |delivery| delivery.timeout = Some(timeout),
            "webhook.delivery.timeout",
            "OUT_OF_RANGE",
        ));
        // Sixty seconds and a bit, and a second less a bit, are fine for retries.
        if [0, 60].contains(&seconds) && nanos > 0 {
            continue;
        }
        rows.push(retry(
            move |retry| retry.initial_delay = Some(delay),
            "webhook.retry.initial_delay",
            &format!("{value:?}"),
        ));
        rows.push(retry(
            move |retry| retry.max_delay = Some(most),
            "webhook.retry.max_delay",
            &format!("{value:?}"),
        ));
        rows.push(retry(
            move |retry| retry.max_age = Some(age),
            "webhook.retry.max_age",
            &format!("{value:?}"),
        ));
    }
    for attempts in [-1, 1001, 1_000_000, i32::MIN] {
        rows.push(retry(
            move |retry| retry.max_attempts = attempts,
            "webhook.retry.max_attempts",
            &attempts.to_string(),
        ));
    }
    for multiplier in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.99, -2.0, 10.01] {
        rows.push(retry(
            move |retry| retry.multiplier = multiplier,
            "webhook.retry.multiplier",
            &multiplier.to_string(),
        ));
    }
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    rows.push(retry(
        move |retry| {
            retry.initial_delay = seconds(600);
            retry.max_delay = seconds(500);
        },
        "webhook.retry.max_delay",
        "base above max",
    ));
    rows.push(retry(
        move |retry| retry.initial_delay = seconds(301),
        "webhook.retry.max_delay",
        "base above the default max",
    ));
    for most in [-1, 1001] {
        rows.push(delivery(
            move |delivery| delivery.max_in_flight = most,
            "webhook.delivery.max_in_flight",
            "OUT_OF_RANGE",
        ));
    }
    for per_second in [0.0, -1.0, 0.009, 10_000.5, f64::NAN, f64::INFINITY] {
        rows.push(delivery(
            move |delivery| delivery.rate_limit = Some(v1::RateLimit { per_second, burst: 1 }),
            "webhook.delivery.rate_limit.per_second",
            "OUT_OF_RANGE",
        ));
    }
    for burst in [-1, 10_001] {
        rows.push(delivery(
            move |delivery| {
                delivery.rate_limit = Some(v1::RateLimit { per_second: 1.0, burst });
            },
            "webhook.delivery.rate_limit.burst",
            "OUT_OF_RANGE",
        ));
    }
    refused(rows).await;
}
