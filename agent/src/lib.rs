//! podcred: credentials for the pods of one EKS node.

pub mod authenticate;
pub mod claims;
pub mod clock;
pub mod config;
pub mod eks_auth;
#[cfg(test)]
mod testing;
