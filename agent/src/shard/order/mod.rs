//! The order of one webhook's deliveries: which may be sent now, and which wait for which. Pure.
//!
//! Deliveries stand in *lines*: under STRICT all of a webhook in one, under PER_KEY those of a key. The first of a line may be sent when it is known that
//! nothing before it is anywhere: in memory, under way, on its way into the store, in the store, or still in the queue.
//!
//! ```text
//!   queue, parked ──▶ arrived ──▶ line: behind ──▶ lane: ready ──▶ attempt ──▶ ended: the next of the line
//!                        │ not before         ▲                       │
//!                        ▼ the gate           └── read when it is     ▼ failed
//!                  (all that stands before                its turn ── index: parked, by line and position
//!                   it has arrived, or is
//!                   known in a line)
//! ```
//!
//! What finds no room is parked: under STRICT in its line, under PER_KEY in the *stream*, segments of all keys in the order of acceptance. A key
//! whose first delivery waits, for a retry or because it was used up, is set aside: what follows goes into segments of its own, which nobody reads before their
//! turn. Positions are compared everywhere, and nothing follows from where a delivery lies: memory holds any part of a line.
//!
//! *Earlier* ones were parked before the webhook had this order: they go first, when they are due; what was accepted since waits.

mod index;
mod moving;
mod reading;
mod turns;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use postrider_common::model::order::{Line, OnFailure, Ordering, Position, stage};
use postrider_common::model::webhook::Webhook;
use postrider_common::planted::{self, Bug};
use postrider_common::store::Revision;
use postrider_common::time::Timestamp;

use self::index::{Index, position};
use self::moving::Moving;
use super::delivery::{Delivery, SourceId};
use super::entry::Entry;
use super::lane::LONG_REST;

pub use self::reading::Room;

/// Where a delivery stands in memory: the members of a batch stand together, at the place of the first.
type Slot = (Position, SourceId, u32);

/// What an administrator wants to become of a delivery that was used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overrule {
    /// To be tried again, by a fresh policy.
    Retry,
    /// To be dropped.
    Cancel,
}

/// The deliveries of one line, as far as they are not parked.
#[derive(Debug, Default)]
struct Waiting {
    /// The first is ready, or under way.
    busy: bool,
    /// Where the one stands that was ready last.
    at: Position,
    behind: BTreeMap<Slot, Delivery>,
    moving: Moving,
}

impl Waiting {
    /// The first of the line, in memory or moving.
    fn first(&self) -> Option<Position> {
        let behind = self.behind.first_key_value().map(|(slot, _)| slot.0);
        let busy = self.busy.then_some(self.at);
        [behind, busy, self.moving.first()].into_iter().flatten().min()
    }
}

/// The order of one webhook.
#[derive(Debug)]
pub struct Order {
    ordering: Ordering,
    on_failure: OnFailure,
    stage: u64,
    serial: u32,
    /// Deliveries in memory that are not ready.
    memory: usize,
    /// Read, but something before them may be unknown yet.
    arrived: BTreeMap<Slot, Delivery>,
    lines: HashMap<Line, Waiting>,
    index: Index,
    earlier: BTreeSet<(Position, Entry)>,
    /// The last of the earlier ones that arrived.
    last_earlier: Position,
    /// Segments that are being read; they stay in the index until all of them has arrived.
    reading: BTreeSet<Entry>,
    /// Lines that go on at a certain time.
    dues: BTreeSet<(Timestamp, Line)>,
    /// Lines that go on when the gate is there.
    gated: BTreeSet<(Position, Line)>,
    /// Lines of which a segment is to be read.
    wanted: VecDeque<Line>,
    /// Lines to be looked at.
    touched: VecDeque<Line>,
    /// Attempts under way, deliveries moving, and dead letters that are not written, since before there was this order; and whether something of then is
    /// being read.
    strays: u32,
    stray_moving: u32,
    stray_dying: usize,
    stray_first: Option<Position>,
    stray_reading: bool,
    /// Dead letters on their way into the index, and whether more may come.
    reviving: u32,
    redriving: bool,
    /// Used up, and on their way into the index.
    blocking: usize,
    overruled: BTreeMap<Position, Overrule>,
    /// What was overruled and is still to be read.
    decided: VecDeque<Entry>,
    /// The source of the batch that arrived last, and its place.
    last_batch: Option<(SourceId, Position)>,
}

