//! What was asked for in some order and comes in any, given out in the order in which it was asked for. Pure.

use std::collections::VecDeque;

/// What is expected, or waits for what was asked for before it.
#[derive(Debug)]
pub(super) struct Arrivals<T> {
    first: u64,
    slots: VecDeque<Option<T>>,
}

impl<T> Default for Arrivals<T> {
    fn default() -> Self {
        Self {
            first: 0,
            slots: VecDeque::new(),
        }
    }
}

impl<T> Arrivals<T> {
    /// Something was asked for: its number.
    pub(super) fn expect(&mut self) -> u64 {
        self.slots.push_back(None);
        self.first + self.slots.len() as u64 - 1
    }

    /// It came.
    pub(super) fn came(&mut self, number: u64, what: T) {
        let at = usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = Some(what);
        }
    }

    /// The next one, if it has come.
    pub(super) fn next(&mut self) -> Option<T> {
        self.slots.front()?.as_ref()?;
        self.first += 1;
        self.slots.pop_front().flatten()
    }

    /// How many are expected or wait.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_comes_first_is_given_out_in_the_order_in_which_it_was_asked_for(
            steps in proptest::collection::vec((any::<bool>(), 0_usize..8), 0..100),
        ) {
            let (mut arrivals, mut asked, mut given) = (Arrivals::default(), Vec::new(), Vec::new());
            let mut expected = 0;
            for (ask, which) in steps {
                if ask || asked.is_empty() {
                    asked.push(arrivals.expect());
                    expected += 1;
                } else {
                    let number = asked.remove(which % asked.len());
                    arrivals.came(number, number);
                }
                given.extend(std::iter::from_fn(|| arrivals.next()));
                prop_assert_eq!(arrivals.len() + given.len(), expected);
            }
            for number in asked {
                arrivals.came(number, number);
            }
            given.extend(std::iter::from_fn(|| arrivals.next()));
            prop_assert_eq!(given, (0..expected as u64).collect::<Vec<_>>());
        }
    }
}
