//! A pod: a token, the environment that the webhook injects, and a program with a real SDK (the protocol is in
//! `xtask/sdks/README.md`).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};

use crate::build::Binaries;
use crate::cgroup::PodCgroups;
use crate::eks::{Eks, PodName};
use crate::place::Place;
use crate::process::Process;
use crate::sdk::Sdk;

/// Longer than any SDK's own patience.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all pods of a run have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World<'a> {
    pub(crate) eks: &'a Eks,
    pub(crate) binaries: &'a Binaries,
    /// STS as pods reach it.
    pub(crate) sts: &'a str,
    pub(crate) logs: &'a Path,
    /// Where pods have cgroups of their own.
    pub(crate) cgroups: Option<&'a PodCgroups>,
}

#[derive(Debug)]
pub(crate) struct Pod {
    process: Process,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    /// Home and token; gone with the pod.
    files: TempDir,
    cgroup: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
    pub(crate) ok: bool,
    pub(crate) access_key_id: Option<String>,
    pub(crate) arn: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) ms: u64,
}

impl Answer {
    /// The access key id, or the SDK's error.
    pub(crate) fn key(&self) -> Result<&str> {
        match (&self.access_key_id, &self.error) {
            (Some(key), _) if self.ok => Ok(key),
            (_, error) => bail!("the SDK says: {}", error.as_deref().unwrap_or("nothing")),
        }
    }
}

impl Pod {
    /// `uri` is where the pod is told to ask for credentials.
    pub(crate) async fn start(
        world: World<'_>,
        place: &Place,
        sdk: Sdk,
        name: &PodName,
        uri: &str,
    ) -> Result<Pod> {
        Pod::start_with(world, place, sdk, name, uri, name).await
    }

    /// A pod that presents the token of the pod `bearer`.
    pub(crate) async fn start_with(
        world: World<'_>,
        place: &Place,
        sdk: Sdk,
        name: &PodName,
        uri: &str,
        bearer: &PodName,
    ) -> Result<Pod> {
        let files = tempfile::tempdir()?;
        let token_file = files.path().join("eks-pod-identity-token");
        tokio::fs::write(&token_file, world.eks.mint(bearer).await?.token).await?;
        let cgroup = match world.cgroups {
            Some(cgroups) => Some(cgroups.container(&world.eks.mint(name).await?.pod_uid)?),
            None => None,
        };
        let (program, arguments) = sdk.command(world.binaries);
        let mut command = place.command_in(cgroup.as_deref(), &program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", files.path())
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)
            .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token_file)
            .env("AWS_REGION", world.eks.region())
            .env("AWS_DEFAULT_REGION", world.eks.region())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ENDPOINT_URL_STS", world.sts)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let log = world.logs.join(format!("{}.log", name.pod_name));
        let mut process = Process::spawn(&format!("{} of {}", sdk.title(), name.pod_name), command, &log)?;
        let stdin = process.child().stdin.take().context("no stdin")?;
        let stdout = process.child().stdout.take().context("no stdout")?;
        Ok(Pod { process, stdin, answers: BufReader::new(stdout).lines(), files, cgroup })
    }

    /// Where pods have cgroups of their own.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.files.path().join("eks-pod-identity-token")
    }

    /// Sends `get` or `identity`. An SDK's error is an answer, not an error.
    pub(crate) async fn ask(&mut self, command: &str) -> Result<Answer> {
        let exchange = async {
            self.stdin.write_all(format!("{command}\n").as_bytes()).await?;
            self.answers.next_line().await
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Err(_) => bail!("the client did not answer within {} s", PATIENCE.as_secs()),
            Ok(Ok(Some(line))) => {
                serde_json::from_str(&line).with_context(|| format!("the client printed {line:?}"))
            }
            Ok(Ok(None) | Err(_)) => {
                bail!("the client ended before it answered:\n{}", self.process.log_tail())
            }
        }
    }
}
