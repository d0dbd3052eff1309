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

/// Whether a test that needs root must be left out, which it then says. In CI it must run.
pub fn left_out_without_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return false;
    }
    assert!(std::env::var_os("CI").is_none(), "in CI the tests that need root must run");
    eprintln!("left out: this test needs root");
    true
}
