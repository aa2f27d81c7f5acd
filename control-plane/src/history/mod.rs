//! Looking things up: where deliveries stand, what attempts came to, and why.
//!
//! ```text
//!     queue/S/…  minus progress/S ──▶ PENDING ─┐
//!     parked/S/A/W/… minus progress/S ▶ WAITING ├─ where it stands: complete ──▶ walk ▸ filter ──▶ a page
//!     dead/S/A/W/… ──────────────────▶ DEAD ────┘                                 ▲
//!     history/S/… ──▶ DELIVERED, DROPPED, every attempt: what is told ────────────┘──▶ watch ──▶ live tail
//! ```
//!
//! - [`standing`] (pure): deliveries out of stored segments. [`filter`] (pure): which of them are wanted. [`place`] (pure): how far a listing has come.
//! - [`shelves`]: reads segments as of one revision, or as of now once that is no longer kept; counts what was read.
//! - [`walk`]: goes through the places where deliveries are, in order, until a page is full or has read enough.
//! - [`explain`] (pure): why a delivery is where it is, in words.
//! - [`watch`]: follows attempts through the store.
//!
//! A delivery is in one of the first three places or told of as ended, never both at one revision: the agent writes of an end only after the ledger has.

pub(crate) mod explain;
pub(crate) mod filter;
pub(crate) mod place;
pub(crate) mod shelves;
pub(crate) mod standing;
pub(crate) mod walk;
pub(crate) mod watch;

use std::num::NonZeroU16;

use postrider_common::id::{AccountId, Uid, WebhookId};
use postrider_common::model::webhook::Webhook;
use postrider_common::shard::{self, ShardId};

/// The webhook that is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    /// Whose.
    pub(crate) account: AccountId,
    /// Which.
    pub(crate) webhook: WebhookId,
    /// Its uid: deliveries of an earlier webhook of the name are not its own.
    pub(crate) uid: Uid,
    /// Where its deliveries are.
    pub(crate) shard: ShardId,
}

impl Subject {
    /// A webhook of a cell with so many shards.
    pub(crate) fn new(webhook: &Webhook, shard_count: NonZeroU16) -> Self {
        Self {
            account: webhook.account.clone(),
            webhook: webhook.id.clone(),
            uid: webhook.uid.clone(),
            shard: shard::of(&webhook.account, &webhook.id, shard_count),
        }
    }
}

#[cfg(test)]
mod tests;
