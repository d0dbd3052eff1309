//! The wiring of `podcred server`: what is made, in which order, and who is given what.

use std::slice;
use std::sync::Arc;

use prometheus::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::control::{ControlListener, FlushRequest, serve_control};
use crate::admin::{Readiness, serve_metrics, serve_probes};
use crate::attribute::probe::ProbeError;
use crate::attribute::{self, Attribution, Counted};
use crate::authenticate::keys::{KeySource, Keys};
use crate::authenticate::{Authenticator, issuer_from_token_file};
use crate::authorize::Policy;
use crate::causes::chain;
use crate::clock::Clock;
use crate::config::{ServerConfig, Switch, Verify};
use crate::credentials::{Credentials, Settings};
use crate::eks_auth::{ClientConfig, EksAuthClient};
use crate::listeners::Listeners;
use crate::metrics::{Kernel, Metrics, PodSample, Snapshot};
use crate::node_pods::{Delegates, NodePods};
use crate::pods::Pods;
use crate::request::{Logged, Service};
use crate::{server, startup_taint, upkeep};

/// The metrics port is open to the network: it must not be a way to the agent's file descriptors.
const METRICS_CONNECTIONS: usize = 32;
/// Verified tokens kept: about forty for each pod that fits on a node.
const VERIFIED_TOKENS: usize = 10_000;

/// Serves until `cancel`led. An error is something that must be mended before the agent can run at all.
pub async fn run(config: ServerConfig, cancel: CancellationToken) -> Result<(), String> {
    let clock = Clock::default();
    let metrics = Arc::new(
        Metrics::new(Registry::new()).map_err(|error| format!("metrics cannot be registered: {error}"))?,
    );
    let max_connections = server::affordable_connections(config.max_connections);
    // The kernel can name the callers of those connections only that are opened under its programs' eyes.
    let attribution = Attribution::start(config.verification.mode, &attribution_settings(&config));
    metrics.attribution(attribution.source());
    if config.verification.mode == Verify::Enforce && config.node_name.is_none() {
        tracing::warn!(
            event = "no_node_name",
            "without --node-name tokens of other nodes' pods are not told apart"
        );
    }
    let background = TaskTracker::new();
    let issuer = match &config.issuer {
        Some(issuer) => issuer.clone(),
        None => issuer_from_token_file(&config.token_file)?,
    };
    let source = match &config.jwks_url {
        Some(url) => KeySource::at(url)?,
        None => KeySource::of_issuer(&issuer)?,
    };
    let http = source.client()?;
    let keys = Arc::new(Keys::new(source, http));
    background.spawn(Arc::clone(&keys).run(clock.clone(), cancel.clone()));
    let control = ControlListener::bind(&config.control_socket).await;
    let client = ClientConfig {
        cluster_name: config.cluster_name.clone(),
        endpoint: config.endpoint.clone(),
        rotate_credentials: config.rotate_credentials,
        node_name: config.node_name.clone(),
        instance_id: config.instance_id.clone(),
        zone: config.zone.clone(),
    };
    // Listening first: what connects from here on waits in the backlog instead of being refused. And all else beside it,
    // so that an agent that had to wait for its ports serves at once when it has them.
    let ready = Box::pin(async {
        tokio::try_join!(
            biased;
            Listeners::bind(&config, &attribution, &metrics, &clock),
            EksAuthClient::connect(&client),
        )
    });
    let Some(ready) = cancel.run_until_cancelled(ready).await else { return Ok(()) };
    let (listeners, eks_auth) = ready?;
    let settings = Settings {
        max_cache_size: if config.caching() { config.max_cache_size } else { 0 },
        retention: config.max_credential_retention,
        renewals_per_second: config.max_service_qps,
        revalidate_after: config.revalidate_after,
        wait: config.eks_auth_wait,
    };
    let credentials = Credentials::new(&settings, Arc::new(eks_auth), Arc::clone(&metrics), clock.clone());
    let node_pods = Arc::new(NodePods::default());
    let service = Arc::new(Service {
        authenticator: Authenticator::new(
            issuer,
            Arc::clone(&keys),
            VERIFIED_TOKENS,
            config.pod_limits.tokens,
        ),
        attribution,
        pods: Pods::new(config.pod_limits),
        policy: Policy {
            verify: config.verification.mode,
            unattributed: config.verification.unattributed(),
            node_name: config.node_name.clone(),
            delegates: Delegates::new(config.verification.delegates.clone(), Arc::clone(&node_pods)),
            sharing: config.sharing.clone(),
        },
        wait: config.eks_auth_wait,
        credentials: credentials.clone(),
        metrics,
        clock,
        logged: Logged::default(),
    });
    tracing::info!(
        event = "serving",
        version = env!("CARGO_PKG_VERSION"),
        cluster = config.cluster_name,
        credentials = addresses(&listeners.pods),
        probes = addresses(slice::from_ref(&listeners.probes)),
        metrics = addresses(slice::from_ref(&listeners.scrapes)),
        "podcred serves credentials"
    );

    background.spawn(upkeep::run(
        Arc::clone(&service),
        config.imds.clone(),
        Arc::clone(&node_pods),
        cancel.clone(),
    ));
    let watched_node = config.watched_node();
    if let Some(node_name) = watched_node.map(str::to_owned) {
        let (pods, cancel) = (Arc::clone(&node_pods), cancel.clone());
        background.spawn(async move { pods.run(&node_name, cancel).await });
    }
    {
        let (credentials, cancel) = (credentials.clone(), cancel.clone());
        background.spawn(async move { credentials.run(cancel).await });
    }
    {
        let (keys, skipped, service) = (Arc::clone(&keys), listeners.skipped, Arc::clone(&service));
        let control = control.as_ref().err().map(ToString::to_string);
        let listed_pods = watched_node.map(|_| Arc::clone(&node_pods));
        let readiness = Arc::new(move || {
            let listed = listed_pods.as_ref().map(|pods| pods.is_complete());
            readiness(&keys, &skipped, control.as_deref(), &service, listed)
        });
        if let (Some(taint), Some(node)) = (config.startup_taint, config.node_name) {
            let (readiness, cancel) = (Arc::clone(&readiness), cancel.clone());
            background.spawn(async move {
                startup_taint::remove(&taint, &node, || readiness().is_ready(), cancel).await;
            });
        }
        background.spawn(serve_probes(listeners.probes, move || readiness(), cancel.clone()));
    }
    {
        let service = Arc::clone(&service);
        background.spawn(serve_metrics(
            listeners.scrapes,
            move || scrape(&service, &keys),
            METRICS_CONNECTIONS,
            cancel.clone(),
        ));
    }
    match control {
        Ok(control) => {
            let flush = move |request: FlushRequest| match &request {
                FlushRequest::All => credentials.flush(None),
                FlushRequest::Of(account) => credentials.flush(Some((&account.namespace, &account.name))),
            };
            background.spawn(serve_control(control, flush, cancel.clone()));
        }
        Err(problem) => {
            tracing::warn!(event = "control_socket_missing", %problem, "podcred flush will not reach this agent");
        }
    }
    server::serve(listeners.pods, service, max_connections, config.shutdown_grace, cancel).await;
    background.close();
    background.wait().await;
    tracing::info!(event = "stopped", "podcred has stopped");
    Ok(())
}

