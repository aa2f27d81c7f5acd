//! Announcing: the leader tells accounts what became of their webhooks, as operational events.
//!
//! ```text
//!     webhooks/ ──mirror──▶ suspensions ──┐
//!                                         ├──▶ noticed ──▶ publish, with an id made of what happened
//!     dead/ ──────mirror──▶ segments ─────┘
//! ```
//!
//! Nothing is kept of what was announced but the request ids, which the store holds for a day. So a new leader announces everything recent again, and
//! the store tells what is not new. What happened while nobody led for longer than that is not announced.

mod event;
mod noticed;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postrider_common::key::ParkedKind;
use postrider_common::store::mirror::{self, Update};
use postrider_common::store::{Change, Entry, ReadError, SharedStore};
use postrider_common::time::SharedClock;
use postrider_common::wire::stored;
use postrider_common::{key, task};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::event::Announcement;
use self::noticed::{Noticed, Task};
use crate::api::status::Error;
use crate::publish::Publisher;

/// Pause before a store that is away or full, or a full queue, is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How often an account that may publish no more for now is asked for one event: others wait meanwhile.
const QUOTA_TRIES: u32 = 10;

/// How long the mirrors may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// What announcing stands on.
#[derive(Clone)]
pub(crate) struct Deps {
    /// Where things happen.
    pub(crate) store: SharedStore,
    /// Tells what is recent.
    pub(crate) clock: SharedClock,
    /// Takes the events.
    pub(crate) publisher: Publisher,
}

/// Announces until `over` is cancelled.
pub(crate) async fn run(deps: Deps, over: CancellationToken) {
    let group = task::Group::new(over.child_token());
    over.run_until_cancelled(announce(&group, &deps)).await;
    group.shut_down(STOP_DEADLINE).await;
}

#[derive(Default)]
struct Shared {
    noticed: Mutex<Noticed>,
    wake: Notify,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Noticed)) {
        change(&mut self.noticed.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
    }

    fn next(&self) -> Option<Task> {
        self.noticed.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}

async fn announce(group: &task::Group, deps: &Deps) {
    while let Err(error) = deps.publisher.ready().await {
        tracing::debug!(error = error.message(), "waiting for the webhooks");
    }
    let shared = Arc::new(Shared::default());
    let (to, clock) = (shared.clone(), deps.clock.clone());
    let webhooks = move |update| {
        let now = clock.now();
        let found: Vec<Announcement> = puts(update).iter().flat_map(|entry| of_entry(entry, now)).collect();
        if !found.is_empty() {
            to.change(|noticed| found.into_iter().for_each(|one| noticed.suspension(one)));
        }
    };
    mirror::spawn(
        group,
        "suspensions",
        deps.store.clone(),
        key::webhooks(),
        false,
        webhooks,
    );
    let (to, clock, publisher) = (shared.clone(), deps.clock.clone(), deps.publisher.clone());
    let name = event::dead_lettered();
    let dead = move |update| {
        let now = clock.now();
        let keys = puts(update).into_iter().filter_map(|entry| {
            let at = key::parse_dead(&entry.key)?;
            // What is left of a segment was announced with it.
            let wanted = at.kind != ParkedKind::Rest
                && event::is_recent_death(at.due, now)
                && name
                    .as_ref()
                    .is_some_and(|name| publisher.is_wanted(&at.account, name, &at.webhook));
            wanted.then_some(entry.key)
        });
        let keys: BTreeSet<_> = keys.collect();
        if !keys.is_empty() {
            to.change(|noticed| keys.into_iter().for_each(|key| noticed.dead(key)));
        }
    };
    // Keys tell all that is needed to leave most of them out.
    mirror::spawn(group, "dead letters", deps.store.clone(), key::all_dead(), true, dead);
    loop {
        while let Some(task) = shared.next() {
            carry_out(deps, &task).await;
        }
        shared.wake.notified().await;
    }
}

fn puts(update: Update) -> Vec<Entry> {
    match update {
        Update::Reset(entries, _) => entries,
        Update::Changes(changes) => {
            let put = |change| match change {
                Change::Put(entry) => Some(entry),
                Change::Delete(_) => None,
            };
            changes.changes.into_iter().filter_map(put).collect()
        }
    }
}

/// A webhook that cannot be read is reported by the catalog.
fn of_entry(entry: &Entry, now: postrider_common::time::Timestamp) -> Vec<Announcement> {
    let webhook = key::parse_webhook(&entry.key)
        .and_then(|(account, id)| stored::decode_webhook(account, id, entry.value.clone()).ok());
    webhook.map_or_else(Vec::new, |webhook| event::of_webhook(&webhook, now))
}

/// Announces one thing, for as long as it takes.
async fn carry_out(deps: &Deps, task: &Task) {
    let mut over_quota = 0;
    loop {
        let announcement = match prepare(deps, task).await {
            Ok(Some(announcement)) => announcement,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "dead letters cannot be read for now");
                sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        match publish(&deps.publisher, &announcement).await {
            Ok(()) => return,
            Err(
                error @ (Error::StoreAway(_)
                | Error::StoreFull
                | Error::OutcomeUnknown(_)
                | Error::Contended
                | Error::Unserved { .. }
                | Error::Stopping),
            ) => {
                tracing::debug!(error = error.message(), "an operational event waits");
                sleep(RETRY_PAUSE).await;
            }
            Err(Error::Quota { .. }) if over_quota < QUOTA_TRIES => {
                over_quota += 1;
                sleep(RETRY_PAUSE).await;
            }
            Err(
                error @ (Error::Invalid(_)
                | Error::Quota { .. }
                | Error::NotFound { .. }
                | Error::Exists { .. }
                | Error::EtagMismatch { .. }
                | Error::WrongState { .. }
                | Error::SlowReader
                | Error::Bug(_)),
            ) => {
                tracing::warn!(error = error.message(), name = %announcement.event.name, "an operational event was refused");
                return;
            }
        }
    }
}

/// What is to be said; `None` if there is nothing any more.
async fn prepare(deps: &Deps, task: &Task) -> Result<Option<Announcement>, ReadError> {
    match task {
        Task::Suspension(announcement) => Ok(Some(announcement.clone())),
        Task::Dead(key) => {
            let entry = deps.store.get(key).await?.0;
            // Redriven or purged already, or of a later release.
            Ok(entry.and_then(|entry| event::of_dead(key, &stored::unpack(entry.value).ok()?)))
        }
    }
}

async fn publish(publisher: &Publisher, announcement: &Announcement) -> Result<(), Error> {
    let pending = publisher.announce(&announcement.event, &announcement.request, &announcement.about)?;
    pending.outcome().await.map(|_| ())
}

#[cfg(test)]
mod tests;
