//! The program `agent`: delivers what the store's queues hold.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use postrider_agent::{Deps, Metrics};
use postrider_common::admin::{self, Readiness};
use postrider_common::entropy::{Entropy as _, SystemEntropy};
use postrider_common::id::AgentId;
use postrider_common::net::TcpDialer;
use postrider_common::store::etcd::Access;
use postrider_common::time::steady::SteadyClock;
use postrider_common::time::{Clock as _, SystemClock};
use postrider_common::{config, open_files, shutdown, store, task};
use prometheus_client::registry::Registry;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Open files with which no attempt has to wait for one: sockets of all attempts that may be under way, and of idle connections.
const ENOUGH_FILES: u64 = 16 * 1024;

fn main() -> ExitCode {
    start().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn start() -> anyhow::Result<ExitCode> {
    let entropy = Arc::new(SystemEntropy::new().context("the operating system gives no random numbers")?);
    let id = AgentId::new(&format!("agent-{}", entropy.uuid(SystemClock.now()))).context("a name for this agent")?;
    let own = postrider_agent::config::SETTINGS;
    let read = config::read_program("agent", "Delivers webhooks over HTTP", own, |settings| {
        postrider_agent::config::read(settings, id)
    });
    let (config, shared) = match read {
        Ok(read) => read,
        Err(exit) => return Ok(exit.report()),
    };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async move {
            let open_files = open_files::raise_limit();
            if open_files < ENOUGH_FILES {
                tracing::warn!(
                    open_files,
                    "this process may have few files open: attempts for which there is none wait (see ulimit -Hn)"
                );
            }
            let group = task::Group::default();
            let stop = shutdown::on_signal(&group)?;
            let mut registry = Registry::with_prefix("postrider");
            let metrics = Metrics::register(&mut registry);
            let access = Access {
                credentials: shared.credentials,
                authentications: metrics.authentications(),
            };
            let deps = Deps {
                store: store::url::open(&shared.store, &shared.prefix, access).await?,
                clock: Arc::new(SystemClock),
                schedule: Arc::new(SteadyClock::new(Arc::new(SystemClock))),
                entropy,
                keyring: Arc::new(shared.keyring),
                dialer: Arc::new(TcpDialer),
                resolver: postrider_agent::system_resolver()?,
                metrics,
                readiness: Readiness::default(),
            };
            admin::start(&group, shared.metrics_listen, registry, deps.readiness.clone()).await?;
            let served = postrider_agent::run(config, deps, stop).await;
            group.shut_down(admin::STOP_GRACE).await;
            served.map(|()| ExitCode::SUCCESS)
        })
}
