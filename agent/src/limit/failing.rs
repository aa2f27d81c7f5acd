//! Since when a webhook has only failed, and what of it is kept in the store, so that the death of an agent does not begin the count anew. Pure.
//!
//! `failing/S/A/W` is written once a webhook has failed for a while, or asks to be left alone for a while; it is refreshed now and then, and deleted after the next success: a receiver that is down costs a
//! write an hour. It is the shard owner's, as everything else that it records. It counts for one generation of the webhook only: whoever changes a
//! webhook, or puts it back after a suspension, begins anew.

use std::time::Duration;

use postrider_common::id::Uid;
use postrider_common::model::failing::Failing;
use postrider_common::model::webhook::suspended;
use postrider_common::time::Timestamp;

use crate::attempt::Reason;

/// A webhook is suspended when it has only failed for so long. As long as events are tried by default: by then the first of them are dead letters, and a
/// receiver that nobody has looked at for a week is one that nobody misses.
pub const SUSPEND_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Failures further apart than this are no streak: nothing was tried between them. Twice the longest delay that a retry policy may have.
const LONGEST_GAP: Duration = Duration::from_secs(48 * 3600);

/// Failing for less than this is not worth a write: it is what an agent's death may add to [`SUSPEND_AFTER`].
const NOTE_AFTER: Duration = Duration::from_secs(60);

/// To be left alone for less than this is not worth a write: it takes an agent's shards about as long to find another owner.
const REST_NOTED: Duration = Duration::from_secs(3);

/// The end of a streak is written again when it has moved this far: far less than [`LONGEST_GAP`], and a write an hour for a receiver that is down.
const REFRESH_AFTER: Duration = Duration::from_secs(3600);

/// Failures with no success between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streak {
    /// The first.
    pub since: Timestamp,
    /// The last.
    pub last: Timestamp,
    /// Until when the receiver has asked to be left alone; long ago if it has not.
    pub rest_until: Timestamp,
}

impl Streak {
    /// One failure.
    pub const fn begin(now: Timestamp) -> Self {
        Self {
            since: now,
            last: now,
            rest_until: Timestamp::from_millis(0),
        }
    }

    /// The streak after another failure.
    #[must_use]
    pub fn failed(self, now: Timestamp) -> Self {
        if now.saturating_since(self.last) > LONGEST_GAP {
            return Self::begin(now);
        }
        Self {
            last: self.last.max(now),
            ..self
        }
    }

    /// The streak that was noted in the store, if it is of this generation of this webhook.
    pub fn noted(noted: &Failing, (uid, generation): (&Uid, u64)) -> Option<Self> {
        (noted.uid == *uid && noted.generation == generation).then_some(Self {
            since: noted.since,
            last: noted.last,
            rest_until: noted.rest_until,
        })
    }

    /// Whether the webhook is to be suspended. Asked after a failure: a streak does not grow by time alone.
    pub fn is_over(self, suspend_after: Duration) -> bool {
        self.last.saturating_since(self.since) >= suspend_after
    }
}

/// Why a webhook is to be suspended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Stable, upper-case.
    pub reason: &'static str,
    /// For the webhook's owner.
    pub detail: String,
}

/// Whether a webhook is to be suspended after an attempt that failed so. `streak` is that after the failure.
pub fn cause(reason: Reason, status: Option<u16>, streak: Option<Streak>, suspend_after: Duration) -> Option<Cause> {
    if reason == Reason::Gone {
        return Some(Cause {
            reason: suspended::GONE,
            detail: "the receiver answered 410: it wants no more".to_owned(),
        });
    }
    let streak = streak.filter(|streak| streak.is_over(suspend_after))?;
    let status = status.map_or_else(String::new, |status| format!(" {status}"));
    Some(Cause {
        reason: suspended::FAILING,
        detail: format!(
            "every attempt since {} failed, the last at {} with {}{status}",
            streak.since,
            streak.last,
            reason.as_str()
        ),
    })
}

/// What to do about the key of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Nothing.
    Keep,
    /// Write it.
    Write(Failing),
    /// Delete it.
    Erase,
}

