//! A store that an earlier build wrote is read, counted and delivered by this one.
//!
//! `fixtures/store-1` is the folder of a `postrider serve` that was killed: written by a build that stores version 1, compressed. It is never changed; a release
//! that writes another version adds a folder of its own, written by this test with `POSTRIDER_WRITE_STORE_TO=tests/scenarios/fixtures/…`. What it holds is older
//! with every day, so what waits in it may be past its policy's age: it becomes dead letters then, which are redriven.

use std::path::{Path, PathBuf};

use http::StatusCode;
use postrider_proto::v1::delivery_options::{OnFailure, Ordering};
use postrider_proto::v1::{
    DeliveryOptions, RedriveDeadLettersRequest, RetryPolicy, UpdateWebhookRequest, Webhook, webhook::WhenInactive,
};
use postrider_tests::client::{Client, event, no_auth, signature, webhook};
use postrider_tests::process::{Process, program};
use postrider_tests::receiver::{Answer, Proof, Receiver};
use postrider_tests::wait;

use crate::accounting::{assert_adds_up, usage};
use crate::{ACCOUNT, FLOW, SOON};

/// The webhooks, with how many events each was owed.
const OWED: [(&str, i64); 3] = [("waits", 20), ("ordered", 10), ("dead", 5)];

const ALL: i64 = 35;

async fn serve(folder: &Path) -> (Process, Client) {
    let data = folder.join("data").display().to_string();
    let arguments = [
        ["--data", &data],
        ["--listen", "127.0.0.1:0"],
        ["--metrics-listen", "127.0.0.1:0"],
        ["--egress-allow", "127.0.0.0/8"],
        // A hundred years: the store of an old build is to be read for as long as there are tests.
        ["--dead-letter-retention", "876000h"],
    ];
    let arguments = std::iter::once("serve").chain(arguments.into_iter().flatten());
    let mut process = Process::start(&program("postrider"), "serve", arguments, folder);
    let addresses = process.listening(2).await;
    (process, Client::new(addresses[0]))
}

fn held(webhook: Webhook) -> Webhook {
    Webhook {
        active: Some(false),
        when_inactive: WhenInactive::Hold.into(),
        ..webhook
    }
}

/// Writes a store in which events wait, wait in order, and are dead; and kills who wrote it.
async fn write(folder: &Path) {
    let receiver = Receiver::start();
    receiver.script("/dead", vec![Answer::status(StatusCode::NOT_FOUND); 5]);
    let (mut process, client) = serve(folder).await;
    client.create_account(ACCOUNT, 20).await;
    let waits = held(webhook(&receiver.url("/waits"), &["WAITS"], signature()));
    let ordered = Webhook {
        delivery: Some(DeliveryOptions {
            ordering: Ordering::Strict.into(),
            on_failure: OnFailure::DeadLetter.into(),
            ..DeliveryOptions::default()
        }),
        ..held(webhook(&receiver.url("/ordered"), &["ORDERED"], no_auth()))
    };
    let dead = Webhook {
        retry: Some(RetryPolicy {
            max_attempts: 1,
            ..RetryPolicy::default()
        }),
        ..webhook(&receiver.url("/dead"), &["DEAD"], no_auth())
    };
    for (id, webhook) in [("waits", waits), ("ordered", ordered), ("dead", dead)] {
        client.create_webhook(ACCOUNT, id, webhook).await;
    }
    for (id, count) in OWED {
        let events = (0..count).map(|number| {
            let body = format!("{{\"number\":{number}}}");
            event(&format!("{id}-{number}"), &id.to_uppercase(), body)
        });
        client.publish(ACCOUNT, events.collect()).await;
    }
    wait::until("dead letters", SOON, async || {
        let total = usage(&client).await.total.unwrap();
        (total.dead == 5).then_some(())
    })
    .await;
    process.kill().await;
}

/// What is kept of a folder: its files, each compressed.
fn pack(data: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(data).unwrap().map(Result::unwrap) {
        let name = format!("{}.zst", file.file_name().display());
        let content = std::fs::read(file.path()).unwrap();
        std::fs::write(to.join(name), zstd::bulk::compress(&content, 19).unwrap()).unwrap();
    }
}

fn unpack(from: &Path, data: &Path) {
    std::fs::create_dir_all(data).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let content = zstd::bulk::decompress(&std::fs::read(file.path()).unwrap(), 64 << 20).unwrap();
        // Without `.zst`.
        std::fs::write(data.join(file.path().file_stem().unwrap()), content).unwrap();
    }
}

/// Serves what was packed, and asserts that it is all there and is delivered.
async fn assert_delivers(packed: &Path) {
    let folder = tempfile::tempdir().unwrap();
    unpack(packed, &folder.path().join("data"));
    let receiver = Receiver::start();
    let (mut process, client) = serve(folder.path()).await;
    let found = usage(&client).await;
    assert_adds_up(&found);
    let total = found.total.as_ref().unwrap();
    assert_eq!((total.accepted, total.waiting + total.dead), (ALL, ALL), "{found:?}");
    let name = |id: &str| format!("accounts/{ACCOUNT}/webhooks/{id}");
    let secret = client.signing_secret(&name("waits")).await;
    receiver.expect("/waits", Proof::Signature(secret));
    for (id, _) in OWED {
        let request = UpdateWebhookRequest {
            webhook: Some(Webhook {
                name: name(id),
                target_url: receiver.url(&format!("/{id}")),
                active: Some(true),
                ..Webhook::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["target_url".to_owned(), "active".to_owned()],
            }),
            ..UpdateWebhookRequest::default()
        };
        client.webhooks().update_webhook(request).await.unwrap();
    }
    wait::until("everything to be delivered", FLOW, async || {
        for (id, _) in OWED {
            let request = RedriveDeadLettersRequest {
                parent: name(id),
                ..RedriveDeadLettersRequest::default()
            };
            client.deliveries().redrive_dead_letters(request).await.ok()?;
        }
        let usage = usage(&client).await;
        assert_adds_up(&usage);
        (usage.total.unwrap().delivered == ALL).then_some(())
    })
    .await;
    {
        let log = receiver.log();
        assert_eq!((log.repeats(), log.unproven()), (0, 0));
        for (id, count) in OWED {
            let requests = log.of(&format!("/{id}"));
            let mut numbers: Vec<i64> = requests
                .iter()
                .map(|request| request.json()["events"][0]["data"]["number"].as_i64().unwrap())
                .collect();
            // Also those of the ordered webhook: what is redriven because the store is old may come after what was not.
            numbers.sort_unstable();
            assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "{id}");
        }
    }
    process.signal("TERM").await;
    assert!(process.ended(SOON).await.success(), "{}", process.tail());
}

#[tokio::test]
async fn a_store_that_this_build_wrote_is_delivered_by_it() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path()).await;
    let packed = folder.path().join("packed");
    pack(&folder.path().join("data"), &packed);
    if let Some(to) = std::env::var_os("POSTRIDER_WRITE_STORE_TO") {
        pack(&folder.path().join("data"), &PathBuf::from(to));
    }
    assert_delivers(&packed).await;
}

#[tokio::test]
async fn a_store_that_a_build_of_stored_version_1_wrote_is_delivered() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/fixtures/store-1");
    assert_delivers(&fixture).await;
}
