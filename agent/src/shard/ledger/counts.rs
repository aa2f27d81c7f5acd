//! What became of the deliveries of a shard's webhooks: counted in the transactions that make it so. Pure.
//!
//! ```text
//!     records of a draft ──▶ Tallies ──apply──▶ new totals ──▶ progress/S        (in the same transaction)
//!                                                                  │ many are there
//!                                                                  └──fold──▶ usage/S/A/W
//! ```
//!
//! Totals, not differences, are stored: a transaction that is drawn up again says the same, and a reader takes those of the progress where it has any.

use std::collections::{BTreeMap, BTreeSet};

use postrider_common::id::{AccountId, Uid, WebhookId};
use postrider_common::key::{self, Parked};
use postrider_common::model::usage::{Dropped, Name, Usage};
use postrider_common::shard::ShardId;
use postrider_common::store::Op;
use postrider_common::wire::stored;

use crate::shard::delivery::{End, Origin};

/// Totals that stand in the progress before they are folded into keys of their own. Each costs some eighty bytes in every progress write; folding
/// costs an operation.
const FOLD_FROM: usize = 32;

/// Totals folded in one transaction: it should have room for deliveries too.
const FOLD_AT_ONCE: usize = 32;

/// The totals of one shard.
#[derive(Debug, Default)]
pub struct Counts {
    totals: BTreeMap<Name, Usage>,
    /// Those that stand in the progress.
    unfolded: BTreeSet<Name>,
}

/// What is to be added to the counts of one webhook.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// Taken from the queue.
    pub taken: u64,
    /// Delivered.
    pub delivered: u64,
    /// New dead letters, less those that are none any more.
    pub dead: i64,
    /// Dropped.
    pub dropped: BTreeMap<Dropped, u64>,
    /// The last number given to a delivery; 0 if none was.
    pub sequence: u64,
}

/// What a record did to the bit of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ended {
    /// It was not set before.
    pub news: bool,
    /// Nor was it, and the delivery stood in the queue.
    pub queued: bool,
}

impl Ended {
    /// It was not set before.
    pub const fn news(queued: bool) -> Self {
        Self { news: true, queued }
    }
}

impl Change {
    /// Counts deliveries that are over.
    pub fn over(&mut self, end: End, ended: Ended, count: u64) {
        if !ended.news {
            return;
        }
        self.taken += if ended.queued { count } else { 0 };
        match end {
            End::Delivered => self.delivered += count,
            End::Dropped(why) => *self.dropped.entry(why).or_default() += count,
        }
    }
}

/// What one draft adds to the totals.
#[derive(Debug, Default)]
pub struct Tallies<'a> {
    of: BTreeMap<(&'a AccountId, &'a WebhookId, Option<&'a Uid>), Change>,
    /// Webhooks that are known not to exist any more.
    gone: BTreeSet<(&'a AccountId, &'a WebhookId)>,
}

/// What one draft makes of the totals.
#[derive(Debug, Default)]
pub struct Changed {
    totals: BTreeMap<Name, Usage>,
    folded: Vec<Name>,
}

impl<'a> Tallies<'a> {
    /// What is counted of one webhook.
    pub fn change(&mut self, origin: &'a Origin) -> &mut Change {
        self.of(&origin.account, &origin.webhook, Some(&origin.uid))
    }

    /// A parked segment of a webhook that does not exist any more is dropped, of which `done` deliveries are over.
    pub fn drop_parked(&mut self, parked: &'a Parked, done: u32) {
        let change = self.of(&parked.account, &parked.webhook, None);
        let left = u64::from(parked.count.saturating_sub(done));
        *change.dropped.entry(Dropped::WebhookDeleted).or_default() += left;
    }

    /// No uid means: whichever webhook of that name is counted.
    fn of(&mut self, account: &'a AccountId, webhook: &'a WebhookId, uid: Option<&'a Uid>) -> &mut Change {
        self.of.entry((account, webhook, uid)).or_default()
    }

    /// It does not exist any more: its counts go to those of all such webhooks.
    pub fn gone(&mut self, account: &'a AccountId, webhook: &'a WebhookId) {
        self.gone.insert((account, webhook));
    }
}

impl Counts {
    /// The totals of a shard that was just taken, and which of them its progress holds.
    pub const fn new(totals: BTreeMap<Name, Usage>, unfolded: BTreeSet<Name>) -> Self {
        Self { totals, unfolded }
    }

    /// The totals of webhooks that number their deliveries.
    pub fn numbered(&self) -> impl Iterator<Item = (Name, Usage)> {
        let numbered = self.totals.iter().filter(|(_, usage)| usage.sequence > 0);
        numbered.map(|(name, usage)| (name.clone(), usage.clone()))
    }

