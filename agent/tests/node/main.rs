//! What the node's cgroups tell of its pods. Needs root; without it the tests say that they were left out.

mod cgroups;
mod layout;
mod pods;
