//! What the kernel programs and the agent tell each other.
#![no_std]
