//! What EKS Auth costs with AWS's SDK alone: the reference of `cargo xtask bench` for a first fetch.
//!
//! It reads tokens, one a line, and answers each with a line once its call has ended: `ok`, or why it failed. Region and credentials
//! are where all AWS tools find them.
#![forbid(unsafe_code)]

use std::io::{BufRead, Write};

use anyhow::{Context, Result};
use aws_config::BehaviorVersion;
use aws_sdk_eksauth::Client;
use aws_sdk_eksauth::config::Builder;
use aws_sdk_eksauth::error::DisplayErrorContext;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let cluster = arguments.next().context("which cluster?")?;
    let endpoint = arguments.next().context("which endpoint?")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let config = runtime.block_on(aws_config::defaults(BehaviorVersion::latest()).load());
    let client = Client::from_conf(Builder::from(&config).endpoint_url(endpoint).build());
    let mut stdout = std::io::stdout().lock();
    for token in std::io::stdin().lock().lines() {
        let call = client.assume_role_for_pod_identity().cluster_name(&cluster).token(token?).send();
        // On a worker, as the agent calls.
        match runtime.block_on(runtime.spawn(call))? {
            Ok(_) => writeln!(stdout, "ok")?,
            Err(error) => writeln!(stdout, "{}", DisplayErrorContext(&error))?,
        }
        stdout.flush()?;
    }
    Ok(())
}
