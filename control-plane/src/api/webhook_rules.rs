//! What a webhook may be: every field of the message is checked, and all mistakes are found at once. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use postrider_common::model::batching::Batching;
use postrider_common::model::order::Order;
use postrider_common::model::webhook::{
    DEFAULT_MAX_IN_FLIGHT, DEFAULT_TIMEOUT, EventPattern, HttpVersion, PayloadFormat, RateLimit, Webhook, WhenInactive,
};
use postrider_common::retry;
use postrider_common::time::Timestamp;
use postrider_proto::v1;
use v1::payload_options::Format;

use super::auth_rules::{self, DraftAuth};
use super::batching_rules;
use super::header_rules;
use super::order_rules;
use super::status::Violations;
use super::text_rules::{description, display_name, duration, known, labels, not_available};
use super::url_rules::UrlCheck;

/// Most trigger events of a webhook.
const MAX_EVENT_TYPES: usize = 128;

/// Most requests under way at once.
const MAX_IN_FLIGHT: i32 = 1000;

/// Most attempts that can be asked for.
const MAX_ATTEMPTS: i32 = 1000;

/// A webhook as asked for: checked, not yet given its uid, its times and its sealed secrets.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) display_name: String,
    pub(crate) description: String,
    pub(crate) target_url: String,
    pub(crate) auth: DraftAuth,
    pub(crate) event_types: Vec<EventPattern>,
    pub(crate) active: bool,
    pub(crate) when_inactive: WhenInactive,
    pub(crate) max_in_flight: Option<NonZeroU32>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) http_version: HttpVersion,
    pub(crate) payload_format: PayloadFormat,
    pub(crate) batching: Batching,
    pub(crate) order: Order,
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) retry: retry::Policy,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) labels: BTreeMap<String, String>,
}

/// Checks a webhook. `present` is what an update changes: its secrets may be kept, and its URL is not judged again unless it changes. `now` judges certificates.
pub(crate) fn check(
    message: v1::Webhook,
    present: Option<&Webhook>,
    urls: &UrlCheck,
    now: Timestamp,
    violations: &mut Violations,
) -> Draft {
    display_name("webhook.display_name", &message.display_name, violations);
    description("webhook.description", &message.description, violations);
    labels("webhook.labels", &message.labels, violations);
    not_available("webhook.filter", !message.filter.is_empty(), violations);
    let target_url = match present {
        Some(present) if present.target_url == message.target_url => message.target_url,
        _ => urls(&message.target_url).unwrap_or_else(|error| {
            violations.add("webhook.target_url", error.reason, error.description);
            String::new()
        }),
    };
    let auth = auth_rules::check(message.auth, present, urls, now, violations);
    if matches!(auth, DraftAuth::Mtls { .. }) && target_url.starts_with("http:") {
        let rule = "must be https: a client certificate is shown in the TLS handshake";
        violations.add("webhook.target_url", "SCHEME", rule);
    }
    let when_inactive = match known("webhook.when_inactive", message.when_inactive, violations) {
        v1::webhook::WhenInactive::Hold => WhenInactive::Hold,
        v1::webhook::WhenInactive::Unspecified | v1::webhook::WhenInactive::Drop => WhenInactive::Drop,
    };
    let delivery = message.delivery.unwrap_or_default();
    let http_version = match known("webhook.delivery.http_version", delivery.http_version, violations) {
        v1::delivery_options::HttpVersion::Unspecified => HttpVersion::Negotiated,
        v1::delivery_options::HttpVersion::Http11 => HttpVersion::Http1,
        v1::delivery_options::HttpVersion::Http2 => HttpVersion::Http2,
    };
    let payload = message.payload.unwrap_or_default();
    let payload_format = match known("webhook.payload.format", payload.format, violations) {
        Format::Unspecified | Format::Envelope => PayloadFormat::Envelope,
        Format::CloudeventsStructured => PayloadFormat::CloudEventsStructured,
        Format::CloudeventsBinary => PayloadFormat::CloudEventsBinary,
        Format::Raw => PayloadFormat::Raw,
    };
    let batching = batching_rules::check(&delivery, payload_format, violations);
    let order = order_rules::check(&delivery, violations);
    let rate_limit = check_rate_limit(delivery.rate_limit, violations);
    let (max_in_flight, timeout) = check_delivery(delivery, violations);
    Draft {
        target_url,
        event_types: check_event_types(&message.event_types, violations),
        active: message.active.unwrap_or(true),
        when_inactive,
        max_in_flight,
        timeout,
        http_version,
        payload_format,
        batching,
        order,
        rate_limit,
        retry: check_retry(&message.retry.unwrap_or_default(), violations),
        headers: header_rules::check("webhook.headers", &message.headers, &auth.headers(), violations),
        auth,
        display_name: message.display_name,
        description: message.description,
        labels: message.labels,
    }
}

