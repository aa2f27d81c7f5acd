//! Which expressions can be filters: the names, forms and functions that they may use, and how large they may be. Pure.

use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, operators};
use regex::RegexBuilder;

use super::facts::{EVENT, FIELDS};
use super::{Flaw, Patterns};

/// Most nodes of an expression, what macros stand for included: ten or so for each `exists`. They bound the constant part of an evaluation's work.
const MAX_NODES: usize = 384;

/// How deep nodes may nest. Evaluation recurses once for each, and takes some 50 KiB of stack for it in a debug build.
const MAX_DEPTH: usize = 20;

/// How deep `exists`, `all`, `exists_one` and `filter` may nest: lists in lists in lists.
const MAX_LOOPS: usize = 3;

/// Most bytes of a pattern.
const MAX_PATTERN: usize = 256;

/// Most bytes of one compiled pattern, which bounds the work of matching one character. Unicode classes such as `\w` take most of it.
const MAX_PATTERN_BYTES: usize = 256 << 10;

/// Functions and operators, with the number of their arguments.
const FUNCTIONS: [(&str, usize); 22] = [
    (operators::CONDITIONAL, 3),
    (operators::LOGICAL_AND, 2),
    (operators::LOGICAL_OR, 2),
    (operators::LOGICAL_NOT, 1),
    (operators::NOT_STRICTLY_FALSE, 1),
    (operators::SUBSTRACT, 2),
    (operators::ADD, 2),
    (operators::MULTIPLY, 2),
    (operators::DIVIDE, 2),
    (operators::MODULO, 2),
    (operators::NEGATE, 1),
    (operators::EQUALS, 2),
    (operators::NOT_EQUALS, 2),
    (operators::GREATER, 2),
    (operators::GREATER_EQUALS, 2),
    (operators::LESS, 2),
    (operators::LESS_EQUALS, 2),
    (operators::INDEX, 2),
    (operators::IN, 2),
    ("size", 1),
    ("int", 1),
    ("double", 1),
];

/// The same for those that are called on a value; [`MATCHES`] is another one.
const METHODS: [(&str, usize); 4] = [("size", 0), ("contains", 1), ("startsWith", 1), ("endsWith", 1)];

/// The function whose argument is a pattern.
pub(super) const MATCHES: &str = "matches";

/// Checks an expression, and compiles its patterns.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn check(expression: &IdedExpr) -> Result<Patterns, Vec<Flaw>> {
    let mut check = Check::default();
    check.visit(expression, 0);
    if check.nodes > MAX_NODES {
        let description = format!("is made of {} parts, at most {MAX_NODES} are allowed", check.nodes);
        check.flaw("TOO_COMPLEX", description);
    }
    if is_never_true(&expression.expr) {
        check.flaw("NOT_BOOLEAN", "must be true or false, such as a comparison");
    }
    if check.flaws.is_empty() {
        Ok(check.patterns)
    } else {
        Err(check.flaws)
    }
}

#[derive(Default)]
struct Check<'e> {
    flaws: Vec<Flaw>,
    patterns: Patterns,
    nodes: usize,
    /// The variables of the loops around.
    scope: Vec<&'e str>,
    loops: usize,
}

impl<'e> Check<'e> {
    /// Notes a mistake; the same one once.
    fn flaw(&mut self, reason: &'static str, description: impl Into<String>) {
        let flaw = Flaw::new(reason, description);
        if !self.flaws.contains(&flaw) {
            self.flaws.push(flaw);
        }
    }

    fn visit(&mut self, node: &'e IdedExpr, depth: usize) {
        self.nodes += 1;
        if depth > MAX_DEPTH {
            let description =
                format!("nests deeper than {MAX_DEPTH}: brackets, fields of fields and chains of operators count");
            return self.flaw("TOO_COMPLEX", description);
        }
        let depth = depth + 1;
        match &node.expr {
            Expr::Literal(LiteralValue::Bytes(_)) => self.flaw("UNSUPPORTED", "bytes cannot be used here"),
            Expr::Literal(_) => {}
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => {
                self.visit(&select.operand, depth);
                if matches!(&select.operand.expr, Expr::Ident(name) if self.is_event(name))
                    && !FIELDS.contains(&select.field.as_str())
                {
                    let description = format!("{EVENT}.{} is not one of {}", select.field, FIELDS.join(", "));
                    self.flaw("UNKNOWN_NAME", description);
                }
            }
            Expr::List(list) => list.elements.iter().for_each(|element| self.visit(element, depth)),
            Expr::Call(call) => {
                self.function(call);
                let operands = call.target.as_deref().into_iter().chain(&call.args);
                operands.for_each(|operand| self.visit(operand, depth));
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, depth),
            Expr::Map(_) | Expr::Struct(_) => self.flaw("UNSUPPORTED", "maps and messages cannot be made here"),
            Expr::Unspecified => self.flaw("MALFORMED", "cannot be read"),
        }
    }

