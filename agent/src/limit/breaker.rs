//! The breaker of one webhook: while the receiver seems to be down nothing is sent but one probe at a time. Pure.

use std::time::Duration;

use postrider_common::time::Timestamp;

use super::failing::Streak;
use crate::attempt::{Outcome, Reason};

/// Failures in a row that trip the breaker: one or two come with every restart of a receiver, and five cost it nothing.
pub const TRIP_AFTER: u32 = 5;

/// The first pause. Much shorter than the first retry of an event, so that a hiccup is over before anybody notices.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause: a receiver that is back gets its backlog within a minute, and one that is gone costs an attempt a minute.
pub const LAST_PAUSE: Duration = Duration::from_secs(60);

/// The longest that a receiver's own wish is followed: beyond it, a mistaken header would silence a webhook for days.
pub const LONGEST_WISH: Duration = Duration::from_secs(3600);

/// Requests at once beyond which the way back is over: more than a webhook may have.
const FULL_SPEED: u32 = 1024;

/// How an attempt ended, as far as the receiver's health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Any 2xx.
    Success,
    /// The receiver did not take it.
    Failure {
        /// Why.
        reason: Reason,
        /// The HTTP status, if there was an answer.
        status: Option<u16>,
        /// How long the receiver asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The attempt could not be made, or was cut: nothing can be said about the receiver.
    NotMade,
}

impl From<&Outcome> for Ended {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Delivered { .. } | Outcome::Partial { .. } => Self::Success,
            Outcome::Failed {
                reason,
                status,
                retry_after,
            } => Self::Failure {
                reason: *reason,
                status: *status,
                retry_after: *retry_after,
            },
            Outcome::NotMade { .. } => Self::NotMade,
        }
    }
}

/// The breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    state: State,
    streak: Option<Streak>,
    /// Unwell failures since the receiver last answered.
    failures: u32,
    /// Trips since it last went at full speed: what the pause grows with.
    trips: u32,
    /// The receiver answered last time.
    proven: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Attempts start, so many at once.
    Serving(u32),
    /// Nothing starts before this moment.
    Tripped(Timestamp),
    /// One attempt is under way, and it decides.
    Probing,
}

impl Default for Breaker {
    /// Of a webhook of which nothing is known: at full speed.
    fn default() -> Self {
        Self {
            state: State::Serving(u32::MAX),
            streak: None,
            failures: 0,
            trips: 0,
            proven: false,
        }
    }
}

impl Breaker {
    /// The breaker of a webhook that was failing when another agent had it: it begins with a probe, after the rest that was asked for.
    pub const fn resume(streak: Streak) -> Self {
        Self {
            state: State::Tripped(streak.rest_until),
            streak: Some(streak),
            failures: 0,
            trips: 0,
            proven: false,
        }
    }

    /// The webhook is switched on again: what has piled up does not fall upon the receiver at once.
    pub const fn careful(&mut self) {
        self.reconfigured(Timestamp::from_millis(0));
        self.state = State::Tripped(Timestamp::from_millis(0));
    }

    /// The webhook's configuration changed, so what failed before says nothing: the streak is forgotten, and a pause ends.
    pub const fn reconfigured(&mut self, now: Timestamp) {
        self.streak = None;
        self.failures = 0;
        self.trips = 0;
        if let State::Tripped(_) = self.state {
            self.state = State::Tripped(now);
        }
    }

    /// Whether an attempt may start, with `in_flight` of them under way and `max_in_flight` allowed by the webhook. A probe goes alone: it starts only
    /// when what was under way before has ended, which the webhook's timeout bounds.
    pub fn may_start(&self, now: Timestamp, in_flight: u32, max_in_flight: u32) -> bool {
        match self.state {
            State::Serving(allowed) => in_flight < max_in_flight.min(allowed),
            State::Tripped(until) => until <= now && in_flight == 0 && max_in_flight > 0,
            State::Probing => false,
        }
    }

    /// Notes that an attempt started. Call it only after [`Breaker::may_start`].
    pub const fn started(&mut self) {
        if let State::Tripped(_) = self.state {
            self.state = State::Probing;
        }
    }

