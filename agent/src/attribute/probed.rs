//! Callers by the kernel programs and the pods' cgroups, and what has to be seen to while they run.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use super::cgroup::{Cgroups, NoPod, PodCgroup};
use super::counters::PerPod;
use super::probe::{Probe, ProbeError};
use super::{Caller, Unattributed, Workload};
use crate::causes::chain;
use crate::config::ServiceAccount;
use crate::locks::lock;
use crate::node_pods::NodePods;

/// The probe, with what makes pods of its cgroup ids.
#[derive(Debug)]
pub struct Probed {
    pub probe: Probe,
    pub cgroups: Cgroups,
    pub counters: PerPod,
    /// Cgroups of node proxies that connect for pods, from kubepods on.
    proxies: Vec<PathBuf>,
    /// Cgroups that reach IMDS in spite of `--imds refuse-pods`.
    excepted: Mutex<HashSet<u64>>,
}

impl Probed {
    pub fn new(probe: Probe, cgroups: Cgroups, proxies: Vec<PathBuf>) -> Self {
        // Where maps are pinned an earlier agent's are there.
        let excepted = Mutex::new(probe.imds_allowed().unwrap_or_default().into_iter().collect());
        Probed { probe, cgroups, counters: PerPod::default(), proxies, excepted }
    }

    pub(super) fn caller(&self, socket: &impl AsFd) -> Caller {
        let caller = recorded(&self.probe, self.probe.caller(socket))?;
        if self.is_proxy(caller.cgroup_id)? {
            return self.proxied(&caller);
        }
        let pod = match self.cgroups.pod_of(caller.cgroup_id) {
            // A cgroup that a container made for a moment; what is above it is the pod's, too.
            Err(NoPod::Gone) => self.cgroups.pod_of(caller.group),
            found => found,
        };
        Ok(workload(&caller, pod?))
    }

    /// The pod that a trusted proxy connected for. The proxy does so from inside the pod's network namespace, because
    /// the pod called connect() there just before; nobody but the pod can have been the first to.
    fn proxied(&self, proxy: &agent_ebpf::Caller) -> Caller {
        // Everybody's, so nobody's.
        if proxy.host_network() {
            return Err(Unattributed::NoRecord);
        }
        let owner = self.probe.namespace_owner(proxy.netns).map_err(|error| cannot_tell(&error))?;
        let cgroup_id = owner.ok_or(Unattributed::NotYetKnown)?;
        let not_this_one = || match self.probe.forget_namespace(proxy.netns) {
            Ok(()) => Unattributed::NotYetKnown,
            Err(error) => cannot_tell(&error),
        };
        let pod = match self.holds_proxy(cgroup_id) {
            // The proxy was first: it connected before the pod, or the programs were attached between the two calls.
            Ok(true) => return Err(not_this_one()),
            Ok(false) => self.cgroups.pod_of(cgroup_id),
            Err(reason) => Err(reason),
        };
        match pod {
            Ok(pod) => Ok(workload(&agent_ebpf::Caller { cgroup_id, ..*proxy }, pod)),
            // That container has ended; another one of the same pod will be learned.
            Err(NoPod::Gone) => Err(not_this_one()),
            Err(other) => Err(other.into()),
        }
    }

    fn is_proxy(&self, cgroup_id: u64) -> Result<bool, Unattributed> {
        if self.proxies.is_empty() {
            return Ok(false);
        }
        let place = self.cgroups.place_of(cgroup_id)?;
        Ok(self.proxies.iter().any(|proxy| place.starts_with(proxy)))
    }

    /// Makes room for the network namespaces of other pods.
    pub fn forget_namespaces(&self) -> Result<(), ProbeError> {
        for (cookie, group) in self.probe.namespaces()? {
            if !self.cgroups.is_alive(group) {
                self.probe.forget_namespace(cookie)?;
            }
        }
        Ok(())
    }

    /// Namespaces are noted by the pod, and what is trusted may be one container of it.
    fn holds_proxy(&self, group: u64) -> Result<bool, NoPod> {
        let place = self.cgroups.place_of(group)?;
        Ok(self.proxies.iter().any(|proxy| place.starts_with(proxy) || proxy.starts_with(&place)))
    }

    /// Lets the pods of these service accounts reach IMDS, and no others any more.
    pub fn except_from_imds(&self, accounts: &[ServiceAccount], pods: &NodePods) {
        let mut excepted = lock(&self.excepted);
        // Before the pods are listed, those that an earlier agent excepted stay so; with no accounts they end at once.
        if (accounts.is_empty() && excepted.is_empty()) || (!accounts.is_empty() && !pods.is_complete()) {
            return;
        }
        let uids: HashSet<String> = pods.running_as(accounts).into_iter().collect();
        let groups = match self.cgroups.groups_of_pods() {
            Ok(groups) => groups,
            Err(error) => {
                tracing::debug!(event = "cgroups_unreadable", %error, "the pods' cgroups cannot be listed");
                return;
            }
        };
        let theirs = groups.into_iter().filter(|pod| uids.contains(&*pod.pod_uid));
        let wanted: HashSet<u64> = theirs.flat_map(|pod| pod.ids).collect();
        // What cannot be told to the kernel now is tried again.
        excepted.retain(|id| wanted.contains(id) || self.probe.deny_imds(*id).is_err());
        for id in wanted {
            if !excepted.contains(&id) && self.probe.allow_imds(id).is_ok() {
                excepted.insert(id);
            }
        }
    }
}

/// How long the kernel sends a SYN again and again, by default: a connection may have been opened so long before it came.
const SYN_RETRIES: Duration = Duration::from_secs(130);

/// What the probe says of a connection, or what it means that it says nothing.
pub(super) fn recorded<T>(probe: &Probe, said: Result<Option<T>, ProbeError>) -> Result<T, Unattributed> {
    match said {
        Ok(Some(said)) => Ok(said),
        Ok(None) if probe.attached_for().is_some_and(|time| time > SYN_RETRIES) => {
            Err(Unattributed::NoRecord)
        }
        // Detached, they will be attached again within a second.
        Ok(None) => Err(Unattributed::JustAttached),
        Err(error) => Err(cannot_tell(&error)),
    }
}

pub(super) fn cannot_tell(error: &(dyn std::error::Error + 'static)) -> Unattributed {
    let error = chain(error);
    tracing::debug!(event = "attribution_failed", %error, "the kernel could not be asked who is calling");
    Unattributed::CannotTell
}

pub(super) fn workload(caller: &agent_ebpf::Caller, pod: PodCgroup) -> Workload {
    Workload {
        pod_uid: pod.pod_uid,
        container_id: pod.container_id,
        cgroup_id: caller.cgroup_id,
        tgid: caller.tgid,
        netns: caller.netns,
        host_network: caller.host_network(),
    }
}

impl From<NoPod> for Unattributed {
    fn from(reason: NoPod) -> Self {
        match reason {
            NoPod::Gone => Unattributed::Gone,
            NoPod::NotAPod { .. } => Unattributed::NotAPod,
            NoPod::CannotTell { cause } => cannot_tell(&NoPod::CannotTell { cause }),
        }
    }
}
