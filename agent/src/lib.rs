//! The agent: takes the shards it is assigned and delivers what they hold over HTTP.

pub mod assignment;
pub mod attempt;
pub mod auth;
pub mod catalog;
pub mod command;
pub mod config;
pub mod history;
pub mod limit;
mod metrics;
pub mod presence;
pub mod shard;
pub mod suspension;
pub mod testing;
pub mod transport;

use crate::suspension::Suspender;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use postrider_common::admin::Readiness;
use postrider_common::entropy::SharedEntropy;
use postrider_common::net::{SharedDialer, SharedResolver};
use postrider_common::secret::Keyring;
use postrider_common::store::{SharedStore, room};
use postrider_common::task;
use postrider_common::time::SharedClock;
use tokio_util::sync::CancellationToken;

use crate::attempt::sender::HttpSender;
use crate::catalog::Catalog;
use crate::command::Commands;
use crate::config::Config;
pub use crate::metrics::Metrics;
use crate::shard::{Limits, Shards};
pub use crate::transport::tls::Roots;

/// How long tasks that have nothing left to do may take to notice.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// What the agent stands on. The caller owns it all, so that a simulation can bring its own.
pub struct Deps {
    /// The store.
    pub store: SharedStore,
    /// Wall time: what is told, signed and sent.
    pub clock: SharedClock,
    /// When what waits is due: wall time that does not jump.
    pub schedule: SharedClock,
    /// Chance.
    pub entropy: SharedEntropy,
    /// Opens secrets.
    pub keyring: Arc<Keyring>,
    /// Connects to receivers.
    pub dialer: SharedDialer,
    /// Finds receivers.
    pub resolver: SharedResolver,
    /// Counts.
    pub metrics: Metrics,
    /// Where it says why it is not ready.
    pub readiness: Readiness,
}

/// The resolver of this machine's own configuration.
///
/// # Errors
/// When that configuration cannot be read.
pub fn system_resolver() -> anyhow::Result<SharedResolver> {
    let resolver = transport::resolve::SystemResolver::new().context("reading the name servers of this machine")?;
    Ok(Arc::new(resolver))
}

/// The text of all files of certificate authorities.
fn authorities(files: &[PathBuf]) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    for file in files {
        text.extend(std::fs::read(file).with_context(|| format!("reading {}", file.display()))?);
        text.push(b'\n');
    }
    Ok(text)
}

/// Delivers until `stop`; then hands its shards over and leaves the cluster.
///
/// # Errors
/// When another agent that is alive has the same name, or a file of certificate authorities cannot be read.
pub async fn run(config: Config, deps: Deps, stop: CancellationToken) -> anyhow::Result<()> {
    deps.readiness.not_ready("agent", "the webhooks have not been read yet");
    let group = task::Group::default();
    let catalog = Catalog::spawn(&group, deps.store.clone());
    let sender = Arc::new(HttpSender::new(attempt::sender::Deps {
        dialer: deps.dialer,
        resolver: deps.resolver,
        policy: Arc::new(config.egress),
        keyring: deps.keyring,
        clock: deps.clock.clone(),
        tls: transport::tls::client_config(config.roots, &authorities(&config.extra_roots)?)?,
        limits: transport::Limits::default(),
        counters: deps.metrics.transport,
    }));
    let shards = shard::Deps {
        store: deps.store.clone(),
        agent: config.id.clone(),
        sender: sender.clone(),
        catalog: catalog.clone(),
        clock: deps.schedule,
        entropy: deps.entropy,
        counters: deps.metrics.shards,
        history: deps.metrics.history,
        suspender: Suspender::spawn(&group, deps.store.clone(), deps.clock.clone()),
        commands: Commands::spawn(&group, deps.store.clone()),
    };
    let limits = Limits {
        grace: config.release_grace,
        suspend_after: config.suspend_after,
        dead_letter_retention: config.dead_letter_retention,
        history: config.history,
        ..Limits::default()
    };
    let work = Arc::new(Shards::new(shards, limits, &group));
    testing::spawn(
        &group,
        testing::Deps {
            store: deps.store.clone(),
            agent: config.id.clone(),
            sender,
        },
    );
    let full = deps.metrics.store_full;
    let room = room::watch(deps.store.clone(), deps.readiness.clone(), full, group.token().clone());
    group.spawn("store room", room);
    let readiness = deps.readiness.clone();
    group.spawn("readiness", async move {
        catalog.synced().await;
        readiness.ready("agent");
    });
    let assigned = assignment::run(
        assignment::Deps {
            store: deps.store,
            agent: config.id,
            work,
            lease_ttl: config.lease_ttl,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            weight: config.weight.get(),
            clock: deps.clock,
        },
        stop,
    )
    .await;
    deps.readiness.not_ready("agent", "stopping");
    group.shut_down(STOP_GRACE).await;
    assigned.map_err(Into::into)
}
