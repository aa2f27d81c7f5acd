//! What can be made ready once for all attempts of a webhook: the parsed URL, the shared headers, the opened secrets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderMap;
use postrider_common::egress::{Policy, UrlError, check_url};
use postrider_common::id::Uid;
use postrider_common::model::webhook::{Auth, HttpVersion, Webhook};
use postrider_common::secret::{Keyring, OpenError};
use postrider_common::time::Timestamp;

use super::request::{InvalidHeader, base_headers};
use crate::auth::{Credentials, NoLiveSecret};
use crate::transport::{InvalidTarget, Target, Transport};

/// How many webhooks are kept ready in each of the cache's two halves. One takes a few kilobytes; making one ready again costs tens of microseconds.
const CACHED_PER_HALF: usize = 4096;

/// A webhook, ready to be sent to.
pub(super) struct Prepared {
    webhook: Arc<Webhook>,
    pub(super) target: Target,
    pub(super) headers: HeaderMap,
    pub(super) credentials: Credentials,
}

impl Prepared {
    /// Makes a webhook ready.
    ///
    /// # Errors
    /// [`Unprepared`].
    pub(super) fn new(
        webhook: &Arc<Webhook>,
        transport: &Transport,
        policy: &Policy,
        keyring: &Keyring,
        now: Timestamp,
    ) -> Result<Self, Unprepared> {
        let url = check_url(&webhook.target_url, policy)?;
        let mut credentials = Credentials::open(webhook, keyring, now)?;
        if let Auth::OAuth2(client) = &webhook.auth {
            let url = check_url(&client.token_url, policy).map_err(Unprepared::TokenUrl)?;
            credentials = credentials.with_tokens_from(transport.target(
                &webhook.account,
                &url,
                HttpVersion::Negotiated,
                None,
            )?);
        }
        Ok(Self {
            target: transport.target(&webhook.account, &url, webhook.http_version, credentials.identity())?,
            headers: base_headers(&webhook.headers)?,
            credentials,
            webhook: Arc::clone(webhook),
        })
    }

    /// Whether it was made ready for exactly this configuration.
    fn is_for(&self, webhook: &Arc<Webhook>) -> bool {
        // The same configuration is nearly always the same allocation. The contents are compared, not only the generation, so that a webhook that
        // was never stored cannot pass for another.
        Arc::ptr_eq(&self.webhook, webhook)
            || (self.webhook.generation == webhook.generation && self.webhook == *webhook)
    }
}

/// Why a webhook cannot be sent to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unprepared {
    #[error("the URL is refused: {0}")]
    Url(#[from] UrlError),
    #[error("the token URL is refused: {0}")]
    TokenUrl(UrlError),
    #[error(transparent)]
    Target(#[from] InvalidTarget),
    #[error(transparent)]
    Header(#[from] InvalidHeader),
    #[error("a secret cannot be opened: {0}")]
    Secret(#[from] OpenError),
    #[error(transparent)]
    NoLiveSecret(#[from] NoLiveSecret),
}

/// The webhooks that were lately sent to. Bounded: when the young half is full it becomes the old one, and what was in the old one and has not been
/// asked for since is dropped, its secrets wiped.
#[derive(Default)]
pub(super) struct Cache {
    halves: Mutex<Halves>,
}

#[derive(Default)]
struct Halves {
    young: HashMap<Uid, Arc<Prepared>>,
    old: HashMap<Uid, Arc<Prepared>>,
}

impl Cache {
    /// What is ready for exactly this configuration; made ready now if it is not, or was so for another configuration.
    ///
    /// # Errors
    /// [`Unprepared`]; it is not cached, so that the next attempt tries again.
    pub(super) fn get(
        &self,
        webhook: &Arc<Webhook>,
        transport: &Transport,
        policy: &Policy,
        keyring: &Keyring,
        now: Timestamp,
    ) -> Result<Arc<Prepared>, Unprepared> {
        if let Some(prepared) = self.find(webhook) {
            return Ok(prepared);
        }
        let prepared = Arc::new(Prepared::new(webhook, transport, policy, keyring, now)?);
        let mut halves = self.lock();
        // Attempts of a webhook that begin at once share the first one's: it may be getting an access token for all of them.
        if let Some(first) = halves.young.get(&webhook.uid).filter(|first| first.is_for(webhook)) {
            return Ok(Arc::clone(first));
        }
        halves.insert(webhook.uid.clone(), Arc::clone(&prepared));
        Ok(prepared)
    }

    fn find(&self, webhook: &Arc<Webhook>) -> Option<Arc<Prepared>> {
        let mut halves = self.lock();
        let prepared = match halves.young.get(&webhook.uid) {
            Some(prepared) => Arc::clone(prepared),
            None => {
                let (uid, prepared) = halves.old.remove_entry(&webhook.uid)?;
                halves.insert(uid, Arc::clone(&prepared));
                prepared
            }
        };
        drop(halves);
        prepared.is_for(webhook).then_some(prepared)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Halves> {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Halves {
    fn insert(&mut self, uid: Uid, prepared: Arc<Prepared>) {
        self.old.remove(&uid);
        if self.young.len() >= CACHED_PER_HALF && !self.young.contains_key(&uid) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(uid, prepared);
    }
}
