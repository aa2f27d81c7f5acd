//! Holds events against the catalogue of event types. Pure.

use std::sync::Arc;

use postrider_common::model::segment::Event;

use crate::catalog::Types;

/// Gives each event the category that its type has now. Events of a type that the catalogue does not hold stay as they are.
pub(crate) fn screen(events: &mut [Arc<Event>], types: &Types) {
    if types.is_empty() {
        return;
    }
    for event in events {
        let Some(known) = types.get(&event.name) else { continue };
        // Nobody shares them yet.
        if let Some(event) = Arc::get_mut(event) {
            event.category = known.category;
        }
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
            .map(|each| (each.name.clone(), Some(Arc::new(KnownType::new(&each)))));
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
        screen(&mut events, &types);
        let categories: Vec<_> = events.iter().map(|event| event.category).collect();
        assert_eq!(
            categories,
            [Category::NonRealTime, Category::RealTime, Category::RealTime]
        );
    }
}
