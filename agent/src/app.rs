//! The wiring of `podcred server`: what is made, in which order, and who is given what.

mod readiness;
mod scrape;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use prometheus::Registry;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::readiness::Parts;
use self::scrape::scrape;
use crate::admin::control::{BindError, ControlListener, FlushRequest, serve_control};
use crate::admin::{serve_metrics, serve_probes};
use crate::api_server::ApiServer;
use crate::attribute::{self, Attribution};
use crate::authenticate::keys::{KeySource, Keys};
use crate::authenticate::{Authenticator, issuer_from_token_file};
use crate::authorize::Policy;
use crate::clock::Clock;
use crate::config::{ServerConfig, Verify};
use crate::credentials::{Credentials, Settings};
use crate::eks_auth::{ClientConfig, EksAuthClient};
use crate::listeners::{Port, Ports, Use, first_held};
use crate::metrics::Metrics;
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
    // A start takes long where IMDS, which is asked for the region, does not answer.
    if let Some(started) = cancel.run_until_cancelled(Box::pin(App::start(config))).await {
        started?.serve(cancel).await;
    }
    tracing::info!(event = "stopped", "podcred has stopped");
    Ok(())
}

/// All that requests are served with, before the first of them.
struct App {
    config: ServerConfig,
    clock: Clock,
    max_connections: usize,
    ports: Arc<Ports>,
    for_pods: Vec<Port>,
    for_probes: Port,
    for_scrapes: Port,
    control: Result<ControlListener, BindError>,
    keys: Arc<Keys>,
    node_pods: Arc<NodePods>,
    service: Arc<Service>,
}

impl App {
    async fn start(config: ServerConfig) -> Result<App, String> {
        let clock = Clock::default();
        let metrics = Metrics::new(Registry::new());
        let metrics = Arc::new(metrics.map_err(|error| format!("metrics cannot be registered: {error}"))?);
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
        let for_pods = open_for_pods(&config, &ports, &attribution, &metrics, &clock)?;
        let open = |purpose, host, port| {
            let port = ports.open(purpose, SocketAddr::new(host, port), &clock, &attribution);
            port.failure().map_or(Ok(()), |problem| Err(problem.to_owned())).map(|()| port)
        };
        let for_probes = open(Use::Probes, Ipv4Addr::LOCALHOST.into(), config.probe_port)?;
        let for_scrapes = open(Use::Metrics, config.metrics_address, config.metrics_port)?;
        let control = ControlListener::bind(&config.control_socket).await;

        let (issuer, keys) = issuer(&config)?;
        let eks_auth = EksAuthClient::connect(&client_config(&config)).await?;
        let credentials = Credentials::new(
            &credential_settings(&config),
            Arc::new(eks_auth),
            Arc::clone(&metrics),
            clock.clone(),
        );
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
            credentials,
            metrics,
            clock: clock.clone(),
            logged: Logged::default(),
        });
        Ok(App {
            config,
            clock,
            max_connections,
            ports,
            for_pods,
            for_probes,
            for_scrapes,
            control,
            keys,
            node_pods,
            service,
        })
    }

    async fn serve(self, cancel: CancellationToken) {
        let App { config, clock, control, keys, mut for_pods, node_pods, service, .. } = self;
        let own_addresses = [&self.for_probes, &self.for_scrapes].map(|port| port.address().to_string());
        let api_server = ApiServer::new(config.api_server.clone());
        let parts = Arc::new(Parts {
            ports: self.ports,
            keys: Arc::clone(&keys),
            service: Arc::clone(&service),
            node_pods: config.watched_node().map(|_| Arc::clone(&node_pods)),
            no_control: control.as_ref().err().map(ToString::to_string),
        });

        let background = TaskTracker::new();
        background.spawn(Arc::clone(&keys).run(clock.clone(), cancel.clone()));
        background.spawn(renew(service.credentials.clone(), cancel.clone()));
        let imds = config.imds.clone();
        background.spawn(upkeep::run(
            Arc::clone(&service),
            Arc::clone(&parts.ports),
            imds,
            Arc::clone(&node_pods),
            cancel.clone(),
        ));
        if let Some(node) = config.watched_node().map(str::to_owned) {
            background.spawn(list_pods(node_pods, node, api_server.clone(), cancel.clone()));
        }
        if let (Some(taint), Some(node)) = (config.startup_taint, config.node_name) {
            let parts = Arc::clone(&parts);
            background.spawn(remove_taint(taint, node, api_server, parts, clock, cancel.clone()));
        }
        background.spawn(answer_probes(self.for_probes, parts, cancel.clone()));
        background.spawn(answer_scrapes(self.for_scrapes, Arc::clone(&service), keys, cancel.clone()));
        match control {
            Ok(control) => {
                background.spawn(answer_flushes(control, Arc::clone(&service), cancel.clone()));
            }
            Err(problem) => {
                tracing::warn!(event = "control_socket_missing", %problem, "`podcred flush` cannot reach this agent");
            }
        }
        background.close();

        let first = first_held(&mut for_pods, &service.attribution);
        if cancel.run_until_cancelled(first).await.is_some() {
            tracing::info!(
                event = "serving",
                version = env!("CARGO_PKG_VERSION"),
                cluster = config.cluster_name,
                credentials = addresses(for_pods.iter().filter(|port| port.is_held())),
                probes = own_addresses[0],
                metrics = own_addresses[1],
                "podcred serves credentials"
            );
        }
        let grace = config.shutdown_grace;
        let requests = server::serve(for_pods, service, self.max_connections, grace, cancel.clone());
        let rest = async {
            cancel.cancelled().await;
            timeout(grace, background.wait()).await
        };
        let ((), rest) = tokio::join!(requests, rest);
        if rest.is_err() {
            let open = background.len();
            tracing::warn!(event = "drain_cut_short", open, "probes or scrapes were still open at the end");
        }
    }
}

