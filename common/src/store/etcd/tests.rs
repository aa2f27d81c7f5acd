//! Tests of the store in etcd, on real servers: the laws, members that die or stop, a server that is full.

mod access;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tempfile::TempDir;
use tokio::time::Instant;

use super::member::MAX_ANSWER_BYTES;
use super::recover::{Mode, RecoverError, recover};
use super::*;
use crate::store::conformance::{self, model};
use crate::store::{Change, NotApplied, SharedStore};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// One server; killed by its process id when it is dropped, also by a panic.
struct Server {
    child: Child,
    client: String,
}

impl Server {
    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cluster in a folder of its own.
struct Cluster {
    servers: Vec<Server>,
    _folder: TempDir,
}

impl Cluster {
    /// Starts a cluster and waits until it answers. Ports are free when they are chosen; if one is taken before it is used, other
    /// ports are chosen.
    async fn start(size: usize, flags: &[&str]) -> Self {
        for _ in 0..5 {
            let cluster = Self::spawn(size, flags);
            if cluster.is_up().await {
                return cluster;
            }
        }
        panic!("no etcd could be started");
    }

    fn spawn(size: usize, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listeners: Vec<TcpListener> = (0..size * 2)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addresses: Vec<String> = listeners
            .iter()
            .map(|one| one.local_addr().unwrap().to_string())
            .collect();
        drop(listeners);
        let (clients, peers) = addresses.split_at(size);
        let members: Vec<String> = (0..size)
            .map(|number| format!("m{number}=http://{}", peers[number]))
            .collect();
        let start = |number: usize| {
            let (client, peer) = (
                format!("http://{}", clients[number]),
                format!("http://{}", peers[number]),
            );
            let child = Command::new("etcd")
                .args(["--name", &format!("m{number}"), "--initial-cluster", &members.join(",")])
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster-state", "new", "--snapshot-count", "1000"])
                .args(["--logger", "zap", "--log-level", "panic"])
                .arg("--data-dir")
                .arg(folder.path().join(format!("m{number}")))
                .args(flags)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("etcd is installed");
            Server {
                child,
                client: clients[number].clone(),
            }
        };
        Self {
            servers: (0..size).map(start).collect(),
            _folder: folder,
        }
    }

