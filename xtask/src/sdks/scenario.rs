//! What each SDK is put through.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::join_all;
use hyper::StatusCode;
use serde_json::json;

use super::Outcome;
use crate::agent::Agent;
use crate::client::{Pod, World};
use crate::clock::Stopwatch;
use crate::eks::{Eks, PodName};
use crate::place::Place;
use crate::sdk::{Refusal, Sdk};

pub(super) const NAMESPACE: &str = "sdks";

/// A service account that has no association.
const NOBODY: &str = "nobody";

/// Short enough that every SDK asks again soon (from 15 min before the end with boto3 to 10 s with Rust), long enough that
/// the agent's own refresh, at half of it, is done before Rust asks.
const SHORT_LIFE: Duration = Duration::from_secs(20);

/// Beyond the 1.8 s that the agent lets a request wait, within the patience of every SDK's retries.
const SLOW: Duration = Duration::from_millis(2500);
const AGENT_WAITS: Duration = Duration::from_millis(1800);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scenario {
    First,
    Refresh,
    Slow,
    Refusal,
    Ipv6,
}

impl Scenario {
    pub(super) const ALL: [Scenario; 5] =
        [Scenario::First, Scenario::Refresh, Scenario::Slow, Scenario::Refusal, Scenario::Ipv6];

    pub(super) fn column(self) -> &'static str {
        match self {
            Scenario::First => "first fetch",
            Scenario::Refresh => "refresh",
            Scenario::Slow => "slow EKS Auth",
            Scenario::Refusal => "refusal",
            Scenario::Ipv6 => "IPv6",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Scenario::First => "First fetch: the right role's credentials, and STS takes them",
            Scenario::Refresh => "Refresh: credentials of 20 s, replaced before they end",
            Scenario::Slow => "Slow EKS Auth: 2.5 s, so that podcred says 503 before it has an answer",
            Scenario::Refusal => "Refusal: no association, and what the SDK's user gets to see of it",
            Scenario::Ipv6 => "IPv6: the same by http://[fd00:ec2::23]",
        }
    }
}

/// Where pods are told to ask, or why there is no such place.
#[derive(Debug)]
pub(super) struct Uris {
    pub(super) v4: String,
    pub(super) v6: Result<String, String>,
}

#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) world: World<'a>,
    pub(super) agent: &'a Agent,
    pub(super) place: &'a Place,
    pub(super) uris: Uris,
}

