//! Tests of ordered webhooks: random histories against a model of the store; the receiver judges.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_common::key::{self, Key, Parked};
use postrider_common::model::order::{OnFailure, Order, Ordering, Position};
use postrider_common::model::webhook::Webhook;
use postrider_common::retry;
use postrider_common::shard::ShardId;
use postrider_common::store::{Op, Revision};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;
use proptest::prelude::*;

use super::{BEGIN, account, event, segment, uid, webhook};
use crate::attempt::{Outcome, Reason};
use crate::limit::failing::SUSPEND_AFTER;
use crate::shard::delivery::{Destination, Effects, Known, Load, Place, Record, Source, SourceId};
use crate::shard::lane::LANE_LIMIT;
use crate::shard::ledger::batch::{self, Book, Found};
use crate::shard::order::Overrule;
use crate::shard::state::{AttemptId, Start, State};
use postrider_common::model::bits::Bits;

mod blocked;
mod dying;
mod replaced;
mod revived;
mod store;

const SHARD: ShardId = ShardId(3);

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// So many events; `keys` says of how many keys, and a few of none.
    Publish { events: usize, keys: u8 },
    /// So many segments of the queue are taken in.
    Take { segments: usize },
    /// The attempt at this place among those under way ends.
    End { which: usize, outcome: u8 },
    /// Time passes.
    Pass { millis: u64 },
    /// The ledger writes.
    Write,
    /// What was asked for is read.
    Read,
    /// The webhook is retired or activated.
    Toggle,
    /// The webhook is changed.
    Change { ordering: u8, on_failure: u8, most: u32 },
    /// Memory becomes scarce, or not.
    Allow { deliveries: usize },
    /// An administrator decides about what is blocked.
    Overrule { retry: bool },
    /// The agent dies, and another takes over from what the store holds.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (1_usize..30, 1_u8..6).prop_map(|(events, keys)| Step::Publish { events, keys }),
        1 => (300_usize..600, 1_u8..6).prop_map(|(events, keys)| Step::Publish { events, keys }),
        3 => (1_usize..3).prop_map(|segments| Step::Take { segments }),
        16 => (0_usize..64, 0_u8..12).prop_map(|(which, outcome)| Step::End { which, outcome }),
        5 => (0_u64..5_000).prop_map(|millis| Step::Pass { millis }),
        8 => Just(Step::Write),
        7 => Just(Step::Read),
        1 => Just(Step::Toggle),
        1 => (0_u8..3, 0_u8..4, 0_u32..6).prop_map(|(ordering, on_failure, most)| Step::Change { ordering, on_failure, most }),
        4 => prop_oneof![Just(1_usize), Just(4), Just(64), Just(LANE_LIMIT)].prop_map(|deliveries| Step::Allow { deliveries }),
        1 => any::<bool>().prop_map(|retry| Step::Overrule { retry }),
        3 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..120)
}

/// What was accepted.
struct Accepted {
    position: Position,
    key: Option<Arc<str>>,
    /// The change of the ordering after which it was accepted.
    era: u32,
    /// The change from or to no ordering after which it was accepted.
    keyed_era: u32,
}

struct World {
    now: Timestamp,
    revision: i64,
    events: usize,
    store: BTreeMap<Key, (Bytes, Revision)>,
    hook: Webhook,
    changed: Revision,
    era: u32,
    keyed_era: u32,
    accepted: BTreeMap<String, Accepted>,
    by_position: BTreeMap<Position, String>,
    /// Ended, as the agent that is alive knows.
    ended: BTreeSet<String>,
    /// Of these, what became a dead letter for its last attempt, and is not written yet: the next owner would send it.
    dying: BTreeSet<String>,
    delivered: BTreeMap<String, u32>,
    unrecorded: BTreeSet<String>,
    repeatable: BTreeSet<String>,
    /// Events by source and number there.
    members: HashMap<(SourceId, u32), String>,
    sizes: HashMap<SourceId, u32>,
    /// Some events expire, or are not to be sent before their time.
    timed: bool,
    /// Times that a delivery was written.
    moves: u64,
    state: State,
    effects: Effects,
    book: Book,
    flights: Vec<(AttemptId, Start)>,
    loads: Vec<Load>,
    progress: BTreeMap<Key, Bytes>,
    next_source: u64,
    epoch: Revision,
    queue: VecDeque<(Revision, Key)>,
    caught_up: bool,
    allowance: usize,
}