fn attribution_settings(config: &ServerConfig) -> attribute::Settings {
    attribute::Settings {
        paths: config.node.clone(),
        trusted_proxies: config.verification.trusted_proxies.clone(),
        imds: config.imds.mode,
        log: tracing::enabled!(tracing::Level::DEBUG),
    }
}

fn readiness(
    keys: &Keys,
    skipped: &[String],
    control: Option<&str>,
    service: &Service,
    listed: Option<bool>,
) -> Readiness {
    let mut readiness = Readiness::default();
    readiness = match skipped {
        [] => readiness.ok("listeners"),
        problems => readiness.degraded("listeners", problems.join("; ")),
    };
    readiness = match keys.count() {
        0 => readiness.failing("keys", "the issuer's signing keys could not be fetched yet; see the log"),
        _ => readiness.ok("keys"),
    };
    let attribution = &service.attribution;
    let detached = attribution.probe().is_some_and(|probe| probe.attached_for().is_none());
    readiness = match attribution.problem() {
        _ if detached => {
            let problem = "the kernel programs are not attached to the pods' cgroup; see the log";
            match service.policy.refuses() {
                true => readiness.failing("attribution", problem),
                false => readiness.degraded("attribution", problem),
            }
        }
        Some(problem) if service.policy.refuses() && !attribution.can_enforce() => {
            readiness.failing("attribution", format!("nobody can be refused by the kernel's word: {problem}"))
        }
        Some(problem) => readiness.degraded("attribution", problem),
        None => readiness.ok("attribution"),
    };
    readiness = match listed {
        Some(true) => readiness.ok("pods"),
        Some(false) => readiness.degraded("pods", "this node's pods were not listed yet; see the log"),
        // Nobody needs them.
        None => readiness,
    };
    match control {
        None => readiness.ok("control socket"),
        Some(problem) => readiness.degraded("control socket", problem),
    }
}

fn scrape(service: &Service, keys: &Keys) -> String {
    let now = service.clock.now();
    let limits = service.pods.limits();
    let (counted, kernel) = counted_in_the_kernel(&service.attribution);
    let snapshot = Snapshot {
        census: service.credentials.census(now),
        tokens_verified: service.authenticator.tokens_verified(),
        jwks_keys: keys.count(),
        jwks_age: keys.age_at(now),
        jwks_fetches: keys.fetches(),
        kernel,
        pods: (limits.metrics == Switch::On)
            .then(|| (PodSample::all(&service.pods.all(), counted.pods), limits.metrics_max)),
    };
    service.metrics.render(&snapshot).unwrap_or_else(|error| {
        tracing::error!(event = "metrics_failed", %error, "the metrics cannot be written");
        String::new()
    })
}

fn counted_in_the_kernel(attribution: &Attribution) -> (Counted, Option<Kernel>) {
    let Some(probed) = attribution.probed() else { return (Counted::default(), None) };
    let read = || {
        let counted = probed.counters.read(&probed.probe, &probed.cgroups)?;
        let kernel = Kernel { node: counted.node, lost: probed.probe.lost()? };
        Ok::<_, ProbeError>((counted, Some(kernel)))
    };
    read().unwrap_or_else(|error| {
        let error = chain(&error);
        tracing::error!(event = "metrics_failed", %error, "what the kernel counted cannot be read");
        (Counted::default(), None)
    })
}

fn addresses(listeners: &[TcpListener]) -> String {
    let addresses: Vec<String> =
        listeners.iter().filter_map(|l| l.local_addr().ok()).map(|address| address.to_string()).collect();
    addresses.join(",")
}
