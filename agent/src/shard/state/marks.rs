//! What an administrator wants of single deliveries: to be tried now, or to be dropped. Pure.
//!
//! A delivery may be anywhere when somebody asks: in the queue, in memory, under way, parked. It is marked by its event's id, and the mark is obeyed wherever
//! the delivery comes by next: when it is read, when its turn comes, when its attempt has failed. Marks live in memory only; the command that asks for one
//! stays in the store until it is obeyed. So what is to be tried now is parked again, due at once, before the command goes: an attempt in memory would die with
//! its agent.

use std::collections::BTreeMap;

use postrider_common::id::{AccountId, EventId, Uid, WebhookId};
use postrider_common::key::{Parked, ParkedKind};
use postrider_common::time::Timestamp;

use super::State;
use super::ordered::{From, renew};
use crate::shard::delivery::{Delivery, Effects, Load, Place};
use crate::shard::entry::Entry;
use crate::shard::lane::Config;
use crate::shard::order::Overrule;

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It is to be tried now, as far as its webhook may be sent to.
    Retry,
    /// It is to be dropped.
    Cancel,
}

/// Which delivery.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Marked {
    /// The webhook's account.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    /// Its uid.
    pub uid: Uid,
    /// The event.
    pub event: EventId,
}

impl Marked {
    fn of(delivery: &Delivery) -> Self {
        let origin = &delivery.origin;
        Self {
            account: origin.account.clone(),
            webhook: origin.webhook.clone(),
            uid: origin.uid.clone(),
            event: delivery.event.id.clone(),
        }
    }
}

/// All marks.
pub(super) type Marks = BTreeMap<Marked, Mark>;

impl State {
    /// Marks a delivery.
    pub fn mark(&mut self, marked: Marked, mark: Mark) {
        self.marks.insert(marked, mark);
    }

    /// Takes a mark away. Says whether there was one: one that is not there any more was obeyed.
    pub fn unmark(&mut self, marked: &Marked) -> bool {
        self.marks.remove(marked).is_some()
    }

    /// Whether a mark has not been obeyed.
    pub fn is_marked(&self, marked: &Marked) -> bool {
        self.marks.contains_key(marked)
    }

    /// A marked delivery stands in a parked segment: it is read now, unless others go first in an order.
    pub fn fetch(&mut self, parked: &Parked, mark: Mark, now: Timestamp, effects: &mut Effects) {
        let name = (parked.account.clone(), parked.webhook.clone());
        let Some(at) = self.by_webhook.get(&name).copied() else {
            return;
        };
        if let ParkedKind::Ordered(lined) = parked.kind {
            if lined.blocked != 0 {
                let overrule = match mark {
                    Mark::Retry => Overrule::Retry,
                    Mark::Cancel => Overrule::Cancel,
                };
                self.overrule(parked, overrule, now, effects);
            }
            return;
        }
        let shard = self.shard;
        let Some(lane) = self.lane(at) else { return };
        if lane.order.is_none() {
            match lane.fetch(shard, &Entry::of(parked)) {
                Some(parked) => effects.loads.push(Load { segments: vec![parked] }),
                // It was read together with one that was due.
                None => self.deal_with_waiting(at, now, effects),
            }
        }
        self.settle(at, now, effects);
    }

    /// Dead letters of a webhook are to be redriven: if it keeps an order, what was accepted waits until all of them are parked.
    pub fn redrive_begins(&mut self, name: (AccountId, WebhookId)) {
        self.redriven.insert(name);
    }

    /// All of them are parked.
    pub fn redrive_ends(&mut self, name: &(AccountId, WebhookId), now: Timestamp, effects: &mut Effects) {
        self.redriven.remove(name);
        if let Some(at) = self.by_webhook.get(name).copied() {
            self.settle(at, now, effects);
        }
    }

    /// Dead letters of a webhook are handed to the ledger, to be parked: they go before what was accepted since, if it keeps an order.
    pub fn reviving(&mut self, account: &AccountId, webhook: &WebhookId, count: u32) {
        let at = self.lane_of(account, webhook);
        if let Some(lane) = self.lane(at) {
            lane.moving += count;
            if let Some(order) = &mut lane.order {
                order.reviving(count);
            }
        }
    }

    /// Obeys the marks of deliveries that wait in memory for their time.
    fn deal_with_waiting(&mut self, at: usize, now: Timestamp, effects: &mut Effects) {
        let Some(lane) = self.lanes.get_mut(at).and_then(Option::as_mut) else {
            return;
        };
        let marks = &self.marks;
        for mut delivery in lane.take_waiting(|delivery| marks.contains_key(&Marked::of(delivery))) {
            match self.obey(&mut delivery, now) {
                Some(Mark::Cancel) => self.cancel(&delivery, now, effects),
                Some(Mark::Retry) | None => self.park(at, delivery, effects),
            }
        }
    }

    /// Parks again, due at once, what of a parked segment is to be tried now; the rest, and all that was read of the queue, is given back.
    pub(super) fn expedite(
        &mut self,
        at: usize,
        deliveries: Vec<Delivery>,
        place: Place,
        from: Option<From>,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Vec<Delivery> {
        let used_up = match from {
            Some(From::Parked { overruled, .. }) => overruled == Some(Overrule::Retry),
            Some(From::Queue) | None => false,
        };
        let gone = self.lane(at).is_none_or(|lane| matches!(lane.config, Config::Gone(_)));
        if gone || matches!(place, Place::Queue(_)) || self.marks.is_empty() && !used_up {
            return deliveries;
        }
        let marks = &self.marks;
        let wanted = |delivery: &Delivery| {
            used_up && delivery.state.blocked != 0 || marks.get(&Marked::of(delivery)) == Some(&Mark::Retry)
        };
        // A batch goes as a whole.
        let batch = deliveries.first().and_then(|first| first.batch.clone());
        let whole = batch.is_some() && deliveries.iter().any(wanted);
        let (mut again, rest): (Vec<_>, Vec<_>) =
            deliveries.into_iter().partition(|delivery| whole || wanted(delivery));
        for delivery in &mut again {
            self.marks.remove(&Marked::of(delivery));
            if delivery.state.blocked != 0 {
                renew(delivery, now);
            }
            delivery.state.due = now;
        }
        match batch {
            Some(id) => self.park_batch(at, id, again, Vec::new(), effects),
            None => again.into_iter().for_each(|delivery| self.park(at, delivery, effects)),
        }
        rest
    }

    /// Takes the mark of a delivery that comes by, if it has one. A batch is frozen: it is not cancelled in part.
    pub(super) fn obey(&mut self, delivery: &mut Delivery, now: Timestamp) -> Option<Mark> {
        if self.marks.is_empty() {
            return None;
        }
        let mark = self.marks.remove(&Marked::of(delivery))?;
        if mark == Mark::Retry {
            delivery.state.due = now;
        }
        Some(mark).filter(|_| delivery.batch.is_none())
    }
}
