//! Which pod opened this connection? The kernel's word, not the caller's.

pub mod cgroup;
mod handle;
pub mod inet_diag;
pub mod layout;
pub mod proc;

use std::sync::Arc;

/// The pod that opened a connection, as the kernel tells it.
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
