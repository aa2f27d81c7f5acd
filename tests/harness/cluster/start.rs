//! Programs of a cluster that are started otherwise than usual: in a namespace, under a limit, with another clock, or with another way to the store.

use std::path::Path;

use super::{Cluster, PREFIX, TURN};
use crate::etcd::Etcd;
use crate::etcd_users::USER;
use crate::namespace::Namespace;
use crate::port::Reserved;

/// How a program is started.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Where it finds the store; where all do if there is none.
    pub(super) store: Option<String>,
    /// A command that ends by becoming the command behind it, so that the process started is the program: `prlimit … --`, `env NAME=value`.
    pub(super) before: Vec<String>,
}

impl Start {
    /// In a network namespace.
    pub fn within(namespace: &Namespace) -> Self {
        Self::default().by(namespace.enter())
    }

    /// With a name server of its own: that of `resolv_conf`, which takes the place of the machine's in a mount namespace of the program's own.
    #[must_use]
    pub fn resolving_by(self, resolv_conf: &Path) -> Self {
        const SCRIPT: &str = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        let file = resolv_conf.display().to_string();
        self.by(["unshare", "-m", "--", "sh", "-c", SCRIPT, &file].map(str::to_owned))
    }

    /// By a command that becomes the program.
    #[must_use]
    pub fn by(mut self, command: impl IntoIterator<Item = String>) -> Self {
        self.before.extend(command);
        self
    }

    /// With this way to the store.
    #[must_use]
    pub fn with_store(mut self, url: &str) -> Self {
        self.store = Some(url.to_owned());
        self
    }
}

impl Cluster {
    /// A cluster of one etcd with these flags and with authentication, whose programs have a user; every shard owned.
    pub async fn guarded(flags: &[&str], control_planes: usize, agents: usize) -> Self {
        let turn = TURN.acquire().await.expect("turns are never closed");
        let mut etcd = Etcd::start_with(1, &[flags, &["--bcrypt-cost=4"]].concat()).await;
        etcd.guard(PREFIX).await;
        let password = etcd.password_file().display().to_string();
        let user = ["--etcd-user", USER, "--etcd-password-file", &password];
        Self::on(etcd, control_planes, agents, &user, &user, turn).await
    }

    /// Starts an agent in a network namespace, in a cluster that stands beside it, and waits until it serves.
    pub async fn add_agent_in(&mut self, namespace: &Namespace) {
        self.add_agent_by(Start::within(namespace)).await;
    }

    /// Starts an agent so, and waits until it serves. In a cluster beside a namespace it is told of the store's address there.
    pub async fn add_agent_by(&mut self, start: Start) {
        let store = start.store.clone().or_else(|| self.etcd.reachable_url());
        let start = Start { store, ..start };
        self.start_agent(&start).await;
    }

    /// Starts a control plane so, and waits until it serves.
    pub async fn add_control_plane_by(&mut self, start: Start) {
        let control_plane = self.start_control_plane(Reserved::new(), &[], &start).await;
        self.control_planes.push(control_plane);
    }
}
