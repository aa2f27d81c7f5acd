//! The program `control-plane`: gRPC on a port, state in a store that others share.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use postrider_common::admin::{self, Readiness};
use postrider_common::entropy::{Entropy as _, SystemEntropy};
use postrider_common::id::ControlPlaneId;
use postrider_common::store::etcd::Access;
use postrider_common::time::{Clock as _, SystemClock};
use postrider_common::{config, open_files, shutdown, store, task};
use postrider_control_plane::{Deps, Metrics, recover};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    start().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn start() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == recover::COMMAND) {
        return recover::main(arguments);
    }
    let entropy = Arc::new(SystemEntropy::new().context("the operating system gives no random numbers")?);
    let id = format!("control-plane-{}", entropy.uuid(SystemClock.now()));
    let id = ControlPlaneId::new(&id).context("a name for this replica")?;
    let about = "Answers gRPC: manages webhooks, accepts events. `control-plane etcd-recover` brings an etcd back that has no space left";
    let own = postrider_control_plane::config::SETTINGS;
    let read = config::read_program("control-plane", about, own, |settings| {
        postrider_control_plane::config::read(settings, id)
    });
    let ((config, listen), shared) = match read {
        Ok(read) => read,
        Err(exit) => return Ok(exit.report()),
    };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async move {
            // Each connection of a client is a file.
            open_files::raise_limit();
            let group = task::Group::default();
            let stop = shutdown::on_signal(&group)?;
            let listener = TcpListener::bind(listen)
                .await
                .with_context(|| format!("listening on {listen}"))?;
            println!("listening on {} (grpc)", listener.local_addr()?);
            let mut registry = Registry::with_prefix("postrider");
            let metrics = Metrics::register(&mut registry);
            let access = Access {
                credentials: shared.credentials,
                authentications: metrics.authentications(),
            };
            let deps = Deps {
                store: store::url::open(&shared.store, &shared.prefix, access).await?,
                clock: Arc::new(SystemClock),
                entropy,
                keyring: Arc::new(shared.keyring),
                metrics,
                readiness: Readiness::default(),
            };
            admin::start(&group, shared.metrics_listen, registry, deps.readiness.clone()).await?;
            let served =
                postrider_control_plane::run(config, deps, postrider_control_plane::incoming(listener), stop).await;
            group.shut_down(admin::STOP_GRACE).await;
            served.map(|()| ExitCode::SUCCESS)
        })
}
