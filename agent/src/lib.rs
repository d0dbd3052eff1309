//! podcred: credentials for the pods of one EKS node.
//!
//! A request's way: [`server`] accepts the connection, [`attribute`] asks the kernel who opened it, [`request`] lists the
//! steps, [`authenticate`] checks the token, [`authorize`] compares the two and gives the permit, [`credentials`] finds or
//! fetches what it is for, [`eks_auth`] is whom it asks, and [`reject`] says what went wrong. [`app`] wires them.

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
