//! The most work that asking a filter about an event can take. Pure.
//!
//! The *weight* of a value is its size in bytes and [`VALUE`] for each value in it: about the nanoseconds that it takes to copy it or to compare it
//! with its like. Nothing in an expression makes values grow but `+` and lists, once for each time they are written, so the weight of every part is
//! known from the event's. A loop over a value of weight `r` has at most `r / VALUE` rounds, and its elements weigh `r` together. What a round takes
//! beyond what it takes for an element without weight grows at least in proportion to the element's weight; so all rounds together take no more
//! than one with all the weight and the others with none.

use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, operators};

use super::facts::EVENT;
use super::rules::{MATCHES, collects};

/// Nanoseconds that it takes to copy, compare or convert one value, besides its bytes; and to evaluate one node.
pub(super) const VALUE: u64 = 200;

/// How much longer than copying a byte it takes to match a pattern against it, at worst.
const PATTERN: u64 = 64;

/// Weights of events that the work is known for: powers of two up to beyond the heaviest body that can be published.
const STEPS: usize = 32;

/// The most work for events of each weight: entry `n` for those of at most `2^n`.
pub(super) struct Most([u64; STEPS]);

impl Most {
    /// The most work of an expression.
    pub(super) fn of(expression: &IdedExpr) -> Self {
        Self(std::array::from_fn(|step| estimate(expression, 1 << step).work))
    }

    /// The most work for an event of this weight.
    pub(super) fn at(&self, weight: u64) -> u64 {
        let step = weight.max(1).next_power_of_two().trailing_zeros() as usize;
        self.0.get(step).copied().unwrap_or(u64::MAX)
    }
}

/// Most bytes of a field of the event other than its body: `eventInfo` may have 256 characters.
const FIELD_BYTES: u64 = 1024;

/// Work of a part of an expression, and the weight of its value.
#[derive(Debug, Clone, Copy, Default)]
struct Estimate {
    work: u64,
    weight: u64,
    /// Whether the weight is that of a loop's element, or depends on it.
    varies: bool,
}

/// A variable, and what it holds.
type Variable<'e> = (&'e str, Estimate);

fn estimate(expression: &IdedExpr, event: u64) -> Estimate {
    of(expression, &mut vec![(EVENT, held(event, false))])
}

/// A value that is there already.
const fn held(weight: u64, varies: bool) -> Estimate {
    Estimate {
        work: VALUE,
        weight,
        varies,
    }
}

fn of<'e>(node: &'e IdedExpr, scope: &mut Vec<Variable<'e>>) -> Estimate {
    match &node.expr {
        Expr::Literal(literal) => held(VALUE + literal_bytes(literal), false),
        Expr::Ident(name) => {
            let known = scope.iter().rev().find(|(known, _)| known == name);
            known.map_or(held(VALUE, false), |(_, held)| *held)
        }
        Expr::Select(select) => {
            let operand = of(&select.operand, scope);
            let is_event = matches!(&select.operand.expr, Expr::Ident(name) if name == EVENT);
            let bounded = is_event && !operand.varies && select.field != "data";
            Estimate {
                work: operand.work.saturating_add(VALUE + select.field.len() as u64),
                weight: match (select.test, bounded) {
                    (true, _) => VALUE,
                    (false, true) => VALUE + FIELD_BYTES,
                    (false, false) => operand.weight,
                },
                varies: operand.varies && !select.test,
            }
        }
        Expr::List(list) => {
            let mut all = held(VALUE, false);
            for element in &list.elements {
                let element = of(element, scope);
                all.work = all.work.saturating_add(element.work).saturating_add(element.weight);
                all.weight = all.weight.saturating_add(element.weight);
                all.varies |= element.varies;
            }
            all
        }
        Expr::Call(call) => of_call(call, scope),
        Expr::Comprehension(comprehension) => of_loop(comprehension, scope),
        // The rules let none of these through.
        Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => Estimate {
            work: u64::MAX,
            weight: u64::MAX,
            varies: false,
        },
    }
}

