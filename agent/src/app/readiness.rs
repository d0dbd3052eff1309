//! Whether the agent is ready, as each part of it sees that.

use std::sync::Arc;

use crate::admin::Readiness;
use crate::authenticate::keys::Keys;
use crate::listeners::Ports;
use crate::node_pods::NodePods;
use crate::request::Service;

pub(super) struct Parts {
    pub(super) ports: Arc<Ports>,
    pub(super) keys: Arc<Keys>,
    pub(super) service: Arc<Service>,
    /// None where nobody needs them.
    pub(super) node_pods: Option<Arc<NodePods>>,
    /// Why there is no control socket.
    pub(super) no_control: Option<String>,
}

impl Parts {
    pub(super) fn readiness(&self) -> Readiness {
        let readiness = self.listeners(Readiness::default());
        let readiness = match self.keys.count() {
            0 => readiness.failing("keys", "the issuer's signing keys could not be fetched yet; see the log"),
            _ => readiness.ok("keys"),
        };
        let readiness = self.attribution(readiness);
        let readiness = match self.node_pods.as_ref().map(|pods| pods.is_complete()) {
            Some(true) => readiness.ok("pods"),
            Some(false) => readiness.degraded("pods", "this node's pods were not listed yet; see the log"),
            None => readiness,
        };
        match &self.no_control {
            None => readiness.ok("control socket"),
            Some(problem) => readiness.degraded("control socket", problem),
        }
    }

    fn listeners(&self, readiness: Readiness) -> Readiness {
        match self.ports.problems() {
            problems if self.ports.leave_pods_alone() => readiness.failing("listeners", problems),
            problems if problems.is_empty() => readiness.ok("listeners"),
            problems => readiness.degraded("listeners", problems),
        }
    }

    fn attribution(&self, readiness: Readiness) -> Readiness {
        let attribution = &self.service.attribution;
        let refuses = self.service.policy.refuses();
        let detached = attribution.probe().is_some_and(|probe| probe.attached_for().is_none());
        match attribution.problem() {
            _ if detached => {
                let problem = "the kernel programs are not attached to the pods' cgroup; see the log";
                match refuses {
                    true => readiness.failing("attribution", problem),
                    false => readiness.degraded("attribution", problem),
                }
            }
            Some(problem) if refuses && !attribution.can_enforce() => readiness
                .failing("attribution", format!("callers cannot be verified, so none is served: {problem}")),
            Some(problem) => readiness.degraded("attribution", problem),
            None => readiness.ok("attribution"),
        }
    }
}
