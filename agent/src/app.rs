//! The wiring of `podcred server`: what is made, in which order, and who is given what.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::control::{ControlListener, FlushRequest, serve_control};
use crate::admin::{Readiness, serve_metrics, serve_probes};
use crate::api_server::ApiServer;
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
use crate::listeners::{Port, Ports, Use, first_held};
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
    // Before listening: the kernel programs attribute only connections that are opened after they were attached.
    let attribution = Attribution::start(config.verification.mode, &attribution_settings(&config));
    metrics.attribution(attribution.source());
    if config.verification.mode == Verify::Enforce && config.node_name.is_none() {
        tracing::warn!(
            event = "no_node_name",
            "without --node-name, tokens of pods on other nodes are not refused"
        );
    }
    // Then listening: what connects from here on waits in the backlog instead of being refused, and Java's six
    // attempts at a closed port are over in 29 ms.
    let ports = Arc::new(Ports::default());
    let mut pods_ports = open_for_pods(&config, &ports, &attribution, &metrics, &clock)?;
    let probes = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), config.probe_port);
    let probes = ports.open(Use::Probes, probes, &clock, &attribution)?;
    let scrapes = SocketAddr::new(config.metrics_address, config.metrics_port);
    let scrapes = ports.open(Use::Metrics, scrapes, &clock, &attribution)?;
    let own_addresses = [probes.address(), scrapes.address()].map(|address| address.to_string());
    let control = ControlListener::bind(&config.control_socket).await;

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
    let eks_auth = EksAuthClient::connect(&ClientConfig {
        cluster_name: config.cluster_name.clone(),
        endpoint: config.endpoint.clone(),
        rotate_credentials: config.rotate_credentials,
        node_name: config.node_name.clone(),
        instance_id: config.instance_id.clone(),
        zone: config.zone.clone(),
    })
    .await?;
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
        clock: clock.clone(),
        logged: Logged::default(),
    });

    let background = TaskTracker::new();
    background.spawn(Arc::clone(&keys).run(clock.clone(), cancel.clone()));
    background.spawn(upkeep::run(
        Arc::clone(&service),
        config.imds.clone(),
        Arc::clone(&node_pods),
        cancel.clone(),
    ));
    let api_server = ApiServer::new(config.api_server.clone());
    let watched_node = config.watched_node();
    if let Some(node_name) = watched_node.map(str::to_owned) {
        let (pods, cancel) = (Arc::clone(&node_pods), cancel.clone());
        let api_server = api_server.clone();
        background.spawn(async move { pods.run(&node_name, &api_server, cancel).await });
    }
    {
        let (credentials, cancel) = (credentials.clone(), cancel.clone());
        background.spawn(async move { credentials.run(cancel).await });
    }
    {
        let attributed = Arc::clone(&service);
        let (keys, ports, service) = (Arc::clone(&keys), Arc::clone(&ports), Arc::clone(&service));
        let control = control.as_ref().err().map(ToString::to_string);
        let listed_pods = watched_node.map(|_| Arc::clone(&node_pods));
        let readiness = Arc::new(move || {
            let listed = listed_pods.as_ref().map(|pods| pods.is_complete());
            readiness(&ports, &keys, control.as_deref(), &service, listed)
        });
        if let (Some(taint), Some(node)) = (config.startup_taint, config.node_name) {
            let (readiness, clock, cancel) = (Arc::clone(&readiness), clock.clone(), cancel.clone());
            background.spawn(async move {
                startup_taint::remove(&taint, &node, &api_server, &clock, || readiness().is_ready(), cancel)
                    .await;
            });
        }
        let cancel = cancel.clone();
        background.spawn(async move {
            if let Some(listener) = probes.held(&attributed.attribution, &cancel).await {
                serve_probes(listener, move || readiness(), cancel).await;
            }
        });
    }
    {
        let (service, cancel) = (Arc::clone(&service), cancel.clone());
        background.spawn(async move {
            if let Some(listener) = scrapes.held(&service.attribution, &cancel).await {
                let gather = move || scrape(&service, &keys);
                serve_metrics(listener, gather, METRICS_CONNECTIONS, cancel).await;
            }
        });
    }
    match control {
        Ok(control) => {
            let flushed = Arc::clone(&service);
            let flush = move |request: FlushRequest| match &request {
                FlushRequest::All => {
                    let service = Arc::clone(&flushed);
                    service.authenticator.forget_all();
                    tokio::spawn(async move { service.authenticator.renew_keys(service.clock.now()).await });
                    credentials.flush(None)
                }
                FlushRequest::Of(account) => credentials.flush(Some((&account.namespace, &account.name))),
            };
            background.spawn(serve_control(control, flush, cancel.clone()));
        }
        Err(problem) => {
            tracing::warn!(event = "control_socket_missing", %problem, "`podcred flush` cannot reach this agent");
        }
    }
    let first = cancel.run_until_cancelled(first_held(&mut pods_ports, &service.attribution)).await;
    if first.transpose()?.is_some() {
        tracing::info!(
            event = "serving",
            version = env!("CARGO_PKG_VERSION"),
            cluster = config.cluster_name,
            credentials = addresses(pods_ports.iter().filter(|port| port.is_held())),
            probes = own_addresses[0],
            metrics = own_addresses[1],
            "podcred serves credentials"
        );
    }
    server::serve(pods_ports, service, max_connections, config.shutdown_grace, cancel).await;
    background.close();
    background.wait().await;
    tracing::info!(event = "stopped", "podcred has stopped");
    Ok(())
}

/// The pods' addresses that this node has. A node without IPv6 has no fd00:ec2::23, and its pods do not ask there.
fn open_for_pods(
    config: &ServerConfig,
    ports: &Arc<Ports>,
    attribution: &Attribution,
    metrics: &Metrics,
    clock: &Clock,
) -> Result<Vec<Port>, String> {
    let mut opened = Vec::new();
    for host in &config.bind_hosts {
        let address = SocketAddr::new(*host, config.port);
        let port = ports.open(Use::Pods, address, clock, attribution);
        metrics.listener(*host, port.as_ref().is_ok_and(Port::is_held));
        match port {
            Ok(port) => opened.push(port),
            Err(problem) => {
                tracing::warn!(
                    event = "listener_skipped",
                    %problem,
                    "this address is not served; `podcred initialize` creates the link-local ones"
                );
                ports.skip(address, problem);
            }
        }
    }
    if opened.is_empty() {
        return Err(format!(
            "no address can be served: {}. Run `podcred initialize` on this node first",
            ports.problems()
        ));
    }
    Ok(opened)
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
    ports: &Ports,
    keys: &Keys,
    control: Option<&str>,
    service: &Service,
    listed: Option<bool>,
) -> Readiness {
    let mut readiness = Readiness::default();
    readiness = match ports.problems() {
        problems if ports.leave_pods_alone() => readiness.failing("listeners", problems),
        problems if problems.is_empty() => readiness.ok("listeners"),
        problems => readiness.degraded("listeners", problems),
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
        Some(problem) if service.policy.refuses() && !attribution.can_enforce() => readiness
            .failing("attribution", format!("callers cannot be verified, so none is served: {problem}")),
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
        tracing::error!(event = "metrics_failed", %error, "cannot write the metrics");
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
        tracing::error!(event = "metrics_failed", %error, "cannot read the kernel's counters");
        (Counted::default(), None)
    })
}

fn addresses<'a>(ports: impl Iterator<Item = &'a Port>) -> String {
    ports.map(|port| port.address().to_string()).collect::<Vec<_>>().join(",")
}
