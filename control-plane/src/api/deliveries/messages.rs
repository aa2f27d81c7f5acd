//! From deliveries and attempts to the messages of the API. Pure.

use postrider_common::id::{AccountId, EventId, WebhookId};
use postrider_common::model::history::{Attempt, Carried, Entry, Fate};
use postrider_common::model::segment::Event;
use postrider_common::model::webhook::Webhook;
use postrider_proto::v1;
use v1::delivery::State as Shown;

use super::rules::Bodies;
use crate::api::convert::{duration, number, timestamp};
use crate::catalog::edit::Resource as _;
use crate::history::Subject;
use crate::history::standing::{Standing, State};

/// A delivery as callers see it.
pub(super) fn delivery(subject: &Subject, standing: &Standing, bodies: Bodies) -> v1::Delivery {
    let body = standing.body.as_deref().filter(|_| bodies == Bodies::Shown);
    v1::Delivery {
        name: name(&subject.account, &subject.webhook, &standing.event),
        event_id: standing.event.to_string(),
        event_name: standing.name.to_string(),
        timestamp: Some(timestamp(standing.timestamp)),
        accept_time: Some(timestamp(standing.accept_time)),
        state: shown(standing.state).into(),
        attempts: number(standing.attempts),
        next_attempt_time: standing.due.map(timestamp),
        reason: standing.reason.clone(),
        status_code: standing.status.map_or(0, i32::from),
        end_time: standing.end.map(timestamp),
        batch_id: standing.batch.as_deref().unwrap_or_default().to_owned(),
        event: body.map(event),
    }
}

/// An attempt as callers see it.
pub(super) fn attempt(entry: &Entry, attempt: &Attempt, events: &[Carried]) -> v1::Attempt {
    let (account, webhook) = (&entry.account, &entry.webhook);
    let header = |(name, value): &(String, String)| v1::Header {
        name: name.clone(),
        value: value.clone(),
    };
    let first = events.first().map_or("", |carried| carried.event.as_str());
    let answer = attempt.answer.as_deref();
    v1::Attempt {
        webhook: Webhook::name(&(account.clone(), webhook.clone())),
        number: number(attempt.number),
        message_id: attempt.message.as_deref().unwrap_or(first).to_owned(),
        start_time: Some(timestamp(entry.time)),
        duration: Some(duration(attempt.duration)),
        address: attempt.address.map_or_else(String::new, |address| address.to_string()),
        status_code: attempt.status.map_or(0, i32::from),
        reason: attempt.reason.clone().into_owned(),
        response_headers: answer.map_or_else(Vec::new, |answer| answer.headers.iter().map(header).collect()),
        response_body: answer.map_or_else(String::new, |answer| answer.body.clone()),
        response_truncated: answer.is_some_and(|answer| answer.truncated),
        webhook_generation: i64::try_from(attempt.generation).unwrap_or(i64::MAX),
        secret_ids: attempt.secrets.iter().map(ToString::to_string).collect(),
        results: events.iter().map(|carried| result(account, webhook, carried)).collect(),
        detail: attempt.detail.clone().unwrap_or_default(),
    }
}

fn result(account: &AccountId, webhook: &WebhookId, carried: &Carried) -> v1::attempt::Result {
    let (state, due, reason) = match &carried.fate {
        Fate::Delivered => (Shown::Delivered, None, ""),
        Fate::Waiting(due) => (Shown::Waiting, Some(*due), ""),
        Fate::Dead(reason) => (Shown::Dead, None, &**reason),
        Fate::Dropped(reason) => (Shown::Dropped, None, &**reason),
    };
    v1::attempt::Result {
        delivery: name(account, webhook, &carried.event),
        event_name: carried.name.to_string(),
        accept_time: Some(timestamp(carried.accept_time)),
        state: state.into(),
        next_attempt_time: due.map(timestamp),
        reason: reason.to_owned(),
    }
}

/// The name of a delivery.
fn name(account: &AccountId, webhook: &WebhookId, event: &EventId) -> String {
    let parent = Webhook::name(&(account.clone(), webhook.clone()));
    format!("{parent}/deliveries/{event}")
}

const fn shown(state: State) -> Shown {
    match state {
        State::Pending => Shown::Pending,
        State::Waiting => Shown::Waiting,
        State::Dead => Shown::Dead,
        State::Delivered => Shown::Delivered,
        State::Dropped => Shown::Dropped,
    }
}

fn event(event: &Event) -> v1::Event {
    v1::Event {
        event_id: event.id.to_string(),
        event_name: event.name.to_string(),
        timestamp: Some(timestamp(event.timestamp)),
        ordering_key: event.ordering_key.as_deref().unwrap_or_default().to_owned(),
        expire_time: event.expire_time.map(timestamp),
        not_before_time: event.not_before_time.map(timestamp),
        event_info: event.event_info.as_deref().unwrap_or_default().to_owned(),
        body: Some(v1::event::Body::DataJson(event.data.clone())),
    }
}
