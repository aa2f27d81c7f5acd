//! Asks filters about the events of one request, each of which is read at most once, and not at all if no filter is asked. Pure.

use std::time::Duration;

use postrider_common::model::segment::Event;

use crate::catalog::filter::{Facts, Filter, Verdict};

/// The most work of one filter for one event, in about nanoseconds. One that could take more than this is not asked: it would hold up others' events as
/// well. A loop over twenty thousand elements is within it.
const MOST_WORK: u64 = 100_000_000;

/// How long one request may take before no more filters are asked. Simple ones take a microsecond: this is enough for as many deliveries as a request
/// may cause.
const MOST_TIME: Duration = Duration::from_secs(1);

/// The filters of one request at work.
pub(super) struct Judge<'e> {
    /// How long the request has taken.
    spent: &'e dyn Fn() -> Duration,
    event: Option<&'e Event>,
    /// The event, read; `None` inside if it cannot be.
    facts: Option<Option<Facts<'e>>>,
    errors: usize,
    skips: usize,
}

impl<'e> Judge<'e> {
    /// `spent` says how long the request has taken.
    pub(super) const fn new(spent: &'e dyn Fn() -> Duration) -> Self {
        Self {
            spent,
            event: None,
            facts: None,
            errors: 0,
            skips: 0,
        }
    }

    /// Goes on to the next event.
    pub(super) fn next(&mut self, event: &'e Event) {
        self.event = Some(event);
        self.facts = None;
    }

    /// Whether a filter lets the event through. One that has no value for it does not; one that cannot be asked does: whether the event was wanted
    /// is then not known, and an event that comes needlessly does less harm than one that is missing.
    pub(super) fn lets_through(&mut self, filter: &Filter) -> bool {
        let verdict = self.ask(filter);
        self.errors += usize::from(verdict == Verdict::Failed);
        self.skips += usize::from(verdict == Verdict::Unjudged);
        matches!(verdict, Verdict::Matches | Verdict::Unjudged)
    }

    fn ask(&mut self, filter: &Filter) -> Verdict {
        if (self.spent)() > MOST_TIME {
            return Verdict::Unjudged;
        }
        let event = self.event;
        match self.facts.get_or_insert_with(|| event.and_then(Facts::of)) {
            Some(facts) if filter.work(facts) <= MOST_WORK => filter.judge(facts),
            Some(_) | None => Verdict::Unjudged,
        }
    }

    /// How often a filter had no value, and how often one could not be asked.
    pub(super) const fn troubles(&self) -> (usize, usize) {
        (self.errors, self.skips)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use crate::catalog::Table;
    use crate::catalog::view::tests::{subscriber, webhook};
    use crate::publish::fanout::tests::event;
    use crate::publish::fanout::{Fanout, fan_out};

    fn filtered(id: &str, patterns: &[&str], filter: Option<String>) -> Arc<crate::catalog::Subscriber> {
        let mut webhook = webhook("a", id, patterns);
        webhook.filter = filter;
        subscriber(webhook, 4)
    }

    /// Who gets which events.
    fn got(fanout: &Fanout) -> Vec<(String, Vec<String>)> {
        let shares = fanout
            .parts
            .iter()
            .flat_map(|part| part.shares.iter().map(move |share| (part, share)));
        let named = shares.map(|(part, share)| {
            let ids = share
                .events
                .iter()
                .map(|index| part.events[*index as usize].id.to_string());
            (share.subscriber.webhook.id.to_string(), ids.collect())
        });
        let mut named: Vec<_> = named.collect();
        named.sort();
        named
    }

    proptest! {
        #[test]
        fn a_webhook_gets_the_events_of_its_names_for_which_its_filter_is_true(
            numbers in proptest::collection::vec((0_i64..5, "[AB]"), 0..12),
            limits in proptest::collection::btree_map("[a-f]", proptest::option::of(0_i64..5), 0..5),
        ) {
            let events: Vec<_> = numbers.iter().enumerate()
                .map(|(at, (number, name))| event(&format!("e{at:02}"), name, format!("{{\"n\":{number}}}").into()))
                .collect();
            let hooks = limits.iter().map(|(id, limit)| filtered(id, &["A"], limit.map(|limit| format!("event.data.n > {limit}"))));
            let fanout = fan_out(&events, &Table::new(hooks), &|| Duration::ZERO).unwrap();
            let wants = |limit: &Option<i64>, number: i64, name: &str| name == "A" && limit.is_none_or(|limit| number > limit);
            for (at, (number, name)) in numbers.iter().enumerate() {
                let wanted = limits.values().filter(|limit| wants(limit, *number, name)).count();
                prop_assert_eq!(fanout.matched[at] as usize, wanted);
            }
            let mut expected = Vec::new();
            for (id, limit) in &limits {
                let ids: Vec<_> = numbers.iter().enumerate().filter(|(_, (number, name))| wants(limit, *number, name))
                    .map(|(at, _)| format!("e{at:02}")).collect();
                if !ids.is_empty() {
                    expected.push((id.clone(), ids));
                }
            }
            prop_assert_eq!(got(&fanout), expected);
            prop_assert_eq!((fanout.filter_errors, fanout.filter_skips), (0, 0));
        }
    }

    #[test]
    fn a_filter_without_a_value_lets_nothing_through_and_one_that_cannot_be_asked_everything_and_both_are_counted() {
        let by = |id: &str, filter: &str| filtered(id, &["A"], Some(filter.into()));
        let hooks = [
            by("missing", "event.data.missing == 1"),
            by("plain", "event.data.n == 1"),
            by("heavy", "event.data.list.exists(x, x in event.data.list && false)"),
        ];
        let table = Table::new(hooks);
        let light = event("light", "A", r#"{"n":1,"list":[1]}"#.into());
        let list = "1,".repeat(50_000);
        let heavy = event("heavy", "A", format!("{{\"n\":1,\"list\":[{list}1]}}").into());
        // JSON, and no double.
        let unreadable = event("unreadable", "A", "1e999".into());
        let other = event("other", "B", "1e999".into());
        let fanout = fan_out(&[light, heavy, unreadable, other], &table, &|| Duration::ZERO).unwrap();
        let expected = [
            ("heavy", vec!["heavy", "unreadable"]),
            ("missing", vec!["unreadable"]),
            ("plain", vec!["light", "heavy", "unreadable"]),
        ];
        let expected = expected.map(|(id, ids)| (id.to_owned(), ids.into_iter().map(String::from).collect()));
        assert_eq!(got(&fanout), expected);
        assert_eq!(fanout.matched, [1, 2, 3, 0]);
        // Missing: of the two that can be read. Skipped: the heavy one once, and three times what cannot be read.
        assert_eq!((fanout.filter_errors, fanout.filter_skips), (2, 4));
    }

    #[test]
    fn a_request_that_has_taken_long_asks_no_more_filters() {
        let hooks = (0..10).map(|number| filtered(&format!("w{number}"), &["A"], Some("event.data.n == 7".into())));
        let events: Vec<_> = (0..3)
            .map(|number| event(&format!("e{number}"), "A", "{\"n\":1}".into()))
            .collect();
        let asked = Cell::new(0);
        let spent = || {
            asked.set(asked.get() + 1);
            Duration::from_millis(asked.get() * 100)
        };
        let fanout = fan_out(&events, &Table::new(hooks), &spent).unwrap();
        assert_eq!(fanout.matched, [0, 10, 10]);
        assert_eq!((fanout.filter_errors, fanout.filter_skips), (0, 20));
    }
}
