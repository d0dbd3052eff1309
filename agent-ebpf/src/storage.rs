//! Values that live on a socket and end with it.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::{bpf_sk_storage_delete, bpf_sk_storage_get};

/// The kernel demands this one of every socket storage.
pub(crate) const PLAIN: usize = BPF_F_NO_PREALLOC as usize;
/// A socket that a listener accepts starts with a copy of the listener's value.
pub(crate) const INHERITED: usize = (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize;

/// The definition of a socket storage map, as the loader reads it off the BTF. aya's own knows neither sock_ops nor flags.
#[repr(C)]
pub(crate) struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields only carry types to the loader; nobody reads or writes them.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SocketStorage<T, FLAGS> {
    pub(crate) const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    fn map(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// The socket's value, or null. `socket` must come from the program's context and not be null.
    #[inline(always)]
    pub(crate) fn get(&self, socket: *mut bpf_sock) -> *mut T {
        // SAFETY: the verifier checks that both pointers are what the helper wants.
        unsafe { bpf_sk_storage_get(self.map(), socket.cast(), ptr::null_mut(), 0) }.cast()
    }

    /// The socket's value, made from `initial` (or zeroed, if null) where there was none. Null: no memory.
    #[inline(always)]
    pub(crate) fn get_or_create(&self, socket: *mut bpf_sock, initial: *const T) -> *mut T {
        let create = u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE);
        // SAFETY: as above; `initial` is read for the size of a `T`, which the verifier checks too.
        unsafe { bpf_sk_storage_get(self.map(), socket.cast(), initial.cast_mut().cast(), create) }.cast()
    }

    #[inline(always)]
    pub(crate) fn delete(&self, socket: *mut bpf_sock) {
        // SAFETY: as above. That there is no value is fine.
        unsafe { bpf_sk_storage_delete(self.map(), socket.cast()) };
    }
}
