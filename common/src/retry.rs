//! When a failed delivery is tried again. Pure.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::time::Timestamp;

/// How failed deliveries of a webhook are tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Attempts in all; `None` means no limit but `max_age`.
    pub max_attempts: Option<NonZeroU32>,
    /// Delay before the second attempt.
    pub initial_delay: Duration,
    /// How each delay grows; at least 1.
    pub multiplier: f64,
    /// The longest delay.
    pub max_delay: Duration,
    /// How long after acceptance an event is still tried.
    pub max_age: Duration,
    /// Failures that are final: after one of these nothing is tried again.
    pub never_retry: Vec<Final>,
}

impl Default for Policy {
    /// First at once, then after 5 s, doubling up to 5 min, for up to 7 days.
    fn default() -> Self {
        Self {
            max_attempts: None,
            initial_delay: Duration::from_secs(5),
            multiplier: 2.0,
            max_delay: Duration::from_secs(300),
            max_age: Duration::from_secs(7 * 24 * 3600),
            never_retry: Vec::new(),
        }
    }
}

/// Failures that come without an answer, or with a redirect, and that a policy may call final, by their stable reasons. STATUS, GONE and THROTTLED are
/// named by their statuses; PARTIAL is no failure of the request.
pub const FINAL_REASONS: [&str; 9] = [
    "BLOCKED_ADDRESS",
    "CONNECT",
    "DISCONNECTED",
    "NAME_NOT_FOUND",
    "PROTOCOL",
    "REDIRECT",
    "TIMEOUT",
    "TLS",
    "TOKEN",
];

/// Statuses that no class covers: they ask to come again later (408, 425, 429, 503), or speak of the webhook rather than of the event (410).
const IN_NO_CLASS: [u16; 5] = [408, 410, 425, 429, 503];

/// A kind of failure that is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Final {
    /// An answer with this very status, 400 to 599.
    Status(u16),
    /// `4xx`: any answer of 400 to 499 but 408, 410, 425 and 429.
    ClientError,
    /// `5xx`: any answer of 500 to 599 but 503.
    ServerError,
    /// One of [`FINAL_REASONS`].
    Reason(&'static str),
}

impl Final {
    /// Reads what [`Final`] prints: a status, `4xx`, `5xx`, or a reason. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "4xx" => Some(Self::ClientError),
            "5xx" => Some(Self::ServerError),
            _ if text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                let status = text.parse().ok().filter(|status| (400..600).contains(status));
                status.map(Self::Status)
            }
            _ => FINAL_REASONS
                .into_iter()
                .find(|reason| *reason == text)
                .map(Self::Reason),
        }
    }

    /// Whether a failure with this stable reason and, if there was an answer, this status is of the kind.
    pub fn covers(self, reason: &str, status: Option<u16>) -> bool {
        let within = |class: std::ops::Range<u16>| {
            status.is_some_and(|status| class.contains(&status) && !IN_NO_CLASS.contains(&status))
        };
        match self {
            Self::Status(exactly) => status == Some(exactly),
            Self::ClientError => within(400..500),
            Self::ServerError => within(500..600),
            Self::Reason(named) => named == reason,
        }
    }
}

impl fmt::Display for Final {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => status.fmt(formatter),
            Self::ClientError => formatter.write_str("4xx"),
            Self::ServerError => formatter.write_str("5xx"),
            Self::Reason(reason) => formatter.write_str(reason),
        }
    }
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Try again, not before this moment.
    At(Timestamp),
    /// The policy allows no further attempt.
    UsedUp(UsedUp),
}

/// Which limit of the policy was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsedUp {
    /// `max_attempts`.
    Attempts,
    /// `max_age`: the next attempt would come too late.
    Age,
    /// `never_retry`: the failure is final.
    Final,
}

impl Policy {
    /// What follows after `attempts` attempts (1 or more) of an event accepted at `accepted`, the last of which failed at `now`. `retry_after`
    /// is the receiver's wish: it can lengthen the delay up to `max_delay`, never shorten it. `fraction` in `0.0..1.0` is the jitter: up to
    /// half of the delay is taken off.
    pub fn next(
        &self,
        attempts: u32,
        accepted: Timestamp,
        now: Timestamp,
        retry_after: Option<Duration>,
        fraction: f64,
    ) -> Next {
        if self.max_attempts.is_some_and(|most| attempts >= most.get()) {
            return Next::UsedUp(UsedUp::Attempts);
        }
        let wished = retry_after.map_or(Duration::ZERO, |wish| wish.min(self.max_delay));
        let at = now + self.delay(attempts, fraction).max(wished);
        if at.saturating_since(accepted) > self.max_age {
            return Next::UsedUp(UsedUp::Age);
        }
        Next::At(at)
    }

