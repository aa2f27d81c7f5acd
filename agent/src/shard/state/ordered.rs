//! Deliveries of webhooks that keep an order: where they go, and what becomes of those that are used up. Pure.

use postrider_common::key::{self, Key, Parked};
use postrider_common::model::order::{Line, Lined, Ordering};
use postrider_common::store::Revision;
use postrider_common::time::Timestamp;

use super::State;
use super::marks::Mark;
use crate::shard::delivery::{Delivery, Destination, Effects, Load, Place};
use crate::shard::entry::Entry;
use crate::shard::lane::Config;
use crate::shard::order::Overrule;

/// Where a delivery of an ordered webhook was read from.
#[derive(Debug, Clone, Copy)]
pub(super) enum From {
    /// The queue.
    Queue,
    /// A parked segment.
    Parked {
        /// Its line, if it was parked under an order.
        line: Option<Line>,
        /// What was decided about it.
        overruled: Option<Overrule>,
    },
}

impl State {
    /// Everything that the queue held up to this revision was given to [`State::loaded`], or cannot be read. Not needed for what comes with
    /// [`State::loaded`] itself.
    pub fn queue_read(&mut self, to: Revision, now: Timestamp, effects: &mut Effects) {
        self.read_to = self.read_to.max(to);
        while let Some((revision, at)) = self.awaiting.first().copied() {
            if revision > self.read_to {
                break;
            }
            self.awaiting.pop_first();
            self.settle(at, now, effects);
        }
    }

    /// An administrator wants a delivery that was used up, and that others wait for, to be tried again or dropped. `parked` is where it stands: a segment
    /// of which the key says that it is blocked. Says whether there is such a segment. It is noted in the store when the delivery has been read: if the agent
    /// dies before, it is as if nobody had asked.
    pub fn overrule(&mut self, parked: &Parked, overrule: Overrule, now: Timestamp, effects: &mut Effects) -> bool {
        let name = (parked.account.clone(), parked.webhook.clone());
        let Some(at) = self.by_webhook.get(&name).copied() else {
            return false;
        };
        let order = self.lane(at).and_then(|lane| lane.order.as_mut());
        let known = order.is_some_and(|order| order.overrule(&Entry::of(parked), overrule));
        self.settle(at, now, effects);
        known
    }

    /// Where deliveries of this source come from, if their lane keeps an order.
    pub(super) fn ordered_from(&mut self, at: usize, place: Place, key: &Key) -> Option<From> {
        let order = self.lane(at)?.order.as_mut()?;
        Some(match place {
            Place::Queue(_) => From::Queue,
            Place::Parked => {
                let entry = key::parse_parked(key).map(|parked| Entry::of(&parked));
                let lined: Option<Lined> = entry.and_then(|entry| entry.lined());
                From::Parked {
                    line: lined.map(|lined| lined.line),
                    overruled: lined.and_then(|lined| order.overruled(lined.first)),
                }
            }
        })
    }

    /// Puts a delivery of an ordered webhook that was read where it belongs.
    pub(super) fn place_ordered(
        &mut self,
        at: usize,
        mut delivery: Delivery,
        from: From,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        let allowance = self.allowance;
        if self.obey(&mut delivery, now) == Some(Mark::Cancel) {
            return self.cancel(&delivery, now, effects);
        }
        let numbers = matches!(from, From::Queue) && self.lane(at).is_some_and(|lane| lane.numbers());
        if numbers {
            delivery.state.sequence = self.numbers.next(&delivery.origin);
        }
        let Some(lane) = self.lane(at) else { return };
        let (held, rests, room) = (lane.is_held(), lane.rests_long(now), lane.room(allowance));
        if matches!(lane.config, Config::Gone(_)) {
            return self.abandon(&delivery, effects);
        }
        let Some(order) = &mut lane.order else { return };
        if let From::Parked { overruled, .. } = from
            && delivery.state.blocked != 0
        {
            if overruled == Some(Overrule::Cancel) {
                return self.cancel(&delivery, now, effects);
            }
            if overruled.is_none() && delivery.state.blocked == order.stage() {
                order.block();
                return self.park(at, delivery, effects);
            }
            renew(&mut delivery, now);
        }
        let line = match from {
            From::Queue => {
                delivery.state.due = delivery.state.due.max(now).max(delivery.event.earliest());
                if rests || numbers {
                    Some(order.spill(&delivery))
                } else {
                    order.overflow(&delivery, now, &room)
                }
            }
            From::Parked { line, .. } => order.set_aside(&delivery, line, now, &room),
        };
        let line = if held { Some(order.spill(&delivery)) } else { line };
        match line.filter(|_| delivery.batch.is_none()) {
            Some(line) => {
                order.moves(line, delivery.state.position);
                self.park_at(at, Destination::Ordered(line), delivery, effects);
            }
            None => {
                let earlier = matches!(from, From::Parked { line, .. } if order.is_earlier(line));
                lane.arrive(delivery, earlier);
            }
        }
    }

