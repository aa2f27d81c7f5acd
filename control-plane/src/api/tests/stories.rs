//! What callers do with webhooks, event types, accounts and the cluster, from beginning to end.

use postrider_common::id::{AccountId, AgentId};
use postrider_common::key;
use postrider_common::model::webhook::Auth;
use postrider_common::shard::ShardId;
use postrider_common::store::{Op, Write, list_all};
use postrider_common::wire::stored::{decode_webhook, encode};
use postrider_proto::stored;
use prost_types::value::Kind;

use super::*;

mod others;

const SECRET: &str = "whsec_Q2FuYXJ5Q2FuYXJ5Q2FuYXJ5Q2FuYXJ5Q2FuYXJ5";
const PASSWORD: &str = "canary password";

/// Fails if a secret is to be seen in anything's debug form.
fn no_secret(seen: &impl std::fmt::Debug) {
    let text = format!("{seen:?}");
    for canary in [PASSWORD, SECRET, &SECRET[6..], "CanaryCanary"] {
        assert!(!text.contains(canary), "{text}");
    }
}

async fn update(server: &mut Server, webhook: v1::Webhook, paths: &[&str]) -> v1::Webhook {
    let request = v1::UpdateWebhookRequest {
        webhook: Some(v1::Webhook {
            name: "accounts/1010/webhooks/a".into(),
            ..webhook
        }),
        update_mask: mask(paths),
        validate_only: false,
    };
    let updated = server.webhooks.update_webhook(request).await.unwrap().into_inner();
    no_secret(&updated);
    updated
}

async fn stored_auth(server: &Server) -> Auth {
    let (account, id) = (
        AccountId::new("1010").unwrap(),
        postrider_common::id::WebhookId::new("a").unwrap(),
    );
    let entry = server.store.get(&key::webhook(&account, &id)).await.unwrap().0.unwrap();
    let text = String::from_utf8_lossy(&entry.value);
    assert!(!text.contains("canary") && !text.contains("Canary"));
    decode_webhook(account, id, entry.value).unwrap().auth
}

/// The document of ExportSigningSecret: ids and secrets.
async fn exported(server: &mut Server) -> Result<Vec<(String, String)>, Status> {
    let request = v1::ExportSigningSecretRequest {
        name: "accounts/1010/webhooks/a".into(),
    };
    let answer = server.webhooks.export_signing_secret(request).await?.into_inner();
    assert_eq!(answer.file_name, "1010-a-signing-secret.json");
    let text = json::to_text(&answer.document.unwrap()).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(document["webhook"], "accounts/1010/webhooks/a");
    assert_eq!(document["algorithm"], "HMAC-SHA256");
    assert_eq!(document["headers"]["signature"], "webhook-signature");
    assert_eq!(document["signedContent"], "{id}.{timestamp}.{body}");
    let secrets = document["secrets"].as_array().unwrap().iter().map(|one| {
        assert!(one["createTime"].as_str().unwrap().ends_with('Z') && one["expireTime"].is_null());
        let text = |name: &str| one[name].as_str().unwrap().to_owned();
        (text("id"), text("secret"))
    });
    Ok(secrets.collect())
}

