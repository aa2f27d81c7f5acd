//! Tests of the state with the ledger's transactions: random histories against a model of the store.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_common::key::{self, Key, ParkedKind};
use postrider_common::model::batching::{Batching, Mode};
use postrider_common::model::segment::Event;
use postrider_common::model::usage::{self, Usage};
use postrider_common::model::webhook::Webhook;
use postrider_common::shard::ShardId;
use postrider_common::store::{Op, Revision};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;
use proptest::prelude::*;

use super::{BEGIN, account, event, segment, uid, webhook};
use crate::attempt::{Outcome, Reason};
use crate::limit::failing::SUSPEND_AFTER;
use crate::shard::delivery::{Effects, Known, Load, Place, Record, Source, SourceId};
use crate::shard::lane::{LANE_LIMIT, WAIT_LIMIT};
use crate::shard::ledger::batch::{self, Book, Found};
use crate::shard::ledger::counts::Counts;
use crate::shard::state::{AttemptId, NOT_MADE_PAUSE, Start, State};
use postrider_common::model::bits::Bits;

mod checks;
mod lanes;

const SHARD: ShardId = ShardId(3);
const HOOKS: [&str; 3] = ["a", "b", "c"];

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// So many events for the webhooks whose bits are set; every fourth expires soon.
    Publish { events: usize, hooks: u8 },
    /// The attempt at this place among those under way ends.
    End { which: usize, outcome: u8 },
    /// Time passes.
    Pass { millis: u64 },
    /// The ledger writes; every so often its draft is refused and drawn up anew.
    Write { refused: bool },
    /// What was asked for is read.
    Read,
    /// A webhook is retired or activated.
    Toggle { hook: usize },
    /// A webhook is deleted and made anew.
    Replace { hook: usize },
    /// The agent dies, and another takes over from what the store holds.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1_usize..40, 1_u8..8).prop_map(|(events, hooks)| Step::Publish { events, hooks }),
        1 => (400_usize..700, 1_u8..8).prop_map(|(events, hooks)| Step::Publish { events, hooks }),
        12 => (0_usize..64, 0_u8..8).prop_map(|(which, outcome)| Step::End { which, outcome }),
        4 => (0_u64..5_000).prop_map(|millis| Step::Pass { millis }),
        6 => any::<bool>().prop_map(|refused| Step::Write { refused }),
        5 => Just(Step::Read),
        1 => (0_usize..3).prop_map(|hook| Step::Toggle { hook }),
        1 => (0_usize..3).prop_map(|hook| Step::Replace { hook }),
        2 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A delivery, as the model names it: event, and the uid of the webhook it is for.
type Name = (String, String);

struct World {
    now: Timestamp,
    revision: i64,
    events: usize,
    store: BTreeMap<Key, Bytes>,
    hooks: Vec<(Webhook, Revision)>,
    next_uid: u32,
    accepted: BTreeSet<Name>,
    delivered: BTreeMap<Name, u32>,
    /// Delivered, but not yet recorded: may be repeated after a crash.
    unrecorded: BTreeSet<Name>,
    dead: BTreeSet<Name>,
    repeatable: BTreeSet<Name>,
    due: BTreeMap<Name, Timestamp>,
    state: State,
    effects: Effects,
    book: Book,
    flights: Vec<(AttemptId, Start)>,
    divided: BTreeSet<Name>,
    /// Under which id a delivery was sent: always the same, unless the receiver took others of the request and not this one.
    ids: BTreeMap<Name, Arc<str>>,
    /// What was sent under an id: always the same.
    members: BTreeMap<(Arc<str>, String), Vec<Name>>,
    loads: Vec<Load>,
    progress: BTreeMap<Key, Bytes>,
    next_source: u64,
    epoch: Revision,
    queue: Vec<(Revision, Key)>,
}

