//! The metric families, and the official agent's three under their old names.

mod pods;

use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use agent_ebpf::Counters;
use hyper::StatusCode;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

pub use self::pods::PodSample;
use crate::attribute::probe::LostEvents;
use crate::attribute::{Attribution, Caller};
use crate::authenticate::keys::FetchCounts;
use crate::authorize::Verdict;
use crate::credentials::{Census, Purpose, ServedFrom};
use crate::eks_auth::Failure;
use crate::locks::lock;
use crate::reject::Rejection;
use crate::server::CapOf;

/// From a cached answer (tens of microseconds) to the longest wait for EKS Auth.
const SECONDS: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0];

pub struct Metrics {
    registry: Registry,
    rendering: Mutex<()>,
    requests: IntCounterVec,
    // What the fast path counts is resolved once.
    requests_ok: IntCounter,
    served_cache: IntCounter,
    served_eks_auth: IntCounter,
    served_stale: IntCounter,
    request_seconds: Histogram,
    official_response: IntCounterVec,
    official_response_ok: IntCounter,
    official_hit: IntCounter,
    official_miss: IntCounter,
    official_cache_errors: IntCounterVec,
    eks_auth_calls: IntCounterVec,
    eks_auth_seconds: HistogramVec,
    eks_auth_permission_suspected_lost: IntGauge,
    credentials: IntGaugeVec,
    credentials_soonest_expiry: IntGauge,
    revalidate_after: IntGauge,
    tokens_verified: IntCounter,
    tokens_refused: IntCounterVec,
    jwks_keys: IntGauge,
    jwks_age: IntGauge,
    jwks_fetches: IntCounterVec,
    connections: IntGauge,
    connections_accepted: IntCounter,
    connections_evicted: IntCounterVec,
    connections_refused: IntCounterVec,
    attributed: IntCounterVec,
    // What every connection and every request counts is resolved once.
    attributed_ok: IntCounter,
    compared: IntCounterVec,
    compared_same_pod: IntCounter,
    not_compared: IntCounter,
    attribution: IntGaugeVec,
    probe_lost: IntCounterVec,
    links_mended: IntCounter,
    connects: IntCounterVec,
    imds_connects: IntCounterVec,
    pods_left_out: IntGauge,
    listener_bound: IntGaugeVec,
}

/// What is counted or known elsewhere, read when Prometheus asks.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub census: Census,
    pub tokens_verified: u64,
    pub jwks_keys: usize,
    pub jwks_age: Option<Duration>,
    pub jwks_fetches: FetchCounts,
    /// What was counted in the kernel, where programs are there to count.
    pub kernel: Option<Kernel>,
    /// None with `--pod-metrics off`.
    pub pods: Option<(Vec<PodSample>, usize)>,
}

/// What the kernel programs counted, over all pods.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub node: Counters,
    pub lost: LostEvents,
}