    /// Operations that write totals to keys of their own, `room` at most, if many stand in the progress.
    pub fn fold(&self, shard: ShardId, room: usize) -> (Vec<Op>, Changed) {
        let count = if self.unfolded.len() < FOLD_FROM {
            0
        } else {
            room.min(FOLD_AT_ONCE)
        };
        let folded: Vec<Name> = self.unfolded.iter().take(count).cloned().collect();
        let op = |name: &Name| {
            let key = key::usage_of(shard, name);
            match self.totals.get(name).filter(|usage| !usage.is_empty()) {
                Some(usage) => Op::put(key, stored::encode_usage(usage)),
                None => Op::delete(key),
            }
        };
        let ops = folded.iter().map(op).collect();
        let changed = Changed {
            folded,
            ..Changed::default()
        };
        (ops, changed)
    }

    /// Adds what a draft counted to `changed`.
    pub fn apply(&self, tallies: &Tallies<'_>, changed: &mut Changed) {
        for ((account, webhook, uid), more) in &tallies.of {
            let name = ((*account).clone(), Some((*webhook).clone()));
            let gone = ((*account).clone(), None);
            let total = self.total(&name, changed);
            let Some(uid) = uid else {
                // Whatever is counted under this name is of a webhook that does not exist any more.
                self.retire(&name, changed);
                self.add(gone, more, changed);
                continue;
            };
            let retired = total.is_empty();
            match total.uid {
                // A late count of a webhook that does not exist any more. (Uids are in the order of creation.)
                Some(known) if **uid < known || **uid == known && retired => self.add(gone, more, changed),
                known => {
                    if known.is_some_and(|known| known != **uid) {
                        self.retire(&name, changed);
                    }
                    self.add(name.clone(), more, changed);
                    if let Some(total) = changed.totals.get_mut(&name) {
                        total.uid = Some((*uid).clone());
                    }
                    if more.dropped.contains_key(&Dropped::WebhookDeleted) {
                        self.retire(&name, changed);
                    }
                }
            }
        }
        for (account, webhook) in &tallies.gone {
            let name = ((*account).clone(), Some((*webhook).clone()));
            self.retire(&name, changed);
        }
    }

    /// A draft was committed.
    pub fn settle(&mut self, changed: &Changed) {
        for name in &changed.folded {
            self.unfolded.remove(name);
            if self.totals.get(name).is_some_and(Usage::is_empty) {
                self.totals.remove(name);
            }
        }
        for (name, usage) in &changed.totals {
            self.totals.insert(name.clone(), usage.clone());
            self.unfolded.insert(name.clone());
        }
    }

    /// Whether something is counted under this name.
    pub fn has(&self, account: &AccountId, webhook: &WebhookId) -> bool {
        let total = self.totals.get(&(account.clone(), Some(webhook.clone())));
        total.is_some_and(|total| !total.is_empty())
    }

    /// What the progress is to hold once a draft is committed.
    pub fn entries<'c>(&'c self, changed: &'c Changed) -> impl Iterator<Item = (&'c Name, &'c Usage)> {
        let kept = self
            .unfolded
            .iter()
            .filter(|name| !changed.folded.contains(name) && !changed.totals.contains_key(name));
        let kept = kept.filter_map(|name| Some((name, self.totals.get(name)?)));
        kept.chain(&changed.totals)
    }

    fn total(&self, name: &Name, changed: &Changed) -> Usage {
        let total = changed.totals.get(name).or_else(|| self.totals.get(name));
        total.cloned().unwrap_or_default()
    }

    fn add(&self, name: Name, more: &Change, changed: &mut Changed) {
        let mut total = self.total(&name, changed);
        total.taken += more.taken;
        total.delivered += more.delivered;
        total.dead = total.dead.saturating_add_signed(more.dead);
        for (why, count) in &more.dropped {
            total.drop_more(*why, *count);
        }
        total.sequence = total.sequence.max(more.sequence);
        changed.totals.insert(name, total);
    }

    /// Moves the counts of a webhook to those of webhooks that do not exist any more.
    fn retire(&self, name: &Name, changed: &mut Changed) {
        let total = self.total(name, changed);
        if total.is_empty() {
            return;
        }
        // The empty total stands in the progress until its key is deleted: what the key says must not count twice.
        let empty = Usage {
            uid: total.uid.clone(),
            ..Usage::default()
        };
        changed.totals.insert(name.clone(), empty);
        let more = Change {
            taken: total.taken,
            delivered: total.delivered,
            dead: i64::try_from(total.dead).unwrap_or(i64::MAX),
            dropped: Dropped::ALL.map(|why| (why, total.dropped(why))).into(),
            sequence: 0,
        };
        self.add((name.0.clone(), None), &more, changed);
    }
}

impl Changed {
    /// Nothing changes.
    pub fn is_empty(&self) -> bool {
        self.totals.is_empty() && self.folded.is_empty()
    }
}
