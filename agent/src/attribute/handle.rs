//! From a cgroup's id to the cgroup, without knowing where it is.
#![expect(unsafe_code, reason = "neither std nor rustix has a word for open_by_handle_at(2)")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The kernel's `struct file_handle` as kernfs fills it: the id is all that it holds.
#[repr(C)]
struct FileHandle {
    bytes: u32,
    kind: i32,
    id: u64,
}

/// FILEID_KERNFS of the kernel's include/linux/exportfs.h.
const KERNFS: i32 = 0xfe;

/// The cgroup with this id, wherever in the hierarchy that `mount` is of. A removed one is ESTALE.
pub(super) fn open_cgroup(mount: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    let handle = FileHandle { bytes: size_of::<u64>() as u32, kind: KERNFS, id };
    // SAFETY: the handle lives until the call returns, and its first field says how many bytes follow the second.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw const handle,
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    match i32::try_from(fd) {
        // SAFETY: the kernel made this descriptor for us just now, so nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}
