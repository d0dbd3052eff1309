//! What the node's cgroups, processes and sockets tell of its pods. Most of it needs root; without it the tests say that
//! they were left out.

#![expect(clippy::unwrap_used, reason = "these are tests, their helpers too")]

mod cgroups;
mod doctor;
mod inet_diag;
mod layout;
mod pods;
mod proc;
