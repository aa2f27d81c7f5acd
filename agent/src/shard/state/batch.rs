//! How batches are made, and what becomes of them. Pure.
//!
//! A batch is frozen before it is sent: its members move, in one transaction, into a parked segment of their own that has its id. From there it is sent
//! whole, under the same id and with the same bytes, until it ends; whoever owns the shard.

use std::sync::Arc;

use postrider_common::model::order::Line;
use postrider_common::model::webhook::{PayloadFormat, Webhook};
use postrider_common::time::Timestamp;

use super::{EXPIRED, State};
use crate::shard::delivery::{Batch, Delivery, Destination, Effects, Record, SourceId};
use crate::shard::gathering::fitting;
use crate::shard::lane::Config;

impl State {
    /// When a delivery is to go in a batch, if it is to be gathered. Before its own time it waits alone: it does not make a batch full.
    pub(super) fn gathers(&mut self, at: usize, delivery: &Delivery, now: Timestamp) -> Option<Timestamp> {
        let lane = self.lane(at)?;
        let Config::Known(webhook, _) = &lane.config else {
            return None;
        };
        let alone = delivery.batch.is_none() && delivery.state.attempts == 0;
        if !alone || delivery.event.earliest() > now || !webhook.gathers(delivery.event.category) {
            return None;
        }
        let webhook = webhook.clone();
        Some(lane.gather_due(&webhook, delivery.event.ready_time()))
    }

    /// Makes batches of what was gathered.
    pub(super) fn make_batches(&mut self, at: usize, now: Timestamp, effects: &mut Effects) {
        loop {
            let Some(lane) = self.lane(at) else { return };
            let Some(webhook) = lane.active().cloned() else { return };
            let more = lane.reserved > 0;
            let Some(members) = lane.gathering.next_batch(&webhook, more) else {
                return;
            };
            lane.forget(members.iter().map(|delivery| delivery.bytes).sum());
            self.make_batch(at, &webhook, members, now, effects);
        }
    }

    /// Makes one batch of the ready deliveries that may share a request, if there are at least two.
    pub(super) fn coalesce(&mut self, at: usize, now: Timestamp, effects: &mut Effects) -> bool {
        let read_to = self.read_to;
        let Some(lane) = self.lane(at) else { return false };
        let Some(webhook) = lane.active().cloned() else {
            return false;
        };
        let most = webhook.batching.coalesced_events();
        if most < 2 || webhook.payload_format != PayloadFormat::Envelope {
            return false;
        }
        let alone = |delivery: &&Delivery| {
            !delivery.state.alone
                && delivery.state.attempts == 0
                && delivery.batch.is_none()
                && delivery.origin.uid == webhook.uid
        };
        let bytes = webhook.batching.batch_bytes();
        let count = match &lane.order {
            None => fitting(lane.ready().take_while(alone), most, bytes),
            Some(order) => {
                let lasts = |delivery: &&Delivery| delivery.event.expire_time.is_none_or(|expires| expires > now);
                let together = lane.ready().chain(order.following(now, read_to));
                fitting(together.take_while(|next| alone(next) && lasts(next)), most, bytes)
            }
        };
        if count < 2 {
            return false;
        }
        let mut members: Vec<Delivery> = std::iter::from_fn(|| lane.pop_ready()).take(count).collect();
        if let (Some(order), Some(first)) = (&mut lane.order, members.first()) {
            order.free(first);
            members.extend(order.take_following(count - members.len()));
        }
        lane.forget(members.iter().map(|delivery| delivery.bytes).sum());
        self.make_batch(at, &webhook, members, now, effects);
        true
    }

    fn make_batch(
        &mut self,
        at: usize,
        webhook: &Webhook,
        members: Vec<Delivery>,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        let mut left = Vec::with_capacity(members.len());
        for mut delivery in members {
            if delivery.origin.uid != webhook.uid {
                self.abandon(&delivery, effects);
            } else if delivery.event.expire_time.is_some_and(|expires| expires <= now) {
                self.die(at, delivery, EXPIRED, now, effects);
            } else {
                delivery.state.due = now;
                left.push(delivery);
            }
        }
        self.batches += 1;
        let id: Arc<str> = match &left[..] {
            // Alone it goes under the event's own id.
            [only] => only.event.id.as_str().into(),
            _ => format!("batch-{}-{}-{:x}", webhook.uid, self.epoch, self.batches).into(),
        };
        self.park_batch(at, id, left, Vec::new(), effects);
    }

    /// A batch waits in the store, for its first attempt or the next.
    pub(super) fn park_batch(
        &mut self,
        at: usize,
        id: Arc<str>,
        deliveries: Vec<Delivery>,
        over: Vec<(SourceId, u32)>,
        effects: &mut Effects,
    ) {
        if deliveries.is_empty() {
            return;
        }
        let mut to = Destination::Parked;
        if let Some(lane) = self.lane(at) {
            lane.moving += u32::try_from(deliveries.len()).unwrap_or(u32::MAX);
            if let Some(order) = &mut lane.order {
                to = Destination::Ordered(Line::STRICT);
                let first = deliveries.iter().map(|delivery| delivery.state.position).min();
                let first = first.unwrap_or_default();
                deliveries.iter().for_each(|_| order.moves(Line::STRICT, first));
            }
        }
        self.tally.parked += deliveries.len() as u64;
        for delivery in &deliveries {
            self.close(delivery.source);
        }
        effects.records.push(Record::Batch(Box::new(Batch {
            id,
            deliveries,
            to,
            over,
        })));
    }

    /// Puts deliveries away into the store that were in memory: each batch as a whole.
    pub(super) fn put_away(&mut self, at: usize, deliveries: Vec<Delivery>, now: Timestamp, effects: &mut Effects) {
        let mut batch: Vec<Delivery> = Vec::new();
        for mut delivery in deliveries {
            delivery.state.due = delivery.state.due.max(now);
            let same = |last: &Delivery| last.batch == delivery.batch && last.source == delivery.source;
            if let Some(id) = batch
                .last()
                .filter(|last| !same(last))
                .and_then(|last| last.batch.clone())
            {
                self.park_batch(at, id, std::mem::take(&mut batch), Vec::new(), effects);
            }
            if delivery.batch.is_some() {
                batch.push(delivery);
            } else {
                self.park_away(at, delivery, effects);
            }
        }
        if let Some(id) = batch.last().and_then(|last| last.batch.clone()) {
            self.park_batch(at, id, batch, Vec::new(), effects);
        }
    }

    /// A delivery waits to be made up into a batch.
    pub(super) fn park_gathering(&mut self, at: usize, mut delivery: Delivery, due: Timestamp, effects: &mut Effects) {
        delivery.state.due = due;
        if let Some(lane) = self.lane(at) {
            lane.moving += 1;
        }
        self.tally.parked += 1;
        self.moved(at, Destination::Gathering, delivery, effects);
    }
}
