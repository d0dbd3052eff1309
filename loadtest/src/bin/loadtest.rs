//! The load harness: one scenario a run.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use loadtest::harness::{self, Options, Outcome};
use loadtest::report::Run;

fn main() -> ExitCode {
    let options = Options::parse();
    let (run, error) = match harness::run(&options) {
        Ok(Outcome { run, error }) => (Some(run), error),
        Err(error) => (None, Some(error)),
    };
    // Who closes stdout or stderr wants to read no more; the exit status says the same as ever.
    let _shown = run.as_ref().map(|run| show(run, &mut io::stdout().lock()));
    if let Some(error) = error {
        let _said = writeln!(io::stderr(), "error: {error:#}");
        return ExitCode::from(2);
    }
    let _named = writeln!(io::stdout(), "report: {}", options.output().display());
    let missed = run.is_some_and(|run| run.expected.iter().any(|expected| !expected.held));
    ExitCode::from(u8::from(missed))
}

fn show(run: &Run, out: &mut impl Write) -> io::Result<()> {
    let totals = &run.totals;
    writeln!(out, "{}: {}", run.scenario, run.question)?;
    writeln!(
        out,
        "{} pods{}, {} requests in {:.0} s: {} served, {} failed, {} wrong; EKS Auth calls: {}",
        totals.pods,
        if run.agent_command.is_some() { format!(" of {} roles", totals.roles) } else { String::new() },
        totals.requests,
        run.duration_seconds,
        totals.served,
        totals.failed,
        totals.wrong,
        totals.eks_auth_calls.map_or_else(|| "not known".to_owned(), |calls| calls.to_string()),
    )?;
    for group in &run.groups {
        let latency = &group.latency;
        let times = match latency.count {
            0 => String::new(),
            _ => format!(
                "p50 {:.2} ms  p99 {:.2} ms  max {:.2} ms  ",
                latency.p50_ms, latency.p99_ms, latency.max_ms
            ),
        };
        writeln!(out, "  {:<17} {:>7} requests  {times}{} failed", group.name, group.requests, group.failed)?;
    }
    for failure in &run.failures {
        writeln!(out, "  {} × {} ({}): {}", failure.count, failure.class, failure.group, failure.example)?;
    }
    for expected in &run.expected {
        let mark = if expected.held { "held  " } else { "MISSED" };
        writeln!(out, "{mark} {} (was {})", expected.condition, expected.was)?;
    }
    Ok(())
}
