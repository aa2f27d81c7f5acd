//! What was noticed and is still to be announced. Pure.

use std::collections::{BTreeMap, BTreeSet};

use postrider_common::id::RequestId;
use postrider_common::key::Key;

use super::event::Announcement;

/// Segments of dead letters that may wait: a hundred bytes each. Publishing one takes milliseconds, so only a store that is away lets them pile up.
const MOST_DEAD: usize = 10_000;

/// One thing to announce.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Task {
    /// A webhook was suspended or put back.
    Suspension(Announcement),
    /// A segment of dead letters was written under this key.
    Dead(Key),
}

/// What was noticed. Of suspensions it holds two for each webhook at most that was suspended recently; the catalog beside it holds all webhooks.
#[derive(Debug, Default)]
pub(super) struct Noticed {
    suspensions: BTreeMap<RequestId, Announcement>,
    dead: BTreeSet<Key>,
}

impl Noticed {
    /// Notices a suspension, or its end. A webhook that is changed while it is suspended is noticed again; the store tells that it is nothing new.
    pub(super) fn suspension(&mut self, announcement: Announcement) {
        self.suspensions.insert(announcement.request.clone(), announcement);
    }

    /// Notices dead letters. Beyond [`MOST_DEAD`] the oldest are given up: they stand in the list of dead letters all the same.
    pub(super) fn dead(&mut self, key: Key) {
        self.dead.insert(key);
        if self.dead.len() > MOST_DEAD {
            self.dead.pop_first();
        }
    }

    /// Takes the next thing; suspensions first, since they are few.
    pub(super) fn next(&mut self) -> Option<Task> {
        if let Some((_, announcement)) = self.suspensions.pop_first() {
            return Some(Task::Suspension(announcement));
        }
        self.dead.pop_first().map(Task::Dead)
    }
}
