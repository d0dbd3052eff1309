//! What a run must show: `p99<50ms`, `eks_auth_calls<=roles`, `p99(others)<=1.1*p99(alone)`.
//!
//! On the left a measure, on the right a number with its unit, or a measure that may have a factor. A measure of one group of
//! pods has the group's name in parentheses.

mod measure;
#[cfg(test)]
mod tests;

use std::fmt::{Display, Formatter};
use std::str::FromStr;

use self::measure::Measure;
use super::figures::{Unit, quantity};
use super::run::{Expected, Run};

/// A condition on a run, as it was written.
#[derive(Clone, Debug)]
pub struct Expectation {
    text: String,
    left: Reading,
    operator: Operator,
    right: Right,
}

/// Why a condition cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpectationError {
    #[error("{0:?} compares nothing: write a measure, one of < <= = >= >, and a number, such as p99<50ms")]
    NoComparison(String),
    #[error("{name:?} is no measure; there are {}", Measure::names())]
    UnknownMeasure { name: String },
    #[error("{measure} is known of the whole run only: write it without ({group})")]
    NotByGroup { measure: &'static str, group: String },
    #[error("the parentheses in {0:?} do not close, or have nothing in them")]
    Parentheses(String),
    #[error(
        "{0:?} is not a number of zero or more with a unit that is known: us, ms, s, kB, MB, GB, or none"
    )]
    Number(String),
    #[error("{left} {is}, and {right:?} is not")]
    OtherUnit { left: &'static str, is: &'static str, right: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Less,
    AtMost,
    Equal,
    AtLeast,
    More,
}

/// A measure, of all pods or of one group.
#[derive(Clone, Debug)]
struct Reading {
    measure: &'static Measure,
    group: Option<String>,
}

#[derive(Clone, Debug)]
enum Right {
    Number(f64),
    Reading { factor: f64, reading: Reading },
}

impl Expectation {
    /// What was not measured has not held.
    pub fn judge(&self, run: &Run) -> Expected {
        let judged = self.left.of(run).and_then(|left| Ok((left, self.right.of(run)?)));
        let (was, held) = match judged {
            Err(missing) => (missing, false),
            Ok((left, limit)) => (self.describe(left, limit), self.operator.holds(left, limit)),
        };
        Expected { condition: self.text.clone(), was, held }
    }

    fn describe(&self, left: f64, limit: f64) -> String {
        let unit = self.left.measure.unit;
        let was = quantity(left, unit);
        match &self.right {
            Right::Number(_) => was,
            Right::Reading { factor, reading } if *factor == 1.0 => {
                format!("{was}; {reading} {}", quantity(limit, unit))
            }
            Right::Reading { factor, reading } => {
                format!("{was}; {factor} × {reading} {}", quantity(limit, unit))
            }
        }
    }
}

impl Display for Expectation {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Expectation {
    type Err = ExpectationError;

    fn from_str(text: &str) -> Result<Expectation, ExpectationError> {
        let text = text.trim();
        let (left, operator, right) =
            Operator::split(text).ok_or_else(|| ExpectationError::NoComparison(text.to_owned()))?;
        let left: Reading = left.parse()?;
        let right = Right::parse(right, &left)?;
        Ok(Expectation { text: text.to_owned(), left, operator, right })
    }
}

impl Operator {
    /// At the first comparison: the group names on the left have none.
    fn split(text: &str) -> Option<(&str, Operator, &str)> {
        let at = text.find(['<', '=', '>'])?;
        let (left, rest) = text.split_at(at);
        // The longer ones first: `<=` begins with `<`.
        let known = [
            ("<=", Operator::AtMost),
            (">=", Operator::AtLeast),
            ("==", Operator::Equal),
            ("<", Operator::Less),
            (">", Operator::More),
            ("=", Operator::Equal),
        ];
        let (operator, right) =
            known.into_iter().find_map(|(sign, operator)| Some((operator, rest.strip_prefix(sign)?)))?;
        Some((left.trim(), operator, right.trim()))
    }

    fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Operator::Less => left < right,
            Operator::AtMost => left <= right,
            Operator::Equal => left == right,
            Operator::AtLeast => left >= right,
            Operator::More => left > right,
        }
    }
}

