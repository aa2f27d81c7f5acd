//! What is refused, and what is not found.

use super::*;

#[tokio::test]
async fn bad_names_are_refused_by_every_method() {
    let mut server = serve().await;
    for (text, expected) in [
        ("", "REQUIRED"),
        ("accounts/1010", "MALFORMED"),
        ("accounts/1010/webhooks/a/", "MALFORMED"),
        ("accounts/1010/webhooks/A", "MALFORMED"),
        ("accounts/1010/webhooks/a/deliveries/", "MALFORMED"),
        ("accounts/1010/webhooks/a/deliveries/a.b", "MALFORMED"),
        ("accounts/1010/webhooks/a/deliveries/a/b", "MALFORMED"),
        ("accounts/-/webhooks/a/deliveries/a", "MALFORMED"),
    ] {
        let wrong = |field: &str, status: Status| {
            assert_eq!(mistakes(&status), [(field.to_owned(), expected.to_owned())], "{text}");
        };
        let client = &mut server.deliveries;
        let parent = text.to_owned();
        let request = v1::ListDeliveriesRequest {
            parent: parent.clone(),
            ..Default::default()
        };
        wrong("parent", client.list_deliveries(request).await.unwrap_err());
        let request = v1::ListDeadLettersRequest {
            parent: parent.clone(),
            ..Default::default()
        };
        wrong("parent", client.list_dead_letters(request).await.unwrap_err());
        let request = v1::ListAttemptsRequest {
            parent: parent.clone(),
            ..Default::default()
        };
        wrong("parent", client.list_attempts(request).await.unwrap_err());
        let request = v1::GetDeliveryRequest {
            name: parent.clone(),
            view: 0,
        };
        wrong("name", client.get_delivery(request).await.unwrap_err());
        let request = v1::ExplainDeliveryRequest { name: parent.clone() };
        wrong("name", client.explain_delivery(request).await.unwrap_err());
        if text != "accounts/1010" {
            let request = v1::WatchAttemptsRequest {
                parent,
                ..Default::default()
            };
            wrong("parent", client.watch_attempts(request).await.unwrap_err());
        }
    }
}

#[tokio::test]
async fn bad_filters_are_refused_with_all_their_mistakes_at_once() {
    type Change = Box<dyn Fn(&mut v1::ListDeliveriesRequest)>;
    let rows: Vec<(Change, &str, &str)> = vec![
        (
            Box::new(|request| request.states = vec![1, 17]),
            "states[1]",
            "UNKNOWN_VALUE",
        ),
        (
            Box::new(|request| request.states = vec![-1]),
            "states[0]",
            "UNKNOWN_VALUE",
        ),
        (
            Box::new(|request| request.event_types = vec!["A".into(), "A*B".into()]),
            "event_types[1]",
            "MALFORMED",
        ),
        (
            Box::new(|request| request.event_types = vec![String::new()]),
            "event_types[0]",
            "MALFORMED",
        ),
        (
            Box::new(|request| request.event_types = vec!["A".into(); 51]),
            "event_types",
            "TOO_MANY",
        ),
        (
            Box::new(|request| request.event_id = "a.b".into()),
            "event_id",
            "MALFORMED",
        ),
        (
            Box::new(|request| request.event_id = "a".repeat(65)),
            "event_id",
            "MALFORMED",
        ),
        (
            Box::new(|request| request.start_time = second(-1)),
            "start_time",
            "OUT_OF_RANGE",
        ),
        (
            Box::new(|request| request.end_time = second(i64::MAX)),
            "end_time",
            "OUT_OF_RANGE",
        ),
        (
            Box::new(|request| {
                request.start_time = Some(prost_types::Timestamp {
                    seconds: 1,
                    nanos: 1_000_000_000,
                })
            }),
            "start_time",
            "OUT_OF_RANGE",
        ),
        (
            Box::new(|request| (request.start_time, request.end_time) = (second(7), second(7))),
            "end_time",
            "INCOMPATIBLE",
        ),
        (Box::new(|request| request.page_size = -1), "page_size", "OUT_OF_RANGE"),
    ];
    let mut server = serve().await;
    server.create("a", valid()).await;
    let mut all = v1::ListDeliveriesRequest::default();
    for (change, field, reason) in &rows {
        let mut request = v1::ListDeliveriesRequest {
            parent: PARENT.into(),
            ..Default::default()
        };
        change(&mut request);
        let status = server.deliveries.list_deliveries(request).await.unwrap_err();
        assert_eq!(mistakes(&status), [((*field).to_owned(), (*reason).to_owned())]);
        change(&mut all);
    }
    let status = server.deliveries.list_deliveries(all).await.unwrap_err();
    let fields: Vec<String> = mistakes(&status).into_iter().map(|(field, _)| field).collect();
    assert_eq!(
        fields,
        [
            "parent",
            "states[0]",
            "end_time",
            "event_types",
            "event_id",
            "page_size"
        ]
    );
}

