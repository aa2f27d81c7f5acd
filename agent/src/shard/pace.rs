//! How fast an agent begins attempts to receivers that did not answer last time.
//!
//! Thousands of them at once (an event that ten thousand webhooks wait for, whose receivers are gone) would hold its processors for seconds, and what others are sent
//! with them: each opens a connection that nobody answers on, and each ends with a write. So only some may be under way unpaced: enough that receivers that do
//! answer never feel it. Beyond these, attempts begin evenly; shards take turns.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How many attempts a turn is for: so few that a shard waits some milliseconds for the next, so many that it is not woken for each.
const OF_A_TURN: u32 = 4;

/// What the shards of an agent share.
#[derive(Debug)]
pub(super) struct Pace {
    unpaced: Arc<Semaphore>,
    /// How long after a turn the next begins.
    step: Duration,
    next: Mutex<Instant>,
}

/// A shard's turn. It has one at a time, and another only when this one is used up.
#[derive(Debug)]
pub(super) struct Turn {
    at: Instant,
    left: u32,
}

/// What lets an attempt begin.
#[derive(Debug)]
pub(super) enum Leave {
    /// It is one of those that may be under way unpaced, as long as it holds this.
    Unpaced(OwnedSemaphorePermit),
    /// It is the shard's turn.
    Turn,
}

impl Pace {
    /// So many may be under way unpaced; beyond these so many begin in a second, at least one.
    pub(super) fn new(unpaced: usize, per_second: u32) -> Self {
        Self {
            unpaced: Arc::new(Semaphore::new(unpaced)),
            step: Duration::from_secs(1) * OF_A_TURN / per_second.max(1),
            next: Mutex::new(Instant::now()),
        }
    }

    /// Leave to begin an attempt now. If `turn` gave it, [`Turn::used`] is to be called once the attempt begins.
    ///
    /// # Errors
    /// How long it takes until there may be.
    pub(super) fn leave(&self, turn: &mut Option<Turn>) -> Result<Leave, Duration> {
        if let Ok(permit) = self.unpaced.clone().try_acquire_owned() {
            return Ok(Leave::Unpaced(permit));
        }
        let now = Instant::now();
        let turn = turn.get_or_insert_with(|| self.turn(now));
        if turn.left == 0 {
            *turn = self.turn(now);
        }
        if turn.at <= now {
            Ok(Leave::Turn)
        } else {
            Err(turn.at - now)
        }
    }

    fn turn(&self, now: Instant) -> Turn {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (*next).max(now);
        *next = at + self.step;
        Turn { at, left: OF_A_TURN }
    }
}

impl Turn {
    /// An attempt began.
    pub(super) const fn used(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// How many begin until there is no leave, all unpaced ones being held.
    fn begun(pace: &Pace, turn: &mut Option<Turn>, held: &mut Vec<OwnedSemaphorePermit>) -> usize {
        let mut begun = 0;
        while let Ok(leave) = pace.leave(turn) {
            begun += 1;
            match leave {
                Leave::Unpaced(permit) => held.push(permit),
                Leave::Turn => turn.as_mut().unwrap().used(),
            }
        }
        begun
    }

    #[tokio::test(start_paused = true)]
    async fn some_begin_at_once_and_the_others_evenly_the_shards_taking_turns() {
        let (pace, mut held) = (Pace::new(10, 1000), Vec::new());
        let mut turns = [const { None }; 4];
        // Whose turn it is at first begins with it; after that it is each shard's turn every 16 ms.
        assert_eq!(begun(&pace, &mut turns[0], &mut held), 10 + 4);
        let mut of_shards = [0; 4];
        for _ in 0..1000 {
            for (turn, begun_of) in turns.iter_mut().zip(&mut of_shards) {
                *begun_of += begun(&pace, turn, &mut held);
            }
            advance(MILLI).await;
        }
        for count in of_shards {
            assert!((248..=252).contains(&count), "{of_shards:?}");
        }
        held.truncate(7);
        assert_eq!(begun(&pace, &mut turns[0], &mut held), 3, "those that end make room");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_alone_has_all_turns_and_a_pause_is_not_made_up_for() {
        let (pace, mut held) = (Pace::new(0, 1000), Vec::new());
        let mut turn = None;
        advance(Duration::from_secs(60)).await;
        assert_eq!(begun(&pace, &mut turn, &mut held), 4);
        let mut count = 0;
        for _ in 0..1000 {
            advance(MILLI).await;
            count += begun(&pace, &mut turn, &mut held);
        }
        assert_eq!(count, 1000);
        assert!(matches!(pace.leave(&mut turn), Err(wait) if wait <= MILLI * 4));
    }
}
