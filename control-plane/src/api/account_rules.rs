//! What an account may be, and which of its fields an update mask may name. Pure.

use postrider_common::model::account::UnknownEventTypes;
use postrider_proto::v1::{self, Account};

use super::mask::{Field, Fields, is_set};
use super::status::Violations;
use super::text_rules::{display_name, known, labels};

/// Most webhooks that an account may be allowed.
const MAX_WEBHOOKS: i32 = 10_000;

/// One row of the table.
macro_rules! field {
    ($field:ident) => {
        Field {
            path: stringify!($field),
            populated: |from| is_set(&from.$field),
            copy: |from, to| to.$field.clone_from(&from.$field),
        }
    };
}

/// The fields that an update may name.
pub(crate) const FIELDS: Fields<Account> = Fields {
    writable: &[
        field!(display_name),
        field!(max_webhooks),
        field!(max_backlog_bytes),
        field!(unknown_event_types),
        field!(labels),
    ],
    output_only: &["etag", "create_time", "update_time", "uid"],
};

/// Checks an account; says what of it had to be read for that.
pub(crate) fn check(account: &Account, violations: &mut Violations) -> UnknownEventTypes {
    display_name("account.display_name", &account.display_name, violations);
    labels("account.labels", &account.labels, violations);
    if !(0..=MAX_WEBHOOKS).contains(&account.max_webhooks) {
        violations.add(
            "account.max_webhooks",
            "OUT_OF_RANGE",
            "must be 1 to 10,000, or 0 for the default, 5",
        );
    }
    if account.max_backlog_bytes < 0 {
        violations.add(
            "account.max_backlog_bytes",
            "OUT_OF_RANGE",
            "must not be negative; 0 means the default, 1 GiB",
        );
    }
    match known("account.unknown_event_types", account.unknown_event_types, violations) {
        v1::account::UnknownEventTypes::Unspecified | v1::account::UnknownEventTypes::Accept => {
            UnknownEventTypes::Accept
        }
        v1::account::UnknownEventTypes::Refuse => UnknownEventTypes::Refuse,
    }
}
