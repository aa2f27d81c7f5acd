//! etcd, the real one: one member or three, on ports of their own, in a folder that goes away with it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::etcd_api::EtcdApi;
use crate::port::Reserved;
use crate::process::Process;
use crate::wait;

/// How long etcd may take to have a leader: elections of three members take about two seconds on an idle machine.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// A cluster of etcd members.
pub struct Etcd {
    members: Vec<Member>,
    folder: TempDir,
    flags: Vec<String>,
    /// Another address of this machine that its members listen on.
    further: Option<Ipv4Addr>,
    /// Whether its authentication is enabled.
    pub(crate) is_guarded: bool,
}

struct Member {
    client: Reserved,
    peer: Reserved,
    process: Option<Process>,
}

impl Etcd {
    /// Starts `count` members and waits until each of them knows a leader.
    pub async fn start(count: usize) -> Self {
        Self::start_with(count, &[]).await
    }

    /// The same, with further flags of every member.
    pub async fn start_with(count: usize, flags: &[&str]) -> Self {
        Self::start_on(count, flags, None).await
    }

    /// Starts one member that listens, on the same port, on a further address of this machine, too.
    pub async fn start_reachable(further: Ipv4Addr) -> Self {
        Self::start_on(1, &[], Some(further)).await
    }

    async fn start_on(count: usize, flags: &[&str], further: Option<Ipv4Addr>) -> Self {
        let member = || Member {
            client: Reserved::new(),
            peer: Reserved::new(),
            process: None,
        };
        let mut etcd = Self {
            members: std::iter::repeat_with(member).take(count).collect(),
            folder: tempfile::Builder::new()
                .prefix("postrider-etcd-")
                .tempdir()
                .expect("a folder can be made"),
            flags: flags.iter().map(ToString::to_string).collect(),
            further,
            is_guarded: false,
        };
        for index in 0..count {
            etcd.run(index);
        }
        for index in 0..count {
            etcd.ready(index).await;
        }
        etcd
    }

    /// Starts a member that was killed, on its old data, and waits until it knows a leader.
    pub async fn restart(&mut self, member: usize) {
        self.run(member);
        self.ready(member).await;
    }

    /// Ends a member with SIGKILL.
    pub async fn kill(&mut self, member: usize) {
        let mut process = self.members[member].process.take().expect("the member runs");
        process.kill().await;
    }

    /// Copies the data of a member that was killed, for [`Self::put_back`].
    pub async fn copy_data(&self, member: usize) -> TempDir {
        let copy = tempfile::tempdir().expect("a folder can be made");
        self.copy(&self.data(member), &copy.path().join("data")).await;
        copy
    }

    /// Gives a member that was killed the data that it had then, in the place of what it has.
    pub async fn put_back(&self, member: usize, data: &TempDir) {
        std::fs::remove_dir_all(self.data(member)).expect("the data can be removed");
        self.copy(&data.path().join("data"), &self.data(member)).await;
    }

    #[allow(clippy::unused_self, reason = "of its members' data only")]
    async fn copy(&self, from: &Path, to: &Path) {
        let copied = tokio::process::Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status()
            .await;
        assert!(copied.is_ok_and(|status| status.success()), "data can be copied");
    }

    fn data(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("etcd-{member}"))
    }

    /// Where programs find it: `etcd://host:port,…`.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self
            .members
            .iter()
            .map(|member| member.client.address().to_string())
            .collect();
        format!("etcd://{}", addresses.join(","))
    }

    /// Where programs find its first member by the further address, if it listens on one.
    pub fn reachable_url(&self) -> Option<String> {
        let further = self.further?;
        Some(format!("etcd://{further}:{}", self.address(0).port()))
    }

    /// Where its members keep their data, and what they print.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The first of its members that was not killed.
    pub fn running(&self) -> usize {
        let running = self.members.iter().position(|member| member.process.is_some());
        running.expect("a member runs")
    }

    /// Which of its running members is the leader.
    pub async fn leader(&self) -> usize {
        wait::until("the members to have a leader", READY_DEADLINE, async || {
            for index in (0..self.members.len()).filter(|&index| self.members[index].process.is_some()) {
                if self.client(index).is_leader().await.unwrap_or(false) {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    /// The address of a member.
    pub fn address(&self, member: usize) -> SocketAddr {
        self.members[member].client.address()
    }

    /// A client of a member.
    pub fn client(&self, member: usize) -> EtcdApi {
        let client = EtcdApi::new(self.address(member));
        if self.is_guarded { client.as_root() } else { client }
    }

    /// The process id of a member.
    pub fn pid(&self, member: usize) -> u32 {
        self.process(member).pid()
    }

    /// The process of a member.
    pub fn process(&self, member: usize) -> &Process {
        self.members[member].process.as_ref().expect("the member runs")
    }

    fn run(&mut self, index: usize) {
        let name = |index: usize| format!("etcd-{index}");
        let peers = self.members.iter().enumerate();
        let peers: Vec<String> = peers
            .map(|(index, member)| format!("{}=http://{}", name(index), member.peer.address()))
            .collect();
        let member = &self.members[index];
        let client = format!("http://{}", member.client.address());
        let peer = format!("http://{}", member.peer.address());
        let further = self
            .further
            .map(|address| format!(",http://{address}:{}", member.client.address().port()));
        let listen = format!("{client}{}", further.unwrap_or_default());
        let arguments = [
            ("--name", name(index)),
            ("--data-dir", self.folder.path().join(name(index)).display().to_string()),
            ("--listen-client-urls", listen),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer),
            ("--initial-cluster", peers.join(",")),
            // By default etcd 3.4 keeps 100,000 raft entries in memory.
            ("--snapshot-count", "1000".to_owned()),
        ]
        .map(|(flag, value)| format!("{flag}={value}"));
        let arguments = arguments.iter().chain(&self.flags);
        let process = Process::start(&program(), &name(index), arguments, self.folder.path());
        self.members[index].process = Some(process);
    }

    async fn ready(&mut self, index: usize) {
        let client = self.client(index);
        let process = self.members[index].process.as_mut().expect("the member runs");
        wait::until("etcd to have a leader", READY_DEADLINE, async || {
            assert!(!process.has_ended(), "etcd ended\n{}", process.tail());
            matches!(client.database_bytes().await, Ok(Some(_))).then_some(())
        })
        .await;
    }
}

/// The program `etcd`: `ETCD_BIN` if set, else the one in `PATH`.
///
/// # Panics
/// If there is none: tests of the whole system are never skipped.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("ETCD_BIN") {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join("etcd"))
        .find(|program| program.is_file());
    found.expect("install etcd: apt-get install etcd-server")
}
