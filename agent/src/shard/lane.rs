//! The queue of one webhook: what is ready, what waits for its time, what is under way, and what is parked in the store. Pure.

mod loading;
mod ordered;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key::{Parked, ParkedKind};
use postrider_common::model::failing::Failing;
use postrider_common::model::order::Line;
use postrider_common::model::webhook::{DEFAULT_MAX_IN_FLIGHT, Webhook};
use postrider_common::planted::{self, Bug};
use postrider_common::shard::ShardId;
use postrider_common::store::Revision;
use postrider_common::time::Timestamp;

use super::delivery::{Delivery, Known, SourceId};
use super::entry::Entry;
use super::gathering::Gathering;
use super::order::Order;
use crate::limit::breaker::Breaker;
use crate::limit::failing::Streak;
use crate::limit::rate::{self, Meter};

/// Deliveries that a lane keeps ready in memory: a burst of two full publish transactions flows through without being parked.
pub const LANE_LIMIT: usize = 1024;

/// Bytes that a lane keeps in memory: sixteen of the largest events; less while memory is scarce.
pub const LANE_BYTES: usize = 4 << 20;

/// A lane whose receiver wants to be left alone for longer than this keeps nothing new in memory: what comes waits in the store.
pub const LONG_REST: Duration = Duration::from_secs(1);

/// Sources that the ready deliveries of a lane come from. Each one that is not over costs some seventy bytes in every progress write of the shard;
/// once a slow lane's deliveries are parked they come from few packed sources.
pub const LANE_SOURCES: usize = 64;

/// Deliveries that were read together with one that was due, and wait for their own time in memory.
pub const WAIT_LIMIT: usize = LANE_LIMIT / 4;

/// Parked segments read in one go.
pub(super) const LOAD_SEGMENTS: usize = 16;

/// Deliveries read in one go: one full parked segment, or several small ones.
pub(super) const LOAD_DELIVERIES: usize = 256;

/// What the lane knows about its webhook.
#[derive(Debug, Clone)]
pub enum Config {
    /// Nothing yet: only parked segments were seen, by their keys.
    Unknown,
    /// Its configuration, as of this revision.
    Known(Arc<Webhook>, Revision),
    /// It cannot be read: everything waits.
    Unreadable,
    /// It was deleted by this revision.
    Gone(Revision),
}

/// One lane.
#[derive(Debug)]
pub struct Lane {
    /// Whose.
    pub account: AccountId,
    /// For whom.
    pub webhook: WebhookId,
    /// Its configuration.
    pub config: Config,
    /// Attempts under way.
    pub in_flight: u32,
    /// Deliveries on their way to a parked segment that is not yet in the index.
    pub moving: u32,
    /// Bytes of everything in memory, under way or not.
    pub bytes: usize,
    /// The receiver wants to be left alone, or no attempt can be made, until then.
    pub paused_until: Timestamp,
    /// Stands in the state's queue of lanes that may start something.
    pub queued: bool,
    /// When the state is to look at it again.
    pub alarm: Option<Timestamp>,
    /// Deliveries that are being read.
    pub reserved: usize,
    /// What waits to be made up into batches.
    pub gathering: Gathering,
    /// Holds everything back while the receiver seems to be down.
    pub breaker: Breaker,
    /// How much of the webhook's rate limit is used up.
    meter: Meter,
    /// What the store says about its failures.
    pub noted: Option<Failing>,
    /// For events accepted from the first moment until before the second, batches go at the second.
    next_run: Option<(Timestamp, Timestamp)>,
    /// In which order they go, if in any: then the ready ones are those whose turn it is, and all others are there.
    pub order: Option<Box<Order>>,
    /// How many orders it had.
    orders: u32,
    /// Deliveries that were handed to the ledger as dead letters, in this order: how many orders there had been, and which line waits for it.
    dying: VecDeque<(u32, Option<Line>)>,
    ready: VecDeque<Delivery>,
    /// Runs of the same source among the ready.
    runs: usize,
    waiting: BTreeMap<(Timestamp, SourceId, u32), Delivery>,
    parked: BTreeSet<Entry>,
}

impl Lane {
    /// An empty lane.
    pub fn new(account: AccountId, webhook: WebhookId) -> Self {
        Self {
            account,
            webhook,
            config: Config::Unknown,
            in_flight: 0,
            moving: 0,
            bytes: 0,
            paused_until: Timestamp::from_millis(0),
            queued: false,
            alarm: None,
            reserved: 0,
            gathering: Gathering::default(),
            breaker: Breaker::default(),
            meter: Meter::default(),
            noted: None,
            next_run: None,
            order: None,
            orders: 0,
            dying: VecDeque::new(),
            ready: VecDeque::new(),
            runs: 0,
            waiting: BTreeMap::new(),
            parked: BTreeSet::new(),
        }
    }

