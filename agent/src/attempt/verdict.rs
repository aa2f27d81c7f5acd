//! What a receiver's answer means. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Outcome, Reason};

/// The outcome of an attempt that was answered with `status`. `retry_after` is what the answer's header asked for, if it could be read.
///
/// Any 2xx is success, whatever its body. 429, and 503 with a time to come back at, ask for the whole webhook to be left alone; on other answers the
/// header is not heeded. A status that is none (below 200 when it is final, or beyond 599) breaks the protocol.
pub fn verdict(status: u16, retry_after: Option<Duration>) -> Outcome {
    let (reason, retry_after) = match status {
        200..=299 => return Outcome::Delivered { status },
        300..=399 => (Reason::Redirect, None),
        410 => (Reason::Gone, None),
        429 => (Reason::Throttled, retry_after),
        503 if retry_after.is_some() => (Reason::Throttled, retry_after),
        400..=599 => (Reason::Status, None),
        0..=199 | 600..=u16::MAX => (Reason::Protocol, None),
    };
    Outcome::Failed {
        reason,
        status: Some(status),
        retry_after,
    }
}

/// The events of a request that the receiver did not take, if it took it in part: the ids in the member `failed` of the answer's body, a JSON object, that
/// are among `sent`. A body of any other form says nothing: everything was taken.
pub fn not_taken<'a>(body: &[u8], sent: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        failed: BTreeSet<String>,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
        return BTreeSet::new();
    };
    sent.filter(|id| answer.failed.contains(*id))
        .map(str::to_owned)
        .collect()
}

/// How long a request with several events may take: a hundred more take as long again as one, up to four times as long.
pub fn timeout(one: Duration, events: usize) -> Duration {
    let more = u32::try_from(events.saturating_sub(1)).unwrap_or(u32::MAX);
    one + one.saturating_mul(more.min(300)) / 100
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reason(status: u16, retry_after: Option<Duration>) -> Option<Reason> {
        match verdict(status, retry_after) {
            Outcome::Failed { reason, .. } => Some(reason),
            Outcome::Delivered { .. } | Outcome::Partial { .. } => None,
            Outcome::NotMade { why } => panic!("{why}"),
        }
    }

    proptest! {
        #[test]
        fn exactly_the_2xx_are_deliveries_and_the_status_is_kept(status: u16, wait: Option<u8>) {
            let wait = wait.map(|seconds| Duration::from_secs(seconds.into()));
            match verdict(status, wait) {
                Outcome::Delivered { status: kept } => prop_assert!((200..300).contains(&status) && kept == status),
                Outcome::Failed { status: kept, reason, retry_after } => {
                    prop_assert!(!(200..300).contains(&status));
                    prop_assert_eq!(kept, Some(status));
                    prop_assert!(retry_after.is_none() || (reason == Reason::Throttled && retry_after == wait));
                }
                other @ (Outcome::Partial { .. } | Outcome::NotMade { .. }) => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn only_events_that_were_sent_can_be_left(body: Vec<u8>, failed in proptest::collection::vec("[a-c]{1,2}", 0..6)) {
            let sent = ["a", "b", "ab"];
            prop_assert!(not_taken(&body, sent.into_iter()).is_empty());
            let body = serde_json::to_vec(&serde_json::json!({ "failed": failed, "more": 1 })).unwrap();
            let left = not_taken(&body, sent.into_iter());
            for id in sent {
                prop_assert_eq!(left.contains(id), failed.iter().any(|failed| failed == id));
            }
            prop_assert!(left.len() <= sent.len());
        }

        #[test]
        fn more_events_have_more_time_but_never_more_than_four_times_as_much(events in 1_usize..5_000, millis in 1_000_u64..60_000) {
            let one = Duration::from_millis(millis);
            prop_assert_eq!(timeout(one, 1), one);
            prop_assert!(timeout(one, events) >= one && timeout(one, events) <= one * 4);
            prop_assert!(timeout(one, events + 1) >= timeout(one, events));
        }
    }

    #[test]
    fn each_kind_of_answer_has_its_reason() {
        let wait = Some(Duration::from_secs(7));
        for status in [100, 101, 103, 199, 0, 99, 600, 999] {
            assert_eq!(reason(status, wait), Some(Reason::Protocol), "{status}");
        }
        for status in [300, 301, 302, 304, 307, 308] {
            assert_eq!(reason(status, wait), Some(Reason::Redirect), "{status}");
        }
        for status in [400, 401, 404, 408, 413, 418, 500, 502, 504, 599] {
            assert_eq!(reason(status, wait), Some(Reason::Status), "{status}");
        }
        assert_eq!(reason(410, wait), Some(Reason::Gone));
        assert_eq!(reason(429, None), Some(Reason::Throttled));
        assert_eq!(reason(429, wait), Some(Reason::Throttled));
        assert_eq!(reason(503, wait), Some(Reason::Throttled));
        assert_eq!(reason(503, None), Some(Reason::Status));
    }
}
