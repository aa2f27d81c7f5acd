//! Lanes in which an attempt may start, in two lines that take turns: of webhooks whose receiver answered last time, and of all others. Pure.
//!
//! Attempts to the others may hold on to all that an agent has until they time out, if there are enough of them. So when little is left they have to wait.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use postrider_common::id::{AccountId, WebhookId};

/// Most webhooks that are remembered without a lane: half a megabyte. Beyond it all are forgotten, and have to prove themselves again.
const REMEMBERED: usize = 1 << 15;

/// Both lines.
#[derive(Debug, Default)]
pub(super) struct Runnable {
    proven: VecDeque<usize>,
    doubtful: VecDeque<usize>,
    /// Whose turn it is if both have some.
    doubtful_next: bool,
    /// Webhooks without a lane whose receiver answered last time, as hashes: one that is taken for another gets its place, no more.
    remembered: HashSet<u64>,
}

impl Runnable {
    /// Puts a lane at the end of its line.
    pub(super) fn push(&mut self, lane: usize, proven: bool) {
        let line = if proven { &mut self.proven } else { &mut self.doubtful };
        line.push_back(lane);
    }

    /// The lane whose turn it is; none of the others unless `doubtful`.
    pub(super) fn pop(&mut self, doubtful: bool) -> Option<usize> {
        let first = doubtful && (self.doubtful_next || self.proven.is_empty());
        let lane = match first.then(|| self.doubtful.pop_front()).flatten() {
            Some(lane) => {
                self.doubtful_next = false;
                return Some(lane);
            }
            None => self.proven.pop_front(),
        };
        self.doubtful_next = true;
        lane
    }

    /// Notes of a webhook whose lane goes whether its receiver answered last time.
    pub(super) fn remember(&mut self, webhook: &(AccountId, WebhookId), proven: bool) {
        if self.remembered.len() >= REMEMBERED {
            self.remembered.clear();
        }
        if proven {
            self.remembered.insert(hash(webhook));
        } else {
            self.remembered.remove(&hash(webhook));
        }
    }

    /// Whether it did, as far as is known.
    pub(super) fn recalls(&self, webhook: &(AccountId, WebhookId)) -> bool {
        self.remembered.contains(&hash(webhook))
    }

    /// Whether [`Runnable::pop`] would give one.
    pub(super) fn has(&self, doubtful: bool) -> bool {
        !self.proven.is_empty() || doubtful && self.has_doubtful()
    }

    /// Whether one of the others waits.
    pub(super) fn has_doubtful(&self) -> bool {
        !self.doubtful.is_empty()
    }
}

fn hash(webhook: &(AccountId, WebhookId)) -> u64 {
    let mut hasher = DefaultHasher::new();
    webhook.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_take_turns_and_the_others_wait_when_they_must() {
        let mut runnable = Runnable::default();
        for lane in 0..3 {
            runnable.push(lane, true);
            runnable.push(10 + lane, false);
        }
        runnable.push(3, true);
        let popped: Vec<_> = [true, true, true, false, false]
            .map(|doubtful| runnable.pop(doubtful))
            .to_vec();
        assert_eq!(popped, [0, 10, 1, 2, 3].map(Some));
        assert!(!runnable.has(false) && runnable.has(true));
        assert_eq!(runnable.pop(false), None);
        assert_eq!(
            [runnable.pop(true), runnable.pop(true), runnable.pop(true)],
            [Some(11), Some(12), None]
        );
        assert!(!runnable.has(true));
    }
}
