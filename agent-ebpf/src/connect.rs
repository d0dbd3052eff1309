//! Inside connect(): who calls, and may it?

use agent_ebpf::{
    Counters, Destination, Kind, Lost, NAMESPACES_PER_GROUP, SOCKETS_PER_GROUP, Settings, caller_flags,
    settings_flags,
};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_NOEXIST, bpf_sock};
use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_current_pid_tgid,
    bpf_get_netns_cookie, bpf_ktime_get_boot_ns,
};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use aya_log_ebpf::debug;

use crate::group::{add, count, counters};
use crate::maps::{
    CALLER, COUNTERS, Client, DESTINATIONS, IMDS_ALLOWED, NAMESPACES, SETTINGS, WATCHED, lost,
};

const ALLOW: i32 = 1;
/// connect() fails with EPERM.
const REFUSE: i32 = 0;

const TCP: u32 = 6;

/// To an addition that wraps.
const MINUS_ONE: u64 = u64::MAX;

/// The third word of a v4-mapped address.
pub(crate) const MAPPED: u32 = 0xffff_u32.to_be();

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is the kernel's, and these are fields that connect4 may read. Each is read once and in its own
    // width; wider reads, into which the compiler would join them, are refused.
    let (address, call) = unsafe {
        let address = (&raw const (*ctx.sock_addr).user_ip4).read_volatile();
        ([0, 0, MAPPED, address], Call::read(&ctx))
    };
    connect(&ctx, address, &call)
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: as in connect4.
    let (address, call) = unsafe {
        let address = &raw const (*ctx.sock_addr).user_ip6;
        let word = |index: usize| address.cast::<u32>().add(index).read_volatile();
        ([word(0), word(1), word(2), word(3)], Call::read(&ctx))
    };
    connect(&ctx, address, &call)
}

/// What both contexts have in common.
struct Call {
    port: u32,
    protocol: u32,
    socket: *mut bpf_sock,
}

impl Call {
    /// # Safety
    /// The context must be the kernel's.
    #[inline(always)]
    unsafe fn read(ctx: &SockAddrContext) -> Call {
        // SAFETY: fields that connect4 and connect6 may read.
        unsafe {
            let port = (&raw const (*ctx.sock_addr).user_port).read_volatile();
            Call {
                port: u32::from(u16::from_be(port as u16)),
                protocol: (&raw const (*ctx.sock_addr).protocol).read_volatile(),
                socket: (&raw const (*ctx.sock_addr).__bindgen_anon_1.sk).read_volatile(),
            }
        }
    }
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, address: [u32; 4], call: &Call) -> i32 {
    if call.protocol != TCP {
        return ALLOW;
    }
    let destination = Destination { address, port: call.port };
    if WATCHED.get(destination.place()).is_none_or(|watched| *watched == 0) {
        return ALLOW;
    }
    // SAFETY: the agent alone writes this map, and never removes a destination.
    let Some(&kind) = (unsafe { DESTINATIONS.get(destination) }) else { return ALLOW };
    let Some(settings) = SETTINGS.get(0) else { return ALLOW };

    // SAFETY: helpers without preconditions; the second cookie is the initial namespace's.
    let (cgroup_id, netns, host_netns) = unsafe {
        let host = match settings.host_netns {
            0 => bpf_get_netns_cookie(core::ptr::null_mut()),
            cookie => cookie,
        };
        (bpf_get_current_cgroup_id(), bpf_get_netns_cookie(ctx.as_ptr()), host)
    };
    let pod = ancestor(settings, 2);
    let group = if pod == 0 { cgroup_id } else { pod };
    let counters = counters(group);
    let mut flags = 0;
    if netns == host_netns {
        flags |= caller_flags::HOST_NETWORK;
    }
    if kind == Kind::Imds as u32 {
        flags |= caller_flags::IMDS;
        count!(counters, imds_connects);
        if settings.flags & settings_flags::REFUSE_IMDS != 0
            && flags & caller_flags::HOST_NETWORK == 0
            && !imds_is_allowed(settings, cgroup_id, group)
        {
            count!(counters, imds_refused);
            if settings.flags & settings_flags::LOG != 0 {
                debug!(ctx, "cgroup {}: connect() to IMDS refused", cgroup_id);
            }
            return REFUSE;
        }
    } else {
        count!(counters, connects);
        if settings.flags & settings_flags::LEARN_NAMESPACES != 0 && flags & caller_flags::HOST_NETWORK == 0 {
            learn(netns, group, counters);
        }
    }

    let client = client(call.socket, group, counters);
    if client.is_null() {
        return ALLOW;
    }
    // SAFETY: a whole `Client`; the socket is locked by this connect(), so nobody else writes it. Field by field, because a
    // struct on the stack would be zeroed and copied by functions of their own.
    unsafe {
        (*client).opened.by.cgroup_id = cgroup_id;
        (*client).opened.by.group = group;
        (*client).opened.by.netns = netns;
        (*client).opened.at = bpf_ktime_get_boot_ns();
        (*client).opened.by.tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*client).opened.by.flags = flags;
    }
    ALLOW
}

