//! Fields of accounts and event types, large pages, schemas.

use super::*;

#[tokio::test]
async fn accounts_and_event_types_check_their_fields() {
    let mut server = serve().await;
    let before = server.revision().await;
    let account = v1::Account {
        display_name: "x".repeat(257),
        max_webhooks: 10_001,
        max_backlog_bytes: -1,
        unknown_event_types: 7,
        labels: [("A".to_owned(), String::new())].into(),
        etag: "x".into(),
        ..v1::Account::default()
    };
    let request = v1::CreateAccountRequest {
        account: Some(account),
        ..v1::CreateAccountRequest::default()
    };
    let status = server.accounts.create_account(request).await.unwrap_err();
    let expected = [
        ("account.etag", "NOT_ALLOWED"),
        ("account.display_name", "TOO_LONG"),
        ("account.labels", "MALFORMED"),
        ("account.max_webhooks", "OUT_OF_RANGE"),
        ("account.max_backlog_bytes", "OUT_OF_RANGE"),
        ("account.unknown_event_types", "UNKNOWN_VALUE"),
    ];
    let expected = expected.map(|(field, reason)| (field.to_owned(), reason.to_owned()));
    assert_eq!(mistakes(&status), expected);
    let number = |value| prost_types::Value {
        kind: Some(prost_types::value::Kind::NumberValue(value)),
    };
    let text = |length: usize| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue("x".repeat(length))),
    };
    let object = |value| {
        Some(prost_types::Struct {
            fields: [("x".to_owned(), value)].into(),
        })
    };
    let request = v1::CreateEventTypeRequest {
        event_type_id: "A".into(),
        event_type: Some(v1::EventType {
            category: 7,
            schema: object(number(f64::NAN)),
            example: object(text(65_536)),
            ..v1::EventType::default()
        }),
        ..v1::CreateEventTypeRequest::default()
    };
    let status = server.event_types.create_event_type(request).await.unwrap_err();
    let expected = [
        ("event_type.category", "UNKNOWN_VALUE"),
        ("event_type.schema", "MALFORMED"),
        ("event_type.example", "TOO_LARGE"),
    ];
    let expected = expected.map(|(field, reason)| (field.to_owned(), reason.to_owned()));
    assert_eq!(mistakes(&status), expected);
    assert_eq!(server.revision().await, before);
}

#[tokio::test]
async fn a_page_of_large_resources_ends_before_it_is_too_large_for_a_client() {
    let mut server = serve().await;
    let zero = prost_types::Value {
        kind: Some(prost_types::value::Kind::NumberValue(0.0)),
    };
    let zeros = prost_types::Value {
        kind: Some(prost_types::value::Kind::ListValue(prost_types::ListValue {
            values: vec![zero; 32_000],
        })),
    };
    let large = Some(prost_types::Struct {
        fields: [("x".to_owned(), zeros)].into(),
    });
    for number in 0..10 {
        let request = v1::CreateEventTypeRequest {
            event_type_id: format!("E{number}"),
            event_type: Some(v1::EventType {
                schema: large.clone(),
                example: large.clone(),
                ..v1::EventType::default()
            }),
            ..v1::CreateEventTypeRequest::default()
        };
        server.event_types.create_event_type(request).await.unwrap();
    }
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListEventTypesRequest {
            page_size: 1000,
            page_token,
        };
        let page = server.event_types.list_event_types(request).await.unwrap().into_inner();
        names.extend(page.event_types.into_iter().map(|event_type| event_type.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let expected: Vec<String> = (0..10).map(|number| format!("eventTypes/E{number}")).collect();
    assert_eq!(names, expected);
}

#[tokio::test]
async fn a_schema_that_does_not_compile_is_refused_with_its_place_on_create_and_on_update() {
    let mut server = serve().await;
    let schema = |text: &str| json::to_struct(text.as_bytes());
    let create = |schema| v1::CreateEventTypeRequest {
        event_type_id: "STRICT".into(),
        event_type: Some(v1::EventType {
            schema,
            ..v1::EventType::default()
        }),
        ..v1::CreateEventTypeRequest::default()
    };
    let bad = [
        (
            r#"{"properties": {"a": {"type": "strin"}}}"#,
            r#"at "/properties/a/type":"#,
        ),
        (
            r#"{"items": {"$ref": "https://example.com/a"}}"#,
            r#"at "/items/$ref":"#,
        ),
    ];
    let expected = [("event_type.schema".to_owned(), "INVALID_SCHEMA".to_owned())];
    for (text, place) in bad {
        let status = server
            .event_types
            .create_event_type(create(schema(text)))
            .await
            .unwrap_err();
        assert_eq!(mistakes(&status), expected);
        assert!(status.message().contains(place), "{status:?}");
    }
    let good = create(schema(r#"{"type": "object"}"#));
    let created = server.event_types.create_event_type(good).await.unwrap().into_inner();
    for (text, place) in bad {
        let request = v1::UpdateEventTypeRequest {
            event_type: Some(v1::EventType {
                name: created.name.clone(),
                schema: schema(text),
                ..v1::EventType::default()
            }),
            ..v1::UpdateEventTypeRequest::default()
        };
        let status = server.event_types.update_event_type(request).await.unwrap_err();
        assert_eq!(mistakes(&status), expected);
        assert!(status.message().contains(place), "{status:?}");
    }
}
