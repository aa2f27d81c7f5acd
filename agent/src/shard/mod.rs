//! One worker per owned shard: feed ▸ state ▸ lanes ▸ attempts ▸ ledger.

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
