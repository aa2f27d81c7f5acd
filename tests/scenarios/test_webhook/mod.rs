//! TestWebhook on a real cluster: one request, now, by an agent, and the whole transcript of it without a secret.

mod circumstances;
mod transcript;

use postrider_proto::v1::{TestWebhookRequest, TestWebhookResponse, Webhook};
use postrider_tests::client::Client;
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Received, Receiver};
use tonic::Status;

use crate::ACCOUNT;

/// A secret that must never be seen.
const CANARY: &str = "canary-5d0f";

fn stored(id: &str) -> TestWebhookRequest {
    TestWebhookRequest {
        name: format!("accounts/{ACCOUNT}/webhooks/{id}"),
        ..TestWebhookRequest::default()
    }
}

fn unsaved(webhook: Webhook) -> TestWebhookRequest {
    TestWebhookRequest {
        parent: format!("accounts/{ACCOUNT}"),
        webhook: Some(webhook),
        ..TestWebhookRequest::default()
    }
}

async fn try_test(client: &Client, request: TestWebhookRequest) -> Result<TestWebhookResponse, Status> {
    client
        .webhooks()
        .test_webhook(request)
        .await
        .map(tonic::Response::into_inner)
}

async fn test(client: &Client, request: TestWebhookRequest) -> TestWebhookResponse {
    try_test(client, request).await.expect("the test is made")
}

/// The last request that came to a path.
fn last(receiver: &Receiver, path: &str) -> Received {
    (*receiver.log().of(path).last().expect("a request came")).clone()
}

/// Keys of tests in the store.
async fn test_keys(cluster: &Cluster) -> Vec<String> {
    let mut keys = cluster.etcd.client(0).keys_with("/tests/").await.unwrap();
    keys.extend(cluster.etcd.client(0).keys_with("/test-answers/").await.unwrap());
    keys
}

/// Nothing of a test stays in the store, and no secret stands there or in a log.
async fn assert_clean(cluster: &Cluster) {
    assert_eq!(test_keys(cluster).await, [""; 0]);
    let (_, entries) = cluster.etcd.client(0).everything(false).await.unwrap();
    for entry in entries {
        assert!(!String::from_utf8_lossy(&entry.value).contains(CANARY));
    }
    assert!(!cluster.output().contains(CANARY), "a secret stands in a log");
}
