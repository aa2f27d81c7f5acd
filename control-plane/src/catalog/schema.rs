//! The schema of an event type: compiled once, then events are checked against it. Pure.
//!
//! Nothing is ever fetched: a reference that leads out of the schema does not compile. Patterns are matched in linear time, so look-around and back
//! references do not compile either. Schemas are written by those who run the catalogue, and are not defended against beyond that.

use std::fmt;

use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::Value;

/// Most violations that are named for one event.
const MAX_VIOLATIONS: usize = 5;

/// Most characters of one violation's text: the rest would be the schema's own words again.
const MAX_TEXT: usize = 300;

/// Most bytes of one compiled pattern.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// A schema, ready to be used.
pub(crate) struct Schema(Validator);

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// JSON Pointer (RFC 6901): into the body, or into a schema that does not compile.
    pub(crate) pointer: String,
    /// For people. Never repeats a value of the body.
    pub(crate) description: String,
}

impl fmt::Display for Flaw {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "at \"{}\": {}", self.pointer, self.description)
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Schema")
    }
}

impl Schema {
    /// Compiles JSON text: of the draft that its `$schema` names, or 2020-12.
    ///
    /// # Errors
    /// The first [`Flaw`].
    pub(crate) fn compile(text: &[u8]) -> Result<Self, Flaw> {
        let schema: Value = serde_json::from_slice(text).map_err(|error| Flaw {
            pointer: String::new(),
            description: error.to_string(),
        })?;
        if let Some(pointer) = outward_reference(&schema, &mut String::new()) {
            return Err(Flaw {
                pointer,
                description: "leads out of the schema: references to other documents are not followed".into(),
            });
        }
        let options = jsonschema::options().offline();
        let options = options.with_pattern_options(PatternOptions::regex().size_limit(MAX_PATTERN_BYTES));
        options.build(&schema).map(Self).map_err(|error| flaw(&error))
    }

    /// What of `body` breaks the schema: the first few violations; none if it fits.
    pub(crate) fn check(&self, body: &Value) -> Vec<Flaw> {
        // Most bodies fit, and that is found without gathering anything.
        if self.0.is_valid(body) {
            return Vec::new();
        }
        let errors = self.0.iter_errors(body).take(MAX_VIOLATIONS);
        errors.map(|error| flaw(&error)).collect()
    }
}

fn flaw(error: &ValidationError<'_>) -> Flaw {
    let text = error.masked().to_string();
    let description = match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    };
    Flaw {
        pointer: error.instance_path().to_string(),
        description,
    }
}

/// The place of a `$ref` (or its dynamic kin) with a scheme, a host or a path of its own, if there is one. A property that is named `$ref` is none:
/// its value is a schema, not a text.
fn outward_reference(schema: &Value, at: &mut String) -> Option<String> {
    let length = at.len();
    let mut step = |part: &str, value: &Value| {
        at.push('/');
        at.push_str(&part.replace('~', "~0").replace('/', "~1"));
        let leads_out = matches!(part, "$ref" | "$dynamicRef" | "$recursiveRef")
            && value.as_str().is_some_and(|target| !target.starts_with('#'));
        let found = if leads_out {
            Some(at.clone())
        } else {
            outward_reference(value, at)
        };
        at.truncate(length);
        found
    };
    match schema {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| step(name, value)),
        Value::Array(values) => values
            .iter()
            .enumerate()
            .find_map(|(index, value)| step(&index.to_string(), value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn refused(schema: &Value) -> Flaw {
        Schema::compile(schema.to_string().as_bytes()).unwrap_err()
    }

    fn compiled(schema: &Value) -> Schema {
        Schema::compile(schema.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn violations_name_their_place_and_no_value() {
        let schema = compiled(&json!({
            "type": "object",
            "required": ["id"],
            "properties": {"items": {"items": {"properties": {"a/b": {"type": "integer"}}}}},
        }));
        assert!(schema.check(&json!({"id": 1, "items": [{"a/b": 2}]})).is_empty());
        let flaws = schema.check(&json!({"items": [{}, {"a/b": "hush"}]}));
        let mut pointers: Vec<&str> = flaws.iter().map(|flaw| flaw.pointer.as_str()).collect();
        pointers.sort_unstable();
        assert_eq!(pointers, ["", "/items/1/a~1b"]);
        assert!(flaws.iter().all(|flaw| !flaw.to_string().contains("hush")), "{flaws:?}");
    }

    #[test]
    fn only_the_first_violations_are_named_and_they_are_short() {
        let schema = compiled(&json!({"items": {"enum": ["x".repeat(2000)]}}));
        let flaws = schema.check(&json!([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(flaws.len(), MAX_VIOLATIONS);
        assert!(
            flaws
                .iter()
                .all(|flaw| flaw.description.chars().count() <= MAX_TEXT + 1)
        );
    }

    #[test]
    fn what_does_not_compile_is_refused_with_its_place() {
        assert_eq!(
            refused(&json!({"properties": {"a": {"type": "strin"}}})).pointer,
            "/properties/a/type"
        );
        assert!(
            !refused(&json!({"properties": {"a": {"pattern": "("}}}))
                .description
                .is_empty()
        );
        // Look-around cannot be matched in linear time.
        refused(&json!({"pattern": "^(?=a)b"}));
        refused(&json!({"pattern": "(x{1000}){1000}"}));
        refused(&json!({"$ref": "#/$defs/missing"}));
        refused(&json!({"$schema": "https://example.com/my-own-draft"}));
    }

    #[test]
    fn a_reference_stays_within_the_schema() {
        for target in [
            "https://example.com/a.json",
            "a.json",
            "file:///etc/passwd",
            "//example.com/a",
            "urn:x:y",
        ] {
            let flaw = refused(&json!({"properties": {"a": {"items": [{"$ref": target}]}}}));
            assert_eq!(flaw.pointer, "/properties/a/items/0/$ref", "{target}");
        }
        let local = json!({"$defs": {"a": {"type": "string"}}, "properties": {"$ref": {"$ref": "#/$defs/a"}}});
        assert_eq!(compiled(&local).check(&json!({"$ref": 1})).len(), 1);
    }

    proptest! {
        #[test]
        fn a_type_lets_in_exactly_its_values(number: i32, text in "\\PC{0,8}") {
            let schema = compiled(&json!({"type": "integer", "minimum": 0}));
            prop_assert_eq!(schema.check(&json!(number)).is_empty(), number >= 0);
            prop_assert_eq!(schema.check(&json!(text)).len(), 1);
        }

        #[test]
        fn no_text_makes_compiling_panic(text in "\\{(\"(\\$ref|type|items|pattern)\":(\"[#/a(*\\[]{0,4}\"|\\{\\}|1),?){0,3}\\}") {
            let _ = Schema::compile(text.as_bytes());
        }
    }
}
