//! Tests of the breaker.

use proptest::prelude::*;

use super::*;

const BEGIN: Timestamp = Timestamp::from_millis(1_700_000_000_000);
const MAX: u32 = 32;

const fn failure(reason: Reason) -> Ended {
    Ended::Failure {
        reason,
        status: None,
        retry_after: None,
    }
}

const fn status(status: u16) -> Ended {
    Ended::Failure {
        reason: Reason::Status,
        status: Some(status),
        retry_after: None,
    }
}

const fn throttled(seconds: u64) -> Ended {
    Ended::Failure {
        reason: Reason::Throttled,
        status: Some(429),
        retry_after: Some(Duration::from_secs(seconds)),
    }
}

fn ended() -> impl Strategy<Value = Ended> {
    prop_oneof![
        3 => Just(Ended::Success),
        4 => Just(failure(Reason::Connect)),
        2 => Just(status(503)),
        1 => Just(status(404)),
        1 => Just(Ended::NotMade),
        1 => (0_u64..10_000).prop_map(throttled),
        1 => Just(failure(Reason::Throttled)),
    ]
}

/// A lane in small: the breaker, and what is under way.
#[derive(Default)]
struct Lane {
    breaker: Breaker,
    in_flight: u32,
}

impl Lane {
    /// Starts all that may start; returns how many did.
    fn start(&mut self, now: Timestamp) -> u32 {
        let before = self.in_flight;
        while self.breaker.may_start(now, self.in_flight, MAX) {
            self.breaker.started();
            self.in_flight += 1;
        }
        self.in_flight - before
    }

    fn end(&mut self, ended: Ended, now: Timestamp) {
        self.in_flight -= 1;
        self.breaker.ended(ended, now, 0.0);
    }
}

fn tripped(now: Timestamp) -> Lane {
    let mut lane = Lane::default();
    for _ in 0..TRIP_AFTER {
        lane.breaker.ended(failure(Reason::Connect), now, 0.0);
    }
    lane
}

proptest! {
    #[test]
    fn nothing_starts_before_its_time_and_no_two_probes_at_once(
        steps in proptest::collection::vec((any::<bool>(), ended(), 0_u64..20_000, 0.0..1.0), 1..200),
    ) {
        let mut now = BEGIN;
        let mut lane = Lane::default();
        for (start, how, millis, fraction) in steps {
            now = now + Duration::from_millis(millis);
            if start {
                let until = lane.breaker.until();
                let was_serving = lane.breaker.is_serving();
                let in_flight = lane.in_flight;
                let started = lane.start(now);
                prop_assert!(lane.in_flight <= MAX);
                if !was_serving {
                    prop_assert!(started <= 1 && (started == 0 || in_flight == 0));
                    prop_assert!(until.is_none_or(|until| started == 0 || until <= now));
                }
            } else if lane.in_flight > 0 {
                let before = lane.breaker.until();
                lane.in_flight -= 1;
                lane.breaker.ended(how, now, fraction);
                // What the receiver asked for is never cut short, and nothing is put off for longer than the bound.
                prop_assert!(before.is_none_or(|before| lane.breaker.until() >= Some(before)));
                prop_assert!(lane.breaker.until().is_none_or(|until| until <= now.max(before.unwrap_or(now)) + LONGEST_WISH));
                if let Ended::Failure { reason: Reason::Throttled, retry_after: Some(wish), .. } = how {
                    prop_assert!(lane.breaker.until() >= Some(now + wish.min(LONGEST_WISH)));
                }
                match how {
                    Ended::Success => prop_assert_eq!(lane.breaker.failing_since(), None),
                    Ended::Failure { .. } => prop_assert!(lane.breaker.failing_since().is_some_and(|since| since <= now)),
                    Ended::NotMade => {}
                }
            }
        }
    }

    #[test]
    fn whatever_came_before_successes_lead_back_to_full_speed(
        steps in proptest::collection::vec((any::<bool>(), ended(), 0_u64..20_000, 0.0..1.0), 0..100),
    ) {
        let mut now = BEGIN;
        let mut lane = Lane::default();
        for (start, how, millis, fraction) in steps {
            now = now + Duration::from_millis(millis);
            if start {
                lane.start(now);
            } else if lane.in_flight > 0 {
                lane.in_flight -= 1;
                lane.breaker.ended(how, now, fraction);
            }
        }
        let mut rounds = 0;
        while lane.start(now) + lane.in_flight < MAX {
            if lane.in_flight > 0 {
                lane.end(Ended::Success, now);
            } else {
                now = lane.breaker.until().unwrap();
            }
            rounds += 1;
            prop_assert!(rounds < 100);
        }
    }

    #[test]
    fn pauses_grow_to_a_minute_and_jitter_takes_off_at_most_half(trips in 0_u32..100, fraction in 0.0..1.0) {
        let whole = pause(trips, 0.0);
        prop_assert!(FIRST_PAUSE <= whole && whole <= LAST_PAUSE);
        prop_assert!(pause(trips + 1, 0.0) >= whole);
        prop_assert!(whole / 2 <= pause(trips, fraction) && pause(trips, fraction) <= whole);
    }
}

