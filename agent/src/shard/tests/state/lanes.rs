//! A receiver's wish to be left alone; memory that is freed; clocks of control planes that are ahead.

use super::*;

#[test]
fn a_receivers_wish_to_be_left_alone_holds_for_its_whole_lane() {
    let mut world = World::new();
    world.step(&Step::Publish { events: 10, hooks: 1 });
    assert_eq!(world.flights.len(), 2);
    world.step(&Step::End { which: 0, outcome: 1 });
    world.step(&Step::End { which: 0, outcome: 7 });
    assert!(world.flights.is_empty());
    world.step(&Step::Pass { millis: 2_999 });
    assert!(world.flights.is_empty());
    world.step(&Step::Pass { millis: 1 });
    // First one, to see whether it is well again.
    assert_eq!(world.flights.len(), 1);
    world.step(&Step::End { which: 0, outcome: 7 });
    assert_eq!(world.flights.len(), 2);
}

#[test]
fn records_of_deliveries_free_their_memory_when_they_are_over_and_not_before_they_are_written_when_they_move() {
    let mut world = World::new();
    world.publish(2, 1);
    let (revision, key) = world.queue.remove(0);
    world.take_in(key, Place::Queue(revision));
    let starts: Vec<Start> = std::iter::from_fn(|| world.state.start(world.now, true, &mut world.effects)).collect();
    let delivered = Outcome::Delivered { status: 200 };
    world
        .state
        .ended(starts[0].attempt, delivered, world.now, 0.0, &mut world.effects);
    let freed = world.effects.freed;
    assert!(freed > 0);
    let failed = Outcome::Failed {
        reason: Reason::Timeout,
        status: None,
        retry_after: None,
    };
    world
        .state
        .ended(starts[1].attempt, failed, world.now, 0.0, &mut world.effects);
    assert_eq!(world.effects.freed, freed);
    assert!(matches!(
        &world.effects.records[..],
        [Record::Over { .. }, Record::Moved(_)]
    ));
}

#[test]
fn an_event_that_was_accepted_by_a_clock_that_is_ahead_goes_at_once() {
    let mut world = World::new();
    world.publish(1, 1);
    let (revision, key) = world.queue.remove(0);
    let here = Timestamp::from_millis(world.now.as_millis() - 600_000);
    world.now = here;
    world.take_in(key, Place::Queue(revision));
    let start = world.state.start(here, true, &mut world.effects);
    assert!(start.is_some(), "it waits for ten minutes");
}
