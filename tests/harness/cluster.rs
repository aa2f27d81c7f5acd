//! A cluster: etcd, control planes and agents, as processes of their own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postrider_common::entropy::SystemEntropy;
use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key::{self, Key, Parked};
use postrider_common::secret::Keyring;
use postrider_common::shard::{self, ShardId};
use postrider_proto::v1::{ListAgentsRequest, ListShardsRequest};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::client::Client;
use crate::etcd::Etcd;
use crate::namespace::Namespace;
use crate::port::Reserved;
use crate::process::{Process, program};
use crate::wait;

mod start;

pub use start::Start;

/// Clusters of one test program run one at a time: two at once on two cores would measure the machine's scheduler. (Runners that start
/// a process for each test are told so in `.config/nextest.toml`.)
static TURN: Semaphore = Semaphore::const_new(1);

/// The prefix of the cluster's keys.
const PREFIX: &str = "scenario/";

/// How long a lease lives without its owner: the default of the programs.
pub const LEASE_TTL: Duration = Duration::from_secs(5);

/// How long a cluster may take to have every shard owned: a lease of a killed agent, a lease of a killed leader, and room for a busy machine.
const SETTLE_DEADLINE: Duration = Duration::from_secs(40);

/// How long a watch may lag: everything is on this machine.
const WATCH_DEADLINE: Duration = Duration::from_secs(20);

/// How long a program may take to stop when asked to.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// A running cluster. Everything in it is killed when it is dropped.
pub struct Cluster {
    /// The store.
    pub etcd: Etcd,
    /// The control planes.
    pub control_planes: Vec<ControlPlane>,
    /// The agents.
    pub agents: Vec<Process>,
    folder: TempDir,
    started: usize,
    lease: Duration,
    programs: Option<PathBuf>,
    control_plane_arguments: Vec<String>,
    agent_arguments: Vec<String>,
    _turn: SemaphorePermit<'static>,
}

/// How many deliveries of a webhook stand where in the store, as the keys of its segments say.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// In parked segments.
    pub parked: usize,
    /// In segments of dead letters.
    pub dead: usize,
}

/// One control plane.
pub struct ControlPlane {
    /// Its process.
    pub process: Process,
    /// Where it answers gRPC.
    pub address: SocketAddr,
    /// Where it answers metrics and probes.
    pub metrics: SocketAddr,
    /// Its address stays its own while it is down.
    port: Reserved,
}

impl Cluster {
    /// Two control planes, three agents, one etcd: started, and every shard owned.
    pub async fn start() -> Self {
        Self::of(1, 2, 3).await
    }

    /// A cluster of so many etcd members, control planes and agents, every shard owned.
    pub async fn of(members: usize, control_planes: usize, agents: usize) -> Self {
        Self::with(members, control_planes, agents, &[]).await
    }

    /// The same, with further arguments of every agent.
    pub async fn with(members: usize, control_planes: usize, agents: usize, agent_arguments: &[&str]) -> Self {
        let turn = TURN.acquire().await.expect("turns are never closed");
        let etcd = Etcd::start(members).await;
        Self::on(etcd, control_planes, agents, &[], agent_arguments, turn).await
    }

    /// A cluster of so many etcd members, control planes and agents, whose leases live this long.
    pub async fn with_leases(lease: Duration, members: usize, control_planes: usize, agents: usize) -> Self {
        let turn = TURN.acquire().await.expect("turns are never closed");
        let etcd = Etcd::start(members).await;
        let mut cluster = Self::empty(etcd, &[], &[], turn);
        cluster.lease = lease;
        cluster.grow(control_planes, agents).await;
        cluster
    }

    /// One etcd, and control planes and agents of another build, whose programs are in this folder.
    pub async fn of_build(programs: &Path, control_planes: usize, agents: usize) -> Self {
        let turn = TURN.acquire().await.expect("turns are never closed");
        let mut cluster = Self::empty(Etcd::start(1).await, &[], &[], turn);
        cluster.start_programs_of(Some(programs));
        cluster.grow(control_planes, agents).await;
        cluster
    }

    /// What is started from now on are the programs in this folder, or those built beside the running test.
    pub fn start_programs_of(&mut self, programs: Option<&Path>) {
        self.programs = programs.map(Path::to_owned);
    }

