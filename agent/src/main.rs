//! The `podcred` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use podcred::admin::control;
use podcred::config::{Cli, Command, FlushConfig, InitializeConfig, ServerConfig};
use podcred::{app, doctor, link, logging, memory};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    memory::use_few_arenas();
    let cli = Cli::from_args(std::env::args_os().collect()).unwrap_or_else(|error| error.exit());
    let _log = logging::init(cli.log);
    let result = match cli.command {
        Command::Server(config) => server(*config),
        Command::Initialize(config) => initialize(&config),
        Command::Flush(config) => flush(&config),
        Command::Doctor(config) => {
            let report = doctor::run(&config);
            println!("{report}");
            return report.exit_code();
        }
        Command::Version => {
            println!("podcred {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("podcred: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn server(config: ServerConfig) -> Result<(), String> {
    logging::harden_process().map_err(|error| format!("core dumps cannot be turned off: {error}"))?;
    let runtime = runtime(Builder::new_multi_thread().worker_threads(config.workers))?;
    runtime.block_on(async {
        let cancel = CancellationToken::new();
        let stop = stop_signals()?;
        tokio::spawn({
            let cancel = cancel.clone();
            async move {
                stop.await;
                cancel.cancel();
            }
        });
        app::run(config, cancel).await
    })
}

/// Ends with the first SIGTERM or SIGINT from now on.
fn stop_signals() -> Result<impl Future<Output = ()>, String> {
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| format!("SIGTERM cannot be handled: {e}"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|e| format!("SIGINT cannot be handled: {e}"))?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn initialize(config: &InitializeConfig) -> Result<(), String> {
    runtime(&mut Builder::new_current_thread())?.block_on(async {
        if !config.stay {
            return link::run(config).await.map(drop).map_err(|problem| format!("initialize: {problem}"));
        }
        let stop = stop_signals()?;
        let work = async {
            link::run_until_free(config).await.map_err(|problem| format!("initialize: {problem}"))?;
            std::future::pending().await
        };
        tokio::select! {
            ended = work => ended,
            () = stop => Ok(()),
        }
    })
}

fn flush(config: &FlushConfig) -> Result<(), String> {
    println!("{}", control::flush(&config.control_socket, config.service_account.as_ref())?);
    Ok(())
}

fn runtime(builder: &mut Builder) -> Result<Runtime, String> {
    builder.enable_all().build().map_err(|error| format!("the async runtime does not start: {error}"))
}
