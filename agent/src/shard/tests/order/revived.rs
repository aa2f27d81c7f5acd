//! Dead letters that are put back while an order is kept.

use postrider_common::key::ParkedKind;
use postrider_common::model::order::{Line, Lined};

use super::*;
use crate::shard::entry::Entry;
use crate::shard::order::{Order as Kept, Room, Strays};

#[test]
fn what_is_parked_while_dead_letters_are_put_back_is_not_taken_for_them() {
    let mut hook = webhook("a");
    hook.order = Order {
        ordering: Ordering::PerKey,
        on_failure: Some(OnFailure::DeadLetter),
    };
    let strays = Strays {
        in_flight: 0,
        moving: 0,
        dying: 0,
        first: None,
        reading: false,
    };
    let room = Room {
        limit: LANE_LIMIT,
        ready: 0,
        bytes: true,
        idle: true,
    };
    let (line, first, read_to) = (Line(7), Position::after(Revision(3)), Revision(9));
    let entry = |number, kind| Entry {
        due: BEGIN,
        epoch: 1,
        number,
        count: 1,
        kind,
    };
    let lined = Lined {
        line,
        first,
        blocked: 0,
    };
    let (retried, revived) = (entry(1, ParkedKind::Ordered(lined)), entry(2, ParkedKind::Single));

    let mut order = Kept::new(&hook, 1, strays);
    order.reviving(1);
    order.moves(line, first);
    order.stored(retried);
    order.stored(revived);
    assert!(order.settle(BEGIN, read_to).is_empty());
    assert_eq!(order.next_loads(BEGIN, read_to, room), [revived]);
    order.over(std::iter::once(revived));
    assert!(order.settle(BEGIN, read_to).is_empty());
    assert_eq!(order.next_loads(BEGIN, read_to, room), [retried]);
}