impl World {
    fn new(order: Order, most: u32) -> Self {
        let mut hook = webhook("a");
        hook.order = order;
        hook.batching.max_events = NonZeroU32::new(most);
        hook.max_in_flight = NonZeroU32::new(4);
        hook.retry = retry::Policy {
            max_attempts: NonZeroU32::new(2),
            ..hook.retry
        };
        Self {
            now: BEGIN,
            revision: 10,
            events: 0,
            store: BTreeMap::new(),
            hook,
            changed: Revision(1),
            era: 0,
            keyed_era: 0,
            accepted: BTreeMap::new(),
            by_position: BTreeMap::new(),
            ended: BTreeSet::new(),
            dying: BTreeSet::new(),
            delivered: BTreeMap::new(),
            unrecorded: BTreeSet::new(),
            repeatable: BTreeSet::new(),
            members: HashMap::new(),
            sizes: HashMap::new(),
            timed: true,
            moves: 0,
            state: State::new(SHARD, Revision(9), SUSPEND_AFTER),
            effects: Effects::default(),
            book: Book::new(SHARD, Revision(9), Found::default()),
            flights: Vec::new(),
            loads: Vec::new(),
            progress: BTreeMap::new(),
            next_source: 0,
            epoch: Revision(9),
            queue: VecDeque::new(),
            caught_up: false,
            allowance: LANE_LIMIT,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish { events, keys } => self.publish(*events, *keys),
            Step::Take { segments } => self.take(*segments),
            Step::End { which, outcome } => self.end(*which, *outcome),
            Step::Pass { millis } => {
                self.now = self.now + Duration::from_millis(*millis);
                self.state.tick(self.now, &mut self.effects);
            }
            Step::Write => self.write(),
            Step::Read => self.read(),
            Step::Toggle => {
                self.hook.active = !self.hook.active;
                self.change();
            }
            Step::Change {
                ordering,
                on_failure,
                most,
            } => self.reorder(*ordering, *on_failure, *most),
            Step::Allow { deliveries } => self.allow(*deliveries),
            Step::Overrule { retry } => self.overrule(*retry),
            Step::Crash => self.crash(),
        }
        self.pump();
        for lane in self.state.lanes() {
            let memory = lane.ready_len() + lane.waiting_len() + lane.order.as_ref().map_or(0, |order| order.memory());
            // What must be read though there is no room, since nothing could go otherwise, comes on top.
            assert!(memory <= 2 * LANE_LIMIT, "{memory} in memory");
        }
    }

    fn allow(&mut self, deliveries: usize) {
        self.allowance = deliveries;
        self.state.allow(deliveries);
    }

    fn publish(&mut self, events: usize, keys: u8) {
        self.revision += 1;
        let revision = Revision(self.revision);
        let mut published = Vec::new();
        for (index, number) in (0_u32..).zip(0..events) {
            self.events += 1;
            let mut event = (*event(&format!("e{}", self.events), self.now)).clone();
            event.expire_time = (self.timed && number % 16 == 9).then(|| self.now + Duration::from_secs(20));
            event.not_before_time = (self.timed && number % 23 == 7).then(|| self.now + Duration::from_secs(4));
            let key = self.events * 7 % (usize::from(keys) + 1);
            event.ordering_key = (key > 0).then(|| format!("k{key}").into());
            let position = Position { revision, index };
            let accepted = Accepted {
                position,
                key: event.ordering_key.clone(),
                era: self.era,
                keyed_era: self.keyed_era,
            };
            self.by_position.insert(position, event.id.to_string());
            self.accepted.insert(event.id.to_string(), accepted);
            published.push(Arc::new(event));
        }
        let mut segment = segment(published, &[("a", 1)], self.changed);
        segment.targets[0].webhook_uid = self.hook.uid.clone();
        let key = key::segment(SHARD, "w", u64::try_from(self.revision).unwrap());
        self.store.insert(key.clone(), (stored::pack(segment), revision));
        self.queue.push_back((revision, key));
    }

    fn take(&mut self, segments: usize) {
        for _ in 0..segments {
            let Some((revision, key)) = self.queue.pop_front() else {
                break;
            };
            self.take_in(key, Place::Queue(revision));
        }
        if self.queue.is_empty() && !self.caught_up {
            self.caught_up = true;
            self.state.queue_read(Revision(i64::MAX), self.now, &mut self.effects);
        }
    }

