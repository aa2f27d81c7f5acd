//! Watching webhooks: whoever comes back with a token misses nothing, whichever control plane is left.

use std::collections::BTreeMap;

use postrider_proto::v1::watch_webhooks_response::Kind;
use postrider_proto::v1::{
    DeleteWebhookRequest, UpdateWebhookRequest, WatchWebhooksRequest, WatchWebhooksResponse, Webhook,
};
use postrider_tests::client::{Client, basic, webhook};
use postrider_tests::cluster::Cluster;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::{ACCOUNT, SOON};

const URL: &str = "http://127.0.0.1:8443/hook";

async fn watch(client: &Client, token: &str) -> Streaming<WatchWebhooksResponse> {
    let request = WatchWebhooksRequest {
        parent: format!("accounts/{ACCOUNT}"),
        resume_token: token.to_owned(),
    };
    client.webhooks().watch_webhooks(request).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<WatchWebhooksResponse>) -> Result<WatchWebhooksResponse, Status> {
    let message = timeout(SOON, stream.message())
        .await
        .expect("a message or an end comes")?;
    Ok(message.expect("a stream ends with a status only"))
}

/// What somebody knows of the webhooks who has seen these messages: names, and the generation of each.
#[derive(Debug, Default, PartialEq)]
struct Known(BTreeMap<String, i64>);

impl Known {
    fn learn(&mut self, message: &WatchWebhooksResponse) {
        let webhook = message.webhook.clone().unwrap_or_default();
        let before = self.0.get(&webhook.name).copied();
        match message.kind() {
            Kind::Reset => self.0.clear(),
            Kind::Synced | Kind::Progress => {}
            Kind::Existing | Kind::Created => {
                assert_eq!(before, None, "{} came twice", webhook.name);
                self.0.insert(webhook.name, webhook.generation);
            }
            Kind::Updated => {
                assert_eq!(before, Some(webhook.generation - 1), "{} missed a change", webhook.name);
                self.0.insert(webhook.name, webhook.generation);
            }
            Kind::Deleted => assert!(self.0.remove(&webhook.name).is_some(), "{} was not known", webhook.name),
            Kind::Unspecified => panic!("a message says nothing"),
        }
    }
}

async fn rename(client: &Client, id: &str, display_name: &str) {
    let request = UpdateWebhookRequest {
        webhook: Some(Webhook {
            name: format!("accounts/{ACCOUNT}/webhooks/{id}"),
            display_name: display_name.to_owned(),
            ..Webhook::default()
        }),
        ..UpdateWebhookRequest::default()
    };
    client.webhooks().update_webhook(request).await.unwrap();
}

async fn delete(client: &Client, id: &str) {
    let request = DeleteWebhookRequest {
        name: format!("accounts/{ACCOUNT}/webhooks/{id}"),
        ..DeleteWebhookRequest::default()
    };
    client.webhooks().delete_webhook(request).await.unwrap();
}

#[tokio::test]
async fn a_watcher_whose_control_plane_is_killed_goes_on_at_the_other_and_misses_nothing() {
    let mut cluster = Cluster::of(1, 2, 1).await;
    let (first, second) = (cluster.client(0), cluster.client(1));
    second.create_account(ACCOUNT, 50).await;
    for number in 0..3 {
        let secret = webhook(URL, &["A"], basic("alice", "correct horse"));
        second.create_webhook(ACCOUNT, &format!("w{number}"), secret).await;
    }
    let mut stream = watch(&first, "").await;
    let mut known = Known::default();
    let mut token = String::new();
    // Quiet for longer than the store remembers: the tokens stay fresh.
    let mut signs = 0;
    while signs < 4 {
        let message = next(&mut stream).await.unwrap();
        assert!(!format!("{message:?}").contains("correct horse"));
        signs += usize::from(message.kind() == Kind::Progress);
        known.learn(&message);
        token = message.resume_token;
    }
    assert_eq!(known.0.len(), 3);
    // It is killed while changes are made, and more are made while nobody watches.
    let changes = async {
        for number in 0..10 {
            rename(&second, "w0", &format!("name {number}")).await;
        }
    };
    let reading = async {
        for _ in 0..3 {
            let message = next(&mut stream).await.unwrap();
            known.learn(&message);
            token = message.resume_token;
        }
    };
    tokio::join!(changes, reading);
    cluster.kill_control_plane(0).await;
    delete(&second, "w1").await;
    second.create_webhook(ACCOUNT, "w1", webhook(URL, &["B"], None)).await;
    second.create_webhook(ACCOUNT, "w9", webhook(URL, &["B"], None)).await;
    delete(&second, "w2").await;
    let mut stream = watch(&second, &token).await;
    let mut kinds = Vec::new();
    while known.0.contains_key(&format!("accounts/{ACCOUNT}/webhooks/w2"))
        || !known.0.contains_key(&format!("accounts/{ACCOUNT}/webhooks/w9"))
    {
        let message = next(&mut stream).await.unwrap();
        kinds.push(message.kind());
        known.learn(&message);
    }
    let expected = [("w0", 11), ("w1", 1), ("w9", 1)];
    let expected = expected.map(|(id, generation)| (format!("accounts/{ACCOUNT}/webhooks/{id}"), generation));
    assert_eq!(known, Known(expected.into()));
    assert!(
        !kinds.contains(&Kind::Reset),
        "the store still knew what had happened: {kinds:?}"
    );
}

#[tokio::test]
async fn a_watcher_that_was_away_for_long_is_told_to_begin_again() {
    let cluster = Cluster::of(1, 1, 1).await;
    let client = cluster.client(0);
    client.create_webhook(ACCOUNT, "a", webhook(URL, &["A"], None)).await;
    let mut stream = watch(&client, "").await;
    let existing = next(&mut stream).await.unwrap();
    let synced = next(&mut stream).await.unwrap();
    assert_eq!((existing.kind(), synced.kind()), (Kind::Existing, Kind::Synced));
    rename(&client, "a", "missed").await;
    // Another watcher, who stays, makes the store go on and forget.
    for _ in 0..8 {
        while next(&mut stream).await.unwrap().kind() != Kind::Progress {}
    }
    let mut late = watch(&client, &synced.resume_token).await;
    let begun = [
        next(&mut late).await.unwrap(),
        next(&mut late).await.unwrap(),
        next(&mut late).await.unwrap(),
    ];
    assert_eq!(
        begun.each_ref().map(WatchWebhooksResponse::kind),
        [Kind::Reset, Kind::Existing, Kind::Synced]
    );
    assert_eq!(begun[1].webhook.as_ref().unwrap().display_name, "missed");
}

#[tokio::test]
async fn streams_end_at_once_when_their_control_plane_stops() {
    let mut cluster = Cluster::of(1, 2, 1).await;
    let mut stream = watch(&cluster.client(0), "").await;
    let synced = next(&mut stream).await.unwrap();
    let stopping = tokio::time::Instant::now();
    cluster.stop_control_plane(0).await;
    let ended = loop {
        if let Err(status) = next(&mut stream).await {
            break status;
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert!(
        stopping.elapsed() < std::time::Duration::from_secs(8),
        "it did not wait for its watchers"
    );
    let mut stream = watch(&cluster.client(0), &synced.resume_token).await;
    assert!(next(&mut stream).await.is_ok());
}
