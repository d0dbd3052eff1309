//! Logging to stderr, and keeping secrets out of it and out of core dumps.

use std::backtrace::Backtrace;
use std::io;
use std::panic;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tracing::Level;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::config::{LogConfig, LogFormat, Verbosity};

/// Lines that wait for whoever reads stderr. Beyond them lines are dropped: a log collector that is stuck must not stop
/// credentials, and a node's worth of pods does not write so many in minutes. Each takes 32 bytes also where none waits.
const QUEUED_LINES: usize = 4_096;

/// Logs to stderr from here on, panics included. Once per process. What is queued is written before the guard is gone,
/// or given up after a second.
pub fn init(config: LogConfig) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUED_LINES)
        .lossy(true)
        .thread_name("log")
        .finish(io::stderr());
    Registry::default().with(layer(config, writer)).init();
    panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let backtrace = Backtrace::capture();
        tracing::error!(thread = thread.name().unwrap_or("unnamed"), %backtrace, "panic: {info}");
    }));
    guard
}

/// No core dump of this process, ever: its memory holds the credentials of every role on the node.
pub fn harden_process() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // A set-user-ID exec or a sysctl could make it dumpable again; the limit of zero stays.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

fn layer<W>(config: LogConfig, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter(config.verbosity);
    match config.log_format {
        LogFormat::Text => {
            let ansi = io::IsTerminal::is_terminal(&io::stderr());
            fmt::layer().with_ansi(ansi).with_writer(writer).with_filter(filter).boxed()
        }
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_writer(writer).with_filter(filter).boxed()
        }
    }
}

/// Only podcred's own modules get the level that was asked for; every other crate gets at most `info`, and `warn`
/// where podcred itself is at `info`.
///
/// Below `info` the AWS SDK writes whole requests and responses, hyper and h2 write headers, and rustls writes
/// handshakes: tokens and secret keys would be in the log of everyone who debugs with the official chart's `-v trace`.
/// The cap names the crates that may go lower, not those that may not, so that a new dependency starts capped.
///
/// kube's crates write whatever the API server answers where it is not what they expected, and that may repeat the token
/// that it was sent. What went wrong is said by those who asked.
fn filter(verbosity: Verbosity) -> Targets {
    let (own, others) = match verbosity {
        Verbosity::Error => (Level::ERROR, Level::ERROR),
        Verbosity::Warn => (Level::WARN, Level::WARN),
        Verbosity::Info => (Level::INFO, Level::WARN),
        Verbosity::Debug => (Level::DEBUG, Level::INFO),
        Verbosity::Trace => (Level::TRACE, Level::INFO),
    };
    Targets::new()
        .with_default(LevelFilter::from_level(others))
        .with_target("podcred", own)
        .with_target("kube_client", LevelFilter::OFF)
        .with_target("kube_runtime", LevelFilter::OFF)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn logged(config: LogConfig, events: impl FnOnce()) -> String {
        let buffer = Arc::new(Mutex::new(Vec::new()));
        let writer = {
            let buffer = Arc::clone(&buffer);
            move || Buffer(Arc::clone(&buffer))
        };
        tracing::subscriber::with_default(Registry::default().with(layer(config, writer)), events);
        let bytes = buffer.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn other_crates_never_log_below_info() {
        let filter = filter(Verbosity::Trace);
        for target in [
            "aws_config::imds",
            "aws_smithy_runtime::client",
            "aws_sdk_eksauth",
            "hyper::proto",
            "h2",
            "rustls",
            "new",
        ] {
            assert!(!filter.would_enable(target, &Level::DEBUG), "{target}");
            assert!(filter.would_enable(target, &Level::INFO), "{target}");
        }
        assert!(filter.would_enable("podcred::credentials", &Level::TRACE));
    }

    #[test]
    fn at_info_other_crates_are_quiet() {
        let filter = filter(Verbosity::Info);
        assert!(
            filter.would_enable("podcred", &Level::INFO) && !filter.would_enable("podcred", &Level::DEBUG)
        );
        assert!(
            filter.would_enable("aws_config", &Level::WARN)
                && !filter.would_enable("aws_config", &Level::INFO)
        );
    }

    #[test]
    fn what_kube_was_answered_is_never_logged() {
        for verbosity in [Verbosity::Error, Verbosity::Info, Verbosity::Trace] {
            for target in ["kube_client::client", "kube_runtime::watcher"] {
                assert!(!filter(verbosity).would_enable(target, &Level::ERROR), "{verbosity:?} {target}");
            }
        }
    }

    #[test]
    fn json_lines_carry_fields_beside_the_message() {
        let config = LogConfig { verbosity: Verbosity::Info, log_format: LogFormat::Json };
        let line = logged(config, || {
            tracing::debug!("hidden");
            tracing::info!(pod = "web-1", "issued");
        });
        let value: serde_json::Value = serde_json::from_str(line.trim()).expect("exactly one JSON line");
        assert_eq!((value["message"].as_str(), value["pod"].as_str()), (Some("issued"), Some("web-1")));
    }

    #[test]
    fn text_lines_have_no_escapes_where_nobody_sees_colours() {
        let config = LogConfig { verbosity: Verbosity::Warn, log_format: LogFormat::Text };
        let line = logged(config, || tracing::warn!(port = 80, "cannot bind"));
        assert!(line.contains("cannot bind") && line.contains("port"), "{line}");
        if !io::IsTerminal::is_terminal(&io::stderr()) {
            assert!(!line.contains('\u{1b}'), "{line:?}");
        }
    }
}
