//! The promises as predicates over what was seen. Pure, but for a look at what is left in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::FutureExt as _;
use postrider_common::key;
use postrider_common::store::memory::MemoryStore;
use postrider_common::store::{ListRequest, Store as _};

use crate::forms::{first_place, life_of, wants};
use crate::plan::{Order, Plan, Sharing};
use crate::sums::{self, count};
use crate::world::{Arrival, Life, Published, Seen};

/// How far a clock may be wrong, and a request be on its way.
const SLACK: Duration = Duration::from_millis(1_200);

/// What did not hold.
pub(crate) fn judge(plan: &Plan, seen: &Seen) -> Vec<String> {
    let mut wrong = seen.failures.clone();
    wrong.extend(seen.wrong_writes.iter().take(3).cloned());
    let hooks = hooks(plan, seen);
    for hook in &hooks {
        hook.only_what_was_published(&mut wrong);
        hook.proven(&mut wrong);
        hook.same_message_same_bytes(&mut wrong);
        hook.frozen(&mut wrong);
        hook.in_time(&mut wrong);
        hook.by_present_configuration(&mut wrong);
        hook.nothing_after_its_end(&mut wrong);
        hook.comes_from_its_owner(&mut wrong);
        hook.in_order(&mut wrong);
        hook.numbered(&mut wrong);
        if plan.gentle {
            hook.never_twice(&mut wrong);
        }
        // What did not come to its end says nothing of ends.
        if seen.failures.is_empty() && hook.life.ended.is_none() {
            hook.every_delivery_ended_once(&mut wrong);
        }
    }
    sums::in_one_life(&hooks, &mut wrong);
    // What did not come to its end says nothing of all.
    if seen.failures.is_empty() {
        sums::accepted_for_those_who_want_it(&hooks, seen, &mut wrong);
        sums::deleted_is_counted(&hooks, seen, &mut wrong);
    }
    wrong
}

/// All webhooks, in all their lives.
fn hooks<'a>(plan: &'a Plan, seen: &'a Seen) -> Vec<Hook<'a>> {
    let lives = seen.lives.iter().enumerate();
    let lives = lives.flat_map(|(number, lives)| lives.iter().enumerate().map(move |life| (number, life)));
    lives
        .map(|(number, (which, life))| {
            let ours = |arrival: &&Arrival| arrival.hook == number && life_of(arrival.place) == which;
            Hook {
                plan,
                seen,
                number,
                which,
                life,
                arrivals: seen.arrivals.iter().filter(ours).collect(),
            }
        })
        .collect()
}

/// Deliveries that a receiver took more than once.
pub(crate) fn repeats(seen: &Seen) -> usize {
    let mut times: BTreeMap<(usize, &str), usize> = BTreeMap::new();
    for arrival in &seen.arrivals {
        for event in &arrival.taken {
            *times.entry((arrival.hook, event)).or_default() += 1;
        }
    }
    times.values().map(|count| count - 1).sum()
}

/// What is left in the store although nothing waits.
pub(crate) fn leftovers(store: &MemoryStore) -> Vec<String> {
    let prefixes = [key::all_queues(), key::all_parked(), key::commands()];
    let mut left = Vec::new();
    for prefix in prefixes {
        let listing = ListRequest {
            prefix,
            after: None,
            limit: 3,
            revision: None,
            keys_only: true,
        };
        // The store in memory answers at once.
        if let Some(Ok(page)) = store.list(listing).now_or_never() {
            left.extend(
                page.entries
                    .into_iter()
                    .map(|entry| format!("{} is left in the store", entry.key)),
            );
        }
    }
    left
}

/// One webhook in one of its lives, as it is judged.
pub(crate) struct Hook<'a> {
    plan: &'a Plan,
    seen: &'a Seen,
    /// Its number.
    pub(crate) number: usize,
    which: usize,
    /// That life.
    pub(crate) life: &'a Life,
    /// What came for it.
    pub(crate) arrivals: Vec<&'a Arrival>,
}

