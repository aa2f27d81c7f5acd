//! Accounts. Pure.

use std::collections::BTreeMap;

use crate::id::{AccountId, Uid};
use crate::time::Timestamp;

/// Webhooks an account may have unless it says otherwise: what the first user's guide promises.
pub const DEFAULT_MAX_WEBHOOKS: u32 = 5;

/// Bytes of undelivered events that an account may have waiting unless it says otherwise: an eighth of etcd's advised 8 GiB.
pub const DEFAULT_MAX_BACKLOG_BYTES: u64 = 1 << 30;

/// What happens to events whose type is not in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownEventTypes {
    /// They are accepted like others, and counted.
    #[default]
    Accept,
    /// Publishing them is refused.
    Refuse,
}

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its id.
    pub id: AccountId,
    /// Unique for ever.
    pub uid: Uid,
    /// Counts the changes, from 1.
    pub generation: u64,
    /// For people.
    pub display_name: String,
    /// How many webhooks it may have; `None` means the default.
    pub max_webhooks: Option<u32>,
    /// How many bytes of undelivered events it may have waiting; `None` means the default.
    pub max_backlog_bytes: Option<u64>,
    /// What happens to events whose type is not in the catalogue.
    pub unknown_event_types: UnknownEventTypes,
    /// Free key/value pairs.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was last changed.
    pub update_time: Timestamp,
}

impl Account {
    /// An account with the default quotas, as it comes into being on first use.
    pub const fn new(id: AccountId, uid: Uid, now: Timestamp) -> Self {
        Self {
            id,
            uid,
            generation: 1,
            display_name: String::new(),
            max_webhooks: None,
            max_backlog_bytes: None,
            unknown_event_types: UnknownEventTypes::Accept,
            labels: BTreeMap::new(),
            create_time: now,
            update_time: now,
        }
    }

    /// How many webhooks it may have.
    pub fn webhook_quota(&self) -> u32 {
        self.max_webhooks.unwrap_or(DEFAULT_MAX_WEBHOOKS)
    }
}
