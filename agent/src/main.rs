use std::process::ExitCode;

use podcred::admin::control;
use podcred::config::{Cli, Command};
use podcred::{link, logging};

fn main() -> ExitCode {
    let cli = Cli::from_args(std::env::args_os().collect()).unwrap_or_else(|e| e.exit());
    logging::init(cli.log);
    let result = match cli.command {
        Command::Server(_) => Err("the server is not wired here yet".to_owned()),
        Command::Initialize(config) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(link::run(&config)).map(|_| ()).map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            }
        }
        Command::Flush(config) => control::flush(&config.control_socket, config.service_account.as_ref())
            .map(|answer| println!("{answer}")),
        Command::Version => {
            println!("podcred {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            tracing::error!("{problem}");
            ExitCode::FAILURE
        }
    }
}
