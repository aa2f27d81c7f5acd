//! What waits behind what was used up, and what it costs.

use super::*;

/// An untimed world whose first event is used up.
pub(super) fn blocked(order: Order) -> World {
    let mut world = World::new(order, 0);
    world.timed = false;
    world.publish(1, 1);
    world.step(&Step::Take { segments: 1 });
    for _ in 0..2 {
        world.step(&Step::End { which: 0, outcome: 0 });
        world.step(&Step::Write);
        world.step(&Step::Pass { millis: 5_000 });
        world.step(&Step::Read);
    }
    world
}

/// Publishes and writes until `count` events wait.
fn pile_up(world: &mut World, count: usize) {
    while world.events < count {
        world.publish(500, 1);
        world.step(&Step::Take { segments: 1 });
        world.step(&Step::Write);
    }
    while world.book.pending() > 0 {
        world.step(&Step::Write);
    }
}

#[test]
fn what_waits_behind_a_blocked_webhook_is_written_once_and_read_once_whoever_owns_it() {
    let order = Order {
        ordering: Ordering::Strict,
        on_failure: None,
    };
    let mut world = blocked(order);
    pile_up(&mut world, 3_000);
    let (moves, sources) = (world.moves, world.next_source);
    assert!(moves <= 3_010, "{moves} deliveries were written");
    for _ in 0..3 {
        world.step(&Step::Crash);
        world.step(&Step::Take { segments: 100 });
        world.step(&Step::Pass { millis: 3_600_000 });
        world.step(&Step::Read);
        world.step(&Step::Write);
    }
    assert!(world.flights.is_empty(), "blocked, and sent");
    assert_eq!(
        (world.moves, world.next_source),
        (moves, sources),
        "nothing is read or written for it"
    );
    let memory: usize = world.state.lanes().map(|lane| lane.bytes).sum();
    assert_eq!(memory, 0, "bytes of what waits");
    world.change();
    world.finish();
    assert!(
        world.moves == moves,
        "{} deliveries were written again",
        world.moves - moves
    );
}

#[test]
fn a_parked_key_costs_one_entry_and_the_events_of_other_keys_pass_it() {
    let order = Order {
        ordering: Ordering::PerKey,
        on_failure: None,
    };
    let mut world = World::new(order, 0);
    world.timed = false;
    world.publish(200, 1);
    world.step(&Step::Take { segments: 1 });
    // The only key fails until it is used up, all without a key are taken.
    let mut idle = 0;
    while idle < 20 {
        let Some((_, start)) = world.flights.first() else {
            world.step(&Step::Write);
            world.step(&Step::Read);
            world.step(&Step::Pass { millis: 1_000 });
            idle += 1;
            continue;
        };
        idle = 0;
        let outcome = if start.events[0].ordering_key.is_some() { 0 } else { 7 };
        world.step(&Step::End { which: 0, outcome });
    }
    let left: BTreeSet<String> = world.owed();
    assert!(left.iter().all(|id| world.accepted[id].key.is_some()), "{left:?}");
    assert!(left.len() >= 90, "{} events of the key wait", left.len());
    let lane = world.state.lanes().next().unwrap();
    assert_eq!(lane.bytes, 0, "bytes of what waits");
    let moves = world.moves;
    let source = world.next_source;
    world.publish(200, 1);
    world.step(&Step::Take { segments: 1 });
    while !world.flights.is_empty() {
        world.step(&Step::End { which: 0, outcome: 7 });
    }
    world.step(&Step::Write);
    world.step(&Step::Read);
    assert!(world.moves - moves <= 110, "only the key's own are written");
    assert_eq!(world.next_source, source + 1, "nothing is read for them");
    world.change();
    world.finish();
}

#[test]
fn what_is_still_in_the_queue_after_a_take_over_goes_before_what_was_parked() {
    for ordering in [Ordering::Strict, Ordering::PerKey] {
        let order = Order {
            ordering,
            on_failure: None,
        };
        let mut world = World::new(order, 0);
        world.timed = false;
        world.state.allow(4);
        world.publish(60, 1);
        world.step(&Step::Take { segments: 1 });
        world.step(&Step::Write);
        assert!(!world.parked().is_empty());
        world.step(&Step::Crash);
        world.step(&Step::Read);
        world.step(&Step::Pass { millis: 60_000 });
        world.step(&Step::Read);
        assert!(world.flights.is_empty(), "sent before the queue was read");
        world.step(&Step::Take { segments: 1 });
        assert!(!world.flights.is_empty());
        world.finish();
    }
}
