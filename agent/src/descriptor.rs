//! Descriptors that tokio watches without knowing what they are.
#![expect(unsafe_code, reason = "tokio cannot see that a descriptor stays the one that it was given")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// To wait until there is something to read, or to accept.
pub(crate) fn readable(descriptor: impl Into<OwnedFd>) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays the same open descriptor for as long as it lives.
    unsafe { AsyncFd::register_with_interest(descriptor.into(), Interest::READABLE) }.map_err(io::Error::from)
}