    /// Whether a failure with this stable reason and, if there was an answer, this status is final, whatever [`Policy::next`] would say.
    pub fn is_final(&self, reason: &str, status: Option<u16>) -> bool {
        self.never_retry.iter().any(|kind| kind.covers(reason, status))
    }

    fn delay(&self, attempts: u32, fraction: f64) -> Duration {
        let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial_delay.as_secs_f64() * self.multiplier.powi(exponent);
        let longest = self.max_delay.as_secs_f64();
        let base = if grown.is_finite() { grown.min(longest) } else { longest };
        Duration::try_from_secs_f64(base * (1.0 - fraction.clamp(0.0, 1.0) / 2.0)).unwrap_or(self.max_delay)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_delay_lies_between_half_of_its_base_and_the_longest(
            attempts in 1_u32..2_000_000, initial in 1_u64..3_600_000, more in 0_u64..86_400_000, multiplier in 1.0_f64..10.0,
            fraction in 0.0_f64..1.0,
        ) {
            let policy = Policy {
                initial_delay: Duration::from_millis(initial), max_delay: Duration::from_millis(initial + more), multiplier,
                ..Policy::default()
            };
            let delay = policy.delay(attempts, fraction);
            prop_assert!(delay >= policy.initial_delay / 2 - Duration::from_millis(1) && delay <= policy.max_delay);
        }

        #[test]
        fn nothing_is_tried_beyond_the_policy(
            attempts in 1_u32..50, most in 1_u32..50, age in 0_i64..1_000_000, max_age in 1_u64..1_000, wish in proptest::option::of(0_u64..10_000),
        ) {
            let policy = Policy { max_attempts: NonZeroU32::new(most), max_age: Duration::from_secs(max_age), ..Policy::default() };
            let (accepted, now) = (Timestamp::from_millis(5), Timestamp::from_millis(5 + age));
            match policy.next(attempts, accepted, now, wish.map(Duration::from_secs), 0.5) {
                Next::At(at) => {
                    prop_assert!(attempts < most && at > now);
                    prop_assert!(at.saturating_since(accepted) <= policy.max_age);
                    prop_assert!(at.saturating_since(now) <= policy.max_delay);
                    if let Some(wish) = wish {
                        prop_assert!(at.saturating_since(now) >= Duration::from_secs(wish).min(policy.max_delay));
                    }
                }
                Next::UsedUp(UsedUp::Attempts) => prop_assert!(attempts >= most),
                Next::UsedUp(UsedUp::Age) => prop_assert!(attempts < most),
                Next::UsedUp(UsedUp::Final) => prop_assert!(false, "only a failure is final"),
            }
        }

        #[test]
        fn what_is_read_is_exactly_what_is_printed(text in "[0-9]{1,4}|[3-6]xx|[A-Z_]{2,8}|\\PC{0,6}", known in proptest::sample::select(&FINAL_REASONS[..])) {
            for text in [text.as_str(), known] {
                if let Some(kind) = Final::parse(text) {
                    prop_assert_eq!(kind.to_string(), text);
                }
            }
            prop_assert!(Final::parse(known).is_some());
        }

        #[test]
        fn a_status_is_final_if_it_is_named_or_of_a_named_class_that_covers_it(status in 200_u16..700, named in 400_u16..600) {
            let policy = |texts: &[&str]| Policy {
                never_retry: texts.iter().map(|text| Final::parse(text).unwrap()).collect(), ..Policy::default()
            };
            let exact = policy(&["TLS", &named.to_string()]);
            prop_assert!(exact.is_final("STATUS", Some(named)));
            prop_assert_eq!(exact.is_final("STATUS", Some(status)), status == named);
            let asks_to_wait = [408, 425, 429, 503].contains(&status);
            let classes = policy(&["4xx", "5xx"]);
            let expected = (400..600).contains(&status) && !asks_to_wait && status != 410;
            prop_assert_eq!(classes.is_final("STATUS", Some(status)), expected);
            prop_assert!(!classes.is_final("TLS", None) && exact.is_final("TLS", None) && !exact.is_final("TIMEOUT", None));
        }
    }

    #[test]
    fn the_default_doubles_from_five_seconds_to_five_minutes() {
        let delays: Vec<u64> = (1..=8)
            .map(|attempts| Policy::default().delay(attempts, 0.0).as_secs())
            .collect();
        assert_eq!(delays, [5, 10, 20, 40, 80, 160, 300, 300]);
    }
}
