//! The control plane: gRPC services for webhooks and publishing.

mod announce;
mod api;
mod catalog;
mod cell;
pub mod config;
mod fullness;
mod history;
pub mod leader;
mod metrics;
pub mod placement;
mod publish;
pub mod recover;
pub mod sweep;
mod testing;
mod usage;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _};
use postrider_common::admin::Readiness;
use postrider_common::entropy::SharedEntropy;
use postrider_common::secret::Keyring;
use postrider_common::store::{SharedStore, room};
use postrider_common::time::SharedClock;
use postrider_common::{egress, task};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpIncoming};

use crate::catalog::Catalog;
use crate::catalog::dedupe::DedupeLease;
use crate::catalog::edit::Edit;
use crate::config::Config;
pub use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::testing::Tests;

/// How long calls that are under way may take to end after the stop: longer than a commit's deadline.
const STOP_GRACE: Duration = Duration::from_secs(8);

/// Pause after a connection that could not be accepted: short beside what a caller waits, and next to nothing is used up while it lasts.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Pause before the store is asked again at the start.
const START_PAUSE: Duration = Duration::from_millis(500);

/// What the control plane stands on. The caller owns it all, so that a simulation can bring its own.
pub struct Deps {
    /// The store.
    pub store: SharedStore,
    /// Wall time.
    pub clock: SharedClock,
    /// Chance.
    pub entropy: SharedEntropy,
    /// Seals and opens secrets.
    pub keyring: Arc<Keyring>,
    /// Counts.
    pub metrics: Metrics,
    /// Where it says why it is not ready.
    pub readiness: Readiness,
}

/// The connections of a listener, ready for [`run`].
pub fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> + Send + 'static {
    unhurried(TcpIncoming::from(listener).with_nodelay(Some(true)))
}

/// The same connections, with a pause where none can be accepted. Where there is no file descriptor left the server would be told so again at once, and
/// again. Callers that left before they were accepted are no reason to let others wait.
fn unhurried<T: Send + 'static>(
    incoming: impl Stream<Item = io::Result<T>> + Send + 'static,
) -> impl Stream<Item = io::Result<T>> + Send + 'static {
    incoming.then(|accepted| async {
        let left = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
            )
        };
        if let Err(error) = accepted.as_ref()
            && !left(error)
        {
            tracing::warn!(%error, "a connection cannot be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        accepted
    })
}

/// Serves gRPC on `incoming`, and leads when it is elected, until `stop`; then finishes what was accepted and gives up leadership.
///
/// # Errors
/// When the store belongs to a cell with another number of shards, or holds what this release cannot read.
pub async fn run<IO>(
    config: Config,
    deps: Deps,
    incoming: impl Stream<Item = io::Result<IO>> + Send + 'static,
    stop: CancellationToken,
) -> anyhow::Result<()>
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    deps.readiness
        .not_ready("control plane", "the store has not been read yet");
    let Some(cell) = stop.run_until_cancelled(cell(&config, &deps)).await.transpose()? else {
        return Ok(());
    };
    let group = task::Group::default();
    let catalog = Catalog::spawn(&group, deps.store.clone(), cell.shard_count);
    let dedupe = Arc::new(DedupeLease::new(deps.store.clone()));
    let publisher = Publisher::spawn(
        &group,
        publish::Deps {
            store: deps.store.clone(),
            catalog: catalog.clone(),
            clock: deps.clock.clone(),
            entropy: deps.entropy.clone(),
            lease: dedupe.clone(),
            control_plane: config.id.clone(),
            quota: config.store_quota,
            counters: deps.metrics.publish.clone(),
            backlog: deps.metrics.backlog.clone(),
            fullness: deps.metrics.fullness.clone(),
        },
    );
    let announcer = announce::Deps {
        store: deps.store.clone(),
        clock: deps.clock.clone(),
        publisher: publisher.clone(),
    };
    let full = deps.metrics.store_full.clone();
    let room = room::watch(deps.store.clone(), deps.readiness.clone(), full, group.token().clone());
    group.spawn("store room", room);
    lead(&group, &config, &deps, cell.shard_count, announcer);
    let (caught_up, types_caught_up, accounts_caught_up) = (catalog.clone(), catalog.clone(), catalog.clone());
    let edit = Edit::new(deps.store.clone(), deps.clock.clone(), deps.entropy.clone(), dedupe)
        .mindful_of(deps.metrics.fullness.clone());
    let tests = Tests::spawn(
        &group,
        testing::Deps {
            store: deps.store.clone(),
            clock: deps.clock.clone(),
            entropy: deps.entropy.clone(),
        },
    );
    let api = api::routes(api::Deps {
        tests,
        store: deps.store,
        clock: deps.clock,
        entropy: deps.entropy,
        keyring: deps.keyring,
        edit: Arc::new(edit),
        page_key: api::page::PageKey::of_cell(&cell.uid),
        cell,
        control_plane: config.id,
        urls: url_check(config.egress),
        stop: stop.clone(),
        watches: api::webhook_watch::Watches::new(group.clone(), stop.clone()),
        catch_up: Arc::new(move |revision| {
            let catalog = caught_up.clone();
            Box::pin(async move {
                catalog.reached(revision).await;
            })
        }),
        types_catch_up: Arc::new(move |revision| {
            let catalog = types_caught_up.clone();
            Box::pin(async move {
                catalog.types_reached(revision).await;
            })
        }),
        accounts_catch_up: Arc::new(move |revision| {
            let catalog = accounts_caught_up.clone();
            Box::pin(async move {
                catalog.accounts_reached(revision).await;
            })
        }),
    });
    let api = api.await.context("the API's descriptors")?;
    stop.run_until_cancelled(catalog.synced()).await;
    deps.readiness.ready("control plane");

    let (fullness, full) = (deps.metrics.fullness.clone(), deps.metrics.store_full.clone());
    let publishes = move || !fullness.is_full() && full.load(Ordering::Relaxed) == 0;
    group.spawn("health", api::health::tell(api.health, publishes, stop.clone()));
    let routes = api.routes.add_service(api::publish_service::Service::server(publisher));
    let stopped = async {
        stop.cancelled().await;
        deps.readiness.not_ready("control plane", "stopping");
    };
    let mut server = pin!(
        api::server::server_builder(deps.metrics.calls.clone())
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming.boxed(), stopped)
    );
    // A client that keeps a stream open must not keep the process from ending.
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    let served = tokio::select! {
        served = &mut server => served.context("serving gRPC"),
        () = overdue => Ok(()),
    };
    group.shut_down(STOP_GRACE).await;
    served
}