fn check_event_types(texts: &[String], violations: &mut Violations) -> Vec<EventPattern> {
    let field = "webhook.event_types";
    if texts.is_empty() {
        violations.add(field, "REQUIRED", "must name 1 to 128 event types; \"*\" means all");
    }
    if texts.len() > MAX_EVENT_TYPES {
        violations.add(
            field,
            "TOO_LARGE",
            format!("{} event types, at most {MAX_EVENT_TYPES} are allowed", texts.len()),
        );
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut patterns = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match EventPattern::parse(text) {
            Ok(pattern) if seen.insert(pattern.clone()) => patterns.push(pattern),
            Ok(pattern) => violations.add(
                format!("{field}[{index}]"),
                "DUPLICATE",
                format!("{pattern} is named twice"),
            ),
            Err(rule) => violations.add(format!("{field}[{index}]"), "MALFORMED", rule),
        }
    }
    patterns
}

/// Values that are the default's are kept as unset, so that a later release may change the default for those who chose nothing.
fn check_delivery(
    delivery: v1::DeliveryOptions,
    violations: &mut Violations,
) -> (Option<NonZeroU32>, Option<Duration>) {
    let at = |name: &str| format!("webhook.delivery.{name}");
    if !(0..=MAX_IN_FLIGHT).contains(&delivery.max_in_flight) {
        violations.add(
            at("max_in_flight"),
            "OUT_OF_RANGE",
            "must be 1 to 1,000, or 0 for the default",
        );
    }
    let timeout = duration(
        &at("timeout"),
        delivery.timeout,
        Duration::from_secs(1)..=Duration::from_secs(60),
        violations,
    );
    (
        u32::try_from(delivery.max_in_flight)
            .ok()
            .and_then(NonZeroU32::new)
            .filter(|most| *most != DEFAULT_MAX_IN_FLIGHT),
        timeout.filter(|timeout| *timeout != DEFAULT_TIMEOUT),
    )
}

fn check_rate_limit(limit: Option<v1::RateLimit>, violations: &mut Violations) -> Option<RateLimit> {
    let limit = limit?;
    let at = |name: &str| format!("webhook.delivery.rate_limit.{name}");
    if !RateLimit::PER_SECOND.contains(&limit.per_second) {
        violations.add(at("per_second"), "OUT_OF_RANGE", "must be 0.01 to 10,000");
    }
    let burst = u32::try_from(limit.burst);
    if burst.is_err() || burst.is_ok_and(|burst| burst > *RateLimit::BURST.end()) {
        violations.add(
            at("burst"),
            "OUT_OF_RANGE",
            "must be 1 to 10,000, or 0 for a second's worth",
        );
    }
    RateLimit::new(limit.per_second, burst.ok().and_then(NonZeroU32::new))
}

fn check_retry(retry: &v1::RetryPolicy, violations: &mut Violations) -> retry::Policy {
    const HOUR: Duration = Duration::from_secs(3600);
    let at = |name: &str| format!("webhook.retry.{name}");
    let default = retry::Policy::default();
    if !(0..=MAX_ATTEMPTS).contains(&retry.max_attempts) {
        violations.add(
            at("max_attempts"),
            "OUT_OF_RANGE",
            "must be 1 to 1,000, or 0 for no limit but max_age",
        );
    }
    let multiplier = if retry.multiplier == 0.0 {
        default.multiplier
    } else {
        retry.multiplier
    };
    // NaN is in no range.
    if !(1.0..=10.0).contains(&multiplier) {
        violations.add(at("multiplier"), "OUT_OF_RANGE", "must be 1 to 10, or 0 for 2");
    }
    let mut read = |name, value, least: Duration, most: Duration, default| {
        duration(&at(name), value, least..=most, violations).unwrap_or(default)
    };
    let initial_delay = read(
        "initial_delay",
        retry.initial_delay,
        Duration::from_millis(100),
        HOUR,
        default.initial_delay,
    );
    let max_delay = read(
        "max_delay",
        retry.max_delay,
        Duration::from_millis(100),
        24 * HOUR,
        default.max_delay,
    );
    let max_age = read(
        "max_age",
        retry.max_age,
        Duration::from_secs(1),
        30 * 24 * HOUR,
        default.max_age,
    );
    if max_delay < initial_delay {
        violations.add(
            at("max_delay"),
            "OUT_OF_RANGE",
            format!("is {max_delay:?}, must be at least initial_delay, {initial_delay:?}"),
        );
    }
    retry::Policy {
        max_attempts: u32::try_from(retry.max_attempts).ok().and_then(NonZeroU32::new),
        initial_delay,
        multiplier,
        max_delay,
        max_age,
    }
}
