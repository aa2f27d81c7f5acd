//! The promises that are kept to all webhooks together, and to those of one name one after the other. Pure.

use std::collections::BTreeSet;

use crate::judge::Hook;
use crate::world::Seen;

/// What was accepted for a webhook comes to none of the same name that lived before or after it.
pub(crate) fn in_one_life(hooks: &[Hook<'_>], wrong: &mut Vec<String>) {
    let mut came: BTreeSet<(usize, &str)> = BTreeSet::new();
    for hook in hooks {
        let events = hook.arrivals.iter().flat_map(|arrival| &arrival.events);
        let events: BTreeSet<&str> = events.map(String::as_str).collect();
        for event in events {
            if !came.insert((hook.number, event)) {
                wrong.push(format!("two webhooks called w{} got {event}", hook.number));
            }
        }
    }
}

/// What publishers were told of how many webhooks get an event agrees with what these want, and with when they existed.
pub(crate) fn accepted_for_those_who_want_it(hooks: &[Hook<'_>], seen: &Seen, wrong: &mut Vec<String>) {
    let mut accepted = 0;
    for event in &seen.published {
        let told = event.told.map_or(0, |(_, webhooks)| webhooks);
        let least = hooks.iter().filter(|hook| hook.surely_gets(event)).count();
        // A webhook gets it in one of its lives.
        let may: BTreeSet<usize> = hooks
            .iter()
            .filter(|hook| hook.may_get(event))
            .map(|hook| hook.number)
            .collect();
        if !(least..=may.len()).contains(&told) {
            let id = &event.id;
            wrong.push(format!(
                "{id} was accepted for {told} webhooks, not {least} to {}",
                may.len()
            ));
        }
        accepted += told;
    }
    let counted = seen
        .counts
        .iter()
        .fold(seen.deleted.clone(), |sum, counts| sum.and(counts))
        .accepted;
    let most = accepted + seen.doubtful.len() * seen.counts.len();
    if !(count(accepted)..=count(most)).contains(&counted) {
        wrong.push(format!(
            "{accepted} to {most} deliveries were accepted, and {counted} are counted"
        ));
    }
}

/// Nothing is left of what was deleted but its counts, which hold no more than can have happened.
pub(crate) fn deleted_is_counted(hooks: &[Hook<'_>], seen: &Seen, wrong: &mut Vec<String>) {
    let gone = || hooks.iter().filter(|hook| hook.life.ended.is_some());
    let least: usize = gone().map(|hook| hook.certain().count()).sum();
    let most: usize = gone().map(|hook| hook.possible().count()).sum();
    let taken: usize = gone().map(|hook| hook.taken().len()).sum();
    let counts = &seen.deleted;
    if !(count(least)..=count(most)).contains(&counts.accepted) {
        wrong.push(format!(
            "of deleted webhooks {least} to {most} were accepted, and {} are counted",
            counts.accepted
        ));
    }
    if counts.waiting != 0 || counts.dead != 0 || counts.delivered > count(taken) {
        wrong.push(format!("deleted webhooks took {taken}, and are counted as {counts:?}"));
    }
}

/// As counts are.
pub(crate) fn count(events: usize) -> i64 {
    i64::try_from(events).unwrap_or(i64::MAX)
}
