//! All webhooks, in memory, from a mirror of the store; and directly from the store where the mirror is behind.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use postrider_common::id::{AccountId, Uid, WebhookId};
use postrider_common::key;
use postrider_common::model::webhook::Webhook;
use postrider_common::planted::{self, Bug};
use postrider_common::store::{Change, Entry, Revision, SharedStore};
use postrider_common::task;
use postrider_common::wire::stored;
use tokio::sync::broadcast;

use crate::shard::delivery::Known;
use postrider_common::store::mirror::{self, Update};

/// Changes that a shard worker may be behind: beyond that it looks at all its lanes.
const CHANGES: usize = 1024;

/// Pause before a store that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// A webhook's name.
pub type Name = (AccountId, WebhookId);

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// One webhook.
    One(Name),
    /// One webhook was deleted, and there is another of its name.
    Replaced(Name),
    /// Anything may have.
    All,
}

/// All webhooks. Clones are the same catalog.
#[derive(Clone)]
pub struct Catalog {
    store: SharedStore,
    shared: Arc<Shared>,
    mirror: mirror::Handle,
}

struct Shared {
    view: RwLock<View>,
    changes: broadcast::Sender<Changed>,
}

#[derive(Default)]
struct View {
    webhooks: HashMap<Name, Stored>,
    /// The view holds everything up to this revision (some webhooks may be newer).
    revision: Revision,
}

#[derive(Clone)]
struct Stored {
    /// `None`: this release cannot read it.
    webhook: Option<Arc<Webhook>>,
    revision: Revision,
    created: Revision,
}

impl Stored {
    fn read(entry: Entry) -> Option<(Name, Self)> {
        let Some(name) = key::parse_webhook(&entry.key) else {
            tracing::warn!(key = %entry.key, "not the key of a webhook");
            return None;
        };
        let webhook = stored::decode_webhook(name.0.clone(), name.1.clone(), entry.value);
        let webhook = webhook.inspect_err(
            |error| tracing::error!(key = %entry.key, %error, "a webhook cannot be read: its deliveries wait"),
        );
        let stored = Self {
            webhook: webhook.ok().map(Arc::new),
            revision: entry.mod_revision,
            created: entry.create_revision,
        };
        Some((name, stored))
    }

    fn known(&self) -> Known {
        match &self.webhook {
            Some(webhook) => Known::Found(webhook.clone(), self.revision),
            None => Known::Unreadable,
        }
    }

    fn known_as(&self, uid: &Uid) -> Known {
        match self.known() {
            Known::Found(webhook, _) if webhook.uid != *uid && !planted::is(Bug::NamesakeServed) => Known::Replaced,
            known => known,
        }
    }
}

impl View {
    fn put(&mut self, name: Name, stored: Stored) {
        let known = self.webhooks.get(&name).map(|known| known.revision);
        if known < Some(stored.revision) {
            self.webhooks.insert(name, stored);
        }
    }
}

impl Catalog {
    /// Starts to mirror the webhooks of `store`.
    pub fn spawn(group: &task::Group, store: SharedStore) -> Self {
        let shared = Arc::new(Shared {
            view: RwLock::default(),
            changes: broadcast::Sender::new(CHANGES),
        });
        let target = shared.clone();
        let apply = move |update| target.apply(update);
        let mirror = mirror::spawn(group, "catalog", store.clone(), key::webhooks(), false, apply);
        Self { store, shared, mirror }
    }

    /// Returns when the catalog holds all webhooks for the first time.
    pub async fn synced(&self) {
        self.mirror.synced().await;
    }

    /// Tells what changes from now on.
    pub fn changes(&self) -> broadcast::Receiver<Changed> {
        self.shared.changes.subscribe()
    }

    /// How many webhooks there are.
    pub fn len(&self) -> usize {
        self.shared.read().webhooks.len()
    }

