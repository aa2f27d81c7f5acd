//! Operational events: what Postrider itself has to tell an account, published to its webhooks like any other event. Pure.
//!
//! Their names begin with `postrider.`, which nobody else may publish. A pattern covers them only if it begins so too: whoever asks for `*` wants the
//! events of the account's services, and was written without these in mind.

use crate::id::EventName;

/// What the names of operational events begin with.
pub const PREFIX: &str = "postrider.";

/// A webhook was switched off by the system.
pub const WEBHOOK_SUSPENDED: &str = "postrider.webhook.suspended";

/// A webhook that had been switched off by the system was put back.
pub const WEBHOOK_REACTIVATED: &str = "postrider.webhook.reactivated";

/// Deliveries of a webhook became dead letters.
pub const DELIVERY_DEAD_LETTERED: &str = "postrider.delivery.dead_lettered";

/// Whether a name is an operational event's.
pub fn is_operational(name: &EventName) -> bool {
    name.as_str().starts_with(PREFIX)
}