impl Hook<'_> {
    fn form(&self) -> &crate::plan::Hook {
        &self.plan.hooks[self.number]
    }

    /// What its receiver took.
    pub(crate) fn taken(&self) -> BTreeSet<&str> {
        self.arrivals
            .iter()
            .flat_map(|arrival| arrival.taken.iter().map(String::as_str))
            .collect()
    }

    /// Whether an event may have been accepted for it: it wants it, and somebody may have known it while the event was being accepted.
    pub(crate) fn may_get(&self, event: &Published) -> bool {
        wants(self.form(), event)
            && event.told.is_none_or(|(told, _)| told >= self.life.asked)
            && self.life.ended.is_none_or(|ended| event.asked <= ended)
    }

    /// Whether an event was accepted for it: it wants it, and everybody knew it while the event was being accepted.
    pub(crate) fn surely_gets(&self, event: &Published) -> bool {
        let before = |end: Duration| event.told.is_some_and(|(told, _)| told <= end);
        self.may_get(event) && event.asked >= self.life.known && self.life.end_asked.is_none_or(before)
    }

    /// What was accepted for it.
    pub(crate) fn certain(&self) -> impl Iterator<Item = &Published> {
        self.seen.published.iter().filter(|event| self.surely_gets(event))
    }

    /// What was, or may have been.
    pub(crate) fn possible(&self) -> impl Iterator<Item = &Published> {
        let all = self.seen.published.iter().chain(&self.seen.doubtful);
        all.filter(|event| self.may_get(event))
    }

    fn is_dead(&self, event: &str) -> bool {
        self.seen.dead.get(self.number).is_some_and(|dead| dead.contains(event))
    }

    fn may_be_dropped(&self, event: &str) -> bool {
        self.seen.cancelled.contains(&(self.number, event.to_owned()))
    }

    fn only_what_was_published(&self, wrong: &mut Vec<String>) {
        if !self.seen.failures.is_empty() {
            return;
        }
        let known: BTreeSet<&str> = self.possible().map(|event| event.id.as_str()).collect();
        for arrival in &self.arrivals {
            if arrival.events.is_empty() || arrival.events.iter().any(|event| !known.contains(event.as_str())) {
                wrong.push(format!(
                    "w{} in life {} got {:?}, which was not published for it",
                    self.number, self.which, arrival.events
                ));
            }
        }
    }

    fn proven(&self, wrong: &mut Vec<String>) {
        for arrival in &self.arrivals {
            if let Err(why) = &arrival.proof {
                wrong.push(format!("w{} got {}: {why}", self.number, arrival.id));
            }
        }
    }

    fn same_message_same_bytes(&self, wrong: &mut Vec<String>) {
        let mut bodies = BTreeMap::new();
        for arrival in &self.arrivals {
            let first = bodies.entry(&arrival.id).or_insert(&arrival.body);
            if *first != &arrival.body {
                wrong.push(format!("w{}: {} came with other bytes", self.number, arrival.id));
            }
            if self.form().sharing == Sharing::Single && [&arrival.id] != arrival.events.iter().collect::<Vec<_>>()[..]
            {
                wrong.push(format!("w{}: {} holds {:?}", self.number, arrival.id, arrival.events));
            }
        }
    }

    /// What was sent together goes together, under one id, until some of it is taken.
    fn frozen(&self, wrong: &mut Vec<String>) {
        if self.seen.redriven.contains(&self.number) {
            return;
        }
        let mut last: BTreeMap<&str, &Arrival> = BTreeMap::new();
        for arrival in &self.arrivals {
            for event in &arrival.events {
                let before = last.insert(event, arrival);
                let Some(before) = before.filter(|before| before.id != arrival.id) else {
                    continue;
                };
                if before.taken.is_empty() || before.taken.len() == before.events.len() {
                    let (one, other) = (&before.id, &arrival.id);
                    wrong.push(format!("w{} got {event} in {one}, then in {other}", self.number));
                }
            }
        }
    }

    fn in_time(&self, wrong: &mut Vec<String>) {
        for event in self.possible() {
            for arrival in self
                .arrivals
                .iter()
                .filter(|arrival| arrival.events.contains(&event.id))
            {
                if event.not_before.is_some_and(|from| arrival.at + SLACK < from) {
                    wrong.push(format!("w{} got {} before its time", self.number, event.id));
                }
                // A batch that was made in time stays together.
                let single = self.form().sharing == Sharing::Single;
                if single && event.expires.is_some_and(|until| arrival.at > until + SLACK) {
                    wrong.push(format!("w{} got {} after its time", self.number, event.id));
                }
            }
        }
    }

    fn by_present_configuration(&self, wrong: &mut Vec<String>) {
        for span in self.seen.retired.iter().filter(|span| span.hook == self.number) {
            let within = |at: Duration| at > span.from && span.until.is_none_or(|until| at < until);
            if let Some(arrival) = self.arrivals.iter().find(|arrival| within(arrival.at)) {
                wrong.push(format!("w{} was retired and got {}", self.number, arrival.id));
            }
        }
        for span in self.seen.moved.iter().filter(|span| span.hook == self.number) {
            if let Some(arrival) = self
                .arrivals
                .iter()
                .find(|arrival| arrival.at > span.from && arrival.place == first_place(0))
            {
                wrong.push(format!(
                    "w{} had moved and got {} at the old place",
                    self.number, arrival.id
                ));
            }
        }
    }

    /// Nothing comes once it is known everywhere that it was deleted.
    fn nothing_after_its_end(&self, wrong: &mut Vec<String>) {
        let Some(ended) = self.life.ended else { return };
        if let Some(arrival) = self.arrivals.iter().find(|arrival| arrival.at > ended) {
            wrong.push(format!(
                "w{} was deleted and got {} at {:?}",
                self.number, arrival.id, arrival.at
            ));
        }
    }

    /// Nothing comes from an agent after another has taken the shard.
    fn comes_from_its_owner(&self, wrong: &mut Vec<String>) {
        let Some(shard) = self.seen.shards.get(self.number) else {
            return;
        };
        let takes: Vec<_> = self.seen.takes.iter().filter(|(_, taken, _)| taken == shard).collect();
        // What was sent before may still have been on its way.
        let way = self.plan.latency * 2 + Duration::from_millis(50);
        for arrival in &self.arrivals {
            let owner = takes
                .iter()
                .rev()
                .find(|(at, ..)| *at + way < arrival.at)
                .map(|(.., by)| *by);
            let later = takes
                .iter()
                .filter(|(at, ..)| *at + way >= arrival.at && *at <= arrival.at);
            let owners = owner.into_iter().chain(later.map(|(.., by)| *by));
            if owner.is_some() && !owners.into_iter().any(|owner| Some(owner) == arrival.from) {
                wrong.push(format!(
                    "w{} got {} from {:?}, which does not own {shard}, at {:?}",
                    self.number, arrival.id, arrival.from, arrival.at
                ));
            }
        }
    }

    /// The lines of events of which one must follow the other.
    fn lines(&self) -> Vec<Vec<&Published>> {
        let mut lines: BTreeMap<(usize, &str), Vec<&Published>> = BTreeMap::new();
        for event in self.seen.published.iter().filter(|event| self.may_get(event)) {
            // Each key is one publisher's, which publishes one request after the other.
            let line = match self.form().order {
                Order::None => continue,
                Order::PerKey if event.key.is_empty() => continue,
                Order::PerKey => (event.publisher, event.key.as_str()),
                Order::Strict => (event.publisher, ""),
            };
            lines.entry(line).or_default().push(event);
        }
        lines.into_values().collect()
    }

    fn in_order(&self, wrong: &mut Vec<String>) {
        // What had ended goes again, before what has come since.
        if self.seen.redriven.contains(&self.number) {
            return;
        }
        // Its dead letters went with it: which they were is not known.
        if self.life.ended.is_some() && self.form().dead_letters {
            return;
        }
        for line in self.lines() {
            let place: BTreeMap<&str, usize> = line
                .iter()
                .enumerate()
                .map(|(at, event)| (event.id.as_str(), at))
                .collect();
            // Whether the latest arrival of each event of the line was taken; none: it has not come.
            let mut latest: Vec<Option<bool>> = vec![None; line.len()];
            let ended = |before: &str| self.is_dead(before) || self.may_be_dropped(before);
            for arrival in &self.arrivals {
                let mut together: Vec<usize> = Vec::new();
                for event in &arrival.events {
                    let Some(&at) = place.get(event.as_str()) else { continue };
                    let open = (0..at).find(|before| {
                        latest[*before] != Some(true)
                            && !together.contains(before)
                            && self.surely_gets(line[*before])
                            && !ended(&line[*before].id)
                    });
                    if let Some(before) = open {
                        let late = &line[before].id;
                        wrong.push(format!(
                            "w{} got {event} before {late} had ended, at {:?}",
                            self.number, arrival.at
                        ));
                    }
                    together.push(at);
                }
                for at in together {
                    latest[at] = Some(arrival.taken.contains(&line[at].id));
                }
            }
        }
    }

    fn numbered(&self, wrong: &mut Vec<String>) {
        if !self.form().numbered {
            return;
        }
        let mut numbers: BTreeMap<&str, u64> = BTreeMap::new();
        for arrival in &self.arrivals {
            let (Some(event), Some(number)) = (arrival.events.first(), arrival.sequence) else {
                wrong.push(format!("w{}: {} has no number", self.number, arrival.id));
                continue;
            };
            if *numbers.entry(event).or_insert(number) != number {
                wrong.push(format!("w{}: {event} has two numbers", self.number));
            }
        }
        let distinct: BTreeSet<u64> = numbers.values().copied().collect();
        let all = self.possible().count();
        if distinct.len() != numbers.len() || distinct.iter().any(|number| *number == 0 || *number > all as u64) {
            wrong.push(format!(
                "w{}: the numbers are {distinct:?} of {} events",
                self.number,
                numbers.len()
            ));
        }
    }

    fn never_twice(&self, wrong: &mut Vec<String>) {
        let mut taken = BTreeSet::new();
        for arrival in &self.arrivals {
            for event in &arrival.taken {
                if !taken.insert(event) {
                    wrong.push(format!(
                        "w{} got {event} again at {:?}, without a reason",
                        self.number, arrival.at
                    ));
                }
            }
        }
    }

    fn every_delivery_ended_once(&self, wrong: &mut Vec<String>) {
        let number = self.number;
        let taken = self.taken();
        let counts = &self.seen.counts[number];
        let dead = &self.seen.dead[number];
        for event in self.certain() {
            if !taken.contains(event.id.as_str()) && !self.is_dead(&event.id) && !self.may_be_dropped(&event.id) {
                wrong.push(format!("w{number} never got {}", event.id));
            }
        }
        let least = count(self.certain().count());
        let most = count(self.possible().count());
        if !(least..=most).contains(&counts.accepted) {
            wrong.push(format!(
                "w{number}: {least} to {most} events were accepted, and {} are counted",
                counts.accepted
            ));
        }
        if count(dead.len()) != counts.dead {
            wrong.push(format!(
                "w{number}: {} dead letters are listed, and {} are counted",
                dead.len(),
                counts.dead
            ));
        }
        let cancelled = self.seen.cancelled.iter().filter(|(hook, _)| *hook == number).count();
        if counts.dropped > count(cancelled) {
            wrong.push(format!(
                "w{number}: {} were dropped, and {cancelled} were to be",
                counts.dropped
            ));
        }
        // An answer that was lost can make a dead letter of what was taken, never the other way around.
        if counts.delivered > count(taken.len()) {
            wrong.push(format!(
                "w{number}: {} are counted as delivered, and it took {}",
                counts.delivered,
                taken.len()
            ));
        }
    }
}
