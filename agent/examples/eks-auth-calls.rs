//! What EKS Auth costs with AWS's SDK alone, called as the agent calls it: the reference of `cargo xtask bench` for a first fetch.
//!
//! It reads tokens, one a line, and answers each with a line: the microseconds that the call took, or why it failed. Region and
//! credentials are where all AWS tools find them.
#![forbid(unsafe_code)]

use std::io::{BufRead, Write};

use anyhow::{Context, Result};
use podcred::clock::since_boot;
use podcred::eks_auth::{ClientConfig, EksAuth, EksAuthClient};
use secrecy::SecretString;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let config = ClientConfig {
        cluster_name: arguments.next().context("which cluster?")?,
        endpoint: Some(arguments.next().context("which endpoint?")?),
        rotate_credentials: false,
        node_name: None,
        instance_id: None,
        zone: None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let client = runtime.block_on(EksAuthClient::connect(&config)).map_err(anyhow::Error::msg)?;
    let mut stdout = std::io::stdout().lock();
    for token in std::io::stdin().lock().lines() {
        let call = client.assume_role_for_pod_identity(SecretString::from(token?));
        let before = since_boot();
        match runtime.block_on(runtime.spawn(call))? {
            Ok(_) => writeln!(stdout, "{}", (since_boot() - before).as_micros())?,
            Err(failure) => writeln!(stdout, "{failure:?}")?,
        }
        stdout.flush()?;
    }
    Ok(())
}
