//! Which failures a webhook may call final. Pure.

use postrider_common::retry::{FINAL_REASONS, Final};

use super::mask::shown;
use super::status::Violations;

/// Most kinds of failures of one policy: all reasons, both classes, and the statuses that they do not cover or that matter alone.
const MAX_KINDS: usize = 32;

/// Checks the kinds of failures in `field`, each a status, a class or a reason.
pub(crate) fn check(field: &str, texts: &[String], violations: &mut Violations) -> Vec<Final> {
    if texts.len() > MAX_KINDS {
        let description = format!("{} kinds of failures, at most {MAX_KINDS} are allowed", texts.len());
        violations.add(field, "TOO_MANY", description);
        return Vec::new();
    }
    let mut kinds = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match Final::parse(text) {
            Some(kind) if kinds.contains(&kind) => {
                violations.add(
                    format!("{field}[{index}]"),
                    "DUPLICATE",
                    format!("{kind} is named twice"),
                );
            }
            Some(kind) => kinds.push(kind),
            None => violations.add(
                format!("{field}[{index}]"),
                "UNKNOWN_VALUE",
                format!(
                    "{} is no status of 400 to 599, not 4xx or 5xx, and none of {}",
                    shown(text),
                    FINAL_REASONS.join(", ")
                ),
            ),
        }
    }
    kinds
}
