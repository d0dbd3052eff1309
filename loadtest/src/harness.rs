//! Thousands of pods on one machine.