    /// One etcd, control planes and agents that let webhooks reach the addresses of `namespace`, and an etcd that can be reached from there.
    pub async fn beside(namespace: &Namespace, control_planes: usize, agents: usize) -> Self {
        let turn = TURN.acquire().await.expect("turns are never closed");
        let etcd = Etcd::start_reachable(namespace.host()).await;
        let egress = ["--egress-allow", namespace.network()];
        Self::on(etcd, control_planes, agents, &egress, &egress, turn).await
    }

    /// One etcd that may grow to so many bytes, which the control planes are told.
    pub async fn with_quota(bytes: u64, control_planes: usize, agents: usize) -> Self {
        let turn = TURN.acquire().await.expect("turns are never closed");
        let bytes = bytes.to_string();
        let etcd = Etcd::start_with(1, &[&format!("--quota-backend-bytes={bytes}")]).await;
        Self::on(etcd, control_planes, agents, &["--store-quota", &bytes], &[], turn).await
    }

    async fn on(
        etcd: Etcd,
        control_planes: usize,
        agents: usize,
        control_plane_arguments: &[&str],
        agent_arguments: &[&str],
        turn: SemaphorePermit<'static>,
    ) -> Self {
        let mut cluster = Self::empty(etcd, control_plane_arguments, agent_arguments, turn);
        cluster.grow(control_planes, agents).await;
        cluster
    }

    fn empty(
        etcd: Etcd,
        control_plane_arguments: &[&str],
        agent_arguments: &[&str],
        turn: SemaphorePermit<'static>,
    ) -> Self {
        let owned = |arguments: &[&str]| arguments.iter().map(ToString::to_string).collect();
        let folder = tempfile::Builder::new()
            .prefix("postrider-cluster-")
            .tempdir()
            .expect("a folder can be made");
        let key = Keyring::generate(&SystemEntropy::new().expect("there is randomness"));
        std::fs::write(folder.path().join("key"), key.as_bytes()).expect("the key can be written");
        Self {
            etcd,
            control_planes: Vec::new(),
            agents: Vec::new(),
            folder,
            started: 0,
            lease: LEASE_TTL,
            programs: None,
            control_plane_arguments: owned(control_plane_arguments),
            agent_arguments: owned(agent_arguments),
            _turn: turn,
        }
    }

    async fn grow(&mut self, control_planes: usize, agents: usize) {
        self.add_control_planes(control_planes).await;
        for _ in 0..agents {
            self.add_agent().await;
        }
        // Without an agent nobody owns anything.
        if agents > 0 {
            self.settled().await;
        }
    }

    /// Starts control planes and waits until they serve.
    pub async fn add_control_planes(&mut self, count: usize) {
        for _ in 0..count {
            self.add_control_plane_with(&[]).await;
        }
    }

    /// Starts a control plane with further arguments and waits until it serves.
    pub async fn add_control_plane_with(&mut self, arguments: &[&str]) {
        let control_plane = self
            .start_control_plane(Reserved::new(), arguments, &Start::default())
            .await;
        self.control_planes.push(control_plane);
    }

    /// Starts a control plane that has ended again, at its address, and waits until it serves.
    pub async fn restart_control_plane(&mut self, ended: ControlPlane) {
        let control_plane = self.start_control_plane(ended.port, &[], &Start::default()).await;
        self.control_planes.push(control_plane);
    }

    async fn start_control_plane(&mut self, port: Reserved, arguments: &[&str], start: &Start) -> ControlPlane {
        let listen = port.address().to_string();
        let all = self.control_plane_arguments.clone();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let more = [&["--listen", &listen], &all[..], arguments].concat();
        let mut process = self.run("control-plane", &more, start);
        let addresses = process.listening(2).await;
        ControlPlane {
            process,
            address: addresses[0],
            metrics: addresses[1],
            port,
        }
    }

    /// Starts an agent and waits until it serves.
    pub async fn add_agent(&mut self) {
        self.start_agent(&Start::default()).await;
    }

    async fn start_agent(&mut self, start: &Start) {
        let id = format!("agent-{}", self.started);
        let more = self.agent_arguments.clone();
        let mut arguments = vec!["--agent-id", &id];
        arguments.extend(more.iter().map(String::as_str));
        let mut process = self.run("agent", &arguments, start);
        process.listening(1).await;
        self.agents.push(process);
    }