impl World {
    fn new() -> Self {
        let hooks = HOOKS.iter().zip(1..).map(|(id, number)| {
            let mut hook = webhook(id);
            hook.uid = uid(number);
            hook.max_in_flight = NonZeroU32::new(number * 2);
            // The first sends one event a request, the second what waits together, the third batches.
            hook.batching = match number {
                1 => Batching::default(),
                2 => Batching {
                    max_events: NonZeroU32::new(5),
                    ..Batching::default()
                },
                _ => Batching {
                    mode: Mode::Batch,
                    max_events: NonZeroU32::new(30),
                    max_delay: Some(Duration::from_secs(3)),
                    ..Batching::default()
                },
            };
            (hook, Revision(i64::from(number)))
        });
        Self {
            now: BEGIN,
            revision: 10,
            events: 0,
            store: BTreeMap::new(),
            hooks: hooks.collect(),
            next_uid: 10,
            accepted: BTreeSet::new(),
            delivered: BTreeMap::new(),
            unrecorded: BTreeSet::new(),
            dead: BTreeSet::new(),
            repeatable: BTreeSet::new(),
            due: BTreeMap::new(),
            state: State::new(SHARD, Revision(9), SUSPEND_AFTER),
            effects: Effects::default(),
            book: Book::new(SHARD, Revision(9), Found::default()),
            flights: Vec::new(),
            divided: BTreeSet::new(),
            ids: BTreeMap::new(),
            members: BTreeMap::new(),
            loads: Vec::new(),
            progress: BTreeMap::new(),
            next_source: 0,
            epoch: Revision(9),
            queue: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish { events, hooks } => self.publish(*events, *hooks),
            Step::End { which, outcome } => self.end(*which, *outcome),
            Step::Pass { millis } => {
                self.now = self.now + Duration::from_millis(*millis);
                self.state.tick(self.now, &mut self.effects);
            }
            Step::Write { refused } => self.write(*refused),
            Step::Read => self.read(),
            Step::Toggle { hook } => {
                self.revision += 1;
                let (hook, revision) = &mut self.hooks[*hook];
                hook.active = !hook.active;
                *revision = Revision(self.revision);
                let known = Known::Found(Arc::new(hook.clone()), *revision);
                self.state
                    .changed(&account(), &hook.id, &known, self.now, &mut self.effects);
            }
            Step::Replace { hook } => self.replace(*hook),
            Step::Crash => self.crash(),
        }
        self.pump();
        self.check_lanes();
        if matches!(step, Step::Write { .. } | Step::Crash) {
            self.check_store();
        }
    }

    fn publish(&mut self, events: usize, mask: u8) {
        self.revision += 1;
        let events: Vec<_> = (0..events)
            .map(|number| {
                self.events += 1;
                let mut event = (*event(&format!("e{}", self.events), self.now)).clone();
                event.expire_time = (number % 4 == 3).then(|| self.now + Duration::from_secs(20));
                event.not_before_time = (number % 5 == 4).then(|| self.now + Duration::from_secs(4));
                Arc::new(event)
            })
            .collect();
        let wanted = self.hooks.iter().enumerate().filter(|(at, _)| mask & (1 << at) != 0);
        let mut targets = Vec::new();
        for (_, (hook, revision)) in wanted {
            for event in &events {
                self.accepted.insert((event.id.to_string(), hook.uid.to_string()));
            }
            let mut one = segment(events.clone(), &[(hook.id.as_str(), 1)], *revision).targets;
            one[0].webhook_uid = hook.uid.clone();
            targets.append(&mut one);
        }
        let key = key::segment(SHARD, "w", u64::try_from(self.revision).unwrap());
        let value = stored::pack(postrider_common::model::segment::Segment {
            events,
            targets,
            batch: None,
        });
        self.store.insert(key.clone(), value);
        self.queue.push((Revision(self.revision), key));
    }

    fn names(start: &Start) -> Vec<Name> {
        let name = |event: &Arc<Event>| (event.id.to_string(), start.webhook.uid.to_string());
        start.events.iter().map(name).collect()
    }

