//! What an event type may be, and which of its fields an update mask may name. Pure.

use bytes::Bytes;
use postrider_common::model::event_type::Category;
use postrider_proto::v1::{self, EventType};
use prost_types::Struct;

use super::json;
use super::mask::{Field, Fields, is_set};
use super::status::Violations;
use super::text_rules::{description, display_name, known};
use crate::catalog::schema::Schema;

/// Most bytes of a schema or an example, as JSON text: one value of the store is read in pages of many.
const MAX_JSON: usize = 64 << 10;

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
pub(crate) const FIELDS: Fields<EventType> = Fields {
    writable: &[
        field!(display_name),
        field!(description),
        field!(category),
        field!(schema),
        field!(example),
        field!(deprecated),
    ],
    output_only: &["etag", "create_time", "update_time", "uid"],
};

/// What of a message had to be read to be checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) category: Category,
    pub(crate) schema: Option<Bytes>,
    pub(crate) example: Option<Bytes>,
}

/// Checks an event type.
pub(crate) fn check(event_type: &EventType, violations: &mut Violations) -> Checked {
    display_name("event_type.display_name", &event_type.display_name, violations);
    description("event_type.description", &event_type.description, violations);
    let category = match known("event_type.category", event_type.category, violations) {
        v1::event_type::Category::Unspecified | v1::event_type::Category::RealTime => Category::RealTime,
        v1::event_type::Category::NonRealTime => Category::NonRealTime,
    };
    let schema = json("event_type.schema", event_type.schema.as_ref(), violations);
    if let Some(Err(flaw)) = schema.as_deref().map(Schema::compile) {
        violations.add("event_type.schema", "INVALID_SCHEMA", flaw.to_string());
    }
    Checked {
        category,
        schema,
        example: json("event_type.example", event_type.example.as_ref(), violations),
    }
}

fn json(field: &str, object: Option<&Struct>, violations: &mut Violations) -> Option<Bytes> {
    match json::to_text(object?) {
        Ok(text) if text.len() <= MAX_JSON => Some(text.into()),
        Ok(text) => {
            violations.add(
                field,
                "TOO_LARGE",
                format!("{} bytes as JSON text, at most {MAX_JSON} are allowed", text.len()),
            );
            None
        }
        Err(rule) => {
            violations.add(field, "MALFORMED", rule);
            None
        }
    }
}
