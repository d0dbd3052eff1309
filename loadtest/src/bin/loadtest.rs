//! The load harness: one scenario a run.
#![forbid(unsafe_code)]

fn main() {}
