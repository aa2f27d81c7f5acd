//! Judges a run by what its publishers, its receiver and the API said: what was lost, came twice, out of order or changed, and what was counted wrongly. Pure.
//!
//! It knows nothing of how Postrider works, only what it promises, and is given no more than what somebody outside can see.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// Microseconds since the run began.
pub type Micros = u64;

/// The number of an event, in the order of publishing; what a run's other parts name it by.
pub type Number = u32;

/// How many offences of one kind are shown.
const EXAMPLES: usize = 10;

/// All that is known of a run.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// The webhooks.
    pub webhooks: Vec<Webhook>,
    /// For each kind of event the webhooks that want it.
    pub kinds: Vec<Vec<usize>>,
    /// The publishers' log: every event that was to be published, by number. Events that one ordered webhook wants were published one request after the
    /// other, in this order.
    pub events: Vec<Event>,
    /// The receiver's log, in the order of arrival.
    pub arrivals: Vec<Arrival>,
    /// Requests that named no webhook or no event of this run.
    pub strangers: usize,
    /// What was done to the system.
    pub faults: Vec<Fault>,
    /// How long what a receiver answered may stay unrecorded while nothing is wrong.
    pub unrecorded: Micros,
}

/// What is promised to a webhook, and what the API says of it.
#[derive(Debug, Clone, Default)]
pub struct Webhook {
    /// Its id.
    pub id: String,
    /// Which order it keeps.
    pub order: Order,
    /// Its counts by `GetAccountUsage`, when all was quiet.
    pub counts: Counts,
    /// Its dead letters by `ListDeadLetters`.
    pub dead: BTreeSet<Number>,
}

/// Which order a webhook keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// None.
    #[default]
    None,
    /// That of each key.
    PerKey,
    /// That of all events.
    Strict,
}

/// What became of a webhook's deliveries, as the API counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accepted.
    pub accepted: u64,
    /// Taken by the receiver.
    pub delivered: u64,
    /// Not ended.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
    /// Dropped, for whatever reason.
    pub dropped: u64,
}

/// An event that was to be published.
#[derive(Debug, Clone, Copy, Default)]
pub struct Event {
    /// Its kind.
    pub kind: u16,
    /// Its ordering key; 0 is none.
    pub key: u16,
    /// When its publish was answered OK; `None` if never: then it may or may not be stored.
    pub accepted: Option<Micros>,
}

/// A request as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Which webhook it was for.
    pub webhook: u16,
    /// Which event it carried.
    pub event: Number,
    /// When its last byte had arrived.
    pub at: Micros,
    /// Whether it was answered with a 2xx.
    pub taken: bool,
    /// Whether its signature was right, and its data what was published.
    pub genuine: bool,
    /// A hash of its body.
    pub body: u64,
    /// Who sent it, as far as that can be told: by its network address.
    pub sender: Sender,
}

/// Who sent a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Sender {
    /// One of the programs that run beside the test.
    #[default]
    Here,
    /// The one in a network namespace.
    Namespace,
}

/// Something that was done to the system, and may be the cause of repeats.
#[derive(Debug, Clone)]
pub struct Fault {
    /// To whom: `agent`, `etcd`.
    pub victim: &'static str,
    /// When what was answered might no longer be recorded.
    pub from: Micros,
    /// When all that had lost its owner by it had another, or the end of the run.
    pub to: Micros,
    /// How many repeats it may cause: the requests that could be under way, and what could be unrecorded.
    pub repeats: usize,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Events that were to be published.
    pub published: usize,
    /// Events whose publish was answered OK.
    pub accepted: usize,
    /// Deliveries that these cause.
    pub deliveries: usize,
    /// Requests that arrived.
    pub requests: usize,
    /// Deliveries that the receiver took.
    pub taken: usize,
    /// Deliveries that ended as dead letters, by the API.
    pub dead: usize,
    /// Deliveries that were accepted, and neither arrived nor are told of by the API.
    pub lost: usize,
    /// How often a delivery came again after it had been taken.
    pub repeats: usize,
    /// The repeats of each fault.
    pub repeats_by_fault: Vec<usize>,
    /// How long before its fault what came again had been taken, at most.
    pub oldest_repeat: Micros,
    /// Repeats that no fault explains.
    pub unexplained: usize,
    /// Faults that caused more repeats than they may.
    pub excessive: usize,
    /// Arrivals before what they follow had been taken.
    pub overtaken: usize,
    /// Arrivals that went on from elsewhere than the repeat before them.
    pub jumped: usize,
    /// Arrivals with a wrong signature, or other data than was published.
    pub forged: usize,
    /// Arrivals whose body was another than the first time.
    pub altered: usize,
    /// Requests that named nothing of this run.
    pub strangers: usize,
    /// Counts of the API that do not fit.
    pub miscounted: usize,
    /// The first few offences of each kind, in words.
    pub examples: Vec<String>,
}