    fn end(&mut self, which: usize, outcome: u8) {
        if self.flights.is_empty() {
            return;
        }
        let (attempt, start) = self.flights.swap_remove(which % self.flights.len());
        let failed = |reason, retry_after| Outcome::Failed {
            reason,
            status: Some(500),
            retry_after,
        };
        let names = Self::names(&start);
        let mut left: BTreeSet<&Name> = names.iter().collect();
        let outcome = match outcome {
            0 => failed(Reason::Status, None),
            1 => failed(Reason::Throttled, Some(Duration::from_secs(3))),
            2 => Outcome::NotMade { why: "test".into() },
            3 if names.len() > 1 => {
                left = names.iter().step_by(2).collect();
                let failed = left.iter().map(|name| name.0.clone()).collect();
                Outcome::Partial { status: 207, failed }
            }
            _ => {
                left.clear();
                Outcome::Delivered { status: 200 }
            }
        };
        for name in names.iter().filter(|name| !left.contains(name)) {
            *self.delivered.entry(name.clone()).or_default() += 1;
            assert!(
                self.delivered[name] == 1 || self.repeatable.contains(name),
                "{name:?} came twice"
            );
            self.unrecorded.insert(name.clone());
        }
        for name in left {
            // No attempt before half of the first delay.
            let pause = match &outcome {
                Outcome::NotMade { .. } => NOT_MADE_PAUSE,
                Outcome::Delivered { .. } | Outcome::Partial { .. } | Outcome::Failed { .. } => {
                    Duration::from_millis(499)
                }
            };
            self.due.insert(name.clone(), self.now + pause);
            if matches!(outcome, Outcome::Partial { .. }) {
                self.ids.remove(name);
                // Until it is written that others were taken, all may come again under the old id.
                self.divided.insert(name.clone());
            }
        }
        self.state.ended(attempt, outcome, self.now, 0.999, &mut self.effects);
    }

    fn replace(&mut self, hook: usize) {
        self.revision += 1;
        let gone = Known::Absent(Revision(self.revision));
        let name = self.hooks[hook].0.id.clone();
        self.state
            .changed(&account(), &name, &gone, self.now, &mut self.effects);
        self.revision += 1;
        self.next_uid += 1;
        self.hooks[hook].0.uid = uid(self.next_uid);
        self.hooks[hook].1 = Revision(self.revision);
        let known = Known::Found(Arc::new(self.hooks[hook].0.clone()), Revision(self.revision));
        self.state
            .changed(&account(), &name, &known, self.now, &mut self.effects);
    }

    /// Does what the shell does after every step.
    fn pump(&mut self) {
        for (revision, key) in std::mem::take(&mut self.queue) {
            self.take_in(key, Place::Queue(revision));
        }
        while let Some(start) = self.state.start(self.now, true, &mut self.effects) {
            let names = Self::names(&start);
            let hook = self.hooks.iter().find(|(hook, _)| hook.id == start.webhook.id).unwrap();
            assert!(
                hook.0.active && hook.0.uid == start.webhook.uid,
                "sent to a webhook that is not active"
            );
            assert!(names.len() <= hook.0.batching.coalesced_events());
            for event in &start.events {
                assert!(event.ready_time() <= self.now, "{} was sent before its time", event.id);
            }
            for name in &names {
                assert!(
                    self.due.get(name).is_none_or(|due| *due <= self.now),
                    "{name:?} was sent too early"
                );
                let id = self.ids.entry(name.clone()).or_insert_with(|| start.id.clone());
                assert!(
                    *id == start.id || self.divided.contains(name),
                    "{name:?} was sent as {id}, and as {}",
                    start.id
                );
            }
            let divided = names.iter().any(|name| self.divided.contains(name));
            let members = self
                .members
                .entry((start.id.clone(), start.webhook.uid.to_string()))
                .or_insert_with(|| names.clone());
            assert!(*members == names || divided, "{} had other members before", start.id);
            if names.len() == 1 && hook.0.batching == Batching::default() {
                let expires = start.events[0].expire_time;
                assert!(expires.is_none_or(|expires| expires > self.now), "expired, and sent");
            }
            assert!(start.events[0].event_info.is_some());
            assert!(start.number <= 5, "beyond the policy");
            self.flights.push((start.attempt, start));
        }
        for record in self.effects.records.drain(..) {
            self.book.add(record);
        }
        self.loads.append(&mut self.effects.loads);
    }

