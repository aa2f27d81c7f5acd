//! TestWebhook through the API: bad input, and what callers get without an agent. (Transcripts are looked at in the scenarios, with real agents.)

use v1::TestWebhookRequest as Request;

use super::*;

type Row = (
    &'static str,
    Box<dyn Fn(&mut Request)>,
    Vec<(&'static str, &'static str)>,
);

fn row(
    name: &'static str,
    change: impl Fn(&mut Request) + 'static,
    mistakes: impl IntoIterator<Item = (&'static str, &'static str)>,
) -> Row {
    (name, Box::new(change), mistakes.into_iter().collect())
}

fn stored() -> Request {
    Request {
        name: "accounts/1010/webhooks/w".into(),
        ..Request::default()
    }
}

fn unsaved() -> Request {
    Request {
        parent: "accounts/1010".into(),
        webhook: Some(valid()),
        ..Request::default()
    }
}

fn event() -> v1::Event {
    v1::Event {
        event_name: "COURSE_COMPLETED".into(),
        body: Some(v1::event::Body::DataJson("{}".into())),
        ..v1::Event::default()
    }
}

async fn refused(base: fn() -> Request, rows: Vec<Row>) {
    let mut server = serve().await;
    server.create("w", valid()).await;
    let before = server.revision().await;
    for (name, change, expected) in rows {
        let mut request = base();
        change(&mut request);
        let status = server.webhooks.test_webhook(request).await.expect_err(name);
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(field, reason)| (field.to_owned(), reason.to_owned()))
            .collect();
        assert_eq!(mistakes(&status), expected, "{name}");
    }
    assert_eq!(server.revision().await, before, "nothing is stored");
}

#[tokio::test]
async fn what_is_tested_must_be_said_once() {
    let mut server = serve().await;
    let status = server.webhooks.test_webhook(Request::default()).await.unwrap_err();
    assert_eq!(mistakes(&status), [("name".to_owned(), "REQUIRED".to_owned())]);
    let rows = vec![
        row(
            "a name that is none",
            |r| r.name = "webhooks/w".into(),
            [("name", "MALFORMED")],
        ),
        row(
            "a name that leads elsewhere",
            |r| r.name = "accounts/1010/webhooks/../x".into(),
            [("name", "MALFORMED")],
        ),
        row(
            "a parent without a webhook",
            |r| r.parent = "accounts/1010".into(),
            [("parent", "NOT_ALLOWED")],
        ),
        row(
            "both",
            |r| {
                r.parent = "accounts/1010".into();
                r.webhook = Some(valid());
            },
            [("name", "NOT_ALLOWED")],
        ),
    ];
    refused(stored, rows).await;
    let rows = vec![
        row("no parent", |r| r.parent.clear(), [("parent", "REQUIRED")]),
        row(
            "a parent that is none",
            |r| r.parent = "1010".into(),
            [("parent", "MALFORMED")],
        ),
        row(
            "an etag",
            |r| r.webhook.as_mut().unwrap().etag = "x".into(),
            [("webhook.etag", "NOT_ALLOWED")],
        ),
        row(
            "an address that is not allowed",
            |r| r.webhook.as_mut().unwrap().target_url = "http://169.254.169.254/".into(),
            [("webhook.target_url", "FORBIDDEN_ADDRESS")],
        ),
        row(
            "a password that is missing",
            |r| r.webhook.as_mut().unwrap().auth = basic("ada", ""),
            [("webhook.auth.basic.password", "REQUIRED")],
        ),
    ];
    refused(unsaved, rows).await;
}