impl Report {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.offences().iter().all(|(_, count)| *count == 0)
    }

    /// How many offences of each kind there are.
    pub const fn offences(&self) -> [(&'static str, usize); 9] {
        [
            ("lost", self.lost),
            ("repeats that nothing explains", self.unexplained),
            ("faults with too many repeats", self.excessive),
            ("overtaken", self.overtaken),
            ("jumped", self.jumped),
            ("forged", self.forged),
            ("altered", self.altered),
            ("strangers", self.strangers),
            ("miscounted", self.miscounted),
        ]
    }

    /// Repeats for each delivery that was taken.
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn share_of_repeats(&self) -> f64 {
        self.repeats as f64 / self.taken.max(1) as f64
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{} events published, {} accepted, for {} deliveries; {} requests arrived, {} deliveries taken, {} dead letters",
            self.published, self.accepted, self.deliveries, self.requests, self.taken, self.dead
        )?;
        writeln!(
            formatter,
            "{} repeats ({:.5} % of what was taken); what came again had been taken at most {} ms before its fault",
            self.repeats,
            self.share_of_repeats() * 100.0,
            self.oldest_repeat / 1000
        )?;
        for (what, count) in self.offences() {
            write!(formatter, "{count} {what}; ")?;
        }
        writeln!(formatter)?;
        self.examples
            .iter()
            .try_for_each(|example| writeln!(formatter, "  {example}"))
    }
}

/// What is known of one delivery while the log is read.
struct Seen {
    /// The body that came first.
    body: u64,
    /// When it was taken last.
    taken: Option<Micros>,
}

struct Judge<'a> {
    run: &'a Run,
    report: Report,
    seen: HashMap<(u16, Number), Seen>,
    told: BTreeMap<&'static str, usize>,
}

/// Judges a run.
pub fn judge(run: &Run) -> Report {
    let mut judge = Judge {
        run,
        report: Report {
            published: run.events.len(),
            requests: run.arrivals.len() + run.strangers,
            strangers: run.strangers,
            repeats_by_fault: vec![0; run.faults.len()],
            ..Report::default()
        },
        seen: HashMap::with_capacity(run.arrivals.len()),
        told: BTreeMap::new(),
    };
    judge.arrivals();
    judge.repeats_of_faults();
    judge.order();
    judge.ends();
    judge.report
}

