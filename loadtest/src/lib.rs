//! What podcred is tested against.
//!
//! [`eks`] is a simulated EKS: everything of AWS that a pod's credentials depend on, on one loopback address.
#![forbid(unsafe_code)]

mod clock;
pub mod eks;