    /// Notes how an attempt ended. `fraction` in `0.0..1.0` is the jitter: up to half of a pause is taken off, but nothing of what the receiver asked for.
    pub fn ended(&mut self, ended: Ended, now: Timestamp, fraction: f64) {
        match ended {
            Ended::NotMade => {
                if self.state == State::Probing {
                    self.state = State::Tripped(now);
                }
            }
            Ended::Success => {
                self.streak = None;
                self.answered();
            }
            Ended::Failure {
                reason,
                status,
                retry_after,
            } => {
                let mut streak = self
                    .streak
                    .map_or_else(|| Streak::begin(now), |streak| streak.failed(now));
                if let Some(wish) = retry_after.filter(|_| is_unwell(reason, status)) {
                    streak.rest_until = streak.rest_until.max(now + wish.min(LONGEST_WISH));
                }
                self.streak = Some(streak);
                if is_unwell(reason, status) {
                    self.unwell(reason, retry_after, now, fraction);
                } else {
                    self.answered();
                }
            }
        }
    }

    /// While it is tripped: until when nothing starts.
    pub const fn until(&self) -> Option<Timestamp> {
        match self.state {
            State::Tripped(until) => Some(until),
            State::Serving(_) | State::Probing => None,
        }
    }

    /// When the first attempt failed of those since the last success.
    pub fn failing_since(&self) -> Option<Timestamp> {
        self.streak.map(|streak| streak.since)
    }

    /// The failures since the last success.
    pub const fn streak(&self) -> Option<Streak> {
        self.streak
    }

    /// Whether more than a probe may be under way.
    pub const fn is_serving(&self) -> bool {
        matches!(self.state, State::Serving(_))
    }

    /// Whether the receiver answered the last time that it was asked: of a webhook of which nothing is known that cannot be said.
    pub const fn is_proven(&self) -> bool {
        self.proven
    }

    /// The receiver is known to have answered the last time.
    pub const fn trust(&mut self) {
        self.proven = true;
    }

    fn answered(&mut self) {
        self.failures = 0;
        self.proven = true;
        match self.state {
            State::Probing => self.state = State::Serving(2),
            State::Serving(allowed) => {
                let allowed = allowed.saturating_mul(2);
                if allowed >= FULL_SPEED {
                    self.trips = 0;
                    self.state = State::Serving(u32::MAX);
                } else {
                    self.state = State::Serving(allowed);
                }
            }
            // An answer to what was sent before. What was asked for stands, and the probe comes soon.
            State::Tripped(_) => {}
        }
    }

    fn unwell(&mut self, reason: Reason, retry_after: Option<Duration>, now: Timestamp, fraction: f64) {
        self.failures = self.failures.saturating_add(1);
        self.proven = false;
        let wish = retry_after.map(|wish| now + wish.min(LONGEST_WISH));
        match self.state {
            State::Serving(_) if reason != Reason::Throttled && self.failures < TRIP_AFTER => {}
            // Sent before the breaker tripped: says nothing new, but a wish is heard.
            State::Tripped(until) => self.state = State::Tripped(wish.map_or(until, |wish| wish.max(until))),
            State::Serving(_) | State::Probing => {
                self.failures = 0;
                let until = wish.unwrap_or_else(|| {
                    let pause = pause(self.trips, fraction);
                    // A receiver that names its own time needs no growing pauses.
                    self.trips = self.trips.saturating_add(1);
                    now + pause
                });
                self.state = State::Tripped(until);
            }
        }
    }
}

/// Whether a failure speaks against the receiver as a whole, rather than against one event.
///
/// It does when no answer came, when the answer was no HTTP, and for answers that every event would get: 5xx, 429, 408 (the receiver was too busy to
/// read), 401 (the credentials are the webhook's), 410 and redirects (the URL is), and an address that is forbidden. Any other 4xx may be about
/// this one event, and shows that the receiver is there.
pub const fn is_unwell(reason: Reason, status: Option<u16>) -> bool {
    match reason {
        Reason::Status => !matches!(status, Some(400..=499)) || matches!(status, Some(401 | 408)),
        Reason::Redirect
        | Reason::Gone
        | Reason::Throttled
        | Reason::Timeout
        | Reason::NameNotFound
        | Reason::BlockedAddress
        | Reason::Connect
        | Reason::Tls
        | Reason::Disconnected
        | Reason::Token
        | Reason::Protocol => true,
        Reason::Partial => false,
    }
}

fn pause(trips: u32, fraction: f64) -> Duration {
    let grown = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(trips)).min(LAST_PAUSE);
    grown.mul_f64(1.0 - fraction.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests;
