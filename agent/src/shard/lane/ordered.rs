//! A lane whose webhook keeps an order. Pure.

use postrider_common::key::Parked;
use postrider_common::model::webhook::Webhook;
use postrider_common::shard::ShardId;
use postrider_common::store::Revision;
use postrider_common::time::Timestamp;

use super::{LANE_LIMIT, Lane};
use crate::shard::delivery::Delivery;
use crate::shard::entry::Entry;
use crate::shard::order::{Order, Room, Strays};

impl Lane {
    /// Goes over to the order that the webhook has now. What is here goes first: it was accepted before.
    pub(super) fn reorder(&mut self, webhook: &Webhook) {
        let kept = webhook.order.is_kept();
        match &mut self.order {
            None if !kept => return,
            Some(order) if order.ordering() == webhook.order.ordering => return order.renew(webhook),
            None | Some(_) => {}
        }
        let memory = self.drain();
        let mut entries: Vec<Entry> = std::mem::take(&mut self.parked).into_iter().collect();
        entries.extend(self.gathering.drain_index());
        if let Some(order) = &mut self.order {
            entries.extend(order.drain_index());
        }
        if !kept {
            self.order = None;
            entries.into_iter().for_each(|entry| self.index(entry));
            for delivery in memory {
                self.bytes += delivery.bytes;
                let due = (delivery.state.due, delivery.source, delivery.index);
                self.waiting.insert(due, delivery);
            }
            return;
        }
        self.orders += 1;
        let strays = Strays {
            in_flight: self.in_flight,
            moving: self.moving,
            first: self.order.as_ref().and_then(|order| order.first_moving()),
            dying: self.dying.len(),
            reading: self.reserved > 0,
        };
        let mut order = Order::new(webhook, self.orders, strays);
        entries.into_iter().for_each(|entry| order.found(entry));
        for delivery in memory {
            self.bytes += delivery.bytes;
            order.arrive(delivery, true);
        }
        self.order = Some(Box::new(order));
    }

    /// How many orders it had.
    pub const fn orders(&self) -> u32 {
        self.orders
    }

    /// A delivery is handed to the ledger as a dead letter; `waited_for` if what follows it goes only once that is written.
    pub fn dies(&mut self, waited_for: Option<&Delivery>) {
        let order = self.order.as_mut();
        let line = order.zip(waited_for).map(|(order, delivery)| order.bury(delivery));
        self.dying.push_back((self.orders, line));
    }

    /// The first `count` of these were written.
    pub fn buried(&mut self, count: u32) {
        for _ in 0..count {
            let died = self.dying.pop_front();
            let (Some((orders, line)), Some(order)) = (died, &mut self.order) else {
                continue;
            };
            match line {
                _ if orders != order.serial() => order.stray_buried(),
                Some(line) => order.buried(line),
                None => {}
            }
        }
    }

    /// A delivery is in memory from now on, and waits for its turn.
    pub fn arrive(&mut self, delivery: Delivery, earlier: bool) {
        if let Some(order) = &mut self.order {
            self.bytes += delivery.bytes;
            order.arrive(delivery, earlier);
        }
    }

    /// Makes ready what has its turn, and takes the parked segments that are to be read for what follows.
    pub fn settle_order(&mut self, shard: ShardId, now: Timestamp, read_to: Revision, allowance: usize) -> Vec<Parked> {
        let Some(order) = &mut self.order else {
            return Vec::new();
        };
        for delivery in order.settle(now, read_to) {
            self.forget(delivery.bytes);
            self.push_ready(delivery);
        }
        let room = self.room(allowance);
        if self.reserved > 0 || self.active().is_none() || self.rests_until() > now {
            return Vec::new();
        }
        let entries = self.order.as_mut().map(|order| order.next_loads(now, read_to, room));
        let entries = entries.unwrap_or_default();
        self.reserved = entries.iter().map(Entry::room).sum();
        let parked = |entry: &Entry| self.parked_at(shard, *entry);
        entries.iter().map(parked).collect()
    }

    /// What room there is in memory.
    pub fn room(&self, allowance: usize) -> Room {
        Room {
            limit: allowance.min(LANE_LIMIT),
            ready: self.ready.len(),
            bytes: self.has_bytes(allowance),
            // What follows a dead letter goes once that is written.
            idle: self.ready.is_empty() && self.in_flight == 0 && self.dying.is_empty(),
        }
    }

    /// All that could be read of these segments has arrived.
    pub fn load_over(&mut self, segments: &[Parked]) {
        let count: usize = segments.iter().map(|parked| Entry::of(parked).room()).sum();
        self.reserved = self.reserved.saturating_sub(count);
        if let Some(order) = &mut self.order {
            order.over(segments.iter().map(Entry::of));
        }
    }

    /// Puts deliveries back whose attempt was not made.
    pub fn put_back(&mut self, deliveries: Vec<Delivery>) {
        // The request may have been under way when it was given up.
        let alone = |mut delivery: Delivery| {
            delivery.state.alone = true;
            delivery
        };
        if self.order.is_some() {
            let deliveries = deliveries.into_iter().map(alone);
            deliveries.for_each(|delivery| self.arrive(delivery, false));
        } else {
            let deliveries = deliveries.into_iter().rev().map(alone);
            deliveries.for_each(|delivery| self.push_front(delivery));
        }
    }
}
