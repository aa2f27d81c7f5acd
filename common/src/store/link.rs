//! A link to a store that can be cut, for tests and simulations of a process that loses its store.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::watch;

use super::{
    Entry, Grant, LeaseError, LeaseId, ListRequest, Page, ReadError, Revision, SharedStore, Store, Usage, Watch,
    WatchError, Write, WriteError,
};
use crate::key::Key;

/// One process's link to a store. Clones are the same link.
#[derive(Clone)]
pub struct Link {
    store: SharedStore,
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    cut: bool,
    mute: Option<Key>,
    watch_items: Option<usize>,
}

impl Link {
    /// A link that works.
    pub fn new(store: SharedStore) -> Self {
        Self {
            store,
            state: Arc::default(),
        }
    }

    /// From now on nothing comes through: calls hang and watches are silent, without any error, until [`Link::join`].
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cut = true);
    }

    /// Everything that hangs goes on.
    pub fn join(&self) {
        self.state.send_modify(|state| state.cut = false);
    }

    /// From now on watches of this prefix are silent, without any error, while calls go through: what they show is late until
    /// [`Link::unmute`].
    pub fn mute(&self, prefix: Key) {
        self.state.send_modify(|state| state.mute = Some(prefix));
    }

    /// All watches go on.
    pub fn unmute(&self) {
        self.state.send_modify(|state| state.mute = None);
    }

    /// Watches opened from now on end after this many items.
    pub fn end_watches_after(&self, items: usize) {
        self.state.send_modify(|state| state.watch_items = Some(items));
    }

    /// Watches opened from now on do not end.
    pub fn heal_watches(&self) {
        self.state.send_modify(|state| state.watch_items = None);
    }

    async fn joined(&self) {
        // Fails only when the sender is gone, and it is ours.
        let _ = self.state.subscribe().wait_for(|state| !state.cut).await;
    }
}

#[async_trait]
impl Store for Link {
    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), ReadError> {
        self.joined().await;
        self.store.get(key).await
    }

    async fn get_all(&self, keys: &[Key]) -> Result<(Vec<Option<Entry>>, Revision), ReadError> {
        self.joined().await;
        self.store.get_all(keys).await
    }

    async fn list(&self, request: ListRequest) -> Result<Page, ReadError> {
        self.joined().await;
        self.store.list(request).await
    }

    async fn write(&self, write: Write) -> Result<Revision, WriteError> {
        self.joined().await;
        self.store.write(write).await
    }

    async fn watch(&self, prefix: &Key, from: Revision) -> Result<Watch, WatchError> {
        self.joined().await;
        let watch = self.store.watch(prefix, from).await?;
        let (link, prefix) = (self.clone(), prefix.clone());
        let through = watch.then(move |item| {
            let (link, prefix) = (link.clone(), prefix.clone());
            async move {
                let mut state = link.state.subscribe();
                let _ = state
                    .wait_for(|state| !state.cut && state.mute.as_ref() != Some(&prefix))
                    .await;
                item
            }
        });
        let items = self.state.borrow().watch_items;
        Ok(match items {
            Some(items) => {
                let end = stream::iter([Err(WatchError::Ended("the link was told to".to_owned()))]);
                through.take(items).chain(end).boxed()
            }
            None => through.boxed(),
        })
    }

    async fn grant(&self, ttl: Duration) -> Result<Grant, ReadError> {
        self.joined().await;
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, LeaseError> {
        self.joined().await;
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), ReadError> {
        self.joined().await;
        self.store.revoke(lease).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), ReadError> {
        self.joined().await;
        self.store.compact(revision).await
    }

    async fn usage(&self) -> Result<Usage, ReadError> {
        self.joined().await;
        self.store.usage().await
    }
}
