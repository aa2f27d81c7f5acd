//! WatchWebhooks: the webhooks that are there, then every change, so that whoever comes back with a token misses nothing and gets nothing twice.
//!
//! ```text
//!     list at R ──▶ EXISTING … ──▶ SYNCED ──▶ watch from R+1 ──▶ CREATED, UPDATED, DELETED, PROGRESS …
//!        ▲                                          │
//!        └───────────────── RESET ◀────compacted────┘
//! ```
//!
//! A token says how far its message is: in the listing of a revision, up to a key; or in the changes after a revision, so many of them. The second kind
//! grows old: the store forgets after seconds, and a watch shows nothing while nothing changes. So while somebody watches, a pulse is written every two
//! seconds under the prefix that is watched; whoever sees it has seen everything before it. (What a store says of itself in a mere sign of life is
//! not relied on: see the store.)

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use postrider_common::key::{self, Key};
use postrider_common::model::webhook::Webhook;
use postrider_common::store::{
    Change, Changes, Entry, ListRequest, Op, ReadError, Revision, SharedStore, WatchError, Write,
};
use postrider_common::task::Group;
use postrider_common::wire::stored::decode_webhook;
use postrider_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use v1::watch_webhooks_response::Kind;

use super::page::{Position, Scope};
use super::status::{Error, Violations};
use super::{Deps, convert, names};
use crate::catalog::edit::Resource as _;

/// Streams of one control plane: each is a watch of the store, and whoever needs many may share one among them.
const MAX_STREAMS: usize = 64;

/// Messages that wait for a reader: some 100 KiB. What comes after them waits in the store.
const BUFFER: usize = 64;

/// How long a reader may leave a full buffer before its stream ends.
const READ_FOR: Duration = Duration::from_secs(10);

/// How often a pulse is written while nothing changes: well within the seconds that the store remembers, with time left to come back.
const PULSE_EVERY: Duration = Duration::from_secs(2);

/// Least time between two messages that say nothing but how far the stream is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Webhooks that are read at once.
const PAGE: usize = 100;

/// What a call is answered with.
pub(crate) type Messages = BoxStream<'static, Result<v1::WatchWebhooksResponse, Status>>;

/// The streams of this control plane.
#[derive(Clone)]
pub(crate) struct Watches {
    group: Group,
    stop: CancellationToken,
    seats: Arc<Semaphore>,
    /// When a pulse was last written from here.
    pulsed: Arc<Mutex<Option<Instant>>>,
}

impl Watches {
    /// Streams that live on `group` and end when `stop` is given.
    pub(crate) fn new(group: Group, stop: CancellationToken) -> Self {
        Self {
            group,
            stop,
            seats: Arc::new(Semaphore::new(MAX_STREAMS)),
            pulsed: Arc::default(),
        }
    }

    fn seat(&self) -> Result<OwnedSemaphorePermit, Error> {
        self.seats.clone().try_acquire_owned().map_err(|_| Error::Quota {
            subject: "control plane".into(),
            reason: "TOO_MANY_WATCHES",
            description: format!("{MAX_STREAMS} streams of this control plane watch webhooks already"),
            retry_after: Some(READ_FOR),
        })
    }

    /// Writes a pulse, unless another stream of this control plane has just done so.
    async fn pulse(&self, store: &SharedStore) {
        {
            let mut pulsed = self.pulsed.lock().unwrap_or_else(PoisonError::into_inner);
            if pulsed.is_some_and(|pulsed| pulsed.elapsed() < PULSE_EVERY / 2) {
                return;
            }
            *pulsed = Some(Instant::now());
        }
        let write = Write {
            guards: Vec::new(),
            ops: vec![Op::put(key::webhook_pulse(), Bytes::new())],
        };
        if let Err(error) = store.write(write).await {
            tracing::debug!(%error, "no pulse was written");
        }
    }
}