    /// Parks a delivery that is taken out of memory with everything else of its lane.
    pub(super) fn park_away(&mut self, at: usize, delivery: Delivery, effects: &mut Effects) {
        let Some(order) = self.lane(at).and_then(|lane| lane.order.as_mut()) else {
            return self.park_at(at, Destination::Parked, delivery, effects);
        };
        let line = order.spill(&delivery);
        order.moves(line, delivery.state.position);
        self.park_at(at, Destination::Ordered(line), delivery, effects);
    }

    /// Makes ready what has its turn in an ordered lane.
    pub(super) fn settle_order(&mut self, at: usize, now: Timestamp, effects: &mut Effects) {
        let (shard, allowance, read_to) = (self.shard, self.allowance, self.read_to);
        let Some(lane) = self.lanes.get_mut(at).and_then(Option::as_mut) else {
            return;
        };
        if let Some(order) = &mut lane.order {
            let name = (lane.account.clone(), lane.webhook.clone());
            order.redriving(self.redriven.contains(&name));
        }
        let segments = lane.settle_order(shard, now, read_to, allowance);
        if !segments.is_empty() {
            effects.loads.push(Load { segments });
        }
        let awaits = lane.order.as_ref().and_then(|order| order.awaits(read_to));
        if let Some(revision) = awaits {
            self.awaiting.insert((revision, at));
        }
    }

    /// In which stage of its webhook a delivery that is used up is to wait; `None` if it becomes a dead letter.
    pub(super) fn blocks(&mut self, at: usize, delivery: &Delivery) -> Option<u64> {
        self.lane(at)?.order.as_ref()?.blocks(delivery)
    }

    /// Deliveries of one request are used up. Those that become dead letters are given back; none if they wait.
    pub(super) fn used_up(
        &mut self,
        at: usize,
        mut deliveries: Vec<Delivery>,
        reason: &str,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Vec<Delivery> {
        let Some(first) = deliveries.first() else {
            return deliveries;
        };
        let batch = first.batch.clone();
        let Some(stage) = self.blocks(at, first) else {
            return deliveries;
        };
        self.hold(at, first, true, now, effects);
        for delivery in &mut deliveries {
            reason.clone_into(&mut delivery.state.reason);
            delivery.state.due = now;
            delivery.state.blocked = stage;
        }
        match batch {
            Some(id) => self.park_batch(at, id, deliveries, Vec::new(), effects),
            None => deliveries
                .into_iter()
                .for_each(|delivery| self.park(at, delivery, effects)),
        }
        Vec::new()
    }

    /// What stands behind a delivery that waits gives its room in memory to others, if they need it; if it is `blocked` in any case.
    pub(super) fn hold(&mut self, at: usize, first: &Delivery, blocked: bool, now: Timestamp, effects: &mut Effects) {
        let allowance = self.allowance;
        let Some(lane) = self.lane(at) else { return };
        let room = lane.room(allowance);
        let Some(order) = &mut lane.order else { return };
        if blocked {
            order.block();
        }
        let evicted = order.evict(first, blocked, &room);
        let ordering = order.ordering();
        lane.forget(evicted.iter().map(|delivery| delivery.bytes).sum());
        match ordering {
            Ordering::Strict => self.put_away(at, evicted, now, effects),
            Ordering::PerKey | Ordering::None => evicted
                .into_iter()
                .for_each(|delivery| self.park(at, delivery, effects)),
        }
    }
}

/// Gives a delivery that was used up its retry policy anew.
pub(super) fn renew(delivery: &mut Delivery, now: Timestamp) {
    delivery.state.blocked = 0;
    delivery.state.attempts = 0;
    delivery.state.renewed = Some(now);
    // It was sent before, under the id that it has.
    delivery.state.alone = true;
}
