//! A lane of transactions each of which applies exactly once, however often it had to be sent.
//!
//! Every transaction of a lane also puts the lane's mark, guarded by the mark's previous revision. So a transaction whose outcome is unknown may be
//! sent again: if the first one was applied, or is applied later, the other meets a changed mark. A conflict is settled by reading the mark: its
//! sequence says whether this transaction is in.

use std::time::Duration;

use postrider_proto::stored as pb;
use tokio::time::Instant;

use super::{Guard, LeaseId, NotApplied, Op, ReadError, Revision, SharedStore, Write, WriteError};
use crate::key::Key;
use crate::planted::{self, Bug};
use crate::wire::stored;

/// Guards and operations that a lane adds to every write: callers leave room for one of each.
pub const LANE_OPS: usize = 1;

/// Pause before the first repetition; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The longest pause between repetitions: well below the second that a leader change of etcd takes.
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// One lane. It sends one transaction at a time.
pub struct Lane {
    store: SharedStore,
    key: Key,
    sequence: u64,
    revision: Option<Revision>,
    /// Why it is not known whether the transaction that was sent last was applied.
    doubt: Option<String>,
}

impl Lane {
    /// A new lane whose mark is `key`: a key that was never used before.
    pub const fn new(store: SharedStore, key: Key) -> Self {
        Self {
            store,
            key,
            sequence: 0,
            revision: None,
            doubt: None,
        }
    }

    /// The number that the next transaction will have, from 1.
    pub const fn next_sequence(&self) -> u64 {
        self.sequence + 1
    }

