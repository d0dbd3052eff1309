//! podcred: credentials for the pods of one EKS node.
//!
//! The way of a request: [`server`] accepts the connection, [`attribute`] asks the kernel who opened it, [`request`] lists
//! the steps, [`authenticate`] verifies the token, [`authorize`] gives a permit, [`credentials`] finds what is cached for it
//! or fetches it through [`eks_auth`], and [`reject`] is what can go wrong. [`app`] wires them together.

pub mod admin;
pub mod api_server;
pub mod app;
pub mod attribute;
pub mod authenticate;
pub mod authorize;
mod causes;
pub mod claims;
pub mod clock;
pub mod config;
pub mod credentials;
pub mod doctor;
pub mod eks_auth;
pub mod link;
pub mod listeners;
mod locks;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod node_pods;
pub mod pods;
pub mod reject;
pub mod request;
pub mod server;
mod sockopt;
pub mod startup_taint;
#[cfg(test)]
mod testing;
pub mod upkeep;
