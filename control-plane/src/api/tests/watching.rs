//! WatchWebhooks: what a watcher sees, what it sees when it comes back, and how a stream ends.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::{sleep, timeout};
use tonic::Request;
use v1::WatchWebhooksResponse;
use v1::watch_webhooks_response::Kind;
use v1::webhook_service_server::WebhookService as _;
use webhook_watch::{Messages, watch};

use super::*;
use crate::api::webhook_service::Webhooks;

struct World {
    store: MemoryStore,
    deps: Deps,
    group: Group,
}

impl World {
    fn new() -> Self {
        let (store, group) = (MemoryStore::default(), Group::default());
        let deps = deps(&store, &group, &Arc::default());
        Self { store, deps, group }
    }

    async fn create(&self, account: &str, id: &str) {
        let request = v1::CreateWebhookRequest {
            parent: format!("accounts/{account}"),
            webhook_id: id.into(),
            webhook: Some(v1::Webhook {
                auth: basic("alice", "correct horse"),
                ..valid()
            }),
            ..v1::CreateWebhookRequest::default()
        };
        Webhooks(self.deps.clone())
            .create_webhook(Request::new(request))
            .await
            .unwrap();
    }

    async fn update(&self, account: &str, id: &str, display_name: &str) {
        let request = v1::UpdateWebhookRequest {
            webhook: Some(v1::Webhook {
                name: format!("accounts/{account}/webhooks/{id}"),
                display_name: display_name.into(),
                ..v1::Webhook::default()
            }),
            ..v1::UpdateWebhookRequest::default()
        };
        Webhooks(self.deps.clone())
            .update_webhook(Request::new(request))
            .await
            .unwrap();
    }

    async fn delete(&self, account: &str, id: &str) {
        let request = v1::DeleteWebhookRequest {
            name: format!("accounts/{account}/webhooks/{id}"),
            ..v1::DeleteWebhookRequest::default()
        };
        Webhooks(self.deps.clone())
            .delete_webhook(Request::new(request))
            .await
            .unwrap();
    }

    fn watch(&self, parent: &str, token: &str) -> Messages {
        let request = v1::WatchWebhooksRequest {
            parent: parent.into(),
            resume_token: token.into(),
        };
        watch(&self.deps, request).unwrap()
    }

    async fn forget(&self) {
        let now = self.store.get(&Key::from_stored("x")).await.unwrap().1;
        self.store.compact(now).await.unwrap();
    }
}

/// The next message that is not a mere sign of life.
async fn next(messages: &mut Messages) -> WatchWebhooksResponse {
    loop {
        let message = timeout(Duration::from_secs(30), messages.next())
            .await
            .expect("a message comes");
        let message = message.expect("the stream goes on").expect("the stream is well");
        if message.kind() != Kind::Progress {
            return message;
        }
    }
}

async fn take(messages: &mut Messages, count: usize) -> Vec<WatchWebhooksResponse> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(next(messages).await);
    }
    taken
}