    /// There are no webhooks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the mirror says about a webhook: [`Known::Absent`] with the mirror's own revision if it holds none of this name.
    pub fn current(&self, name: &Name) -> Known {
        let view = self.shared.read();
        let absent = Known::Absent(view.revision);
        view.webhooks.get(name).map_or(absent, Stored::known)
    }

    /// Since which revision there has been no other webhook of this name than the mirror holds: it came into being then; the mirror's own if it holds none.
    pub fn since(&self, name: &Name) -> Revision {
        let view = self.shared.read();
        view.webhooks.get(name).map_or(view.revision, |stored| stored.created)
    }

    /// As of which revision there is no webhook of this name, if the store agrees with the mirror that there is none. Asks for as long as it takes.
    pub async fn absent(&self, name: &Name) -> Option<Revision> {
        if !matches!(self.current(name), Known::Absent(_)) {
            return None;
        }
        let key = key::webhook(&name.0, &name.1);
        loop {
            match self.store.get(&key).await {
                Ok((entry, revision)) => return entry.is_none().then_some(revision),
                Err(error) => {
                    tracing::debug!(%error, "a webhook cannot be read for now");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// What is known at once about the webhook `uid` called `name`, by no configuration older than `at_least`; `None` if the store has to be asked.
    pub fn peek(&self, name: &Name, uid: &Uid, at_least: Revision) -> Option<Known> {
        let view = self.shared.read();
        let stored = view.webhooks.get(name)?;
        let fresh = stored.revision >= at_least || view.revision >= at_least;
        fresh.then(|| stored.known_as(uid))
    }

    /// What is known about the webhook `uid` called `name`, by no configuration older than `at_least`. Asks the store if the mirror is behind, for as long
    /// as it takes: a webhook is gone only when the store says so. Drop the future to give up.
    pub async fn resolve(&self, name: &Name, uid: &Uid, at_least: Revision) -> Known {
        if let Some(known) = self.peek(name, uid, at_least) {
            return known;
        }
        let key = key::webhook(&name.0, &name.1);
        loop {
            match self.store.get(&key).await {
                Ok((None, revision)) => return Known::Absent(revision),
                Ok((Some(entry), _)) => {
                    let Some((name, stored)) = Stored::read(entry) else {
                        return Known::Unreadable;
                    };
                    let known = stored.known_as(uid);
                    self.shared.write().put(name, stored);
                    return known;
                }
                Err(error) => {
                    tracing::debug!(%error, "a webhook cannot be read for now");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Shared {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, update: Update) {
        match update {
            Update::Reset(entries, revision) => {
                let webhooks = entries.into_iter().filter_map(Stored::read).collect();
                *self.write() = View { webhooks, revision };
                self.tell(Changed::All);
            }
            Update::Changes(changes) => {
                let mut changed = Vec::with_capacity(changes.changes.len());
                let mut deleted = HashSet::new();
                let mut view = self.write();
                for change in changes.changes {
                    match change {
                        Change::Put(entry) => {
                            let Some((name, stored)) = Stored::read(entry) else {
                                continue;
                            };
                            view.put(name.clone(), stored);
                            changed.push(if deleted.contains(&name) {
                                Changed::Replaced(name)
                            } else {
                                Changed::One(name)
                            });
                        }
                        Change::Delete(_) if planted::is(Bug::DeletedServed) => {}
                        Change::Delete(key) => {
                            let Some(name) = key::parse_webhook(&key) else { continue };
                            // One that was read from the store may be ahead of the mirror.
                            let known = view.webhooks.get(&name);
                            if known.is_some_and(|known| known.created > changes.revision) {
                                changed.push(Changed::Replaced(name));
                                continue;
                            }
                            view.webhooks.remove(&name);
                            changed.push(Changed::One(name.clone()));
                            deleted.insert(name);
                        }
                    }
                }
                view.revision = view.revision.max(changes.revision);
                drop(view);
                // Only now: whoever is told looks at once.
                for changed in changed {
                    self.tell(changed);
                }
            }
        }
    }

    /// No one may be listening.
    fn tell(&self, changed: Changed) {
        let _ = self.changes.send(changed);
    }
}
