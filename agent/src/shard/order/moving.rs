//! Deliveries of one line that were handed to the ledger, to be parked or as dead letters, and are not known to be written. Pure.

use std::collections::VecDeque;

use postrider_common::model::order::Position;

/// A queue of positions that knows the least. The ledger writes in the order in which it was given; a transaction holds some of the oldest.
#[derive(Debug, Default)]
pub(super) struct Moving {
    pushed: u64,
    popped: u64,
    /// Each is less than all that were pushed after it: those are not needed.
    minima: VecDeque<(u64, Position)>,
}

impl Moving {
    /// Adds one.
    pub(super) fn push(&mut self, position: Position) {
        while self.minima.back().is_some_and(|(_, last)| *last >= position) {
            self.minima.pop_back();
        }
        self.minima.push_back((self.pushed, position));
        self.pushed += 1;
    }

    /// Takes the oldest `count`.
    pub(super) fn pop(&mut self, count: u32) {
        self.popped = self.pushed.min(self.popped + u64::from(count));
        while self.minima.front().is_some_and(|(number, _)| *number < self.popped) {
            self.minima.pop_front();
        }
    }

    /// The least.
    pub(super) fn first(&self) -> Option<Position> {
        self.minima.front().map(|(_, position)| *position)
    }

    /// The one that was added last, if there is any.
    pub(super) fn last(&self) -> Option<Position> {
        self.minima.back().map(|(_, position)| *position)
    }

    /// How many there are.
    pub(super) const fn len(&self) -> u64 {
        self.pushed - self.popped
    }

    /// There are none.
    pub(super) const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use postrider_common::store::Revision;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_always_knows_the_least_of_what_is_moving(steps in proptest::collection::vec((0_i64..50, 0_u32..3), 0..200)) {
            let (mut moving, mut model) = (Moving::default(), VecDeque::new());
            for (revision, pops) in steps {
                let position = Position { revision: Revision(revision), index: 0 };
                moving.push(position);
                model.push_back(position);
                moving.pop(pops);
                model.drain(..model.len().min(pops as usize));
                prop_assert_eq!(moving.first(), model.iter().min().copied());
                prop_assert_eq!(moving.len(), model.len() as u64);
            }
        }
    }
}
