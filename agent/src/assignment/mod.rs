//! Assignment: the agent takes the shards that the leader assigns to it, and gives up those it does not.
//!
//! ```text
//!     assignments/, owners/ ──mirror──▶ view ──▶ reconcile ──▶ take:    create owners/S on the lease ▸ start a worker
//!                                                              release: let the worker finish ▸ delete owners/S
//! ```
//!
//! A shard's owner key is created only while there is none, and it is on the agent's one lease: no two agents have a shard at once. Its create
//! revision is the epoch that guards all the worker writes. When the lease is lost all workers are abandoned before the store can have let the keys go,
//! and the agent registers anew, as if it had just been started.

mod reconcile;
mod session;
mod view;

use std::sync::Arc;
use std::time::Duration;

use postrider_common::id::AgentId;
use postrider_common::store::{SharedStore, mirror};
use postrider_common::time::SharedClock;
use postrider_common::{key, task};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::session::{End, Session};
use self::view::View;
use crate::presence::{self, About, Presence};
use crate::shard::Work;

/// Pause before the agent tries to register again.
const REGISTER_PAUSE: Duration = Duration::from_millis(500);

/// Lives of a lease after which an entry of the agent's name must be another agent's. Its own last life's is gone after one, or two if the store changed
/// its leader meanwhile and renewed all leases.
const TAKEN_PATIENCE: u32 = 3;

/// How long mirrors and the keeper of the lease may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// What an agent needs to have shards.
pub struct Deps {
    /// The store.
    pub store: SharedStore,
    /// The agent's name.
    pub agent: AgentId,
    /// Starts a worker for each shard taken.
    pub work: Arc<dyn Work>,
    /// How long the agent's lease lives without a keep-alive.
    pub lease_ttl: Duration,
    /// Version of the program.
    pub version: String,
    /// How many shards it should have, relative to other agents.
    pub weight: u32,
    /// For the time when it was started.
    pub clock: SharedClock,
}

/// Takes and gives up shards until `stop` is cancelled; then says that it is draining, releases all shards, leaves the cluster and returns.
///
/// # Errors
/// [`presence::Error::Taken`] if another live agent has the same name.
pub async fn run(deps: Deps, stop: CancellationToken) -> Result<(), presence::Error> {
    // Not under `stop`: mirrors and lease are needed until the last shard has been released.
    let group = task::Group::default();
    let (view, owners) = follow(&group, &deps);
    let about = About {
        agent: deps.agent.clone(),
        version: deps.version.clone(),
        weight: deps.weight,
        start_time: deps.clock.now(),
    };
    let mut taken_since = None;
    let result = loop {
        let keeper = task::Group::default();
        let store = Arc::clone(&deps.store);
        let register = Presence::register(&keeper, store, about.clone(), deps.lease_ttl);
        let Some(registered) = stop.run_until_cancelled(register).await else {
            break Ok(());
        };
        match registered {
            Ok(presence) => {
                taken_since = None;
                tracing::info!(agent = %about.agent, lease = presence.held().id().0, "registered");
                let session = Session::new(&deps, Arc::new(presence), owners.clone());
                match session.run(view.clone(), &stop).await {
                    End::Stopped => break Ok(()),
                    End::Lost => tracing::warn!(agent = %about.agent, "all shards abandoned, registering again"),
                }
            }
            Err(error @ presence::Error::Taken(_)) => {
                let since = *taken_since.get_or_insert_with(Instant::now);
                if since.elapsed() > deps.lease_ttl * TAKEN_PATIENCE {
                    break Err(error);
                }
                tracing::debug!(%error, "not registered yet");
            }
            Err(error) => tracing::warn!(%error, "not registered, trying again"),
        }
        keeper.shut_down(STOP_DEADLINE).await;
        stop.run_until_cancelled(sleep(REGISTER_PAUSE)).await;
    };
    group.shut_down(STOP_DEADLINE).await;
    result
}

/// Mirrors what the agent reconciles, and tells how far the mirror of the owners has come.
fn follow(group: &task::Group, deps: &Deps) -> (watch::Receiver<View>, mirror::Handle) {
    let (view, receiver) = watch::channel(View::default());
    let view = Arc::new(view);
    let to = Arc::clone(&view);
    let store = Arc::clone(&deps.store);
    let owners = mirror::spawn(group, "owners", store, key::owners(), true, move |update| {
        to.send_modify(|view| view.apply_owners(update));
    });
    let me = deps.agent.clone();
    let store = Arc::clone(&deps.store);
    mirror::spawn(group, "assignments", store, key::assignments(), false, move |update| {
        view.send_modify(|view| view.apply_assignments(update, &me));
    });
    (receiver, owners)
}

#[cfg(test)]
mod tests;
