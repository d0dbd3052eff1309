//! Rust's aws-config as a pod uses it; the protocol is in ../../README.md.
//!
//! In this SDK the cache of credentials belongs to a service client, and the provider below it asks at every call. So both
//! commands make an STS call, and a wrapper round the provider remembers what the client was last given.

use std::io::Write;
use std::sync::{Arc, Mutex};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, error::CredentialsError, future};
use aws_smithy_types::date_time::{DateTime, Format};
use aws_smithy_types::error::display::DisplayErrorContext;
use serde::Serialize;

#[derive(Debug)]
struct Remembering {
    chain: DefaultCredentialsChain,
    last: Arc<Mutex<Option<Credentials>>>,
}

impl Remembering {
    async fn load(&self) -> Result<Credentials, CredentialsError> {
        let credentials = self.chain.provide_credentials().await?;
        if let Ok(mut last) = self.last.lock() {
            *last = Some(credentials.clone());
        }
        Ok(credentials)
    }
}

impl ProvideCredentials for Remembering {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.load())
    }
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    ms: u128,
}

async fn identity(client: &aws_sdk_sts::Client, last: &Mutex<Option<Credentials>>) -> Answer {
    let identity = match client.get_caller_identity().send().await {
        Ok(identity) => identity,
        Err(error) => {
            return Answer { error: Some(DisplayErrorContext(error).to_string()), ..Answer::default() };
        }
    };
    let last = last.lock().ok().and_then(|last| last.clone());
    Answer {
        ok: true,
        access_key_id: last.as_ref().map(|c| c.access_key_id().to_owned()),
        expiration: last
            .as_ref()
            .and_then(Credentials::expiry)
            .and_then(|end| DateTime::from(end).fmt(Format::DateTime).ok()),
        account: identity.account,
        arn: identity.arn,
        ..Answer::default()
    }
}

#[expect(clippy::disallowed_methods, reason = "this program is a stopwatch round another library's calls")]
// A worker of its own, because the main thread blocks on stdin between commands.
#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> std::io::Result<()> {
    let base: SdkConfig = aws_config::defaults(BehaviorVersion::latest()).load().await;
    let last = Arc::new(Mutex::new(None));
    let chain = DefaultCredentialsChain::builder().build().await;
    let config = aws_sdk_sts::config::Builder::from(&base)
        .credentials_provider(Remembering { chain, last: Arc::clone(&last) })
        .build();
    let client = aws_sdk_sts::Client::from_conf(config);

    for line in std::io::stdin().lines() {
        let started = std::time::Instant::now();
        let mut answer = match line?.trim() {
            "get" | "identity" => identity(&client, &last).await,
            other => Answer { error: Some(format!("unknown command {other:?}")), ..Answer::default() },
        };
        answer.ms = started.elapsed().as_millis();
        let mut stdout = std::io::stdout().lock();
        serde_json::to_writer(&mut stdout, &answer)?;
        writeln!(stdout)?;
    }
    Ok(())
}
