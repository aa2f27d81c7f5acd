//! One of two etcds that are compared: plays steps of a history, and says what was answered in words that do not depend on which of the two it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use etcd_client::proto::{PbKeyValue, PbTxnOpResponse};
use etcd_client::{
    Client, Compare, CompareOp, Error, EventType, GetOptions, KvClient, LeaseClient, PutOptions, ResponseHeader, Txn,
    TxnOp, WatchClient, WatchOptions, WatchResponse, WatchStream,
};
use tokio::time::timeout;

use crate::history::{Ago, Become, KEYS, Must, PREFIXES, Step};

/// How long something that must come may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is put to see that a watch has shown all: below each prefix, after all other keys.
const MARK: &str = "~";

/// One etcd.
pub(crate) struct Side {
    kv: KvClient,
    lease: LeaseClient,
    watch: WatchClient,
    /// Its revision when the history began: those of answers are counted from there.
    base: i64,
    /// The newest that it told of.
    newest: i64,
    compacted: i64,
    leases: Vec<i64>,
    watches: Vec<Watching>,
}

/// A watch, and what it has shown since it was looked at last.
struct Watching {
    stream: WatchStream,
    prefix: usize,
    /// The revision of the last compaction when it began.
    compacted: i64,
    shown: Vec<String>,
    is_over: bool,
}

impl Side {
    /// The etcd at `address`.
    pub(crate) async fn new(address: SocketAddr) -> Self {
        let client = Client::connect([format!("http://{address}")], None).await;
        let client = client.expect("it can be connected to");
        Self {
            kv: client.kv_client(),
            lease: client.lease_client(),
            watch: client.watch_client(),
            base: 0,
            newest: 0,
            compacted: 0,
            leases: Vec::new(),
            watches: Vec::new(),
        }
    }

    /// Begins a history: with nothing.
    pub(crate) async fn begin(&mut self) {
        self.watches.clear();
        for lease in self.leases.split_off(0) {
            // It may be gone.
            let _ = self.lease.revoke(lease).await;
        }
        let marks = PREFIXES.map(|prefix| format!("{prefix}{MARK}"));
        let all = KEYS.into_iter().chain(marks.iter().map(String::as_str));
        let deletes: Vec<TxnOp> = all.map(|key| TxnOp::delete(key, None)).collect();
        let deleted = self
            .kv
            .txn(Txn::new().and_then(deletes))
            .await
            .expect("all can be deleted");
        self.base = deleted.header().map_or(0, ResponseHeader::revision);
        // It is refused when nothing has happened since the last.
        let _ = self.kv.compact(self.base, None).await;
        (self.newest, self.compacted) = (self.base, self.base);
    }

    /// Plays one step.
    pub(crate) async fn play(&mut self, step: &Step) -> String {
        let played = match step {
            Step::Write { guards, ops } => self.write(guards, ops).await,
            Step::Read(keys) => self.read(keys).await,
            Step::Get(key, ago) => self.get(*key, *ago).await,
            Step::List {
                prefix,
                after,
                limit,
                ago,
                keys_only,
            } => {
                let mut options = GetOptions::new()
                    .with_range(end_of(PREFIXES[*prefix]))
                    .with_limit(*limit);
                if let Some(ago) = ago {
                    options = options.with_revision(self.at(*ago));
                }
                if *keys_only {
                    options = options.with_keys_only();
                }
                self.list(*prefix, *after, options).await
            }
            Step::Grant(seconds) => self.grant(*seconds).await,
            Step::Revoke(lease) => self.revoke(*lease).await,
            Step::KeepAlive(lease) => self.keep_alive(*lease).await,
            Step::Watch(prefix, ago) => self.follow(*prefix, *ago).await,
            Step::Look(watch) => match self.which(*watch) {
                Some(watch) => self.look(watch).await,
                None => Ok("no watch".to_owned()),
            },
            Step::Progress(watch) => self.progress(*watch).await,
            Step::Compact(ago) => self.compact(self.at(*ago)).await,
        };
        played.unwrap_or_else(|error| match error {
            Error::GRpcStatus(status) => format!("{:?}: {}", status.code(), status.message()),
            other => other.to_string(),
        })
    }

    /// The revision of so long ago.
    fn at(&self, ago: Ago) -> i64 {
        (self.newest - ago).max(1)
    }

    /// A revision as it is compared.
    fn told(&mut self, header: Option<&ResponseHeader>) -> i64 {
        let revision = header.map_or(0, ResponseHeader::revision);
        self.newest = self.newest.max(revision);
        revision - self.base
    }

    fn entry(&self, stored: &PbKeyValue) -> String {
        let lease = self.leases.iter().position(|lease| *lease == stored.lease);
        format!(
            "{}={} bytes {:?} created {} modified {} on {lease:?}",
            String::from_utf8_lossy(&stored.key),
            stored.value.len(),
            stored.value.first(),
            stored.create_revision - self.base,
            stored.mod_revision - self.base,
        )
    }

