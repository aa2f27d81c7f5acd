//! Both halves in one process: `postrider serve`, and what `postrider demo` stands on.

use std::ffi::OsString;
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use postrider_common::admin::{self, Readiness};
use postrider_common::config::{self, Exit, Setting, Settings};
use postrider_common::entropy::{SharedEntropy, SystemEntropy};
use postrider_common::id::{AgentId, ControlPlaneId};
use postrider_common::net::TcpDialer;
use postrider_common::secret::Keyring;
use postrider_common::store::file::FileStore;
use postrider_common::store::{self, Op, SharedStore, Write};
use postrider_common::time::steady::SteadyClock;
use postrider_common::time::{Clock as _, SystemClock};
use postrider_common::{egress, key, open_files, shutdown, task};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Settings of `serve`; `demo` has its own for the folder.
const SERVE: &[Setting] = &[Setting::new(
    "data",
    "DIR",
    "postrider-data",
    "The folder that holds all state",
)];

/// Settings that `serve` and `demo` share.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting::new(
        "listen",
        "ADDR",
        "127.0.0.1:50051",
        "Where gRPC is served; port 0 takes a free one",
    ),
    postrider_control_plane::config::SHARDS,
    postrider_control_plane::config::STORE_QUOTA,
    postrider_agent::config::RELEASE_GRACE,
    postrider_agent::config::SUSPEND_AFTER,
    postrider_agent::config::DEAD_LETTER_RETENTION,
    postrider_agent::config::HISTORY_RETENTION,
    postrider_agent::config::HISTORY_BYTES,
    postrider_agent::config::ROOTS,
    postrider_agent::config::EXTRA_ROOTS,
];

/// What a standalone server needs to know.
pub(crate) struct Options {
    pub(crate) data: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) metrics_listen: SocketAddr,
    pub(crate) control_plane: postrider_control_plane::config::Config,
    pub(crate) agent: postrider_agent::config::Config,
}

/// Reads what `serve` and `demo` share.
pub(crate) fn options(settings: &mut Settings, data: PathBuf, entropy: &SharedEntropy) -> Result<Options, Exit> {
    let unique = entropy.uuid(SystemClock.now());
    let name = |kind: &str| format!("{kind}-{unique}");
    // A kind and a UUID are always a valid id.
    let invalid = |error| Exit::Mistakes(config::Mistakes(vec![format!("name of this process: {error}")]));
    let egress: egress::Policy = config::egress(settings);
    let lease_ttl = config::lease_ttl(settings);
    let options = Options {
        data,
        listen: settings.listen("listen"),
        metrics_listen: settings.listen("metrics-listen"),
        control_plane: postrider_control_plane::config::Config {
            id: ControlPlaneId::new(&name("standalone")).map_err(invalid)?,
            shard_count: postrider_control_plane::config::shard_count(settings),
            lease_ttl,
            store_quota: postrider_control_plane::config::store_quota(settings),
            egress: egress.clone(),
        },
        agent: postrider_agent::config::Config {
            id: AgentId::new(&name("standalone")).map_err(invalid)?,
            weight: postrider_agent::config::DEFAULT_WEIGHT,
            lease_ttl,
            egress,
            release_grace: postrider_agent::config::release_grace(settings),
            suspend_after: postrider_agent::config::suspend_after(settings),
            dead_letter_retention: postrider_agent::config::dead_letter_retention(settings),
            history: postrider_agent::config::history(settings),
            roots: postrider_agent::config::roots(settings),
            extra_roots: settings.all("extra-roots", config::path),
        },
    };
    config::start_logging(settings);
    Ok(options)
}

