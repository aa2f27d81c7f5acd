//! The store in memory, for tests and simulations: many versions of every key, leases on tokio's clock or another, faults on demand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    Change, Changes, Entry, Grant, Guard, LeaseError, LeaseId, ListRequest, NotApplied, Op, Page, ReadError, Revision,
    Store, Usage, Watch, WatchError, Write, WriteError, check,
};
use crate::key::Key;

/// A store in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

/// What a fault does to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails before anything is done.
    Away,
    /// A write is applied, and its answer lost.
    LostAnswer,
    /// A write is not applied, and its answer lost all the same.
    LostRequest,
    /// A write is refused because the store is full.
    Full,
    /// A write is applied, and refused all the same because it fills the store.
    Filled,
}

/// Decides, for each write, whether a fault strikes.
pub type Faults = Box<dyn FnMut(&Write) -> Option<Fault> + Send>;

/// Tells how much time has passed since some moment; never goes back.
pub type Elapsed = Box<dyn Fn() -> Duration + Send + Sync>;

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<Revision>,
    elapsed: Elapsed,
}

#[derive(Default)]
struct State {
    revision: Revision,
    compacted: Revision,
    versions: BTreeMap<Key, Vec<Version>>,
    log: VecDeque<(Revision, Vec<Change>)>,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: i64,
    faults: Option<Faults>,
}

struct Version {
    at: Revision,
    entry: Option<Entry>,
}

struct Lease {
    ttl: Duration,
    deadline: Duration,
    keys: BTreeSet<Key>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        let start = Instant::now();
        Self::timed(Box::new(move || start.elapsed()))
    }
}

impl MemoryStore {
    /// A store whose leases live by `elapsed`: for stores that are shared by several runtimes, each with a clock of its own.
    pub fn timed(elapsed: Elapsed) -> Self {
        let state = State {
            revision: Revision(1),
            ..State::default()
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: watch::Sender::new(Revision(1)),
                elapsed,
            }),
        }
    }

    /// Lets `faults` strike from now on.
    pub fn inject(&self, faults: Faults) {
        self.lock().faults = Some(faults);
    }

    /// No more faults.
    pub fn heal(&self) {
        self.lock().faults = None;
    }

    /// No lease runs out from now on: so it is in an etcd that has no leader.
    pub fn hold_leases(&self) {
        self.begin_leases(|_| Duration::MAX);
    }

    /// Every lease has its whole time again from now on: so it is in an etcd whose new leader begins to lead.
    pub fn renew_leases(&self) {
        let now = (self.shared.elapsed)();
        self.begin_leases(|lease| now + lease.ttl);
    }

    /// The revision of the last compaction.
    pub fn compacted(&self) -> Revision {
        self.lock().compacted
    }

    /// The changes below `prefix` of the revisions `from` to `to`, each with its revision: a watch tells only the last one of those that it shows at once.
    pub fn dated(&self, prefix: &Key, from: Revision, to: Revision) -> Vec<(Revision, Change)> {
        let state = self.lock();
        let steps = state.log.iter().filter(|(at, _)| (from..=to).contains(at));
        let changes = steps.flat_map(|(at, changes)| changes.iter().map(|change| (*at, change.clone())));
        changes
            .filter(|(_, change)| change.key().as_str().starts_with(prefix.as_str()))
            .collect()
    }

    fn begin_leases(&self, deadline: impl Fn(&Lease) -> Duration) {
        let mut state = self.settled();
        for lease in state.leases.values_mut() {
            lease.deadline = deadline(lease);
        }
        // Watchers wait for the first lease to run out: let them look again.
        self.shared.changed.send_replace(state.revision);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the state after removing what has expired.
    fn settled(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        if state.expire((self.shared.elapsed)()) {
            self.shared.changed.send_replace(state.revision);
        }
        state
    }
}

impl State {
    fn at(&self, key: &Key, revision: Revision) -> Option<&Entry> {
        let versions = self.versions.get(key)?;
        versions
            .iter()
            .rev()
            .find(|version| version.at <= revision)?
            .entry
            .as_ref()
    }

    fn holds(&self, guard: &Guard) -> bool {
        let entry = self.at(guard.key(), self.revision);
        match guard {
            Guard::Absent(_) => entry.is_none(),
            Guard::Created(_, revision) => entry.is_some_and(|entry| entry.create_revision == *revision),
            Guard::Modified(_, revision) => entry.is_some_and(|entry| entry.mod_revision == *revision),
        }
    }

