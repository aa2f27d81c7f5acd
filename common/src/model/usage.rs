//! What became of the deliveries of a webhook, counted. Pure.

use crate::id::{AccountId, Uid, WebhookId};

/// Whose counts: those of one webhook, or of all webhooks of an account's shard that do not exist any more (`None`).
pub type Name = (AccountId, Option<WebhookId>);

/// Why a delivery was dropped: it ended without having been delivered, and is kept nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dropped {
    /// Its webhook was deleted.
    WebhookDeleted,
    /// Somebody cancelled it.
    Cancelled,
    /// Somebody purged it from the dead letters.
    Purged,
    /// It was a dead letter for as long as those are kept.
    Expired,
}

impl Dropped {
    /// All of them, in the order in which [`Usage::dropped`] counts.
    pub const ALL: [Self; 4] = [Self::WebhookDeleted, Self::Cancelled, Self::Purged, Self::Expired];

    /// Stable, upper-case: what is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WebhookDeleted => "WEBHOOK_DELETED",
            Self::Cancelled => "CANCELLED",
            Self::Purged => "PURGED",
            Self::Expired => "EXPIRED",
        }
    }

    const fn place(self) -> usize {
        match self {
            Self::WebhookDeleted => 0,
            Self::Cancelled => 1,
            Self::Purged => 2,
            Self::Expired => 3,
        }
    }
}

/// Counts of deliveries. Together with the store at the same revision they are exact: `taken` is `delivered`, `dead`, all of `dropped`, and what the
/// parked segments still hold; `dead` is what the segments of dead letters hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// The webhook's uid; `None` where the counts are of several.
    pub uid: Option<Uid>,
    /// Taken from the queue: ended, or moved into a stored segment of the webhook's own.
    pub taken: u64,
    /// Delivered.
    pub delivered: u64,
    /// Dead letters that are kept.
    pub dead: u64,
    /// Dropped, by the places of [`Dropped::ALL`].
    pub dropped: [u64; Dropped::ALL.len()],
    /// The last number that was given to a delivery of a webhook that numbers them.
    pub sequence: u64,
}

impl Usage {
    /// How many were dropped for this reason.
    pub fn dropped(&self, why: Dropped) -> u64 {
        self.dropped.get(why.place()).copied().unwrap_or(0)
    }

    /// Counts deliveries that were dropped.
    pub fn drop_more(&mut self, why: Dropped, count: u64) {
        if let Some(dropped) = self.dropped.get_mut(why.place()) {
            *dropped += count;
        }
    }

    /// Taken from the queue and not ended.
    pub fn waiting(&self) -> u64 {
        let ended = self.delivered + self.dead + self.dropped.iter().sum::<u64>();
        self.taken.saturating_sub(ended)
    }

    /// There is nothing to keep.
    pub fn is_empty(&self) -> bool {
        let counts = [self.taken, self.delivered, self.dead, self.sequence];
        counts.iter().chain(&self.dropped).all(|count| *count == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_and_has_not_ended_waits() {
        let mut usage = Usage {
            taken: 10,
            delivered: 3,
            dead: 1,
            ..Usage::default()
        };
        for (why, count) in Dropped::ALL.into_iter().zip(0..) {
            usage.drop_more(why, count);
            assert_eq!(usage.dropped(why), count, "{}", why.as_str());
        }
        assert_eq!(usage.waiting(), 0);
    }
}
