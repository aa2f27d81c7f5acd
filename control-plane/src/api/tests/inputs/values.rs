//! Expressions, failures, values, texts, and many mistakes at once.

use super::*;

#[tokio::test]
async fn expressions_that_cannot_be_filters_are_refused() {
    let large = format!("event.data.x == '{}'", "x".repeat(4096));
    let nested = format!("{}true{}", "!(".repeat(60), ")".repeat(60));
    let rows = [
        (" ", "MALFORMED"),
        ("event.data.x ==", "MALFORMED"),
        ("event.data.x = 1", "MALFORMED"),
        ("\0", "MALFORMED"),
        ("amount > 100", "UNKNOWN_NAME"),
        ("event.name == 'x'", "UNKNOWN_NAME"),
        ("event.data.x.lowerAscii() == 'x'", "UNKNOWN_NAME"),
        ("event.data.map(x, [x, x]) == []", "UNSUPPORTED"),
        ("event.data == {}", "UNSUPPORTED"),
        ("event.data.x.matches('(')", "PATTERN"),
        ("event.data.x + 1", "NOT_BOOLEAN"),
        (&large, "TOO_LARGE"),
        (&nested, "TOO_COMPLEX"),
        (
            "event.data.exists(a, a.exists(b, b.exists(c, c.exists(d, d == 1))))",
            "TOO_COMPLEX",
        ),
    ];
    let rows = rows.map(|(text, reason)| {
        let (name, text) = (text.to_owned(), text.to_owned());
        row(
            name,
            move |webhook| webhook.filter.clone_from(&text),
            "webhook.filter",
            reason,
        )
    });
    refused(rows.into()).await;
}

#[tokio::test]
async fn a_filter_that_an_earlier_release_let_in_stays_until_it_is_changed() {
    let mut server = serve().await;
    let filter = "event.data.amount > 100 || has(event.orderingKey)";
    let webhook = Webhook {
        filter: filter.into(),
        ..valid()
    };
    let created = server.create("a", webhook).await;
    assert_eq!(created.filter, filter);
    let key = Key::from_stored("webhooks/1010/a");
    let entry = server.store.get(&key).await.unwrap().0.unwrap();
    let (account, id) = postrider_common::key::parse_webhook(&key).unwrap();
    let mut stored = postrider_common::wire::stored::decode_webhook(account, id, entry.value).unwrap();
    stored.filter = Some("old(event)".into());
    let op = postrider_common::store::Op::put(key, postrider_common::wire::stored::encode_webhook(&stored));
    let write = postrider_common::store::Write {
        guards: Vec::new(),
        ops: vec![op],
    };
    server.store.write(write).await.unwrap();
    let update = |display_name: &str, filter: &str, paths: &[&str]| v1::UpdateWebhookRequest {
        webhook: Some(Webhook {
            name: created.name.clone(),
            display_name: display_name.into(),
            filter: filter.into(),
            ..Webhook::default()
        }),
        update_mask: mask(paths),
        validate_only: false,
    };
    let renamed = server
        .webhooks
        .update_webhook(update("x", "", &["display_name"]))
        .await
        .unwrap();
    assert_eq!(renamed.into_inner().filter, "old(event)");
    let refused = server
        .webhooks
        .update_webhook(update("", "older(event)", &["filter"]))
        .await
        .unwrap_err();
    assert_eq!(
        mistakes(&refused),
        [("webhook.filter".to_owned(), "UNKNOWN_NAME".to_owned())]
    );
    let cleared = server
        .webhooks
        .update_webhook(update("", "", &["filter"]))
        .await
        .unwrap();
    assert_eq!(cleared.into_inner().filter, "");
}

