//! The newest revision that was seen of an etcd, and what follows when it has gone back behind that: it was put back to an older state.
//!
//! Nothing that was read since is true then, and nothing that was written since is there. Watches that would go on from a revision that is yet to come end
//! as if it had been compacted, so everything is listed anew; and every lease that was granted before is void, so whoever holds one begins anew, too,
//! even where the older state knows the lease.
//!
//! What answers say of the present is compared with what had been seen when the call was made. Members that lag behind answer some calls out of their
//! own past; so whatever these say is confirmed by a read that no member answers alone.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use etcd_client::GetOptions;

use super::member::{Member, Members};
use super::revision;
use crate::store::{LeaseId, Revision};

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Horizon {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    newest: Revision,
    /// Granted here, and neither revoked nor gone.
    granted: BTreeSet<LeaseId>,
    /// Granted before etcd went back.
    void: BTreeSet<LeaseId>,
}

impl Horizon {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest revision that was seen.
    pub(super) fn newest(&self) -> Revision {
        self.lock().newest
    }

    /// Notes a revision that was seen.
    pub(super) fn saw(&self, revision: Revision) {
        let mut state = self.lock();
        state.newest = state.newest.max(revision);
    }

    /// Notes what an answer says of the present that all members agree on; `known` was the newest revision when the question was asked.
    pub(super) fn answered(&self, known: Revision, present: Revision) {
        if present > Revision::default() && present < known {
            self.went_back(known, present);
        } else {
            self.saw(present);
        }
    }

    /// Whether etcd is behind `known`, where a member's answer says so.
    pub(super) async fn is_behind(&self, members: &Members, known: Revision, said: Revision) -> bool {
        if said == Revision::default() || said >= known {
            return false;
        }
        let read = |mut member: Member| async move {
            let nothing = GetOptions::new().with_count_only();
            member.kv.get(members.any_key(), Some(nothing)).await
        };
        // Whoever cannot read it will ask again.
        let Ok((present, _)) = members.read(read).await else {
            return false;
        };
        let present = revision(present.header());
        self.answered(known, present);
        present < known
    }

    /// Notes a lease that was granted.
    pub(super) fn granted(&self, lease: LeaseId) {
        self.lock().granted.insert(lease);
    }

    /// Notes that a lease is gone. One that is void stays so: who holds it may not have heard.
    pub(super) fn gone(&self, lease: LeaseId) {
        self.lock().granted.remove(&lease);
    }

    /// Forgets a lease that nothing can be written on any more.
    pub(super) fn revoked(&self, lease: LeaseId) {
        let mut state = self.lock();
        state.granted.remove(&lease);
        state.void.remove(&lease);
    }

    /// Whether a lease was granted before etcd went back.
    pub(super) fn is_void(&self, lease: LeaseId) -> bool {
        self.lock().void.contains(&lease)
    }

    fn went_back(&self, known: Revision, present: Revision) {
        let mut state = self.lock();
        // Somebody else may have noticed before.
        if state.newest < known {
            return;
        }
        state.newest = present;
        let granted = std::mem::take(&mut state.granted);
        state.void.extend(granted);
        drop(state);
        tracing::error!(
            from = known.0,
            to = present.0,
            "the store has gone back: all is read anew"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_from_before_are_void_once_and_later_ones_are_not() {
        let horizon = Horizon::default();
        let (before, after) = (LeaseId(1), LeaseId(2));
        horizon.granted(before);
        horizon.answered(horizon.newest(), Revision(9));
        horizon.answered(Revision(9), Revision(9));
        assert!(!horizon.is_void(before));
        horizon.answered(Revision(9), Revision(4));
        assert!(horizon.is_void(before));
        assert_eq!(horizon.newest(), Revision(4));
        horizon.granted(after);
        // Another call that was on its way.
        horizon.answered(Revision(9), Revision(5));
        assert!(!horizon.is_void(after));
        horizon.gone(before);
        assert!(horizon.is_void(before));
        horizon.revoked(before);
        assert!(!horizon.is_void(before));
    }

    #[test]
    fn an_answer_to_an_older_question_is_no_step_back() {
        let horizon = Horizon::default();
        horizon.granted(LeaseId(1));
        horizon.saw(Revision(9));
        // It was asked when 3 was the newest, and answered before 9 was.
        horizon.answered(Revision(3), Revision(4));
        assert!(!horizon.is_void(LeaseId(1)));
        assert_eq!(horizon.newest(), Revision(9));
    }

    #[test]
    fn an_answer_that_says_nothing_of_the_present_says_nothing() {
        let horizon = Horizon::default();
        horizon.granted(LeaseId(1));
        horizon.answered(Revision(3), Revision::default());
        assert!(!horizon.is_void(LeaseId(1)));
    }
}
