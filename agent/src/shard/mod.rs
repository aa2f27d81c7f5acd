//! One worker per owned shard: feed ▸ state ▸ lanes ▸ attempts ▸ ledger.
//!
//! - [`feed`]: reads what the shard holds: its progress, the index of its parked segments, its queue in the order of acceptance.
//! - [`state`] (pure): decides. A stored segment that is being worked on is a *source*; each of its deliveries ends once for it, with one record: over
//!   (delivered, or dropped because its webhook was deleted) or moved (parked until its due time, or dead).
//!
//! ```text
//!       queue/S/… ─┐                  ┌─▶ attempt ─▶ delivered ──▶ over
//!                  ├▶ lane ▸ ready ───┤         └──▶ failed ──┬──▶ moved to dead/S/…
//!       parked/S/… ┘   │ no room,     └─▶ expired ────────────┘
//!           ▲          ▼ not active           └──▶ to be tried again
//!           └── moved to parked/S/… ◀──────────────────┘
//! ```
//!
//! - [`ledger`]: one for the agent; writes the records of all its workers in bulk, guarded by the epoch of every shard in the transaction.
//! - `worker`: the task around them.
//!
//! Memory is bounded thrice: a lane holds at most so many deliveries, bytes and sources ([`lane`]); the whole agent loads at most so many bytes
//! ([`budget`]), and gives lanes less room the scarcer they are; records that cannot be written stop the start of attempts ([`ledger`]).

pub mod budget;
pub mod counters;
pub mod dead;
pub mod delivery;
pub mod entry;
pub mod feed;
pub mod gathering;
pub mod lane;
pub mod ledger;
pub mod order;
mod pace;
pub mod queue;
mod shards;
pub mod state;
mod worker;

pub use shards::{DEAD_LETTER_RETENTION, Deps, Limits, Shards};

use async_trait::async_trait;
use postrider_common::shard::ShardId;
use postrider_common::store::Revision;
use postrider_common::store::lease::Held;
use tokio_util::sync::CancellationToken;

/// The right to work on a shard.
#[derive(Debug, Clone)]
pub struct Tenure {
    /// The shard.
    pub shard: ShardId,
    /// The create revision of its owner key: guards every write.
    pub epoch: Revision,
    /// The lease that the owner key dies with.
    pub lease: Held,
}

/// Starts workers.
pub trait Work: Send + Sync + 'static {
    /// Starts to work on a shard that was just taken.
    fn start(&self, tenure: Tenure) -> Box<dyn Running>;
}

/// A worker.
#[async_trait]
pub trait Running: Send + 'static {
    /// Takes no new work, finishes what is under way within the grace, and writes all progress. When it returns nothing of the shard is under way
    /// any more, and its owner key may be deleted.
    async fn release(self: Box<Self>);

    /// Stops at once: the tenure is over, nothing may be written.
    async fn abandon(self: Box<Self>);

    /// Cancelled by the worker when it finds that its tenure is over (a write was refused because of the epoch).
    fn fenced(&self) -> CancellationToken;
}

#[cfg(test)]
pub(crate) mod tests;