impl Judge<'_> {
    fn offence(&mut self, kind: &'static str, words: impl FnOnce() -> String) {
        let told = self.told.entry(kind).or_default();
        *told += 1;
        if *told <= EXAMPLES {
            self.report.examples.push(format!("{kind}: {}", words()));
        }
    }

    fn id(&self, webhook: u16) -> &str {
        self.run
            .webhooks
            .get(usize::from(webhook))
            .map_or("?", |webhook| &webhook.id)
    }

    fn wanted(&self, arrival: &Arrival) -> bool {
        let event = self.run.events.get(arrival.event as usize);
        let webhooks = event.and_then(|event| self.run.kinds.get(usize::from(event.kind)));
        webhooks.is_some_and(|webhooks| webhooks.contains(&usize::from(arrival.webhook)))
    }

    /// What came again, what was altered, and what should not have come at all.
    fn arrivals(&mut self) {
        for arrival in &self.run.arrivals {
            let name = |judge: &Self| {
                format!(
                    "event {} for {} at {} µs",
                    arrival.event,
                    judge.id(arrival.webhook),
                    arrival.at
                )
            };
            if !self.wanted(arrival) {
                self.report.strangers += 1;
                let words = name(self);
                self.offence("stranger", || words);
                continue;
            }
            if !arrival.genuine {
                self.report.forged += 1;
                let words = name(self);
                self.offence("forged", || words);
            }
            let seen = self.seen.entry((arrival.webhook, arrival.event)).or_insert(Seen {
                body: arrival.body,
                taken: None,
            });
            let (altered, before) = (seen.body != arrival.body, seen.taken);
            if arrival.taken {
                seen.taken = Some(arrival.at);
            }
            if altered {
                self.report.altered += 1;
                let words = name(self);
                self.offence("altered", || words);
            }
            if let Some(before) = before {
                self.repeat(arrival, before);
            }
        }
        self.report.taken = self.seen.values().filter(|seen| seen.taken.is_some()).count();
    }

    /// A delivery that had been taken at `before` came again. That may be only where it could no longer be recorded that it had been taken.
    fn repeat(&mut self, arrival: &Arrival, before: Micros) {
        self.report.repeats += 1;
        let mut faults = self.run.faults.iter().enumerate();
        let cause = faults.find(|(_, fault)| {
            arrival.at >= fault.from && before.saturating_add(self.run.unrecorded) >= fault.from && before <= fault.to
        });
        if let Some((index, fault)) = cause {
            if let Some(count) = self.report.repeats_by_fault.get_mut(index) {
                *count += 1;
            }
            self.report.oldest_repeat = self.report.oldest_repeat.max(fault.from.saturating_sub(before));
        } else {
            self.report.unexplained += 1;
            let words = format!(
                "event {} for {}: taken at {before} µs, came again at {} µs",
                arrival.event,
                self.id(arrival.webhook),
                arrival.at
            );
            self.offence("unexplained", || words);
        }
    }

    fn repeats_of_faults(&mut self) {
        for (fault, repeats) in self.run.faults.iter().zip(self.report.repeats_by_fault.clone()) {
            if repeats > fault.repeats {
                self.report.excessive += 1;
                let words = format!(
                    "{} at {} µs: {repeats} repeats, {} allowed",
                    fault.victim, fault.from, fault.repeats
                );
                self.offence("excessive", || words);
            }
        }
    }

    /// In each line of events that follow one another, what is taken is the next after what was taken before it, or a repeat, from which it goes on.
    fn order(&mut self) {
        let mut lines: BTreeMap<(u16, u16), Vec<&Arrival>> = BTreeMap::new();
        for arrival in &self.run.arrivals {
            let order = self
                .run
                .webhooks
                .get(usize::from(arrival.webhook))
                .map(|webhook| webhook.order);
            let key = self.run.events.get(arrival.event as usize).map_or(0, |event| event.key);
            let line = match order {
                Some(Order::Strict) => 0,
                Some(Order::PerKey) if key > 0 => key,
                Some(Order::PerKey | Order::None) | None => continue,
            };
            lines.entry((arrival.webhook, line)).or_default().push(arrival);
        }
        for ((webhook, _), arrivals) in lines {
            let taken = arrivals.iter().filter(|arrival| arrival.taken);
            let line: BTreeSet<Number> = taken.map(|arrival| arrival.event).collect();
            let places: HashMap<Number, usize> = line.into_iter().zip(1..).collect();
            let (mut last, mut furthest) = (0, 0);
            for arrival in arrivals {
                // What was never taken is no part of the line: that is judged elsewhere.
                let Some(&place) = places.get(&arrival.event) else {
                    continue;
                };
                let words = format!("event {} for {} at {} µs", arrival.event, self.id(webhook), arrival.at);
                if place > furthest + 1 {
                    self.report.overtaken += 1;
                    self.offence("overtaken", || words);
                } else if place > last + 1 {
                    self.report.jumped += 1;
                    self.offence("jumped", || words);
                }
                if arrival.taken {
                    last = place;
                    furthest = furthest.max(place);
                }
            }
        }
    }

    /// Every delivery ends, once, and is counted.
    fn ends(&mut self) {
        let mut sure = vec![0_u64; self.run.webhooks.len()];
        let mut possible = sure.clone();
        let mut missing = sure.clone();
        for (number, event) in (0..).zip(&self.run.events) {
            self.report.accepted += usize::from(event.accepted.is_some());
            for &webhook in self.run.kinds.get(usize::from(event.kind)).into_iter().flatten() {
                let (Some(sure), Some(possible), Some(missing)) = (
                    sure.get_mut(webhook),
                    possible.get_mut(webhook),
                    missing.get_mut(webhook),
                ) else {
                    continue;
                };
                *possible += 1;
                let Some(accepted) = event.accepted else {
                    continue;
                };
                *sure += 1;
                self.report.deliveries += 1;
                let to = &self.run.webhooks[webhook];
                let seen = u16::try_from(webhook)
                    .ok()
                    .and_then(|webhook| self.seen.get(&(webhook, number)));
                let taken = seen.is_some_and(|seen| seen.taken.is_some());
                if !taken && !to.dead.contains(&number) {
                    *missing += 1;
                    // What was dropped is told of by its count only.
                    if *missing > to.counts.dropped {
                        self.report.lost += 1;
                        let id = to.id.clone();
                        self.offence("lost", || format!("event {number} for {id}, accepted at {accepted} µs"));
                    }
                }
            }
        }
        for (index, webhook) in self.run.webhooks.iter().enumerate() {
            let taken = self
                .seen
                .iter()
                .filter(|((of, _), seen)| usize::from(*of) == index && seen.taken.is_some());
            self.counts(webhook, taken.count() as u64, sure[index]..=possible[index]);
        }
    }

    fn counts(&mut self, webhook: &Webhook, taken: u64, accepted: std::ops::RangeInclusive<u64>) {
        let counts = webhook.counts;
        self.report.dead += webhook.dead.len();
        let not_delivered = counts.waiting + counts.dead + counts.dropped;
        let laws = [
            (counts.waiting == 0, "something waits still"),
            (
                counts.accepted == counts.delivered + not_delivered,
                "it does not add up",
            ),
            (
                accepted.contains(&counts.accepted),
                "accepted is not what was answered OK",
            ),
            (counts.dead == webhook.dead.len() as u64, "dead is not what is listed"),
            (counts.delivered <= taken, "more delivered than arrived"),
            (taken <= counts.accepted, "more arrived than accepted"),
        ];
        for (_, law) in laws.into_iter().filter(|(holds, _)| !holds) {
            self.report.miscounted += 1;
            let words = format!(
                "{}: {law}: {counts:?}, {taken} taken, {accepted:?} published",
                webhook.id
            );
            self.offence("miscounted", || words);
        }
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
