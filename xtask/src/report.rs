//! What a person sees: progress, tables, and the line that counts.

use std::fmt::{Display, Formatter};

/// One line of progress.
pub(crate) fn step(text: &str) {
    eprintln!("• {text}");
}

pub(crate) fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Display for Counts {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Columns as wide as their widest cell; cells that are numbers stand right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, &width)| match cell.bytes().all(|byte| byte.is_ascii_digit()) {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            })
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(&mut header.iter().copied());
    text += &line(
        &mut widths.iter().map(|&width| "─".repeat(width)).collect::<Vec<_>>().iter().map(String::as_str),
    );
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_columns_fit_their_widest_cell() {
        let rows =
            vec![vec!["cart".to_owned(), "9".to_owned()], vec!["checkout".to_owned(), "12".to_owned()]];
        let lines = ["role      pods", "────────  ────", "cart         9", "checkout    12", ""];
        assert_eq!(table(&["role", "pods"], &rows), lines.join("\n"));
    }

    #[test]
    fn the_counting_line_names_skipped_ones_only_where_there_are_any() {
        let mut counts = Counts { passed: 3, failed: 1, skipped: 0 };
        assert_eq!(counts.to_string(), "3 passed, 1 failed");
        counts.add(Counts { passed: 1, failed: 0, skipped: 2 });
        assert_eq!(counts.to_string(), "4 passed, 1 failed, 2 skipped");
    }
}