fn told(messages: &[WatchWebhooksResponse]) -> Vec<String> {
    let tell = |message: &WatchWebhooksResponse| {
        let webhook = message.webhook.as_ref();
        let name = webhook.map_or("", |webhook| webhook.name.rsplit('/').next().unwrap());
        let text = webhook.map_or("", |webhook| webhook.display_name.as_str());
        format!("{:?} {name} {text}", message.kind()).trim_end().to_owned()
    };
    messages.iter().map(tell).collect()
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_what_is_there_then_each_change_and_can_come_back_after_each_message() {
    let world = World::new();
    for id in ["a", "b", "c"] {
        world.create("1010", id).await;
    }
    world.create("2020", "other").await;
    let mut messages = world.watch("accounts/1010", "");
    let mut seen = take(&mut messages, 4).await;
    // Live, and in one go from the past: several revisions at once.
    world.create("1010", "d").await;
    seen.extend(take(&mut messages, 1).await);
    world.update("1010", "b", "one").await;
    world.create("2020", "another").await;
    world.delete("1010", "a").await;
    world.update("1010", "b", "two").await;
    world.delete("1010", "d").await;
    world.create("1010", "a").await;
    seen.extend(take(&mut messages, 5).await);
    let expected = [
        "Existing a",
        "Existing b",
        "Existing c",
        "Synced",
        "Created d",
        "Updated b one",
        "Deleted a",
        "Updated b two",
        "Deleted d",
        "Created a",
    ];
    assert_eq!(told(&seen), expected);
    for (number, message) in seen.iter().enumerate() {
        let mut again = world.watch("accounts/1010", &message.resume_token);
        let rest = take(&mut again, seen.len() - number - 1).await;
        assert_eq!(told(&rest), expected[number + 1..], "after message {number}");
        // Also from a token of a stream that was itself resumed.
        if let Some(message) = rest.first() {
            let rest = take(&mut world.watch("accounts/1010", &message.resume_token), rest.len() - 1).await;
            assert_eq!(
                told(&rest),
                expected[number + 2..],
                "after message {number} and one more"
            );
        }
    }
    let deleted = seen[6].webhook.as_ref().unwrap();
    assert_eq!(
        (deleted.generation, deleted.target_url.as_str()),
        (1, "https://example.com/hook")
    );
    assert!(!format!("{seen:?}").contains("correct horse"));
    world.group.shut_down(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn all_accounts_can_be_watched_at_once() {
    let world = World::new();
    world.create("1010", "a").await;
    world.create("2020", "b").await;
    let mut messages = world.watch("accounts/-", "");
    assert_eq!(
        told(&take(&mut messages, 3).await),
        ["Existing a", "Existing b", "Synced"]
    );
    world.create("3030", "c").await;
    world.delete("1010", "a").await;
    assert_eq!(told(&take(&mut messages, 2).await), ["Created c", "Deleted a"]);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watchers_token_outlives_what_the_store_forgets_and_an_old_one_begins_again() {
    let world = World::new();
    world.create("1010", "a").await;
    let mut messages = world.watch("accounts/1010", "");
    let synced = take(&mut messages, 2).await.pop().unwrap();
    sleep(Duration::from_secs(7)).await;
    let mut fresh = String::new();
    for _ in 0..3 {
        let message = messages.next().await.unwrap().unwrap();
        assert_eq!(message.kind(), Kind::Progress);
        fresh = message.resume_token;
    }
    drop(messages);
    // Nothing of this account was written since: only pulses.
    world.forget().await;
    world.update("1010", "a", "new").await;
    assert_eq!(
        told(&take(&mut world.watch("accounts/1010", &fresh), 1).await),
        ["Updated a new"]
    );
    let mut late = world.watch("accounts/1010", &synced.resume_token);
    let begun = take(&mut late, 3).await;
    assert_eq!(told(&begun), ["Reset", "Existing a new", "Synced"]);
    // A reader that died with the reset begins again as well.
    let mut again = world.watch("accounts/1010", &begun[0].resume_token);
    assert_eq!(told(&take(&mut again, 2).await), ["Existing a new", "Synced"]);
    // In a listing that is forgotten, too.
    let half = take(&mut world.watch("accounts/1010", ""), 1).await.pop().unwrap();
    world.update("1010", "a", "newer").await;
    world.forget().await;
    let mut late = world.watch("accounts/1010", &half.resume_token);
    assert_eq!(told(&take(&mut late, 3).await), ["Reset", "Existing a newer", "Synced"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_deleted_webhook_was_is_left_out_where_it_is_forgotten() {
    let world = World::new();
    world.create("1010", "a").await;
    let mut messages = world.watch("accounts/1010", "");
    take(&mut messages, 2).await;
    world.delete("1010", "a").await;
    world.forget().await;
    let deleted = next(&mut messages).await;
    let expected = v1::Webhook {
        name: "accounts/1010/webhooks/a".into(),
        ..v1::Webhook::default()
    };
    // The watch had not looked before the store forgot: it begins again, or has seen the deletion and knows the name only.
    match deleted.kind() {
        Kind::Deleted => assert_eq!(deleted.webhook, Some(expected)),
        kind => assert_eq!(kind, Kind::Reset),
    }
}

#[tokio::test(start_paused = true)]
async fn streams_end_with_a_reason_to_come_back() {
    let world = World::new();
    let mut messages = world.watch("accounts/1010", "");
    take(&mut messages, 1).await;
    world.group.token().cancel();
    let ended = messages.next().await.unwrap().unwrap_err();
    assert_eq!(reason(&ended), (Code::Unavailable, "STOPPING".into()));
    assert!(messages.next().await.is_none());
    let refused = watch(
        &world.deps,
        v1::WatchWebhooksRequest {
            parent: "accounts/1010".into(),
            resume_token: String::new(),
        },
    );
    assert_eq!(refused.err(), Some(status::Error::Stopping));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_loses_its_stream_and_nothing_else() {
    let world = World::new();
    world.create("1010", "a").await;
    let mut messages = world.watch("accounts/1010", "");
    let synced = take(&mut messages, 2).await.pop().unwrap();
    for number in 0..100 {
        world.update("1010", "a", &number.to_string()).await;
    }
    sleep(Duration::from_secs(30)).await;
    let mut last = synced.resume_token;
    let mut seen = Vec::new();
    let ended = loop {
        match messages.next().await.unwrap() {
            Ok(message) => {
                last.clone_from(&message.resume_token);
                seen.push(message);
            }
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), (Code::Aborted, "SLOW_READER".into()));
    assert!(seen.len() < 100, "{} messages were kept for it", seen.len());
    let mut messages = world.watch("accounts/1010", &last);
    let rest = take(&mut messages, 100 - seen.len()).await;
    seen.extend(rest);
    let expected: Vec<String> = (0..100).map(|number| format!("Updated a {number}")).collect();
    assert_eq!(told(&seen), expected);
}

#[tokio::test(start_paused = true)]
async fn so_many_streams_and_no_more_and_whoever_leaves_makes_room() {
    let world = World::new();
    let request = v1::WatchWebhooksRequest {
        parent: "accounts/-".into(),
        resume_token: String::new(),
    };
    let mut streams: Vec<Messages> = (0..64).map(|_| watch(&world.deps, request.clone()).unwrap()).collect();
    let refused = watch(&world.deps, request.clone()).err().unwrap();
    assert_eq!(
        (refused.code(), refused.reason()),
        (Code::ResourceExhausted, "TOO_MANY_WATCHES")
    );
    // Together they write one pulse every two seconds.
    let before = world.store.get(&Key::from_stored("x")).await.unwrap().1;
    sleep(Duration::from_secs(20)).await;
    let written = world.store.get(&Key::from_stored("x")).await.unwrap().1.0 - before.0;
    assert!((9..=11).contains(&written), "{written} pulses in 20 s");
    streams.pop();
    sleep(Duration::from_millis(1)).await;
    assert!(watch(&world.deps, request).is_ok());
}

#[tokio::test]
async fn parents_and_tokens_that_are_none_are_refused() {
    let mut server = serve().await;
    server.create("a", valid()).await;
    let request = |parent: &str, token: &str| v1::WatchWebhooksRequest {
        parent: parent.into(),
        resume_token: token.into(),
    };
    let mut messages = server
        .webhooks
        .watch_webhooks(request("accounts/1010", ""))
        .await
        .unwrap()
        .into_inner();
    let token = messages.message().await.unwrap().unwrap().resume_token;
    let page = v1::ListWebhooksRequest {
        parent: "accounts/1010".into(),
        page_size: 1,
        page_token: String::new(),
    };
    server.create("b", valid()).await;
    let page = server
        .webhooks
        .list_webhooks(page)
        .await
        .unwrap()
        .into_inner()
        .next_page_token;
    let mut broken = token.clone();
    broken.replace_range(4..5, if &token[4..5] == "A" { "B" } else { "A" });
    for (parent, wrong, field, reason) in [
        ("", "", "parent", "REQUIRED"),
        ("1010", "", "parent", "MALFORMED"),
        ("accounts/", "", "parent", "MALFORMED"),
        ("accounts/A", "x", "parent", "MALFORMED"),
        ("accounts/-/webhooks/a", "", "parent", "MALFORMED"),
        ("accounts/1010", "x", "resume_token", "MALFORMED"),
        ("accounts/1010", " ", "resume_token", "MALFORMED"),
        ("accounts/1010", &broken, "resume_token", "MALFORMED"),
        ("accounts/1010", &token[..token.len() - 1], "resume_token", "MALFORMED"),
        ("accounts/1010", &page, "resume_token", "MALFORMED"),
        ("accounts/2020", &token, "resume_token", "MALFORMED"),
        ("accounts/-", &token, "resume_token", "MALFORMED"),
    ] {
        let status = server
            .webhooks
            .watch_webhooks(request(parent, wrong))
            .await
            .unwrap_err();
        assert_eq!(
            mistakes(&status),
            [(field.to_owned(), reason.to_owned())],
            "{parent:?} {wrong:?}"
        );
    }
    assert!(
        server
            .webhooks
            .watch_webhooks(request("accounts/1010", &token))
            .await
            .is_ok()
    );
}
