//! Field masks: which fields an update changes. Pure.
//!
//! An update is made by copying the chosen fields of the request's message onto the message of the present resource; the result is then checked
//! like a new one. Every resource has a table of the fields that may be chosen.

use super::status::Violations;

/// Most paths of one mask: more than any resource has.
const MAX_PATHS: usize = 100;

/// How much of a bad path is shown.
const SHOWN: usize = 80;

/// One field that an update may change.
pub(crate) struct Field<T> {
    /// Its path, such as `delivery.timeout`.
    pub(crate) path: &'static str,
    /// Whether an update without a mask changes it: it is set in the request, and no finer path says so.
    pub(crate) populated: fn(&T) -> bool,
    /// Copies it from the request's message.
    pub(crate) copy: fn(&T, &mut T),
}

/// The fields of a resource.
pub(crate) struct Fields<T: 'static> {
    /// Those that an update may change.
    pub(crate) writable: &'static [Field<T>],
    /// Those that only the server sets.
    pub(crate) output_only: &'static [&'static str],
}

/// Whether a field has another value than its default.
pub(crate) fn is_set<T: Default + PartialEq>(value: &T) -> bool {
    *value != T::default()
}

/// Copies the fields chosen by `paths` (none: those that are set in `from`; `*`: all) onto `to`.
pub(crate) fn merge<T>(fields: &Fields<T>, paths: &[String], from: &T, to: &mut T, violations: &mut Violations) {
    if paths.is_empty() {
        for field in fields.writable.iter().filter(|field| (field.populated)(from)) {
            (field.copy)(from, to);
        }
        return;
    }
    if paths.len() > MAX_PATHS {
        violations.add(
            "update_mask",
            "TOO_MANY",
            format!("has {} paths, at most {MAX_PATHS} are allowed", paths.len()),
        );
        return;
    }
    if paths.iter().any(|path| path == "*") {
        if paths.len() > 1 {
            violations.add("update_mask", "CONFLICT", "\"*\" must stand alone");
        }
        // The fields of the first level hold all others.
        for field in fields.writable.iter().filter(|field| !field.path.contains('.')) {
            (field.copy)(from, to);
        }
        return;
    }
    let mut sorted: Vec<&String> = paths.iter().collect();
    sorted.sort_unstable();
    for [first, second] in sorted.array_windows() {
        if first == second {
            violations.add("update_mask", "DUPLICATE", format!("{} is named twice", shown(first)));
        }
    }
    for path in paths {
        if let Some(field) = fields.writable.iter().find(|field| field.path == path) {
            (field.copy)(from, to);
            continue;
        }
        let (reason, why) = if path == "name" {
            ("IMMUTABLE", "never changes")
        } else if fields.output_only.contains(&path.as_str()) {
            ("OUTPUT_ONLY", "is set by the server only")
        } else {
            ("UNKNOWN_FIELD", "is not a field that can be updated")
        };
        violations.add("update_mask", reason, format!("{} {why}", shown(path)));
    }
}

/// A text of the caller's as it may be repeated in an error.
pub(crate) fn shown(text: &str) -> String {
    let head: String = text.chars().take(SHOWN).collect();
    let dots = if head.len() < text.len() { "…" } else { "" };
    format!("{head:?}{dots}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Default, PartialEq)]
    struct Thing {
        a: u32,
        b: (u32, u32),
        made: u32,
    }

    const FIELDS: Fields<Thing> = Fields {
        writable: &[
            Field {
                path: "a",
                populated: |from| is_set(&from.a),
                copy: |from, to| to.a = from.a,
            },
            Field {
                path: "b",
                populated: |_| false,
                copy: |from, to| to.b = from.b,
            },
            Field {
                path: "b.x",
                populated: |from| is_set(&from.b.0),
                copy: |from, to| to.b.0 = from.b.0,
            },
            Field {
                path: "b.y",
                populated: |from| is_set(&from.b.1),
                copy: |from, to| to.b.1 = from.b.1,
            },
        ],
        output_only: &["made"],
    };

    fn merged(paths: &[&str], from: &Thing, to: &Thing) -> (Thing, Vec<(&'static str, String)>) {
        let mut result = to.clone();
        let mut violations = Violations::default();
        let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
        merge(&FIELDS, &paths, from, &mut result, &mut violations);
        let mistakes = violations.iter().map(|one| {
            assert_eq!(one.field, "update_mask");
            (one.reason, one.description.clone())
        });
        (result, mistakes.collect())
    }

    fn thing() -> impl Strategy<Value = Thing> {
        (0_u32..3, 0_u32..3, 0_u32..3, 0_u32..3).prop_map(|(a, x, y, made)| Thing { a, b: (x, y), made })
    }

    proptest! {
        #[test]
        fn exactly_the_named_fields_change(from in thing(), to in thing(), paths in proptest::sample::subsequence(vec!["a", "b", "b.x", "b.y"], 1..=4)) {
            let (result, mistakes) = merged(&paths, &from, &to);
            prop_assert!(mistakes.is_empty());
            let named = |all: &[&str]| all.iter().any(|one| paths.contains(one));
            prop_assert_eq!(result.a, if named(&["a"]) { from.a } else { to.a });
            prop_assert_eq!(result.b.0, if named(&["b", "b.x"]) { from.b.0 } else { to.b.0 });
            prop_assert_eq!(result.b.1, if named(&["b", "b.y"]) { from.b.1 } else { to.b.1 });
            prop_assert_eq!(result.made, to.made);
        }

        #[test]
        fn without_a_mask_the_fields_that_are_set_change(from in thing(), to in thing()) {
            let (result, mistakes) = merged(&[], &from, &to);
            prop_assert!(mistakes.is_empty());
            let or = |from, to| if from == 0 { to } else { from };
            prop_assert_eq!(result, Thing { a: or(from.a, to.a), b: (or(from.b.0, to.b.0), or(from.b.1, to.b.1)), made: to.made });
        }

        #[test]
        fn a_star_copies_everything_that_callers_may_set(from in thing(), to in thing()) {
            prop_assert_eq!(merged(&["*"], &from, &to).0, Thing { made: to.made, ..from });
        }

        #[test]
        fn a_path_that_is_not_in_the_table_is_refused_by_name(path in "[A-Za-z_.*]{0,12}") {
            prop_assume!(path != "*" && !FIELDS.writable.iter().any(|field| field.path == path));
            let (result, mistakes) = merged(&[&path], &Thing { a: 1, b: (1, 1), made: 1 }, &Thing::default());
            prop_assert_eq!(result, Thing::default());
            prop_assert_eq!(mistakes.len(), 1);
            prop_assert!(mistakes[0].1.contains(&path));
        }
    }

    #[test]
    fn each_kind_of_mistake_has_its_reason() {
        let reasons = |paths: &[&str]| {
            let (_, mistakes) = merged(paths, &Thing::default(), &Thing::default());
            mistakes.into_iter().map(|(reason, _)| reason).collect::<Vec<_>>()
        };
        assert_eq!(reasons(&["a", "a"]), ["DUPLICATE"]);
        assert_eq!(reasons(&["*", "a"]), ["CONFLICT"]);
        assert_eq!(reasons(&["made"]), ["OUTPUT_ONLY"]);
        assert_eq!(reasons(&["name"]), ["IMMUTABLE"]);
        assert_eq!(reasons(&["A", "a.x", "b.X", ""]), ["UNKNOWN_FIELD"; 4]);
        assert_eq!(reasons(&vec!["a"; 101]), ["TOO_MANY"]);
        assert!(shown(&"x".repeat(1 << 20)).len() < 100);
    }
}
