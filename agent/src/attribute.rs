//! Which pod opened this connection? The kernel's word, not the caller's.

pub mod cgroup;
mod handle;
pub mod layout;
pub mod probe;

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

/// What the kernel says of the caller of one connection.
pub type Caller = Result<Arc<Workload>, Unattributed>;

/// The pod that opened a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub pod_uid: Arc<str>,
    /// None where the process ran in the pod's own cgroup, outside any container's.
    pub container_id: Option<Box<str>>,
    pub cgroup_id: u64,
    pub tgid: u32,
    /// The network namespace's cookie; 0 where the kernel does not tell (before 5.15).
    pub netns: u64,
    pub host_network: bool,
}

/// Why there is no workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unattributed {
    /// `--verify off`: nobody looked.
    Off,
    /// This node has nothing to attribute connections by.
    NoProbe,
    /// The kernel programs have not seen the connect() call: it came from outside the pods' cgroups or from a sandbox
    /// with a network stack of its own (gVisor, Kata), or another program rewrote its destination.
    NoRecord,
    /// The caller's cgroup is no pod's.
    NotAPod,
    /// The caller's cgroup does not exist any more.
    Gone,
    /// A trusted proxy connected for a pod that has not connected itself yet.
    NotYetKnown,
    /// The kernel could not be asked.
    CannotTell,
}

impl Unattributed {
    pub const ALL: [Unattributed; 7] = [
        Unattributed::Off,
        Unattributed::NoProbe,
        Unattributed::NoRecord,
        Unattributed::NotAPod,
        Unattributed::Gone,
        Unattributed::NotYetKnown,
        Unattributed::CannotTell,
    ];

    /// Another attempt may fare better.
    pub fn is_passing(self) -> bool {
        match self {
            Unattributed::NotYetKnown | Unattributed::CannotTell => true,
            Unattributed::Off
            | Unattributed::NoProbe
            | Unattributed::NoRecord
            | Unattributed::NotAPod
            | Unattributed::Gone => false,
        }
    }

    /// A metric label, and the reason in the log.
    pub fn label(self) -> &'static str {
        match self {
            Unattributed::Off => "off",
            Unattributed::NoProbe => "no_probe",
            Unattributed::NoRecord => "no_record",
            Unattributed::NotAPod => "not_a_pod",
            Unattributed::Gone => "gone",
            Unattributed::NotYetKnown => "not_yet_known",
            Unattributed::CannotTell => "cannot_tell",
        }
    }
}

/// Continues "the pod that opened this connection is not known: …".
impl fmt::Display for Unattributed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unattributed::Off => "nobody looks on this node",
            Unattributed::NoProbe => "this node cannot tell; `podcred doctor` says why",
            Unattributed::NoRecord => {
                "its connect() was made outside the pods' cgroups, in a sandbox with a network of its own, or through \
                 a proxy"
            }
            Unattributed::NotAPod => "its process belongs to the node and not to a pod",
            Unattributed::Gone => "its container has ended",
            Unattributed::NotYetKnown => "a proxy opened it for a pod that has not been seen connecting",
            Unattributed::CannotTell => "the kernel could not be asked",
        })
    }
}

/// What this node attributes connections by.
#[derive(Debug)]
pub struct Attribution {
    problem: Unattributed,
}

impl Attribution {
    pub fn off() -> Self {
        Attribution { problem: Unattributed::Off }
    }

    pub fn none() -> Self {
        Attribution { problem: Unattributed::NoProbe }
    }

    pub fn can_enforce(&self) -> bool {
        false
    }

    pub fn caller(&self, _socket: &impl AsFd, _peer: SocketAddr, _local: SocketAddr) -> Caller {
        Err(self.problem)
    }
}