#[tokio::test]
async fn failures_that_cannot_be_called_final_are_refused_by_number() {
    let named = |texts: &[&str], field, reason| {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        let change = move |webhook: &mut Webhook| {
            webhook.retry.get_or_insert_default().never_retry.clone_from(&texts);
        };
        row(format!("{field} {reason}"), change, field, reason)
    };
    const FIRST: &str = "webhook.retry.never_retry[0]";
    let mut rows: Vec<Row> = [
        "",
        " 404",
        "404 ",
        "399",
        "600",
        "200",
        "0404",
        "4XX",
        "3xx",
        "6xx",
        "40x",
        "4",
        "٤٠٤",
        "tls",
        "STATUS",
        "GONE",
        "THROTTLED",
        "PARTIAL",
        "EXPIRED",
        "*",
    ]
    .map(|text| named(&[text], FIRST, "UNKNOWN_VALUE"))
    .into();
    rows.push(named(
        &["404", "4xx", "404"],
        "webhook.retry.never_retry[2]",
        "DUPLICATE",
    ));
    let many: Vec<String> = (400..433).map(|status| status.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    rows.push(named(&many, "webhook.retry.never_retry", "TOO_MANY"));
    refused(rows).await;
    let mut webhook = valid();
    webhook.retry.get_or_insert_default().never_retry = ["x", "TLS", "TLS", "y"].map(String::from).into();
    let request = v1::CreateWebhookRequest {
        webhook: Some(webhook),
        ..create_request()
    };
    let status = serve().await.webhooks.create_webhook(request).await.unwrap_err();
    let fields = mistakes(&status).into_iter().map(|(field, _)| field);
    assert!(fields.eq([0, 2, 3].map(|index| format!("webhook.retry.never_retry[{index}]"))));
}

#[tokio::test]
async fn values_that_are_not_known_are_refused() {
    const UNKNOWN: &str = "UNKNOWN_VALUE";
    let rows = vec![
        delivery(|delivery| delivery.mode = 99, "webhook.delivery.mode", UNKNOWN),
        delivery(|delivery| delivery.ordering = -1, "webhook.delivery.ordering", UNKNOWN),
        delivery(
            |delivery| delivery.http_version = 3,
            "webhook.delivery.http_version",
            UNKNOWN,
        ),
        delivery(
            |delivery| delivery.on_failure = 99,
            "webhook.delivery.on_failure",
            UNKNOWN,
        ),
        row(
            "inactive",
            |webhook| webhook.when_inactive = 99,
            "webhook.when_inactive",
            UNKNOWN,
        ),
        row(
            "format",
            |webhook| webhook.payload = Some(v1::PayloadOptions { format: 99 }),
            "webhook.payload.format",
            UNKNOWN,
        ),
    ];
    refused(rows).await;
}

#[tokio::test]
async fn bad_texts_event_types_and_labels_are_refused() {
    let mut rows = vec![
        row(
            "name",
            |webhook| webhook.display_name = "é".repeat(257),
            "webhook.display_name",
            "TOO_LONG",
        ),
        row(
            "line",
            |webhook| webhook.display_name = "a\nb".into(),
            "webhook.display_name",
            "CONTROL_CHARACTER",
        ),
        row(
            "text",
            |webhook| webhook.description = "x".repeat(4097),
            "webhook.description",
            "TOO_LONG",
        ),
        row(
            "nul",
            |webhook| webhook.description = "\0".into(),
            "webhook.description",
            "CONTROL_CHARACTER",
        ),
        row(
            "none",
            |webhook| webhook.event_types.clear(),
            "webhook.event_types",
            "REQUIRED",
        ),
        row(
            "129",
            |webhook| webhook.event_types = (0..129).map(|number| format!("E{number}")).collect(),
            "webhook.event_types",
            "TOO_LARGE",
        ),
        row(
            "twice",
            |webhook| webhook.event_types = vec!["A".into(), "A".into()],
            "webhook.event_types[1]",
            "DUPLICATE",
        ),
    ];
    for text in ["", ".A", "1A", "A*B", "**", "A B", "Ä", "A\0"] {
        rows.push(row(
            text,
            move |webhook| webhook.event_types = vec!["OK".into(), text.into()],
            "webhook.event_types[1]",
            "MALFORMED",
        ));
    }
    let labels: [(usize, String, String, &'static str); 4] = [
        (65, "k".into(), "v".into(), "TOO_MANY"),
        (1, "K".into(), "v".into(), "MALFORMED"),
        (1, "k".repeat(64), "v".into(), "MALFORMED"),
        (1, "k".into(), "v".repeat(257), "MALFORMED"),
    ];
    for (count, key, value, reason) in labels {
        let change = move |webhook: &mut Webhook| {
            webhook.labels = (0..count)
                .map(|number| {
                    let key = if count > 1 {
                        format!("{key}{number}")
                    } else {
                        key.clone()
                    };
                    (key, value.clone())
                })
                .collect();
        };
        rows.push(row(format!("{count} labels"), change, "webhook.labels", reason));
    }
    refused(rows).await;
}

#[tokio::test]
async fn all_mistakes_are_named_at_once() {
    let mut server = serve().await;
    let request = v1::CreateWebhookRequest {
        parent: "accounts/A".into(),
        webhook_id: "-".into(),
        request_id: "x".into(),
        webhook: Some(Webhook {
            etag: "x".into(),
            target_url: "ftp://x".into(),
            filter: "x && event.y".into(),
            auth: basic("", ""),
            ..Webhook::default()
        }),
        validate_only: false,
    };
    let status = server.webhooks.create_webhook(request).await.unwrap_err();
    let fields: Vec<String> = mistakes(&status).into_iter().map(|(field, _)| field).collect();
    assert_eq!(
        fields,
        [
            "parent",
            "webhook_id",
            "request_id",
            "webhook.etag",
            "webhook.filter",
            "webhook.filter",
            "webhook.target_url",
            "webhook.auth.basic.username",
            "webhook.auth.basic.password",
            "webhook.event_types",
        ]
    );
}

#[tokio::test]
async fn a_request_with_very_many_mistakes_still_gets_an_answer() {
    let mut server = serve().await;
    let request = v1::CreateWebhookRequest {
        webhook: Some(Webhook {
            event_types: (0..128).map(|number| format!("é{number}")).collect(),
            ..valid()
        }),
        ..create_request()
    };
    let status = server.webhooks.create_webhook(request).await.unwrap_err();
    assert!(mistakes(&status).len() > 10);
    assert!(status.message().ends_with("more"), "{}", status.message());
    assert_eq!(
        status.get_error_details().error_info().unwrap().metadata["violations"],
        "128"
    );
}
