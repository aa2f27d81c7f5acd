//! The store in etcd.
//!
//! Calls go to one member at a time (`member`); reads that fail are repeated on the next one, writes only if they certainly were not sent. What
//! an error means is told in one place (`classify`). Watches end with an error when they are silent for too long (`watch`). The
//! cell's prefix is added to every key on the way in and taken off on the way out, here. Where etcd has its authentication enabled, calls are made
//! as a user (`access`) with a token that is renewed when it is over (`session`); what is wrong with that is said once (`trouble`).

mod access;
mod classify;
mod horizon;
mod member;
pub mod recover;
mod session;
mod trouble;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::proto::{PbKeyValue, PbTxnOpResponse};
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, ResponseHeader, Txn, TxnOp, WatchOptions};
use futures_util::StreamExt as _;

pub use self::access::{Access, Authentications, Credentials, PasswordError, read_password};
use self::classify::{Kind, classify, read_error, write_error};
use self::horizon::Horizon;
use self::member::Members;
use self::trouble::Task;
use self::watch::{Cursor, open_as_user};
use super::{
    Entry, Grant, Guard, LeaseError, LeaseId, ListRequest, NotApplied, Op, Page, ReadError, Revision, Store, Usage,
    Watch, WatchError, Write, WriteError, check,
};
use crate::key::Key;
use crate::net::SharedDialer;

/// How long a call may take: longer than a leader change of a healthy cluster, shorter than half of the shortest lease.
const DEADLINE: Duration = Duration::from_secs(2);

/// Silence of a watch before the server is asked for a sign of life: with the time for the answer, a dead server is noticed in 8 seconds,
/// and hundreds of agents with all their watches cost a server no more than some thousand tiny messages a second.
const PROBE: Duration = Duration::from_secs(4);

/// How to reach a cluster.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// The members, each as `host:port`.
    pub endpoints: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// How long a call may take, with all its attempts.
    pub deadline: Duration,
    /// How long a watch is silent before it is probed, and how long the answer may take.
    pub probe: Duration,
    /// As whom it is called.
    pub access: Access,
}

impl EtcdConfig {
    /// The cluster of `endpoints`, with the usual deadlines, and without a user.
    pub fn new(endpoints: Vec<String>, prefix: impl Into<String>) -> Self {
        Self {
            endpoints,
            prefix: prefix.into(),
            deadline: DEADLINE,
            probe: PROBE,
            access: Access::default(),
        }
    }
}

/// Why a cluster cannot even be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No members are named.
    #[error("no etcd endpoints")]
    NoEndpoints,
    /// The address of a member is wrong.
    #[error("the etcd endpoint {endpoint} is wrong: {why}")]
    Endpoint {
        /// The address.
        endpoint: String,
        /// What is wrong.
        why: String,
    },
}

/// A store in etcd. Clones share its connections.
#[derive(Clone)]
pub struct EtcdStore {
    members: Arc<Members>,
    prefix: Arc<str>,
    probe: Duration,
    horizon: Arc<Horizon>,
}

impl EtcdStore {
    /// Prepares connections to all members; they are opened when they are used, so a cluster that is away is no error here.
    ///
    /// # Errors
    /// When the endpoints are not addresses.
    pub async fn connect(config: EtcdConfig) -> Result<Self, ConnectError> {
        Self::connect_by(config, None).await
    }

    /// As [`EtcdStore::connect`], over connections that `dialer` opens; the members must then be given by their addresses.
    ///
    /// # Errors
    /// When the endpoints are not addresses.
    pub async fn connect_by(config: EtcdConfig, dialer: Option<SharedDialer>) -> Result<Self, ConnectError> {
        Ok(Self {
            members: Arc::new(Members::new(&config, dialer.as_ref()).await?),
            prefix: config.prefix.into(),
            probe: config.probe,
            horizon: Arc::default(),
        })
    }

