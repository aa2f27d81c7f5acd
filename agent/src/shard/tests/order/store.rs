//! What the ledger writes, and what a new owner finds.

use super::*;

impl World {
    pub(super) fn write(&mut self) {
        let Some(draft) = batch::draft(std::iter::once((1, &self.book)), self.now) else {
            return;
        };
        for op in &draft.write.ops {
            match op {
                Op::Put { key, value, .. } => {
                    self.revision += 1;
                    let news = self.store.insert(key.clone(), (value.clone(), Revision(self.revision)));
                    let again = *key == key::progress(SHARD) || key::parse_failing(key).is_some();
                    assert!(news.is_none() || again, "{key} was written twice");
                    if key::parse_dead(key).is_some() {
                        let dead = stored::unpack(value.clone()).unwrap();
                        for event in &dead.events {
                            self.dying.remove(event.id.as_str());
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

    pub(super) fn crash(&mut self) {
        self.repeatable.append(&mut self.unrecorded);
        self.dying.clear();
        self.flights.clear();
        self.loads.clear();
        self.effects = Effects::default();
        self.revision += 1;
        self.epoch = Revision(self.revision);
        self.state = State::new(SHARD, self.epoch, SUSPEND_AFTER);
        self.state.allow(self.allowance);
        let progress = self.store.get(&key::progress(SHARD));
        let progress = progress.map(|(value, _)| stored::decode_progress(value.clone()).unwrap().segments);
        let progress = progress.map(|mut progress| {
            progress.retain(|key, _| self.store.contains_key(key));
            progress
        });
        self.progress = progress.clone().unwrap_or_default();
        let found = Found {
            progress,
            ..Found::default()
        };
        self.book = Book::new(SHARD, self.epoch, found);
        // Ended is what the store does not owe: the next owner knows no better.
        let owed = self.owed();
        self.ended = self.accepted.keys().filter(|id| !owed.contains(*id)).cloned().collect();
        for parked in self.parked() {
            let known = Known::Found(Arc::new(self.hook.clone()), self.changed);
            self.state.parked(&parked, Some(&known), self.now, &mut self.effects);
        }
        let queue = self
            .store
            .iter()
            .filter(|(key, _)| key.as_str().starts_with(key::queue(SHARD).as_str()));
        let mut queue: Vec<_> = queue.map(|(key, (_, revision))| (*revision, key.clone())).collect();
        queue.sort();
        self.queue = queue.into();
        self.caught_up = false;
    }

    /// What the store owes: every delivery in it whose bit is not set. Each once.
    pub(super) fn owed(&self) -> BTreeSet<String> {
        let progress = self.store.get(&key::progress(SHARD));
        let progress = progress.map(|(value, _)| stored::decode_progress(value.clone()).unwrap().segments);
        let progress = progress.unwrap_or_default();
        let mut owed = BTreeSet::new();
        for (key, (value, _)) in &self.store {
            let is_work = key.as_str().starts_with(key::queue(SHARD).as_str()) || key::parse_parked(key).is_some();
            if !is_work {
                continue;
            }
            let segment = stored::unpack(value.clone()).unwrap();
            let done = progress.get(key).map_or(&[][..], |done| done);
            let done = Bits::read(done, u32::try_from(segment.delivery_count()).unwrap());
            let deliveries = segment.targets.iter().flat_map(|target| &target.deliveries);
            for (delivery, index) in deliveries.zip(0..) {
                let id = segment.events[delivery.event as usize].id.to_string();
                assert!(done.get(index) || owed.insert(id.clone()), "{id} waits twice");
            }
        }
        owed
    }

    /// Receivers are well from now on, and what was used up is tried again: everything ends.
    pub(super) fn finish(&mut self) {
        self.allow(LANE_LIMIT);
        if !self.hook.active {
            self.step(&Step::Toggle);
        }
        let (mut ended, mut idle) = (0, 0);
        // Longer than any retry and any pause of a breaker, in steps of three seconds.
        while idle < 60 {
            idle += 1;
            if self.ended.len() > ended {
                (ended, idle) = (self.ended.len(), 0);
            }
            self.step(&Step::Take { segments: 4 });
            while !self.flights.is_empty() {
                self.end(0, 7);
                self.pump();
            }
            self.step(&Step::Write);
            self.step(&Step::Read);
            let quiet = self.flights.is_empty() && self.book.pending() == 0 && self.loads.is_empty();
            if !quiet || !self.queue.is_empty() {
                continue;
            }
            if self.owed().is_empty() {
                return;
            }
            self.step(&Step::Pass { millis: 3_000 });
            if self.flights.is_empty() && self.loads.is_empty() && self.book.pending() == 0 {
                // What has expired blocks again: somebody has to give it up.
                self.step(&Step::Overrule { retry: false });
            }
        }
        panic!(
            "it never ends: {:?}, {:?}",
            self.store.keys().collect::<Vec<_>>(),
            self.state.lanes().collect::<Vec<_>>()
        );
    }
}

#[test]
fn what_is_parked_under_several_orders_and_written_at_once_goes_on() {
    for (first, between) in [(Ordering::Strict, 1), (Ordering::PerKey, 2)] {
        let order = Order {
            ordering: first,
            on_failure: Some(OnFailure::DeadLetter),
        };
        let mut world = World::new(order, 0);
        world.timed = false;
        world.step(&Step::Allow { deliveries: 1 });
        for ordering in [between, 3 - between, 3 - between] {
            world.publish(9, 2);
            world.step(&Step::Take { segments: 1 });
            world.step(&Step::Change {
                ordering,
                on_failure: 1,
                most: 0,
            });
        }
        world.finish();
    }
}
