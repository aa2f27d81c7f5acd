//! An event as filters see it. Pure.

use std::collections::HashMap;

use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use postrider_common::model::segment::Event;
use serde_json::Value;

use super::cost::VALUE;

/// The variable.
pub(super) const EVENT: &str = "event";

/// Its fields: named as in the envelope that receivers get, and the ordering key.
pub(super) const FIELDS: [&str; 6] = ["eventId", "eventName", "timestamp", "orderingKey", "eventInfo", "data"];

/// One event, as a value of CEL.
#[derive(Debug)]
pub(crate) struct Facts<'e> {
    event: CelMap<'e>,
    weight: u64,
}

impl<'e> Facts<'e> {
    /// Reads an event, its body included; `None` if the body holds a number beyond every double, which JSON allows.
    pub(crate) fn of(event: &'e Event) -> Option<Self> {
        let data = serde_json::from_slice(&event.data).ok()?;
        let mut weight = event.data.len() as u64;
        let mut fields: HashMap<CelMapKey<'e>, Box<dyn Val + 'e>> = HashMap::with_capacity(FIELDS.len());
        let texts = [
            ("eventId", Some(event.id.as_str())),
            ("eventName", Some(event.name.as_str())),
            ("orderingKey", event.ordering_key.as_deref()),
            ("eventInfo", event.event_info.as_deref()),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                weight += VALUE + text.len() as u64;
                fields.insert(name.into(), Box::new(CelString::from(text)));
            }
        }
        weight += 2 * VALUE;
        fields.insert("timestamp".into(), Box::new(CelInt::from(event.timestamp.as_millis())));
        fields.insert("data".into(), read(data, &mut weight));
        Some(Self {
            event: CelMap::from(fields),
            weight,
        })
    }

    /// How much there is to look at; see [`super::cost`].
    pub(super) const fn weight(&self) -> u64 {
        self.weight
    }
}

impl VariableResolver for Facts<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        (variable == EVENT).then_some(CowVal::Borrowed(&self.event))
    }
}

/// A JSON value as a value of CEL. Integers that 64 bits hold are integers, all other numbers doubles.
fn read(json: Value, weight: &mut u64) -> Box<dyn Val + 'static> {
    *weight += VALUE;
    match json {
        Value::Null => Box::new(CelNull),
        Value::Bool(value) => Box::new(CelBool::from(value)),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => Box::new(CelInt::from(integer)),
            None => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        Value::String(text) => Box::new(CelString::from(text)),
        Value::Array(values) => {
            let values: Vec<Box<dyn Val>> = values.into_iter().map(|value| read(value, weight)).collect();
            Box::new(CelList::from(values))
        }
        Value::Object(members) => {
            let mut fields: HashMap<CelMapKey<'static>, Box<dyn Val>> = HashMap::with_capacity(members.len());
            for (name, value) in members {
                *weight += VALUE;
                fields.insert(name.into(), read(value, weight));
            }
            Box::new(CelMap::from(fields))
        }
    }
}
