//! Tests of the checker: what is planted in a good run must be found, and nothing else.

use super::*;

const EVENTS: Number = 600;

/// A run without a flaw: a strict webhook, one that keeps the order of three keys, one without an order that has two dead letters, and one that wants
/// everything. An agent was killed in the middle: what had just been taken came again.
fn good() -> Run {
    let webhook = |id: &str, order| Webhook {
        id: id.to_owned(),
        order,
        ..Webhook::default()
    };
    let mut run = Run {
        webhooks: vec![
            webhook("strict", Order::Strict),
            webhook("keys", Order::PerKey),
            webhook("free", Order::None),
            webhook("all", Order::None),
        ],
        kinds: vec![vec![0, 3], vec![1, 3], vec![2, 3]],
        faults: vec![Fault {
            victim: "agent",
            from: 300_000,
            to: 305_000,
            repeats: 20,
        }],
        unrecorded: 10_000,
        ..Run::default()
    };
    for number in 0..EVENTS {
        let kind = u16::try_from(number % 3).unwrap();
        let event = Event {
            kind,
            key: u16::try_from(number % 4).unwrap(),
            accepted: Some(Micros::from(number) * 1000),
        };
        run.events.push(event);
        for webhook in [kind, 3] {
            let id = usize::from(webhook);
            run.webhooks[id].counts.accepted += 1;
            if webhook == 2 && (number == 5 || number == 8) {
                run.webhooks[id].counts.dead += 1;
                run.webhooks[id].dead.insert(number);
                run.arrivals.push(arrival(webhook, number, false));
            } else {
                run.webhooks[id].counts.delivered += 1;
                run.arrivals.push(arrival(webhook, number, true));
            }
        }
        if number == 299 {
            // The new owner begins where the ledger ended.
            let again = (293..300).map(|number| arrival(u16::try_from(number % 3).unwrap(), number, true));
            let again = again.map(|arrival| Arrival { at: 300_001, ..arrival });
            run.arrivals.extend(again);
        }
    }
    run
}

fn arrival(webhook: u16, event: Number, taken: bool) -> Arrival {
    Arrival {
        webhook,
        event,
        at: Micros::from(event) * 1000 + 500,
        taken,
        genuine: true,
        body: u64::from(event),
        sender: Sender::Here,
    }
}

fn position(run: &Run, webhook: u16, event: Number) -> usize {
    let found = run
        .arrivals
        .iter()
        .position(|arrival| arrival.webhook == webhook && arrival.event == event);
    found.unwrap()
}

/// The offences that are found in the good run after `plant`.
fn found(plant: impl FnOnce(&mut Run)) -> Vec<(&'static str, usize)> {
    let mut run = good();
    plant(&mut run);
    let report = judge(&run);
    println!("{report}");
    report.offences().into_iter().filter(|(_, count)| *count > 0).collect()
}

#[test]
fn a_good_run_is_clean_and_its_figures_are_told() {
    let report = judge(&good());
    assert!(report.is_clean(), "{report}");
    let all = EVENTS as usize;
    assert_eq!(
        (report.published, report.accepted, report.deliveries),
        (all, all, 2 * all)
    );
    assert_eq!((report.taken, report.dead, report.repeats), (2 * all - 2, 2, 7));
    assert_eq!((report.repeats_by_fault, report.oldest_repeat), (vec![7], 6_500));
}

#[test]
fn a_delivery_that_is_missing_is_lost_and_its_count_is_wrong() {
    let lose = |run: &mut Run| {
        let position = position(run, 2, 299);
        run.arrivals
            .retain(|arrival| (arrival.webhook, arrival.event) != (2, 299));
        position
    };
    let both = vec![("lost", 1), ("miscounted", 1)];
    assert_eq!(
        found(|run| {
            lose(run);
        }),
        both
    );
    assert_eq!(
        found(|run| {
            // Not counted either: nobody but the publisher knows.
            lose(run);
            run.webhooks[2].counts.accepted -= 1;
            run.webhooks[2].counts.delivered -= 1;
        }),
        both
    );
    // A failed attempt is no arrival.
    assert_eq!(
        found(|run| {
            let position = position(run, 0, 33);
            run.arrivals[position].taken = false;
        }),
        [("lost", 1), ("miscounted", 1)]
    );
    // What the publisher was not told may be missing, or be there.
    let unsure = |run: &mut Run| {
        lose(run);
        run.events[299].accepted = None;
        run.webhooks[2].counts.accepted -= 1;
        run.webhooks[2].counts.delivered -= 1;
    };
    assert_eq!(found(unsure), []);
    assert_eq!(found(|run| run.events[299].accepted = None), []);
    // A dead letter that is not listed is nowhere to be seen.
    assert_eq!(
        found(|run| {
            run.webhooks[2].dead.remove(&5);
        }),
        [("lost", 1), ("miscounted", 1)]
    );
    // What was dropped for a stated reason is counted.
    assert_eq!(
        found(|run| {
            run.webhooks[2].dead.clear();
            run.webhooks[2].counts.dead = 0;
            run.webhooks[2].counts.dropped = 2;
        }),
        []
    );
}