/// The socket's entry in CALLER. Null: no memory, or the group has its share.
#[inline(always)]
fn client(socket: *mut bpf_sock, group: u64, counters: *mut Counters) -> *mut Client {
    let known = CALLER.get(socket);
    if !known.is_null() {
        return known;
    }
    // Without counters nothing is counted: COUNTERS is full of pods then, and nobody's doing.
    let is_counted = !counters.is_null();
    // Signed, because a number that falls twice for one socket must not lock its pod out, see `no_longer_counted`.
    // SAFETY: not null, hence a whole element of COUNTERS.
    if is_counted && unsafe { (*counters).sockets } >= SOCKETS_PER_GROUP {
        count!(counters, over_share);
        return core::ptr::null_mut();
    }
    let new = CALLER.get_or_create(socket, core::ptr::null());
    if is_counted && !new.is_null() {
        // SAFETY: a whole `Client`, whose socket is locked by this connect(), and a whole element of COUNTERS.
        let sockets = unsafe {
            (*new).holder = group;
            &raw mut (*counters).sockets
        };
        add(sockets.cast(), 1);
    }
    new
}

/// The last descriptor of a socket is closed. The entry stays until the connection is over: this kind of program may not delete
/// it. So a pod can have more of them than its share, by connections that it closes and whose peer keeps silent, which the
/// kernel bounds itself (tcp_max_orphans).
#[cgroup_sock(sock_release)]
pub(crate) fn release(ctx: SockContext) -> i32 {
    let client = CALLER.get(ctx.sock);
    if !client.is_null() {
        no_longer_counted(client);
    }
    ALLOW
}

/// For each socket once: at the end of its connection (which the sockets of MPTCP's subflows have alone: nobody ever had a
/// descriptor of them), else when it is closed (which sockets have that found no route, and so no connection began). When an
/// RST comes in the very nanoseconds of close(), both may see a holder, and one socket more is possible from then on; kernels
/// before 5.12 have no exchange for it.
#[inline(always)]
pub(crate) fn no_longer_counted(client: *mut Client) {
    // SAFETY: a whole `Client`.
    let holder = unsafe { core::mem::replace(&mut (*client).holder, 0) };
    // The numbers of a group that is gone are not made anew.
    if holder != 0
        && let Some(counters) = COUNTERS.get_ptr_mut(holder)
    {
        // SAFETY: a whole element of COUNTERS.
        let sockets = unsafe { &raw mut (*counters).sockets };
        add(sockets.cast(), MINUS_ONE);
    }
}

/// The id of the caller's ancestor cgroup so many levels below kubepods; 0 where it is not that deep.
#[inline(always)]
fn ancestor(settings: &Settings, below_kubepods: u32) -> u64 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_get_current_ancestor_cgroup_id((settings.kubepods_level + below_kubepods) as i32) }
}

#[inline(always)]
fn imds_is_allowed(settings: &Settings, cgroup_id: u64, group: u64) -> bool {
    IMDS_ALLOWED.get_ptr(cgroup_id).is_some()
        || IMDS_ALLOWED.get_ptr(group).is_some()
        || IMDS_ALLOWED.get_ptr(ancestor(settings, 1)).is_some()
}

/// Notes whose namespace this is. The first one is right: a node proxy that connects from inside it does so because the
/// pod did before.
#[inline(always)]
fn learn(netns: u64, group: u64, counters: *mut Counters) {
    if NAMESPACES.get_ptr(netns).is_some() {
        return;
    }
    // SAFETY: not null, hence a whole element of COUNTERS.
    let has_room = !counters.is_null() && unsafe { (*counters).namespaces } < NAMESPACES_PER_GROUP;
    if has_room && NAMESPACES.insert(netns, group, u64::from(BPF_NOEXIST)).is_ok() {
        // SAFETY: as above.
        add(unsafe { &raw mut (*counters).namespaces }, 1);
    } else if NAMESPACES.get_ptr(netns).is_none() {
        lost(Lost::Namespaces);
    }
}
