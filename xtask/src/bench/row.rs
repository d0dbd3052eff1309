//! One measurement of the table, and what is wanted of it.

use std::fmt::{Display, Formatter};

use serde::Serialize;

use crate::report::table;

/// Two servers that are the same must look the same up to this, or the machine was too busy to tell others apart.
const TOLERANCE: f64 = 0.02;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: Unit,
    /// Where the value is with 95 % confidence.
    pub(crate) interval: Option<[f64; 2]>,
    pub(crate) control: Option<Control>,
    pub(crate) goal: Option<Goal>,
    /// The figures that the value comes from.
    pub(crate) detail: String,
}

/// The same measurement of two that differ by nothing, and how far from 1 it may be.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Control {
    pub(crate) ratio: f64,
    pub(crate) tolerance: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    Ratio,
    Megabytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// Met or missed, nobody can say.
    NotTrusted,
    /// Nothing is wanted of it.
    Shown,
}

impl Control {
    pub(crate) fn of_servers(ratio: f64) -> Control {
        Control { ratio, tolerance: TOLERANCE }
    }

    fn is_trusted(self) -> bool {
        (self.ratio - 1.0).abs() <= self.tolerance
    }
}

impl Row {
    pub(crate) fn verdict(&self) -> Verdict {
        let Some(goal) = self.goal else { return Verdict::Shown };
        if self.control.is_some_and(|control| !control.is_trusted()) {
            return Verdict::NotTrusted;
        }
        let met = match goal {
            Goal::AtLeast(least) => self.value >= least,
            Goal::AtMost(most) => self.value <= most,
        };
        if met { Verdict::Met } else { Verdict::Missed }
    }

    fn cells(&self) -> Vec<String> {
        let unit = self.unit;
        vec![
            self.what.clone(),
            unit.write(self.value),
            self.interval
                .map(|[low, high]| format!("{} to {}", unit.write(low), unit.write(high)))
                .unwrap_or_default(),
            self.control.map(|control| format!("{:.3}", control.ratio)).unwrap_or_default(),
            self.goal.map(|goal| goal.write(unit)).unwrap_or_default(),
            self.verdict().to_string(),
            self.detail.clone(),
        ]
    }
}

impl Unit {
    fn write(self, value: f64) -> String {
        match self {
            Unit::Ratio => format!("{value:.3}"),
            Unit::Megabytes => format!("{value:.1} MB"),
        }
    }
}

impl Goal {
    fn write(self, unit: Unit) -> String {
        match self {
            Goal::AtLeast(least) => format!("≥ {}", unit.write(least)),
            Goal::AtMost(most) => format!("≤ {}", unit.write(most)),
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verdict::Met => "met",
            Verdict::Missed => "MISSED",
            Verdict::NotTrusted => "NOT TO BE TRUSTED",
            Verdict::Shown => "",
        })
    }
}

const HEADER: [&str; 7] = ["what", "is", "95 %", "A/A", "goal", "", "from"];

pub(crate) fn text(rows: &[Row]) -> String {
    table(&HEADER, &rows.iter().map(Row::cells).collect::<Vec<_>>())
}

pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut page = format!("| {} |\n|{}\n", HEADER.join(" | "), " --- |".repeat(HEADER.len()));
    page.extend(rows.iter().map(|row| format!("| {} |\n", row.cells().join(" | "))));
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f64, control: Option<f64>, goal: Option<Goal>) -> Row {
        let (what, detail) = ("a | b".to_owned(), String::new());
        let control = control.map(Control::of_servers);
        Row { what, value, unit: Unit::Ratio, interval: None, control, goal, detail }
    }

    #[test]
    fn a_goal_is_met_missed_or_not_judged() {
        let least = Some(Goal::AtLeast(0.9));
        assert_eq!(row(0.9, Some(1.01), least).verdict(), Verdict::Met);
        assert_eq!(row(0.89, None, least).verdict(), Verdict::Missed);
        assert_eq!(row(0.95, Some(1.021), least).verdict(), Verdict::NotTrusted);
        assert_eq!(row(17.0, None, Some(Goal::AtMost(16.0))).verdict(), Verdict::Missed);
        assert_eq!(row(17.0, Some(2.0), None).verdict(), Verdict::Shown);
    }

    #[test]
    fn a_missed_goal_is_seen_in_the_table() {
        let rows = [row(0.85, Some(1.0), Some(Goal::AtLeast(0.9)))];
        assert!(text(&rows).contains("0.850") && text(&rows).contains("MISSED"), "{}", text(&rows));
        assert!(markdown(&rows).contains("| ≥ 0.900 | MISSED |"), "{}", markdown(&rows));
    }
}