/// Begins a stream.
///
/// # Errors
/// [`Error::Invalid`], [`Error::Quota`], [`Error::Stopping`].
pub(crate) fn watch(deps: &Deps, request: v1::WatchWebhooksRequest) -> Result<Messages, Error> {
    let mut violations = Violations::default();
    let prefix = match request.parent.as_str() {
        "accounts/-" => Some(key::webhooks()),
        parent => names::account("parent", parent, &mut violations).map(|account| key::webhooks_of(&account)),
    };
    let begin = match &prefix {
        // Without its scope no token can be read.
        None => Begin::Fresh,
        Some(prefix) => begin(deps, prefix, &request, &mut violations),
    };
    let prefix = violations.with(prefix)?;
    let watches = deps.watches.clone();
    if watches.stop.is_cancelled() {
        return Err(Error::Stopping);
    }
    let seat = watches.seat()?;
    let (sender, receiver) = mpsc::channel(BUFFER);
    let (end, ended) = oneshot::channel();
    let stream = Stream {
        deps: deps.clone(),
        parent: request.parent,
        prefix,
        sender: sender.clone(),
    };
    let stop = watches.stop.clone();
    watches.group.spawn("watch webhooks", async move {
        let _seat = seat;
        let error = tokio::select! {
            error = stream.run(begin) => error,
            () = stop.cancelled() => Error::Stopping,
            () = sender.closed() => return,
        };
        // A reader who has left does not ask why.
        let _ = end.send(error);
    });
    let last = stream::once(async { Err(ended.await.unwrap_or(Error::Stopping).into()) });
    Ok(ReceiverStream::new(receiver).map(Ok).chain(last).boxed())
}

/// Where a stream begins.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Begin {
    /// With what is there now.
    Fresh,
    /// In the listing of this revision, after this key.
    Listing(Revision, Key),
    /// After so many of the changes after this revision.
    Change(Revision, usize),
}

fn scope(parent: &str) -> Scope<'_> {
    Scope {
        method: "WatchWebhooks",
        parent,
        filter: "",
    }
}

fn begin(deps: &Deps, prefix: &Key, request: &v1::WatchWebhooksRequest, violations: &mut Violations) -> Begin {
    if request.resume_token.is_empty() {
        return Begin::Fresh;
    }
    let position = deps.page_key.open(scope(&request.parent), &request.resume_token);
    let begin = position.and_then(|position| read(prefix, &position));
    begin.unwrap_or_else(|| {
        violations.add("resume_token", "MALFORMED", "is not a token of this watch");
        Begin::Fresh
    })
}

fn read(prefix: &Key, position: &Position) -> Option<Begin> {
    let after = position.after.as_str();
    if after.is_empty() {
        return Some(Begin::Fresh);
    }
    match after.strip_prefix('+') {
        Some(count) => Some(Begin::Change(position.revision, count.parse().ok()?)),
        None if after.starts_with(prefix.as_str()) => Some(Begin::Listing(position.revision, Key::from_stored(after))),
        None => None,
    }
}

fn position(begin: &Begin) -> Position {
    let (revision, after) = match begin {
        Begin::Fresh => (Revision::default(), String::new()),
        Begin::Listing(revision, after) => (*revision, after.as_str().to_owned()),
        Begin::Change(revision, count) => (*revision, format!("+{count}")),
    };
    Position { revision, after }
}

/// Why a part of a stream ended.
enum Interrupted {
    /// The store has forgotten what should come next.
    Compacted,
    /// The stream is over.
    Over(Error),
}

impl From<ReadError> for Interrupted {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Compacted => Self::Compacted,
            ReadError::Away(why) => Self::Over(Error::StoreAway(why)),
        }
    }
}

impl From<WatchError> for Interrupted {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Compacted => Self::Compacted,
            WatchError::Ended(why) => Self::Over(Error::StoreAway(why)),
        }
    }
}

struct Stream {
    deps: Deps,
    parent: String,
    prefix: Key,
    sender: mpsc::Sender<v1::WatchWebhooksResponse>,
}

impl Stream {
    /// Runs until something ends it.
    async fn run(&self, mut begin: Begin) -> Error {
        loop {
            let next = match begin {
                Begin::Fresh => self.list(None, None).await,
                Begin::Listing(revision, after) => self.list(Some(revision), Some(after)).await,
                Begin::Change(revision, count) => self.follow(revision, count).await,
            };
            begin = match next {
                Ok(revision) => Begin::Change(revision, 0),
                Err(Interrupted::Over(error)) => return error,
                Err(Interrupted::Compacted) => match self.send(Kind::Reset, None, &Begin::Fresh).await {
                    Ok(()) => Begin::Fresh,
                    Err(error) => return error,
                },
            };
        }
    }

    /// Shows what is there: as of `revision`, or of now.
    async fn list(&self, revision: Option<Revision>, after: Option<Key>) -> Result<Revision, Interrupted> {
        let mut request = ListRequest {
            prefix: self.prefix.clone(),
            after,
            limit: PAGE,
            revision,
            keys_only: false,
        };
        loop {
            let page = self.deps.store.list(request.clone()).await?;
            request.revision = Some(page.revision);
            for entry in page.entries {
                let here = Begin::Listing(page.revision, entry.key.clone());
                request.after = Some(entry.key.clone());
                let webhook = self.read(entry.key, entry.value).map_err(Interrupted::Over)?;
                self.send(Kind::Existing, Some(webhook), &here)
                    .await
                    .map_err(Interrupted::Over)?;
            }
            if !page.more {
                let here = Begin::Change(page.revision, 0);
                self.send(Kind::Synced, None, &here).await.map_err(Interrupted::Over)?;
                return Ok(page.revision);
            }
        }
    }

