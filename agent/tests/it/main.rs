//! The agent's binary against the simulated EKS, on loopback: what a pod, a Prometheus and an operator see.

mod answers;
mod harness;
mod keys;
mod operations;
mod reference;
mod startup_taint;
mod tokens;
mod upstream;
