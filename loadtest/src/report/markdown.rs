//! `report.md`: for a pull request, a log, a terminal.

use super::run::Run;
use super::tables::{self, Table, command_line};

pub(super) fn page(run: &Run) -> String {
    let mut page =
        format!("# {}: {}\n\n{}\n", line(&run.scenario), tables::verdict(run), line(&run.question));
    section(&mut page, "Expectations", &tables::expectations(run));
    let figures = tables::figures(run);
    let rows = figures.into_iter().map(|figure| vec![figure.name.to_owned(), figure.value, figure.beside]);
    section(&mut page, "In short", &Table { header: &["", "", ""], rows: rows.collect() });
    section(&mut page, "Groups of pods", &tables::groups(run));
    section(&mut page, "Failures", &tables::failures(run));
    let marks = run.marks.iter().map(|mark| vec![format!("{:.0} s", mark.at_seconds), mark.what.clone()]);
    section(&mut page, "What happened", &Table { header: &["at", "what"], rows: marks.collect() });
    if !run.notes.is_empty() {
        page += "\n## To judge the figures\n\n";
        page.extend(run.notes.iter().map(|note| format!("* {}\n", line(note))));
    }
    page += "\n## Once more\n\n";
    page += &format!("```\n{}\n```\n", command_line(&run.command));
    if let Some(agent) = &run.agent_command {
        page += &format!("\nThe agent:\n\n```\n{}\n```\n", command_line(agent));
    }
    section(&mut page, "Settings", &tables::settings(run));
    section(&mut page, "Made with", &tables::versions(run));
    page
}

/// Nothing where the table has no row.
fn section(page: &mut String, title: &str, table: &Table) {
    if table.rows.is_empty() {
        return;
    }
    *page += &format!(
        "\n## {title}\n\n| {} |\n|{}\n",
        table.header.join(" | "),
        " --- |".repeat(table.header.len())
    );
    for row in &table.rows {
        let cells: Vec<String> = row.iter().map(|text| cell(text)).collect();
        *page += &format!("| {} |\n", cells.join(" | "));
    }
}

fn cell(text: &str) -> String {
    line(text).replace('|', r"\|")
}

/// Without what markdown would take for a tag, and on one line.
fn line(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace(['\r', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_page_has_what_was_expected_and_what_failed() {
        let page = page(&sample::outage());
        assert!(page.starts_with("# outage: 1 of 3 expectations did not hold\n"), "{page}");
        assert!(page.contains("| p99(known roles)&lt;5ms | 12.3 ms | not held |"), "{page}");
        assert!(page.contains("cargo xtask loadtest outage --pods 5000 --roles 50\n"), "{page}");
        assert!(page.contains("503 &lt;ServiceUnavailable> &amp; \"ask again\""), "{page}");
    }

    #[test]
    fn a_cell_stays_one_cell() {
        assert_eq!(cell("a|b\nc"), r"a\|b c");
    }

    #[test]
    fn a_run_of_nothing_has_a_page() {
        let page = page(&sample::empty());
        assert!(page.contains("Nothing was expected of this run"), "{page}");
        assert!(!page.contains("NaN") && !page.contains("Failures"), "{page}");
    }
}
