//! What goes wrong again and again, in the log once a minute.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::attribute::Workload;
use crate::attribute::probe::ProbeError;
use crate::causes::chain;
use crate::claims::Claims;
use crate::clock::Now;
use crate::locks::lock;
use crate::pods::Pod;
use crate::reject::Rejection;
use crate::server::CapOf;

/// A pod with a broken token asks every second; its owner needs one line, not a flood.
const ONE_LINE_IN: Duration = Duration::from_secs(60);
const KEPT_LINES: usize = 1_024;

/// One log line for each reason and pod in a minute; the metric has the numbers.
#[derive(Debug, Default)]
pub struct Logged {
    last: Mutex<HashMap<About, Instant>>,
    pairs: Mutex<HashSet<Pair>>,
}

/// A reason, and the UID of the pod concerned, as far as it is known for sure.
type About = (&'static str, Option<Arc<str>>);

/// The UIDs of the pod that connected, and of the one whose token it presented.
type Pair = (Arc<str>, Arc<str>);

impl Logged {
    pub(super) fn rejected(&self, rejection: &Rejection, peer: SocketAddr, now: Now) {
        let reason = rejection.reason();
        let pod = rejection.pod();
        if !self.is_due((reason, pod.map(|pod| pod.pod_uid().into())), now) {
            return;
        }
        tracing::warn!(
            event = "request_refused",
            reason,
            status = rejection.status().as_u16(),
            peer = %peer.ip(),
            namespace = pod.map(|pod| pod.namespace()),
            service_account = pod.map(|pod| pod.service_account()),
            pod = pod.map(|pod| pod.pod_name()),
            "refused; further refusals like this are only counted (podcred_requests_total) for a minute"
        );
    }

    pub(crate) fn accept_failed(&self, error: &std::io::Error, now: Now) {
        if self.is_due(("accept_failed", None), now) {
            tracing::warn!(event = "accept_failed", %error, "cannot accept a connection");
        }
    }

    /// Once for each pair, whether the request was refused or, in audit, was not.
    pub(super) fn other_pod(&self, caller: &Workload, name: Option<&Claims>, token: &Claims) {
        let pair = (Arc::clone(&caller.pod_uid), token.pod_uid().into());
        if !self.is_new(pair) {
            return;
        }
        tracing::warn!(
            event = "other_pod_presents_token",
            caller_uid = &*caller.pod_uid,
            caller_namespace = name.map(Claims::namespace),
            caller_pod = name.map(Claims::pod_name),
            caller_container = caller.container_id.as_deref(),
            caller_tgid = caller.tgid,
            token_uid = token.pod_uid(),
            token_namespace = token.namespace(),
            token_pod = token.pod_name(),
            token_service_account = token.service_account(),
            "a pod presents another pod's token"
        );
    }

    pub(crate) fn connection_refused(&self, full: CapOf, pod: Option<&Pod>, now: Now) {
        let pod = pod.filter(|_| full == CapOf::Pod);
        if !self.is_due(("connection_refused", pod.map(|pod| Arc::clone(pod.uid()))), now) {
            return;
        }
        let claims = pod.and_then(Pod::claims);
        tracing::warn!(
            event = "connections_full",
            cap_of = full.label(),
            pod_uid = pod.map(|pod| &**pod.uid()),
            namespace = claims.map(|claims| claims.namespace()),
            pod = claims.map(|claims| claims.pod_name()),
            "connections are refused: the maximum is open (node: --max-connections, pod: --pod-connections), and all of \
             them wait for an answer"
        );
    }

    pub(crate) fn probe_failed(&self, error: &ProbeError, now: Now) {
        if self.is_due(("probe_upkeep_failed", None), now) {
            let error = chain(error);
            tracing::warn!(event = "probe_upkeep_failed", %error, "upkeep of the kernel programs failed; it will be retried");
        }
    }

    fn is_new(&self, pair: Pair) -> bool {
        let mut pairs = lock(&self.pairs);
        // A thief can collect a token of every pod, so this is bounded; after that, known pairs are logged once more.
        if pairs.len() >= KEPT_LINES && !pairs.contains(&pair) {
            pairs.clear();
        }
        pairs.insert(pair)
    }

    fn is_due(&self, about: About, now: Now) -> bool {
        let mut last = lock(&self.last);
        let recent = |at: &Instant| now.mono.saturating_duration_since(*at) < ONE_LINE_IN;
        if last.get(&about).is_some_and(recent) {
            return false;
        }
        // Only verified pods are told apart, so this stays small; what is over is dropped before it grows.
        if last.len() >= KEPT_LINES {
            last.retain(|_, at| recent(at));
        }
        last.insert(about, now.mono);
        true
    }
}
