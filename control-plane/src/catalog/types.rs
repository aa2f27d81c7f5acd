//! The event types in memory, as publishing asks for them. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use postrider_common::id::EventName;
use postrider_common::model::event_type::{Category, EventType};

use super::schema::{Flaw, Schema};

/// What publishing needs to know of an event type.
#[derive(Debug)]
pub(crate) struct KnownType {
    /// How its events are sent.
    pub(crate) category: Category,
    /// What their bodies must be.
    pub(crate) schema: Option<Schema>,
}

impl KnownType {
    /// Compiles an event type. A schema that does not compile (none is stored any more; an earlier release did not look) is left out and told.
    pub(crate) fn new(event_type: &EventType) -> (Self, Option<Flaw>) {
        let (schema, flaw) = match event_type.schema.as_deref().map(Schema::compile) {
            None => (None, None),
            Some(Ok(schema)) => (Some(schema), None),
            Some(Err(flaw)) => (None, Some(flaw)),
        };
        let category = event_type.category;
        (Self { category, schema }, flaw)
    }
}

/// Every event type by name. It never changes: a change makes a new one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Types(HashMap<EventName, Arc<KnownType>>);

impl Types {
    /// The type of this name, if the catalogue holds it.
    pub(crate) fn get(&self, name: &EventName) -> Option<&KnownType> {
        self.0.get(name).map(Arc::as_ref)
    }

    /// Whether the catalogue is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The types after changes: `None` takes one out.
    #[must_use]
    pub(crate) fn changed(&self, changes: impl IntoIterator<Item = (EventName, Option<Arc<KnownType>>)>) -> Self {
        let mut types = self.0.clone();
        for (name, known) in changes {
            match known {
                Some(known) => types.insert(name, known),
                None => types.remove(&name),
            };
        }
        Self(types)
    }
}