    /// Learns about the webhook; older news than what is known are ignored.
    pub fn learn(&mut self, known: &Known) {
        let revision = match self.config {
            Config::Known(_, revision) | Config::Gone(revision) => revision,
            Config::Unknown | Config::Unreadable => Revision::default(),
        };
        match known {
            Known::Found(..) if planted::is(Bug::ChangeUnseen) && matches!(self.config, Config::Known(..)) => {}
            Known::Found(webhook, at)
                if *at > revision || matches!(self.config, Config::Unknown | Config::Unreadable) =>
            {
                if !matches!(&self.config, Config::Known(before, _) if before.batching == webhook.batching) {
                    self.next_run = None;
                    self.gathering.reschedule();
                }
                self.reconfigured(webhook);
                self.config = Config::Known(webhook.clone(), *at);
                self.reorder(webhook);
            }
            Known::Absent(at) if *at >= revision => self.config = Config::Gone(*at),
            Known::Unreadable if !matches!(self.config, Config::Gone(_)) => self.config = Config::Unreadable,
            Known::Found(..) | Known::Absent(_) | Known::Replaced | Known::Unreadable => {}
        }
    }

    /// What a new configuration means for what was learned by the old one.
    fn reconfigured(&mut self, webhook: &Webhook) {
        match &self.config {
            Config::Known(before, _) if !before.is_serving() && webhook.is_serving() => self.breaker.careful(),
            Config::Known(before, _) if (&before.uid, before.generation) != (&webhook.uid, webhook.generation) => {
                self.breaker.reconfigured(Timestamp::from_millis(0));
            }
            Config::Known(..) => {}
            Config::Unknown | Config::Unreadable | Config::Gone(_) => {
                let noted = self.noted.as_ref();
                if let Some(streak) = noted.and_then(|noted| Streak::noted(noted, (&webhook.uid, webhook.generation))) {
                    self.breaker = Breaker::resume(streak);
                }
            }
        }
    }

    /// Its deliveries are numbered, whether it is served now or not.
    pub fn numbers(&self) -> bool {
        matches!(&self.config, Config::Known(webhook, _) if webhook.numbered)
    }

    /// The configuration by which something may be sent now.
    pub fn active(&self) -> Option<&Arc<Webhook>> {
        match &self.config {
            Config::Known(webhook, _) if webhook.is_serving() || planted::is(Bug::RetiredServed) => Some(webhook),
            Config::Known(..) | Config::Unknown | Config::Unreadable | Config::Gone(_) => None,
        }
    }

    /// Nothing may be in memory: it is known that nothing may be sent.
    pub fn is_held(&self) -> bool {
        self.active().is_none() && !matches!(self.config, Config::Unknown)
    }

    /// An attempt may start.
    pub fn can_start(&self, now: Timestamp) -> bool {
        let most = |webhook: &Webhook| {
            let most = webhook.max_in_flight.unwrap_or(DEFAULT_MAX_IN_FLIGHT).get();
            self.order.as_ref().map_or(most, |order| order.most(most))
        };
        !self.ready.is_empty()
            && self.paused_until <= now
            && self.order.as_ref().is_none_or(|order| !order.is_blocked())
            && self.active().is_some_and(|webhook| {
                self.breaker.may_start(now, self.in_flight, most(webhook))
                    && limit(webhook).is_none_or(|limit| self.meter.may_start(&limit, now))
            })
    }

    /// A request starts. Only after [`Lane::can_start`].
    pub fn started(&mut self, webhook: &Webhook, now: Timestamp) {
        self.in_flight += 1;
        self.breaker.started();
        if let Some(limit) = limit(webhook) {
            self.meter.started(&limit, now);
        }
    }

    /// The receiver wants to be left alone, or no attempt can be made, until then.
    fn rests_until(&self) -> Timestamp {
        self.paused_until.max(self.breaker.until().unwrap_or_default())
    }

    /// Whether a delivery that was just accepted may stay in memory. `allowance` says how many ready ones a lane may have at the moment: while memory
    /// is scarce it is less than [`LANE_LIMIT`]. If older ones are parked and due, they come first unless the lane would run dry meanwhile.
    pub fn admits(&self, now: Timestamp, allowance: usize) -> bool {
        if self.is_held() || self.rests_long(now) {
            return false;
        }
        let behind = self.reserved > 0 || self.parked.first().is_some_and(|first| first.due <= now);
        let (limit, sources) = if behind {
            (LANE_LIMIT / 8, LANE_SOURCES / 8)
        } else {
            (LANE_LIMIT, LANE_SOURCES)
        };
        self.ready.len() < limit.min(allowance) && self.has_bytes(allowance) && self.runs < sources
    }

    /// Its receiver wants to be left alone for a good while.
    pub fn rests_long(&self, now: Timestamp) -> bool {
        self.rests_until() > now + LONG_REST
    }