#[test]
fn a_repeat_that_no_fault_explains_is_found() {
    let again = |event, at| {
        move |run: &mut Run| {
            run.arrivals.push(Arrival {
                at,
                ..arrival(2, event, true)
            });
        }
    };
    let unexplained = vec![("repeats that nothing explains", 1)];
    // Long recorded when the agent died; taken after it had died; came again before it had died.
    assert_eq!(found(again(287, 400_000)), unexplained);
    assert_eq!(found(again(308, 400_000)), unexplained);
    assert_eq!(found(again(296, 299_000)), unexplained);
    assert_eq!(found(again(296, 400_000)), []);
    // One that came three times was last taken when it came again.
    assert_eq!(
        found(|run| {
            again(299, 400_000)(run);
            again(299, 500_000)(run);
        }),
        unexplained
    );
    assert_eq!(
        found(|run| run.faults[0].repeats = 6),
        [("faults with too many repeats", 1)]
    );
    assert_eq!(found(|run| run.faults.clear()), [("repeats that nothing explains", 7)]);
}

#[test]
fn what_comes_too_early_is_found_in_lines_that_keep_an_order_and_only_there() {
    let swap = |webhook, one: Number, other: Number| {
        move |run: &mut Run| {
            let (first, second) = (position(run, webhook, one), position(run, webhook, other));
            run.arrivals.swap(first, second);
        }
    };
    // What follows goes on from the wrong place, too.
    let both = vec![("overtaken", 1), ("jumped", 1)];
    assert_eq!(found(swap(0, 30, 33)), both);
    assert_eq!(found(swap(1, 31, 43)), both, "one key: 31 % 4 = 43 % 4");
    assert_eq!(found(swap(1, 31, 34)), [], "two keys");
    assert_eq!(found(swap(1, 4, 16)), [], "no key");
    assert_eq!(found(swap(2, 32, 35)), []);
    assert_eq!(found(swap(3, 32, 33)), []);
    // After a repeat what follows it comes again too.
    assert_eq!(
        found(|run| {
            let repeated = |arrival: &Arrival| arrival.at == 300_001 && arrival.event == 297;
            run.arrivals.retain(|arrival| !repeated(arrival));
        }),
        [("jumped", 1)]
    );
    // A failed attempt does not make way for what follows.
    assert_eq!(
        found(|run| {
            let at = position(run, 0, 33);
            run.arrivals.insert(at, arrival(0, 36, false));
        }),
        [("overtaken", 1)]
    );
    assert_eq!(
        found(|run| {
            let at = position(run, 0, 33);
            run.arrivals.insert(at, arrival(0, 33, false));
        }),
        []
    );
}

#[test]
fn what_is_forged_altered_or_strange_is_found() {
    assert_eq!(found(|run| run.arrivals[7].genuine = false), [("forged", 1)]);
    assert_eq!(
        found(|run| {
            let repeat = run.arrivals.iter_mut().find(|arrival| arrival.at == 300_001);
            repeat.unwrap().body = 1;
        }),
        [("altered", 1)]
    );
    assert_eq!(found(|run| run.arrivals.push(arrival(1, 0, true))), [("strangers", 1)]);
    assert_eq!(found(|run| run.arrivals.push(arrival(9, 0, true))), [("strangers", 1)]);
    assert_eq!(
        found(|run| run.arrivals.push(arrival(0, EVENTS, true))),
        [("strangers", 1)]
    );
    assert_eq!(found(|run| run.strangers = 2), [("strangers", 2)]);
}

#[test]
fn counts_that_are_off_by_one_are_found() {
    let changes: [fn(&mut Counts); 5] = [
        |counts| counts.accepted += 1,
        |counts| counts.delivered -= 1,
        |counts| counts.waiting += 1,
        |counts| counts.dead += 1,
        |counts| counts.dropped += 1,
    ];
    for change in changes {
        let miscounted = found(|run| change(&mut run.webhooks[2].counts));
        assert!(matches!(miscounted[..], [("miscounted", 1..)]), "{miscounted:?}");
    }
    // Adds up, and is wrong all the same.
    let twice = found(|run| {
        run.webhooks[3].counts.accepted += 1;
        run.webhooks[3].counts.delivered += 1;
    });
    assert_eq!(twice, [("miscounted", 2)]);
}
