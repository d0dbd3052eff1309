//! The bpf(2) commands that aya has no public word for: links as descriptors, and what is attached where.
#![expect(unsafe_code, reason = "bpf(2) takes pointers, and aya offers no safe way to these commands")]

use std::ffi::{CString, c_char};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where in a cgroup a program is attached, by the kernel's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Hook {
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    GetSocketOption = 21,
    SocketRelease = 34,
}

impl Hook {
    pub(super) fn name(self) -> &'static str {
        match self {
            Hook::SockOps => "sock_ops",
            Hook::Connect4 => "connect4",
            Hook::Connect6 => "connect6",
            Hook::GetSocketOption => "getsockopt",
            Hook::SocketRelease => "sock_release",
        }
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Command {
    Pin = 6,
    Pinned = 7,
    #[cfg(test)]
    Attach = 8,
    #[cfg(test)]
    Detach = 9,
    ObjectInfo = 15,
    ProgramQuery = 16,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// Attaches a program to a cgroup for as long as the link's descriptor, or a pin of it, is there.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: Hook,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: i32,
        target: i32,
        hook: u32,
        flags: u32,
    }
    let mut attributes =
        Attributes { program: program.as_raw_fd(), target: cgroup.as_raw_fd(), hook: hook as u32, flags: 0 };
    // SAFETY: these are the command's attributes, and none is a pointer.
    let fd = unsafe { bpf(Command::LinkCreate, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets a link run another program of the same kind from now on.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link: i32,
        program: i32,
        flags: u32,
        old_program: u32,
    }
    let (link, program) = (link.as_raw_fd(), program.as_raw_fd());
    let mut attributes = Attributes { link, program, flags: 0, old_program: 0 };
    // SAFETY: these are the command's attributes, and none is a pointer.
    unsafe { bpf(Command::LinkUpdate, &mut attributes) }.map(drop)
}

/// Detaches a link from its cgroup, for good.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = link.as_raw_fd();
    // SAFETY: a descriptor is the command's only attribute.
    unsafe { bpf(Command::LinkDetach, &mut attributes) }.map(drop)
}

/// The id of the cgroup that a link is attached to; None once it was detached or its cgroup removed.
pub(super) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    /// `bpf_link_info`, as far as a cgroup's link goes.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        _padding: u32,
        cgroup_id: u64,
        hook: u32,
        _end: u32,
    }
    #[repr(C)]
    struct Attributes {
        object: i32,
        size: u32,
        info: *mut Info,
    }
    let mut info = Info::default();
    let size = u32::try_from(size_of::<Info>()).unwrap_or_default();
    let mut attributes = Attributes { object: link.as_raw_fd(), size, info: &raw mut info };
    // SAFETY: the kernel writes at most `size` bytes to `info`, which outlives the call.
    unsafe { bpf(Command::ObjectInfo, &mut attributes) }?;
    Ok((info.cgroup_id != 0).then_some(info.cgroup_id))
}

/// The programs that are attached to this cgroup itself, by id.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) flags: u32,
    pub(super) programs: Vec<u32>,
}

pub(super) fn attached(cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Attached> {
    /// Up to the last field that any kernel writes to, asked for or not.
    #[repr(C)]
    struct Attributes {
        target: i32,
        hook: u32,
        query_flags: u32,
        attach_flags: u32,
        programs: *mut u32,
        count: u32,
        _padding: u32,
        program_flags: u64,
        links: u64,
        link_flags: u64,
        revision: u64,
    }
    let mut programs = [0_u32; 64];
    let mut attributes = Attributes {
        target: cgroup.as_raw_fd(),
        hook: hook as u32,
        query_flags: 0,
        attach_flags: 0,
        programs: programs.as_mut_ptr(),
        count: 64,
        _padding: 0,
        program_flags: 0,
        links: 0,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: the kernel writes at most `count` ids to `programs`, which outlives the call, and to no other pointer.
    unsafe { bpf(Command::ProgramQuery, &mut attributes) }?;
    let programs = programs.iter().copied().take(attributes.count as usize).collect();
    Ok(Attached { flags: attributes.attach_flags, programs })
}

/// A program that is attached as was done before there were links, and so tolerates no other there.
#[cfg(test)]
#[derive(Debug)]
pub(super) struct Exclusive<'a> {
    /// Of both commands.
    attributes: [i32; 4],
    _open: [BorrowedFd<'a>; 2],
}

#[cfg(test)]
impl<'a> Exclusive<'a> {
    pub(super) fn attach(program: BorrowedFd<'a>, cgroup: BorrowedFd<'a>, hook: Hook) -> io::Result<Self> {
        let mut attributes = [cgroup.as_raw_fd(), program.as_raw_fd(), hook as i32, 0];
        // SAFETY: these are the command's attributes, and none is a pointer.
        unsafe { bpf(Command::Attach, &mut attributes) }?;
        Ok(Exclusive { attributes, _open: [program, cgroup] })
    }
}

#[cfg(test)]
impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _or_it_goes_with_its_cgroup = unsafe { bpf(Command::Detach, &mut self.attributes) };
    }
}

/// Attributes of the two commands about pins.
#[repr(C)]
struct Pin {
    path: *const c_char,
    object: i32,
    flags: u32,
}

/// Keeps an object alive under a path on a bpffs.
pub(super) fn pin(path: &Path, object: BorrowedFd<'_>) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Pin { path: path.as_ptr(), object: object.as_raw_fd(), flags: 0 };
    // SAFETY: the path ends with a zero and outlives the call, which only reads it.
    unsafe { bpf(Command::Pin, &mut attributes) }.map(drop)
}

/// The object that is pinned under a path.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Pin { path: path.as_ptr(), object: 0, flags: 0 };
    // SAFETY: as above.
    let fd = unsafe { bpf(Command::Pinned, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// To wait until there is something to read.
pub(super) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays the same open descriptor for as long as it lives.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// # Safety
/// `attributes` must be laid out as the kernel's for this command, and its pointers be good for what the command does.
unsafe fn bpf<A>(command: Command, attributes: &mut A) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes `attributes` within its size, and the rest is the caller's word.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as u32, &raw mut *attributes, size_of::<A>()) };
    // A descriptor or 0; a descriptor fits.
    i32::try_from(result).ok().filter(|&result| result >= 0).ok_or_else(io::Error::last_os_error)
}
