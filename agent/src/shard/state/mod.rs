//! What a worker knows and decides: lanes, attempts under way, what to record, what to read, when to look again. Pure.
//!
//! Every delivery that was loaded ends exactly once for its source, with one record: over (delivered, dropped) or moved (parked, dead).

mod batch;
pub mod marks;
mod numbers;
mod ordered;
mod outcome;
mod runnable;
mod start;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key::{self, Parked};
use postrider_common::model::history::Fate;
use postrider_common::model::usage::Dropped;
use postrider_common::shard::ShardId;
use postrider_common::store::Revision;
use postrider_common::time::Timestamp;

use self::marks::{Mark, Marks};
use self::start::Flight;
pub use self::start::Start;
use self::{numbers::Numbers, runnable::Runnable};
use crate::shard::counters::Tally;
use crate::shard::delivery::{
    Delivery, Destination, Effects, End, Known, Load, Moved, Place, Record, Source, SourceId,
};
use crate::shard::lane::{Config, LANE_LIMIT, Lane};
use crate::shard::ledger::batch::Landed;

/// How long a lane rests after an attempt that could not be made: what is missing (a lease, a file descriptor, a name server) rarely comes back faster.
pub const NOT_MADE_PAUSE: Duration = Duration::from_millis(500);

/// Why an event died that was not worth sending any more.
pub const EXPIRED: &str = "EXPIRED";

/// Why an event died that had waited longer than its webhook's policy allows.
pub const AGE: &str = "AGE";

/// Names an attempt while it is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(usize);

/// The state of one worker.
pub struct State {
    shard: ShardId,
    lanes: Vec<Option<Lane>>,
    vacant_lanes: Vec<usize>,
    by_webhook: BTreeMap<(AccountId, WebhookId), usize>,
    runnable: Runnable,
    alarms: BTreeSet<(Timestamp, usize)>,
    flights: Vec<Option<Flight>>,
    vacant_flights: Vec<usize>,
    in_flight: usize,
    allowance: usize,
    epoch: Revision,
    batches: u64,
    suspend_after: Duration,
    numbers: Numbers,
    marks: Marks,
    /// Webhooks of which dead letters are being redriven.
    redriven: BTreeSet<(AccountId, WebhookId)>,
    /// The queue was read up to this revision.
    read_to: Revision,
    /// Ordered lanes that go on when the queue was read up to there.
    awaiting: BTreeSet<(Revision, usize)>,
    /// Deliveries of each source that have not ended. Never iterated: its order means nothing.
    open: HashMap<SourceId, usize>,
    /// What happened since the shell last took it.
    pub tally: Tally,
}

impl State {
    /// The state of a worker that has just taken `shard`.
    pub fn new(shard: ShardId, epoch: Revision, suspend_after: Duration) -> Self {
        Self {
            shard,
            lanes: Vec::new(),
            vacant_lanes: Vec::new(),
            by_webhook: BTreeMap::new(),
            runnable: Runnable::default(),
            alarms: BTreeSet::new(),
            flights: Vec::new(),
            vacant_flights: Vec::new(),
            in_flight: 0,
            allowance: LANE_LIMIT,
            epoch,
            batches: 0,
            suspend_after,
            numbers: Numbers::default(),
            marks: Marks::new(),
            redriven: BTreeSet::new(),
            read_to: Revision::default(),
            awaiting: BTreeSet::new(),
            open: HashMap::new(),
            tally: Tally::default(),
        }
    }

    /// Attempts under way.
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Sources with deliveries that have not ended.
    pub fn open_sources(&self) -> usize {
        self.open.len()
    }

    /// When time alone will change something.
    pub fn next_alarm(&self) -> Option<Timestamp> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// Whether there is a lane for a webhook.
    pub fn has_lane(&self, name: &(AccountId, WebhookId)) -> bool {
        self.by_webhook.contains_key(name)
    }

