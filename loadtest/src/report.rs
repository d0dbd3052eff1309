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

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

pub use self::expect::{Expectation, ExpectationError};
pub use self::run::{Expected, Failure, Group, Latency, Mark, Run, Second, Totals, Versions};

/// What goose writes, where it was asked to, into the folder of the others.
pub const GOOSE: &str = "goose.html";

const JSON: &str = "report.json";
const MARKDOWN: &str = "report.md";
const HTML: &str = "report.html";

/// Makes the folder, and takes a former run's report out of it: it would be taken for that of a run that gets none.
pub fn prepare(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for name in [JSON, MARKDOWN, HTML, GOOSE] {
        let file = folder.join(name);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", file.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Writes `report.json`, `report.md` and `report.html` into the folder.
pub fn write(run: &Run, folder: &Path) -> Result<()> {
    let goose = folder.join(GOOSE).is_file().then_some(GOOSE);
    let pages = [
        (JSON, serde_json::to_string_pretty(run)?),
        (MARKDOWN, markdown::page(run)),
        (HTML, html::page(run, goose)?),
    ];
    for (name, text) in pages {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
