//! `cargo xtask …`: everything a person types. It builds and drives the project's binaries, and depends on none of them.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

mod agent;
mod bench;
mod bench_connect;
mod build;
mod build_ebpf;
mod cgroup;
mod client;
mod clock;
mod demo;
mod deploy_check;
mod eks;
mod http;
mod image;
mod kernels;
mod loadtest;
mod namespace;
mod place;
mod process;
mod report;
mod sdk;
mod sdks;
mod setup;
mod test;
mod toolchain;

use report::Counts;

/// podcred's tasks: see it work, and test it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show podcred serving simulated pods with real AWS SDKs from a simulated EKS
    Demo(demo::Arguments),
    /// Drive each AWS SDK through podcred: first fetch, refresh, slow EKS Auth, refusal, IPv6
    Sdks(sdks::Arguments),
    /// Run all checks and tests
    Test(test::Arguments),
    /// Rebuild the kernel programs that the agent embeds (needs bpf-linker and rust-src, which it installs)
    BuildEbpf(build_ebpf::Arguments),
    /// Run the kernel tests on Debian's kernels, 5.10 to the newest, under qemu
    Kernels(kernels::Arguments),
    /// Run one load-test scenario with thousands of simulated pods, and write a report
    Loadtest(loadtest::Arguments),
    /// Measure the cost of a request, of memory and of growth, relative to bare hyper
    Bench(bench::Arguments),
    /// Measure what the kernel programs cost an unrelated connect()
    BenchConnect(bench_connect::Arguments),
    /// Pack the image for amd64 and arm64, as deploy/Dockerfile builds it, without a container daemon
    Image(image::Arguments),
    /// Check the chart, manifests, alerts, dashboard and image with the tools that will use them
    DeployCheck(deploy_check::Arguments),
    /// Install what the other tasks need (they also do it by themselves)
    Setup,
    /// Process 1 of the node that deploy-check starts
    #[command(hide = true, name = deploy_check::node::inside::COMMAND)]
    NodeInside { plan: PathBuf },
    /// What that node's containerd calls in the place of runc
    #[command(hide = true, name = deploy_check::node::runtime::RUNTIME)]
    NodeRuntime {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let task = Cli::parse().task;
    // Whoever is interrupted drops what it holds: processes and namespaces end with their owners.
    let outcome = tokio::select! {
        outcome = run(task) => outcome,
        name = interrupted() => {
            eprintln!("\n{name}: everything that was started is ended");
            return ExitCode::from(130);
        }
    };
    match outcome {
        Ok(counts) if counts.failed == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(task: Task) -> Result<Counts> {
    match task {
        Task::Demo(arguments) => Box::pin(demo::run(&arguments)).await,
        Task::Sdks(arguments) => Box::pin(sdks::run(&arguments)).await,
        Task::Test(arguments) => Box::pin(test::run(&arguments)).await,
        Task::BuildEbpf(arguments) => Box::pin(build_ebpf::run(&arguments)).await,
        Task::Kernels(arguments) => Box::pin(kernels::run(&arguments)).await,
        Task::Loadtest(arguments) => Box::pin(loadtest::run(&arguments)).await,
        Task::Bench(arguments) => Box::pin(bench::run(&arguments)).await,
        Task::BenchConnect(arguments) => Box::pin(bench_connect::run(&arguments)).await,
        Task::Image(arguments) => Box::pin(image::run(&arguments)).await,
        Task::DeployCheck(arguments) => Box::pin(deploy_check::run(&arguments)).await,
        Task::NodeInside { plan } => {
            Box::pin(deploy_check::node::inside::run(&plan)).await?;
            Ok(Counts::default())
        }
        Task::NodeRuntime { arguments } => {
            deploy_check::node::runtime::adapted(&arguments)?;
            Ok(Counts::default())
        }
        Task::Setup => {
            Box::pin(setup::all()).await?;
            Ok(Counts::default())
        }
    }
}

async fn interrupted() -> &'static str {
    let (Ok(mut terminate), Ok(mut hangup)) = (signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => "interrupted",
        _ = terminate.recv() => "terminated",
        _ = hangup.recv() => "terminal closed",
    }
}
