//! The kernel programs and the agent on a simulated node: real namespaces, real cgroups, real attacks.
//!
//! Needs root; without it every test says that it was left out, which in CI is a failure. `PODCRED_TEST_CONNECTIONS`
//! scales the loads down for slow machines, and `PODCRED_BINARY` names the agent's binary where it has moved.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agent;
mod attacks;
mod attribution;
mod cases;
mod delegates;
mod harness;
mod imds;
mod lifecycle;
mod limits;
mod load;
mod pod_metrics;
mod proxies;
mod verify;
