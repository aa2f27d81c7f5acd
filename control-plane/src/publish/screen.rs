//! Holds events against the catalogue of event types. Pure.

use std::sync::Arc;

use postrider_common::model::account::UnknownEventTypes;
use postrider_common::model::segment::Event;

use crate::api::status::Violations;
use crate::catalog::Types;
use crate::catalog::schema::Schema;

/// Gives each event the category that its type has now, and checks bodies against the schemas of their types. Events of a type that the catalogue
/// does not hold stay as they are, if the account takes them. Bodies are parsed only for a schema. Answers how many events are of unknown types.
///
/// # Errors
/// The first violations of each event.
pub(crate) fn screen(
    events: &mut [Arc<Event>],
    types: &Types,
    unknown: UnknownEventTypes,
) -> Result<usize, Violations> {
    if types.is_empty() && unknown == UnknownEventTypes::Accept {
        return Ok(events.len());
    }
    let mut violations = Violations::default();
    let mut strangers = 0;
    for (index, event) in events.iter_mut().enumerate() {
        let Some(known) = types.get(&event.name) else {
            strangers += 1;
            if unknown == UnknownEventTypes::Refuse {
                let description = format!(
                    "{} is not in the catalogue, and the account refuses unknown event types",
                    event.name
                );
                violations.add(format!("events[{index}].event_name"), "UNKNOWN_EVENT_TYPE", description);
            }
            continue;
        };
        if let Some(schema) = &known.schema {
            check(index, event, schema, &mut violations);
        }
        // Nobody shares them yet.
        if let Some(event) = Arc::get_mut(event) {
            event.category = known.category;
        }
    }
    if violations.is_empty() {
        Ok(strangers)
    } else {
        Err(violations)
    }
}

fn check(index: usize, event: &Event, schema: &Schema, violations: &mut Violations) {
    let field = format!("events[{index}].data");
    match serde_json::from_slice(&event.data) {
        Ok(body) => {
            for flaw in schema.check(&body) {
                violations.add(&field, "SCHEMA_VIOLATION", flaw.to_string());
            }
        }
        // The grammar was checked: a number beyond every double.
        Err(error) => violations.add(&field, "SCHEMA_VIOLATION", format!("at \"\": {error}")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;
    use postrider_common::id::{EventName, Uid};
    use postrider_common::model::event_type::{Category, EventType};
    use postrider_common::time::Timestamp;

    use super::*;
    use crate::catalog::types::KnownType;
    use crate::publish::fanout::tests::event;

    pub(crate) fn event_type(name: &str, category: Category) -> EventType {
        EventType {
            name: EventName::new(name).unwrap(),
            uid: Uid::new("018f4c1e-7c55-7a3e-8b1a-2f4d5e6a7b8c").unwrap(),
            generation: 1,
            display_name: String::new(),
            description: String::new(),
            category,
            schema: None,
            example: None,
            deprecated: false,
            create_time: Timestamp::from_millis(1),
            update_time: Timestamp::from_millis(1),
        }
    }

    fn types(of: impl IntoIterator<Item = EventType>) -> Types {
        let known = of
            .into_iter()
            .map(|each| (each.name.clone(), Some(Arc::new(KnownType::new(&each).0))));
        Types::default().changed(known)
    }

    #[test]
    fn an_event_has_the_category_of_its_type_and_real_time_if_the_type_is_unknown() {
        let types = types([
            event_type("SLOW", Category::NonRealTime),
            event_type("FAST", Category::RealTime),
        ]);
        let mut events: Vec<_> = ["SLOW", "FAST", "UNKNOWN"]
            .iter()
            .map(|name| event("e", name, Bytes::new()))
            .collect();
        assert_eq!(screen(&mut events, &types, UnknownEventTypes::Accept), Ok(1));
        let categories: Vec<_> = events.iter().map(|event| event.category).collect();
        assert_eq!(
            categories,
            [Category::NonRealTime, Category::RealTime, Category::RealTime]
        );
    }

    #[test]
    fn a_body_that_breaks_its_types_schema_is_named_by_event_and_place() {
        let mut strict = event_type("STRICT", Category::RealTime);
        strict.schema = Some(r#"{"required": ["id"], "properties": {"n": {"type": "integer"}}}"#.into());
        let types = types([strict]);
        let mut events = vec![
            event("e0", "STRICT", r#"{"id": 1}"#.into()),
            event("e1", "OTHER", "{}".into()),
            event("e2", "STRICT", r#"{"n": "x"}"#.into()),
            event("e3", "STRICT", r#"{"id": 1e999}"#.into()),
        ];
        let violations = screen(&mut events, &types, UnknownEventTypes::Accept).unwrap_err();
        let mut found: Vec<_> = violations
            .iter()
            .map(|violation| {
                (
                    violation.field.as_str(),
                    violation.description.split(": ").next().unwrap(),
                )
            })
            .collect();
        found.sort_unstable();
        let expected = [
            ("events[2].data", r#"at """#),
            ("events[2].data", r#"at "/n""#),
            ("events[3].data", r#"at """#),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_account_refuses_unknown_event_types_if_it_says_so_and_every_one_is_named() {
        let types = types([event_type("KNOWN", Category::RealTime)]);
        let mut events: Vec<_> = ["NEW", "KNOWN", "OTHER"]
            .iter()
            .map(|name| event("e", name, Bytes::new()))
            .collect();
        let violations = screen(&mut events, &types, UnknownEventTypes::Refuse).unwrap_err();
        let found: Vec<_> = violations
            .iter()
            .map(|violation| (violation.field.as_str(), violation.reason))
            .collect();
        let expected = [
            ("events[0].event_name", "UNKNOWN_EVENT_TYPE"),
            ("events[2].event_name", "UNKNOWN_EVENT_TYPE"),
        ];
        assert_eq!(found, expected);
        assert_eq!(screen(&mut events[1..2], &types, UnknownEventTypes::Refuse), Ok(0));
        // An empty catalogue knows none.
        assert!(screen(&mut events, &Types::default(), UnknownEventTypes::Refuse).is_err());
        assert_eq!(screen(&mut events, &Types::default(), UnknownEventTypes::Accept), Ok(3));
    }
}
