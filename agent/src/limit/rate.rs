//! The rate limit of one webhook, by the generic cell rate algorithm: one number, the theoretical arrival time of the next attempt. Pure.

use postrider_common::model::webhook::RateLimit;
use postrider_common::time::Timestamp;

/// Nanoseconds of a millisecond.
const MILLI: u64 = 1_000_000;

/// A limit: so many at once after a pause, then one each interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Nanoseconds between two attempts; rounded up, so that the rate is never exceeded.
    interval: u64,
    /// Nanoseconds that attempts may run ahead: all but one of a burst.
    ahead: u64,
}

impl Limit {
    /// The limit that a webhook was given.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 100,000 to 100,000,000,000.
    pub fn new(limit: &RateLimit) -> Self {
        let interval = (1e9 / limit.per_second()).ceil() as u64;
        Self {
            interval,
            ahead: interval.saturating_mul(u64::from(limit.burst().get() - 1)),
        }
    }
}

/// How much of a limit is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meter {
    /// When the next attempt would come if they came evenly; nanoseconds since 1970, which last until 2554.
    next: u64,
}

impl Meter {
    /// Whether an attempt may start.
    pub fn may_start(self, limit: &Limit, now: Timestamp) -> bool {
        self.earliest(limit, now) <= nanos(now)
    }

    /// Notes that an attempt started. One whose attempt was not made has been spent all the same.
    pub fn started(&mut self, limit: &Limit, now: Timestamp) {
        self.next = self.bounded(limit, now).max(nanos(now)).saturating_add(limit.interval);
    }

    /// When the next attempt may start, if that is after `now`.
    pub fn until(self, limit: &Limit, now: Timestamp) -> Option<Timestamp> {
        let millis = self.earliest(limit, now).div_ceil(MILLI);
        let at = Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX));
        (at > now).then_some(at)
    }

    fn earliest(self, limit: &Limit, now: Timestamp) -> u64 {
        self.bounded(limit, now).saturating_sub(limit.ahead)
    }

    /// No burst lies further ahead than this, unless the clock was set back or the limit was raised: neither may hold a webhook up.
    fn bounded(self, limit: &Limit, now: Timestamp) -> u64 {
        let full = limit.ahead.saturating_add(limit.interval);
        self.next.min(nanos(now).saturating_add(full))
    }
}

fn nanos(at: Timestamp) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(0).saturating_mul(MILLI)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const BEGIN: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn limit(per_second: f64, burst: u32) -> Limit {
        Limit::new(&RateLimit::new(per_second, NonZeroU32::new(burst)).unwrap())
    }

    proptest! {
        #[test]
        fn no_window_sees_more_than_a_burst_and_the_rate(
            per_second in 0.01..10_000.0, burst in 1_u32..50, steps in proptest::collection::vec((0_u64..3000, 1_u32..60), 1..40),
        ) {
            let limit = limit(per_second, burst);
            let mut meter = Meter::default();
            let mut now = BEGIN;
            let mut starts: Vec<Timestamp> = Vec::new();
            for (millis, tries) in steps {
                now = now + Duration::from_millis(millis);
                for _ in 0..tries {
                    prop_assert_eq!(meter.may_start(&limit, now), meter.until(&limit, now).is_none());
                    if meter.may_start(&limit, now) {
                        meter.started(&limit, now);
                        starts.push(now);
                    }
                }
            }
            for (first, begin) in starts.iter().enumerate() {
                for (last, end) in starts.iter().enumerate().skip(first) {
                    let count = f64::from(u32::try_from(last - first + 1).unwrap());
                    let seconds = end.saturating_since(*begin).as_secs_f64();
                    prop_assert!(count <= f64::from(burst) + per_second * seconds + 1e-6);
                }
            }
        }

        #[test]
        fn the_moment_that_it_names_is_the_first_at_which_an_attempt_may_start(per_second in 0.01..10_000.0, burst in 1_u32..50) {
            let limit = limit(per_second, burst);
            let mut meter = Meter::default();
            for _ in 0..burst {
                prop_assert!(meter.may_start(&limit, BEGIN));
                meter.started(&limit, BEGIN);
            }
            let until = meter.until(&limit, BEGIN).unwrap();
            prop_assert!(meter.may_start(&limit, until));
            prop_assert!(!meter.may_start(&limit, Timestamp::from_millis(until.as_millis() - 1)));
        }
    }

    #[test]
    fn a_steady_sender_gets_the_whole_rate() {
        let limit = limit(10_000.0, 20);
        let mut meter = Meter::default();
        let mut count = 0;
        for millis in 0..1000 {
            let now = BEGIN + Duration::from_millis(millis);
            while meter.may_start(&limit, now) {
                meter.started(&limit, now);
                count += 1;
            }
        }
        assert_eq!(count, 20 + 999 * 10);
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nothing_up_for_longer_than_a_burst() {
        let limit = limit(1.0, 10);
        let mut meter = Meter::default();
        for _ in 0..10 {
            meter.started(&limit, BEGIN + Duration::from_secs(86_400));
        }
        assert_eq!(meter.until(&limit, BEGIN), Some(BEGIN + Duration::from_secs(1)));
    }
}
