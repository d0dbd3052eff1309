//! The kernel programs and their loader, in cgroups of their own. Needs root; without it the tests say that they were left out.

mod cgroups;
mod loader;
mod messages;
mod pins;
