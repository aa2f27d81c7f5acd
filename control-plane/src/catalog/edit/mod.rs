//! Changes of the catalog: each is one guarded transaction, so that what two replicas do at once comes out as if one had gone after the other.
//!
//! A write that met another (a Conflict) is decided anew from what the store says then, a bounded number of times. A write whose outcome is not
//! known is settled by [`Edit::settle`]: the resource's uid and value tell whether it was ours, and the very same transaction may be sent again,
//! because its guards let it apply once at most.

mod resource;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_common::entropy::SharedEntropy;
use postrider_common::id::RequestId;
use postrider_common::key::Key;
use postrider_common::store::{Entry, Guard, NotApplied, Op, Revision, SharedStore, Write, WriteError};
use postrider_common::time::{SharedClock, Timestamp};
use postrider_common::wire::stored::{Unreadable, decode, encode};
use postrider_proto::stored;
pub(crate) use resource::Resource;

use super::dedupe::DedupeLease;
use super::etag::Etag;
use crate::api::status::Error;
use crate::fullness::Fullness;

/// How often a change is decided: each further time means that somebody else's change went first.
const TRIES: u32 = 10;

/// How long to wait before deciding again, for each time it failed before: about the time of one transaction.
const PAUSE: Duration = Duration::from_millis(4);

/// How often a write of unknown outcome is sent: a leader change of the store is over by the third.
const SENDS: usize = 3;

/// The format of stored dedupe entries.
const DEDUPE_VERSION: u32 = 1;

/// Whether a change is made or only checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Apply {
    /// Check everything and store it.
    Store,
    /// Check everything and store nothing.
    CheckOnly,
}

impl Apply {
    /// As a request's `validate_only` says.
    pub(crate) const fn new(validate_only: bool) -> Self {
        if validate_only { Self::CheckOnly } else { Self::Store }
    }
}

/// What a delete makes of a resource that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// NOT_FOUND.
    Refused,
    /// Nothing to do.
    Allowed,
}

impl Missing {
    /// As a request's `allow_missing` says.
    pub(crate) const fn new(allow_missing: bool) -> Self {
        if allow_missing { Self::Allowed } else { Self::Refused }
    }
}

/// A caller's id for a request that creates something, and what the request was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestKey {
    /// The caller's id.
    pub(crate) id: RequestId,
    /// SHA-256 of the request's content.
    pub(crate) fingerprint: [u8; 32],
}

/// A resource as it stands after a change.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Written<R> {
    /// The resource.
    pub(crate) value: R,
    /// The revision from which on the store shows it; 0 if nothing was stored.
    pub(crate) revision: Revision,
}

/// What became of a write.
enum Settled {
    Applied(Revision),
    Conflict,
}

/// Changes the catalog.
pub(crate) struct Edit {
    store: SharedStore,
    clock: SharedClock,
    entropy: SharedEntropy,
    dedupe: Arc<DedupeLease>,
    fullness: Arc<Fullness>,
}

impl Edit {
    /// Changes the catalog in `store`.
    pub(crate) fn new(
        store: SharedStore,
        clock: SharedClock,
        entropy: SharedEntropy,
        dedupe: Arc<DedupeLease>,
    ) -> Self {
        Self {
            store,
            clock,
            entropy,
            dedupe,
            fullness: Arc::default(),
        }
    }

    /// Creates nothing while the store is quite full.
    #[must_use]
    pub(crate) fn mindful_of(self, fullness: Arc<Fullness>) -> Self {
        Self { fullness, ..self }
    }

    /// The present moment.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The resource called `id`.
    ///
    /// # Errors
    /// NotFound; StoreAway.
    pub(crate) async fn get<R: Resource>(&self, id: &R::Id) -> Result<R, Error> {
        let (entry, _) = self.store.get(&R::key(id)).await?;
        read(id, &entry.ok_or_else(|| not_found::<R>(id))?)
    }

    /// Creates an account or an event type. `request`, if any, comes with the key of its answer.
    ///
    /// # Errors
    /// Exists if the id is taken or the request id was used for something else; Contended; StoreAway, StoreFull, OutcomeUnknown.
    pub(crate) async fn create<R: Resource>(
        &self,
        id: &R::Id,
        value: R,
        request: Option<(Key, RequestKey)>,
        apply: Apply,
    ) -> Result<Written<R>, Error> {
        self.create_with(id, value, request, apply, &[], |_| Ok(Write::default()))
            .await
    }

