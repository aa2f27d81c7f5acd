//! Random histories played on two stores at once, which must then look the same at every revision.
//!
//! Revisions differ between stores, so they are compared by their ranks among the revisions of the history's own writes.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::store::memory::MemoryStore;
use crate::store::{LeaseId, NotApplied, WriteError};

/// One step of a history. Keys are `m/0`, `m/1` and so on; earlier writes are named by their number, wrapped around.
#[derive(Debug, Clone)]
pub enum Step {
    /// A write.
    Write {
        /// Keys, and what they must be.
        guards: Vec<(u8, Must)>,
        /// Keys, and what becomes of them.
        ops: Vec<(u8, Become)>,
    },
    /// A new lease takes the place of the current one.
    Grant,
    /// The current lease ends, and stays current.
    Revoke,
}

/// What a guard asks.
#[derive(Debug, Clone, Copy)]
pub enum Must {
    /// Be absent.
    Absent,
    /// Come from this write.
    Created(u8),
    /// Come last from this write.
    Modified(u8),
    /// Be as it was when the guard is built: it holds.
    Current,
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy)]
pub enum Become {
    /// It is put, with this value.
    Put(u8),
    /// It is put with this value, on the current lease.
    Leased(u8),
    /// It is deleted.
    Gone,
}

/// One store in the course of a history.
struct Player {
    store: SharedStore,
    /// The revisions of the writes that put something.
    revisions: Vec<Revision>,
    lease: Option<LeaseId>,
}

/// An entry without what differs between stores.
type Seen = (String, Vec<u8>, Result<usize, usize>, Result<usize, usize>, bool);

impl Player {
    fn new(store: SharedStore) -> Self {
        Self {
            store,
            revisions: Vec::new(),
            lease: None,
        }
    }

    fn written(&self, number: u8) -> Revision {
        let number = usize::from(number) % self.revisions.len().max(1);
        // Before any write there is no revision to name, and none matches.
        self.revisions.get(number).copied().unwrap_or(Revision(i64::MAX))
    }

    async fn guard(&self, name: Key, must: Must) -> Guard {
        match must {
            Must::Absent => Guard::Absent(name),
            Must::Created(number) => Guard::Created(name, self.written(number)),
            Must::Modified(number) => Guard::Modified(name, self.written(number)),
            Must::Current => match self.store.get(&name).await.unwrap().0 {
                Some(entry) => Guard::Modified(name, entry.mod_revision),
                None => Guard::Absent(name),
            },
        }
    }

    async fn play(&mut self, step: &Step) -> String {
        match step {
            Step::Write { guards, ops } => {
                let mut write = Write::default();
                for (name, must) in guards {
                    write.guards.push(self.guard(named(*name), *must).await);
                }
                for (name, become_) in ops {
                    let name = named(*name);
                    write.ops.push(match (become_, self.lease) {
                        (Become::Gone, _) => Op::delete(name),
                        (Become::Leased(value), Some(lease)) => Op::put_leased(name, vec![*value], lease),
                        (Become::Put(value) | Become::Leased(value), _) => Op::put(name, vec![*value]),
                    });
                }
                let puts = write.ops.iter().any(|op| matches!(op, Op::Put { .. }));
                match self.store.write(write).await {
                    Ok(revision) if puts => {
                        self.revisions.push(revision);
                        "applied".into()
                    }
                    Ok(_) => "applied".into(),
                    Err(WriteError::NotApplied(NotApplied::Invalid(_))) => "invalid".into(),
                    Err(error) => error.to_string(),
                }
            }
            Step::Grant => {
                self.lease = Some(self.store.grant(Duration::from_secs(600)).await.unwrap().id);
                "granted".into()
            }
            Step::Revoke => {
                if let Some(lease) = self.lease {
                    self.store.revoke(lease).await.unwrap();
                }
                "revoked".into()
            }
        }
    }

    fn seen(&self, entry: &Entry) -> Seen {
        let rank = |revision: &Revision| self.revisions.binary_search(revision);
        (
            entry.key.to_string(),
            entry.value.to_vec(),
            rank(&entry.create_revision),
            rank(&entry.mod_revision),
            entry.lease.is_some(),
        )
    }

    async fn listed(&self, limit: usize, revision: Option<Revision>) -> Vec<Seen> {
        let entries = pages(&self.store, "m/", limit, revision).await;
        entries.iter().map(|entry| self.seen(entry)).collect()
    }

    async fn watched(&self, from: Revision) -> Vec<Result<Seen, String>> {
        let mut past = watch(&self.store, "m/", from).await;
        let is_end = |changes: &[Change]| changes.last().is_some_and(|change| change.key().as_str() == "m/end");
        let (changes, _) = follow(&mut past, is_end).await;
        let seen = changes.iter().map(|change| match change {
            Change::Put(entry) => Ok(self.seen(entry)),
            Change::Delete(key) => Err(key.to_string()),
        });
        seen.collect()
    }
}

fn named(number: u8) -> Key {
    key(&format!("m/{number}"))
}

/// Plays a history on `store` and on a store in memory, and compares every outcome, then every past listing and watch.
///
/// # Panics
/// Where the stores differ.
pub async fn agrees(store: SharedStore, history: &[Step]) {
    let mut ours = Player::new(store);
    let mut model = Player::new(Arc::new(MemoryStore::default()));
    for (number, step) in history.iter().enumerate() {
        let (ours, model) = (ours.play(step).await, model.play(step).await);
        assert_eq!(ours, model, "step {number}: {step:?}");
    }
    for player in [&mut ours, &mut model] {
        let revision = put(&player.store, "m/end", "").await;
        player.revisions.push(revision);
    }
    assert_eq!(ours.revisions.len(), model.revisions.len());
    for (number, (at, model_at)) in ours.revisions.iter().zip(&model.revisions).enumerate() {
        let limit = 1 + number % 4;
        assert_eq!(
            ours.listed(limit, Some(*at)).await,
            model.listed(1000, Some(*model_at)).await,
            "after write {number}"
        );
    }
    assert_eq!(ours.listed(3, None).await, model.listed(1000, None).await);
    let step = 1 + ours.revisions.len() / 4;
    for (at, model_at) in ours.revisions.iter().zip(&model.revisions).step_by(step) {
        assert_eq!(ours.watched(*at).await, model.watched(*model_at).await);
    }
}

/// Random histories, for property tests.
#[cfg(test)]
pub(crate) fn histories(length: usize) -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    let must = prop_oneof![
        1 => Just(Must::Absent),
        1 => any::<u8>().prop_map(Must::Created),
        1 => any::<u8>().prop_map(Must::Modified),
        4 => Just(Must::Current),
    ];
    let becomes = prop_oneof![
        4 => any::<u8>().prop_map(Become::Put),
        2 => any::<u8>().prop_map(Become::Leased),
        2 => Just(Become::Gone),
    ];
    let guards = btree_map(0..8_u8, must, 0..3).prop_map(|guards| guards.into_iter().collect());
    let ops = btree_map(0..8_u8, becomes, 0..4).prop_map(|ops| ops.into_iter().collect());
    let step = prop_oneof![
        8 => (guards, ops).prop_map(|(guards, ops)| Step::Write { guards, ops }),
        1 => Just(Step::Grant),
        1 => Just(Step::Revoke),
    ];
    vec(step, 0..length)
}
