//! What came of a run: for a person, and for the next program.

mod chart;
mod charts;
mod expect;
mod figures;
mod html;
mod markdown;
mod run;
#[cfg(test)]
mod sample;
mod tables;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Context, Result};

pub use self::expect::{Expectation, ExpectationError};
pub use self::run::{Expected, Failure, Group, Latency, Mark, Run, Second, Totals, Versions};

/// What goose writes, where it was asked to, into the folder of the others.
pub const GOOSE: &str = "goose.html";

/// Writes `report.json`, `report.md` and `report.html` into the folder, which is made where it is not there.
pub fn write(run: &Run, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let goose = folder.join(GOOSE).is_file().then_some(GOOSE);
    let pages = [
        ("report.json", serde_json::to_string_pretty(run)?),
        ("report.md", markdown::page(run)),
        ("report.html", html::page(run, goose)?),
    ];
    for (name, text) in pages {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
