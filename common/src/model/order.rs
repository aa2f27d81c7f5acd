//! In which order a webhook gets its events, and what happens when one of them is used up. Pure.

use sha2::{Digest, Sha256};

use super::segment::Event;
use crate::id::Uid;
use crate::store::Revision;

/// Which order is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ordering {
    /// None.
    #[default]
    None,
    /// Events of one ordering key in order of acceptance.
    PerKey,
    /// All events in order of acceptance.
    Strict,
}

/// What happens when an event is used up: its retry policy is exhausted, or it has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It becomes a dead letter; what follows goes on.
    DeadLetter,
    /// The webhook waits.
    Block,
    /// Its ordering key waits.
    ParkKey,
}

/// In which order a webhook gets its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Order {
    /// Which order is kept.
    pub ordering: Ordering,
    /// What happens when an event is used up; `None` means the default of the ordering (see [`Order::on_failure`]).
    pub on_failure: Option<OnFailure>,
}

impl Order {
    /// What happens when an event is used up: as chosen, or what the ordering asks for.
    pub const fn on_failure(&self) -> OnFailure {
        match (self.on_failure, self.ordering) {
            (Some(chosen), _) => chosen,
            (None, Ordering::None) => OnFailure::DeadLetter,
            (None, Ordering::PerKey) => OnFailure::ParkKey,
            (None, Ordering::Strict) => OnFailure::Block,
        }
    }

    /// Whether any order is kept.
    pub fn is_kept(&self) -> bool {
        self.ordering != Ordering::None
    }
}

/// Where a delivery stands in the order of acceptance of its shard. The least one is that of what an earlier release stored without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// The revision at which its queue segment was created.
    pub revision: Revision,
    /// Its number there.
    pub index: u32,
}

impl Position {
    /// The first one that may follow this.
    #[must_use]
    pub const fn next(self) -> Self {
        match self.index.checked_add(1) {
            Some(index) => Self { index, ..self },
            None => Self::after(self.revision),
        }
    }

    /// The first one of what is accepted after `revision`.
    pub const fn after(revision: Revision) -> Self {
        Self {
            revision: Revision(revision.0.saturating_add(1)),
            index: 0,
        }
    }
}

/// Deliveries of one webhook that follow each other. Part of the stored format: what a line is called never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line(pub u64);

impl Line {
    /// What overflows of a webhook with [`Ordering::PerKey`]: deliveries of all keys, in order of acceptance.
    pub const STREAM: Self = Self(0);

    /// All deliveries of a webhook with [`Ordering::Strict`].
    pub const STRICT: Self = Self(1);

    /// The line of an event's ordering key; of the event itself if it has none. By 62 bits of SHA-256: keys that shared them would wait for each other.
    pub fn of(event: &Event) -> Self {
        let mut hash = Sha256::new();
        match &event.ordering_key {
            Some(key) => hash.update(key.as_bytes()),
            None => {
                // No key has a space in it.
                hash.update(b" ");
                hash.update(event.id.as_str());
            }
        }
        // Apart from the two above.
        Self((head(hash) | 2) & !1)
    }
}

/// Names a state of a webhook: each change gives it another one, and no two webhooks have the same, though one bears the name of the other. Never 0. Part of
/// the stored format: what a state is called never changes.
pub fn stage(webhook: &Uid, generation: u64) -> u64 {
    let mut hash = Sha256::new();
    hash.update(webhook.as_str());
    hash.update(generation.to_be_bytes());
    head(hash) | 1
}

/// The first eight bytes of a hash.
fn head(hash: Sha256) -> u64 {
    let mut head = [0; 8];
    for (byte, from) in head.iter_mut().zip(hash.finalize()) {
        *byte = from;
    }
    u64::from_be_bytes(head)
}

/// Where a parked segment of an ordered webhook stands in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lined {
    /// The line that all its deliveries belong to.
    pub line: Line,
    /// The first of its deliveries.
    pub first: Position,
    /// The [`stage`] of the webhook in which it was used up: it waits for another one. 0 if it is not.
    pub blocked: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_state_of_a_webhook_is_called_never_changes() {
        let uid = |last| Uid::new(&format!("018f4c1e-7c55-7a3e-8b1a-2f4d5e6a7b8{last}")).unwrap();
        let (one, other) = (uid('c'), uid('d'));
        let stages = [stage(&one, 1), stage(&one, 2), stage(&other, 1)];
        assert_eq!(stages, PINNED);
    }

    const PINNED: [u64; 3] = [0xd45a_e9c6_cd73_9df1, 0x4dac_9b1c_0696_09d5, 0x2f02_110e_9220_5ee1];

    #[test]
    fn a_position_is_followed_at_once_by_its_next() {
        let at = |revision, index| Position {
            revision: Revision(revision),
            index,
        };
        assert_eq!(at(3, 4).next(), at(3, 5));
        assert_eq!(at(3, u32::MAX).next(), at(4, 0));
        assert!(at(3, u32::MAX) < Position::after(Revision(3)));
    }

    #[test]
    fn what_is_used_up_does_as_chosen_or_as_the_ordering_asks_for() {
        let of = |ordering, on_failure| Order { ordering, on_failure }.on_failure();
        assert_eq!(of(Ordering::None, None), OnFailure::DeadLetter);
        assert_eq!(of(Ordering::PerKey, None), OnFailure::ParkKey);
        assert_eq!(of(Ordering::Strict, None), OnFailure::Block);
        assert_eq!(of(Ordering::Strict, Some(OnFailure::DeadLetter)), OnFailure::DeadLetter);
    }
}
