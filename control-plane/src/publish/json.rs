//! JSON bodies: checks text without changing it, and prints a `Struct`. Pure.

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use serde::de::IgnoredAny;

/// How deep arrays and objects may nest: what common parsers take by default.
pub(super) const MAX_DEPTH: usize = 127;

/// Up to here every integer has one double of its own: 2^53.
const LARGEST_INTEGER: f64 = 9_007_199_254_740_992.0;

/// What is wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    /// Stable, upper-case.
    pub(super) reason: &'static str,
    /// For people.
    pub(super) description: String,
}

fn invalid(description: impl Into<String>) -> Flaw {
    Flaw {
        reason: "INVALID_JSON",
        description: description.into(),
    }
}

fn too_deep() -> Flaw {
    Flaw {
        reason: "TOO_DEEP",
        description: format!("must not nest deeper than {MAX_DEPTH}"),
    }
}

/// Checks that `text` is one JSON value (RFC 8259) that every receiver can read: UTF-8, not too deep, no half of a surrogate pair.
/// Nothing is decoded: duplicate keys and numbers of any length pass.
///
/// # Errors
/// [`Flaw`] with line and column.
pub(super) fn check(text: &[u8]) -> Result<(), Flaw> {
    if text.starts_with(b"\xef\xbb\xbf") {
        return Err(invalid("must not begin with a byte order mark"));
    }
    let text =
        str::from_utf8(text).map_err(|error| invalid(format!("is not UTF-8 {}", place(text, error.valid_up_to()))))?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| invalid(error.to_string()))?;
    check_nesting_and_escapes(text.as_bytes())
}

/// What the grammar leaves open. `text` must be valid JSON.
fn check_nesting_and_escapes(text: &[u8]) -> Result<(), Flaw> {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut bytes = text.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match (in_string, byte) {
            (_, b'"') => in_string = !in_string,
            (true, b'\\') => {
                if let Some((_, b'u')) = bytes.next() {
                    let length = escape_length(text.get(at..).unwrap_or_default());
                    let length =
                        length.ok_or_else(|| invalid(format!("half of a surrogate pair {}", place(text, at))))?;
                    // The backslash and the `u` are behind us.
                    bytes.nth(length - 3);
                }
            }
            (true, _) => {}
            (false, b'[' | b'{') => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(too_deep());
                }
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, _) => {}
        }
    }
    Ok(())
}

/// How long the `\uXXXX` (6) or the pair of them (12) at the beginning of `text` is; `None` if it is half of a pair.
fn escape_length(text: &[u8]) -> Option<usize> {
    let unit = |from: usize| {
        let digits = text.get(from..from + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
    };
    match unit(0)? {
        0xd800..=0xdbff => matches!(unit(6)?, 0xdc00..=0xdfff).then_some(12),
        0xdc00..=0xdfff => None,
        _ => Some(6),
    }
}

/// Line and column, both from 1, as `serde_json` names them.
fn place(text: &[u8], at: usize) -> String {
    let before = text.get(..at).unwrap_or_default();
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    let column = before.iter().rev().take_while(|byte| **byte != b'\n').count();
    format!("at line {} column {}", lines + 1, column + 1)
}

/// Prints an object as JSON text: integral numbers up to 2^53 as integers.
///
/// # Errors
/// [`Flaw`] for a number that JSON cannot write, a value of no kind, and nesting that is too deep.
pub(super) fn print(object: &Struct) -> Result<Vec<u8>, Flaw> {
    let mut out = Vec::with_capacity(256);
    print_struct(&mut out, object, 1)?;
    Ok(out)
}

fn print_struct(out: &mut Vec<u8>, object: &Struct, depth: usize) -> Result<(), Flaw> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    out.push(b'{');
    for (index, (key, value)) in object.fields.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        print_scalar(out, key)?;
        out.push(b':');
        print_value(out, value, depth)?;
    }
    out.push(b'}');
    Ok(())
}

fn print_value(out: &mut Vec<u8>, value: &Value, depth: usize) -> Result<(), Flaw> {
    match &value.kind {
        None => Err(invalid("holds a value of no kind")),
        Some(Kind::NullValue(_)) => print_scalar(out, &()),
        Some(Kind::BoolValue(value)) => print_scalar(out, value),
        Some(Kind::StringValue(text)) => print_scalar(out, text),
        Some(Kind::NumberValue(number)) if !number.is_finite() => Err(Flaw {
            reason: "NOT_FINITE",
            description: "holds a number that is infinite or not a number".into(),
        }),
        #[allow(clippy::cast_possible_truncation)] // Integral and at most 2^53.
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() <= LARGEST_INTEGER => {
            print_scalar(out, &(*number as i64))
        }
        Some(Kind::NumberValue(number)) => print_scalar(out, number),
        Some(Kind::StructValue(object)) => print_struct(out, object, depth + 1),
        Some(Kind::ListValue(list)) => {
            if depth >= MAX_DEPTH {
                return Err(too_deep());
            }
            out.push(b'[');
            for (index, value) in list.values.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                print_value(out, value, depth + 1)?;
            }
            out.push(b']');
            Ok(())
        }
    }
}

fn print_scalar(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) -> Result<(), Flaw> {
    serde_json::to_writer(out, value).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests;