    fn take_in(&mut self, key: Key, place: Place) {
        let Some((value, _)) = self.store.get(&key).cloned() else {
            panic!("{key} is read, and is not there")
        };
        self.next_source += 1;
        let id = SourceId(self.next_source);
        let done = self.progress.remove(&key).unwrap_or_default();
        let segment = stored::unpack(value).unwrap();
        let mut index = 0;
        for delivery in segment.targets.iter().flat_map(|target| &target.deliveries) {
            let event = segment.events[delivery.event as usize].id.to_string();
            self.members.insert((id, index), event);
            index += 1;
        }
        self.sizes.insert(id, index);
        let source = Source::new(SHARD, self.epoch, id, key, place, segment, &done);
        let known = vec![Known::Found(Arc::new(self.hook.clone()), self.changed); source.targets.len()];
        self.state.loaded(source, &known, self.now, &mut self.effects);
        self.record();
    }

    fn read(&mut self) {
        for load in std::mem::take(&mut self.loads) {
            for parked in &load.segments {
                self.take_in(key::parked_segment(parked), Place::Parked);
            }
            self.state.load_over(&load, self.now, &mut self.effects);
        }
    }

    /// Takes what was decided.
    fn record(&mut self) {
        for record in self.effects.records.drain(..) {
            let mut end = |source: SourceId, index: u32| {
                self.ended.insert(self.members[&(source, index)].clone());
            };
            match &record {
                Record::Over { source, index, .. } => end(*source, *index),
                Record::Finished { source, .. } => {
                    let size = self.sizes[source];
                    (0..size).for_each(|index| end(*source, index));
                }
                Record::Moved(moved) if moved.to == Destination::Dead => {
                    end(moved.delivery.source, moved.delivery.index);
                }
                Record::Batch(batch) => {
                    self.moves += batch.deliveries.len() as u64;
                    batch.over.iter().for_each(|(source, index)| end(*source, *index));
                }
                Record::Moved(_) => self.moves += 1,
                Record::Open { .. }
                | Record::Discard(_)
                | Record::Note(..)
                | Record::Drop(_)
                | Record::Gone(..)
                | Record::Rewrite(_) => {}
            }
            self.book.add(record);
        }
        self.loads.append(&mut self.effects.loads);
    }

    /// Does what the shell does after every step.
    fn pump(&mut self) {
        self.record();
        while let Some(start) = self.state.start(self.now, true, &mut self.effects) {
            self.record();
            self.judge(&start);
            self.flights.push((start.attempt, start));
        }
        self.record();
    }

    /// The receiver sees a request.
    fn judge(&self, start: &Start) {
        assert!(self.hook.active, "sent to a webhook that is not active");
        for (place, event) in start.events.iter().enumerate() {
            let id = event.id.to_string();
            assert!(event.ready_time() <= self.now, "{id} was sent before its time");
            assert!(!self.ended.contains(&id), "{id} has ended, and is sent");
            let accepted = &self.accepted[&id];
            let before = self.by_position.range(..accepted.position).map(|(_, before)| before);
            for before in before.filter(|before| !self.ended.contains(*before) || self.dying.contains(*before)) {
                let same_key = accepted.key.is_some() && self.accepted[before].key == accepted.key;
                // The ordering may have been changed since.
                let (now, keyed) = (accepted.era == self.era, accepted.keyed_era == self.keyed_era);
                let same = match self.hook.order.ordering {
                    Ordering::None => false,
                    Ordering::Strict => now || keyed && same_key,
                    Ordering::PerKey => keyed && same_key,
                };
                let together = start.events[..place]
                    .iter()
                    .any(|event| event.id.as_str() == before.as_str());
                assert!(!same || together, "{id} was sent before {before} had ended");
            }
        }
    }