/// What is left of a time without this order.
#[derive(Debug, Clone, Copy)]
pub struct Strays {
    /// Attempts under way.
    pub in_flight: u32,
    /// Deliveries on their way into the index.
    pub moving: u32,
    /// The first of those, if that is known.
    pub first: Option<Position>,
    /// Dead letters that are not written.
    pub dying: usize,
    /// Parked segments are being read.
    pub reading: bool,
}

impl Order {
    /// The order of `webhook`, of which nothing is known yet. `serial` tells it from those before.
    pub fn new(webhook: &Webhook, serial: u32, strays: Strays) -> Self {
        let mut order = Self {
            ordering: webhook.order.ordering,
            on_failure: webhook.order.on_failure(),
            stage: 0,
            serial,
            memory: 0,
            arrived: BTreeMap::new(),
            lines: HashMap::new(),
            index: Index::default(),
            earlier: BTreeSet::new(),
            last_earlier: Position::default(),
            reading: BTreeSet::new(),
            dues: BTreeSet::new(),
            gated: BTreeSet::new(),
            wanted: VecDeque::new(),
            touched: VecDeque::new(),
            strays: strays.in_flight,
            stray_moving: strays.moving,
            stray_dying: strays.dying,
            stray_first: strays.first,
            stray_reading: strays.reading,
            reviving: 0,
            redriving: false,
            blocking: 0,
            overruled: BTreeMap::new(),
            decided: VecDeque::new(),
            last_batch: None,
        };
        order.renew(webhook);
        order
    }

    /// The webhook has changed, but not its ordering, or is another one of the same name: what was used up before goes on.
    pub fn renew(&mut self, webhook: &Webhook) {
        self.on_failure = webhook.order.on_failure();
        let stage = stage(&webhook.uid, webhook.generation);
        if self.stage != stage {
            self.stage = stage;
            self.blocking = 0;
            self.overruled.clear();
            self.decided.clear();
            self.touched.extend(self.index.renew(stage));
        }
    }

    /// Which order it is.
    pub const fn ordering(&self) -> Ordering {
        self.ordering
    }

    /// Tells it from those that the lane had before.
    pub const fn serial(&self) -> u32 {
        self.serial
    }

    /// The stage of the webhook.
    pub const fn stage(&self) -> u64 {
        self.stage
    }

    /// Requests under way at once, of `most` that the webhook allows.
    pub const fn most(&self, most: u32) -> u32 {
        match self.ordering {
            Ordering::Strict => 1,
            Ordering::None | Ordering::PerKey => most,
        }
    }

    /// A delivery that was used up holds up the whole webhook.
    pub const fn is_blocked(&self) -> bool {
        matches!(self.on_failure, OnFailure::Block) && self.index.blocked() + self.blocking > 0
    }

    /// The line that a delivery stands in. A batch that was made under another order holds up what follows, as if its line were all there is.
    fn line_of(&self, delivery: &Delivery) -> Line {
        match self.ordering {
            Ordering::PerKey if delivery.batch.is_none() => Line::of(&delivery.event),
            Ordering::PerKey | Ordering::Strict | Ordering::None => Line::STRICT,
        }
    }

    /// Where a delivery goes that finds no room.
    pub fn spill(&self, delivery: &Delivery) -> Line {
        match self.ordering {
            Ordering::PerKey if delivery.batch.is_none() => Line::STREAM,
            Ordering::PerKey | Ordering::Strict | Ordering::None => Line::STRICT,
        }
    }

    /// Whether segments of this line are parked under this order.
    fn is_own(&self, line: Line) -> bool {
        (self.ordering == Ordering::Strict) == (line == Line::STRICT)
    }

    /// Something is not written that was handed to the ledger before there was this order.
    const fn has_strays_in_ledger(&self) -> bool {
        self.stray_moving > 0 || self.stray_dying > 0
    }

    /// Something is left that was parked before there was this order.
    fn waits_for_earlier(&self) -> bool {
        !self.earlier.is_empty()
            || self.has_strays_in_ledger()
            || self.reviving > 0
            || self.redriving
            || self.ordering == Ordering::PerKey && self.lines.contains_key(&Line::STRICT)
    }