#[tokio::test]
async fn an_event_must_be_one_that_could_be_published() {
    let with = |change: fn(&mut v1::Event)| {
        move |request: &mut Request| {
            let mut event = event();
            change(&mut event);
            request.event = Some(event);
        }
    };
    let rows = || {
        vec![
            row(
                "empty",
                |r| r.event = Some(v1::Event::default()),
                [("event.event_name", "REQUIRED"), ("event.data", "REQUIRED")],
            ),
            row(
                "an id with a dot",
                with(|e| e.event_id = "a.b".into()),
                [("event.event_id", "MALFORMED")],
            ),
            row(
                "a name that is none",
                with(|e| e.event_name = "1".into()),
                [("event.event_name", "MALFORMED")],
            ),
            row(
                "a name of the system's",
                with(|e| e.event_name = "postrider.test".into()),
                [("event.event_name", "RESERVED")],
            ),
            row(
                "no JSON",
                with(|e| e.body = Some(v1::event::Body::DataJson("{".into()))),
                [("event.data_json", "INVALID_JSON")],
            ),
            row(
                "a body that is too large",
                with(|e| e.body = Some(v1::event::Body::DataJson(vec![b' '; (256 << 10) + 1].into()))),
                [("event.data_json", "TOO_LARGE")],
            ),
            row(
                "an ordering key with a space",
                with(|e| e.ordering_key = "a b".into()),
                [("event.ordering_key", "MALFORMED")],
            ),
            row(
                "an end that is over",
                with(|e| e.expire_time = Some(prost_types::Timestamp { seconds: 1, nanos: 0 })),
                [("event.expire_time", "NOT_IN_FUTURE")],
            ),
            row(
                "a time beyond all",
                with(|e| {
                    e.timestamp = Some(prost_types::Timestamp {
                        seconds: i64::MAX,
                        nanos: 0,
                    })
                }),
                [("event.timestamp", "OUT_OF_RANGE")],
            ),
            row(
                "much text",
                with(|e| e.event_info = "x".repeat(257)),
                [("event.event_info", "TOO_LONG")],
            ),
        ]
    };
    refused(stored, rows()).await;
    refused(unsaved, rows()).await;
}

#[tokio::test]
async fn all_mistakes_are_named_at_once() {
    let everything = row(
        "everything",
        |r| {
            r.name = "x".into();
            r.parent = "x".into();
            r.webhook.as_mut().unwrap().target_url = "ftp://example.com/".into();
            r.event = Some(v1::Event {
                event_id: "a.b".into(),
                ..event()
            });
        },
        [
            ("name", "NOT_ALLOWED"),
            ("parent", "MALFORMED"),
            ("webhook.target_url", "SCHEME"),
            ("event.event_id", "MALFORMED"),
        ],
    );
    refused(unsaved, vec![everything]).await;
}

#[tokio::test]
async fn without_an_agent_or_a_webhook_the_caller_is_told_so() {
    let mut server = serve().await;
    let status = server.webhooks.test_webhook(stored()).await.unwrap_err();
    assert_eq!(reason(&status), (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned()));
    server.create("w", valid()).await;
    for request in [stored(), unsaved()] {
        let status = server.webhooks.test_webhook(request).await.unwrap_err();
        assert_eq!(reason(&status), (Code::Unavailable, "NO_AGENT".to_owned()));
        assert!(status.get_error_details().retry_info().is_some());
    }
}

#[tokio::test]
async fn a_fifth_test_of_an_account_is_refused_while_four_are_under_way() {
    let server = serve().await;
    // It never says anything.
    let agent = postrider_common::id::AgentId::new("silent").unwrap();
    let about = postrider_common::wire::stored::encode(&postrider_proto::stored::Agent::default());
    let write = postrider_common::store::Write {
        guards: Vec::new(),
        ops: vec![postrider_common::store::Op::put(
            postrider_common::key::agent(&agent),
            about,
        )],
    };
    server.store.write(write).await.unwrap();
    let calls = (0..5).map(|_| {
        let mut webhooks = server.webhooks.clone();
        Box::pin(async move { webhooks.test_webhook(unsaved()).await })
    });
    let (first, _, others) = futures_util::future::select_all(calls).await;
    let status = first.unwrap_err();
    assert_eq!(reason(&status), (Code::ResourceExhausted, "TOO_MANY_TESTS".to_owned()));
    assert_eq!(others.len(), 4);
}