    /// Creates a resource, and with it what `decide` adds after seeing what the keys `beside` hold.
    async fn create_with<R: Resource>(
        &self,
        id: &R::Id,
        value: R,
        request: Option<(Key, RequestKey)>,
        apply: Apply,
        beside: &[Key],
        decide: impl Fn(&[Option<Entry>]) -> Result<Write, Error>,
    ) -> Result<Written<R>, Error> {
        let key = R::key(id);
        let mut keys: Vec<Key> = beside.to_vec();
        keys.push(key.clone());
        keys.extend(request.iter().map(|(key, _)| key.clone()));
        for failed in 0..TRIES {
            self.pause(failed).await;
            let (mut entries, _) = self.store.get_all(&keys).await?;
            let answer = if request.is_some() {
                entries.pop().flatten()
            } else {
                None
            };
            let present = entries.pop().flatten();
            if let (Some(answer), Some((_, request))) = (&answer, &request) {
                return self.answered(id, answer, request).await;
            }
            if present.is_some() {
                return Err(Error::Exists {
                    kind: R::KIND,
                    name: R::name(id),
                    reason: "RESOURCE_EXISTS",
                });
            }
            if self.fullness.is_quite_full() {
                return Err(Error::StoreFull);
            }
            let mut write = decide(&entries)?;
            if apply == Apply::CheckOnly {
                return Ok(Written {
                    value,
                    revision: Revision::default(),
                });
            }
            write.guards.push(Guard::Absent(key.clone()));
            write.ops.push(Op::put(key.clone(), value.encode()));
            if let Some((at, request)) = &request {
                let answer = stored::Dedupe {
                    version: DEDUPE_VERSION,
                    fingerprint: Bytes::copy_from_slice(&request.fingerprint),
                    answer: Some(stored::dedupe::Answer::Created(R::local(id).to_owned())),
                };
                let lease = self.dedupe.current().await?;
                write.guards.push(Guard::Absent(at.clone()));
                write.ops.push(Op::put_leased(at.clone(), encode(&answer), lease));
            }
            let mine = |entry: Option<&Entry>, _| {
                entry
                    .filter(|entry| read::<R>(id, entry).is_ok_and(|stored| stored.uid() == value.uid()))
                    .map(|entry| entry.create_revision)
            };
            if let Settled::Applied(revision) = self.settle(write, &key, mine).await? {
                return Ok(Written { value, revision });
            }
        }
        Err(Error::Contended)
    }

    /// The answer that the request was given before. The resource is answered as it is now. If it was deleted since, it is not made again and
    /// another that took its name is not shown: the call fails with Exists and the reason CREATED_AND_DELETED.
    async fn answered<R: Resource>(
        &self,
        id: &R::Id,
        answer: &Entry,
        request: &RequestKey,
    ) -> Result<Written<R>, Error> {
        let exists = |name, reason| Error::Exists {
            kind: R::KIND,
            name,
            reason,
        };
        let before: stored::Dedupe = decode(answer.value.clone())?;
        let created = match before.answer {
            Some(stored::dedupe::Answer::Created(created)) if before.version == DEDUPE_VERSION => created,
            _ => return Err(Error::Bug("a dedupe entry of another kind or version".into())),
        };
        let id = R::sibling(id, &created).map_err(|error| Error::Bug(error.to_string()))?;
        if before.fingerprint != request.fingerprint.as_slice() {
            return Err(exists(R::name(&id), "REQUEST_ID_REUSED"));
        }
        // The entry and the resource were written by one transaction: their create revisions are the same.
        match self.store.get(&R::key(&id)).await?.0 {
            Some(entry) if entry.create_revision == answer.create_revision => Ok(Written {
                value: read(&id, &entry)?,
                revision: entry.mod_revision,
            }),
            _ => Err(exists(R::name(&id), "CREATED_AND_DELETED")),
        }
    }

    /// Changes a resource to what `change` makes of it. Nothing is stored if that is what it is already.
    ///
    /// # Errors
    /// NotFound; EtagMismatch if `etag` is given and stale; what `change` fails with; Contended; StoreAway, StoreFull, OutcomeUnknown.
    pub(crate) async fn update<R: Resource>(
        &self,
        id: &R::Id,
        etag: Option<&Etag>,
        apply: Apply,
        change: impl Fn(&R) -> Result<R, Error>,
    ) -> Result<Written<R>, Error> {
        let key = R::key(id);
        for failed in 0..TRIES {
            self.pause(failed).await;
            let entry = self.store.get(&key).await?.0.ok_or_else(|| not_found::<R>(id))?;
            let current: R = read(id, &entry)?;
            check_etag(id, &current, etag)?;
            let mut value = change(&current)?;
            if value == current {
                return Ok(Written {
                    value,
                    revision: entry.mod_revision,
                });
            }
            value.touch(self.now());
            if apply == Apply::CheckOnly {
                return Ok(Written {
                    value,
                    revision: Revision::default(),
                });
            }
            let bytes = value.encode();
            let write = Write {
                guards: vec![Guard::Modified(key.clone(), entry.mod_revision)],
                ops: vec![Op::put(key.clone(), bytes.clone())],
            };
            let mine = |entry: Option<&Entry>, _| {
                entry
                    .filter(|entry| entry.value == bytes)
                    .map(|entry| entry.mod_revision)
            };
            if let Settled::Applied(revision) = self.settle(write, &key, mine).await? {
                return Ok(Written { value, revision });
            }
        }
        Err(Error::Contended)
    }