/// The cell's facts, as soon as the store gives them.
async fn cell(config: &Config, deps: &Deps) -> anyhow::Result<cell::Cell> {
    loop {
        match cell::ensure(
            deps.store.as_ref(),
            config.shard_count,
            deps.clock.now(),
            deps.entropy.as_ref(),
        )
        .await
        {
            Ok(cell) => return Ok(cell),
            Err(error @ (cell::CellError::Read(_) | cell::CellError::Write(_))) => {
                deps.readiness.not_ready("control plane", error.to_string());
                tracing::warn!(%error, "waiting for the store");
                tokio::time::sleep(START_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Campaigns; while leading, places shards, compacts and announces.
fn lead(group: &task::Group, config: &Config, deps: &Deps, shards: std::num::NonZeroU16, announcer: announce::Deps) {
    let (store, counters) = (deps.store.clone(), deps.metrics.sweep.clone());
    leader::spawn(
        group,
        deps.store.clone(),
        config.id.clone(),
        config.lease_ttl,
        move |term, over| {
            let (store, counters, announcer) = (store.clone(), counters.clone(), announcer.clone());
            Box::pin(async move {
                // A term in which any of them has ended is given up.
                tokio::select! {
                    () = placement::run(store.clone(), term, shards, over.clone()) => {}
                    () = sweep::run(store, counters, over.clone()) => {}
                    () = announce::run(announcer, over) => {}
                }
            })
        },
    );
}

fn url_check(policy: egress::Policy) -> api::url_rules::UrlCheck {
    Arc::new(move |text| egress::check_url(text, &policy).map(|url| url.as_str().to_owned()))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn where_no_connection_can_be_accepted_there_is_a_pause_and_nowhere_else() {
        let none_left = || Err(io::Error::from_raw_os_error(24));
        let aborted = Err(io::ErrorKind::ConnectionAborted.into());
        let results = [Ok(1), aborted, none_left(), none_left(), Ok(2)];
        let mut incoming = pin!(unhurried(futures_util::stream::iter(results)));
        let begun = Instant::now();
        assert!(matches!(incoming.next().await, Some(Ok(1))));
        assert!(incoming.next().await.is_some_and(|failed| failed.is_err()));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(incoming.next().await.is_some_and(|failed| failed.is_err()));
        assert!(incoming.next().await.is_some_and(|failed| failed.is_err()));
        assert!(matches!(incoming.next().await, Some(Ok(2))));
        assert_eq!(begun.elapsed(), ACCEPT_PAUSE * 2);
    }
}
