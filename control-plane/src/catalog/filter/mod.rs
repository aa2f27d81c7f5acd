//! A webhook's filter: a CEL expression over the event, compiled once, then asked of each event. Pure.
//!
//! ```text
//! text ▸ size, tokens ▸ parse ▸ rules: known names, forms and functions, depth ▸ cost: most work by the weight of an event
//!                                                                          event ▸ facts ▸ judge
//! ```
//!
//! Expressions are written by whoever may create a webhook, and are not trusted: the text is measured before it is parsed, nothing that makes values
//! grow is allowed, and the most work that an evaluation can take is known before it begins.

mod cost;
mod facts;
mod rules;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use cel::common::ast::IdedExpr;
use cel::common::types::{CelBool, CelString};
use cel::parser::PrattParser;
use cel::{Context, Env, ExecutionError, FunctionContext, Value};
use regex::Regex;

pub(crate) use facts::Facts;

/// Most bytes of an expression.
pub(crate) const MAX_BYTES: usize = 4096;

/// Most tokens of an expression (quotes, commas and closing brackets not counted): what is parsed is walked recursively, once for each link of a
/// chain such as `a.b.c` or `1+1+1`, before its depth is known.
const MAX_TOKENS: usize = 512;

/// How deep brackets may nest for the parser, which recurses several times for each.
const MAX_NESTING: u16 = 16;

/// What expressions are parsed and evaluated with: the standard library of CEL without times, durations, optional values and patterns.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib().with_optional_support(false)));

/// The patterns of an expression, compiled.
type Patterns = HashMap<String, Regex>;

/// A filter, ready to be asked.
pub(crate) struct Filter {
    text: String,
    expression: IdedExpr,
    patterns: Arc<Patterns>,
    most: cost::Most,
}

/// What is wrong with an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// Stable, upper-case.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) description: String,
}

/// What a filter says of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is true.
    Matches,
    /// It is false.
    Differs,
    /// It has no value for this event, such as when a field is missing.
    Failed,
    /// It cannot be asked.
    Unjudged,
}

impl Flaw {
    fn new(reason: &'static str, description: impl Into<String>) -> Self {
        Self {
            reason,
            description: description.into(),
        }
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Filter").field(&self.text).finish()
    }
}

/// The text is all that a filter is made of.
impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Filter {
    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with it: at least one flaw.
    pub(crate) fn compile(text: &str) -> Result<Self, Vec<Flaw>> {
        // The parser is someone else's, and what it reads is anyone's.
        catch_unwind(AssertUnwindSafe(|| Self::compile_within(text)))
            .unwrap_or_else(|_| Err(vec![Flaw::new("MALFORMED", "cannot be read")]))
    }

    fn compile_within(text: &str) -> Result<Self, Vec<Flaw>> {
        measure(text).map_err(|flaw| vec![flaw])?;
        let parser = PrattParser::new().max_recursion_depth(MAX_NESTING);
        let expression = parser.parse(text).map_err(|errors| vec![syntax(&errors)])?;
        let patterns = Arc::new(rules::check(&expression)?);
        Ok(Self {
            text: text.to_owned(),
            most: cost::Most::of(&expression),
            expression,
            patterns,
        })
    }

    /// The most work that asking about an event can take, in about nanoseconds.
    pub(crate) fn work(&self, facts: &Facts<'_>) -> u64 {
        self.most.at(facts.weight())
    }

    /// Asks about an event.
    pub(crate) fn judge(&self, facts: &Facts<'_>) -> Verdict {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut context = Context::with_env(ENVIRONMENT.clone());
            context.set_variable_resolver(facts);
            if !self.patterns.is_empty() {
                let patterns = self.patterns.clone();
                let matches = move |call: &FunctionContext<'_, '_>| matches(call, &patterns);
                context.add_function("matches", matches).ok()?;
            }
            let value = Value::resolve_val(&self.expression, &context).ok()?;
            value.downcast_ref::<CelBool>().map(|value| *value.inner())
        }));
        match outcome {
            Ok(Some(true)) => Verdict::Matches,
            Ok(Some(false)) => Verdict::Differs,
            Ok(None) => Verdict::Failed,
            Err(_) => Verdict::Unjudged,
        }
    }
}

/// Looks at a text before it is parsed.
fn measure(text: &str) -> Result<(), Flaw> {
    if text.len() > MAX_BYTES {
        let description = format!("{} bytes, at most {MAX_BYTES} are allowed", text.len());
        return Err(Flaw::new("TOO_LARGE", description));
    }
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii();
    let mut before = b' ';
    let mut tokens = 0;
    for byte in text.bytes() {
        let begins = if is_word(byte) {
            !is_word(before)
        } else {
            !byte.is_ascii_whitespace() && !b"\"',)]}".contains(&byte)
        };
        tokens += usize::from(begins);
        before = byte;
    }
    if tokens > MAX_TOKENS {
        let description = format!("{tokens} names, numbers, operators and the like, at most {MAX_TOKENS} are allowed");
        return Err(Flaw::new("TOO_COMPLEX", description));
    }
    Ok(())
}

/// Most characters of what the parser has to say.
const MAX_PARSER_TEXT: usize = 200;

fn syntax(errors: &cel::ParseErrors) -> Flaw {
    let Some(first) = errors.errors.first() else {
        return Flaw::new("MALFORMED", "cannot be read");
    };
    let (line, column) = first.pos;
    let message: String = first.msg.chars().take(MAX_PARSER_TEXT).collect();
    if message.contains("recursion limit") {
        let description = format!("must not nest brackets deeper than {MAX_NESTING}");
        return Flaw::new("TOO_COMPLEX", description);
    }
    if line < 1 {
        return Flaw::new("MALFORMED", message);
    }
    Flaw::new("MALFORMED", format!("line {line}, column {column}: {message}"))
}

/// `text.matches("pattern")`: whether the pattern is found anywhere in the text.
fn matches(call: &FunctionContext<'_, '_>, patterns: &Patterns) -> Result<bool, ExecutionError> {
    let text = call.this.as_ref().and_then(|this| this.downcast_ref::<CelString<'_>>());
    let pattern = call
        .args
        .first()
        .and_then(|pattern| pattern.downcast_ref::<CelString<'_>>());
    let pattern = pattern.and_then(|pattern| patterns.get(pattern.inner()));
    match (text, pattern) {
        (Some(text), Some(pattern)) => Ok(pattern.is_match(text.inner())),
        (None, _) | (_, None) => Err(call.error("needs a text and a pattern")),
    }
}

#[cfg(test)]
mod tests;
