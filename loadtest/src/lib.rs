//! What podcred is tested against.
//!
//! [`eks`] is a simulated EKS: everything of AWS that a pod's credentials depend on, on one loopback address.
//! [`node`] is a simulated node: the cgroups and network namespaces of its pods.
//! [`api_server`] is a simulated API server, as far as an agent asks it.
#![forbid(unsafe_code)]

pub mod api_server;
mod clock;
pub mod eks;
pub mod node;
