//! In which order a webhook gets its events, as asked for: checked. Pure.

use postrider_common::model::order::{OnFailure, Order, Ordering};
use postrider_proto::v1;
use postrider_proto::v1::delivery_options;

use super::status::Violations;
use super::text_rules::known;

/// Checks the ordering and what goes with it. What cannot keep an order is refused rather than half kept.
pub(super) fn check(delivery: &v1::DeliveryOptions, violations: &mut Violations) -> Order {
    let at = |name: &str| format!("webhook.delivery.{name}");
    let ordering = match known(&at("ordering"), delivery.ordering, violations) {
        delivery_options::Ordering::Unspecified | delivery_options::Ordering::None => Ordering::None,
        delivery_options::Ordering::PerKey => Ordering::PerKey,
        delivery_options::Ordering::Strict => Ordering::Strict,
    };
    let on_failure = match known(&at("on_failure"), delivery.on_failure, violations) {
        delivery_options::OnFailure::Unspecified => None,
        delivery_options::OnFailure::DeadLetter => Some(OnFailure::DeadLetter),
        delivery_options::OnFailure::Block => Some(OnFailure::Block),
        delivery_options::OnFailure::ParkKey => Some(OnFailure::ParkKey),
    };
    let mut refuse = |name: &str, rule: &str| violations.add(at(name), "INCOMPATIBLE", rule);
    match (ordering, on_failure) {
        (Ordering::None, Some(OnFailure::Block)) => {
            refuse("on_failure", "needs an ordering: without one nothing waits")
        }
        (Ordering::None | Ordering::Strict, Some(OnFailure::ParkKey)) => {
            refuse("on_failure", "needs the ordering PER_KEY");
        }
        (_, None | Some(OnFailure::DeadLetter | OnFailure::ParkKey))
        | (Ordering::PerKey | Ordering::Strict, Some(OnFailure::Block)) => {}
    }
    if ordering != Ordering::None {
        let rule =
            "is for batches at specified times: what follows would wait for them, so an ordered webhook has none";
        if delivery.mode == i32::from(delivery_options::Mode::Batch) {
            refuse("mode", "is BATCH: an ordered webhook sends its events at once");
        }
        for (name, set) in [
            ("max_delay", delivery.max_delay.is_some()),
            ("schedule", delivery.schedule.is_some()),
        ] {
            if set {
                refuse(name, rule);
            }
        }
    }
    if ordering == Ordering::PerKey && delivery.max_events > 1 {
        refuse(
            "max_events",
            "is above 1: events of several keys that share a request would wait for each other; use STRICT",
        );
    }
    Order { ordering, on_failure }
}
