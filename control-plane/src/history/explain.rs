//! Why a delivery is where it is, in words. Pure.

use postrider_common::key::ParkedKind;
use postrider_common::model::failing::Failing;
use postrider_common::model::webhook::{Webhook, WhenInactive};
use postrider_common::shard::ShardId;
use postrider_common::time::Timestamp;

use super::standing::{Standing, State};
use super::walk::Made;

/// What a delivery's place comes down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It was delivered.
    Delivered,
    /// It is a dead letter.
    Dead,
    /// It was dropped.
    Dropped,
    /// Its webhook is retired.
    WebhookRetired,
    /// The system has switched its webhook off.
    WebhookSuspended,
    /// No agent owns its shard.
    NoOwner,
    /// It waits for its next attempt.
    Retry,
    /// It waits for its batch.
    Batch,
    /// Its own time has not come.
    NotBefore,
    /// It is about to be sent, or being sent.
    InTurn,
    /// Nothing is known of it.
    Unknown,
}

/// All that is known.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    /// The webhook, as it is now.
    pub(crate) webhook: &'a Webhook,
    /// Its shard.
    pub(crate) shard: ShardId,
    /// Who owns it.
    pub(crate) owner: Option<&'a str>,
    /// The delivery.
    pub(crate) delivery: Option<&'a Standing>,
    /// Its last attempt, as far as the history tells of one.
    pub(crate) last: Option<&'a Made>,
    /// Since when the webhook only fails, if it is noted.
    pub(crate) failing: Option<&'a Failing>,
    /// Stored segments of the queue before its own.
    pub(crate) ahead: u32,
    /// The present moment.
    pub(crate) now: Timestamp,
}

/// Why it is where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Explanation {
    /// What it comes down to.
    pub(crate) cause: Cause,
    /// The same in a sentence.
    pub(crate) summary: String,
    /// What else bears on it.
    pub(crate) details: Vec<String>,
}

/// Explains.
pub(crate) fn explain(facts: &Facts<'_>) -> Explanation {
    let Some(delivery) = facts.delivery else {
        return unknown(facts);
    };
    let (cause, summary) = match delivery.state {
        State::Pending | State::Waiting => waits(facts, delivery),
        State::Delivered => (Cause::Delivered, delivered(delivery)),
        State::Dead => (Cause::Dead, dead(delivery)),
        State::Dropped => (
            Cause::Dropped,
            format!("it was dropped{}: {}", at(delivery.end), meaning(&delivery.reason)),
        ),
    };
    let mut details = Vec::new();
    if let Some(last) = facts.last {
        details.push(attempt(last));
    }
    if matches!(delivery.state, State::Pending | State::Waiting) {
        details.extend(bearing(facts, delivery));
    }
    Explanation {
        cause,
        summary,
        details,
    }
}

fn waits(facts: &Facts<'_>, delivery: &Standing) -> (Cause, String) {
    let webhook = facts.webhook;
    if !webhook.active {
        let summary = "its webhook is retired (active is false): it waits until the webhook is active again";
        return (Cause::WebhookRetired, summary.into());
    }
    if let Some(suspension) = webhook.suspended() {
        let summary = format!(
            "the system switched its webhook off at {} ({}: {}): it waits until an update sets active to true",
            suspension.time, suspension.reason, suspension.detail
        );
        return (Cause::WebhookSuspended, summary);
    }
    if facts.owner.is_none() {
        let summary = format!(
            "no agent owns shard {}, to which its webhook belongs: it waits until one does",
            facts.shard
        );
        return (Cause::NoOwner, summary);
    }
    let due = delivery.due.filter(|due| *due > facts.now);
    if delivery.attempts > 0
        && let Some(due) = due
    {
        let policy = webhook.retry.max_attempts;
        let of = policy.map_or_else(String::new, |most| format!(" of at most {most}"));
        let summary = format!(
            "attempt {}{of} failed ({}): it waits for the next one, not before {due}",
            delivery.attempts,
            outcome(&delivery.reason, delivery.status),
        );
        return (Cause::Retry, summary);
    }
    let not_before = delivery.body.as_ref().and_then(|event| event.not_before_time);
    if let Some(moment) = not_before.filter(|moment| *moment > facts.now) {
        let summary = format!("it was published with the order not to be sent before {moment}");
        return (Cause::NotBefore, summary);
    }
    if let ParkedKind::Gathering(_) = delivery.kind {
        let when = match &webhook.batching.schedule {
            Some(schedule) => format!("the schedule \"{}\" ({})", schedule.cron(), schedule.time_zone()),
            None => "company, or until it has waited long enough".into(),
        };
        let by = delivery
            .due
            .map_or_else(String::new, |due| format!(", at the latest until {due}"));
        return (Cause::Batch, format!("it goes in a batch, which waits for {when}{by}"));
    }
    (Cause::InTurn, in_turn(delivery))
}

