//! An etcd that fills up: publishing stops before it is full; when it is, deliveries go on and are recorded once it has been brought back.

use std::net::SocketAddr;
use std::process::Stdio;

use bytes::Bytes;
use postrider_tests::client::{Client, event, no_auth, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::http::get;
use postrider_tests::process::program;
use postrider_tests::receiver::Receiver;
use postrider_tests::wait;
use tokio::process::Command;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::accounting::{assert_adds_up, usage};
use crate::{ACCOUNT, FLOW, SOON};

/// What etcd may grow to. Between the last level and all of it there must be room for what its file has in pages that are free, but too small.
const QUOTA: u64 = 64 << 20;

/// Events that wait when it is full: fewer than an agent may leave unrecorded.
const EVENTS: usize = 400;

/// Their webhooks: enough for both agents to own some.
const WEBHOOKS: usize = 8;

fn is_full(status: &Status) -> bool {
    let details = status.get_error_details();
    let said = details.error_info().is_some_and(|info| info.reason == "STORE_FULL");
    if said {
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(details.retry_info().is_some());
    }
    said
}

/// Bytes of one key of others.
const FILLER: i64 = 100_000;

/// Puts keys of others into etcd until `percent` of the quota is in use, and hardly more. Returns how many there are now.
async fn fill(cluster: &Cluster, percent: u64, mut filled: i64) -> i64 {
    let client = cluster.etcd.client(0);
    let wanted = i64::try_from(QUOTA / 100 * percent).unwrap();
    loop {
        // etcd counts what it has written to its file, which it does every 100 ms: before the last fillers are counted nothing can be said.
        let in_use = wait::until("etcd to count what was put", SOON, async || {
            let in_use = client.database_bytes_in_use().await.unwrap().unwrap();
            (in_use >= filled * FILLER).then_some(in_use)
        })
        .await;
        if in_use >= wanted {
            return filled;
        }
        for _ in 0..=(wanted - in_use) / (FILLER * 11 / 10) {
            client
                .put(&format!("filler/{filled}"), Bytes::from(vec![7; 100_000]))
                .await
                .expect("there is no alarm yet");
            filled += 1;
        }
    }
}

async fn publish_is_refused(client: &Client) {
    wait::until("publishing to be refused", SOON, async || {
        match client.try_publish(ACCOUNT, vec![event("", "A", "{}")], "").await {
            Ok(_) => None,
            Err(status) => is_full(&status).then_some(()),
        }
    })
    .await;
}

/// Runs `control-plane etcd-recover`, which must succeed, and returns what it printed.
async fn recover(cluster: &Cluster, more: &[&str]) -> String {
    let output = Command::new(program("control-plane"))
        .args(["etcd-recover", "--store", &cluster.etcd.url()])
        .args(more)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(SOON, output).await.expect("it ends").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Where all programs answer metrics and probes.
async fn faces(cluster: &mut Cluster) -> Vec<SocketAddr> {
    let mut faces: Vec<SocketAddr> = cluster.control_planes.iter().map(|one| one.metrics).collect();
    for agent in &mut cluster.agents {
        faces.push(agent.listening(1).await[0]);
    }
    faces
}

/// Waits until every program says that the store is full, or says that it is not.
async fn told(cluster: &mut Cluster, full: bool) {
    for face in faces(cluster).await {
        wait::until("health and metrics to tell of the store", SOON, async || {
            let ready = get(face, "/readyz").await;
            let metrics = get(face, "/metrics").await;
            let unready = ready.starts_with("HTTP/1.1 503") && ready.contains("store: it takes no more");
            let counted = metrics.contains(&format!("\npostrider_store_full {}\n", u8::from(full)));
            (unready == full && counted).then_some(())
        })
        .await;
    }
}

async fn unwritten(agent: SocketAddr) -> u64 {
    let metrics = get(agent, "/metrics").await;
    let lines = metrics.lines();
    let mut count = lines.filter_map(|line| line.strip_prefix("postrider_ledger_unwritten "));
    count.next_back().expect("it is counted").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_without_space_costs_nothing_that_was_accepted_even_when_an_agent_is_killed_meanwhile() {
    let mut cluster = Cluster::with_quota(QUOTA, 2, 2).await;
    let mut receiver = Receiver::start();
    let client = cluster.client(0);
    client.create_account(ACCOUNT, 20).await;
    for number in 0..WEBHOOKS {
        let webhook = webhook(&receiver.url(&format!("/{number}")), &["A"], no_auth());
        client.create_webhook(ACCOUNT, &format!("w{number}"), webhook).await;
    }
    let matching = i32::try_from(WEBHOOKS).unwrap();
    cluster.matching(ACCOUNT, "A", matching).await;
    receiver.down().await;
    let mut accepted = 0;
    for number in 0..EVENTS / WEBHOOKS {
        client
            .publish(ACCOUNT, vec![event(&format!("e{number}"), "A", "{}")])
            .await;
        accepted += WEBHOOKS;
    }

    // At 70 % publishing stops, at 85 % creating does; etcd itself still takes everything.
    let filled = fill(&cluster, 72, 0).await;
    publish_is_refused(&client).await;
    publish_is_refused(&cluster.client(1)).await;
    let counted = i64::try_from(accepted).unwrap();
    // Until it was refused, publishing was tried, and some of it was accepted.
    let accepted = usage(&client).await.total.unwrap().accepted;
    assert!(accepted >= counted);
    let filled = fill(&cluster, 87, filled).await;
    wait::until("creating to be refused", SOON, async || {
        let more = webhook(&receiver.url("/more"), &["B"], no_auth());
        let id = format!("more-{}", postrider_tests::client::request_id(7));
        match client.try_create_webhook(ACCOUNT, &id, more).await {
            Ok(_) => {
                let name = format!("accounts/{ACCOUNT}/webhooks/{id}");
                let delete = postrider_proto::v1::DeleteWebhookRequest {
                    name,
                    ..postrider_proto::v1::DeleteWebhookRequest::default()
                };
                client.webhooks().delete_webhook(delete).await.unwrap();
                None
            }
            Err(status) => is_full(&status).then_some(()),
        }
    })
    .await;
    told(&mut cluster, false).await;

    // The alarm.
    let etcd = cluster.etcd.client(0);
    let mut last = filled;
    while etcd
        .put(&format!("filler/{last}"), Bytes::from(vec![7; 400_000]))
        .await
        .is_ok()
    {
        last += 1;
    }
    receiver.up();
    let agents = faces(&mut cluster).await.split_off(2);
    receiver
        .until("deliveries to go on", FLOW, |log| log.distinct() >= EVENTS / 2)
        .await;
    told(&mut cluster, true).await;
    let held = wait::until("agents to tell what they cannot write", SOON, async || {
        let held = [unwritten(agents[0]).await, unwritten(agents[1]).await];
        (held[0] + held[1] > 0).then_some(held)
    })
    .await;
    publish_is_refused(&client).await;
    cluster.kill_agent(usize::from(held[1] > held[0])).await;

    // Somebody makes room, which alone does not help.
    for number in 0..=last {
        etcd.delete(&format!("filler/{number}")).await.unwrap();
    }
    let before = etcd.database_bytes().await.unwrap().unwrap();
    let said = recover(&cluster, &["--dry-run"]).await;
    assert!(said.contains("would disarm the alarm"), "{said}");
    assert!(
        etcd.put("filler/0", Bytes::new()).await.is_err(),
        "a dry run does nothing"
    );
    let while_full = receiver.log().distinct();
    let said = recover(&cluster, &[]).await;
    assert!(!said.contains("would"), "{said}");
    assert!(etcd.database_bytes().await.unwrap().unwrap() < before / 2, "{said}");

    cluster.settled().await;
    told(&mut cluster, false).await;
    let all = usize::try_from(accepted).unwrap();
    receiver
        .until("everything that was accepted", FLOW, |log| log.distinct() >= all)
        .await;
    cluster.drained(SOON).await;
    let usage = usage(&client).await;
    assert_adds_up(&usage);
    let total = usage.total.as_ref().unwrap();
    assert_eq!((total.accepted, total.delivered), (accepted, accepted), "{usage:?}");
    let repeats = receiver.log().repeats();
    println!("{while_full} of {all} were delivered while etcd was full, {repeats} came twice");
    assert!(repeats <= while_full, "{repeats} of {while_full}");
    wait::until("publishing to go on", SOON, async || {
        client
            .try_publish(ACCOUNT, vec![event("late", "A", "{}")], "")
            .await
            .ok()
    })
    .await;
    receiver
        .until("what was published after", SOON, |log| log.has("/0", "late"))
        .await;
}
