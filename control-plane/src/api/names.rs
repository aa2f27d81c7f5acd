//! Resource names and ids as callers write them. Pure.

use postrider_common::id::{AccountId, EventId, EventName, InvalidId, RequestId, WebhookId};

use super::status::Violations;
use crate::catalog::etag::Etag;

/// Reads `accounts/{account}` from the required field `field`.
pub(crate) fn account(field: &str, text: &str, violations: &mut Violations) -> Option<AccountId> {
    let parsed = text.strip_prefix("accounts/").and_then(|id| AccountId::new(id).ok());
    named(
        field,
        text,
        parsed,
        "accounts/{account}, where {account} matches [a-z0-9][a-z0-9-]{0,62}",
        violations,
    )
}

/// Reads `accounts/{account}/webhooks/{webhook}` from the required field `field`.
pub(crate) fn webhook(field: &str, text: &str, violations: &mut Violations) -> Option<(AccountId, WebhookId)> {
    let parse = || {
        let (account, webhook) = text.strip_prefix("accounts/")?.split_once("/webhooks/")?;
        Some((AccountId::new(account).ok()?, WebhookId::new(webhook).ok()?))
    };
    named(
        field,
        text,
        parse(),
        "accounts/{account}/webhooks/{webhook}, where both ids match [a-z0-9][a-z0-9-]{0,62}",
        violations,
    )
}

/// Reads `accounts/{account}/webhooks/{webhook}/deliveries/{event_id}` from the required field `field`. An event id holds no `/`.
pub(crate) fn delivery(
    field: &str,
    text: &str,
    violations: &mut Violations,
) -> Option<(AccountId, WebhookId, EventId)> {
    let parse = || {
        let (account, rest) = text.strip_prefix("accounts/")?.split_once("/webhooks/")?;
        let (webhook, event) = rest.split_once("/deliveries/")?;
        Some((
            AccountId::new(account).ok()?,
            WebhookId::new(webhook).ok()?,
            EventId::new(event).ok()?,
        ))
    };
    named(
        field,
        text,
        parse(),
        "accounts/{account}/webhooks/{webhook}/deliveries/{event_id}, where {event_id} is 1 to 64 characters of [A-Za-z0-9_:-]",
        violations,
    )
}

/// Reads `eventTypes/{event_type}` from the required field `field`.
pub(crate) fn event_type(field: &str, text: &str, violations: &mut Violations) -> Option<EventName> {
    let parsed = text.strip_prefix("eventTypes/").and_then(|id| EventName::new(id).ok());
    named(
        field,
        text,
        parsed,
        "eventTypes/{event_type}, where {event_type} matches [A-Za-z][A-Za-z0-9_.:-]{0,127}",
        violations,
    )
}

/// Notes it if a name could not be read.
pub(crate) fn named<T>(
    field: &str,
    text: &str,
    parsed: Option<T>,
    form: &str,
    violations: &mut Violations,
) -> Option<T> {
    if parsed.is_none() {
        let reason = if text.is_empty() { "REQUIRED" } else { "MALFORMED" };
        violations.add(field, reason, format!("must be {form}"));
    }
    parsed
}

/// Reads an id that the caller may choose: empty is `None`.
pub(crate) fn chosen<T>(
    field: &str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, InvalidId>,
    violations: &mut Violations,
) -> Option<T> {
    if text.is_empty() {
        return None;
    }
    parse(text)
        .map_err(|error| violations.add(field, "MALFORMED", error.rule))
        .ok()
}

/// Reads the optional field `request_id`.
pub(crate) fn request_id(text: &str, violations: &mut Violations) -> Option<RequestId> {
    chosen("request_id", text, RequestId::new, violations)
}

/// Reads the optional etag of an update or delete.
pub(crate) fn etag(field: &str, text: &str, violations: &mut Violations) -> Option<Etag> {
    if text.is_empty() {
        return None;
    }
    let etag = Etag::parse(text);
    if etag.is_none() {
        violations.add(field, "MALFORMED", "is not an etag that this server gave out");
    }
    etag
}

/// Refuses an etag on create.
pub(crate) fn no_etag(field: &str, text: &str, violations: &mut Violations) {
    if !text.is_empty() {
        violations.add(field, "NOT_ALLOWED", "must be empty on create");
    }
}

#[cfg(test)]
mod tests {
    use postrider_common::key;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_name_leads_out_of_its_place_in_the_store(text in "(accounts/)?[a-z0-9./%\\x00-]{0,12}(/webhooks/[a-z0-9./%-]{0,8})?") {
            let mut violations = Violations::default();
            if let Some((account, id)) = webhook("name", &text, &mut violations) {
                let key = key::webhook(&account, &id);
                prop_assert_eq!(key.as_str().matches('/').count(), 2);
                prop_assert_eq!(key.as_str(), text.replacen("accounts/", "webhooks/", 1).replacen("/webhooks/", "/", 1));
            } else {
                prop_assert!(!violations.is_empty());
            }
        }

        #[test]
        fn every_well_formed_name_is_read(a in "[a-z0-9][a-z0-9-]{0,62}", w in "[a-z0-9][a-z0-9-]{0,62}") {
            let mut violations = Violations::default();
            let read = webhook("name", &format!("accounts/{a}/webhooks/{w}"), &mut violations).unwrap();
            prop_assert_eq!((read.0.as_str(), read.1.as_str()), (a.as_str(), w.as_str()));
            prop_assert!(violations.is_empty());
        }
    }
}