    /// The lanes, for those who look but do not touch.
    pub fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().flatten()
    }

    /// A parked segment was found when the shard was taken.
    pub fn parked(&mut self, parked: &Parked, known: Option<&Known>, now: Timestamp, effects: &mut Effects) {
        let at = self.index(parked, known, effects);
        self.settle(at, now, effects);
    }

    /// This worker's ledger wrote these segments: all that one transaction wrote, or several.
    pub fn written(&mut self, landed: &Landed, now: Timestamp, effects: &mut Effects) {
        let parked = landed.parked.iter().map(|parked| self.index(parked, None, effects));
        let mut lanes: BTreeSet<usize> = parked.collect();
        for dead in &landed.dead {
            let at = self.lane_of(&dead.account, &dead.webhook);
            if let Some(lane) = self.lane(at) {
                lane.buried(dead.count);
            }
            lanes.insert(at);
        }
        // Only now: between two segments of a transaction an ordered lane does not know what has moved where.
        for at in lanes {
            self.settle(at, now, effects);
        }
    }

    /// Adds a parked segment to the index of its lane, and says which that is.
    fn index(&mut self, parked: &Parked, known: Option<&Known>, effects: &mut Effects) -> usize {
        let at = self.lane_of(&parked.account, &parked.webhook);
        let shard = self.shard;
        let Some(lane) = self.lane(at) else { return at };
        lane.moving = lane.moving.saturating_sub(parked.count);
        if let Some(known) = known {
            lane.learn(known);
        }
        // Its line waits for it no more, whatever becomes of it.
        lane.park(parked);
        if matches!(lane.config, Config::Gone(_)) {
            // Written by us before we knew: everything in it matched a configuration that is over.
            let parked = lane.drain_parked(shard);
            self.drop_parked(parked, effects);
        }
        at
    }

    fn drop_parked(&mut self, all: Vec<Parked>, effects: &mut Effects) {
        for parked in all {
            self.tally.dropped += u64::from(parked.count);
            effects.records.push(Record::Drop(Box::new(parked)));
        }
    }

    /// How many ready deliveries a lane may have from now on (see [`Lane::admits`]); at first [`LANE_LIMIT`].
    pub const fn allow(&mut self, allowance: usize) {
        self.allowance = allowance;
    }

    /// A segment was read; those of the queue come in their order. `known` says what is known about each of its targets' webhooks.
    pub fn loaded(&mut self, source: Source, known: &[Known], now: Timestamp, effects: &mut Effects) {
        let count: usize = source.targets.iter().map(|target| target.deliveries.len()).sum();
        if count > 0 {
            self.open.insert(source.id, count);
        }
        effects.records.push(Record::Open {
            source: source.id,
            key: source.key.clone(),
            done: source.done,
        });
        for (target, known) in source.targets.into_iter().zip(known) {
            if matches!(known, Known::Replaced) {
                for delivery in target.deliveries {
                    self.abandon(&delivery, effects);
                }
                continue;
            }
            let at = self.lane_of(&target.origin.account, &target.origin.webhook);
            if let Some(lane) = self.lane(at) {
                lane.learn(known);
            }
            let ordered = self.ordered_from(at, source.place, &source.key);
            let deliveries = self.expedite(at, target.deliveries, source.place, ordered, now, effects);
            for delivery in deliveries {
                match (known, ordered) {
                    (Known::Absent(_) | Known::Replaced, _) => self.abandon(&delivery, effects),
                    (Known::Found(..) | Known::Unreadable, None) => {
                        self.place(at, delivery, source.place, now, effects);
                    }
                    (Known::Found(..) | Known::Unreadable, Some(from)) => {
                        self.place_ordered(at, delivery, from, now, effects);
                    }
                }
            }
            self.enforce(at, now, effects);
            self.settle(at, now, effects);
        }
        if let Place::Queue(revision) = source.place {
            self.queue_read(revision, now, effects);
        }
    }

    /// All that could be read of a [`Load`] was given to [`State::loaded`].
    pub fn load_over(&mut self, load: &Load, now: Timestamp, effects: &mut Effects) {
        let Some(first) = load.segments.first() else { return };
        let at = self.lane_of(&first.account, &first.webhook);
        if let Some(lane) = self.lane(at) {
            lane.load_over(&load.segments);
        }
        self.settle(at, now, effects);
    }

    /// A webhook was changed or deleted.
    pub fn changed(
        &mut self,
        account: &AccountId,
        webhook: &WebhookId,
        known: &Known,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        let Some(at) = self.by_webhook.get(&(account.clone(), webhook.clone())).copied() else {
            return;
        };
        let Some(lane) = self.lane(at) else { return };
        // Of a webhook never seen only parked keys are known, which may be of a later one than the mirror's: reading them will tell.
        if matches!((&lane.config, known), (Config::Unknown, Known::Absent(_))) {
            return;
        }
        lane.learn(known);
        self.enforce(at, now, effects);
        self.settle(at, now, effects);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Timestamp, effects: &mut Effects) {
        while let Some(&(at, lane)) = self.alarms.first() {
            if at > now {
                break;
            }
            self.alarms.pop_first();
            if let Some(lane) = self.lane(lane) {
                lane.alarm = None;
            }
            self.settle(lane, now, effects);
        }
    }

    /// Puts a delivery that was read where it belongs.
    fn place(&mut self, at: usize, mut delivery: Delivery, place: Place, now: Timestamp, effects: &mut Effects) {
        let allowance = self.allowance;
        if self.obey(&mut delivery, now) == Some(Mark::Cancel) {
            return self.cancel(&delivery, now, effects);
        }
        let gathers = self.gathers(at, &delivery, now);
        let Some(lane) = self.lane(at) else { return };
        if matches!(lane.config, Config::Gone(_)) {
            return self.abandon(&delivery, effects);
        }
        if delivery.state.blocked != 0 {
            // It was used up while the webhook had an order.
            ordered::renew(&mut delivery, now);
        }
        if let Some(due) = gathers {
            // What was just accepted waits in the store like the others, even if it is due: so batches are made of all that waits.
            let back = match place {
                Place::Parked if !lane.is_held() => lane.gather(delivery, due, now),
                Place::Parked | Place::Queue(_) => Some(delivery),
            };
            if let Some(delivery) = back {
                self.park_gathering(at, delivery, due, effects);
            }
            return;
        }
        if matches!(place, Place::Queue(_)) && lane.numbers() {
            delivery.state.due = delivery.state.due.max(now).max(delivery.event.earliest());
            delivery.state.sequence = self.numbers.next(&delivery.origin);
            return self.park(at, delivery, effects);
        }
        let fits = match place {
            Place::Queue(_) => {
                delivery.state.due = delivery.state.due.max(now).max(delivery.event.earliest());
                // What is not to be sent yet waits in the store.
                delivery.state.due <= now && lane.admits(now, allowance)
            }
            Place::Parked => !lane.is_held(),
        };
        if delivery.batch.is_some() {
            // A batch was read whole, and is due.
            lane.push_ready(delivery);
        } else if !fits {
            self.park(at, delivery, effects);
        } else if delivery.state.due <= now {
            lane.push_ready(delivery);
        } else if let Some(delivery) = lane.wait(delivery) {
            self.park(at, delivery, effects);
        }
    }

    /// Empties a lane whose webhook sends nothing any more.
    fn enforce(&mut self, at: usize, now: Timestamp, effects: &mut Effects) {
        let shard = self.shard;
        let Some(lane) = self.lane(at) else { return };
        if !lane.is_held() {
            return;
        }
        let gone = matches!(lane.config, Config::Gone(_));
        if gone && lane.noted.take().is_some() {
            let key = key::failing_of(shard, &lane.account, &lane.webhook);
            effects.records.push(Record::Discard(key));
        }
        let in_memory = lane.drain();
        let parked = if gone { lane.drain_parked(shard) } else { Vec::new() };
        if gone {
            for delivery in &in_memory {
                self.abandon(delivery, effects);
            }
        } else {
            self.put_away(at, in_memory, now, effects);
        }
        self.drop_parked(parked, effects);
    }

    fn park(&mut self, at: usize, delivery: Delivery, effects: &mut Effects) {
        let order = self.lane(at).and_then(|lane| lane.order.as_mut());
        let line = order.map(|order| order.park(&delivery));
        let to = line.map_or(Destination::Parked, Destination::Ordered);
        self.park_at(at, to, delivery, effects);
    }

    fn park_at(&mut self, at: usize, to: Destination, delivery: Delivery, effects: &mut Effects) {
        if let Some(lane) = self.lane(at) {
            lane.moving += 1;
        }
        self.tally.parked += 1;
        self.moved(at, to, delivery, effects);
    }

    /// It dies without an attempt. Nothing waits until that is written: whoever came after this agent would not send it either, since it is too late.
    fn die(&mut self, at: usize, delivery: Delivery, reason: &'static str, now: Timestamp, effects: &mut Effects) {
        effects.history.open(delivery.entry(now, None));
        effects.history.carry(delivery.carried(Fate::Dead(reason.into())));
        if let Some(lane) = self.lane(at) {
            lane.dies(None);
        }
        self.dead(at, delivery, reason, now, effects);
    }

    /// It dies of its last attempt. Until that is written it may be sent again, if this agent dies: what follows it waits.
    fn bury(&mut self, at: usize, delivery: Delivery, reason: &str, now: Timestamp, effects: &mut Effects) {
        if let Some(lane) = self.lane(at) {
            lane.dies(Some(&delivery));
        }
        self.dead(at, delivery, reason, now, effects);
    }

    fn dead(&mut self, at: usize, mut delivery: Delivery, reason: &str, now: Timestamp, effects: &mut Effects) {
        reason.clone_into(&mut delivery.state.reason);
        delivery.state.due = now;
        self.tally.dead += 1;
        self.moved(at, Destination::Dead, delivery, effects);
    }

    fn moved(&mut self, at: usize, to: Destination, delivery: Delivery, effects: &mut Effects) {
        self.close(delivery.source);
        let orders = self.lane(at).map_or(0, |lane| lane.orders());
        let moved = Moved { to, orders, delivery };
        effects.records.push(Record::Moved(Box::new(moved)));
    }

    /// Somebody cancelled it.
    fn cancel(&mut self, delivery: &Delivery, now: Timestamp, effects: &mut Effects) {
        self.tally.dropped += 1;
        effects.history.open(delivery.entry(now, None));
        let why = Dropped::Cancelled.as_str().into();
        effects.history.carry(delivery.carried(Fate::Dropped(why)));
        self.over(delivery, End::Dropped(Dropped::Cancelled), effects);
    }

    /// Its webhook was deleted.
    fn abandon(&mut self, delivery: &Delivery, effects: &mut Effects) {
        self.tally.dropped += 1;
        self.over(delivery, End::Dropped(Dropped::WebhookDeleted), effects);
    }

    fn over(&mut self, delivery: &Delivery, end: End, effects: &mut Effects) {
        self.close(delivery.source);
        effects.freed += delivery.bytes;
        effects.records.push(Record::Over {
            source: delivery.source,
            index: delivery.index,
            origin: delivery.origin.clone(),
            end,
        });
    }

    fn close(&mut self, source: SourceId) {
        if let Some(left) = self.open.get_mut(&source) {
            *left -= 1;
            if *left == 0 {
                self.open.remove(&source);
            }
        }
    }

    fn lane(&mut self, at: usize) -> Option<&mut Lane> {
        self.lanes.get_mut(at)?.as_mut()
    }

    fn lane_of(&mut self, account: &AccountId, webhook: &WebhookId) -> usize {
        let name = (account.clone(), webhook.clone());
        if let Some(at) = self.by_webhook.get(&name) {
            return *at;
        }
        let mut lane = Lane::new(account.clone(), webhook.clone());
        if self.runnable.recalls(&name) {
            lane.breaker.trust();
        }
        let lane = Some(lane);
        let at = self.vacant_lanes.pop().unwrap_or(self.lanes.len());
        match self.lanes.get_mut(at) {
            Some(slot) => *slot = lane,
            None => self.lanes.push(lane),
        }
        self.by_webhook.insert(name, at);
        at
    }

    /// Draws the consequences after anything changed in a lane.
    fn settle(&mut self, at: usize, now: Timestamp, effects: &mut Effects) {
        let (shard, allowance) = (self.shard, self.allowance);
        let Some(lane) = self.lanes.get_mut(at).and_then(Option::as_mut) else {
            return;
        };
        lane.promote(now);
        if lane.order.is_some() {
            self.settle_order(at, now, effects);
        }
        let Some(lane) = self.lane(at) else { return };
        let segments = lane.next_load(shard, now, allowance);
        if !segments.is_empty() {
            effects.loads.push(Load { segments });
        }
        self.make_batches(at, now, effects);
        let Some(lane) = self.lanes.get_mut(at).and_then(Option::as_mut) else {
            return;
        };
        if !lane.queued && lane.can_start(now) {
            lane.queued = true;
            self.runnable.push(at, lane.breaker.is_proven());
        }
        let alarm = lane.next_alarm(now);
        if alarm != lane.alarm {
            if let Some(old) = lane.alarm {
                self.alarms.remove(&(old, at));
            }
            if let Some(new) = alarm {
                self.alarms.insert((new, at));
            }
            lane.alarm = alarm;
        }
        if lane.is_idle() {
            let name = (lane.account.clone(), lane.webhook.clone());
            self.runnable.remember(&name, lane.breaker.is_proven());
            self.by_webhook.remove(&name);
            if let Some(slot) = self.lanes.get_mut(at) {
                *slot = None;
            }
            self.vacant_lanes.push(at);
        }
    }
}
