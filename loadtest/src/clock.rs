//! The only place of this crate that reads a clock: the handlers take their times from here or as parameters.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_smithy_types::date_time::{DateTime, Format};
use tokio::time::Instant;

/// Wall time: what tokens, signatures and credentials are dated by.
#[expect(clippy::disallowed_methods, reason = "the clock module is where the clock is read")]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// Monotonic time: what rates, delays and durations are measured by.
#[expect(clippy::disallowed_methods, reason = "the clock module is where the clock is read")]
pub(crate) fn mono() -> Instant {
    Instant::now()
}

/// Whole seconds since 1970; negative before.
pub(crate) fn epoch_seconds(at: SystemTime) -> i64 {
    DateTime::from(at).secs()
}

/// Seconds since 1970 as rest-json writes its timestamps.
pub(crate) fn epoch_fraction(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as f64 / 1000.0
}

/// `YYYY-MM-DDTHH:MM:SS[.mmm]Z`
pub(crate) fn rfc3339(at: SystemTime) -> String {
    let millis = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let at = DateTime::from_millis(i64::try_from(millis).unwrap_or(i64::MAX));
    at.fmt(Format::DateTime).unwrap_or_else(|_| format!("{} s after 1970", at.secs()))
}