/// Runs `postrider serve`.
pub(crate) fn main(arguments: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let entropy: SharedEntropy =
        Arc::new(SystemEntropy::new().context("the operating system gives no random numbers")?);
    let about = "Serves gRPC and delivers webhooks, with all state in one folder";
    let read = Settings::read("postrider serve", about, &[config::COMMON, SERVE, SETTINGS], arguments).and_then(
        |mut settings| {
            let data = settings.required("data", PathBuf::new(), config::path);
            let options = options(&mut settings, data, &entropy)?;
            settings.finish().map(|()| options)
        },
    );
    let options = match read {
        Ok(options) => options,
        Err(exit) => return Ok(exit.report()),
    };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async move {
            // Each connection of a client and to a receiver is a file.
            open_files::raise_limit();
            let group = task::Group::default();
            let stop = shutdown::on_signal(&group)?;
            let listener = TcpListener::bind(options.listen)
                .await
                .with_context(|| format!("listening on {}", options.listen))?;
            println!("listening on {} (grpc)", listener.local_addr()?);
            let served = run(options, entropy, listener, stop).await;
            group.shut_down(admin::STOP_GRACE).await;
            served.map(|()| ExitCode::SUCCESS)
        })
}

/// Serves on `listener` until `stop`, with all state below `options.data`.
pub(crate) async fn run(
    options: Options,
    entropy: SharedEntropy,
    listener: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let data = options.data.clone();
    std::fs::create_dir_all(&data).with_context(|| format!("making the folder {}", data.display()))?;
    let store: SharedStore = Arc::new(FileStore::open(&data).await?);
    clear_the_dead(&store).await?;
    let keyring = Arc::new(keyring(&data.join("secret.key"), &entropy)?);
    let mut registry = Registry::with_prefix("postrider");
    let readiness = Readiness::default();
    let control_plane = postrider_control_plane::Deps {
        store: store.clone(),
        clock: Arc::new(SystemClock),
        entropy: entropy.clone(),
        keyring: keyring.clone(),
        metrics: postrider_control_plane::Metrics::register(&mut registry),
        readiness: readiness.clone(),
    };
    let agent = postrider_agent::Deps {
        store,
        clock: Arc::new(SystemClock),
        schedule: Arc::new(SteadyClock::new(Arc::new(SystemClock))),
        entropy,
        keyring,
        dialer: Arc::new(TcpDialer),
        resolver: postrider_agent::system_resolver()?,
        metrics: postrider_agent::Metrics::register(&mut registry),
        readiness: readiness.clone(),
    };
    let group = task::Group::default();
    let incoming = postrider_control_plane::incoming(listener);
    admin::start(&group, options.metrics_listen, registry, readiness).await?;
    // If one half ends, for whatever reason, the other must not go on alone.
    let ends = |half: anyhow::Result<()>| {
        stop.cancel();
        half
    };
    let (control_plane, agent) = tokio::join!(
        async {
            ends(postrider_control_plane::run(options.control_plane, control_plane, incoming, stop.clone()).await)
        },
        async { ends(postrider_agent::run(options.agent, agent, stop.clone()).await) },
    );
    group.shut_down(admin::STOP_GRACE).await;
    control_plane.and(agent)
}

/// Removes what a process that was killed left on leases: nobody else can be alive on this store, so nobody need wait for them to run out.
async fn clear_the_dead(store: &SharedStore) -> anyhow::Result<()> {
    let mut ops = vec![Op::delete(key::leader())];
    for prefix in [key::agents(), key::owners()] {
        let (entries, _) = store::list_all(store.as_ref(), &prefix, true).await?;
        ops.extend(entries.into_iter().map(|entry| Op::delete(entry.key)));
    }
    for ops in ops.chunks(store::MAX_OPS) {
        store
            .write(Write {
                guards: Vec::new(),
                ops: ops.to_vec(),
            })
            .await?;
    }
    Ok(())
}

/// The sealing keys of this folder, made when it is first used and readable by its owner only.
fn keyring(path: &Path, entropy: &SharedEntropy) -> anyhow::Result<Keyring> {
    match std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Ok(mut file) => {
            file.write_all(Keyring::generate(entropy.as_ref()).as_bytes())?;
            file.sync_all()?;
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(|| format!("making {}", path.display())),
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Keyring::parse(&text).with_context(|| path.display().to_string())
}
