//! An ordered webhook that is deleted, and another that is created under its name: what the first one left holds up nothing.

use super::blocked::blocked;
use super::*;

const STRICT: Order = Order {
    ordering: Ordering::Strict,
    on_failure: None,
};

impl World {
    /// The webhook is deleted: nothing of it is owed any more.
    fn delete(&mut self) {
        self.revision += 1;
        let gone = Known::Absent(Revision(self.revision));
        self.state
            .changed(&account(), &self.hook.id.clone(), &gone, self.now, &mut self.effects);
        self.ended.extend(self.accepted.keys().cloned());
    }

    /// There is another, which has been changed as often.
    fn create_again(&mut self) {
        self.hook.uid = uid(2);
        self.reconfigure();
    }
}

#[test]
fn what_was_used_up_holds_up_no_other_webhook_of_the_name() {
    for dies in [false, true] {
        let mut world = blocked(STRICT);
        let is_blocked = |world: &World| {
            world
                .state
                .lanes()
                .all(|lane| lane.order.as_ref().unwrap().is_blocked())
        };
        assert!(is_blocked(&world));
        // Nobody saw that it was deleted.
        world.create_again();
        if dies {
            world.step(&Step::Crash);
        }
        assert!(!is_blocked(&world));
    }
}

#[test]
fn what_was_on_its_way_into_the_store_holds_up_no_other_webhook_of_the_name() {
    let mut world = World::new(STRICT, 0);
    world.timed = false;
    world.publish(3, 1);
    world.step(&Step::Take { segments: 1 });
    world.step(&Step::End { which: 0, outcome: 0 });
    world.delete();
    world.step(&Step::Write);
    world.create_again();
    world.publish(1, 1);
    world.step(&Step::Take { segments: 1 });
    assert_eq!(world.flights.len(), 1, "the first event of the other webhook is sent");
}