    async fn is_up(&self) -> bool {
        let end = Instant::now() + Duration::from_secs(15);
        for server in &self.servers {
            let store = connect(&[&server.client], "").await;
            while store.get(&key("up")).await.is_err() {
                if Instant::now() > end {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        true
    }

    async fn store(&self, prefix: &str) -> EtcdStore {
        let clients: Vec<&str> = self.servers.iter().map(|server| server.client.as_str()).collect();
        connect(&clients, prefix).await
    }
}

async fn connect(endpoints: &[&str], prefix: &str) -> EtcdStore {
    let endpoints = endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect();
    EtcdStore::connect(EtcdConfig::new(endpoints, prefix)).await.unwrap()
}

fn key(text: &str) -> Key {
    Key::from_stored(text)
}

fn put(name: &str, value: impl Into<Bytes>) -> Write {
    Write {
        guards: Vec::new(),
        ops: vec![Op::put(key(name), value)],
    }
}

/// Follows a watch until it shows `name`.
async fn until_seen(watch: &mut Watch, name: &str) -> Revision {
    let seen = async {
        loop {
            let changes = watch.next().await.unwrap().unwrap();
            if changes.changes.iter().any(|change| change.key().as_str() == name) {
                return changes.revision;
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap()
}

/// Waits for the end of a watch.
async fn until_ended(watch: &mut Watch) -> WatchError {
    let ended = async {
        loop {
            if let Err(error) = watch.next().await.unwrap() {
                return error;
            }
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap()
}

/// Waits until a write goes through, and tells how many did not.
async fn until_written(store: &EtcdStore, name: &str) -> usize {
    let end = Instant::now() + PATIENCE;
    for failed in 0.. {
        match store.write(put(name, "v")).await {
            Ok(_) => return failed,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
    }
    unreachable!()
}

#[tokio::test]
async fn the_store_in_etcd_obeys_every_law() {
    let cluster = Cluster::start(1, &[]).await;
    let made = std::cell::Cell::new(0);
    conformance::run(|| async {
        made.set(made.get() + 1);
        Arc::new(cluster.store(&format!("/laws/{}/", made.get())).await) as SharedStore
    })
    .await;
}

#[test]
fn the_store_in_etcd_does_what_the_store_in_memory_does() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let cluster = runtime.block_on(Cluster::start(1, &[]));
    let made = std::cell::Cell::new(0);
    let config = ProptestConfig {
        cases: 16,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let outcome = TestRunner::new(config).run(&model::histories(40), |history| {
        made.set(made.get() + 1);
        runtime.block_on(async {
            let store = cluster.store(&format!("/model/{}/", made.get())).await;
            model::agrees(Arc::new(store), &history).await;
        });
        Ok(())
    });
    outcome.unwrap();
}

#[tokio::test]
async fn a_listing_whose_page_is_too_large_for_an_answer_is_read_all_the_same() {
    let cluster = Cluster::start(1, &[]).await;
    let store = cluster.store("/large/").await;
    let (value, count) = (Bytes::from("x".repeat(1 << 20)), MAX_ANSWER_BYTES / (1 << 20) + 6);
    for number in 0..count {
        store
            .write(put(&format!("a/{number:03}"), value.clone()))
            .await
            .unwrap();
    }
    let (entries, _) = crate::store::list_all(&store, &key("a/"), false).await.unwrap();
    assert_eq!(entries.len(), count);
    assert!(entries.iter().all(|entry| entry.value.len() == value.len()));
}

#[tokio::test]
async fn two_prefixes_in_one_etcd_do_not_see_each_other() {
    let cluster = Cluster::start(1, &[]).await;
    let (first, second) = (cluster.store("/one/").await, cluster.store("/two/").await);
    let start = first.write(put("a/1", "first")).await.unwrap();
    second.write(put("a/1", "second")).await.unwrap();
    assert_eq!(first.get(&key("a/1")).await.unwrap().0.unwrap().value, "first");
    let all = ListRequest {
        prefix: key(""),
        after: None,
        limit: 10,
        revision: None,
        keys_only: false,
    };
    assert_eq!(first.list(all).await.unwrap().entries.len(), 1);
    let mut watch = first.watch(&key(""), start).await.unwrap();
    second.write(put("z/1", "second")).await.unwrap();
    first.write(put("z/1", "first")).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(
            tokio::time::timeout(PATIENCE, watch.next())
                .await
                .unwrap()
                .unwrap()
                .unwrap()
                .changes,
        );
    }
    let is_first = |change: &Change| matches!(change, Change::Put(entry) if entry.value == "first");
    assert!(seen.len() == 2 && seen.iter().all(is_first));
    let usage = first.usage().await.unwrap();
    assert!(usage.size >= usage.in_use && usage.in_use > 0);
}

#[tokio::test]
async fn when_the_member_in_use_is_killed_calls_go_on_and_the_watch_resumes() {
    let mut cluster = Cluster::start(3, &[]).await;
    let store = cluster.store("/killed/").await;
    let start = store.write(put("a/0", "v")).await.unwrap();
    let mut watch = store.watch(&key("a/"), start).await.unwrap();
    let last = until_seen(&mut watch, "a/0").await;
    // The first endpoint is the one in use, until it fails.
    drop(cluster.servers.remove(0));
    let killed = Instant::now();
    until_written(&store, "a/1").await;
    assert!(killed.elapsed() < Duration::from_secs(10));
    assert!(matches!(until_ended(&mut watch).await, WatchError::Ended(_)));
    let mut watch = store.watch(&key("a/"), last.next()).await.unwrap();
    until_seen(&mut watch, "a/1").await;
    // Once another member is in use, the dead one costs nothing any more.
    for outcome in join_all((0..100).map(|number| store.write(put(&format!("b/{number}"), "v")))).await {
        outcome.unwrap();
    }
    for _ in 0..20 {
        store.get(&key("a/1")).await.unwrap();
    }
}

#[tokio::test]
async fn a_member_that_is_stopped_costs_one_deadline_and_ends_its_watches() {
    let cluster = Cluster::start(3, &[]).await;
    let store = cluster.store("/stopped/").await;
    let start = store.write(put("a/0", "v")).await.unwrap();
    let mut watch = store.watch(&key("a/"), start).await.unwrap();
    let last = until_seen(&mut watch, "a/0").await;
    cluster.servers[0].signal("-STOP");
    // A read has time for another member within its deadline, unless the cluster needs it to find a leader.
    let outcome = store.write(put("a/1", "v")).await;
    assert!(matches!(outcome, Err(WriteError::Unknown(_))), "{outcome:?}");
    let failed = until_written(&store, "a/2").await;
    assert!(failed <= 2, "{failed} writes failed after the first");
    assert!(matches!(until_ended(&mut watch).await, WatchError::Ended(_)));
    let mut watch = store.watch(&key("a/"), last.next()).await.unwrap();
    until_seen(&mut watch, "a/2").await;
    cluster.servers[0].signal("-CONT");
    store.get(&key("a/2")).await.unwrap();
}

#[tokio::test]
async fn a_read_is_repeated_on_another_member_within_its_deadline() {
    let cluster = Cluster::start(1, &[]).await;
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let store = connect(&[&silent, &cluster.servers[0].client], "/read/").await;
    store.get(&key("a/1")).await.unwrap();
}

#[tokio::test]
async fn a_write_that_was_not_sent_goes_to_another_member_and_one_that_may_have_been_does_not() {
    let cluster = Cluster::start(1, &[]).await;
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let store = connect(&[&closed, &cluster.servers[0].client], "/write/").await;
    store.write(put("a/1", "v")).await.unwrap();

    // It takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let store = connect(&[&address, &cluster.servers[0].client], "/write/").await;
    assert!(matches!(
        store.write(put("a/2", "v")).await,
        Err(WriteError::Unknown(_))
    ));
    assert_eq!(store.get(&key("a/2")).await.unwrap().0, None);
    store.write(put("a/2", "v")).await.unwrap();
}

#[tokio::test]
async fn without_any_server_every_call_fails_within_its_deadline_and_nothing_is_unknown() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let store = connect(&[&closed], "/away/").await;
    let start = Instant::now();
    let away = store.write(put("a/1", "v")).await;
    assert!(
        matches!(away, Err(WriteError::NotApplied(NotApplied::Away(_)))),
        "{away:?}"
    );
    assert!(matches!(store.get(&key("a/1")).await, Err(ReadError::Away(_))));
    assert!(matches!(store.keep_alive(LeaseId(7)).await, Err(LeaseError::Away(_))));
    assert!(matches!(
        store.watch(&key("a/"), Revision(1)).await.map(|_| ()),
        Err(WatchError::Ended(_))
    ));
    assert!(start.elapsed() < DEADLINE * 5);
}

#[tokio::test]
async fn a_watch_of_a_server_that_is_stopped_ends_and_a_quiet_one_lives() {
    let cluster = Cluster::start(1, &[]).await;
    let config = EtcdConfig {
        probe: Duration::from_millis(500),
        ..EtcdConfig::new(vec![cluster.servers[0].client.clone()], "/silent/")
    };
    let store = EtcdStore::connect(config).await.unwrap();
    let mut watch = store.watch(&key("a/"), Revision(1)).await.unwrap();
    // Signs of life, which say nothing new.
    for _ in 0..3 {
        let sign = tokio::time::timeout(PATIENCE, watch.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!((sign.revision, sign.changes.len()), (Revision(0), 0));
    }
    cluster.servers[0].signal("-STOP");
    let ended = until_ended(&mut watch).await;
    cluster.servers[0].signal("-CONT");
    assert!(matches!(ended, WatchError::Ended(_)));
}

#[tokio::test]
async fn a_watch_that_is_not_read_holds_up_no_other_and_misses_nothing() {
    let cluster = Cluster::start(1, &[]).await;
    let store = cluster.store("/unread/").await;
    let start = store.write(put("a/0", "v")).await.unwrap();
    let mut unread = store.watch(&key("a/"), start).await.unwrap();
    let mut read = store.watch(&key("b/"), start).await.unwrap();
    // Several times what one watch may have on the way.
    for number in 1..=8 {
        store
            .write(put(&format!("a/{number}"), vec![7; 1_000_000]))
            .await
            .unwrap();
    }
    store.write(put("b/1", "v")).await.unwrap();
    until_seen(&mut read, "b/1").await;
    let mut seen = Vec::new();
    while seen.len() < 9 {
        let changes = tokio::time::timeout(PATIENCE, unread.next()).await.unwrap();
        let changes = changes.unwrap().unwrap().changes;
        seen.extend(changes.iter().map(|change| change.key().as_str().to_owned()));
    }
    assert_eq!(seen, (0..9).map(|number| format!("a/{number}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_server_without_space_refuses_what_needs_space_and_does_the_rest() {
    let cluster = Cluster::start(1, &["--quota-backend-bytes", "16777216"]).await;
    let store = cluster.store("/full/").await;
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let mut refusal = None;
    for number in 0..100 {
        if let Err(error) = store.write(put(&format!("a/{number}"), vec![7; 1_000_000])).await {
            refusal = Some(error);
            break;
        }
    }
    assert_eq!(refusal, Some(WriteError::NotApplied(NotApplied::Full)));
    assert_eq!(
        store.write(put("b/1", "v")).await,
        Err(WriteError::NotApplied(NotApplied::Full))
    );
    assert!(store.grant(Duration::from_secs(60)).await.is_err());
    assert!(store.keep_alive(lease.id).await.is_ok());
    assert!(store.get(&key("a/0")).await.unwrap().0.is_some());
    let delete = Write {
        guards: vec![Guard::Absent(key("b/1"))],
        ops: vec![Op::delete(key("a/0"))],
    };
    let revision = store.write(delete).await.unwrap();
    store.compact(revision).await.unwrap();
}

#[tokio::test]
async fn a_cluster_without_space_is_brought_back_and_a_dry_run_changes_nothing() {
    let cluster = Cluster::start(3, &["--quota-backend-bytes", "16777216"]).await;
    let store = cluster.store("/recover/").await;
    let mut filled = 0;
    while store
        .write(put(&format!("a/{filled}"), vec![7; 1_000_000]))
        .await
        .is_ok()
    {
        filled += 1;
    }
    let full = store.usage().await.unwrap();
    assert!(full.full);
    for number in 0..filled {
        let delete = Write {
            guards: Vec::new(),
            ops: vec![Op::delete(key(&format!("a/{number}")))],
        };
        store.write(delete).await.unwrap();
    }
    let endpoints: Vec<String> = cluster.servers.iter().map(|server| server.client.clone()).collect();
    let said = std::cell::RefCell::new(Vec::new());
    let say = |line| said.borrow_mut().push(line);
    recover(&endpoints, None, Mode::DryRun, say).await.unwrap();
    assert_eq!(
        said.take()
            .iter()
            .filter(|line| line.starts_with("would defragment"))
            .count(),
        3
    );
    assert_eq!(
        store.write(put("b/1", "v")).await,
        Err(WriteError::NotApplied(NotApplied::Full))
    );
    let partly = recover(&endpoints[..2], None, Mode::Apply, |_| ()).await;
    assert!(matches!(partly, Err(RecoverError::Unlisted(_))), "{partly:?}");
    recover(&endpoints, None, Mode::Apply, say).await.unwrap();
    let said = said.take();
    assert_eq!(
        said.iter().filter(|line| line.starts_with("defragment")).count(),
        3,
        "{said:?}"
    );
    store.write(put("b/1", "v")).await.unwrap();
    let after = store.usage().await.unwrap();
    assert!(!after.full && after.size < full.size / 4, "{after:?}");
    // Where nothing is wrong it does no harm.
    recover(&endpoints, None, Mode::Apply, |_| ()).await.unwrap();
    assert!(store.get(&key("b/1")).await.unwrap().0.is_some());
}
