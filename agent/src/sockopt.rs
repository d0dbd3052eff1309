//! The socket options that neither socket2 nor rustix has.
#![expect(unsafe_code, reason = "getsockopt(2) and setsockopt(2) take raw pointers")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use agent_ebpf::{CALLER_LEVEL, CALLER_OPTION, Caller};
use libc::{SO_NETNS_COOKIE, SOL_SOCKET, SOL_TCP, TCP_FASTOPEN, c_int, c_void, socklen_t};

/// A listener with TCP Fast Open hands out sockets before the handshake has ended, and then the kernel programs never
/// see whose they are. A sysctl can turn it on for every listener of a host.
pub(crate) fn without_fast_open(listener: &impl AsFd) -> io::Result<()> {
    let none: c_int = 0;
    let size = socklen_t::try_from(size_of_val(&none)).map_err(io::Error::other)?;
    let fd = listener.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed, so it is open; the pointer and the size are those of a live integer.
    let result =
        unsafe { libc::setsockopt(fd, SOL_TCP, TCP_FASTOPEN, (&raw const none).cast::<c_void>(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The cookie of the network namespace that this socket is in; kernels before 5.14 do not tell.
pub(crate) fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut size = socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed, so it is open; the kernel writes at most `size` bytes, which `cookie` has.
    let result = unsafe {
        libc::getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast::<c_void>(), &raw mut size)
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// What the kernel programs say of an accepted socket. None: they say nothing, or are not there.
pub(crate) fn caller(accepted: &impl AsFd) -> Option<Caller> {
    let mut caller = MaybeUninit::<Caller>::uninit();
    let mut size = socklen_t::try_from(size_of_val(&caller)).ok()?;
    let whole = size;
    let fd = accepted.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed, so it is open; the kernel writes at most `size` bytes, which `caller` has.
    let result = unsafe {
        libc::getsockopt(fd, CALLER_LEVEL, CALLER_OPTION, caller.as_mut_ptr().cast::<c_void>(), &raw mut size)
    };
    // SAFETY: all of it was written, and it is made of integers.
    (result == 0 && size == whole).then(|| unsafe { caller.assume_init() })
}