    async fn write(&mut self, guards: &[(usize, Must)], ops: &[(usize, Become)]) -> Result<String, Error> {
        let mut compares = Vec::new();
        for (key, must) in guards {
            let key = KEYS[*key];
            let created = |at: i64| Compare::create_revision(key, CompareOp::Equal, at);
            let modified = |at: i64| Compare::mod_revision(key, CompareOp::Equal, at);
            compares.push(match must {
                Must::Absent => created(0),
                Must::Created(ago) => created(self.at(*ago)),
                Must::Modified(ago) => modified(self.at(*ago)),
                Must::SameKey | Must::Unchanged => {
                    let found = self.kv.get(key, None).await?;
                    match (found.0.kvs.first(), must) {
                        (None, _) => created(0),
                        (Some(found), Must::SameKey) => created(found.create_revision),
                        (Some(found), _) => modified(found.mod_revision),
                    }
                }
            });
        }
        let put = |key: usize, bytes: usize, lease: Option<i64>| {
            let first = u8::try_from(key).unwrap_or(0);
            TxnOp::put(
                KEYS[key],
                vec![first; bytes],
                lease.map(|lease| PutOptions::new().with_lease(lease)),
            )
        };
        let ops: Vec<TxnOp> = ops
            .iter()
            .map(|(key, become_)| match become_ {
                Become::Put(bytes) => put(*key, *bytes, None),
                Become::Leased(bytes, lease) => put(*key, *bytes, self.granted(*lease)),
                Become::Gone => TxnOp::delete(KEYS[*key], None),
            })
            .collect();
        let done = self.kv.txn(Txn::new().when(compares).and_then(ops)).await?;
        Ok(format!("applied {} at {}", done.succeeded(), self.told(done.header())))
    }

