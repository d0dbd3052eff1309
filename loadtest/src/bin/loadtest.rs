//! The load harness: one scenario a run.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use loadtest::harness::{self, Options};
use loadtest::report::Run;

fn main() -> ExitCode {
    let options = Options::parse();
    match harness::run(&options) {
        Ok(run) => {
            show(&run);
            println!("report: {}", options.output().display());
            ExitCode::from(u8::from(run.expected.iter().any(|expected| !expected.held)))
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn show(run: &Run) {
    let totals = &run.totals;
    println!("{}: {}", run.scenario, run.question);
    println!(
        "{} pods{}, {} requests in {:.0} s: {} served, {} failed, {} wrong; EKS Auth calls: {}",
        totals.pods,
        if run.agent_command.is_some() { format!(" of {} roles", totals.roles) } else { String::new() },
        totals.requests,
        run.duration_seconds,
        totals.served,
        totals.failed,
        totals.wrong,
        totals.eks_auth_calls.map_or_else(|| "not known".to_owned(), |calls| calls.to_string()),
    );
    for group in &run.groups {
        let latency = &group.latency;
        let times = match latency.count {
            0 => String::new(),
            _ => format!(
                "p50 {:.2} ms  p99 {:.2} ms  max {:.2} ms  ",
                latency.p50_ms, latency.p99_ms, latency.max_ms
            ),
        };
        println!("  {:<17} {:>7} requests  {times}{} failed", group.name, group.requests, group.failed);
    }
    for failure in &run.failures {
        println!("  {} × {} ({}): {}", failure.count, failure.class, failure.group, failure.example);
    }
    for expected in &run.expected {
        let mark = if expected.held { "held  " } else { "MISSED" };
        println!("{mark} {} (was {})", expected.condition, expected.was);
    }
}
