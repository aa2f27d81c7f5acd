//! A clock for schedules: wall time without its jumps.
//!
//! What is due later is noted as a moment of wall time, since another agent may have to know. A wall clock that is set back by ten minutes would let all that
//! was due soon stand still for ten minutes; one that is set forward would make it due at once. This one goes on as the monotonic clock does, and follows
//! the wall clock by running a quarter faster or slower until it has caught up. Where they are far apart, as after a machine slept, it follows at once: what is to
//! be sent at eight must not wait for hours.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Clock, SharedClock, Timestamp};

/// How much faster or slower than time it goes at most, as a divisor: a delay is a quarter shorter or longer at worst, less than chance makes of it, and a
/// minute is caught up with in four.
const SLEW: u32 = 4;

/// From here on it follows at once, in nanoseconds: a quarter of an hour. No clock is as wrong as that for long, so the other is right.
const APART: i128 = 15 * 60 * 1_000_000_000;

/// See the file's head.
pub struct SteadyClock {
    wall: SharedClock,
    state: Mutex<State>,
}

struct State {
    start: Instant,
    /// Wall time at the start.
    base: Timestamp,
    /// How long after the start it was followed last.
    followed: Duration,
    /// What this clock shows beyond the start's wall time and what has passed since, in nanoseconds.
    ahead: i128,
}

impl SteadyClock {
    /// One that follows `wall`, and shows the same now.
    pub fn new(wall: SharedClock) -> Self {
        let state = State {
            start: Instant::now(),
            base: wall.now(),
            followed: Duration::ZERO,
            ahead: 0,
        };
        Self {
            wall,
            state: Mutex::new(state),
        }
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> Timestamp {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = state.start.elapsed();
        let nanos = |duration: Duration| i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
        let since_base = i128::from(self.wall.now().as_millis() - state.base.as_millis()) * 1_000_000;
        let most = nanos(passed.saturating_sub(state.followed) / SLEW);
        let behind = since_base - nanos(passed) - state.ahead;
        state.ahead += if behind.abs() >= APART {
            behind
        } else {
            behind.clamp(-most, most)
        };
        state.followed = passed;
        let millis = (nanos(passed) + state.ahead).div_euclid(1_000_000);
        Timestamp::from_millis(
            state
                .base
                .as_millis()
                .saturating_add(i64::try_from(millis).unwrap_or(i64::MAX)),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// A wall clock that is so many milliseconds wrong.
    struct Wrong {
        start: Instant,
        by: AtomicI64,
    }

    impl Clock for Wrong {
        fn now(&self) -> Timestamp {
            let passed = i64::try_from(self.start.elapsed().as_millis()).unwrap();
            Timestamp::from_millis(1_727_414_643_000 + passed + self.by.load(Ordering::SeqCst))
        }
    }

    fn clocks() -> (Arc<Wrong>, SteadyClock) {
        let wrong = Arc::new(Wrong {
            start: Instant::now(),
            by: AtomicI64::new(0),
        });
        (wrong.clone(), SteadyClock::new(wrong))
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_back_lets_nothing_stand_still_and_is_caught_up_with() {
        let (wall, steady) = clocks();
        let due = steady.now() + Duration::from_secs(7);
        wall.by.store(-600_000, Ordering::SeqCst);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(steady.now() >= due, "ten seconds are seven at least");
        tokio::time::advance(Duration::from_secs(6000)).await;
        assert_eq!(steady.now(), wall.now());
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_forward_makes_nothing_due_that_is_not() {
        let (wall, steady) = clocks();
        let due = steady.now() + Duration::from_millis(12_500);
        wall.by.store(600_000, Ordering::SeqCst);
        tokio::time::advance(Duration::from_millis(9_990)).await;
        assert!(steady.now() < due, "twelve and a half seconds are ten at least");
        tokio::time::advance(Duration::from_secs(6000)).await;
        assert_eq!(steady.now(), wall.now());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_long_sleep_it_is_right_at_once() {
        for by in [900_000, -900_000, 8 * 3_600_000] {
            let (wall, steady) = clocks();
            wall.by.store(by, Ordering::SeqCst);
            assert_eq!(steady.now(), wall.now());
        }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(future)
    }

    proptest! {
        #[test]
        fn it_never_goes_back_and_never_a_quarter_too_fast(steps in proptest::collection::vec((0_u64..5_000_000, -400_000_i64..400_000), 1..60)) {
            run(async {
                let (wall, steady) = clocks();
                for (micros, by) in steps {
                    let (before, step) = (steady.now(), Duration::from_micros(micros));
                    wall.by.store(by, Ordering::SeqCst);
                    tokio::time::advance(step).await;
                    let went = steady.now().as_millis() - before.as_millis();
                    let (least, most) = (step.mul_f64(0.75).as_millis(), step.mul_f64(1.25).as_millis());
                    // A millisecond is its finest.
                    prop_assert!(went >= 0 && went >= i64::try_from(least).unwrap() - 2, "{went} of {step:?}");
                    prop_assert!(went <= i64::try_from(most).unwrap() + 2, "{went} of {step:?}");
                }
                Ok(())
            })?;
        }
    }
}