    /// Whether another delivery fits. Those under way count too: a receiver that hangs must not take more than its share by having nothing ready.
    const fn has_bytes(&self, allowance: usize) -> bool {
        let allowance = if allowance < LANE_LIMIT { allowance } else { LANE_LIMIT };
        self.bytes == 0 || self.bytes < LANE_BYTES / LANE_LIMIT * allowance
    }

    /// Adds one that may be sent now.
    pub fn push_ready(&mut self, delivery: Delivery) {
        if self.ready.back().is_none_or(|last| last.source != delivery.source) {
            self.runs += 1;
        }
        self.bytes += delivery.bytes;
        self.ready.push_back(delivery);
    }

    /// Adds one that is to be sent next.
    fn push_front(&mut self, delivery: Delivery) {
        if self.ready.front().is_none_or(|first| first.source != delivery.source) {
            self.runs += 1;
        }
        self.bytes += delivery.bytes;
        self.ready.push_front(delivery);
    }

    /// Takes the next one. Its bytes still count: they are given back with [`Lane::forget`].
    pub fn pop_ready(&mut self) -> Option<Delivery> {
        let delivery = self.ready.pop_front()?;
        if self.ready.front().is_none_or(|next| next.source != delivery.source) {
            self.runs -= 1;
        }
        Some(delivery)
    }