    /// Everything before this position is known: it has ended, or stands in a line.
    fn gate(&self, read_to: Revision) -> Position {
        let mut gate = Position::after(read_to);
        if let Some(first) = self.first_stored(Line::STREAM) {
            gate = gate.min(first);
        }
        if self.waits_for_earlier() {
            gate = gate.min(self.last_earlier.next());
            // Those that were parked under another order keep what is common to both.
            let lined = (Position::default().next(), Entry::default());
            let first = self.earlier.range(lined..).next().map(|(first, _)| *first);
            let stray = self.stray_first.filter(|_| self.has_strays_in_ledger());
            let batch = self
                .lines
                .get(&Line::STRICT)
                .filter(|_| self.ordering == Ordering::PerKey);
            let batch = batch.and_then(Waiting::first).map(Position::next);
            gate = [first, stray, batch].into_iter().flatten().fold(gate, Position::min);
        }
        gate
    }

    /// The first delivery of a line that is in the store, or on its way there.
    fn first_stored(&self, line: Line) -> Option<Position> {
        let parked = self.index.first(line).map(|(at, _)| at);
        let moving = self.lines.get(&line).and_then(|waiting| waiting.moving.first());
        [parked, moving].into_iter().flatten().min()
    }

    /// Where a delivery of the queue is to be parked; `None` if it may stay in memory. `room` is what there is of it.
    pub fn overflow(&self, delivery: &Delivery, now: Timestamp, room: &Room) -> Option<Line> {
        let spill = self.spill(delivery);
        if self.waits_for_earlier() {
            return Some(spill);
        }
        let before = |first: Position| first <= delivery.state.position;
        if spill == Line::STREAM && self.first_stored(spill).is_some_and(before) {
            return Some(spill);
        }
        let line = self.line_of(delivery);
        if self.is_set_aside(line) || delivery.state.due > now + LONG_REST {
            return Some(line);
        }
        if self.takes_too_much(line, room) {
            return Some(line);
        }
        (!room.has(self.memory + 1)).then_some(spill)
    }

    /// The line must not take the room of others: it has an eighth, or its first delivery waits for a retry and half of all is taken.
    fn takes_too_much(&self, line: Line, room: &Room) -> bool {
        let behind = self.lines.get(&line).map_or(0, |waiting| waiting.behind.len());
        self.ordering == Ordering::PerKey && behind * 8 >= room.limit
            || self.first_stored(line).is_some() && !room.has(self.memory * 2 + 1)
    }

    /// What follows in this line goes into the store: its first delivery was used up, or others wait there that come after what is in memory.
    fn is_set_aside(&self, line: Line) -> bool {
        let waiting = self.lines.get(&line);
        let mut parked = self.index.of(line);
        let (first, last) = (parked.next(), parked.next_back());
        if first.is_some_and(|first| self.index.is_blocked(first)) {
            return true;
        }
        let moving = waiting.and_then(|waiting| waiting.moving.last());
        let last = [last.or(first).map(position), moving].into_iter().flatten().max();
        let behind = waiting.and_then(|waiting| waiting.behind.last_key_value());
        match (last, behind) {
            (None, _) => false,
            (Some(last), Some((slot, _))) => last > slot.0,
            // The one that all others wait for may be alone there.
            (Some(last), None) => self.first_stored(line).is_some_and(|first| last > first),
        }
    }

    /// Where a delivery that was read from `from` is to be parked again: it is not its turn for long. `None` if it may stay in memory.
    pub fn set_aside(&self, delivery: &Delivery, from: Option<Line>, now: Timestamp, room: &Room) -> Option<Line> {
        let line = self.line_of(delivery);
        let aside = from == Some(Line::STREAM) && (self.is_set_aside(line) || self.takes_too_much(line, room));
        (delivery.batch.is_none() && (aside || delivery.state.due > now + LONG_REST)).then_some(line)
    }

    /// A delivery is in memory from now on. `earlier`: it was parked before there was this order.
    pub fn arrive(&mut self, delivery: Delivery, earlier: bool) {
        let mut at = delivery.state.position;
        if delivery.batch.is_some() {
            match self.last_batch.filter(|(source, _)| *source == delivery.source) {
                Some((_, first)) => at = first,
                None => self.last_batch = Some((delivery.source, at)),
            }
        }
        if earlier {
            self.last_earlier = self.last_earlier.max(at);
        }
        self.memory += 1;
        self.arrived.insert((at, delivery.source, delivery.index), delivery);
    }