    fn is_event(&self, name: &str) -> bool {
        name == EVENT && !self.scope.contains(&name)
    }

    fn name(&mut self, name: &str) {
        if !self.is_event(name) && !self.scope.contains(&name) {
            let description = format!("there is no variable {name}; the event is {EVENT}");
            self.flaw("UNKNOWN_NAME", description);
        }
    }

    fn function(&mut self, call: &'e CallExpr) {
        let (name, count) = (call.func_name.as_str(), call.args.len());
        let known = match &call.target {
            None => FUNCTIONS.contains(&(name, count)),
            Some(_) if (name, count) == (MATCHES, 1) => return self.pattern(call),
            Some(_) => METHODS.contains(&(name, count)),
        };
        if !known {
            let form = if call.target.is_some() { "x." } else { "" };
            let description = format!("there is no function {form}{name} with {count} arguments");
            self.flaw("UNKNOWN_NAME", description);
        }
    }

    fn pattern(&mut self, call: &CallExpr) {
        let Some(Expr::Literal(LiteralValue::String(pattern))) = call.args.first().map(|pattern| &pattern.expr) else {
            return self.flaw("PATTERN", "the pattern of matches must be a text, not computed");
        };
        let pattern = pattern.inner();
        if pattern.len() > MAX_PATTERN {
            let description = format!(
                "a pattern of {} bytes, at most {MAX_PATTERN} are allowed",
                pattern.len()
            );
            return self.flaw("PATTERN", description);
        }
        match RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).build() {
            Ok(regex) => {
                self.patterns.insert(pattern.to_owned(), regex);
            }
            Err(regex::Error::CompiledTooBig(_)) => self.flaw("PATTERN", "a pattern stands for too much"),
            Err(error) => {
                // The last line says what is wrong; those before show where, in several lines.
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                self.flaw("PATTERN", format!("a pattern cannot be read: {last}"));
            }
        }
    }

    fn comprehension(&mut self, comprehension: &'e ComprehensionExpr, depth: usize) {
        self.visit(&comprehension.iter_range, depth);
        if collects(comprehension) && !keeps_elements(comprehension) {
            return self.flaw("UNSUPPORTED", "map cannot be used here: values must not grow");
        }
        if self.loops == MAX_LOOPS {
            let description = format!("exists, all, exists_one and filter must not nest deeper than {MAX_LOOPS}");
            return self.flaw("TOO_COMPLEX", description);
        }
        self.loops += 1;
        self.visit(&comprehension.accu_init, depth);
        self.scope.push(&comprehension.accu_var);
        self.visit(&comprehension.result, depth);
        self.scope.push(&comprehension.iter_var);
        self.visit(&comprehension.loop_cond, depth);
        self.visit(&comprehension.loop_step, depth);
        self.scope.truncate(self.scope.len().saturating_sub(2));
        self.loops -= 1;
    }
}

/// Whether a loop makes a list: `map` and `filter` do.
pub(super) fn collects(comprehension: &ComprehensionExpr) -> bool {
    matches!(comprehension.accu_init.expr, Expr::List(_))
}

/// Whether a loop that makes a list puts nothing into it but the elements it goes over: `cond ? result + [element] : result`.
fn keeps_elements(comprehension: &ComprehensionExpr) -> bool {
    let Expr::Call(step) = &comprehension.loop_step.expr else {
        return false;
    };
    let Some(Expr::Call(append)) = step.args.get(1).map(|append| &append.expr) else {
        return false;
    };
    let Some(Expr::List(appended)) = append.args.get(1).map(|appended| &appended.expr) else {
        return false;
    };
    step.func_name == operators::CONDITIONAL
        && matches!(appended.elements.as_slice(), [IdedExpr { expr: Expr::Ident(name), .. }] if *name == comprehension.iter_var)
}

/// Whether it is plain from its form that an expression is no truth value.
fn is_never_true(expression: &Expr) -> bool {
    match expression {
        Expr::Literal(literal) => !matches!(literal, LiteralValue::Boolean(_)),
        Expr::List(_) => true,
        Expr::Call(call) => match call.func_name.as_str() {
            operators::CONDITIONAL => call.args.iter().skip(1).any(|branch| is_never_true(&branch.expr)),
            operators::ADD
            | operators::SUBSTRACT
            | operators::MULTIPLY
            | operators::DIVIDE
            | operators::MODULO
            | operators::NEGATE
            | "size"
            | "int"
            | "double" => true,
            _ => false,
        },
        Expr::Comprehension(comprehension) => collects(comprehension),
        Expr::Ident(name) => name == EVENT,
        Expr::Select(select) => {
            !select.test && select.field != "data" && matches!(&select.operand.expr, Expr::Ident(name) if name == EVENT)
        }
        Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => false,
    }
}