/// One connection, counted as long as it is held.
#[derive(Debug)]
pub struct Connected(IntGauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub fn new(registry: Registry) -> Result<Self, prometheus::Error> {
        let r = &registry;
        let requests =
            counters(r, "podcred_requests_total", "Requests by result: ok, or why not.", &["result"])?;
        let served = counters(
            r,
            "podcred_served_total",
            "Credentials handed out, by where they came from: cache, eks_auth (a call that the request waited for) or \
             stale (near their end, no better to be had).",
            &["from"],
        )?;
        let official_response = counters(
            r,
            "pod_identity_http_response",
            "Responses by HTTP status code (the official agent's name).",
            &["code"],
        )?;
        let official_state = counters(
            r,
            "pod_identity_cache_state",
            "Requests that found credentials at hand (hit) or not (miss) (the official agent's name).",
            &["state"],
        )?;
        let attributed = counters(
            r,
            "podcred_connections_attributed_total",
            "Connections by what the kernel says of their caller: pod, or why it is not known.",
            &["result"],
        )?;
        let compared = counters(
            r,
            "podcred_callers_compared_total",
            "Requests with a good token by what the kernel says of its bearer: same_pod, delegate, other_pod, other_node, \
             unattributed, delegates_unknown, or not_compared (--verify off).",
            &["result"],
        )?;
        let build = gauges(r, "podcred_build_info", "1, labelled with the running version.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Metrics {
            requests_ok: requests.with_label_values(&["ok"]),
            requests,
            served_cache: served.with_label_values(&["cache"]),
            served_eks_auth: served.with_label_values(&["eks_auth"]),
            served_stale: served.with_label_values(&["stale"]),
            request_seconds: registered(
                r,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "podcred_request_duration_seconds",
                        "Time from a request's headers to its answer.",
                    )
                    .buckets(SECONDS.to_vec()),
                )?,
            )?,
            official_response_ok: official_response.with_label_values(&["200"]),
            official_response,
            official_hit: official_state.with_label_values(&["hit"]),
            official_miss: official_state.with_label_values(&["miss"]),
            official_cache_errors: counters(
                r,
                "pod_identity_cache_errors",
                "Calls to EKS Auth that brought no credentials, by error and HTTP status (the official agent's name).",
                &["type", "code"],
            )?,
            eks_auth_calls: counters(
                r,
                "podcred_eks_auth_calls_total",
                "Calls of AssumeRoleForPodIdentity by purpose (first, renewal, revalidation) and result.",
                &["purpose", "result"],
            )?,
            eks_auth_seconds: registered(
                r,
                HistogramVec::new(
                    HistogramOpts::new(
                        "podcred_eks_auth_call_duration_seconds",
                        "Time of one call of AssumeRoleForPodIdentity.",
                    )
                    .buckets(SECONDS[6..].to_vec()),
                    &["purpose"],
                )?,
            )?,
            eks_auth_permission_suspected_lost: gauge(
                r,
                "podcred_eks_auth_permission_suspected_lost",
                "1 while EKS Auth denies several role keys and serves none: the agent's own permission seems gone.",
            )?,
            credentials: gauges(
                r,
                "podcred_credentials",
                "Role keys in the cache by state: fresh, due (renewal is due), low (SDKs would ask at every call), \
                 empty (nothing valid).",
                &["state"],
            )?,
            credentials_soonest_expiry: gauge(
                r,
                "podcred_credentials_soonest_expiry_seconds",
                "Seconds until the first of the cached credentials expires; -1 with none.",
            )?,
            revalidate_after: gauge(
                r,
                "podcred_revalidate_after_seconds",
                "Age at which a new pod has its role key's credentials checked; grows while EKS Auth throttles.",
            )?,
            tokens_verified: counter(
                r,
                "podcred_tokens_verified_total",
                "Tokens whose signature was found good.",
            )?,
            tokens_refused: counters(
                r,
                "podcred_tokens_refused_total",
                "Tokens refused by this agent, by reason.",
                &["reason"],
            )?,
            jwks_keys: gauge(r, "podcred_jwks_keys", "Signing keys of the issuer that are known.")?,
            jwks_age: gauge(
                r,
                "podcred_jwks_age_seconds",
                "Seconds since the issuer's keys were last fetched; -1 before the first time.",
            )?,
            jwks_fetches: counters(
                r,
                "podcred_jwks_fetches_total",
                "Fetches of the issuer's keys by result: ok or failed.",
                &["result"],
            )?,
            connections: gauge(r, "podcred_connections", "Open connections of pods.")?,
            connections_accepted: counter(r, "podcred_connections_accepted_total", "Connections accepted.")?,
            connections_evicted: counters(
                r,
                "podcred_connections_evicted_total",
                "Idle connections closed to make room for another, by whose cap was reached (see refused).",
                &["cap_of"],
            )?,
            connections_refused: counters(
                r,
                "podcred_connections_refused_total",
                "Connections closed at once because as many were open as may, and none of them idle, by whose cap it \
                 was: node (--max-connections), pod (--pod-connections) or unattributed.",
                &["cap_of"],
            )?,
            attributed_ok: attributed.with_label_values(&["pod"]),
            attributed,
            attribution: gauges(
                r,
                "podcred_attribution",
                "1 for what this node attributes connections by: probe, proc, inet_diag, none, or off (--verify off).",
                &["source"],
            )?,
            probe_lost: counters(
                r,
                "podcred_probe_lost_total",
                "What had no room in a map of the kernel programs: pending (connections not attributed), counters (numbers \
                 of a pod), namespaces (pods behind a trusted proxy).",
                &["what"],
            )?,
            links_mended: counter(
                r,
                "podcred_probe_links_mended_total",
                "Kernel programs that somebody had detached and that were attached again.",
            )?,
            connects: counters(
                r,
                "podcred_connects_total",
                "All pods' connects to the agent as the kernel saw them end: established, refused, timed_out, or \
                 unattributed (established, but beyond what may be pending of one pod).",
                &["result"],
            )?,
            imds_connects: counters(
                r,
                "podcred_imds_connects_total",
                "All pods' connects to IMDS: attempted, established, or refused by --imds refuse-pods.",
                &["result"],
            )?,
            pods_left_out: gauge(
                r,
                "podcred_pods_left_out",
                "Pods that /metrics does not tell apart because there are more than --pod-metrics-max.",
            )?,
            compared_same_pod: compared.with_label_values(&["same_pod"]),
            not_compared: compared.with_label_values(&["not_compared"]),
            compared,
            listener_bound: gauges(
                r,
                "podcred_listener_bound",
                "1 for each --bind-hosts address that is served, 0 for one that could not be bound or was taken away.",
                &["address"],
            )?,
            registry,
            rendering: Mutex::new(()),
        })
    }

    pub fn connected(&self) -> Connected {
        self.connections_accepted.inc();
        self.connections.inc();
        Connected(self.connections.clone())
    }

    pub fn connection_evicted(&self, cap_of: CapOf) {
        self.connections_evicted.with_label_values(&[cap_of.label()]).inc();
    }

    pub fn connection_refused(&self, full: CapOf) {
        self.connections_refused.with_label_values(&[full.label()]).inc();
    }

    pub fn attributed(&self, caller: &Caller) {
        match caller {
            Ok(_) => self.attributed_ok.inc(),
            Err(reason) => self.attributed.with_label_values(&[reason.label()]).inc(),
        }
    }

    /// `source` is what this node attributes connections by.
    pub fn attribution(&self, source: &str) {
        for one in Attribution::SOURCES {
            self.attribution.with_label_values(&[one]).set(i64::from(one == source));
        }
    }

    pub fn link_mended(&self) {
        self.links_mended.inc();
    }

    pub fn compared(&self, verdict: &Verdict) {
        match verdict {
            Verdict::SamePod => self.compared_same_pod.inc(),
            Verdict::NotCompared => self.not_compared.inc(),
            Verdict::Delegate
            | Verdict::OtherPod { .. }
            | Verdict::DelegatesUnknown
            | Verdict::OtherNode { .. }
            | Verdict::Unattributed(_) => self.compared.with_label_values(&[verdict.label()]).inc(),
        }
    }

    pub fn listener(&self, address: IpAddr, bound: bool) {
        self.listener_bound.with_label_values(&[address.to_string()]).set(i64::from(bound));
    }

    pub fn served(&self, from: ServedFrom, took: Duration) {
        self.requests_ok.inc();
        self.official_response_ok.inc();
        self.request_seconds.observe(took.as_secs_f64());
        match from {
            ServedFrom::Cache => {
                self.official_hit.inc();
                self.served_cache.inc();
            }
            ServedFrom::Stale => {
                self.official_hit.inc();
                self.served_stale.inc();
            }
            ServedFrom::EksAuth => {
                self.official_miss.inc();
                self.served_eks_auth.inc();
            }
        }
    }

    pub fn rejected(&self, rejection: &Rejection, status: StatusCode, took: Duration) {
        self.requests.with_label_values(&[rejection.reason()]).inc();
        self.official_response.with_label_values(&[status.as_str()]).inc();
        self.request_seconds.observe(took.as_secs_f64());
        match rejection {
            Rejection::Token { error, .. } => self.tokens_refused.with_label_values(&[error.reason()]).inc(),
            Rejection::Upstream { .. } | Rejection::NotYet { .. } => self.official_miss.inc(),
            Rejection::NotFound
            | Rejection::MethodNotAllowed
            | Rejection::HeadersTooLarge
            | Rejection::WrongHost
            | Rejection::Unattributed(_)
            | Rejection::OtherPod { .. }
            | Rejection::DelegatesUnknown
            | Rejection::OtherNode { .. }
            | Rejection::TooManyWaiting
            | Rejection::TooManyFailures
            | Rejection::CannotEnforce => {}
        }
    }

    pub fn eks_auth_call(&self, purpose: Purpose, failure: Option<&Failure>, took: Duration) {
        let result = failure.map_or("ok", Failure::label);
        self.eks_auth_calls.with_label_values(&[purpose.label(), result]).inc();
        self.eks_auth_seconds.with_label_values(&[purpose.label()]).observe(took.as_secs_f64());
        if let Some(failure) = failure {
            let code = failure.status().map_or_else(|| "none".to_owned(), |status| status.to_string());
            self.official_cache_errors.with_label_values(&[failure.label(), &code]).inc();
        }
    }

    fn count_kernel(&self, kernel: &Kernel) {
        for (result, total) in pods::connects(&kernel.node) {
            catch_up(&self.connects.with_label_values(&[result]), total);
        }
        for (result, total) in pods::imds_connects(&kernel.node) {
            catch_up(&self.imds_connects.with_label_values(&[result]), total);
        }
        for (what, total) in [
            ("counters", kernel.lost.counters),
            ("pending", kernel.lost.pending),
            ("namespaces", kernel.lost.namespaces),
        ] {
            catch_up(&self.probe_lost.with_label_values(&[what]), total);
        }
    }

    /// The text that Prometheus reads.
    pub fn render(&self, snapshot: &Snapshot) -> Result<String, prometheus::Error> {
        // Two scrapes at once would both add what is missing to the counters that are kept elsewhere.
        let _one_at_a_time = lock(&self.rendering);
        let census = &snapshot.census;
        for (state, number) in
            [("fresh", census.fresh), ("due", census.due), ("low", census.low), ("empty", census.empty)]
        {
            self.credentials.with_label_values(&[state]).set(whole(number as u64));
        }
        self.credentials_soonest_expiry.set(seconds_or_none(census.soonest_expiry));
        self.eks_auth_permission_suspected_lost.set(i64::from(census.own_permission_suspected));
        self.revalidate_after.set(seconds_or_none(Some(census.revalidate_after)));
        self.jwks_keys.set(whole(snapshot.jwks_keys as u64));
        self.jwks_age.set(seconds_or_none(snapshot.jwks_age));
        catch_up(&self.tokens_verified, snapshot.tokens_verified);
        catch_up(&self.jwks_fetches.with_label_values(&["ok"]), snapshot.jwks_fetches.ok);
        catch_up(&self.jwks_fetches.with_label_values(&["failed"]), snapshot.jwks_fetches.failed);
        if let Some(kernel) = &snapshot.kernel {
            self.count_kernel(kernel);
        }
        let (told_apart, left_out) = match &snapshot.pods {
            Some((samples, most)) => pods::within(samples.clone(), *most),
            None => (Vec::new(), 0),
        };
        self.pods_left_out.set(whole(left_out as u64));
        let mut families = self.registry.gather();
        families.extend(pods::families(&told_apart));
        TextEncoder::new().encode_to_string(&families)
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    family: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    registered(registry, IntCounter::new(name, help)?)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    registered(registry, IntGauge::new(name, help)?)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

/// Brings a counter up to a total that is counted elsewhere.
fn catch_up(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn seconds_or_none(time: Option<Duration>) -> i64 {
    time.map_or(-1, |time| whole(time.as_secs()))
}
