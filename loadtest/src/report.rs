//! What came of a run: for a person, and for the next program.

mod expect;
mod figures;
mod run;
#[cfg(test)]
mod sample;

use std::path::Path;

use anyhow::{Context, Result};

pub use self::expect::{Expectation, ExpectationError};
pub use self::run::{Expected, Failure, Group, Latency, Mark, Run, Second, Totals, Versions};

/// Writes `report.json` into the folder, which is made where it is not there.
pub fn write(run: &Run, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in [("report.json", serde_json::to_string_pretty(run)?)] {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
