//! Programs of the kinds of ours, at the places of ours, that do nothing: what any design with these hooks costs.
#![expect(unsafe_code, reason = "bpf(2) takes pointers, and aya loads object files alone")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};

/// r0 = 1; exit. To all these hooks that means: go on.
const GO_ON: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

/// What the kernel calls a kind of program and the hook that it is for.
const SOCK_OPS: (u32, u32) = (13, 3);
const CONNECT4: (u32, u32) = (18, 10);
const CONNECT6: (u32, u32) = (18, 11);
const SOCKET_RELEASE: (u32, u32) = (9, 34);

const PROG_LOAD: u32 = 5;
const LINK_CREATE: u32 = 28;

/// Until these descriptors are closed.
pub(crate) fn attach(kubepods: &Path, agent: &Path) -> Result<Vec<OwnedFd>> {
    let places = [
        (kubepods, SOCK_OPS),
        (agent, SOCK_OPS),
        (kubepods, SOCKET_RELEASE),
        (kubepods, CONNECT4),
        (kubepods, CONNECT6),
    ];
    let link = |(cgroup, kind): (&Path, _)| {
        attach_one(&File::open(cgroup)?, kind).with_context(|| format!("a program at {}", cgroup.display()))
    };
    places.map(link).into_iter().collect()
}

fn attach_one(cgroup: &File, (kind, hook): (u32, u32)) -> io::Result<OwnedFd> {
    /// `bpf_attr` of the command, up to the last field that matters here.
    #[repr(C)]
    struct Load {
        kind: u32,
        instructions: u32,
        code: *const u64,
        license: *const u8,
        log: [u64; 2],
        kernel: u32,
        flags: u32,
        name: [u8; 16],
        device: u32,
        hook: u32,
    }
    let mut load = Load {
        kind,
        instructions: GO_ON.len() as u32,
        code: GO_ON.as_ptr(),
        license: c"GPL".as_ptr().cast(),
        log: [0; 2],
        kernel: 0,
        flags: 0,
        name: [0; 16],
        device: 0,
        // Of a sock_ops program the kernel wants none.
        hook: if kind == SOCK_OPS.0 { 0 } else { hook },
    };
    // SAFETY: laid out as the kernel has it; code and license are constants of the size that is said.
    let program = unsafe { bpf(PROG_LOAD, &mut load) }?;
    let mut link = [program.as_raw_fd() as u32, cgroup.as_raw_fd() as u32, hook, 0];
    // SAFETY: laid out as the kernel has it, and nothing of it is a pointer.
    unsafe { bpf(LINK_CREATE, &mut link) }
}

/// # Safety
/// `attributes` must be laid out as the kernel's for this command, which must give a descriptor.
unsafe fn bpf<A>(command: u32, attributes: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `attributes` within its size, and the rest is the caller's word.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) };
    let fd = i32::try_from(result).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
