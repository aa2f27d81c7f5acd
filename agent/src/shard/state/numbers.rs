//! The numbers of deliveries of webhooks that number them: from 1, without gaps, in the order of acceptance. Pure.
//!
//! A number is given when a delivery is taken from the queue, and is stored with it before it is sent for the first time: so the next owner of the shard
//! sends it under the same number. The last number that was stored is one of the counts that are kept of the webhook.

use std::collections::BTreeMap;

use postrider_common::id::{AccountId, Uid, WebhookId};
use postrider_common::model::usage::{Name, Usage};

use super::State;
use crate::shard::delivery::Origin;
use postrider_common::planted::{self, Bug};

/// The last numbers given.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    last: BTreeMap<(AccountId, WebhookId), (Uid, u64)>,
}

impl Numbers {
    /// The next number of a webhook.
    pub(super) fn next(&mut self, origin: &Origin) -> u64 {
        let name = (origin.account.clone(), origin.webhook.clone());
        let (uid, last) = self.last.entry(name).or_insert_with(|| (origin.uid.clone(), 0));
        if *uid != origin.uid {
            (*uid, *last) = (origin.uid.clone(), 0);
        }
        *last += 1;
        *last
    }
}

impl State {
    /// What was counted of a webhook when the shard was taken: its numbers go on from there.
    pub fn counted(&mut self, (account, webhook): &Name, usage: &Usage) {
        if let (Some(webhook), Some(uid)) = (webhook, &usage.uid)
            && usage.sequence > 0
            && !planted::is(Bug::NumbersForgotten)
        {
            let name = (account.clone(), webhook.clone());
            self.numbers.last.insert(name, (uid.clone(), usage.sequence));
        }
    }
}