fn literal_bytes(literal: &LiteralValue) -> u64 {
    match literal {
        LiteralValue::String(text) => text.inner().len() as u64,
        LiteralValue::Bytes(bytes) => bytes.inner().len() as u64,
        LiteralValue::Boolean(_)
        | LiteralValue::Double(_)
        | LiteralValue::Int(_)
        | LiteralValue::Null
        | LiteralValue::UInt(_) => 0,
    }
}

fn of_call<'e>(call: &'e CallExpr, scope: &mut Vec<Variable<'e>>) -> Estimate {
    let operands = call.target.as_deref().into_iter().chain(&call.args);
    let operands: Vec<Estimate> = operands.map(|operand| of(operand, scope)).collect();
    let at = |index: usize| operands.get(index).copied().unwrap_or_default();
    let all = operands
        .iter()
        .fold(0_u64, |sum, operand| sum.saturating_add(operand.weight));
    let (own, weight) = match call.func_name.as_str() {
        operators::CONDITIONAL => (0, at(1).weight.max(at(2).weight)),
        operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT | operators::NOT_STRICTLY_FALSE => {
            (0, VALUE)
        }
        operators::INDEX => (at(1).weight, at(0).weight),
        operators::EQUALS
        | operators::NOT_EQUALS
        | operators::GREATER
        | operators::GREATER_EQUALS
        | operators::LESS
        | operators::LESS_EQUALS
        | "startsWith"
        | "endsWith" => (lesser(at(0), at(1)), VALUE),
        operators::IN => (at(1).weight, VALUE),
        operators::ADD => (all, all),
        MATCHES => (at(0).weight.saturating_mul(PATTERN), VALUE),
        _ => (all, VALUE),
    };
    let work = operands
        .iter()
        .fold(VALUE, |sum, operand| sum.saturating_add(operand.work));
    Estimate {
        work: work.saturating_add(own),
        weight,
        varies: operands.iter().any(|operand| operand.varies),
    }
}

/// What it takes to go through two values as far as both go. Where one is a loop's element it is that one's weight for light elements and heavy ones
/// alike: the lesser of the two would not grow in proportion.
fn lesser(first: Estimate, second: Estimate) -> u64 {
    match (first.varies, second.varies) {
        (false, false) => first.weight.min(second.weight),
        (true, _) => first.weight,
        (false, true) => second.weight,
    }
}

fn of_loop<'e>(comprehension: &'e ComprehensionExpr, scope: &mut Vec<Variable<'e>>) -> Estimate {
    let range = of(&comprehension.iter_range, scope);
    let init = of(&comprehension.accu_init, scope);
    scope.push((&comprehension.accu_var, held(VALUE, false)));
    let result = of(&comprehension.result, scope);
    // Each round copies its element, and keeps it perhaps.
    let mut round = |element: u64| {
        scope.push((&comprehension.iter_var, held(element, true)));
        let work = of(&comprehension.loop_cond, scope).work;
        let work = work.saturating_add(of(&comprehension.loop_step, scope).work);
        scope.pop();
        work.saturating_add(element.saturating_mul(2)).saturating_add(VALUE)
    };
    let empty = round(0).saturating_mul(range.weight) / VALUE;
    let full = round(range.weight);
    scope.pop();
    let parts = [range.work, init.work, empty, full, result.work];
    let collects = collects(comprehension);
    Estimate {
        work: parts.into_iter().fold(0, u64::saturating_add),
        weight: if collects { range.weight } else { VALUE },
        varies: collects && range.varies,
    }
}

/// The work of an expression in a loop whose element, of this weight, is the event.
#[cfg(test)]
pub(super) fn of_element(expression: &IdedExpr, weight: u64) -> u64 {
    of(expression, &mut vec![(EVENT, held(weight, true))]).work
}
