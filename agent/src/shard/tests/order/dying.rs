//! Dead letters that are not written yet: what follows them waits.

use super::*;

/// An untimed world in which the first of three events, of one key but for the second, was used up, and that is not written.
fn dying(ordering: Ordering) -> World {
    let order = Order {
        ordering,
        on_failure: Some(OnFailure::DeadLetter),
    };
    let mut world = World::new(order, 0);
    world.timed = false;
    world.publish(3, 1);
    world.step(&Step::Take { segments: 1 });
    while world.ended.is_empty() {
        world.step(&Step::Pass { millis: 5_000 });
        world.step(&Step::Read);
        let first = world.flights.iter().position(|(_, start)| &*start.id == "e1");
        let which = first.expect("it is under way");
        world.step(&Step::End { which, outcome: 0 });
        if world.ended.is_empty() {
            world.step(&Step::Write);
        }
    }
    assert!(world.dying.contains("e1"));
    world
}

fn sent(world: &World, event: &str) -> bool {
    world.flights.iter().any(|(_, start)| &*start.id == event)
}

#[test]
fn what_follows_a_dead_letter_goes_once_that_is_written() {
    for ordering in [Ordering::Strict, Ordering::PerKey] {
        let mut world = dying(ordering);
        assert!(!sent(&world, "e3"), "{ordering:?}");
        while world.book.pending() > 0 {
            world.step(&Step::Write);
        }
        world.step(&Step::Read);
        let next = if ordering == Ordering::Strict { "e2" } else { "e3" };
        assert!(sent(&world, next), "{ordering:?}");
        world.finish();
    }
}

#[test]
fn it_waits_for_it_also_when_the_ordering_is_changed_meanwhile() {
    for (before, after) in [(Ordering::Strict, 1), (Ordering::PerKey, 2)] {
        let mut world = dying(before);
        world.step(&Step::Change {
            ordering: after,
            on_failure: 1,
            most: 0,
        });
        assert!(!sent(&world, "e3"), "{before:?}");
        world.finish();
        assert_eq!(world.ended.len(), 3);
    }
}