    fn end(&mut self, which: usize, outcome: u8) {
        if self.flights.is_empty() {
            return;
        }
        let (attempt, start) = self.flights.swap_remove(which % self.flights.len());
        let failed = |status, reason, retry_after| Outcome::Failed {
            reason,
            status: Some(status),
            retry_after,
        };
        let names: Vec<String> = start.events.iter().map(|event| event.id.to_string()).collect();
        let mut taken = BTreeSet::new();
        let outcome = match outcome {
            0..=2 => failed(400, Reason::Status, None),
            3 => failed(429, Reason::Throttled, Some(Duration::from_secs(3))),
            4 => Outcome::NotMade { why: "test".into() },
            5 if names.len() > 1 => {
                taken = names.iter().skip(1).step_by(2).cloned().collect();
                let failed = names.iter().filter(|name| !taken.contains(*name)).cloned().collect();
                Outcome::Partial { status: 207, failed }
            }
            _ => {
                taken = names.iter().cloned().collect();
                Outcome::Delivered { status: 200 }
            }
        };
        for name in taken {
            let times = self.delivered.entry(name.clone()).or_default();
            *times += 1;
            assert!(*times == 1 || self.repeatable.contains(&name), "{name} came twice");
            self.unrecorded.insert(name);
        }
        self.state.ended(attempt, outcome, self.now, 0.5, &mut self.effects);
        for record in &self.effects.records {
            if let Record::Moved(moved) = record
                && moved.to == Destination::Dead
            {
                self.dying.insert(moved.delivery.event.id.to_string());
            }
        }
    }

    fn change(&mut self) {
        self.hook.generation += 1;
        self.reconfigure();
    }

    fn reconfigure(&mut self) {
        self.revision += 1;
        self.changed = Revision(self.revision);
        let known = Known::Found(Arc::new(self.hook.clone()), self.changed);
        self.state
            .changed(&account(), &self.hook.id.clone(), &known, self.now, &mut self.effects);
    }

    fn reorder(&mut self, ordering: u8, on_failure: u8, most: u32) {
        let ordering = [Ordering::None, Ordering::PerKey, Ordering::Strict][usize::from(ordering)];
        let on_failure = [
            None,
            Some(OnFailure::DeadLetter),
            Some(OnFailure::Block),
            Some(OnFailure::ParkKey),
        ][usize::from(on_failure)];
        let order = Order { ordering, on_failure };
        let valid = match (ordering, on_failure) {
            (Ordering::None, Some(OnFailure::Block | OnFailure::ParkKey))
            | (Ordering::Strict, Some(OnFailure::ParkKey)) => false,
            (_, _) => ordering != Ordering::PerKey || most < 2,
        };
        if valid {
            if ordering != self.hook.order.ordering {
                self.era += 1;
                let none = [ordering, self.hook.order.ordering].contains(&Ordering::None);
                self.keyed_era += u32::from(none);
            }
            self.hook.order = order;
            self.hook.batching.max_events = NonZeroU32::new(most);
            self.change();
        }
    }

    fn overrule(&mut self, retry: bool) {
        let verdict = if retry { Overrule::Retry } else { Overrule::Cancel };
        for parked in self.parked() {
            self.state.overrule(&parked, verdict, self.now, &mut self.effects);
        }
    }

    fn parked(&self) -> Vec<Parked> {
        self.store.keys().filter_map(key::parse_parked).collect()
    }
}

fn orders() -> impl Strategy<Value = (Order, u32)> {
    prop_oneof![
        Just((Ordering::Strict, None, 0)),
        Just((Ordering::Strict, Some(OnFailure::DeadLetter), 1)),
        Just((Ordering::Strict, None, 7)),
        Just((Ordering::Strict, Some(OnFailure::DeadLetter), 5)),
        Just((Ordering::PerKey, None, 0)),
        Just((Ordering::PerKey, Some(OnFailure::DeadLetter), 0)),
        Just((Ordering::PerKey, Some(OnFailure::Block), 0)),
        Just((Ordering::None, None, 4)),
    ]
    .prop_map(|(ordering, on_failure, most)| (Order { ordering, on_failure }, most))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_event_is_sent_before_those_that_it_follows_have_ended((order, most) in orders(), steps in steps()) {
        let mut world = World::new(order, most);
        for step in &steps {
            world.step(step);
        }
        world.finish();
        prop_assert_eq!(world.state.in_flight(), 0);
        prop_assert_eq!(world.state.open_sources(), 0);
        prop_assert!(world.state.lanes().all(|lane| lane.breaker.streak().is_some() || lane.noted.is_some()), "a lane is left");
        prop_assert!(world.accepted.keys().all(|id| world.ended.contains(id)));
    }
}