    fn apply(&mut self, write: &Write) -> Result<Revision, WriteError> {
        let dead = |op: &Op| matches!(op, Op::Put { lease: Some(lease), .. } if !self.leases.contains_key(lease));
        if !write.guards.iter().all(|guard| self.holds(guard)) {
            return Err(WriteError::Conflict);
        }
        if write.ops.iter().any(dead) {
            return Err(WriteError::NotApplied(NotApplied::LeaseGone));
        }
        let revision = self.revision.next();
        let mut changes = Vec::with_capacity(write.ops.len());
        for op in &write.ops {
            match op {
                Op::Put { key, value, lease } => changes.push(self.put(revision, key, value, *lease)),
                Op::Delete { key } => changes.extend(self.delete(revision, key)),
            }
        }
        if !changes.is_empty() {
            self.revision = revision;
            self.log.push_back((revision, changes));
        }
        Ok(self.revision)
    }

    fn put(&mut self, revision: Revision, key: &Key, value: &Bytes, lease: Option<LeaseId>) -> Change {
        let before = self.at(key, revision);
        let create_revision = before.map_or(revision, |entry| entry.create_revision);
        let old_lease = before.and_then(|entry| entry.lease);
        self.detach(key, old_lease);
        if let Some(lease) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.insert(key.clone());
        }
        let entry = Entry {
            key: key.clone(),
            value: value.clone(),
            create_revision,
            mod_revision: revision,
            lease,
        };
        self.versions.entry(key.clone()).or_default().push(Version {
            at: revision,
            entry: Some(entry.clone()),
        });
        Change::Put(entry)
    }

    fn delete(&mut self, revision: Revision, key: &Key) -> Option<Change> {
        let lease = self.at(key, revision)?.lease;
        self.detach(key, lease);
        self.versions.entry(key.clone()).or_default().push(Version {
            at: revision,
            entry: None,
        });
        Some(Change::Delete(key.clone()))
    }

    fn detach(&mut self, key: &Key, lease: Option<LeaseId>) {
        if let Some(lease) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.remove(key);
        }
    }

    fn end_lease(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.remove(&id) else { return };
        let revision = self.revision.next();
        let changes: Vec<Change> = lease.keys.iter().filter_map(|key| self.delete(revision, key)).collect();
        if !changes.is_empty() {
            self.revision = revision;
            self.log.push_back((revision, changes));
        }
    }

    fn expire(&mut self, now: Duration) -> bool {
        let before = self.revision;
        let over: Vec<LeaseId> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.end_lease(id);
        }
        self.revision != before
    }

    fn compact(&mut self, revision: Revision) {
        self.compacted = self.compacted.max(revision.min(self.revision));
        let compacted = self.compacted;
        while self.log.front().is_some_and(|(at, _)| *at < compacted) {
            self.log.pop_front();
        }
        self.versions.retain(|_, versions| {
            let kept = versions
                .iter()
                .rposition(|version| version.at <= compacted)
                .unwrap_or(0);
            versions.drain(..kept);
            !matches!(versions.as_slice(), [only] if only.entry.is_none() && only.at <= compacted)
        });
    }

    /// All changes below `prefix` from revision `from` on.
    fn since(&self, prefix: &str, from: Revision) -> Result<Vec<Change>, WatchError> {
        if from < self.compacted {
            return Err(WatchError::Compacted);
        }
        let start = self.log.partition_point(|(at, _)| *at < from);
        let changes = self.log.range(start..).flat_map(|(_, changes)| changes);
        Ok(changes
            .filter(|change| change.key().as_str().starts_with(prefix))
            .cloned()
            .collect())
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), ReadError> {
        let state = self.settled();
        Ok((state.at(key, state.revision).cloned(), state.revision))
    }

    async fn get_all(&self, keys: &[Key]) -> Result<(Vec<Option<Entry>>, Revision), ReadError> {
        let state = self.settled();
        Ok((
            keys.iter().map(|key| state.at(key, state.revision).cloned()).collect(),
            state.revision,
        ))
    }

    async fn list(&self, request: ListRequest) -> Result<Page, ReadError> {
        let state = self.settled();
        let revision = request.revision.unwrap_or(state.revision);
        if revision < state.compacted {
            return Err(ReadError::Compacted);
        }
        if revision > state.revision {
            return Err(ReadError::Away(format!("revision {revision} is in the future")));
        }
        let start = request
            .after
            .as_ref()
            .map_or(std::ops::Bound::Included(&request.prefix), std::ops::Bound::Excluded);
        let mut entries = Vec::new();
        let mut more = false;
        for (key, _) in state.versions.range((start, std::ops::Bound::Unbounded)) {
            if !key.as_str().starts_with(request.prefix.as_str()) {
                break;
            }
            let Some(entry) = state.at(key, revision) else { continue };
            if entries.len() == request.limit {
                more = true;
                break;
            }
            let value = if request.keys_only {
                Bytes::new()
            } else {
                entry.value.clone()
            };
            entries.push(Entry { value, ..entry.clone() });
        }
        Ok(Page {
            entries,
            more,
            revision,
        })
    }

    async fn write(&self, write: Write) -> Result<Revision, WriteError> {
        check(&write)?;
        let mut state = self.settled();
        let fault = state.faults.as_mut().and_then(|faults| faults(&write));
        match fault {
            Some(Fault::Away) => return Err(WriteError::NotApplied(NotApplied::Away("injected".into()))),
            Some(Fault::Full) => return Err(WriteError::NotApplied(NotApplied::Full)),
            Some(Fault::LostRequest) => return Err(WriteError::Unknown("injected".into())),
            Some(Fault::LostAnswer | Fault::Filled) | None => {}
        }
        let revision = state.apply(&write)?;
        self.shared.changed.send_replace(state.revision);
        match fault {
            None => Ok(revision),
            Some(Fault::Filled) => Err(WriteError::NotApplied(NotApplied::Full)),
            Some(_) => Err(WriteError::Unknown("injected".into())),
        }
    }

    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Watch, WatchError> {
        let store = self.clone();
        let prefix = prefix.clone();
        let changed = self.shared.changed.subscribe();
        let stream = futures_util::stream::unfold(Some((store, prefix, from, changed)), |cursor| async move {
            let (store, prefix, mut from, mut changed) = cursor?;
            loop {
                changed.mark_unchanged();
                let (revision, changes, deadline) = {
                    let state = store.settled();
                    let deadline = state.leases.values().map(|lease| lease.deadline).min();
                    match state.since(prefix.as_str(), from) {
                        Err(error) => return Some((Err(error), None)),
                        Ok(changes) => (state.revision, changes, deadline),
                    }
                };
                if changes.is_empty() {
                    // Seen up to here, though there was nothing of interest: what a compaction takes is not missed.
                    from = from.max(revision.next());
                } else {
                    return Some((
                        Ok(Changes { revision, changes }),
                        Some((store, prefix, revision.next(), changed)),
                    ));
                }
                let lease_ends = async {
                    match deadline {
                        Some(deadline) => tokio::time::sleep(deadline.saturating_sub((store.shared.elapsed)())).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = changed.changed() => {}
                    () = lease_ends => {}
                }
            }
        });
        Ok(stream.boxed())
    }

    async fn grant(&self, ttl: Duration) -> Result<Grant, ReadError> {
        let mut state = self.settled();
        state.last_lease += 1;
        let id = LeaseId(state.last_lease);
        state.leases.insert(
            id,
            Lease {
                ttl,
                deadline: (self.shared.elapsed)() + ttl,
                keys: BTreeSet::new(),
            },
        );
        // Watchers wait for the first lease to run out: let them look again.
        self.shared.changed.send_replace(state.revision);
        Ok(Grant { id, ttl })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, LeaseError> {
        let now = (self.shared.elapsed)();
        let mut state = self.settled();
        let lease = state.leases.get_mut(&lease).ok_or(LeaseError::Gone)?;
        lease.deadline = now + lease.ttl;
        Ok(lease.ttl)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), ReadError> {
        let mut state = self.settled();
        state.end_lease(lease);
        self.shared.changed.send_replace(state.revision);
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<(), ReadError> {
        self.settled().compact(revision);
        Ok(())
    }

    async fn usage(&self) -> Result<Usage, ReadError> {
        let state = self.settled();
        let size = state
            .versions
            .values()
            .flatten()
            .filter_map(|version| version.entry.as_ref());
        let size = size
            .map(|entry| (entry.key.as_str().len() + entry.value.len()) as u64)
            .sum();
        Ok(Usage {
            size,
            in_use: size,
            quota: None,
            full: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[tokio::test(start_paused = true)]
    async fn leases_that_are_held_do_not_run_out_and_then_have_their_whole_time_again() {
        const TTL: Duration = Duration::from_secs(5);
        let store = MemoryStore::default();
        let key = Key::from_stored("k");
        let lease = store.grant(TTL).await.unwrap().id;
        let put = Write {
            guards: Vec::new(),
            ops: vec![Op::put_leased(key.clone(), "", lease)],
        };
        store.write(put).await.unwrap();
        let lives = async || store.get(&key).await.unwrap().0.is_some();
        tokio::time::advance(TTL - Duration::from_millis(1)).await;
        store.hold_leases();
        tokio::time::advance(TTL * 3).await;
        assert!(lives().await);
        store.renew_leases();
        tokio::time::advance(TTL - Duration::from_millis(1)).await;
        assert!(lives().await);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!lives().await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_store_in_memory_obeys_every_law() {
        conformance::run(|| async { Arc::new(MemoryStore::default()) as Arc<dyn Store> }).await;
    }
}