#[tokio::test]
async fn other_bad_fields_are_refused() {
    let mut server = serve().await;
    server.create("a", valid()).await;
    let client = &mut server.deliveries;
    let wrong = |status: Status, expected: &[(&str, &str)]| {
        let found = mistakes(&status);
        let found: Vec<(&str, &str)> = found.iter().map(|(field, reason)| (&**field, &**reason)).collect();
        assert_eq!(found, expected);
    };
    let request = v1::GetDeliveryRequest {
        name: names("e"),
        view: 3,
    };
    wrong(
        client.get_delivery(request).await.unwrap_err(),
        &[("view", "UNKNOWN_VALUE")],
    );
    let request = v1::ListDeadLettersRequest {
        parent: PARENT.into(),
        view: -1,
        page_size: -2,
        ..Default::default()
    };
    let expected = [("view", "UNKNOWN_VALUE"), ("page_size", "OUT_OF_RANGE")];
    wrong(client.list_dead_letters(request).await.unwrap_err(), &expected);
    let request = v1::ListAttemptsRequest {
        parent: names("e"),
        page_size: -1,
        ..Default::default()
    };
    wrong(
        client.list_attempts(request).await.unwrap_err(),
        &[("page_size", "OUT_OF_RANGE")],
    );
    let request = v1::WatchAttemptsRequest {
        parent: "accounts/1010".into(),
        event_types: vec!["*A".into()],
        resume_token: "x".into(),
        ..Default::default()
    };
    let expected = [("event_types[0]", "MALFORMED"), ("resume_token", "MALFORMED")];
    wrong(client.watch_attempts(request).await.unwrap_err(), &expected);
    let request = v1::ListDeliveriesRequest {
        parent: PARENT.into(),
        page_token: "x".into(),
        ..Default::default()
    };
    wrong(
        client.list_deliveries(request).await.unwrap_err(),
        &[("page_token", "MALFORMED")],
    );
    let request = v1::ListAttemptsRequest {
        parent: names("e"),
        page_token: "x".into(),
        ..Default::default()
    };
    wrong(
        client.list_attempts(request).await.unwrap_err(),
        &[("page_token", "MALFORMED")],
    );
    let request = v1::ListDeadLettersRequest {
        parent: PARENT.into(),
        page_token: "x".into(),
        ..Default::default()
    };
    wrong(
        client.list_dead_letters(request).await.unwrap_err(),
        &[("page_token", "MALFORMED")],
    );
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let mut server = serve().await;
    let client = &mut server.deliveries;
    let not_found = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());
    let request = v1::ListDeliveriesRequest {
        parent: PARENT.into(),
        ..Default::default()
    };
    assert_eq!(reason(&client.list_deliveries(request).await.unwrap_err()), not_found);
    let request = v1::ListDeadLettersRequest {
        parent: PARENT.into(),
        ..Default::default()
    };
    assert_eq!(reason(&client.list_dead_letters(request).await.unwrap_err()), not_found);
    let request = v1::ListAttemptsRequest {
        parent: names("e"),
        ..Default::default()
    };
    assert_eq!(reason(&client.list_attempts(request).await.unwrap_err()), not_found);
    let request = v1::ExplainDeliveryRequest { name: names("e") };
    assert_eq!(reason(&client.explain_delivery(request).await.unwrap_err()), not_found);
    server.create("a", valid()).await;
    let client = &mut server.deliveries;
    let request = v1::GetDeliveryRequest {
        name: names("e"),
        view: 0,
    };
    let status = client.get_delivery(request).await.unwrap_err();
    assert_eq!(reason(&status), not_found);
    let details = status.get_error_details();
    assert_eq!(details.resource_info().unwrap().resource_name, names("e"));
    let request = v1::ListAttemptsRequest {
        parent: names("e"),
        ..Default::default()
    };
    assert!(
        client
            .list_attempts(request)
            .await
            .unwrap()
            .into_inner()
            .attempts
            .is_empty()
    );
}