    /// Deletes an event type, or another resource that nothing counts. Answers the revision of the deletion; 0 if there was nothing to delete.
    ///
    /// # Errors
    /// NotFound unless `missing` allows it; EtagMismatch; Contended; StoreAway, OutcomeUnknown.
    pub(crate) async fn delete<R: Resource>(
        &self,
        id: &R::Id,
        etag: Option<&Etag>,
        missing: Missing,
    ) -> Result<Revision, Error> {
        self.delete_with::<R>(id, etag, missing, &[], |_| Ok(Write::default()))
            .await
    }

    async fn delete_with<R: Resource>(
        &self,
        id: &R::Id,
        etag: Option<&Etag>,
        missing: Missing,
        beside: &[Key],
        decide: impl Fn(&[Option<Entry>]) -> Result<Write, Error>,
    ) -> Result<Revision, Error> {
        let key = R::key(id);
        let mut keys: Vec<Key> = beside.to_vec();
        keys.push(key.clone());
        for failed in 0..TRIES {
            self.pause(failed).await;
            let (mut entries, _) = self.store.get_all(&keys).await?;
            let Some(entry) = entries.pop().flatten() else {
                return match missing {
                    Missing::Allowed => Ok(Revision::default()),
                    Missing::Refused => Err(not_found::<R>(id)),
                };
            };
            let current: R = read(id, &entry)?;
            check_etag(id, &current, etag)?;
            let mut write = decide(&entries)?;
            write.guards.push(Guard::Modified(key.clone(), entry.mod_revision));
            write.ops.push(Op::delete(key.clone()));
            // Gone is gone, whoever did it; another of the same name is none of ours.
            let mine = |left: Option<&Entry>, now| match left {
                Some(left) if left.create_revision == entry.create_revision => None,
                _ => Some(now),
            };
            if let Settled::Applied(revision) = self.settle(write, &key, mine).await? {
                return Ok(revision);
            }
        }
        Err(Error::Contended)
    }

    /// Sends a write until its outcome is known. Its guards must not hold any more once it was applied. `mine` looks at the entry of `key`
    /// as of the given revision and says at which one the write was applied, if it was.
    async fn settle(
        &self,
        write: Write,
        key: &Key,
        mine: impl Fn(Option<&Entry>, Revision) -> Option<Revision>,
    ) -> Result<Settled, Error> {
        let mut doubt = None;
        for _ in 0..SENDS {
            let refused = match self.store.write(write.clone()).await {
                Ok(revision) => return Ok(Settled::Applied(revision)),
                Err(WriteError::Unknown(why)) => {
                    doubt = Some(why);
                    None
                }
                // The write that fills an etcd is applied, and answered with NOSPACE.
                Err(error @ WriteError::NotApplied(NotApplied::Full)) if doubt.is_none() => Some(error),
                Err(WriteError::NotApplied(NotApplied::LeaseGone)) if doubt.is_none() => {
                    self.dedupe.invalidate();
                    return Ok(Settled::Conflict);
                }
                Err(WriteError::Conflict) if doubt.is_none() => return Ok(Settled::Conflict),
                Err(error) if doubt.is_none() => return Err(error.into()),
                // In doubt: what this sending met says nothing about an earlier one, but the entry does.
                Err(_) => None,
            };
            match (self.store.get(key).await, refused) {
                (Ok((entry, now)), refused) => {
                    if let Some(revision) = mine(entry.as_ref(), now) {
                        return Ok(Settled::Applied(revision));
                    }
                    if let Some(error) = refused {
                        return Err(error.into());
                    }
                }
                (Err(why), Some(_)) => doubt = Some(why.to_string()),
                (Err(_), None) => {}
            }
        }
        Err(Error::OutcomeUnknown(doubt.unwrap_or_default()))
    }

    async fn pause(&self, failed: u32) {
        if failed > 0 {
            tokio::time::sleep(PAUSE.mul_f64(f64::from(failed) * self.entropy.fraction())).await;
        }
    }
}

impl From<Unreadable> for Error {
    fn from(error: Unreadable) -> Self {
        Self::Bug(error.to_string())
    }
}

fn read<R: Resource>(id: &R::Id, entry: &Entry) -> Result<R, Error> {
    Ok(R::decode(id, entry.value.clone())?)
}

fn not_found<R: Resource>(id: &R::Id) -> Error {
    Error::NotFound {
        kind: R::KIND,
        name: R::name(id),
    }
}

fn check_etag<R: Resource>(id: &R::Id, current: &R, etag: Option<&Etag>) -> Result<(), Error> {
    let now = current.etag();
    match etag {
        Some(etag) if *etag != now => Err(Error::EtagMismatch {
            name: R::name(id),
            current: now.to_string(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