impl Stage<'_> {
    /// One outcome per SDK, in their order. An error is the simulation's, not an SDK's.
    pub(super) async fn play(&self, scenario: Scenario, sdks: &[Sdk]) -> Result<Vec<Outcome>> {
        if let (Scenario::Ipv6, Err(reason)) = (scenario, &self.uris.v6) {
            return Ok(vec![Outcome::Skipped(reason.clone()); sdks.len()]);
        }
        let life = if scenario == Scenario::Refresh { SHORT_LIFE } else { Duration::from_secs(6 * 3600) };
        let latency = if scenario == Scenario::Slow { SLOW } else { Duration::ZERO };
        let settings = json!({ "credentialLifeSeconds": life.as_secs(), "latencyMs": latency.as_millis() });
        self.world.eks.set(settings).await?;
        for sdk in sdks {
            self.world.eks.recreate_service_account(NAMESPACE, sdk.name()).await?;
        }
        let results = match scenario {
            Scenario::First => join_all(sdks.iter().map(|&sdk| self.first(sdk))).await,
            Scenario::Refresh => join_all(sdks.iter().map(|&sdk| self.refresh(sdk))).await,
            Scenario::Slow => {
                // One after another, so that the agent's count of 503s belongs to one SDK.
                let mut results = Vec::new();
                for &sdk in sdks {
                    results.push(self.slow(sdk).await);
                }
                results
            }
            Scenario::Refusal => join_all(sdks.iter().map(|&sdk| self.refusal(sdk))).await,
            Scenario::Ipv6 => join_all(sdks.iter().map(|&sdk| self.ipv6(sdk))).await,
        };
        let outcome = |result: Result<String>| match result {
            Ok(note) => Outcome::Passed(note),
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        Ok(results.into_iter().map(outcome).collect())
    }

    async fn first(&self, sdk: Sdk) -> Result<String> {
        let mut pod = self.pod(sdk, "first", sdk.name(), &self.uris.v4).await?;
        self.usable(&mut pod, sdk).await?;
        Ok("right role".to_owned())
    }

    async fn refresh(&self, sdk: Sdk) -> Result<String> {
        let mut pod = self.pod(sdk, "refresh", sdk.name(), &self.uris.v4).await?;
        let first = self.usable(&mut pod, sdk).await?;
        let clock = Stopwatch::start();
        loop {
            let next = pod.ask("get").await?.key().context("after the first fetch")?.to_owned();
            let age = clock.elapsed();
            // `clock` started after the credentials did, so this errs on the strict side only by the first answer's time.
            ensure!(age < SHORT_LIFE, "still the first credentials after {age:.1?}, and they have ended");
            if next != first {
                self.usable(&mut pod, sdk).await.context("with the refreshed credentials")?;
                return Ok(format!("after {:.0} s", age.as_secs_f32()));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn slow(&self, sdk: Sdk) -> Result<String> {
        let mut pod = self.pod(sdk, "slow", sdk.name(), &self.uris.v4).await?;
        let before = self.agent.responses(StatusCode::SERVICE_UNAVAILABLE).await?;
        let answer = pod.ask("get").await?;
        let seen = self.agent.responses(StatusCode::SERVICE_UNAVAILABLE).await? - before;
        let key =
            answer.key().with_context(|| format!("after {} ms and {seen} answers of 503", answer.ms))?;
        self.right_role(sdk, key).await?;
        let took = Duration::from_millis(answer.ms);
        ensure!(took >= AGENT_WAITS, "answered after {took:?}, before EKS Auth can have been slow");
        if !sdk.waits_for_503() {
            return Ok(format!("hangs up, retries: {:.1} s", took.as_secs_f32()));
        }
        ensure!(seen >= 1, "the agent never answered 503, in {took:?}");
        Ok(format!("{seen} × 503, then {:.1} s", took.as_secs_f32()))
    }

    async fn refusal(&self, sdk: Sdk) -> Result<String> {
        let mut pod = self.pod(sdk, "refusal", NOBODY, &self.uris.v4).await?;
        let answer = pod.ask("get").await?;
        let Some(error) = answer.error.filter(|_| !answer.ok) else {
            bail!("credentials were given to a service account without an association");
        };
        match sdk.shows_refusal() {
            Refusal::Message => {
                ensure!(
                    error.contains("ResourceNotFoundException") && error.contains(NOBODY),
                    "the refusal's code and service account are not in: {error}"
                );
                Ok("message shown".to_owned())
            }
            Refusal::Nothing(words) => {
                ensure!(error.contains(words), "{words:?} is not in: {error}");
                Ok("refused; SDK hides why".to_owned())
            }
        }
    }

    async fn ipv6(&self, sdk: Sdk) -> Result<String> {
        let Ok(uri) = &self.uris.v6 else { bail!("no IPv6 address") };
        let mut pod = self.pod(sdk, "ipv6", sdk.name(), uri).await?;
        self.usable(&mut pod, sdk).await?;
        Ok("right role".to_owned())
    }

    async fn pod(&self, sdk: Sdk, purpose: &str, account: &str, uri: &str) -> Result<Pod> {
        let name = PodName {
            namespace: NAMESPACE.to_owned(),
            service_account: account.to_owned(),
            pod_name: format!("{}-{purpose}", sdk.name()),
        };
        Pod::start(self.world, self.place, sdk, &name, uri).await
    }

    /// The access key id, once its session is of the right role and STS has taken its signature.
    async fn usable(&self, pod: &mut Pod, sdk: Sdk) -> Result<String> {
        let key = pod.ask("get").await?.key()?.to_owned();
        self.right_role(sdk, &key).await?;
        let identity = pod.ask("identity").await?;
        let used = self.world.eks.session(identity.key().context("GetCallerIdentity")?).await?;
        let told = identity.arn.unwrap_or_default();
        ensure!(
            told == used.session_arn,
            "STS says {told}, the credentials are those of {}",
            used.session_arn
        );
        Ok(key)
    }

    async fn right_role(&self, sdk: Sdk, key: &str) -> Result<()> {
        let session = self.world.eks.session(key).await?;
        let expected = Eks::role_arn(sdk.name());
        ensure!(session.role_arn == expected, "credentials of {}, not of {expected}", session.role_arn);
        Ok(())
    }
}