    /// A delivery that was taken is not in memory any more.
    pub const fn forget(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Adds one that is not yet due; gives it back if too many wait.
    pub fn wait(&mut self, delivery: Delivery) -> Option<Delivery> {
        if self.waiting.len() >= WAIT_LIMIT || self.bytes >= LANE_BYTES {
            return Some(delivery);
        }
        self.bytes += delivery.bytes;
        self.waiting
            .insert((delivery.state.due, delivery.source, delivery.index), delivery);
        None
    }

    /// Takes those that wait in memory for their time and are wanted. Their bytes count no more.
    pub fn take_waiting(&mut self, wanted: impl Fn(&Delivery) -> bool) -> Vec<Delivery> {
        let taken: Vec<Delivery> = self
            .waiting
            .extract_if(.., |_, delivery| wanted(delivery))
            .map(|(_, delivery)| delivery)
            .collect();
        self.forget(taken.iter().map(|delivery| delivery.bytes).sum());
        taken
    }

    /// Makes ready what is due.
    pub fn promote(&mut self, now: Timestamp) {
        while let Some(first) = self.waiting.first_entry() {
            if first.key().0 > now {
                break;
            }
            let delivery = first.remove();
            self.bytes = self.bytes.saturating_sub(delivery.bytes);
            self.push_ready(delivery);
        }
    }

    /// When an event that was accepted at `accepted` goes in a batch of `webhook`, which is the lane's.
    pub fn gather_due(&mut self, webhook: &Webhook, accepted: Timestamp) -> Timestamp {
        if webhook.batching.schedule.is_none() {
            return webhook.batching.due(accepted);
        }
        match self.next_run {
            Some((from, next)) if from <= accepted && accepted < next => next,
            Some(_) | None => {
                let next = webhook.batching.due(accepted);
                self.next_run = Some((accepted, next));
                next
            }
        }
    }

    /// Adds one that was read to be made up into a batch; gives it back if it is not yet due after all.
    pub fn gather(&mut self, delivery: Delivery, due: Timestamp, now: Timestamp) -> Option<Delivery> {
        let bytes = delivery.bytes;
        let back = self.gathering.load(delivery, due, now);
        if back.is_none() {
            self.bytes += bytes;
        }
        back
    }

    /// The ready ones, in order.
    pub fn ready(&self) -> impl Iterator<Item = &Delivery> {
        self.ready.iter()
    }

    /// Takes the next request's: one, or all of a batch. Their bytes still count.
    pub fn pop_request(&mut self) -> Vec<Delivery> {
        // With room for just one, which is the rule.
        let mut request: Vec<Delivery> = self.pop_ready().into_iter().collect();
        while let (Some(last), Some(next)) = (request.last(), self.ready.front()) {
            if last.batch.is_none() || last.batch != next.batch || last.source != next.source {
                break;
            }
            request.extend(self.pop_ready());
        }
        request
    }

    /// Takes everything that is in memory and not under way.
    pub fn drain(&mut self) -> Vec<Delivery> {
        let mut all: Vec<Delivery> = self.ready.drain(..).collect();
        if let Some(order) = &mut self.order {
            all.iter().for_each(|delivery| order.free(delivery));
            all.append(&mut order.drain());
        }
        all.extend(std::mem::take(&mut self.waiting).into_values());
        all.extend(self.gathering.drain_loaded());
        self.runs = 0;
        let bytes = all.iter().map(|delivery| delivery.bytes).sum();
        self.forget(bytes);
        all
    }

    /// Adds a parked segment to the index.
    pub fn park(&mut self, parked: &Parked) {
        let entry = Entry::of(parked);
        match &mut self.order {
            Some(order) => order.stored(entry),
            None => self.index(entry),
        }
    }

    fn index(&mut self, entry: Entry) {
        match entry.kind {
            ParkedKind::Gathering(bytes) => {
                let batching = match &self.config {
                    Config::Known(webhook, _) => Some(&webhook.batching),
                    Config::Unknown | Config::Unreadable | Config::Gone(_) => None,
                };
                self.gathering.park(entry, bytes, batching);
            }
            ParkedKind::Single | ParkedKind::Batch | ParkedKind::Rest | ParkedKind::Ordered(_) => {
                self.parked.insert(entry);
            }
        }
    }

    /// Takes the index.
    pub fn drain_parked(&mut self, shard: ShardId) -> Vec<Parked> {
        let mut entries = std::mem::take(&mut self.parked);
        entries.append(&mut self.gathering.drain_index());
        if let Some(order) = &mut self.order {
            entries.extend(order.drain_index());
        }
        entries.into_iter().map(|entry| self.parked_at(shard, entry)).collect()
    }

    fn parked_at(&self, shard: ShardId, entry: Entry) -> Parked {
        entry.parked(shard, &self.account, &self.webhook)
    }

    /// When time alone will change something.
    pub fn next_alarm(&self, now: Timestamp) -> Option<Timestamp> {
        let waiting = self.waiting.first_key_value().map(|(key, _)| key.0);
        let parked = self.parked.first().map(|entry| entry.due);
        let ordered = self.order.as_ref().and_then(|order| order.next_due());
        let parked = [parked, ordered, self.gathering.next_due()].into_iter().flatten().min();
        let parked = parked.filter(|_| self.reserved == 0 && !self.is_held());
        // What is due already waits for room or for the end of a pause, not for time.
        let later = |at: &Timestamp| *at > now;
        let pause = Some(self.rests_until()).filter(|_| {
            !self.ready.is_empty() || !self.parked.is_empty() || !self.gathering.is_empty() || self.order.is_some()
        });
        let limit = self
            .active()
            .and_then(|webhook| limit(webhook))
            .filter(|_| !self.ready.is_empty());
        let rate = limit.and_then(|limit| self.meter.until(&limit, now));
        [waiting.filter(later), parked.filter(later), pause.filter(later), rate]
            .into_iter()
            .flatten()
            .min()
    }

    /// Deliveries ready in memory.
    pub fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// Deliveries waiting in memory for their time.
    pub fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    /// Parked segments in the index.
    pub fn parked_len(&self) -> usize {
        let ordered = self.order.as_ref().map_or(0, |order| order.parked_len());
        self.parked.len() + self.gathering.parked_len() + ordered
    }

    /// Nothing is left of it.
    pub fn is_idle(&self) -> bool {
        self.ready.is_empty()
            && self.waiting.is_empty()
            && self.parked.is_empty()
            && self.gathering.is_empty()
            && self.in_flight == 0
            && self.moving == 0
            && self.dying.is_empty()
            && self.reserved == 0
            && !self.queued
            && self.order.as_ref().is_none_or(|order| order.is_empty())
            // Its failures are remembered until it is well again or gone.
            && (self.breaker.streak().is_none() && self.noted.is_none() || matches!(self.config, Config::Gone(_)))
    }
}

fn limit(webhook: &Webhook) -> Option<rate::Limit> {
    webhook.rate_limit.as_ref().map(rate::Limit::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Lane {
        Lane::new(AccountId::new("a").unwrap(), WebhookId::new("w").unwrap())
    }

    #[test]
    fn a_lane_that_hangs_takes_less_memory_the_scarcer_it_is() {
        let now = Timestamp::from_millis(1);
        let mut lane = lane();
        // Nothing is ready: all of it is under way to a receiver that does not answer.
        lane.bytes = LANE_BYTES / 4;
        assert!(lane.admits(now, LANE_LIMIT));
        assert!(!lane.admits(now, LANE_LIMIT / 8));
        lane.bytes = 0;
        assert!(lane.admits(now, 1), "one delivery may always be under way");
        assert!(!lane.admits(now, 0));
    }

    #[test]
    fn a_lane_that_is_to_be_left_alone_for_long_keeps_nothing_new_in_memory() {
        let now = Timestamp::from_millis(1);
        let mut lane = lane();
        lane.paused_until = now + LONG_REST;
        assert!(lane.admits(now, LANE_LIMIT));
        lane.paused_until = now + LONG_REST * 2;
        assert!(!lane.admits(now, LANE_LIMIT));
        assert!(lane.next_load(ShardId(0), now, LANE_LIMIT).is_empty());
    }
}
