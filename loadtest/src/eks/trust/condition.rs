//! `Condition` blocks: all must hold; in each, one of the values.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{OneOrMany, glob};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "BTreeMap<String, BTreeMap<String, OneOrMany<String>>>")]
pub(super) struct Conditions(Vec<Condition>);

#[derive(Clone, Debug)]
struct Condition {
    comparison: Comparison,
    negated: bool,
    if_exists: bool,
    /// In lower case.
    key: String,
    values: OneOrMany<String>,
}

#[derive(Clone, Copy, Debug)]
enum Comparison {
    String,
    StringIgnoringCase,
    StringPattern,
    ArnPattern,
}

impl Conditions {
    pub(super) fn hold(&self, context: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|condition| condition.holds(context.get(&condition.key)))
    }
}

impl Condition {
    fn holds(&self, actual: Option<&String>) -> bool {
        match actual {
            // A key that is not there fails every comparison, and so passes its negation.
            None => self.if_exists || self.negated,
            Some(actual) => {
                let equal = self.values.0.iter().any(|value| self.comparison.holds(value, actual));
                equal != self.negated
            }
        }
    }
}

impl Comparison {
    fn holds(self, value: &str, actual: &str) -> bool {
        match self {
            Comparison::String => value == actual,
            Comparison::StringIgnoringCase => value.eq_ignore_ascii_case(actual),
            Comparison::StringPattern => glob(value, actual),
            // Each of an ARN's six parts by itself: a `*` does not reach over a colon, save in the last.
            Comparison::ArnPattern => {
                let (mut value, mut actual) = (value.splitn(6, ':'), actual.splitn(6, ':'));
                (0..6).all(|_| match (value.next(), actual.next()) {
                    (Some(value), Some(actual)) => glob(value, actual),
                    (Some(_) | None, Some(_) | None) => false,
                })
            }
        }
    }
}

impl TryFrom<BTreeMap<String, BTreeMap<String, OneOrMany<String>>>> for Conditions {
    type Error = String;

    fn try_from(block: BTreeMap<String, BTreeMap<String, OneOrMany<String>>>) -> Result<Self, String> {
        let mut conditions = Vec::new();
        for (operator, keys) in block {
            let (name, if_exists) = match operator.strip_suffix("IfExists") {
                Some(name) => (name, true),
                None => (operator.as_str(), false),
            };
            let (comparison, negated) = match name {
                "StringEquals" => (Comparison::String, false),
                "StringNotEquals" => (Comparison::String, true),
                "StringEqualsIgnoreCase" => (Comparison::StringIgnoringCase, false),
                "StringNotEqualsIgnoreCase" => (Comparison::StringIgnoringCase, true),
                "StringLike" => (Comparison::StringPattern, false),
                "StringNotLike" => (Comparison::StringPattern, true),
                "ArnEquals" | "ArnLike" => (Comparison::ArnPattern, false),
                "ArnNotEquals" | "ArnNotLike" => (Comparison::ArnPattern, true),
                _ => {
                    return Err(format!(
                        "the condition operator {operator} is not simulated; StringEquals, StringLike, ArnEquals, \
                         ArnLike, their negations, …IgnoreCase and …IfExists are"
                    ));
                }
            };
            for (key, values) in keys {
                if let Some(value) = values.0.iter().find(|value| value.contains("${")) {
                    return Err(format!("policy variables are not simulated: {value}"));
                }
                conditions.push(Condition {
                    comparison,
                    negated,
                    if_exists,
                    key: key.to_lowercase(),
                    values,
                });
            }
        }
        Ok(Conditions(conditions))
    }
}
