//! The only place that reads a clock.
//!
//! Everything else takes a [`Now`]: credentials expire by wall time, waits and backoffs run on monotonic time, and
//! a test that moves one must be able to leave the other alone. `clippy.toml` bans the clock calls elsewhere.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// Wall time in whole seconds since 1970, the unit of `exp`, `nbf` and of credentials' expiration.
/// All arithmetic saturates: these numbers come out of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// What is left at `now` before this moment; zero once it has passed.
    pub fn remaining_at(self, now: UnixTime) -> Duration {
        Duration::from_secs(self.0.saturating_sub(now.0))
    }

    pub fn saturating_add(self, by: Duration) -> UnixTime {
        UnixTime(self.0.saturating_add(by.as_secs()))
    }
}

impl fmt::Display for UnixTime {
    /// `YYYY-MM-DDTHH:MM:SSZ`, the only spelling that every AWS SDK reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use aws_smithy_types::date_time::{DateTime, Format};
        let seconds = i64::try_from(self.0).unwrap_or(i64::MAX);
        match DateTime::from_secs(seconds).fmt(Format::DateTime) {
            Ok(text) => f.write_str(&text),
            Err(_) => write!(f, "{seconds} s after 1970"),
        }
    }
}

/// One reading of both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub wall: UnixTime,
    pub mono: Instant,
}

/// Where [`Now`]s come from.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    #[cfg(test)]
    manual: Option<manual::Wall>,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the clock module is where the clock is read")]
    pub fn now(&self) -> Now {
        let mono = Instant::now();
        #[cfg(test)]
        if let Some(wall) = &self.manual {
            return Now { wall: wall.at(mono), mono };
        }
        // Each request asks, and whole seconds are all that is wanted: the kernel's last tick tells them in no time.
        let wall = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse).tv_sec;
        Now { wall: UnixTime(u64::try_from(wall).unwrap_or_default()), mono }
    }
}

/// Time since boot with the time that the machine slept: the clock that the kernel programs stamp by.
pub fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// A wall clock that follows tokio's (pausable) time and can be made to jump.
#[cfg(test)]
mod manual {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::{Clock, Instant, UnixTime};

    #[derive(Clone, Debug)]
    pub(super) struct Wall {
        start: Instant,
        start_wall: u64,
        jumped: Arc<AtomicI64>,
    }

    impl Wall {
        pub(super) fn at(&self, mono: Instant) -> UnixTime {
            let steady = self.start_wall + mono.duration_since(self.start).as_secs();
            UnixTime(steady.saturating_add_signed(self.jumped.load(Ordering::Relaxed)))
        }
    }

    impl Clock {
        #[expect(clippy::disallowed_methods, reason = "the clock module is where the clock is read")]
        pub(crate) fn manual(start_wall: u64) -> Clock {
            Clock { manual: Some(Wall { start: Instant::now(), start_wall, jumped: Arc::default() }) }
        }

        /// Moves wall time by `seconds` and leaves monotonic time alone, as an NTP step does.
        pub(crate) fn jump(&self, seconds: i64) {
            let wall = self.manual.as_ref().expect("only a manual clock jumps");
            wall.jumped.fetch_add(seconds, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiration_is_spelled_the_way_every_sdk_reads_it() {
        assert_eq!(UnixTime(1_795_234_409).to_string(), "2026-11-21T04:13:29Z");
    }

    #[test]
    fn hostile_times_saturate() {
        assert_eq!(UnixTime(5).remaining_at(UnixTime(9)), Duration::ZERO);
        assert_eq!(UnixTime(u64::MAX).saturating_add(Duration::from_secs(1)), UnixTime(u64::MAX));
        assert!(!UnixTime(u64::MAX).to_string().is_empty());
    }
}