    fn run(&mut self, binary: &str, more: &[&str], start: &Start) -> Process {
        let name = format!("{binary}-{}", self.started);
        self.started += 1;
        let key = self.folder.path().join("key").display().to_string();
        let ttl = format!("{}s", self.lease.as_secs());
        let store = start.store.clone().unwrap_or_else(|| self.etcd.url());
        let mut arguments = vec![
            "--store",
            &store,
            "--prefix",
            PREFIX,
            "--secret-key-file",
            &key,
            "--lease-ttl",
            &ttl,
        ];
        arguments.extend(["--metrics-listen", "127.0.0.1:0", "--egress-allow", "127.0.0.0/8"]);
        arguments.extend(more);
        let program = match &self.programs {
            Some(folder) => folder.join(binary),
            None => program(binary),
        };
        let program = program.display().to_string();
        let before = start.before.iter().map(String::as_str);
        let command: Vec<&str> = before.chain([program.as_str()]).chain(arguments).collect();
        Process::start(Path::new(command[0]), &name, &command[1..], self.folder.path())
    }

    /// A client of a control plane.
    pub fn client(&self, control_plane: usize) -> Client {
        Client::new(self.control_planes[control_plane].address)
    }

    /// Where the control planes answer.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.control_planes
            .iter()
            .map(|control_plane| control_plane.address)
            .collect()
    }

    /// Clients of all control planes.
    pub fn clients(&self) -> Vec<Client> {
        (0..self.control_planes.len()).map(|index| self.client(index)).collect()
    }

    /// Waits until exactly the running agents are known and own every shard, each agent some, and each shard as it was assigned.
    pub async fn settled(&self) {
        let running: BTreeSet<&str> = self.agents.iter().map(Process::name).collect();
        // By their names: one that was killed is known for as long as its lease, and one that was started only when it has registered.
        self.owned_by(&format!("{running:?} to own all shards"), |known| {
            known.len() == running.len() && known.iter().all(|agent| running.contains(agent))
        })
        .await;
    }

    /// Waits until so many agents are known and own every shard, each agent some, and each shard as it was assigned.
    pub async fn settled_with(&self, agents: usize) {
        let what = format!("{agents} agents to own all shards");
        self.owned_by(&what, |known| known.len() == agents).await;
    }

    async fn owned_by(&self, what: &str, known_are_right: impl Fn(&[&str]) -> bool) {
        let client = self.client(0);
        wait::until(what, SETTLE_DEADLINE, async || {
            let known = client
                .cluster()
                .list_agents(ListAgentsRequest::default())
                .await
                .ok()?
                .into_inner()
                .agents;
            let all = ListShardsRequest {
                page_size: 1000,
                ..ListShardsRequest::default()
            };
            let shards = client.cluster().list_shards(all).await.ok()?.into_inner().shards;
            let owned = |shard: &postrider_proto::v1::Shard| {
                !shard.owner_agent.is_empty() && shard.owner_agent == shard.assigned_agent
            };
            let names: Vec<&str> = known.iter().filter_map(|agent| agent.name.rsplit('/').next()).collect();
            // Who has just come is known a moment before it is given any.
            let owners: BTreeSet<&str> = shards.iter().map(|shard| shard.owner_agent.as_str()).collect();
            let settled = !shards.is_empty() && shards.iter().all(owned) && owners.len() == names.len();
            (settled && known_are_right(&names)).then_some(())
        })
        .await;
    }

    /// Which of the agents owns the shard of a webhook; waits for one while it moves.
    pub async fn owner_of(&self, account: &str, webhook: &str) -> usize {
        let (account, webhook) = (AccountId::new(account).unwrap(), WebhookId::new(webhook).unwrap());
        let of = shard::of(&account, &webhook, shard::DEFAULT_COUNT);
        let client = self.client(0);
        wait::until("the shard to have an owner", SETTLE_DEADLINE, async || {
            let all = ListShardsRequest {
                page_size: 1000,
                ..ListShardsRequest::default()
            };
            let shards = client.cluster().list_shards(all).await.ok()?.into_inner().shards;
            let owner = &shards[usize::from(of.0)].owner_agent;
            self.agents.iter().position(|agent| owner == agent.name())
        })
        .await
    }

    /// Where the deliveries of a webhook stand in the store, but for its queue.
    pub async fn standing(&self, account: &str, webhook: &str) -> Standing {
        let part = format!("/{account}/{webhook}/");
        let keys = self.etcd.client(0).keys_with(&part).await.expect("the store answers");
        let keys: Vec<Key> = keys
            .iter()
            .filter_map(|key| key.strip_prefix(PREFIX))
            .map(Key::from_stored)
            .collect();
        let count = |parse: fn(&Key) -> Option<Parked>| keys.iter().filter_map(parse).map(|at| at.count as usize).sum();
        Standing {
            parked: count(key::parse_parked),
            dead: count(key::parse_dead),
        }
    }

    /// Waits until every control plane knows that an event of this name matches `webhooks` webhooks.
    pub async fn matching(&self, account: &str, event_name: &str, webhooks: i32) {
        for client in self.clients() {
            wait::until("every control plane to know the webhooks", WATCH_DEADLINE, async || {
                (client.matches(account, event_name).await.ok()? == webhooks).then_some(())
            })
            .await;
        }
    }

    /// Waits until nothing waits in the store: every accepted delivery has ended.
    pub async fn drained(&self, deadline: Duration) {
        let client = self.etcd.client(self.etcd.running());
        let folders = [key::queue(ShardId(0)), key::parked(ShardId(0))].map(|shard| {
            let folder = shard.as_str().split('/').next().unwrap_or_default();
            format!("/{folder}/")
        });
        wait::until("queue and parked deliveries to be empty", deadline, async || {
            let keys = client.keys_with(PREFIX).await.ok()?;
            let waits = |key: &String| folders.iter().any(|folder| key.contains(folder));
            (!keys.iter().any(waits)).then_some(())
        })
        .await;
    }

    /// Ends an agent with SIGKILL.
    pub async fn kill_agent(&mut self, agent: usize) {
        self.agents.remove(agent).kill().await;
    }

    /// Ends the agent that owns the shard of a webhook with SIGKILL.
    pub async fn kill_owner_of(&mut self, account: &str, webhook: &str) {
        let owner = self.owner_of(account, webhook).await;
        self.kill_agent(owner).await;
    }

    /// Asks an agent to stop, and waits until it has, with success.
    pub async fn stop_agent(&mut self, agent: usize) {
        stop(&mut self.agents.remove(agent)).await;
    }

    /// Asks a control plane to stop, waits until it has, with success, and returns what is left of it.
    pub async fn stop_control_plane(&mut self, control_plane: usize) -> ControlPlane {
        let mut stopped = self.control_planes.remove(control_plane);
        stop(&mut stopped.process).await;
        stopped
    }

    /// Ends a control plane with SIGKILL, and returns what is left of it.
    pub async fn kill_control_plane(&mut self, control_plane: usize) -> ControlPlane {
        let mut killed = self.control_planes.remove(control_plane);
        killed.process.kill().await;
        killed
    }

    /// Whether a control plane leads, by what it said last.
    pub fn leads(&self, control_plane: usize) -> bool {
        let output = self.control_planes[control_plane].process.output();
        let said = output.lines().rev().find(|line| line.contains("leading"));
        said.is_some_and(|line| !line.contains("no longer leading"))
    }

    /// When agents, also those that are gone, said something.
    pub fn told(&self, what: &str) -> Vec<jiff::Timestamp> {
        let logs = std::fs::read_dir(self.folder.path())
            .expect("the folder is there")
            .flatten();
        let of_agents = logs.filter(|log| log.file_name().to_string_lossy().starts_with("agent-"));
        let mut told = Vec::new();
        for log in of_agents {
            let text = std::fs::read(log.path()).expect("a log can be read");
            let lines = String::from_utf8_lossy(&text);
            told.extend(lines.lines().filter(|line| line.contains(what)).map(|line| {
                let time = line.split_whitespace().next().unwrap_or_default();
                time.parse::<jiff::Timestamp>()
                    .expect("a line of a log begins with its time")
            }));
        }
        told
    }

    /// Copies what all programs of it printed, also those that are gone, into a folder.
    pub fn keep_logs(&self, to: &Path) {
        std::fs::create_dir_all(to).expect("a folder can be made");
        for folder in [self.folder.path(), self.etcd.folder()] {
            for entry in std::fs::read_dir(folder).expect("the folder is there").flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "log") {
                    std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a log can be copied");
                }
            }
        }
    }

    /// Everything the programs printed so far.
    pub fn output(&self) -> String {
        let control_planes = self.control_planes.iter().map(|control_plane| &control_plane.process);
        control_planes.chain(&self.agents).map(Process::output).collect()
    }
}

async fn stop(process: &mut Process) {
    process.signal("TERM").await;
    let status = process.ended(STOP_DEADLINE).await;
    assert!(
        status.success(),
        "{} ended with {status}\n{}",
        process.name(),
        process.tail()
    );
}
