//! A disk that is full: the embedded store in a real process on a real file system that has no room left.

use std::path::{Path, PathBuf};

use postrider_common::entropy::{Entropy as _, SystemEntropy};
use postrider_proto::v1::Event;
use postrider_tests::client::{Client, event, request_id, signature, webhook};
use postrider_tests::process::{Process, program};
use postrider_tests::receiver::{Proof, Receiver};
use postrider_tests::wait;
use tempfile::TempDir;
use tokio::process::Command;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::FLOW;

const ACCOUNT: &str = "1010";

/// Large events that are more than the small disk holds.
const MOST: u64 = 600;

/// A small file system in a mount namespace of its own; it goes with the process that holds it.
struct Disk {
    holder: Process,
    folder: TempDir,
}

impl Disk {
    async fn of(mebibytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("disk")).unwrap();
        let mount = format!("mount -t tmpfs -o size={mebibytes}m disk disk && echo ready && exec sleep infinity");
        let holder = Process::start(
            Path::new("unshare"),
            "disk",
            ["--mount", "--", "sh", "-c", &mount],
            folder.path(),
        );
        let disk = Self { holder, folder };
        wait::until("the file system (run as root)", FLOW, async || {
            disk.holder.output().contains("ready").then_some(())
        })
        .await;
        disk
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// `nsenter`'s arguments before a command that sees it.
    fn inside(&self) -> [String; 4] {
        [
            "-t".to_owned(),
            self.holder.pid().to_string(),
            "-m".to_owned(),
            "--".to_owned(),
        ]
    }

    async fn grow(&self, mebibytes: usize) {
        let mut command = Command::new("nsenter");
        command.args(self.inside());
        command
            .args(["mount", "-o", &format!("remount,size={mebibytes}m")])
            .arg(self.path());
        assert!(command.status().await.unwrap().success());
    }

    /// Starts `postrider serve` on it.
    async fn serve(&self, name: &str) -> (Process, Client) {
        let (program, data) = (program("postrider"), self.path().join("data"));
        let arguments = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
        let egress = ["--egress-allow", "127.0.0.0/8"];
        let all = self.inside().into_iter().chain([
            program.display().to_string(),
            "serve".to_owned(),
            "--data".to_owned(),
            data.display().to_string(),
        ]);
        let all = all.chain(arguments.iter().chain(&egress).map(|&argument| argument.to_owned()));
        let mut process = Process::start(Path::new("nsenter"), name, all, self.folder.path());
        let addresses = process.listening(2).await;
        (process, Client::new(addresses[0]))
    }
}

/// An event of 40 KiB of which packing leaves 20.
fn large(number: u64) -> Event {
    let chance = SystemEntropy::seeded(number);
    let digits: String = (0..2560).map(|_| format!("{:016x}", chance.next_u64())).collect();
    event(&format!("e-{number}"), "A", format!("\"{digits}\""))
}

/// Publishes large events under request ids until one is refused, at most half as much again as there is room for; gives the number of the next, and the refusal.
async fn fill(client: &Client, from: u64) -> (u64, Option<Status>) {
    for number in from..from + MOST {
        let published = client
            .try_publish(ACCOUNT, vec![large(number)], &request_id(number))
            .await;
        if let Err(status) = published {
            return (number, Some(status));
        }
    }
    (from + MOST, None)
}

#[tokio::test]
async fn a_disk_that_is_full_costs_nothing_that_was_accepted_and_is_written_again_when_there_is_room() {
    let disk = Disk::of(8).await;
    let mut receiver = Receiver::start();
    let (mut first, client) = disk.serve("first").await;
    client
        .create_webhook(ACCOUNT, "w", webhook(&receiver.url("/w"), &["*"], signature()))
        .await;
    let secret = client.signing_secret(&format!("accounts/{ACCOUNT}/webhooks/w")).await;
    receiver.expect("/w", Proof::Signature(secret));
    receiver.down().await;
    let (accepted, refusal) = fill(&client, 0).await;
    let refusal = refusal.expect("it is full");
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal:?}");
    let details = refusal.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "STORE_FULL");
    assert!(details.retry_info().is_some());
    assert!(accepted > 20, "{accepted}");
    // Whoever kills it now finds what was accepted.
    first.kill().await;
    disk.grow(64).await;
    let (mut second, client) = disk.serve("second").await;
    // What was refused was not done, or is answered as it was the first time.
    wait::until("publishing to be possible again", FLOW, async || {
        let again = client
            .try_publish(ACCOUNT, vec![large(accepted)], &request_id(accepted))
            .await;
        again.is_ok().then_some(())
    })
    .await;
    receiver.up();
    let all = usize::try_from(accepted).unwrap() + 1;
    receiver
        .until("all that was accepted", FLOW, |log| log.distinct() >= all)
        .await;
    println!("{accepted} events were accepted before the disk was full");
    second.kill().await;
    let log = receiver.log();
    assert_eq!((log.distinct(), log.unproven()), (all, 0));
}

#[tokio::test]
async fn a_process_whose_disk_is_full_goes_on_when_there_is_room_again() {
    let disk = Disk::of(8).await;
    let receiver = Receiver::start();
    let (mut process, client) = disk.serve("only").await;
    let well = webhook(&receiver.url("/w"), &["B"], signature());
    client.create_webhook(ACCOUNT, "w", well).await;
    let mut away = Receiver::start();
    away.down().await;
    client
        .create_webhook(ACCOUNT, "away", webhook(&away.url("/away"), &["A"], signature()))
        .await;
    let (accepted, refusal) = fill(&client, 0).await;
    assert!(refusal.is_some());
    disk.grow(64).await;
    wait::until("publishing to be possible again", FLOW, async || {
        let events = vec![event("late", "B", "{}")];
        client.try_publish(ACCOUNT, events, &request_id(9_999_999)).await.ok()
    })
    .await;
    receiver.until("the late one", FLOW, |log| log.has("/w", "late")).await;
    let (more, refusal) = fill(&client, accepted + 1).await;
    assert_eq!((more, refusal.map(|status| status.code())), (accepted + 1 + MOST, None));
    process.kill().await;
}
