//! A simulated node: what the kernel of an EKS node shows an agent, without a kubelet.
//!
//! One network namespace is the node's. It has the link-local addresses of the agent and of IMDS on the bridge that its
//! pods hang on. A pod is a cgroup, laid out and named as the kubelet does it, and a network namespace with a veth pair
//! to that bridge; a hostNetwork pod is a cgroup alone. Processes are made in a pod by [`Place::run`] and
//! [`Place::spawn`]; single threads move with [`Place::enter`], so that one load generator can be thousands of pods.
//!
//! Namespaces have no names and end with their last user. Cgroups outlive a killed process, so they carry its id, and
//! the next node that starts sweeps those of the dead.
//!
//! Needs root, a cgroup v2 mount (a hybrid one will do), bridges and veth. No `ip` is needed.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use anyhow::{Context, Result};

mod cgroup;
mod layout;
mod network;
mod place;
mod pod;

use self::cgroup::{Domain, OwnedCgroup};
pub use self::layout::{Driver, Layout, Qos, Runtime};
use self::network::{Addresses, Namespace, Wire};
pub use self::place::{Place, Process};
pub use self::pod::{Pod, PodSpec};

/// Where AWS's SDKs look for the agent.
pub const CREDENTIALS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 23);
pub const CREDENTIALS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23);
/// Where they look for the node's own role.
pub const IMDS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const IMDS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Ends with its guard, cgroups and namespaces and all. Pods end before their node: they borrow nothing from it, but
/// share what they need.
#[derive(Debug)]
pub struct Node {
    layout: Layout,
    kubepods: PathBuf,
    agent: Place,
    shared: Arc<Shared>,
}

/// What pods need of their node, in the order in which it ends.
#[derive(Debug)]
struct Shared {
    namespace: Arc<Namespace>,
    bridge: u32,
    /// A dead pod's addresses are given again only to who asks for them.
    last_address: AtomicU16,
    cgroup: OwnedCgroup,
    domain: Domain,
}

impl Node {
    pub fn start(layout: Layout) -> Result<Node> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let domain = Domain::join().context("a cgroup for the simulated nodes of this process")?;
        let name = format!("node-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = OwnedCgroup::threaded(domain.path(), &name).context("the node's cgroup")?;
        let kubepods = cgroup.path().join(layout.kubepods());
        cgroup::make_threaded(cgroup.path(), layout.kubepods()).context("the kubepods cgroup")?;
        cgroup::make_threaded(cgroup.path(), Path::new("agent")).context("the agent's cgroup")?;
        let namespace = Arc::new(Namespace::new().context("the node's network namespace")?);
        let bridge = network::make_node(&namespace).context("the node's network")?;
        let agent = Place::new(&cgroup.path().join("agent"), Arc::clone(&namespace))?;
        let last_address = AtomicU16::new(Addresses::NODE);
        let shared = Arc::new(Shared { namespace, bridge, last_address, cgroup, domain });
        Ok(Node { layout, kubepods, agent, shared })
    }

    /// Pods of all QoS classes in turn, each with a namespace of its own.
    pub fn pods(&self, count: usize) -> Result<Vec<Pod>> {
        let classes = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];
        (0..count).map(|n| self.pod(PodSpec::new(classes[n % classes.len()]))).collect()
    }

    #[expect(clippy::needless_pass_by_value, reason = "a spec is made where it is given, for one pod")]
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let cgroup = self.layout.pod(spec.qos, &spec.uid);
        let made = self.make_pod(&cgroup, &spec);
        if made.is_err() {
            cgroup::remove_or_tell(&self.kubepods.join(cgroup));
        }
        made
    }

    /// `cgroup` is below `kubepods`.
    fn make_pod(&self, cgroup: &Path, spec: &PodSpec) -> Result<Pod> {
        let container = cgroup.join(self.layout.container(&layout::new_container_id()));
        cgroup::make_threaded(&self.kubepods, &container)
            .with_context(|| format!("the cgroup of pod {}", spec.uid))?;
        let (namespace, wire) = if spec.host_network {
            (Arc::clone(&self.shared.namespace), None)
        } else {
            let addresses = spec.addresses.map_or_else(|| self.shared.next_addresses(), Ok)?;
            let namespace = Arc::new(Namespace::new().context("a pod's network namespace")?);
            let wire = Wire::lay(&self.shared.namespace, self.shared.bridge, &namespace, addresses)
                .with_context(|| format!("the network of pod {}", spec.uid))?;
            (namespace, Some(wire))
        };
        let place = Place::new(&self.kubepods.join(container), namespace)?;
        Ok(Pod::new(place, wire, Arc::clone(&self.shared)))
    }

    /// The node's network namespace and the agent's cgroup, which lies beside `kubepods`.
    pub fn agent(&self) -> &Place {
        &self.agent
    }

    /// The node's own address in the network of its pods.
    pub fn ipv4(&self) -> Ipv4Addr {
        Addresses::node().v4
    }

    /// Where a load generator is while it is no pod: the node's network namespace, and the cgroup of the process.
    pub fn home(&self) -> Result<Place> {
        Place::new(self.shared.domain.path(), Arc::clone(&self.shared.namespace))
    }

    /// The cgroup below which all pods are.
    pub fn kubepods(&self) -> &Path {
        &self.kubepods
    }

    /// The node's own cgroup, in which everything else of it lies.
    pub fn cgroup(&self) -> &Path {
        self.shared.cgroup.path()
    }

    pub fn cgroup_mount(&self) -> &Path {
        self.shared.domain.mount()
    }

    /// How deep `kubepods` lies below the mount: 1 for a child of the root.
    pub fn kubepods_level(&self) -> u32 {
        let below = self.kubepods.strip_prefix(self.cgroup_mount()).unwrap_or(&self.kubepods);
        u32::try_from(below.components().count()).unwrap_or(u32::MAX)
    }

    pub fn credentials(&self, port: u16) -> [SocketAddr; 2] {
        [SocketAddr::from((CREDENTIALS_V4, port)), SocketAddr::from((CREDENTIALS_V6, port))]
    }
}

impl Shared {
    fn next_addresses(&self) -> Result<Addresses> {
        let next = |last: u16| last.checked_add(1);
        let last = self.last_address.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let last = last.ok().context("a simulated node has 65,000 addresses for pods")?;
        Ok(Addresses::numbered(last + 1))
    }
}

#[cfg(test)]
mod tests;
