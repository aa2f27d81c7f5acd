//! What Postrider tells an account about its webhooks.

use http::StatusCode;
use postrider_common::id::{AccountId, WebhookId};
use postrider_common::model::webhook::{Suspension, suspended};
use postrider_common::time::{Clock as _, SystemClock};
use postrider_common::wire::stored::{decode_webhook, suspend_webhook};
use postrider_proto::v1::webhook::State;
use postrider_proto::v1::{GetWebhookRequest, RetryPolicy, UpdateWebhookRequest, Webhook};
use postrider_tests::client::{Client, event, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Log, Receiver};

use crate::{ACCOUNT, SOON};

/// Suspends a webhook as an agent does.
async fn suspend(cluster: &Cluster, id: &str) {
    let etcd = cluster.etcd.client(0);
    let end = format!("/webhooks/{ACCOUNT}/{id}");
    let (_, entries) = etcd.everything(false).await.unwrap();
    let entry = entries
        .into_iter()
        .find(|entry| entry.key.ends_with(end.as_bytes()))
        .unwrap();
    let (account, id) = (AccountId::new(ACCOUNT).unwrap(), WebhookId::new(id).unwrap());
    let webhook = decode_webhook(account, id, entry.value.clone().into()).unwrap();
    let now = SystemClock.now();
    let suspension = Suspension::begin(None, suspended::GONE, "the receiver answered 410", now);
    let key = String::from_utf8(entry.key.to_vec()).unwrap();
    etcd.put(&key, suspend_webhook(&entry.value.into(), &webhook, &suspension))
        .await
        .unwrap();
}

async fn state(client: &Client, id: &str) -> (State, String) {
    let name = format!("accounts/{ACCOUNT}/webhooks/{id}");
    let webhook = client
        .webhooks()
        .get_webhook(GetWebhookRequest { name })
        .await
        .unwrap()
        .into_inner();
    (webhook.state(), webhook.state_reason)
}

async fn set_active(client: &Client, id: &str) {
    let request = UpdateWebhookRequest {
        webhook: Some(Webhook {
            name: format!("accounts/{ACCOUNT}/webhooks/{id}"),
            active: Some(true),
            ..Webhook::default()
        }),
        ..UpdateWebhookRequest::default()
    };
    client.webhooks().update_webhook(request).await.unwrap();
}

/// The data of all events of this name that arrived at a path.
fn told(log: &Log, path: &str, name: &str) -> Vec<serde_json::Value> {
    let events = log
        .of(path)
        .into_iter()
        .map(|request| request.json()["events"][0].clone());
    let named = events.filter(|event| event["eventName"] == name);
    named.map(|event| event["data"].clone()).collect()
}

#[tokio::test]
async fn an_account_is_told_once_what_becomes_of_its_webhooks_whoever_leads() {
    let mut cluster = Cluster::of(1, 2, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    receiver.script("/down", [Answer::status(StatusCode::BAD_GATEWAY)]);
    let down = Webhook {
        retry: Some(RetryPolicy {
            max_attempts: 1,
            ..RetryPolicy::default()
        }),
        ..webhook(&receiver.url("/down"), &["A", "postrider.*"], None)
    };
    client.create_webhook(ACCOUNT, "down", down).await;
    let ops = webhook(&receiver.url("/ops"), &["postrider.*", "MARK"], None);
    client.create_webhook(ACCOUNT, "ops", ops).await;
    client
        .create_webhook(ACCOUNT, "all", webhook(&receiver.url("/all"), &["*"], None))
        .await;
    cluster.matching(ACCOUNT, "A", 2).await;
    cluster.matching(ACCOUNT, "MARK", 2).await;
    let refused = client
        .try_publish(ACCOUNT, vec![event("x", "postrider.webhook.suspended", "{}")], "")
        .await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::InvalidArgument);

    client.publish(ACCOUNT, vec![event("e1", "A", "{}")]).await;
    let dead = "postrider.delivery.dead_lettered";
    receiver
        .until("word of the dead letter", SOON, |log| {
            !told(log, "/ops", dead).is_empty()
        })
        .await;
    let data = told(&receiver.log(), "/ops", dead);
    assert_eq!(
        (&data[0]["count"], &data[0]["events"][0]["eventId"]),
        (&1.into(), &"e1".into())
    );

    suspend(&cluster, "down").await;
    let begun = "postrider.webhook.suspended";
    receiver
        .until("word of the suspension", SOON, |log| {
            !told(log, "/ops", begun).is_empty()
        })
        .await;
    let data = told(&receiver.log(), "/ops", begun);
    assert_eq!(data[0]["webhook"], format!("accounts/{ACCOUNT}/webhooks/down"));
    assert_eq!(data[0]["reason"], "GONE");
    let (is, why) = state(&client, "down").await;
    assert_eq!(is, State::Suspended);
    assert!(
        why.starts_with("GONE: ") && why.contains("the receiver answered 410"),
        "{why}"
    );
    cluster.matching(ACCOUNT, "A", 1).await;

    // Another leads, that saw none of it.
    cluster.add_control_planes(1).await;
    cluster.kill_control_plane(0).await;
    cluster.stop_control_plane(0).await;
    let client = cluster.client(0);
    set_active(&client, "down").await;
    assert_eq!(state(&client, "down").await, (State::Active, String::new()));
    let ended = "postrider.webhook.reactivated";
    receiver
        .until("word of the reactivation", SOON, |log| {
            !told(log, "/ops", ended).is_empty()
        })
        .await;
    client.publish(ACCOUNT, vec![event("mark", "MARK", "{}")]).await;
    receiver.until("the mark", SOON, |log| log.has("/ops", "mark")).await;
    cluster.drained(SOON).await;
    let log = receiver.log();
    for name in [dead, begun, ended] {
        assert_eq!(told(&log, "/ops", name).len(), 1, "{name}");
        assert!(
            told(&log, "/down", name).is_empty(),
            "{name}: a webhook is not told of itself"
        );
        assert!(told(&log, "/all", name).is_empty(), "{name}: a star does not cover it");
    }
}
