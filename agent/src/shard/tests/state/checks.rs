//! A crash, and what must hold of the lanes and of the store.

use super::*;

impl World {
    pub(super) fn crash(&mut self) {
        // Only what was under way, or delivered and not recorded, may come again.
        self.repeatable.append(&mut self.unrecorded);
        self.revision += 1;
        self.flights.clear();
        self.loads.clear();
        self.effects = Effects::default();
        self.state = State::new(SHARD, Revision(self.revision), SUSPEND_AFTER);
        self.epoch = Revision(self.revision);
        self.due.clear();
        let (progress, usage) = (self.stored_progress(), self.usage());
        let unfolded = progress.iter().flat_map(|progress| progress.usage.keys().cloned());
        let counts = Counts::new(usage, unfolded.collect());
        let segments = progress.map(|progress| {
            let mut segments = progress.segments;
            segments.retain(|key, _| self.store.contains_key(key));
            segments
        });
        self.progress = segments.clone().unwrap_or_default();
        let found = Found {
            progress: segments,
            counts,
        };
        self.book = Book::new(SHARD, Revision(self.revision), found);
        let keys: Vec<Key> = self.store.keys().cloned().collect();
        for key in &keys {
            if let Some(parked) = key::parse_parked(key) {
                let (hook, revision) = self.hooks.iter().find(|(hook, _)| hook.id == parked.webhook).unwrap();
                let known = Known::Found(Arc::new(hook.clone()), *revision);
                self.state.parked(&parked, Some(&known), self.now, &mut self.effects);
            }
        }
        let queue = keys
            .into_iter()
            .filter(|key| key.as_str().starts_with(key::queue(SHARD).as_str()));
        self.queue = queue.map(|key| (Revision(self.revision), key)).collect();
    }

    /// What holds after every step.
    pub(super) fn check_lanes(&self) {
        for lane in self.state.lanes() {
            let (hook, _) = self.hooks.iter().find(|(hook, _)| hook.id == lane.webhook).unwrap();
            assert!(lane.in_flight <= hook.max_in_flight.unwrap().get());
            assert!(lane.ready_len() <= LANE_LIMIT + WAIT_LIMIT + 16, "{}", lane.ready_len());
            assert!(lane.waiting_len() <= WAIT_LIMIT);
            if lane.is_held() {
                assert_eq!(lane.ready_len() + lane.waiting_len(), 0, "held in memory");
            }
        }
    }

    /// What holds whenever the store has changed.
    pub(super) fn check_store(&self) {
        self.check_counts();
        // Nothing is lost: what was accepted for a webhook that still exists was delivered, is dead, or waits in the store.
        let waiting = self.waiting();
        let alive: BTreeSet<String> = self.hooks.iter().map(|(hook, _)| hook.uid.to_string()).collect();
        for name in self.accepted.iter().filter(|name| alive.contains(&name.1)) {
            let ended = self.delivered.contains_key(name) || self.dead.contains(name);
            assert!(ended || waiting.contains_key(name), "{name:?} was lost");
        }
        // What the store still owes, it owes once.
        for (name, times) in waiting {
            assert_eq!(times, 1, "{name:?} waits {times} times");
            assert!(
                !self.dead.contains(&name) || self.repeatable.contains(&name),
                "{name:?} is dead and waits"
            );
        }
    }

    pub(super) fn stored_progress(&self) -> Option<stored::Progress> {
        let value = self.store.get(&key::progress(SHARD))?;
        Some(stored::decode_progress(value.clone()).unwrap())
    }

    /// What the store says became of the deliveries of each webhook.
    pub(super) fn usage(&self) -> BTreeMap<usage::Name, Usage> {
        let mut totals = self.stored_progress().unwrap_or_default().usage;
        for (key, value) in &self.store {
            if let Some(name) = key::parse_usage(key) {
                let usage = stored::decode_usage(value.clone()).unwrap();
                totals.entry(name).or_insert(usage);
            }
        }
        totals
    }

    /// The counts and the segments of the store tell the same.
    pub(super) fn check_counts(&self) {
        let (usage, parked) = (self.usage(), self.owed(|key| key::parse_parked(key).is_some()));
        let dead = self.owed(|key| key::parse_dead(key).is_some());
        let sum = |count: fn(&Usage) -> u64| usage.values().map(count).sum::<u64>();
        let ended = sum(|usage| usage.delivered + usage.dead + usage.dropped.iter().sum::<u64>());
        assert_eq!(sum(|usage| usage.taken), parked.len() as u64 + ended, "waiting");
        assert_eq!(sum(|usage| usage.dead), dead.len() as u64, "dead");
        let queued = self.owed(key::is_queued).len();
        assert_eq!(
            sum(|usage| usage.taken) + queued as u64,
            self.accepted.len() as u64,
            "accepted"
        );
        for (hook, _) in &self.hooks {
            let total = usage
                .get(&(account(), Some(hook.id.clone())))
                .cloned()
                .unwrap_or_default();
            if total.uid.as_ref().is_none_or(|uid| *uid != hook.uid) {
                continue;
            }
            let of =
                |names: &BTreeMap<Name, u32>| names.keys().filter(|name| name.1 == hook.uid.as_str()).count() as u64;
            assert_eq!(
                (total.waiting(), total.dead),
                (of(&parked), of(&dead)),
                "of {}",
                hook.id
            );
        }
    }

    /// What the store owes: every delivery in it whose bit is not set.
    pub(super) fn waiting(&self) -> BTreeMap<Name, u32> {
        self.owed(|key| key::is_queued(key) || key::parse_parked(key).is_some())
    }

    /// The deliveries of some segments whose bits are not set.
    pub(super) fn owed(&self, of: impl Fn(&Key) -> bool) -> BTreeMap<Name, u32> {
        let progress = self.stored_progress().unwrap_or_default().segments;
        let mut waiting = BTreeMap::new();
        for (key, value) in self.store.iter().filter(|(key, _)| of(key)) {
            let names = names(value);
            let done = Bits::read(
                progress.get(key).map_or(&[], |done| done),
                u32::try_from(names.len()).unwrap(),
            );
            for ((name, _), index) in names.into_iter().zip(0..) {
                if !done.get(index) {
                    *waiting.entry(name).or_default() += 1;
                }
            }
        }
        waiting
    }

    /// Receivers are well from now on: everything ends.
    pub(super) fn finish(&mut self) {
        for hook in 0..self.hooks.len() {
            if !self.hooks[hook].0.active {
                self.step(&Step::Toggle { hook });
            }
        }
        // One more record cleans up what a full store and a crash may have left of the progress.
        self.publish(1, 1);
        self.pump();
        for _ in 0..2000 {
            while !self.flights.is_empty() {
                self.end(0, 7);
                self.pump();
            }
            self.step(&Step::Write { refused: false });
            self.step(&Step::Read);
            let quiet = self.flights.is_empty() && self.book.pending() == 0 && self.loads.is_empty();
            if quiet && self.waiting().is_empty() {
                return;
            }
            if quiet {
                self.step(&Step::Pass { millis: 3_000 });
            }
        }
        panic!("it never ends: {:?}", self.store.keys().collect::<Vec<_>>());
    }
}