    async fn read(&mut self, keys: &[usize]) -> Result<String, Error> {
        let gets: Vec<TxnOp> = keys.iter().map(|key| TxnOp::get(KEYS[*key], None)).collect();
        let read = self.kv.txn(Txn::new().and_then(gets)).await?;
        let at = self.told(read.header());
        let entries = read.0.responses.iter().map(|response| match &response.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => range.kvs.iter().map(|stored| self.entry(stored)).collect(),
            _ => vec!["something else".to_owned()],
        });
        Ok(format!("{:?} at {at}", entries.collect::<Vec<_>>()))
    }

    async fn get(&mut self, key: usize, ago: Option<Ago>) -> Result<String, Error> {
        let options = ago.map(|ago| GetOptions::new().with_revision(self.at(ago)));
        let got = self.kv.get(KEYS[key], options).await?;
        let at = self.told(got.header());
        let entries = got.0.kvs.iter().map(|stored| self.entry(stored));
        Ok(format!("{:?} at {at}", entries.collect::<Vec<_>>()))
    }

    async fn list(&mut self, prefix: usize, after: Option<usize>, options: GetOptions) -> Result<String, Error> {
        let start = match after {
            Some(after) if KEYS[after].starts_with(PREFIXES[prefix]) => [KEYS[after].as_bytes(), &[0]].concat(),
            _ => start_of(PREFIXES[prefix]),
        };
        let page = self.kv.get(start, Some(options)).await?;
        let (at, more) = (self.told(page.header()), page.more());
        let entries = page.0.kvs.iter().map(|stored| self.entry(stored));
        Ok(format!("{:?}, more {more}, at {at}", entries.collect::<Vec<_>>()))
    }

    fn granted(&self, number: usize) -> Option<i64> {
        self.leases.get(number % self.leases.len().max(1)).copied()
    }

    async fn grant(&mut self, seconds: i64) -> Result<String, Error> {
        let granted = self.lease.grant(seconds, None).await?;
        self.leases.push(granted.id());
        Ok(format!("for {} s at {}", granted.ttl(), self.told(granted.header())))
    }

    async fn revoke(&mut self, lease: usize) -> Result<String, Error> {
        let Some(lease) = self.granted(lease) else {
            return Ok("no lease".to_owned());
        };
        let revoked = self.lease.revoke(lease).await?;
        Ok(format!("revoked at {}", self.told(revoked.header())))
    }

    async fn keep_alive(&mut self, lease: usize) -> Result<String, Error> {
        let Some(lease) = self.granted(lease) else {
            return Ok("no lease".to_owned());
        };
        let (mut keeper, mut answers) = self.lease.keep_alive(lease).await?;
        keeper.keep_alive().await?;
        let answer = answers.message().await?;
        Ok(answer.map_or_else(
            || "the stream ends".to_owned(),
            |answer| format!("kept for {} s at {}", answer.ttl(), self.told(answer.header())),
        ))
    }

    async fn compact(&mut self, at: i64) -> Result<String, Error> {
        let done = self.kv.compact(at, None).await?;
        self.compacted = at;
        Ok(format!("compacted at {}", self.told(done.header())))
    }

    async fn follow(&mut self, prefix: usize, ago: Ago) -> Result<String, Error> {
        // A watch never begins later than after the newest revision.
        let from = self.at(ago).min(self.newest + 1);
        let options = WatchOptions::new()
            .with_range(end_of(PREFIXES[prefix]))
            .with_start_revision(from)
            .with_fragment();
        let mut stream = self.watch.watch(start_of(PREFIXES[prefix]), Some(options)).await?;
        let created = timeout(PATIENCE, stream.message()).await;
        let Ok(Ok(Some(created))) = created else {
            return Ok(format!("not created: {created:?}"));
        };
        let at = self.told(created.header());
        self.watches.push(Watching {
            stream,
            prefix,
            compacted: self.compacted,
            shown: Vec::new(),
            is_over: false,
        });
        // What happened before must have been shown before anything else is done, or a compaction could still take it.
        let shown = self.look(self.watches.len() - 1).await?;
        Ok(format!("created {} at {at}: {shown}", created.created()))
    }

    fn which(&self, number: usize) -> Option<usize> {
        (!self.watches.is_empty()).then(|| number % self.watches.len())
    }

    /// All that a watch has shown since the last look.
    async fn look(&mut self, number: usize) -> Result<String, Error> {
        let prefix = PREFIXES[self.watches[number].prefix];
        let mark = TxnOp::put(format!("{prefix}{MARK}"), "", None);
        let put = self.kv.txn(Txn::new().and_then(vec![mark])).await?;
        let at = self.told(put.header()) + self.base;
        let shown = format!("\"{prefix}{MARK}\" modified {}", at - self.base);
        self.pump(number, |_, last| last == Some(&shown)).await;
        let watching = &mut self.watches[number];
        Ok(format!(
            "{:?} at {}",
            std::mem::take(&mut watching.shown),
            at - self.base
        ))
    }

    async fn progress(&mut self, number: usize) -> Result<String, Error> {
        let Some(number) = self.which(number) else {
            return Ok("no watch".to_owned());
        };
        if self.watches[number].is_over {
            return Ok("it is over".to_owned());
        }
        self.watches[number].stream.request_progress().await?;
        let last = self.pump(number, |response, _| response.0.watch_id == -1).await;
        Ok(match last {
            Some(response) => format!("progress at {}", self.told(response.header())),
            None => "no progress".to_owned(),
        })
    }

    /// Takes what a watch shows until `is_enough`, which sees each answer and the last change; returns that answer.
    async fn pump(
        &mut self,
        number: usize,
        is_enough: impl Fn(&WatchResponse, Option<&String>) -> bool,
    ) -> Option<WatchResponse> {
        let base = self.base;
        let leases: BTreeMap<i64, usize> = self.leases.iter().enumerate().map(|(at, lease)| (*lease, at)).collect();
        let watching = &mut self.watches[number];
        while !watching.is_over {
            let response = match timeout(PATIENCE, watching.stream.message()).await {
                Ok(Ok(Some(response))) => response,
                other => {
                    watching.shown.push(format!("it ends: {other:?}"));
                    watching.is_over = true;
                    return None;
                }
            };
            if response.canceled() {
                let compacted = response.compact_revision() - base;
                watching.shown.push(format!("cancelled, compacted at {compacted}"));
                watching.is_over = true;
                return None;
            }
            let mut last = None;
            for event in &response.0.events {
                let Some(stored) = &event.kv else { continue };
                let key = String::from_utf8_lossy(&stored.key);
                let modified = stored.mod_revision - base;
                if event.r#type == EventType::Delete as i32 {
                    // What it says of a deletion at the revision of a compaction differs between releases.
                    if stored.mod_revision != watching.compacted {
                        watching.shown.push(format!("{key:?} deleted {modified}"));
                    }
                    continue;
                }
                let (created, bytes) = (stored.create_revision - base, stored.value.len());
                let lease = leases.get(&stored.lease);
                watching
                    .shown
                    .push(format!("{key:?} created {created}, {bytes} bytes, on {lease:?}"));
                last = Some(format!("{key:?} modified {modified}"));
                watching.shown.extend(last.clone());
            }
            if is_enough(&response, last.as_ref()) {
                return Some(response);
            }
        }
        None
    }
}

/// Where a listing or watch of a prefix begins.
fn start_of(prefix: &str) -> Vec<u8> {
    if prefix.is_empty() {
        vec![0]
    } else {
        prefix.as_bytes().to_vec()
    }
}

/// Where it ends.
fn end_of(prefix: &str) -> Vec<u8> {
    match prefix.as_bytes().split_last() {
        Some((last, before)) => [before, &[last + 1]].concat(),
        None => vec![0],
    }
}