impl Right {
    fn parse(text: &str, left: &Reading) -> Result<Right, ExpectationError> {
        let other_unit = || ExpectationError::OtherUnit {
            left: left.measure.name,
            is: match left.measure.unit {
                Unit::Count => "is a number without a unit",
                Unit::Milliseconds => "is a time (us, ms, s)",
                Unit::Bytes => "is an amount of memory (kB, MB, GB)",
            },
            right: text.to_owned(),
        };
        let (factor, rest) = match text.split_once('*') {
            Some((factor, rest)) => match number(factor.trim())? {
                (factor, Unit::Count) => (factor, rest.trim()),
                (_, Unit::Milliseconds | Unit::Bytes) => {
                    return Err(ExpectationError::Number(factor.to_owned()));
                }
            },
            None if text.starts_with(|first: char| first.is_alphabetic()) => (1.0, text),
            None => {
                let (number, unit) = number(text)?;
                return if unit == left.measure.unit { Ok(Right::Number(number)) } else { Err(other_unit()) };
            }
        };
        let reading: Reading = rest.parse()?;
        if reading.measure.unit != left.measure.unit {
            return Err(other_unit());
        }
        Ok(Right::Reading { factor, reading })
    }

    fn of(&self, run: &Run) -> Result<f64, String> {
        match self {
            Right::Number(number) => Ok(*number),
            Right::Reading { factor, reading } => Ok(factor * reading.of(run)?),
        }
    }
}

impl Reading {
    /// Or what stands in its place where it was not measured.
    fn of(&self, run: &Run) -> Result<f64, String> {
        let not_measured = || format!("{self}: not measured");
        match &self.group {
            None => self.measure.of_all(run).ok_or_else(not_measured),
            Some(name) => match run.groups.iter().find(|group| group.name == *name) {
                Some(group) => self.measure.of_group(group).ok_or_else(not_measured),
                None => {
                    let names: Vec<&str> = run.groups.iter().map(|group| group.name.as_str()).collect();
                    Err(format!("no group {name:?}; there are {}", names.join(", ")))
                }
            },
        }
    }
}

impl Display for Reading {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.measure.name)?;
        self.group.as_ref().map_or(Ok(()), |group| write!(f, "({group})"))
    }
}

impl FromStr for Reading {
    type Err = ExpectationError;

    fn from_str(text: &str) -> Result<Reading, ExpectationError> {
        let (name, group) = match text.split_once('(') {
            None => (text, None),
            Some((name, rest)) => match rest.strip_suffix(')').map(str::trim) {
                Some(group) if !group.is_empty() && !group.contains(['(', ')']) => {
                    (name.trim(), Some(group.to_owned()))
                }
                Some(_) | None => return Err(ExpectationError::Parentheses(text.to_owned())),
            },
        };
        let unknown = || ExpectationError::UnknownMeasure { name: name.to_owned() };
        let measure = Measure::named(name).ok_or_else(unknown)?;
        match group {
            Some(group) if !measure.is_by_group() => {
                Err(ExpectationError::NotByGroup { measure: measure.name, group })
            }
            group => Ok(Reading { measure, group }),
        }
    }
}

/// A number in the smallest unit that is counted in: milliseconds, bytes, or ones.
fn number(text: &str) -> Result<(f64, Unit), ExpectationError> {
    let unknown = || ExpectationError::Number(text.to_owned());
    let digits = text.trim_end_matches(|last: char| !last.is_ascii_digit() && last != '.');
    let (scale, unit) = match text[digits.len()..].trim() {
        "" => (1.0, Unit::Count),
        "us" | "µs" => (0.001, Unit::Milliseconds),
        "ms" => (1.0, Unit::Milliseconds),
        "s" => (1e3, Unit::Milliseconds),
        "kB" => (1e3, Unit::Bytes),
        "MB" => (1e6, Unit::Bytes),
        "GB" => (1e9, Unit::Bytes),
        _ => return Err(unknown()),
    };
    let number: f64 = digits.parse().map_err(|_| unknown())?;
    let number = number * scale;
    if number.is_finite() && number >= 0.0 { Ok((number, unit)) } else { Err(unknown()) }
}