#[test]
fn five_failures_in_a_row_trip_it_and_four_do_not() {
    let mut breaker = Breaker::default();
    for _ in 0..3 {
        for _ in 0..TRIP_AFTER - 1 {
            breaker.ended(failure(Reason::Timeout), BEGIN, 0.0);
        }
        assert!(breaker.may_start(BEGIN, 0, MAX));
        breaker.ended(Ended::Success, BEGIN, 0.0);
    }
    assert_eq!(tripped(BEGIN).breaker.until(), Some(BEGIN + FIRST_PAUSE));
}

#[test]
fn answers_about_one_event_do_not_trip_it() {
    let mut breaker = Breaker::default();
    for code in [400, 403, 404, 409, 413, 422].repeat(10) {
        breaker.ended(status(code), BEGIN, 0.0);
    }
    assert!(breaker.may_start(BEGIN, 0, MAX));
    assert_eq!(breaker.failing_since(), Some(BEGIN), "they are failures all the same");
    for code in [401, 408, 500, 502, 503, 504] {
        assert!(is_unwell(Reason::Status, Some(code)), "{code}");
    }
}

#[test]
fn a_probe_that_fails_doubles_the_pause_and_one_that_succeeds_opens_the_way_step_by_step() {
    let mut lane = tripped(BEGIN);
    let mut now = BEGIN;
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        let until = now + Duration::from_secs(seconds);
        assert_eq!(lane.breaker.until(), Some(until));
        assert_eq!(lane.start(Timestamp::from_millis(until.as_millis() - 1)), 0);
        now = until;
        assert_eq!(lane.start(now), 1);
        lane.end(failure(Reason::Connect), now);
    }
    now = lane.breaker.until().unwrap();
    assert_eq!(lane.start(now), 1);
    for allowed in [2, 4, 8, 16, 32] {
        lane.end(Ended::Success, now);
        lane.start(now);
        assert_eq!(lane.in_flight, allowed);
    }
}

#[test]
fn a_receiver_that_names_its_time_is_left_alone_until_then() {
    let mut lane = Lane::default();
    lane.start(BEGIN);
    lane.end(throttled(30), BEGIN);
    assert_eq!(lane.breaker.until(), Some(BEGIN + Duration::from_secs(30)));
    // Others that were under way: a longer wish counts, a shorter one or a success changes nothing.
    lane.end(throttled(7), BEGIN);
    lane.end(Ended::Success, BEGIN);
    assert_eq!(lane.breaker.until(), Some(BEGIN + Duration::from_secs(30)));
    lane.end(throttled(1_000_000), BEGIN);
    assert_eq!(lane.breaker.until(), Some(BEGIN + LONGEST_WISH));
}

#[test]
fn a_probe_that_was_not_made_is_made_again_at_once() {
    let mut lane = tripped(BEGIN);
    let now = lane.breaker.until().unwrap();
    assert_eq!(lane.start(now), 1);
    lane.end(Ended::NotMade, now);
    assert_eq!(lane.start(now), 1);
}

#[test]
fn a_webhook_that_was_failing_elsewhere_begins_with_a_probe_and_a_new_configuration_forgets_it() {
    let mut breaker = Breaker::resume(Streak::begin(BEGIN));
    assert!(breaker.may_start(BEGIN, 0, MAX) && !breaker.may_start(BEGIN, 1, MAX));
    assert_eq!(breaker.failing_since(), Some(BEGIN));
    breaker.reconfigured(BEGIN);
    assert_eq!(breaker.failing_since(), None);
    assert!(breaker.may_start(BEGIN, 0, MAX));
}

#[test]
fn what_a_receiver_asked_for_is_kept_by_the_next_agent() {
    let mut breaker = Breaker::default();
    breaker.started();
    breaker.ended(throttled(30), BEGIN, 0.0);
    let next = Breaker::resume(breaker.streak().unwrap());
    assert_eq!(next.until(), breaker.until());
    assert_eq!(next.until(), Some(BEGIN + Duration::from_secs(30)));
}

#[test]
fn a_breaker_is_small() {
    assert!(size_of::<Breaker>() <= 64);
}