    /// Shows what happens after `seen`, but for the first `skip` changes.
    async fn follow(&self, mut seen: Revision, mut skip: usize) -> Result<Revision, Interrupted> {
        let store = &self.deps.store;
        let mut watch = store.watch(&key::webhook_changes(), seen.next()).await?;
        let mut told = Instant::now();
        loop {
            let next = tokio::select! {
                next = watch.next() => next,
                () = sleep(PULSE_EVERY) => {
                    self.deps.watches.pulse(store).await;
                    continue;
                }
            };
            let changes = next.unwrap_or_else(|| Err(WatchError::Ended("the stream is over".into())))?;
            if changes.revision <= seen {
                continue;
            }
            let revision = changes.revision;
            let shown = self.show(seen, changes, &mut skip).await.map_err(Interrupted::Over)?;
            seen = revision;
            if shown {
                told = Instant::now();
            } else if skip == 0 && told.elapsed() >= PROGRESS_EVERY {
                let here = Begin::Change(seen, 0);
                self.send(Kind::Progress, None, &here)
                    .await
                    .map_err(Interrupted::Over)?;
                told = Instant::now();
            }
        }
    }

    /// Shows some changes after `seen`; whether there was one to show.
    async fn show(&self, seen: Revision, changes: Changes, skip: &mut usize) -> Result<bool, Error> {
        let revision = changes.revision;
        let mut ours = changes.changes;
        ours.retain(|change| change.key().as_str().starts_with(self.prefix.as_str()));
        let count = ours.len();
        let mut latest: HashMap<Key, Bytes> = HashMap::new();
        for (number, change) in (1..).zip(ours) {
            let (kind, key, value) = match change {
                Change::Put(Entry {
                    key,
                    value,
                    create_revision,
                    mod_revision,
                    ..
                }) => {
                    let is_new = create_revision == mod_revision;
                    latest.insert(key.clone(), value.clone());
                    (if is_new { Kind::Created } else { Kind::Updated }, key, Some(value))
                }
                Change::Delete(key) => {
                    let before = latest.remove(&key);
                    (Kind::Deleted, key, before)
                }
            };
            if *skip > 0 {
                *skip -= 1;
                continue;
            }
            let value = match value {
                None => self.before(&key, seen).await,
                value => value,
            };
            let webhook = match value {
                Some(value) => self.read(key, value)?,
                None => self.name_only(&key)?,
            };
            // The changes of a revision are in the same order for everybody.
            let here = if number == count {
                Begin::Change(revision, 0)
            } else {
                Begin::Change(seen, number)
            };
            self.send(kind, Some(webhook), &here).await?;
        }
        Ok(count > 0)
    }

    /// What stood under a key that was deleted, as of `revision`, if that is still known.
    async fn before(&self, key: &Key, revision: Revision) -> Option<Bytes> {
        let request = ListRequest {
            prefix: key.clone(),
            after: None,
            limit: 1,
            revision: Some(revision),
            keys_only: false,
        };
        let page = self.deps.store.list(request).await.ok()?;
        let entry = page.entries.into_iter().next()?;
        (entry.key == *key).then_some(entry.value)
    }

    fn read(&self, key: Key, value: Bytes) -> Result<v1::Webhook, Error> {
        let (account, id) = key::parse_webhook(&key).ok_or_else(|| super::stray(&key))?;
        let webhook = decode_webhook(account, id, value)?;
        Ok(convert::webhook(&webhook, self.deps.clock.now()))
    }

    fn name_only(&self, key: &Key) -> Result<v1::Webhook, Error> {
        let id = key::parse_webhook(key).ok_or_else(|| super::stray(key))?;
        Ok(v1::Webhook {
            name: Webhook::name(&id),
            ..v1::Webhook::default()
        })
    }

    async fn send(&self, kind: Kind, webhook: Option<v1::Webhook>, here: &Begin) -> Result<(), Error> {
        let message = v1::WatchWebhooksResponse {
            kind: kind.into(),
            webhook,
            resume_token: self.deps.page_key.seal(scope(&self.parent), &position(here)),
        };
        match timeout(READ_FOR, self.sender.send(message)).await {
            Ok(Ok(())) => Ok(()),
            // Nobody will see this.
            Ok(Err(_)) => Err(Error::Stopping),
            Err(_) => Err(Error::SlowReader),
        }
    }
}
