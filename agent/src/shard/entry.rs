//! A parked segment, as the index of a lane keeps it. Pure.

use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key::{Parked, ParkedKind};
use postrider_common::model::order::Lined;
use postrider_common::shard::ShardId;
use postrider_common::time::Timestamp;

/// A parked segment: account, webhook and shard are the lane's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Entry {
    /// As in its key.
    pub due: Timestamp,
    /// Unique within the shard, together with the number.
    pub epoch: u64,
    /// See [`Entry::epoch`].
    pub number: u64,
    /// Deliveries.
    pub count: u32,
    /// What they wait for.
    pub kind: ParkedKind,
}

impl Entry {
    /// What its key says.
    pub const fn of(parked: &Parked) -> Self {
        Self {
            due: parked.due,
            epoch: parked.epoch,
            number: parked.number,
            count: parked.count,
            kind: parked.kind,
        }
    }

    /// Where it stands.
    pub fn parked(&self, shard: ShardId, account: &AccountId, webhook: &WebhookId) -> Parked {
        Parked {
            shard,
            account: account.clone(),
            webhook: webhook.clone(),
            due: self.due,
            epoch: self.epoch,
            number: self.number,
            count: self.count,
            kind: self.kind,
        }
    }

    /// Where it stands in the order, if it was parked under one.
    pub const fn lined(&self) -> Option<Lined> {
        match self.kind {
            ParkedKind::Ordered(lined) => Some(lined),
            ParkedKind::Single | ParkedKind::Gathering(_) | ParkedKind::Batch => None,
        }
    }

    /// How many deliveries it takes room for; one at least.
    pub fn room(&self) -> usize {
        self.count.max(1) as usize
    }
}
