//! Shards: a webhook belongs to one, by hash. Pure.

use std::fmt;
use std::num::NonZeroU16;

use sha2::{Digest, Sha256};

use crate::id::{AccountId, WebhookId};

/// How many shards a cell has unless it was told otherwise when its store was first used.
pub const DEFAULT_COUNT: NonZeroU16 = NonZeroU16::new(64).unwrap();

/// The number of a shard, below the cell's count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// All shards of a cell, in order.
pub fn all(count: NonZeroU16) -> impl Iterator<Item = ShardId> + Clone {
    (0..count.get()).map(ShardId)
}

/// The shard of a webhook: the first eight bytes, big-endian, of SHA-256 over `account/webhook`, modulo `count`. Part of the stored format:
/// it never changes.
pub fn of(account: &AccountId, webhook: &WebhookId, count: NonZeroU16) -> ShardId {
    let mut hash = Sha256::new();
    hash.update(account.as_str());
    hash.update(b"/");
    hash.update(webhook.as_str());
    let mut head = [0; 8];
    for (byte, from) in head.iter_mut().zip(hash.finalize()) {
        *byte = from;
    }
    // The remainder is below a u16.
    #[allow(clippy::cast_possible_truncation)]
    ShardId((u64::from_be_bytes(head) % u64::from(count.get())) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shard_of_a_webhook_never_changes() {
        let account = AccountId::new("1010").unwrap();
        let shard = |id: &str| of(&account, &WebhookId::new(id).unwrap(), DEFAULT_COUNT).0;
        assert_eq!([shard("a"), shard("b"), shard("crm")], PINNED);
    }

    const PINNED: [u16; 3] = [49, 16, 9];

    #[test]
    fn webhooks_spread_over_all_shards() {
        let account = AccountId::new("acme").unwrap();
        let mut counts = [0_u32; 64];
        for number in 0..6400 {
            counts[usize::from(of(&account, &WebhookId::new(&format!("w{number}")).unwrap(), DEFAULT_COUNT).0)] += 1;
        }
        assert!(counts.iter().all(|count| (50..=150).contains(count)), "{counts:?}");
    }
}