    /// A delivery that was ready, or under way, is not any more.
    pub fn free(&mut self, delivery: &Delivery) {
        let line = self.line_of(delivery);
        if let Some(waiting) = self.lines.get_mut(&line) {
            waiting.busy = false;
        }
        self.touched.push_back(line);
    }

    /// An attempt ended that began under the order of that serial, or none.
    pub fn ended(&mut self, serial: Option<u32>, delivery: &Delivery) {
        if serial == Some(self.serial) {
            self.free(delivery);
        } else {
            self.strays = self.strays.saturating_sub(1);
        }
    }

    /// A delivery is handed to the ledger, to be parked in its own line.
    pub fn park(&mut self, delivery: &Delivery) -> Line {
        let line = self.line_of(delivery);
        if !planted::is(Bug::LineGoesOn) {
            self.moves(line, delivery.state.position);
        }
        line
    }

    /// A delivery is handed to the ledger, to be parked in this line.
    pub fn moves(&mut self, line: Line, at: Position) {
        self.lines.entry(line).or_default().moving.push(at);
    }

    /// A delivery is handed to the ledger as a dead letter: its line, which waits until that is written.
    pub fn bury(&mut self, delivery: &Delivery) -> Line {
        let line = self.line_of(delivery);
        self.moves(line, delivery.state.position);
        line
    }

    /// The one that this line has waited for longest is written.
    pub fn buried(&mut self, line: Line) {
        if let Some(waiting) = self.lines.get_mut(&line) {
            waiting.moving.pop(1);
        }
        self.touched.push_back(line);
    }

    /// One is written that was handed over before there was this order.
    pub const fn stray_buried(&mut self) {
        self.stray_dying = self.stray_dying.saturating_sub(1);
    }

    /// Dead letters are handed to the ledger: once they are parked they go like those from before this order.
    pub fn reviving(&mut self, count: u32) {
        if planted::is(Bug::RevivedTakenForOwn) {
            self.stray_moving += count;
            return;
        }
        self.reviving += count;
    }

    /// Whether dead letters are being redriven: what was accepted waits for those that are still to come.
    pub const fn redriving(&mut self, redriving: bool) {
        self.redriving = redriving;
    }

    /// What a used-up delivery holds up is to wait: the stage to be noted with it. `None` if it becomes a dead letter.
    pub fn blocks(&self, delivery: &Delivery) -> Option<u64> {
        let keyed = delivery.event.ordering_key.is_some() && delivery.batch.is_none();
        match self.on_failure {
            OnFailure::DeadLetter => None,
            OnFailure::Block => Some(self.stage),
            OnFailure::ParkKey => keyed.then_some(self.stage),
        }
    }

    /// A delivery, or a batch, that was used up is about to be parked: the webhook waits from now on.
    pub const fn block(&mut self) {
        self.blocking += 1;
    }

    /// Takes out of memory what stands behind `delivery`, if it is to be `blocked` or takes more than half of the room.
    pub fn evict(&mut self, delivery: &Delivery, blocked: bool, room: &Room) -> Vec<Delivery> {
        if !blocked && room.has(self.memory * 2) {
            return Vec::new();
        }
        let line = self.line_of(delivery);
        let Some(waiting) = self.lines.get_mut(&line) else {
            return Vec::new();
        };
        let mut evicted: Vec<Delivery> = std::mem::take(&mut waiting.behind).into_values().collect();
        if self.ordering == Ordering::Strict {
            evicted.extend(std::mem::take(&mut self.arrived).into_values());
        }
        self.memory -= evicted.len();
        evicted
    }

    /// Takes everything out of memory that is not ready, in order.
    pub fn drain(&mut self) -> Vec<Delivery> {
        let mut all = std::mem::take(&mut self.arrived);
        for waiting in self.lines.values_mut() {
            all.append(&mut waiting.behind);
        }
        self.memory = 0;
        all.into_values().collect()
    }

    /// The first of the deliveries on their way into the index.
    pub fn first_moving(&self) -> Option<Position> {
        let stray = self.stray_first.filter(|_| self.has_strays_in_ledger());
        let own = self.lines.values().filter_map(|waiting| waiting.moving.first());
        own.chain(stray).min()
    }

    /// Nothing is left of it.
    pub fn is_empty(&self) -> bool {
        self.memory == 0 && self.lines.is_empty() && self.index.is_empty() && self.earlier.is_empty()
    }

    /// Deliveries in memory that are not ready.
    pub const fn memory(&self) -> usize {
        self.memory
    }
}
