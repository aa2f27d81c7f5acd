//! Rules for plain fields of all resources: texts, labels, durations, enums. Pure.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::mask::shown;
use super::status::Violations;

/// Most characters of a display name.
const MAX_DISPLAY_NAME: usize = 256;

/// Most characters of a description.
const MAX_DESCRIPTION: usize = 4096;

/// Most labels of a resource.
const MAX_LABELS: usize = 64;

/// Most characters of a label's key.
const MAX_LABEL_KEY: usize = 63;

/// Most characters of a label's value.
const MAX_LABEL_VALUE: usize = 256;

/// Checks a display name: one line for people.
pub(crate) fn display_name(field: &str, text: &str, violations: &mut Violations) {
    too_long(field, text, MAX_DISPLAY_NAME, violations);
    if text.chars().any(char::is_control) {
        violations.add(field, "CONTROL_CHARACTER", "must not contain control characters");
    }
}

/// Checks a description: lines for people.
pub(crate) fn description(field: &str, text: &str, violations: &mut Violations) {
    too_long(field, text, MAX_DESCRIPTION, violations);
    if text
        .chars()
        .any(|char| char.is_control() && !matches!(char, '\n' | '\r' | '\t'))
    {
        violations.add(
            field,
            "CONTROL_CHARACTER",
            "must not contain control characters other than tabs and line ends",
        );
    }
}

/// Checks that a text has at most `most` characters.
pub(crate) fn too_long(field: &str, text: &str, most: usize, violations: &mut Violations) {
    // A text of few bytes has few characters: no need to count them.
    if text.len() > most && text.chars().nth(most).is_some() {
        violations.add(field, "TOO_LONG", format!("must be at most {most} characters"));
    }
}

/// Checks labels.
pub(crate) fn labels(field: &str, labels: &BTreeMap<String, String>, violations: &mut Violations) {
    if labels.len() > MAX_LABELS {
        violations.add(field, "TOO_MANY", format!("at most {MAX_LABELS} labels are allowed"));
        return;
    }
    let in_key = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._/-".contains(&byte);
    for (key, value) in labels {
        if key.is_empty() || key.len() > MAX_LABEL_KEY || !key.bytes().all(in_key) {
            violations.add(
                field,
                "MALFORMED",
                format!("the key {} must be 1 to 63 characters of [a-z0-9._/-]", shown(key)),
            );
        }
        if value.chars().nth(MAX_LABEL_VALUE).is_some() || value.chars().any(char::is_control) {
            violations.add(
                field,
                "MALFORMED",
                format!(
                    "the value of {} must be at most 256 characters without control characters",
                    shown(key)
                ),
            );
        }
    }
}

/// A protobuf duration in whole milliseconds (finer parts are cut off), if it is set and lies in `range`.
pub(crate) fn duration(
    field: &str,
    value: Option<prost_types::Duration>,
    range: RangeInclusive<Duration>,
    violations: &mut Violations,
) -> Option<Duration> {
    let value = value?;
    let nanos = u32::try_from(value.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    let parsed = u64::try_from(value.seconds)
        .ok()
        .zip(nanos)
        .map(|(seconds, nanos)| Duration::from_secs(seconds) + Duration::from_millis(u64::from(nanos / 1_000_000)));
    let inside = parsed.filter(|duration| range.contains(duration));
    if inside.is_none() {
        violations.add(
            field,
            "OUT_OF_RANGE",
            format!("must be a duration from {:?} to {:?}", range.start(), range.end()),
        );
    }
    inside
}

/// A value of an enum; numbers that this release does not know are mistakes.
pub(crate) fn known<E: TryFrom<i32> + Default>(field: &str, number: i32, violations: &mut Violations) -> E {
    E::try_from(number).unwrap_or_else(|_| {
        violations.add(
            field,
            "UNKNOWN_VALUE",
            format!("{number} is not a value of this field in this release"),
        );
        E::default()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_pair_of_numbers_is_a_duration_in_range_or_a_mistake(seconds: i64, nanos: i32, small in -5_i64..70) {
            for seconds in [seconds, small] {
                let mut violations = Violations::default();
                let range = Duration::from_secs(1)..=Duration::from_secs(60);
                let value = duration("f", Some(prost_types::Duration { seconds, nanos }), range.clone(), &mut violations);
                prop_assert_eq!(value.is_some(), violations.is_empty());
                if let Some(value) = value {
                    prop_assert!(range.contains(&value));
                    prop_assert_eq!(value.as_secs() as i64, seconds);
                    prop_assert_eq!(value.subsec_millis() as i32, nanos / 1_000_000);
                }
            }
        }

        #[test]
        fn lengths_are_counted_in_characters(text in "\\PC{0,12}", most in 0_usize..12) {
            let mut violations = Violations::default();
            too_long("f", &text, most, &mut violations);
            prop_assert_eq!(violations.is_empty(), text.chars().count() <= most);
        }
    }

    #[test]
    fn labels_follow_the_contract() {
        let check = |key: &str, value: &str| {
            let mut violations = Violations::default();
            labels(
                "f",
                &BTreeMap::from([(key.to_owned(), value.to_owned())]),
                &mut violations,
            );
            violations.is_empty()
        };
        assert!(check("team/billing_1".replace('_', ".").as_str(), "Grün"));
        for key in ["", "A", "a b", "é", &"a".repeat(64)] {
            assert!(!check(key, ""), "{key}");
        }
        assert!(!check("a", &"x".repeat(257)) && !check("a", "\n"));
    }
}