async fn renew(credentials: Credentials, cancel: CancellationToken) {
    credentials.run(cancel).await;
}

async fn list_pods(pods: Arc<NodePods>, node: String, api_server: ApiServer, cancel: CancellationToken) {
    pods.run(&node, &api_server, cancel).await;
}

async fn remove_taint(
    taint: String,
    node: String,
    api_server: ApiServer,
    parts: Arc<Parts>,
    clock: Clock,
    cancel: CancellationToken,
) {
    let is_ready = || parts.readiness().is_ready();
    startup_taint::remove(&taint, &node, &api_server, &clock, is_ready, cancel).await;
}

async fn answer_probes(port: Port, parts: Arc<Parts>, cancel: CancellationToken) {
    if let Some(listener) = port.held(&parts.service.attribution, &cancel).await {
        serve_probes(listener, move || parts.readiness(), cancel).await;
    }
}

async fn answer_scrapes(port: Port, service: Arc<Service>, keys: Arc<Keys>, cancel: CancellationToken) {
    if let Some(listener) = port.held(&service.attribution, &cancel).await {
        let clock = service.clock.clone();
        let gather = move || scrape(&service, &keys);
        serve_metrics(listener, gather, METRICS_CONNECTIONS, clock, cancel).await;
    }
}

async fn answer_flushes(control: ControlListener, service: Arc<Service>, cancel: CancellationToken) {
    let flush = |request| match request {
        FlushRequest::All => {
            let service = Arc::clone(&service);
            let flushed = service.credentials.flush(None);
            service.authenticator.forget_all();
            tokio::spawn(async move { service.authenticator.renew_keys(service.clock.now()).await });
            flushed
        }
        FlushRequest::Of(account) => service.credentials.flush(Some((&account.namespace, &account.name))),
    };
    serve_control(control, flush, cancel).await;
}

/// The pods' addresses. Those that this node has not are tried for again, as long as there is one.
fn open_for_pods(
    config: &ServerConfig,
    ports: &Arc<Ports>,
    attribution: &Attribution,
    metrics: &Metrics,
    clock: &Clock,
) -> Result<Vec<Port>, String> {
    let mut opened = Vec::new();
    for host in &config.bind_hosts {
        let port = ports.open(Use::Pods, SocketAddr::new(*host, config.port), clock, attribution);
        metrics.listener(*host, port.is_held());
        if let Some(problem) = port.failure() {
            tracing::warn!(
                event = "listener_skipped",
                problem,
                "this address is not served; `podcred initialize` creates the link-local ones"
            );
        }
        opened.push(port);
    }
    if opened.iter().all(|port| port.failure().is_some()) {
        return Err(format!(
            "no address can be served: {}. Run `podcred initialize` on this node first",
            ports.problems()
        ));
    }
    Ok(opened)
}

/// Whose tokens are good, and the keys to tell by.
fn issuer(config: &ServerConfig) -> Result<(String, Arc<Keys>), String> {
    let issuer = match &config.issuer {
        Some(issuer) => issuer.clone(),
        None => issuer_from_token_file(&config.token_file)?,
    };
    let source = match &config.jwks_url {
        Some(url) => KeySource::at(url)?,
        None => KeySource::of_issuer(&issuer)?,
    };
    let http = source.client()?;
    Ok((issuer, Arc::new(Keys::new(source, http))))
}

fn client_config(config: &ServerConfig) -> ClientConfig {
    ClientConfig {
        cluster_name: config.cluster_name.clone(),
        endpoint: config.endpoint.clone(),
        rotate_credentials: config.rotate_credentials,
        node_name: config.node_name.clone(),
        instance_id: config.instance_id.clone(),
        zone: config.zone.clone(),
    }
}

fn credential_settings(config: &ServerConfig) -> Settings {
    Settings {
        max_cache_size: if config.caching() { config.max_cache_size } else { 0 },
        retention: config.max_credential_retention,
        renewals_per_second: config.max_service_qps,
        revalidate_after: config.revalidate_after,
        wait: config.eks_auth_wait,
    }
}

fn attribution_settings(config: &ServerConfig) -> attribute::Settings {
    attribute::Settings {
        paths: config.node.clone(),
        trusted_proxies: config.verification.trusted_proxies.clone(),
        imds: config.imds.mode,
        log: tracing::enabled!(tracing::Level::DEBUG),
    }
}

fn addresses<'a>(ports: impl Iterator<Item = &'a Port>) -> String {
    ports.map(|port| port.address().to_string()).collect::<Vec<_>>().join(",")
}
