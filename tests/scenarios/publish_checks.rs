//! What is looked at when events are published: the schema of their type, and whether the catalogue holds it.

use postrider_proto::v1::account::UnknownEventTypes;
use postrider_proto::v1::{Account, CreateEventTypeRequest, EventType, UpdateAccountRequest};
use postrider_tests::client::{event, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::Receiver;
use postrider_tests::wait::until;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{ACCOUNT, SOON};

fn object(name: &str, kind: Kind) -> Struct {
    Struct {
        fields: [(name.to_owned(), Value { kind: Some(kind) })].into(),
    }
}

fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    let violations = &details.bad_request().expect("the mistakes are named").field_violations;
    violations.iter().map(|violation| violation.field.clone()).collect()
}

#[tokio::test]
async fn a_body_that_breaks_its_types_schema_is_refused_on_every_replica() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let (first, second) = (cluster.client(0), cluster.client(1));
    first
        .create_webhook(ACCOUNT, "all", webhook(&receiver.url("/all"), &["*"], None))
        .await;
    cluster.matching(ACCOUNT, "STRICT", 1).await;
    let integer = object("type", Kind::StringValue("integer".into()));
    let property = object("n", Kind::StructValue(integer));
    let request = CreateEventTypeRequest {
        event_type_id: "STRICT".into(),
        event_type: Some(EventType {
            schema: Some(object("properties", Kind::StructValue(property))),
            ..EventType::default()
        }),
        ..CreateEventTypeRequest::default()
    };
    first.event_types().create_event_type(request).await.unwrap();
    let events = || {
        vec![
            event("fits", "STRICT", "{\"n\":1}"),
            event("breaks", "STRICT", "{\"n\":\"x\"}"),
        ]
    };
    // At once where it was created, within the watch's lag elsewhere.
    let refused = first.try_publish(ACCOUNT, events(), "").await.unwrap_err();
    assert_eq!(fields(&refused), ["events[1].data"]);
    assert!(refused.message().contains("\"/n\""), "{refused:?}");
    until("the other replica knows the schema", SOON, async || {
        second
            .try_publish(ACCOUNT, vec![event("breaks", "STRICT", "{\"n\":\"x\"}")], "")
            .await
            .err()
    })
    .await;
    first.publish(ACCOUNT, vec![event("fits", "STRICT", "{\"n\":1}")]).await;
    receiver
        .until("the event that fits", SOON, |log| log.has("/all", "fits"))
        .await;
}

#[tokio::test]
async fn an_account_that_refuses_unknown_event_types_takes_those_of_the_catalogue_only() {
    let cluster = Cluster::start().await;
    let client = cluster.client(0);
    client.create_account(ACCOUNT, 5).await;
    client.publish(ACCOUNT, vec![event("", "NEW", "{}")]).await;
    let request = UpdateAccountRequest {
        account: Some(Account {
            name: format!("accounts/{ACCOUNT}"),
            unknown_event_types: UnknownEventTypes::Refuse.into(),
            ..Account::default()
        }),
        ..UpdateAccountRequest::default()
    };
    client.accounts().update_account(request).await.unwrap();
    let refused = client
        .try_publish(ACCOUNT, vec![event("", "NEW", "{}")], "")
        .await
        .unwrap_err();
    assert_eq!(fields(&refused), ["events[0].event_name"]);
    let request = CreateEventTypeRequest {
        event_type_id: "NEW".into(),
        ..CreateEventTypeRequest::default()
    };
    client.event_types().create_event_type(request).await.unwrap();
    client.publish(ACCOUNT, vec![event("", "NEW", "{}")]).await;
}