    fn take_in(&mut self, key: Key, place: Place) {
        let Some(value) = self.store.get(&key).cloned() else {
            return;
        };
        self.next_source += 1;
        let done = self.progress.remove(&key).unwrap_or_default();
        let segment = stored::unpack(value).unwrap();
        let source = Source::new(
            SHARD,
            self.epoch,
            SourceId(self.next_source),
            key,
            place,
            segment,
            &done,
        );
        let known = |origin: &crate::shard::delivery::Origin| {
            let (hook, revision) = self.hooks.iter().find(|(hook, _)| hook.id == origin.webhook).unwrap();
            if hook.uid == origin.uid {
                Known::Found(Arc::new(hook.clone()), *revision)
            } else {
                Known::Replaced
            }
        };
        let known: Vec<Known> = source.targets.iter().map(|target| known(&target.origin)).collect();
        self.state.loaded(source, &known, self.now, &mut self.effects);
        // At once: a source must be open before anything of it is recorded.
        for record in self.effects.records.drain(..) {
            self.book.add(record);
        }
    }

    fn read(&mut self) {
        for load in std::mem::take(&mut self.loads) {
            for parked in &load.segments {
                let early = matches!(parked.kind, ParkedKind::Gathering(_));
                assert!(parked.due <= self.now || early, "read before anything is due");
                self.take_in(key::parked_segment(parked), Place::Parked);
            }
            self.state.load_over(&load, self.now, &mut self.effects);
        }
    }

    fn write(&mut self, refused: bool) {
        let books = || std::iter::once((1, &self.book));
        let Some(draft) = batch::draft(books(), self.now) else {
            return;
        };
        if refused {
            // Drawn up again it is the same: nothing of it was taken for done.
            let again = batch::draft(books(), self.now).unwrap();
            assert_eq!(draft.write, again.write);
        }
        assert!(draft.write.ops.len() <= batch::DRAFT_OPS);
        postrider_common::store::check(&draft.write).unwrap();
        self.apply(draft);
    }

    fn apply(&mut self, draft: batch::Draft) {
        for op in &draft.write.ops {
            match op {
                Op::Put { key, value, .. } => {
                    let news = self.store.insert(key.clone(), value.clone()).is_none();
                    let again = *key == key::progress(SHARD)
                        || key::parse_failing(key).is_some()
                        || key::parse_usage(key).is_some();
                    assert!(news || again, "{key} was written twice");
                    if key::parse_dead(key).is_some() {
                        for (name, state) in names(value) {
                            assert!(!state.reason.is_empty());
                            assert!(
                                self.dead.insert(name.clone()) || self.repeatable.contains(&name),
                                "{name:?} died twice"
                            );
                        }
                    }
                }
                Op::Delete { key } => drop(self.store.remove(key)),
            }
        }
        for part in &draft.parts {
            batch::settle(&mut self.book, part);
            self.state.written(&part.landed, self.now, &mut self.effects);
        }
        if self.book.pending() == 0 && self.effects.records.is_empty() {
            self.unrecorded.clear();
        }
    }
}

fn names(value: &Bytes) -> Vec<(Name, postrider_common::model::segment::DeliveryState)> {
    let segment = stored::unpack(value.clone()).unwrap();
    let mut names = Vec::new();
    for target in segment.targets {
        for delivery in target.deliveries {
            let event = segment.events[delivery.event as usize].id.to_string();
            names.push(((event, target.webhook_uid.to_string()), delivery.state));
        }
    }
    names
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_delivery_ends_once_and_the_store_owes_exactly_what_has_not_ended(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.finish();
        prop_assert_eq!(world.state.in_flight(), 0);
        prop_assert_eq!(world.state.open_sources(), 0);
        // Those that failed last are remembered.
        prop_assert!(world.state.lanes().all(|lane| lane.breaker.streak().is_some() || lane.noted.is_some()));
        let kept = |key: &Key| {
            let counts = *key == key::progress(SHARD) || key::parse_usage(key).is_some();
            counts || key::parse_dead(key).is_some() || key::parse_failing(key).is_some()
        };
        prop_assert!(world.stored_progress().unwrap_or_default().segments.is_empty());
        prop_assert!(world.store.keys().all(kept), "{:?}", world.store.keys().collect::<Vec<_>>());
        let ended: BTreeSet<_> = world.delivered.keys().chain(&world.dead).cloned().collect();
        let alive: BTreeSet<String> = world.hooks.iter().map(|(hook, _)| hook.uid.to_string()).collect();
        for name in world.accepted.iter().filter(|name| alive.contains(&name.1)) {
            prop_assert!(ended.contains(name), "{:?}", name);
        }
    }
}
