//! What operational events say, and the ids that make each of them come once. Pure.

use std::sync::Arc;
use std::time::Duration;

use postrider_common::id::{EventId, EventName, RequestId, WebhookId};
use postrider_common::key::{self, Key};
use postrider_common::model::event_type::Category;
use postrider_common::model::operational::{
    DELIVERY_DEAD_LETTERED, WEBHOOK_REACTIVATED, WEBHOOK_SUSPENDED, is_operational,
};
use postrider_common::model::segment::{Event, Segment};
use postrider_common::model::webhook::Webhook;
use postrider_common::time::Timestamp;
use sha2::{Digest as _, Sha256};

/// Older suspensions are not announced any more. A request id is kept for 25 hours from the announcement, so within this time a new leader finds those of its
/// predecessor; the hour between allows for clocks that differ.
const RECENT: Duration = Duration::from_secs(24 * 3600);

/// The same for dead letters: there may be many, and a new leader looks at all that are recent.
const RECENT_DEATH: Duration = Duration::from_secs(3600);

/// Dead letters that one event lists.
const MOST_LISTED: usize = 100;

/// An event to be published, once.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Announcement {
    /// The event; its moment of acceptance is still to come.
    pub(super) event: Arc<Event>,
    /// Made of what happened, so that it is the same whoever announces it.
    pub(super) request: RequestId,
    /// The webhook that it is about.
    pub(super) about: WebhookId,
}

/// The name of events about dead letters.
pub(super) fn dead_lettered() -> Option<EventName> {
    EventName::new(DELIVERY_DEAD_LETTERED).ok()
}

/// Whether dead letters whose first died at `at` are still announced at `now`.
pub(super) fn is_recent_death(at: Timestamp, now: Timestamp) -> bool {
    now.saturating_since(at) < RECENT_DEATH
}

/// What is to be said of a webhook at `now`.
pub(super) fn of_webhook(webhook: &Webhook, now: Timestamp) -> Vec<Announcement> {
    let Some(suspension) = &webhook.suspension else {
        return Vec::new();
    };
    let uid = webhook.uid.as_str();
    let begun = webhook.suspended().map(|suspension| {
        let data = serde_json::json!({
            "webhook": resource(webhook),
            "uid": uid,
            "reason": suspension.reason,
            "detail": suspension.detail,
            "suspendTime": suspension.time.to_string(),
        });
        (WEBHOOK_SUSPENDED, suspension.time, data)
    });
    let ended = suspension.end_time.map(|time| {
        let data = serde_json::json!({
            "webhook": resource(webhook),
            "uid": uid,
            "reactivateTime": time.to_string(),
        });
        (WEBHOOK_REACTIVATED, time, data)
    });
    let recent = [begun, ended]
        .into_iter()
        .flatten()
        .filter(|(_, time, _)| now.saturating_since(*time) < RECENT);
    let announcements = recent.filter_map(|(name, time, data)| {
        let what = format!("{name}|{uid}|{}", time.as_millis());
        announcement(name, &what, time, &data, (&webhook.account, &webhook.id))
    });
    announcements.collect()
}

/// What is to be said of a segment of dead letters. A dead letter that is itself an operational event causes none.
pub(super) fn of_dead(key: &Key, segment: &Segment) -> Option<Announcement> {
    let at = key::parse_dead(key)?;
    let deliveries = segment.targets.iter().flat_map(|target| &target.deliveries);
    let dead = deliveries.filter_map(|delivery| {
        let event = segment.events.get(delivery.event as usize)?;
        (!is_operational(&event.name)).then_some((event, &delivery.state))
    });
    let dead: Vec<_> = dead.collect();
    let first = dead.iter().map(|(_, state)| state.due).min()?;
    let listed = dead.iter().take(MOST_LISTED).map(|(event, state)| {
        serde_json::json!({
            "eventId": event.id.as_str(),
            "eventName": event.name.as_str(),
            "reason": state.reason,
            "attempts": state.attempts,
            "deathTime": state.due.to_string(),
        })
    });
    let data = serde_json::json!({
        "webhook": format!("accounts/{}/webhooks/{}", at.account, at.webhook),
        "count": dead.len(),
        "events": listed.collect::<Vec<_>>(),
    });
    announcement(
        DELIVERY_DEAD_LETTERED,
        key.as_str(),
        first,
        &data,
        (&at.account, &at.webhook),
    )
}

fn resource(webhook: &Webhook) -> String {
    format!("accounts/{}/webhooks/{}", webhook.account, webhook.id)
}

/// `what` names what happened: the ids are made of it.
fn announcement(
    name: &str,
    what: &str,
    time: Timestamp,
    data: &serde_json::Value,
    (account, webhook): (&postrider_common::id::AccountId, &WebhookId),
) -> Option<Announcement> {
    let hash: [u8; 32] = Sha256::digest(format!("{account}|{what}")).into();
    let bytes = <[u8; 16]>::try_from(hash.get(..16)?).ok()?;
    let id = uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string();
    Some(Announcement {
        event: Arc::new(Event {
            account: account.clone(),
            id: EventId::new(&id).ok()?,
            name: EventName::new(name).ok()?,
            timestamp: time,
            ordering_key: None,
            expire_time: None,
            event_info: None,
            data: data.to_string().into(),
            accept_time: Timestamp::default(),
            traceparent: None,
            category: Category::RealTime,
            not_before_time: None,
        }),
        request: RequestId::new(&id).ok()?,
        about: webhook.clone(),
    })
}

#[cfg(test)]
mod tests;
