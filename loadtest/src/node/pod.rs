use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::cgroup;
use super::layout::{Qos, container_id, new_uid, pod_uid};
use super::network::{Addresses, Wire};
use super::{Place, Shared};

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub(super) uid: String,
    pub(super) qos: Qos,
    pub(super) host_network: bool,
    pub(super) addresses: Option<Addresses>,
}

impl PodSpec {
    pub fn new(qos: Qos) -> PodSpec {
        PodSpec { uid: new_uid(), qos, host_network: false, addresses: None }
    }

    /// Made up, as a token names the pod.
    pub fn own_uid(&self) -> &str {
        &self.uid
    }

    pub fn host_network(self) -> PodSpec {
        PodSpec { host_network: true, ..self }
    }

    /// The addresses that another pod has or had.
    pub fn with_addresses_of(self, pod: &Pod) -> PodSpec {
        PodSpec { addresses: Some(pod.addresses()), ..self }
    }
}

impl Default for PodSpec {
    fn default() -> Self {
        PodSpec::new(Qos::Burstable)
    }
}

/// A pod with one container. Its cgroup and its network end with it, and so do its processes.
#[derive(Debug)]
pub struct Pod {
    /// None with hostNetwork. Boxed, as of ten thousand pods nearly all have none.
    wire: Option<Box<Wire>>,
    /// Of its container.
    place: Place,
    _node: Arc<Shared>,
}

impl Pod {
    /// `place` is that of its container, in a cgroup of the pod's own.
    pub(super) fn new(place: Place, wire: Option<Wire>, node: Arc<Shared>) -> Pod {
        Pod { wire: wire.map(Box::new), place, _node: node }
    }

    pub fn uid(&self) -> String {
        pod_uid(&self.own_cgroup())
    }

    pub fn container_id(&self) -> String {
        container_id(&self.place.cgroup()).to_owned()
    }

    pub fn is_host_network(&self) -> bool {
        self.wire.is_none()
    }

    /// What the node sends to this address comes to this pod from now on, as after an answer to ARP that a container
    /// with CAP_NET_RAW forged.
    pub fn attract(&self, address: IpAddr) -> Result<()> {
        self.wire()?.attract(address)
    }

    /// Its peers hear no more of it, not even that its connections end.
    pub fn cut_off(&self) -> Result<()> {
        self.wire()?.cut()
    }

    /// Above that of its container.
    fn own_cgroup(&self) -> PathBuf {
        let mut path = self.place.cgroup();
        path.pop();
        path
    }

    fn wire(&self) -> Result<&Wire> {
        self.wire.as_deref().context("a hostNetwork pod has no wire of its own")
    }

    /// The node's, for a pod with hostNetwork.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.addresses().v4
    }

    pub fn ipv6(&self) -> Ipv6Addr {
        self.addresses().v6
    }

    fn addresses(&self) -> Addresses {
        self.wire.as_ref().map_or_else(Addresses::node, |wire| wire.addresses)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The network first, as the kubelet does it.
        drop(self.wire.take());
        cgroup::remove_or_tell(&self.own_cgroup());
    }
}

/// The place of its container.
impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}
