//! From the model to the messages of the API. Secrets have no way through here. Pure.
//!
//! Answers show what is in force: a field that was left to its default shows the default.

use std::num::NonZeroU32;
use std::time::Duration;

use postrider_common::model::account::{Account, DEFAULT_MAX_BACKLOG_BYTES, UnknownEventTypes};
use postrider_common::model::auth::ClientAuthentication;
use postrider_common::model::batching::Mode;
use postrider_common::model::event_type::{Category, EventType};
use postrider_common::model::order::{OnFailure, Ordering};
use postrider_common::model::webhook::{
    Auth, DEFAULT_MAX_IN_FLIGHT, DEFAULT_TIMEOUT, HttpVersion, PayloadFormat, SigningSecret, Suspension, Webhook,
    WhenInactive,
};
use postrider_common::signature::Algorithm;
use postrider_common::time::Timestamp;
use postrider_proto::v1;
use v1::auth::Method;

use super::json;
use crate::catalog::edit::Resource as _;

/// A webhook as callers see it at `now` (secrets that have expired by then are not named).
pub(crate) fn webhook(webhook: &Webhook, now: Timestamp) -> v1::Webhook {
    let (state, state_reason) = match webhook.suspended() {
        _ if !webhook.active => (
            v1::webhook::State::Retired,
            "switched off by its owner: active is false".to_owned(),
        ),
        Some(suspension) => (v1::webhook::State::Suspended, suspension_reason(suspension)),
        None => (v1::webhook::State::Active, String::new()),
    };
    let when_inactive = match webhook.when_inactive {
        WhenInactive::Drop => v1::webhook::WhenInactive::Drop,
        WhenInactive::Hold => v1::webhook::WhenInactive::Hold,
    };
    let header = |(name, value): &(String, String)| v1::Header {
        name: name.clone(),
        value: value.clone(),
    };
    v1::Webhook {
        name: Webhook::name(&(webhook.account.clone(), webhook.id.clone())),
        uid: webhook.uid.to_string(),
        etag: webhook.etag().to_string(),
        create_time: Some(timestamp(webhook.create_time)),
        update_time: Some(timestamp(webhook.update_time)),
        generation: i64::try_from(webhook.generation).unwrap_or(i64::MAX),
        display_name: webhook.display_name.clone(),
        description: webhook.description.clone(),
        target_url: webhook.target_url.clone(),
        auth: Some(auth(&webhook.auth, now)),
        event_types: webhook.event_types.iter().map(ToString::to_string).collect(),
        filter: String::new(),
        active: Some(webhook.active),
        state: state.into(),
        state_reason,
        when_inactive: when_inactive.into(),
        delivery: Some(v1::DeliveryOptions {
            mode: match webhook.batching.mode {
                Mode::ByType => v1::delivery_options::Mode::Unspecified,
                Mode::RealTime => v1::delivery_options::Mode::RealTime,
                Mode::Batch => v1::delivery_options::Mode::Batch,
            }
            .into(),
            max_events: number(webhook.batching.max_events.map_or(0, NonZeroU32::get)),
            max_bytes: webhook.batching.max_bytes.map_or(0, |most| most.get().into()),
            max_delay: webhook.batching.max_delay.map(duration),
            schedule: webhook.batching.schedule.as_ref().map(|schedule| v1::Schedule {
                cron: schedule.cron().to_owned(),
                time_zone: schedule.time_zone().to_owned(),
            }),
            ordering: match webhook.order.ordering {
                Ordering::None => v1::delivery_options::Ordering::None,
                Ordering::PerKey => v1::delivery_options::Ordering::PerKey,
                Ordering::Strict => v1::delivery_options::Ordering::Strict,
            }
            .into(),
            // As chosen: an update that changes only the ordering must not turn a default into a choice.
            on_failure: match webhook.order.on_failure {
                None => v1::delivery_options::OnFailure::Unspecified,
                Some(OnFailure::DeadLetter) => v1::delivery_options::OnFailure::DeadLetter,
                Some(OnFailure::Block) => v1::delivery_options::OnFailure::Block,
                Some(OnFailure::ParkKey) => v1::delivery_options::OnFailure::ParkKey,
            }
            .into(),
            max_in_flight: number(webhook.max_in_flight.unwrap_or(DEFAULT_MAX_IN_FLIGHT).get()),
            timeout: Some(duration(webhook.timeout.unwrap_or(DEFAULT_TIMEOUT))),
            http_version: match webhook.http_version {
                HttpVersion::Negotiated => v1::delivery_options::HttpVersion::Unspecified,
                HttpVersion::Http1 => v1::delivery_options::HttpVersion::Http11,
                HttpVersion::Http2 => v1::delivery_options::HttpVersion::Http2,
            }
            .into(),
            rate_limit: webhook.rate_limit.map(|limit| v1::RateLimit {
                per_second: limit.per_second(),
                burst: number(limit.burst().get()),
            }),
        }),
        retry: Some(v1::RetryPolicy {
            max_attempts: number(webhook.retry.max_attempts.map_or(0, NonZeroU32::get)),
            initial_delay: Some(duration(webhook.retry.initial_delay)),
            multiplier: webhook.retry.multiplier,
            max_delay: Some(duration(webhook.retry.max_delay)),
            max_age: Some(duration(webhook.retry.max_age)),
        }),
        payload: Some(v1::PayloadOptions {
            format: match webhook.payload_format {
                PayloadFormat::Envelope => v1::payload_options::Format::Envelope,
                PayloadFormat::CloudEventsStructured => v1::payload_options::Format::CloudeventsStructured,
                PayloadFormat::CloudEventsBinary => v1::payload_options::Format::CloudeventsBinary,
                PayloadFormat::Raw => v1::payload_options::Format::Raw,
            }
            .into(),
        }),
        headers: webhook.headers.iter().map(header).collect(),
        labels: webhook.labels.clone(),
    }
}