    fn stored_key(&self, key: &Key) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_str().as_bytes()].concat()
    }

    fn transaction(&self, write: &Write) -> Txn {
        let compares: Vec<Compare> = write.guards.iter().map(|guard| self.compare(guard)).collect();
        let ops: Vec<TxnOp> = write
            .ops
            .iter()
            .map(|op| match op {
                Op::Put { key, value, lease } => {
                    let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                    TxnOp::put(self.stored_key(key), value.clone(), options)
                }
                Op::Delete { key } => TxnOp::delete(self.stored_key(key), None),
            })
            .collect();
        Txn::new().when(compares).and_then(ops)
    }

    fn compare(&self, guard: &Guard) -> Compare {
        let key = self.stored_key(guard.key());
        match guard {
            Guard::Absent(_) => Compare::create_revision(key, CompareOp::Equal, 0),
            Guard::Created(_, revision) => Compare::create_revision(key, CompareOp::Equal, revision.0),
            Guard::Modified(_, revision) => Compare::mod_revision(key, CompareOp::Equal, revision.0),
        }
    }

    /// Reads keys one by one at one revision: their values together are too large for one answer.
    async fn get_each(&self, keys: &[Key]) -> Result<(Vec<Option<Entry>>, Revision), ReadError> {
        let (mut entries, mut at) = (Vec::with_capacity(keys.len()), None);
        for key in keys {
            let (entry, revision) = self.get_at(key, at).await?;
            at.get_or_insert(revision);
            entries.push(entry);
        }
        Ok((entries, at.unwrap_or_default()))
    }

    async fn get_at(&self, key: &Key, at: Option<Revision>) -> Result<(Option<Entry>, Revision), ReadError> {
        let key = self.stored_key(key);
        let options = at.map(|at| GetOptions::new().with_revision(at.0));
        let get = |mut member: member::Member| {
            let (key, options) = (key.clone(), options.clone());
            async move { member.kv.get(key, options).await }
        };
        let known = self.horizon.newest();
        let (response, _) = self.members.read(get).await.map_err(read_error)?;
        let revision = revision(response.header());
        if at.is_none() {
            self.horizon.answered(known, revision);
        }
        let stored = response.0.kvs.into_iter().next();
        Ok((stored.and_then(|stored| entry(&self.prefix, stored)), revision))
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), ReadError> {
        self.get_at(key, None).await
    }

    async fn get_all(&self, keys: &[Key]) -> Result<(Vec<Option<Entry>>, Revision), ReadError> {
        let gets: Vec<TxnOp> = keys.iter().map(|key| TxnOp::get(self.stored_key(key), None)).collect();
        let transaction = Txn::new().and_then(gets);
        let get = |mut member: member::Member| {
            let transaction = transaction.clone();
            async move { member.kv.txn(transaction).await }
        };
        let known = self.horizon.newest();
        let (response, _) = match self.members.read(get).await {
            Err(failure) if classify(&failure) == Kind::AnswerTooLarge => return self.get_each(keys).await,
            other => other.map_err(read_error)?,
        };
        let revision = revision(response.header());
        self.horizon.answered(known, revision);
        let first = |response: PbTxnOpResponse| match response {
            PbTxnOpResponse::ResponseRange(range) => range.kvs.into_iter().next(),
            PbTxnOpResponse::ResponsePut(_)
            | PbTxnOpResponse::ResponseDeleteRange(_)
            | PbTxnOpResponse::ResponseTxn(_) => None,
        };
        let responses = response.0.responses.into_iter();
        let entries = responses.map(|op| entry(&self.prefix, first(op.response?)?)).collect();
        Ok((entries, revision))
    }

    async fn list(&self, request: ListRequest) -> Result<Page, ReadError> {
        let prefix = self.stored_key(&request.prefix);
        let end = end_of(&prefix);
        let start = match &request.after {
            // The smallest key after it.
            Some(after) => [self.stored_key(after), vec![0]].concat(),
            None if prefix.is_empty() => vec![0],
            None => prefix,
        };
        let mut limit = i64::try_from(request.limit.max(1)).unwrap_or(i64::MAX);
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(limit);
            if let Some(at) = request.revision {
                options = options.with_revision(at.0);
            }
            if request.keys_only {
                options = options.with_keys_only();
            }
            let get = |mut member: member::Member| {
                let (start, options) = (start.clone(), options.clone());
                async move { member.kv.get(start, Some(options)).await }
            };
            let known = self.horizon.newest();
            match self.members.read(get).await {
                Ok((response, _)) => {
                    let revision = request.revision.unwrap_or_else(|| {
                        let present = revision(response.header());
                        self.horizon.answered(known, present);
                        present
                    });
                    let more = response.more();
                    let stored = response.0.kvs.into_iter();
                    return Ok(Page {
                        entries: stored.filter_map(|stored| entry(&self.prefix, stored)).collect(),
                        more,
                        revision,
                    });
                }
                Err(failure) if limit > 1 && classify(&failure) == Kind::AnswerTooLarge => limit /= 2,
                Err(failure) => return Err(read_error(failure)),
            }
        }
    }

    async fn write(&self, write: Write) -> Result<Revision, WriteError> {
        check(&write)?;
        // etcd takes revision 0 for "does not exist"; here it is a revision that no key has.
        let never = |guard: &Guard| matches!(guard, Guard::Created(_, at) | Guard::Modified(_, at) if at.0 <= 0);
        if write.guards.iter().any(never) {
            return Err(WriteError::Conflict);
        }
        // Whoever holds such a lease has not heard yet, and believes what is not true any more.
        let is_void = |op: &Op| matches!(op, Op::Put { lease: Some(lease), .. } if self.horizon.is_void(*lease));
        if write.ops.iter().any(is_void) {
            return Err(WriteError::NotApplied(NotApplied::LeaseGone));
        }
        // Built anew for each attempt, which costs nothing: there is a second one only when the first was not sent.
        let send = |mut member: member::Member| {
            let transaction = self.transaction(&write);
            async move { member.kv.txn(transaction).await }
        };
        let known = self.horizon.newest();
        let response = self.members.write(send).await.map_err(write_error)?;
        self.horizon.answered(known, revision(response.header()));
        if response.succeeded() {
            Ok(revision(response.header()))
        } else {
            Err(WriteError::Conflict)
        }
    }

    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Watch, WatchError> {
        let key = self.stored_key(prefix);
        let end = end_of(&key);
        let key = if key.is_empty() { vec![0] } else { key };
        // 0 would mean "from now on".
        let from = from.max(Revision(1));
        let options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(from.0)
            .with_fragment();
        let has_user = self.members.has_user();
        let open = |mut member: member::Member| {
            let (key, options) = (key.clone(), options.clone());
            async move {
                if has_user {
                    return open_as_user(&mut member, key, options).await;
                }
                Ok((member.watch.watch(key, Some(options)).await?, None))
            }
        };
        let opened = self.members.read(open).await;
        let ((stream, first), number) = opened.map_err(|failure| WatchError::Ended(failure.message))?;
        let cursor = Cursor {
            stream,
            first,
            members: Arc::clone(&self.members),
            number,
            prefix: Arc::clone(&self.prefix),
            last: Revision(from.0 - 1),
            partial: Vec::new(),
            probe: self.probe,
            horizon: Arc::clone(&self.horizon),
        };
        let items = futures_util::stream::unfold(Some(cursor), |cursor| async move {
            let mut cursor = cursor?;
            let item = cursor.next().await;
            let goes_on = item.is_ok();
            Some((item, goes_on.then_some(cursor)))
        });
        Ok(items.boxed())
    }

    async fn grant(&self, ttl: Duration) -> Result<Grant, ReadError> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        // Made twice, one of the leases runs out by itself.
        let grant = |mut member: member::Member| async move { member.lease.grant(seconds.max(1), None).await };
        let (response, _) = self.members.read(grant).await.map_err(read_error)?;
        self.horizon.granted(LeaseId(response.id()));
        Ok(Grant {
            id: LeaseId(response.id()),
            ttl: time_to_live(response.ttl()),
        })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, LeaseError> {
        let keep = |mut member: member::Member| async move {
            // Opening asks once, but does not say what was answered; so it is asked again.
            let (mut keeper, mut answers) = member.lease.keep_alive(lease.0).await?;
            keeper.keep_alive().await?;
            answers.message().await
        };
        let known = self.horizon.newest();
        let kept = match self.members.read(keep).await {
            // That it was asked is nothing; only an answer with time left prolongs a lease.
            Ok((Some(answer), _)) if answer.ttl() > 0 => {
                let said = revision(answer.header());
                let is_behind = self.horizon.is_behind(&self.members, known, said).await;
                if is_behind || self.horizon.is_void(lease) {
                    Err(LeaseError::Gone)
                } else {
                    Ok(time_to_live(answer.ttl()))
                }
            }
            Ok((Some(_), _)) => Err(LeaseError::Gone),
            Ok((None, _)) => Err(LeaseError::Away("the server closed the stream".into())),
            Err(failure) if classify(&failure) == Kind::LeaseGone => Err(LeaseError::Gone),
            Err(failure) => Err(LeaseError::Away(failure.message)),
        };
        if kept == Err(LeaseError::Gone) {
            self.horizon.gone(lease);
        }
        kept
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), ReadError> {
        let revoke = |mut member: member::Member| async move { member.lease.revoke(lease.0).await };
        match self.members.read(revoke).await {
            Err(failure) if classify(&failure) != Kind::LeaseGone => Err(read_error(failure)),
            Ok(_) | Err(_) => {
                self.horizon.revoked(lease);
                Ok(())
            }
        }
    }

    async fn compact(&self, revision: Revision) -> Result<(), ReadError> {
        let compact = |mut member: member::Member| async move { member.kv.compact(revision.0, None).await };
        match self.members.maintain(Task::Compact, compact).await {
            Err(failure) if classify(&failure) != Kind::Compacted => Err(read_error(failure)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn usage(&self) -> Result<Usage, ReadError> {
        let status = |mut member: member::Member| async move { member.maintenance.status().await };
        let status = self.members.maintain(Task::Status, status).await;
        let status = status.map_err(read_error)?;
        let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Usage {
            size: bytes(status.db_size()),
            in_use: bytes(status.raft_used_db_size()),
            full: status.errors().iter().any(|error| error.contains("NOSPACE")),
            // Known since etcd 3.6.
            quota: Some(bytes(status.db_size_quota())).filter(|quota| *quota > 0),
        })
    }
}

fn revision(header: Option<&ResponseHeader>) -> Revision {
    Revision(header.map_or(0, ResponseHeader::revision))
}

fn time_to_live(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// An entry as it was stored, without the prefix; none if it is not one of ours.
fn entry(prefix: &str, stored: PbKeyValue) -> Option<Entry> {
    let key = std::str::from_utf8(&stored.key).ok()?.strip_prefix(prefix)?;
    Some(Entry {
        key: Key::from_stored(key),
        value: Bytes::from(stored.value),
        create_revision: Revision(stored.create_revision),
        mod_revision: Revision(stored.mod_revision),
        lease: (stored.lease != 0).then_some(LeaseId(stored.lease)),
    })
}

/// The first key that does not begin with `prefix`; a single zero byte stands for the end of all keys.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

#[cfg(test)]
mod tests;
