//! The simulated EKS as a process: see `loadtest::eks` for what it serves.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use aws_credential_types::Credentials;
use clap::Parser;
use loadtest::eks::{Config, Settings, SimulatedEks};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// Simulate EKS: OIDC issuer, EKS Auth, pod identity associations, STS, and a control API under /control.
///
/// Prints one line of JSON when it is ready, logs to stderr, ends on SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(name = "simulated-eks", version)]
struct Arguments {
    /// Address for http; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address for https, with a certificate authority made for this run.
    #[arg(long, value_name = "ADDRESS")]
    https_listen: Option<SocketAddr>,
    /// Where to write the certificate authority, as PEM.
    #[arg(long, value_name = "FILE", requires = "https_listen")]
    ca_out: Option<PathBuf>,
    /// Use the https address in the issuer's URL.
    #[arg(long, requires = "https_listen")]
    issuer_over_https: bool,
    /// Accept the tokens of an API server with this issuer URL that signs with the key of --signing-key-out.
    #[arg(long, value_name = "URL", requires = "signing_key_out")]
    issuer: Option<String>,
    /// Where to write the private key that signs tokens, as PEM.
    #[arg(long, value_name = "FILE")]
    signing_key_out: Option<PathBuf>,
    #[arg(long, value_name = "NAME", default_value = "demo", value_parser = cluster_name)]
    cluster_name: String,
    #[arg(long, default_value = "eu-west-1")]
    region: String,
    /// Account ID of the cluster and the node role, twelve digits.
    #[arg(long, default_value = "111122223333", value_parser = account_id)]
    account_id: String,
    /// Access key ID of the node role, made up by default. If given, its secret must be in
    /// SIMULATED_NODE_SECRET_ACCESS_KEY, and its session token, if it has one, in SIMULATED_NODE_SESSION_TOKEN.
    #[arg(long, value_name = "ID")]
    node_access_key_id: Option<String>,
    /// Least severe level to log to stderr: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: tracing::Level,
    #[command(flatten)]
    settings: Settings,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(arguments.log_level)
        .init();
    // Before the ready line: whoever reads it may send a signal at once.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    let eks = SimulatedEks::start(Config {
        cluster_name: arguments.cluster_name,
        region: arguments.region,
        account_id: arguments.account_id,
        listen: arguments.listen,
        https_listen: arguments.https_listen,
        issuer_over_https: arguments.issuer_over_https,
        issuer: arguments.issuer,
        node_credentials: node_credentials(arguments.node_access_key_id)?,
        settings: arguments.settings,
    })
    .await?;
    if let (Some(file), Some(pem)) = (&arguments.ca_out, eks.ca_pem()) {
        std::fs::write(file, pem).with_context(|| format!("cannot write --ca-out {}", file.display()))?;
    }
    if let Some(file) = &arguments.signing_key_out {
        let pem = eks.signing_key_pem()?;
        std::fs::write(file, pem)
            .with_context(|| format!("cannot write --signing-key-out {}", file.display()))?;
    }
    print_ready(&eks)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// The secrets are made up and open nothing but this simulation.
fn print_ready(eks: &SimulatedEks) -> Result<()> {
    let (node, admin) = (eks.node_credentials(), eks.admin_credentials());
    let ready = json!({
        "url": eks.url(),
        "httpsUrl": eks.https_url(),
        "issuer": eks.issuer(),
        "clusterName": eks.cluster_name(),
        "region": eks.region(),
        "nodeAccessKeyId": node.access_key_id(),
        "nodeSecretAccessKey": node.secret_access_key(),
        "nodeSessionToken": node.session_token(),
        "adminAccessKeyId": admin.access_key_id(),
        "adminSecretAccessKey": admin.secret_access_key(),
    });
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{ready}")?;
    Ok(stdout.flush()?)
}

fn node_credentials(access_key_id: Option<String>) -> Result<Option<Credentials>> {
    let Some(id) = access_key_id else { return Ok(None) };
    let Ok(secret) = std::env::var("SIMULATED_NODE_SECRET_ACCESS_KEY") else {
        bail!("--node-access-key-id needs the secret in SIMULATED_NODE_SECRET_ACCESS_KEY");
    };
    let session_token = std::env::var("SIMULATED_NODE_SESSION_TOKEN").ok();
    Ok(Some(Credentials::new(id, secret, session_token, None, "simulated-eks")))
}

fn cluster_name(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let valid = (1..=100).contains(&text.len())
        && text.bytes().all(legal)
        && text.starts_with(|first: char| first.is_ascii_alphanumeric());
    valid.then(|| text.to_owned()).ok_or_else(|| {
        "a cluster's name has 1 to 100 letters, digits, - and _, and starts with a letter or digit".to_owned()
    })
}

fn account_id(text: &str) -> Result<String, String> {
    let valid = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| text.to_owned()).ok_or_else(|| "an account id is twelve digits".to_owned())
}
