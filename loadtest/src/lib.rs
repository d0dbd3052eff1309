//! What podcred is tested against.
//!
//! [`eks`] is a simulated EKS: everything of AWS that a pod's credentials depend on, on one loopback address.
//! [`node`] is a simulated node: the cgroups and network namespaces of its pods.
//! [`api_server`] is a simulated API server, as far as an agent asks it.
//! [`harness`] drives thousands of simulated pods against an agent; [`report`] tells what came of it.
#![forbid(unsafe_code)]

pub mod api_server;
mod clock;
pub mod eks;
#[cfg(feature = "harness")]
pub mod harness;
pub mod node;
#[cfg(feature = "harness")]
pub mod report;
