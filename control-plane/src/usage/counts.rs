//! Counts of deliveries, added up. Pure.

use std::collections::BTreeMap;

use postrider_common::id::{Uid, WebhookId};
use postrider_common::model::usage::{Dropped, Usage};

/// What became of deliveries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    counted: Usage,
    /// In the queue, not yet counted by the owner of the shard.
    queued: u64,
}

impl Counts {
    /// Accepted by Publish.
    pub(crate) const fn accepted(&self) -> u64 {
        self.counted.taken + self.queued
    }

    /// Delivered.
    pub(crate) const fn delivered(&self) -> u64 {
        self.counted.delivered
    }

    /// Not ended.
    pub(crate) fn waiting(&self) -> u64 {
        self.counted.waiting() + self.queued
    }

    /// Dead letters that are kept.
    pub(crate) const fn dead(&self) -> u64 {
        self.counted.dead
    }

    /// Dropped for this reason.
    pub(crate) fn dropped(&self, why: Dropped) -> u64 {
        self.counted.dropped(why)
    }

    fn add(&mut self, more: &Usage) {
        self.counted.taken += more.taken;
        self.counted.delivered += more.delivered;
        self.counted.dead += more.dead;
        for why in Dropped::ALL {
            self.counted.drop_more(why, more.dropped(why));
        }
    }
}

/// What became of an account's deliveries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AccountUsage {
    /// By webhook.
    pub(crate) webhooks: BTreeMap<WebhookId, (Uid, Counts)>,
    /// Of all webhooks that do not exist any more.
    pub(crate) deleted: Counts,
}

impl AccountUsage {
    /// A webhook exists.
    pub(crate) fn add_webhook(&mut self, id: WebhookId, uid: Uid) {
        self.webhooks.insert(id, (uid, Counts::default()));
    }

    /// Adds what was counted under a webhook's name, which may have been another webhook's.
    pub(crate) fn add(&mut self, id: Option<&WebhookId>, counted: &Usage) {
        let webhook = id.and_then(|id| self.webhooks.get_mut(id));
        match webhook.filter(|(uid, _)| counted.uid.as_ref() == Some(uid)) {
            Some((_, counts)) => counts.add(counted),
            None => self.deleted.add(counted),
        }
    }

    /// Adds what waits in the queue for the webhook `uid` called `id`.
    pub(crate) fn add_queued(&mut self, id: &WebhookId, uid: &Uid, count: u64) {
        match self.webhooks.get_mut(id).filter(|(known, _)| known == uid) {
            Some((_, counts)) => counts.queued += count,
            None => self.deleted.queued += count,
        }
    }

    /// All of it.
    pub(crate) fn total(&self) -> Counts {
        let mut total = self.deleted.clone();
        for (_, counts) in self.webhooks.values() {
            total.add(&counts.counted);
            total.queued += counts.queued;
        }
        total
    }
}