#[tokio::test]
async fn a_webhook_is_created_shown_changed_and_deleted() {
    let mut server = serve().await;
    let full = v1::Webhook {
        display_name: "Grades".into(),
        description: "two\nlines".into(),
        target_url: "HTTPS://Example.com:443/a/../b".into(),
        event_types: vec!["COURSE_*".into(), "GRADE".into()],
        when_inactive: v1::webhook::WhenInactive::Hold.into(),
        delivery: Some(v1::DeliveryOptions {
            max_in_flight: 7,
            timeout: Some(prost_types::Duration {
                seconds: 3,
                nanos: 500_000_000,
            }),
            ..v1::DeliveryOptions::default()
        }),
        retry: Some(v1::RetryPolicy {
            max_attempts: 9,
            multiplier: 3.0,
            never_retry: vec!["TLS".into(), "4xx".into(), "429".into()],
            ..v1::RetryPolicy::default()
        }),
        headers: vec![v1::Header {
            name: "X-Team".into(),
            value: "a b".into(),
        }],
        labels: [("team".to_owned(), "x".to_owned())].into(),
        ..valid()
    };
    let created = server.create("a", full.clone()).await;
    assert_eq!(created.name, "accounts/1010/webhooks/a");
    assert_eq!(created.target_url, "https://example.com/b");
    assert_eq!((created.generation, created.active), (1, Some(true)));
    assert_eq!(created.state(), v1::webhook::State::Active);
    assert_eq!(created.event_types, full.event_types);
    assert_eq!(created.labels, full.labels);
    assert_eq!(created.headers[0].name, "x-team");
    let (delivery, retry) = (created.delivery.unwrap(), created.retry.unwrap());
    assert_eq!(
        (delivery.max_in_flight, delivery.timeout),
        (7, full.delivery.unwrap().timeout)
    );
    assert_eq!((retry.max_attempts, retry.multiplier), (9, 3.0));
    assert_eq!(retry.initial_delay.unwrap().seconds, 5);
    assert_eq!(retry.never_retry, ["TLS", "4xx", "429"]);
    let waited = server.waited.lock().unwrap().clone();
    assert_eq!(waited, [server.revision().await]);

    let get = v1::GetWebhookRequest {
        name: created.name.clone(),
    };
    let got = server.webhooks.get_webhook(get.clone()).await.unwrap().into_inner();
    assert_eq!(
        (got.etag.as_str(), got.uid.as_str()),
        (created.etag.as_str(), created.uid.as_str())
    );

    let retired = v1::Webhook {
        active: Some(false),
        ..v1::Webhook::default()
    };
    let updated = update(&mut server, retired, &[]).await;
    assert_eq!(updated.state(), v1::webhook::State::Retired);
    assert_eq!((updated.generation, updated.display_name.as_str()), (2, "Grades"));
    let timeout = v1::Webhook {
        delivery: Some(v1::DeliveryOptions {
            timeout: Some(prost_types::Duration { seconds: 9, nanos: 0 }),
            max_in_flight: 1,
            ..v1::DeliveryOptions::default()
        }),
        ..v1::Webhook::default()
    };
    let updated = update(&mut server, timeout, &["delivery.timeout", "retry.max_attempts"]).await;
    let delivery = updated.delivery.clone().unwrap();
    assert_eq!((delivery.max_in_flight, delivery.timeout.unwrap().seconds), (7, 9));
    assert_eq!(updated.retry.as_ref().unwrap().max_attempts, 0);
    // Sending back what was read changes nothing.
    let same = update(&mut server, updated.clone(), &["*"]).await;
    assert_eq!(same, updated);

    let delete = v1::DeleteWebhookRequest {
        name: created.name,
        ..v1::DeleteWebhookRequest::default()
    };
    server.webhooks.delete_webhook(delete).await.unwrap();
    assert_eq!(
        server.webhooks.get_webhook(get).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn validate_only_answers_and_stores_nothing() {
    let mut server = serve().await;
    let before = server.revision().await;
    let request = v1::CreateWebhookRequest {
        webhook_id: "a".into(),
        request_id: "7c1f0a52-3f64-4b52-9d6a-0d5f3f6f7a11".into(),
        validate_only: true,
        ..create_request()
    };
    let answer = server.webhooks.create_webhook(request).await.unwrap().into_inner();
    assert_eq!(answer.name, "accounts/1010/webhooks/a");
    assert_eq!(server.revision().await, before);
}

#[tokio::test]
async fn the_sixth_webhook_is_over_quota_until_the_account_may_have_more() {
    let mut server = serve().await;
    for _ in 0..5 {
        server.create("", valid()).await;
    }
    for validate_only in [true, false] {
        let request = v1::CreateWebhookRequest {
            validate_only,
            ..create_request()
        };
        let status = server.webhooks.create_webhook(request).await.unwrap_err();
        assert_eq!(reason(&status), (Code::ResourceExhausted, "WEBHOOK_QUOTA".into()));
        let details = status.get_error_details();
        assert_eq!(details.quota_failure().unwrap().violations[0].subject, "accounts/1010");
    }
    let request = v1::UpdateAccountRequest {
        account: Some(v1::Account {
            name: "accounts/1010".into(),
            max_webhooks: 6,
            unknown_event_types: v1::account::UnknownEventTypes::Refuse.into(),
            ..v1::Account::default()
        }),
        ..v1::UpdateAccountRequest::default()
    };
    let account = server.accounts.update_account(request).await.unwrap().into_inner();
    assert_eq!((account.max_webhooks, account.max_backlog_bytes), (6, 1 << 30));
    assert_eq!(account.unknown_event_types(), v1::account::UnknownEventTypes::Refuse);
    server.create("", valid()).await;
    let count = list_all(&server.store, &key::webhooks(), true).await.unwrap().0.len();
    assert_eq!(count, 6);
}

#[tokio::test]
async fn secrets_go_in_and_come_out_only_by_export() {
    let mut server = serve().await;
    let created = server
        .create(
            "a",
            v1::Webhook {
                auth: signature(SECRET),
                ..valid()
            },
        )
        .await;
    no_secret(&created);
    let secrets = exported(&mut server).await.unwrap();
    assert_eq!(secrets.len(), 1);
    assert_eq!(secrets[0].1, SECRET);
    assert!(
        secrets[0].0.len() == 16 && secrets[0].0.starts_with("sec_"),
        "{secrets:?}"
    );
    stored_auth(&server).await;

    // Kept when empty, replaced when given, generated when the method is new.
    let empty = v1::Webhook {
        auth: signature(""),
        ..valid()
    };
    update(&mut server, empty.clone(), &["auth"]).await;
    assert_eq!(exported(&mut server).await.unwrap(), secrets);
    let with_password = v1::Webhook {
        auth: basic("alice", PASSWORD),
        ..valid()
    };
    let updated = update(&mut server, with_password, &["auth"]).await;
    assert_eq!(updated.auth, basic("alice", ""));
    let status = exported(&mut server).await.unwrap_err();
    assert_eq!(reason(&status), (Code::FailedPrecondition, "NO_SIGNATURE".into()));
    let before = stored_auth(&server).await;
    let renamed = v1::Webhook {
        auth: basic("bob", ""),
        ..v1::Webhook::default()
    };
    update(&mut server, renamed, &[]).await;
    let (Auth::Basic { password: old, .. }, Auth::Basic { username, password }) = (before, stored_auth(&server).await)
    else {
        panic!("not basic");
    };
    assert_eq!((username.as_str(), password), ("bob", old));
    update(&mut server, empty, &["auth.signature"]).await;
    let generated = exported(&mut server).await.unwrap();
    assert_ne!(generated, secrets);
    postrider_common::signature::Algorithm::HmacSha256
        .parse(&generated[0].1)
        .unwrap();
    update(&mut server, valid(), &["auth"]).await;
    assert_eq!(stored_auth(&server).await, Auth::None);

    let list = v1::ListWebhooksRequest {
        parent: "accounts/1010".into(),
        ..v1::ListWebhooksRequest::default()
    };
    no_secret(&server.webhooks.list_webhooks(list).await.unwrap());
    // A mistake beside or in a secret does not repeat it.
    for auth in [basic("a:b", PASSWORD), signature(&format!("{SECRET} "))] {
        let request = v1::CreateWebhookRequest {
            webhook: Some(v1::Webhook { auth, ..valid() }),
            ..create_request()
        };
        let status = server.webhooks.create_webhook(request).await.unwrap_err();
        no_secret(&status);
        no_secret(&status.get_error_details());
    }
}

#[tokio::test]
async fn event_types_carry_their_schema() {
    let mut server = serve().await;
    let number = |value| prost_types::Value {
        kind: Some(Kind::NumberValue(value)),
    };
    let schema = prost_types::Struct {
        fields: [
            ("maximum".to_owned(), number(7.0)),
            ("multipleOf".to_owned(), number(0.1)),
        ]
        .into(),
    };
    let request = v1::CreateEventTypeRequest {
        event_type_id: "COURSE_ENROLLMENT".into(),
        event_type: Some(v1::EventType {
            category: v1::event_type::Category::NonRealTime.into(),
            schema: Some(schema.clone()),
            ..v1::EventType::default()
        }),
        ..v1::CreateEventTypeRequest::default()
    };
    let created = server
        .event_types
        .create_event_type(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(created.name, "eventTypes/COURSE_ENROLLMENT");
    assert_eq!(created.schema, Some(schema));
    let request = v1::UpdateEventTypeRequest {
        event_type: Some(v1::EventType {
            name: created.name.clone(),
            etag: created.etag.clone(),
            deprecated: true,
            ..v1::EventType::default()
        }),
        ..v1::UpdateEventTypeRequest::default()
    };
    let updated = server
        .event_types
        .update_event_type(request)
        .await
        .unwrap()
        .into_inner();
    assert!(updated.deprecated && updated.schema == created.schema);
    assert_eq!(updated.category(), v1::event_type::Category::NonRealTime);
    let list = server
        .event_types
        .list_event_types(v1::ListEventTypesRequest::default())
        .await
        .unwrap();
    assert_eq!(list.into_inner().event_types, [updated]);
    let delete = v1::DeleteEventTypeRequest {
        name: created.name.clone(),
        ..v1::DeleteEventTypeRequest::default()
    };
    server.event_types.delete_event_type(delete).await.unwrap();
    let get = v1::GetEventTypeRequest { name: created.name };
    assert_eq!(
        server.event_types.get_event_type(get).await.unwrap_err().code(),
        Code::NotFound
    );
}
