//! Between `google.protobuf.Struct` and JSON. Pure.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

/// Numbers up to here are integers without loss in a double.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// JSON text of a struct: integral numbers print as integers.
///
/// # Errors
/// For people: a number that JSON has not (NaN, infinity).
pub(crate) fn to_text(object: &Struct) -> Result<Vec<u8>, &'static str> {
    serde_json::to_vec(&object_to_json(object)?).map_err(|_| "cannot be written as JSON")
}

/// The struct that a JSON text writes; `None` if the text is not a JSON object.
pub(crate) fn to_struct(text: &[u8]) -> Option<Struct> {
    match serde_json::from_slice(text).ok()? {
        serde_json::Value::Object(fields) => Some(object(fields)),
        _ => None,
    }
}

/// A struct with these fields.
pub(crate) fn object(fields: serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct {
        fields: fields
            .into_iter()
            .map(|(name, value)| (name, from_json(value)))
            .collect(),
    }
}

fn object_to_json(object: &Struct) -> Result<serde_json::Value, &'static str> {
    let mut fields = serde_json::Map::new();
    for (name, value) in &object.fields {
        fields.insert(name.clone(), to_json(value)?);
    }
    Ok(serde_json::Value::Object(fields))
}

fn to_json(value: &Value) -> Result<serde_json::Value, &'static str> {
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::StringValue(value)) => value.clone().into(),
        Some(Kind::NumberValue(value)) => number(*value)?,
        Some(Kind::StructValue(value)) => object_to_json(value)?,
        Some(Kind::ListValue(list)) => {
            serde_json::Value::Array(list.values.iter().map(to_json).collect::<Result<_, _>>()?)
        }
    })
}

fn number(value: f64) -> Result<serde_json::Value, &'static str> {
    if value.fract() == 0.0 && value.abs() <= MAX_EXACT {
        #[allow(clippy::cast_possible_truncation)] // Integral and within 2^53.
        return Ok((value as i64).into());
    }
    serde_json::Number::from_f64(value)
        .map(Into::into)
        .ok_or("must not contain NaN or infinity")
}

fn from_json(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        serde_json::Value::String(value) => Kind::StringValue(value),
        serde_json::Value::Array(values) => Kind::ListValue(ListValue {
            values: values.into_iter().map(from_json).collect(),
        }),
        serde_json::Value::Object(fields) => Kind::StructValue(object(fields)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn every_double_that_json_has_survives(value: f64) {
            let one = Struct { fields: [("x".to_owned(), Value { kind: Some(Kind::NumberValue(value)) })].into() };
            match to_text(&one) {
                Ok(text) => prop_assert_eq!(to_struct(&text), Some(one)),
                Err(_) => prop_assert!(!value.is_finite()),
            }
        }
    }

    #[test]
    fn an_object_comes_back_as_it_was() {
        let value = json!({"a": [1, 2.5, null, true, "x"], "b": {"c": -7, "d": {}}});
        let text = value.to_string();
        assert_eq!(to_text(&to_struct(text.as_bytes()).unwrap()).unwrap(), text.as_bytes());
        assert_eq!(to_struct(b"[1]"), None);
    }
}
