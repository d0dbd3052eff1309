//! What came of a run: for a person, and for the next program.

mod run;

pub use self::run::{Expected, Failure, Group, Latency, Mark, Run, Second, Totals, Versions};
