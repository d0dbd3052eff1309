//! The simulated EKS as a process, and its control API (`loadtest::eks` says what it does).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hyper::Method;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::http;
use crate::place::Place;
use crate::process::{Process, quietly};
use crate::setup;

const ACCOUNT: &str = "111122223333";
const START: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Eks {
    process: Process,
    place: Place,
    address: SocketAddr,
    ready: Ready,
}

/// What the simulation prints when it is ready. Its secrets are made up and open nothing else.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ready {
    url: String,
    issuer: String,
    cluster_name: String,
    region: String,
    node_access_key_id: String,
    node_secret_access_key: String,
    admin_access_key_id: String,
    admin_secret_access_key: String,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("url", &self.url).finish_non_exhaustive()
    }
}

/// A pod's identity, and where it is written.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodName {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) pod_name: String,
}

/// A pod's token, and the UID that it names.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Minted {
    pub(crate) token: String,
    pub(crate) pod_uid: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Session {
    pub(crate) role_arn: String,
    pub(crate) session_arn: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CallCounts {
    pub(crate) total: u64,
    pub(crate) by_role: BTreeMap<String, u64>,
}

impl Eks {
    pub(crate) async fn start(place: Place, binary: &Path, listen: SocketAddr, log: &Path) -> Result<Eks> {
        Eks::start_with(place, binary, listen, &[], log).await
    }

    pub(crate) async fn start_with(
        place: Place,
        binary: &Path,
        listen: SocketAddr,
        more: &[&str],
        log: &Path,
    ) -> Result<Eks> {
        let mut command = place.command(&binary.display().to_string());
        command.arg("--listen").arg(listen.to_string()).args(["--account-id", ACCOUNT]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Process::spawn("simulated-eks", command, log)?;
        let stdout = process.child().stdout.take().context("simulated-eks has no stdout")?;
        let mut line = String::new();
        tokio::time::timeout(START, BufReader::new(stdout).read_line(&mut line))
            .await
            .with_context(|| format!("simulated-eks is not ready after {} s", START.as_secs()))??;
        let Ok(ready) = serde_json::from_str::<Ready>(&line) else {
            bail!("simulated-eks did not start:\n{}", process.log_tail());
        };
        let address = ready.url.trim_start_matches("http://").parse().context("simulated-eks's address")?;
        Ok(Eks { process, place, address, ready })
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.process.stop().await
    }

    pub(crate) fn url(&self) -> &str {
        &self.ready.url
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.ready.issuer
    }

    pub(crate) fn cluster_name(&self) -> &str {
        &self.ready.cluster_name
    }

    pub(crate) fn region(&self) -> &str {
        &self.ready.region
    }

    pub(crate) fn node_environment(&self) -> [(&'static str, &str); 3] {
        [
            ("AWS_REGION", &self.ready.region),
            ("AWS_ACCESS_KEY_ID", &self.ready.node_access_key_id),
            ("AWS_SECRET_ACCESS_KEY", &self.ready.node_secret_access_key),
        ]
    }

    pub(crate) fn role_arn(role: &str) -> String {
        format!("arn:aws:iam::{ACCOUNT}:role/{role}")
    }

    /// Creates an association as a person does, with the aws CLI.
    pub(crate) async fn associate(&self, namespace: &str, account: &str, role_arn: &str) -> Result<()> {
        let home = tempfile::tempdir()?;
        let mut command = self.place.command(&setup::venv().join("bin/aws").display().to_string());
        command
            .args(["eks", "create-pod-identity-association", "--endpoint-url", self.url()])
            .args(["--cluster-name", self.cluster_name(), "--namespace", namespace])
            .args(["--service-account", account, "--role-arn", role_arn])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", home.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_DEFAULT_REGION", self.region())
            .env("AWS_ACCESS_KEY_ID", &self.ready.admin_access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &self.ready.admin_secret_access_key);
        quietly("aws eks create-pod-identity-association", &mut command).await?;
        Ok(())
    }

    /// As [`Eks::associate`], without the half second that the aws CLI takes.
    pub(crate) async fn associate_quickly(&self, namespace: &str, account: &str) -> Result<()> {
        let arn = Eks::role_arn(&format!("{namespace}-{account}"));
        let body = json!({ "namespace": namespace, "serviceAccount": account, "roleArn": arn });
        let _made: Value = self.control(Method::POST, "associations", &body).await?;
        Ok(())
    }

    /// A projected token, as the kubelet would get it for this pod.
    pub(crate) async fn mint(&self, pod: &PodName) -> Result<Minted> {
        self.control(Method::POST, "tokens", &serde_json::to_value(pod)?).await
    }

    pub(crate) async fn set(&self, settings: Value) -> Result<()> {
        let _all: Value = self.control(Method::PATCH, "settings", &settings).await?;
        Ok(())
    }

    /// A service account of the same name but a new UID, with which nothing that is cached has to do.
    pub(crate) async fn recreate_service_account(&self, namespace: &str, account: &str) -> Result<()> {
        let body = json!({ "namespace": namespace, "serviceAccount": account });
        let _uid: Value = self.control(Method::POST, "service-accounts/recreate", &body).await?;
        Ok(())
    }

    /// Whose session these credentials are.
    pub(crate) async fn session(&self, access_key_id: &str) -> Result<Session> {
        self.control(Method::GET, &format!("sessions/{access_key_id}"), &Value::Null).await
    }

    pub(crate) async fn counts(&self) -> Result<CallCounts> {
        self.control(Method::GET, "counts", &Value::Null).await
    }

    async fn control<T: DeserializeOwned>(&self, method: Method, path: &str, body: &Value) -> Result<T> {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        let path = format!("/control/{path}");
        let (status, answer) = http::request(&self.place, self.address, method, &path, body).await?;
        if !status.is_success() {
            return Err(anyhow!("simulated EKS, {path}: {status}: {}", String::from_utf8_lossy(&answer)));
        }
        serde_json::from_slice(&answer).with_context(|| format!("simulated EKS, {path}: unexpected answer"))
    }
}
