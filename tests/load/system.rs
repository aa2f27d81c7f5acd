//! The system under load: etcd, a control plane and an agent, or one process on an embedded store.

use std::collections::BTreeMap;

use postrider_tests::client::Client;
use postrider_tests::cluster::Cluster;
use postrider_tests::etcd_api::EtcdApi;
use postrider_tests::process::{Process, program};
use tempfile::TempDir;

use crate::Store;
use postrider_tests::usage::Usage;

/// What is running.
pub(crate) enum System {
    /// One etcd member, one control plane, one agent.
    Cluster(Box<Cluster>),
    /// One process.
    Standalone {
        /// It.
        process: Box<Process>,
        /// Where it answers gRPC.
        address: std::net::SocketAddr,
        /// Where its data is.
        _folder: TempDir,
    },
}

/// What each process had used at some moment, and where the store was.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// By the program's name; `load` is the publisher and the sink.
    pub(crate) processes: BTreeMap<&'static str, Usage>,
    /// etcd's revision: grows by one with every transaction that writes.
    pub(crate) revision: Option<i64>,
    /// Bytes of etcd's database file.
    pub(crate) database_bytes: Option<i64>,
    /// Bytes of it that are in use.
    pub(crate) stored_bytes: Option<i64>,
}

impl System {
    /// Starts everything and waits until every shard is owned.
    pub(crate) async fn start(store: Store) -> Self {
        match store {
            Store::Etcd => Self::Cluster(Box::new(Cluster::of(1, 1, 1).await)),
            Store::File => {
                let folder = tempfile::tempdir().expect("a folder can be made");
                let data = folder.path().join("data").display().to_string();
                let arguments = [
                    "serve",
                    "--data",
                    &data,
                    "--listen",
                    "127.0.0.1:0",
                    "--metrics-listen",
                    "127.0.0.1:0",
                ];
                let arguments = arguments.iter().chain(&["--egress-allow", "127.0.0.0/8"]);
                let mut process = Process::start(&program("postrider"), "postrider", arguments, folder.path());
                let address = process.listening(2).await[0];
                Self::Standalone {
                    process: Box::new(process),
                    address,
                    _folder: folder,
                }
            }
        }
    }

    /// A client on a connection of its own.
    pub(crate) fn client(&self) -> Client {
        match self {
            Self::Cluster(cluster) => cluster.client(0),
            Self::Standalone { address, .. } => Client::new(*address),
        }
    }

    /// A client of etcd, if there is one.
    pub(crate) fn etcd(&self) -> Option<EtcdApi> {
        match self {
            Self::Cluster(cluster) => Some(cluster.etcd.client(0)),
            Self::Standalone { .. } => None,
        }
    }

    /// What everything has used until now.
    pub(crate) async fn usage(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let processes = &mut snapshot.processes;
        processes.insert("load", Usage::of(std::process::id()));
        match self {
            Self::Cluster(cluster) => {
                processes.insert("control-plane", Usage::of(cluster.control_planes[0].process.pid()));
                processes.insert("agent", Usage::of(cluster.agents[0].pid()));
                processes.insert("etcd", Usage::of(cluster.etcd.pid(0)));
            }
            Self::Standalone { process, .. } => {
                processes.insert("postrider", Usage::of(process.pid()));
            }
        }
        if let Some(etcd) = self.etcd() {
            snapshot.revision = etcd.revision().await.ok();
            snapshot.database_bytes = etcd.database_bytes().await.ok().flatten();
            snapshot.stored_bytes = etcd.database_bytes_in_use().await.ok().flatten();
        }
        snapshot
    }
}
