//! The only place of this crate that reads a clock.

use std::time::{Duration, Instant};

/// A running stopwatch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "the clock module is where the clock is read")]
    pub(crate) fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    #[expect(clippy::disallowed_methods, reason = "the clock module is where the clock is read")]
    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}