fn in_turn(delivery: &Standing) -> String {
    match (delivery.state, delivery.attempts) {
        (State::Pending, _) => "it was accepted, and its agent is about to send it, or is sending it now".into(),
        (_, 0) => "it waits its turn in the store, because more is accepted for its webhook than its receiver takes, or is being sent now".into(),
        (_, attempts) => format!(
            "attempt {attempts} failed ({}), and the next one is due: it is being made, or waits until the receiver is well",
            outcome(&delivery.reason, delivery.status)
        ),
    }
}

/// What bears on a delivery that has not ended.
fn bearing(facts: &Facts<'_>, delivery: &Standing) -> Vec<String> {
    let mut details = Vec::new();
    if let Some(owner) = facts.owner {
        details.push(format!("the agent {owner} owns shard {}", facts.shard));
    }
    if let Some(failing) = facts.failing {
        details.push(format!(
            "every attempt of this webhook has failed since {}: while its receiver seems to be down, one request at a time finds out whether it is back, and \
             everything else waits (only the agent knows how long the pause is at the moment)",
            failing.since
        ));
    }
    if delivery.state == State::Pending && facts.ahead > 0 {
        details.push(format!(
            "{} stored blocks of accepted events come before its own",
            facts.ahead
        ));
    }
    if let Some(batch) = &delivery.batch {
        details.push(format!("it is part of {batch}, which is sent as a whole"));
    }
    if let Some(limit) = facts.webhook.rate_limit {
        details.push(format!("the webhook allows {} requests a second", limit.per_second()));
    }
    let expires = delivery.body.as_ref().and_then(|event| event.expire_time);
    if let Some(expires) = expires {
        details.push(format!(
            "it becomes a dead letter at {expires} if it is not delivered before"
        ));
    }
    details
}

fn delivered(delivery: &Standing) -> String {
    let status = delivery
        .status
        .map_or_else(String::new, |status| format!(" with {status}"));
    let count = if delivery.attempts > 1 {
        format!(", at attempt {}", delivery.attempts)
    } else {
        String::new()
    };
    format!("its receiver took it{}{status}{count}", at(delivery.end))
}

fn dead(delivery: &Standing) -> String {
    let tried = match delivery.attempts {
        0 => "it was never tried".to_owned(),
        1 => "it was tried once".to_owned(),
        attempts => format!("it was tried {attempts} times"),
    };
    let why = match delivery.status {
        Some(_) => outcome(&delivery.reason, delivery.status),
        None => meaning(&delivery.reason),
    };
    format!("it became a dead letter{}: {why}; {tried}", at(delivery.end))
}

fn unknown(facts: &Facts<'_>) -> Explanation {
    let webhook = facts.webhook;
    let patterns: Vec<String> = webhook.event_types.iter().map(ToString::to_string).collect();
    let mut details = vec![
        format!(
            "events accepted before the webhook was created at {} do not go to it",
            webhook.create_time
        ),
        format!("its trigger events are {}: others do not match", patterns.join(", ")),
    ];
    if !webhook.is_serving() && webhook.when_inactive == WhenInactive::Drop {
        details.push("it is not active, and what is published meanwhile does not match (when_inactive is DROP)".into());
    }
    details.push("the event may never have been published, or to another account".into());
    details.push(
        "if it was delivered: the history comes about a second late, reaches back only so far, and leaves out successes of very busy shards".into(),
    );
    Explanation {
        cause: Cause::Unknown,
        summary: "nothing is known of this event for this webhook".into(),
        details,
    }
}

fn attempt(made: &Made) -> String {
    let attempt = &made.attempt;
    let to = attempt
        .address
        .map_or_else(String::new, |address| format!(" to {address}"));
    let came = if attempt.reason.is_empty() {
        attempt.status.map_or_else(String::new, |status| status.to_string())
    } else {
        outcome(&attempt.reason, attempt.status)
    };
    let detail = attempt
        .detail
        .as_deref()
        .map_or_else(String::new, |detail| format!(": {detail}"));
    format!(
        "attempt {} at {}{to} took {:?} and came to {came}{detail}",
        attempt.number, made.entry.time, attempt.duration,
    )
}

fn at(moment: Option<Timestamp>) -> String {
    moment.map_or_else(String::new, |moment| format!(" at {moment}"))
}

fn outcome(reason: &str, status: Option<u16>) -> String {
    match status {
        Some(status) => format!("{reason}, status {status}"),
        None => reason.to_owned(),
    }
}

/// A reason that says little by itself, in words.
fn meaning(reason: &str) -> String {
    match reason {
        "EXPIRED" => "EXPIRED, its expire_time had passed, or came before the next attempt".into(),
        "AGE" => "AGE, it had waited longer than the webhook's max_age allows".into(),
        other => other.to_owned(),
    }
}