fn auth(auth: &Auth, now: Timestamp) -> v1::Auth {
    let method = match auth {
        Auth::None => Method::None(v1::NoAuth {}),
        Auth::Basic { username, .. } => Method::Basic(v1::BasicAuth {
            username: username.clone(),
            password: String::new(),
        }),
        Auth::Signature {
            algorithm,
            headers,
            secrets,
        } => Method::Signature(v1::SignatureAuth {
            secret: String::new(),
            secret_ids: live(secrets, now).map(|secret| secret.id.clone()).collect(),
            algorithm: match algorithm {
                Algorithm::HmacSha256 => v1::signature_auth::Algorithm::HmacSha256,
                Algorithm::Ed25519 => v1::signature_auth::Algorithm::Ed25519,
            }
            .into(),
            id_header: headers.id.clone(),
            timestamp_header: headers.timestamp.clone(),
            signature_header: headers.signature.clone(),
        }),
        Auth::Bearer { .. } => Method::Bearer(v1::BearerAuth { token: String::new() }),
        Auth::ApiKey { header, .. } => Method::ApiKey(v1::ApiKeyAuth {
            header: header.clone(),
            value: String::new(),
        }),
        Auth::OAuth2(client) => Method::Oauth2(v1::OAuth2Auth {
            token_url: client.token_url.clone(),
            client_id: client.client_id.clone(),
            client_secret: String::new(),
            scopes: client.scopes.clone(),
            audience: client.audience.clone(),
            client_authentication: match client.client_authentication {
                ClientAuthentication::Basic => v1::o_auth2_auth::ClientAuthentication::Basic,
                ClientAuthentication::Body => v1::o_auth2_auth::ClientAuthentication::Body,
            }
            .into(),
        }),
        Auth::Mtls { certificate, .. } => Method::Mtls(v1::MtlsAuth {
            certificate: certificate.clone(),
            private_key: String::new(),
        }),
    };
    v1::Auth { method: Some(method) }
}

/// Why a webhook is suspended, for people; it begins with the stable reason.
fn suspension_reason(suspension: &Suspension) -> String {
    let detail = suspension.detail.as_str();
    format!(
        "{}: switched off by the system at {}: {detail}; update it with active = true to put it back",
        suspension.reason, suspension.time
    )
}

/// The secrets that sign at `now`, newest first.
pub(crate) fn live(secrets: &[SigningSecret], now: Timestamp) -> impl Iterator<Item = &SigningSecret> {
    secrets
        .iter()
        .filter(move |secret| secret.expire_time.is_none_or(|expire| now < expire))
}

/// An account as callers see it.
pub(crate) fn account(account: &Account) -> v1::Account {
    let backlog = account.max_backlog_bytes.unwrap_or(DEFAULT_MAX_BACKLOG_BYTES);
    v1::Account {
        name: Account::name(&account.id),
        display_name: account.display_name.clone(),
        max_webhooks: number(account.webhook_quota()),
        max_backlog_bytes: i64::try_from(backlog).unwrap_or(i64::MAX),
        labels: account.labels.clone(),
        etag: account.etag().to_string(),
        create_time: Some(timestamp(account.create_time)),
        update_time: Some(timestamp(account.update_time)),
        uid: account.uid.to_string(),
        unknown_event_types: match account.unknown_event_types {
            UnknownEventTypes::Accept => v1::account::UnknownEventTypes::Accept,
            UnknownEventTypes::Refuse => v1::account::UnknownEventTypes::Refuse,
        }
        .into(),
    }
}

/// An event type as callers see it.
pub(crate) fn event_type(event_type: &EventType) -> v1::EventType {
    let category = match event_type.category {
        Category::RealTime => v1::event_type::Category::RealTime,
        Category::NonRealTime => v1::event_type::Category::NonRealTime,
    };
    v1::EventType {
        name: EventType::name(&event_type.name),
        display_name: event_type.display_name.clone(),
        description: event_type.description.clone(),
        category: category.into(),
        schema: event_type.schema.as_deref().and_then(json::to_struct),
        example: event_type.example.as_deref().and_then(json::to_struct),
        deprecated: event_type.deprecated,
        etag: event_type.etag().to_string(),
        create_time: Some(timestamp(event_type.create_time)),
        update_time: Some(timestamp(event_type.update_time)),
        uid: event_type.uid.to_string(),
    }
}

/// A moment as protobuf writes it.
pub(crate) fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.as_seconds(),
        nanos: i32::try_from(at.as_millis().rem_euclid(1000) * 1_000_000).unwrap_or(0),
    }
}

/// A count as protobuf's signed numbers write it.
pub(crate) fn number(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}