/// What to do about `failing/S/A/W`, given the streak as it is, uid and generation of the webhook (`None`: gone), and what was written last.
pub fn note(
    streak: Option<Streak>,
    webhook: Option<(&Uid, u64)>,
    written: Option<&Failing>,
    suspend_after: Duration,
) -> Note {
    let erased = if written.is_some() { Note::Erase } else { Note::Keep };
    let (Some(streak), Some(webhook)) = (streak, webhook) else {
        return erased;
    };
    let present = written.and_then(|written| Streak::noted(written, webhook));
    let rests = present.map_or(streak.last, |present| present.rest_until.max(streak.last));
    let asks = streak.rest_until.saturating_since(rests) >= REST_NOTED;
    let enough = asks
        || match present {
            // A streak that begins anew stands in the way of the old one.
            Some(present) => {
                present.since != streak.since
                    || streak.last.saturating_since(present.last) >= REFRESH_AFTER.min(suspend_after / 10)
            }
            None => streak.last.saturating_since(streak.since) >= NOTE_AFTER.min(suspend_after / 10),
        };
    match (enough, present) {
        (true, _) => Note::Write(Failing {
            uid: webhook.0.clone(),
            generation: webhook.1,
            since: streak.since,
            last: streak.last,
            rest_until: streak.rest_until,
        }),
        (false, Some(_)) => Note::Keep,
        // Of another generation, or of another webhook.
        (false, None) => erased,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BEGIN: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn uid() -> Uid {
        Uid::new("00000000-0000-7000-8000-000000000001").unwrap()
    }

    proptest! {
        #[test]
        fn whoever_resumes_from_the_note_has_lost_little(
            steps in proptest::collection::vec((0_u8..20, 0_u64..7200), 1..100),
        ) {
            let uid = uid();
            let webhook = (&uid, 1);
            let (mut now, mut streak, mut written) = (BEGIN, None::<Streak>, None);
            for (success, seconds) in steps {
                now = now + Duration::from_secs(seconds);
                streak = (success != 0).then(|| streak.map_or_else(|| Streak::begin(now), |streak| streak.failed(now)));
                match note(streak, Some(webhook), written.as_ref(), SUSPEND_AFTER) {
                    Note::Keep => {}
                    Note::Write(failing) => written = Some(failing),
                    Note::Erase => written = None,
                }
                let resumed = written.as_ref().and_then(|written| Streak::noted(written, webhook));
                match (streak, resumed) {
                    (None, resumed) => prop_assert_eq!(resumed, None),
                    (Some(streak), None) => prop_assert!(streak.last.saturating_since(streak.since) < NOTE_AFTER),
                    (Some(streak), Some(resumed)) => {
                        prop_assert_eq!(resumed.since, streak.since);
                        prop_assert!(streak.last.saturating_since(resumed.last) < REFRESH_AFTER);
                    }
                }
            }
        }
    }

    #[test]
    fn a_webhook_that_fails_every_minute_for_seven_days_is_over_and_costs_a_write_an_hour() {
        let uid = uid();
        let webhook = (&uid, 1);
        let (mut streak, mut written, mut writes) = (Streak::begin(BEGIN), None, 0);
        for minute in 1..=7 * 24 * 60 {
            assert!(!streak.is_over(SUSPEND_AFTER));
            streak = streak.failed(BEGIN + Duration::from_secs(60 * minute));
            if let Note::Write(failing) = note(Some(streak), Some(webhook), written.as_ref(), SUSPEND_AFTER) {
                written = Some(failing);
                writes += 1;
            }
        }
        assert!(streak.is_over(SUSPEND_AFTER));
        assert!(writes <= 7 * 24 + 1, "{writes}");
    }

    #[test]
    fn one_410_suspends_and_other_failures_do_when_they_have_lasted() {
        let gone = cause(Reason::Gone, Some(410), None, SUSPEND_AFTER).unwrap();
        assert_eq!(gone.reason, "GONE");
        let week = Streak {
            since: BEGIN,
            last: BEGIN + SUSPEND_AFTER,
            ..Streak::begin(BEGIN)
        };
        let failing = cause(Reason::Status, Some(503), Some(week), SUSPEND_AFTER).unwrap();
        let detail =
            "every attempt since 2023-11-14T22:13:20Z failed, the last at 2023-11-21T22:13:20Z with STATUS 503";
        assert_eq!((failing.reason, failing.detail.as_str()), ("FAILING", detail));
        assert_eq!(
            cause(Reason::Connect, None, Some(Streak::begin(BEGIN)), SUSPEND_AFTER),
            None
        );
        assert_eq!(cause(Reason::Connect, None, None, SUSPEND_AFTER), None);
    }

    #[test]
    fn failures_that_are_days_apart_suspend_nothing() {
        let mut streak = Streak::begin(BEGIN);
        for day in (3..300).step_by(3) {
            streak = streak.failed(BEGIN + Duration::from_secs(day * 86_400));
            assert!(!streak.is_over(SUSPEND_AFTER));
        }
    }

    #[test]
    fn what_a_receiver_asks_for_is_noted_at_once_and_only_if_it_is_long() {
        let uid = uid();
        let webhook = (&uid, 1);
        let asking = |seconds| Streak {
            rest_until: BEGIN + Duration::from_secs(seconds),
            ..Streak::begin(BEGIN)
        };
        assert_eq!(note(Some(asking(2)), Some(webhook), None, SUSPEND_AFTER), Note::Keep);
        let Note::Write(noted) = note(Some(asking(30)), Some(webhook), None, SUSPEND_AFTER) else {
            panic!("it is not noted");
        };
        assert_eq!(Streak::noted(&noted, webhook), Some(asking(30)));
        for (seconds, writes) in [(30, false), (32, false), (33, true)] {
            let next = note(Some(asking(seconds)), Some(webhook), Some(&noted), SUSPEND_AFTER);
            assert_eq!(matches!(next, Note::Write(_)), writes, "{seconds}");
        }
    }

    #[test]
    fn a_changed_webhook_begins_anew() {
        let uid = uid();
        let old = Failing {
            uid: uid.clone(),
            generation: 1,
            since: BEGIN,
            last: BEGIN + Duration::from_secs(3600),
            rest_until: BEGIN,
        };
        assert!(Streak::noted(&old, (&uid, 1)).is_some());
        let webhook = (&uid, 2);
        assert_eq!(Streak::noted(&old, webhook), None);
        assert_eq!(note(None, Some(webhook), Some(&old), SUSPEND_AFTER), Note::Erase);
        let streak = Streak::begin(BEGIN + Duration::from_secs(7200));
        assert_eq!(
            note(Some(streak), Some(webhook), Some(&old), SUSPEND_AFTER),
            Note::Erase
        );
        assert_eq!(note(Some(streak), None, Some(&old), SUSPEND_AFTER), Note::Erase);
        assert_eq!(note(None, None, None, SUSPEND_AFTER), Note::Keep);
    }
}