    /// Applies `write` once. The mark is put on `lease`, if there is one; while the lane is in use the lease must live.
    ///
    /// Sends again until `deadline` what was not applied because the store was away, and what may or may not have been applied.
    ///
    /// # Errors
    /// - [`WriteError::Conflict`]: one of `write`'s own guards does not hold; nothing was applied.
    /// - [`WriteError::NotApplied`]: certainly nothing was applied.
    /// - [`WriteError::Unknown`]: not settled by the deadline. Call again with the same write, or drop the lane: any other write on this lane could
    ///   be taken for this one.
    pub async fn commit(
        &mut self,
        write: &Write,
        lease: Option<LeaseId>,
        deadline: Instant,
    ) -> Result<Revision, WriteError> {
        if let Some((first, later)) = planted::split(write) {
            Box::pin(self.commit(&first, lease, deadline)).await?;
            return Box::pin(self.commit(&later, lease, deadline)).await;
        }
        let marked = self.marked(write, lease);
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.store.write(marked.clone()).await {
                Ok(revision) => return Ok(self.applied(revision)),
                Err(error @ WriteError::NotApplied(NotApplied::Full)) if planted::is(Bug::FullBelieved) => {
                    return Err(error);
                }
                Err(WriteError::NotApplied(NotApplied::Full)) if planted::is(Bug::FullTakenForDone) => {
                    return Ok(self.applied(self.revision.unwrap_or_default()));
                }
                // The write that fills an etcd is applied, and answered with NOSPACE.
                Err(error @ (WriteError::Conflict | WriteError::NotApplied(NotApplied::Full))) => {
                    match self.read_mark().await {
                        Ok(Some((sequence, revision))) if sequence == self.next_sequence() => {
                            return Ok(self.applied(revision));
                        }
                        Ok(_) if error == WriteError::Conflict || self.doubt.is_none() => {
                            self.doubt = None;
                            return Err(error);
                        }
                        Ok(_) => error,
                        Err(why) => {
                            // Which guard failed, or whether this was the write that filled the store, cannot be told yet.
                            self.doubt.get_or_insert_with(|| why.to_string());
                            WriteError::Unknown(why.to_string())
                        }
                    }
                }
                Err(WriteError::Unknown(why)) => {
                    self.doubt = Some(why.clone());
                    WriteError::Unknown(why)
                }
                Err(error @ WriteError::NotApplied(NotApplied::Away(_))) => error,
                Err(error @ WriteError::NotApplied(_)) if self.doubt.is_none() => return Err(error),
                Err(error @ WriteError::NotApplied(_)) => error,
            };
            if Instant::now() + pause >= deadline {
                return Err(self.doubt.clone().map_or(error, WriteError::Unknown));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    fn marked(&self, write: &Write, lease: Option<LeaseId>) -> Write {
        let mut marked = write.clone();
        marked.guards.push(match self.revision {
            Some(revision) => Guard::Modified(self.key.clone(), revision),
            None => Guard::Absent(self.key.clone()),
        });
        let value = stored::encode(&pb::WriterMark {
            sequence: self.next_sequence(),
        });
        marked.ops.push(Op::Put {
            key: self.key.clone(),
            value,
            lease,
        });
        marked
    }

    fn applied(&mut self, revision: Revision) -> Revision {
        self.sequence += 1;
        self.doubt = None;
        self.revision = Some(revision);
        revision
    }

    async fn read_mark(&self) -> Result<Option<(u64, Revision)>, ReadError> {
        let (entry, _) = self.store.get(&self.key).await?;
        // A mark that cannot be read was not written by this lane.
        Ok(entry.and_then(|entry| {
            let mark: pb::WriterMark = stored::decode(entry.value).ok()?;
            Some((mark.sequence, entry.mod_revision))
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::key;
    use crate::store::Store;
    use crate::store::memory::{Fault, MemoryStore};

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(future)
    }

    fn counted(number: usize) -> Write {
        Write {
            guards: Vec::new(),
            ops: vec![Op::put(Key::from_stored(&format!("n/{number}")), "")],
        }
    }

    proptest! {
        #[test]
        fn every_committed_transaction_applies_exactly_once_whatever_answers_are_lost(faults in proptest::collection::vec(0_u8..5, 0..40)) {
            run(async {
                let store = MemoryStore::default();
                let mut faults = faults.into_iter();
                store.inject(Box::new(move |_| match faults.next() {
                    Some(1) => Some(Fault::LostAnswer),
                    Some(2) => Some(Fault::LostRequest),
                    Some(3) => Some(Fault::Away),
                    Some(4) => Some(Fault::Filled),
                    _ => None,
                }));
                let mut lane = Lane::new(Arc::new(store.clone()), key::writer("w"));
                for number in 0..10 {
                    lane.commit(&counted(number), None, Instant::now() + Duration::from_secs(60)).await.unwrap();
                }
                let (entries, _) = crate::store::list_all(&store, &Key::from_stored("n/"), false).await.unwrap();
                prop_assert_eq!(entries.len(), 10);
                prop_assert!(entries.iter().all(|entry| entry.create_revision == entry.mod_revision));
                Ok(())
            })?;
        }
    }

    #[test]
    fn a_conflict_of_the_writes_own_guard_is_a_conflict_and_the_lane_goes_on() {
        run(async {
            let store = MemoryStore::default();
            let mut lane = Lane::new(Arc::new(store.clone()), key::writer("w"));
            let deadline = Instant::now() + Duration::from_secs(5);
            lane.commit(&counted(1), None, deadline).await.unwrap();
            let refused = Write {
                guards: vec![Guard::Absent(Key::from_stored("n/1"))],
                ..counted(2)
            };
            assert_eq!(lane.commit(&refused, None, deadline).await, Err(WriteError::Conflict));
            lane.commit(&counted(3), None, deadline).await.unwrap();
            assert!(store.get(&Key::from_stored("n/2")).await.unwrap().0.is_none());
        });
    }

    #[test]
    fn what_cannot_be_settled_in_time_is_unknown_and_may_be_sent_again() {
        run(async {
            let store = MemoryStore::default();
            let mut lane = Lane::new(Arc::new(store.clone()), key::writer("w"));
            store.inject(Box::new(|_| Some(Fault::LostAnswer)));
            // The first copy is applied; later ones conflict and the mark settles it.
            lane.commit(&counted(1), None, Instant::now() + Duration::from_secs(1))
                .await
                .unwrap();
            store.inject(Box::new(|_| Some(Fault::LostRequest)));
            let outcome = lane
                .commit(&counted(2), None, Instant::now() + Duration::from_secs(1))
                .await;
            assert!(matches!(outcome, Err(WriteError::Unknown(_))));
            store.heal();
            lane.commit(&counted(2), None, Instant::now() + Duration::from_secs(1))
                .await
                .unwrap();
            assert!(store.get(&Key::from_stored("n/2")).await.unwrap().0.is_some());
        });
    }

    #[test]
    fn the_write_that_fills_the_store_is_applied_though_the_answer_says_full() {
        run(async {
            let store = MemoryStore::default();
            let mut lane = Lane::new(Arc::new(store.clone()), key::writer("w"));
            let deadline = Instant::now() + Duration::from_secs(5);
            store.inject(Box::new(|_| Some(Fault::Filled)));
            lane.commit(&counted(1), None, deadline).await.unwrap();
            store.inject(Box::new(|_| Some(Fault::Full)));
            let refused = lane.commit(&counted(2), None, deadline).await;
            assert_eq!(refused, Err(WriteError::NotApplied(NotApplied::Full)));
            store.heal();
            // What was refused may be replaced by something else.
            lane.commit(&counted(3), None, deadline).await.unwrap();
            assert!(store.get(&Key::from_stored("n/2")).await.unwrap().0.is_none());
        });
    }

    #[test]
    fn a_doubt_lasts_until_it_is_settled_whatever_the_store_says_meanwhile() {
        run(async {
            let store = MemoryStore::default();
            let mut lane = Lane::new(Arc::new(store.clone()), key::writer("w"));
            let soon = || Instant::now() + Duration::from_secs(1);
            store.inject(Box::new(|_| Some(Fault::LostRequest)));
            let outcome = lane.commit(&counted(1), None, soon()).await;
            assert!(matches!(outcome, Err(WriteError::Unknown(_))));
            store.inject(Box::new(|_| Some(Fault::Full)));
            // That the store is full now says nothing about the request that was lost.
            let outcome = lane.commit(&counted(1), None, soon()).await;
            assert!(matches!(outcome, Err(WriteError::Unknown(_))), "{outcome:?}");
            store.heal();
            lane.commit(&counted(1), None, soon()).await.unwrap();
        });
    }
}
