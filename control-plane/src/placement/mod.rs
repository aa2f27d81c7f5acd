//! Placement: the leader says which agent should own which shard.
//!
//! ```text
//!     agents/ ──mirror──▶ roster ──quiet──▶ plan ──moves──▶ commit ──▶ assignments/ ──mirror──▶ roster
//! ```
//!
//! An assignment is a wish. The right to work on a shard comes from its owner key alone, which the agents take and give up among themselves, so
//! nothing here can make two agents work on one shard.

mod commit;
pub mod plan;
mod roster;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use postrider_common::store::{SharedStore, WriteError, mirror};
use postrider_common::{key, task};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use self::plan::{Moves, plan};
use self::roster::Roster;
use crate::leader::Term;

/// A change is acted on once nothing else has changed for this long: agents that start or stop together cause one plan, not many.
const QUIET: Duration = Duration::from_millis(50);

/// The same at the beginning of a term: after a restart of everything the agents come back within this time of each other, and keep their shards.
const FIRST_QUIET: Duration = Duration::from_millis(300);

/// However much changes, a plan is made after this long.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Pause after a write that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// How long the mirrors may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// Places shards until `over` is cancelled, or until a write shows that the term is over.
pub async fn run(store: SharedStore, term: Term, shards: NonZeroU16, over: CancellationToken) {
    let group = task::Group::new(over.child_token());
    over.run_until_cancelled(place(&group, store, &term, shards)).await;
    group.shut_down(STOP_DEADLINE).await;
}

async fn place(group: &task::Group, store: SharedStore, term: &Term, shards: NonZeroU16) {
    let roster = Arc::new(watch::Sender::new(Roster::default()));
    let mut changed = roster.subscribe();
    let to = Arc::clone(&roster);
    let agents = mirror::spawn(
        group,
        "agents",
        Arc::clone(&store),
        key::agents(),
        false,
        move |update| {
            to.send_modify(|roster| roster.apply_agents(update));
        },
    );
    let to = Arc::clone(&roster);
    let prefix = key::assignments();
    let assignments = mirror::spawn(group, "assignments", Arc::clone(&store), prefix, false, move |update| {
        to.send_modify(|roster| roster.apply_assignments(update));
    });
    agents.synced().await;
    assignments.synced().await;
    quiet(&mut changed, FIRST_QUIET).await;
    loop {
        let roster = changed.borrow_and_update().clone();
        let moves = Moves::between(&roster.assignments, &plan(&roster.agents, shards, &roster.assignments));
        match commit::commit(&*store, term, &moves).await {
            Ok(None) => {
                if changed.changed().await.is_err() {
                    return;
                }
                quiet(&mut changed, QUIET).await;
            }
            Ok(Some(revision)) => {
                tracing::info!(%moves, agents = roster.agents.len(), "shards assigned");
                // The next plan starts from this one.
                if !assignments.reached(revision).await {
                    return;
                }
            }
            Err(WriteError::Conflict) => {
                tracing::warn!("another control plane leads");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "assignments not written, trying again");
                sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Waits until nothing has changed for `time`.
async fn quiet(changed: &mut watch::Receiver<Roster>, time: Duration) {
    let last = Instant::now() + LONGEST_WAIT;
    while Instant::now() < last
        && timeout_at(last.min(Instant::now() + time), changed.changed())
            .await
            .is_ok()
    {}
}

#[cfg(test)]
mod tests;
