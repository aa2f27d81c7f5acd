//! One program, no etcd: the demonstration runs through, and an embedded store keeps its promises over kill -9.

use std::path::Path;
use std::time::Duration;

use postrider_tests::client::{Client, event, signature, webhook};
use postrider_tests::process::{Process, program};
use postrider_tests::receiver::{Proof, Receiver};

use crate::{ACCOUNT, SOON};

async fn serve(name: &str, folder: &Path) -> (Process, Client) {
    let data = folder.join("data").display().to_string();
    let arguments = [
        "serve",
        "--data",
        &data,
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "127.0.0.1:0",
    ];
    let egress = ["--egress-allow", "127.0.0.0/8"];
    let mut process = Process::start(&program("postrider"), name, arguments.iter().chain(&egress), folder);
    let addresses = process.listening(2).await;
    (process, Client::new(addresses[0]))
}

#[tokio::test]
async fn the_demonstration_runs_through() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Process::start(&program("postrider"), "demo", ["demo", "--once"], folder.path());
    let status = demo.ended(Duration::from_secs(60)).await;
    assert!(status.success(), "{status}\n{}", demo.output());
    assert!(demo.output().contains("COURSE_ENROLLMENT"), "{}", demo.output());
}

#[tokio::test]
async fn an_embedded_store_keeps_what_was_accepted_over_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let mut receiver = Receiver::start();
    let (mut first, client) = serve("first", folder.path()).await;
    client
        .create_webhook(ACCOUNT, "kept", webhook(&receiver.url("/kept"), &["*"], signature()))
        .await;
    let secret = client
        .signing_secret(&format!("accounts/{ACCOUNT}/webhooks/kept"))
        .await;
    receiver.expect("/kept", Proof::Signature(secret));
    receiver.down().await;
    let answer = client
        .publish(ACCOUNT, (0..100).map(|n| event(&format!("e{n}"), "A", "{}")).collect())
        .await;
    assert_eq!(answer.events.len(), 100);
    first.kill().await;
    receiver.up();
    let (mut second, client) = serve("second", folder.path()).await;
    receiver
        .until("what was accepted before", SOON, |log| log.distinct() == 100)
        .await;
    client.publish(ACCOUNT, vec![event("late", "A", "{}")]).await;
    receiver
        .until("what was published after", SOON, |log| log.has("/kept", "late"))
        .await;
    let counts = {
        let log = receiver.log();
        (log.repeats(), log.unproven())
    };
    assert_eq!(counts, (0, 0));
    second.signal("TERM").await;
    assert!(second.ended(SOON).await.success(), "{}", second.tail());
}
