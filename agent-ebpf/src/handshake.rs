//! From the client's socket to the server's: both sides of one handshake.

use agent_ebpf::{
    Connection, Counters, Destination, LATENCY_BOUNDS, Lost, Opened, Pending, caller_flags, settings_flags,
};
use aya_ebpf::bindings::{
    BPF_ANY, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT, bpf_sock,
    bpf_sock_ops,
};
use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_sock_ops_cb_flags_set};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;

use crate::connect::{MAPPED, no_longer_counted};
use crate::group::{add, count, counters, free_slot, take_slot};
use crate::maps::{ATTRIBUTED, CALLER, Client, DESTINATIONS, PENDING, SETTINGS, lost};

/// What sock_ops programs give back: other programs' replies stay as they are.
const DONE: u32 = 1;

const INET6: u32 = 10;
const SYN_ACK: u32 = 0x12;

/// Reads a field of the context, once and in its own width, where it stands: the compiler must neither join reads nor move
/// them behind a branch, where it would compute the address first ("dereference of modified ctx ptr").
macro_rules! read {
    ($ops:ident . $($field:tt)+) => {
        // SAFETY: the context is the kernel's, and sock_ops may read these fields.
        unsafe { (&raw const (*$ops).$($field)+).read_volatile() }
    };
}

// Not named after its type: a function `sockops` would be the section of that name.
#[sock_ops]
pub(crate) fn handshake(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    let op = read!(ops.op);
    let socket = read!(ops.__bindgen_anon_2.sk);
    if socket.is_null() {
        return DONE;
    }
    if op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        let attributed = ATTRIBUTED.get(socket);
        if !attributed.is_null() {
            server_established(&ctx, attributed);
        }
    } else if op == BPF_SOCK_OPS_TCP_CONNECT_CB
        || op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        // The other changes are on the way: that the server is done is told while the server's processor sends its FIN.
        || op == BPF_SOCK_OPS_STATE_CB && read!(ops.__bindgen_anon_1.args[1]) == BPF_TCP_CLOSE
    {
        let client = CALLER.get(socket);
        if !client.is_null() {
            if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
                client_connects(ops, socket, client);
            } else if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
                client_established(&ctx, client);
            } else {
                client_closes(ops, socket, client);
            }
        }
    }
    DONE
}

/// The client is about to send its SYN.
#[inline(always)]
fn client_connects(ops: *mut bpf_sock_ops, socket: *mut bpf_sock, client: *mut Client) {
    let flags = read!(ops.bpf_sock_ops_cb_flags);
    let ends = Ends::read(ops);
    // A socket that was connected to us, disconnected (AF_UNSPEC) and goes elsewhere now.
    if DESTINATIONS.get_ptr(Destination { address: ends.remote, port: ends.remote_port }).is_none() {
        no_longer_counted(client);
        CALLER.delete(socket);
        return;
    }
    // The call replaces all flags: others' must be kept.
    let flags = flags | BPF_SOCK_OPS_STATE_CB_FLAG;
    // SAFETY: the context is the kernel's.
    unsafe { bpf_sock_ops_cb_flags_set(ops, flags as i32) };
}

/// The client has the server's SYN|ACK. Its answer, which completes the server's side, is not sent yet.
#[inline(always)]
fn client_established(ctx: &SockOpsContext, client: *mut Client) {
    let ops = ctx.ops;
    let tcp_flags = read!(ops.skb_tcp_flags);
    // What the server acknowledged: unlike snd_nxt it is the same number on both sides when the SYN carried data.
    let client_sequence = read!(ops.snd_una);
    let server_sequence = read!(ops.rcv_nxt);
    let ends = Ends::read(ops);
    // TCP_REPAIR makes a socket established without any handshake, and that without a privilege over this network.
    if tcp_flags & SYN_ACK != SYN_ACK {
        return;
    }
    // SAFETY: `client` is a whole `Client`, and its socket is locked here.
    let opened = unsafe { (*client).opened };
    let caller = opened.by;
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let counters = counters(caller.group);
    if caller.flags & caller_flags::IMDS != 0 {
        count!(counters, imds_established);
        return;
    }
    count!(counters, established);
    if !counters.is_null() {
        note_latency(counters, now.saturating_sub(opened.at));
    }

    let Some(slot) = take_slot(caller.group, now) else {
        count!(counters, over_share);
        if logs() {
            debug!(ctx, "cgroup {}: too many connections pending, one is not attributed", caller.cgroup_id);
        }
        return;
    };
    // SAFETY: as above. The key is written field by field, where it stays: the entry is removed by it at close.
    let connection = unsafe {
        let connection = &raw mut (*client).connection;
        (*connection).client = ends.local;
        (*connection).server = ends.remote;
        (*connection).client_port = ends.local_port;
        (*connection).server_port = ends.remote_port;
        (*connection).client_sequence = client_sequence;
        (*connection).server_sequence = server_sequence;
        (*client).since = now;
        (*client).slot_and_one = slot + 1;
        &*connection
    };
    let pending = Pending { opened, since: now, slot };
    // In the place of any other: in a namespace of its own a pod can choose addresses, ports and sequence numbers, and so
    // enter what it guesses to be another's next connection. Whose handshake is just done is right.
    if PENDING.insert(connection, &pending, u64::from(BPF_ANY)).is_err() {
        free_slot(caller.group, slot, now);
        lost(Lost::Pending);
    }
}

/// The server's side is done, and accept() cannot return this socket before we do.
#[inline(always)]
fn server_established(ctx: &SockOpsContext, attributed: *mut Opened) {
    let ops = ctx.ops;
    let server_sequence = read!(ops.snd_nxt);
    let client_sequence = read!(ops.rcv_nxt);
    let ends = Ends::read(ops);
    let connection = Connection {
        client: ends.remote,
        server: ends.local,
        client_port: ends.remote_port,
        server_port: ends.local_port,
        client_sequence,
        server_sequence,
    };
    let Some(pending) = PENDING.get_ptr(&connection) else {
        if logs() {
            debug!(ctx, "port {}: no caller is known for this connection", ends.remote_port);
        }
        return;
    };
    // SAFETY: a whole `Pending`, that of another connection at worst, see below.
    let (slot, since, opened) = unsafe { ((*pending).slot, (*pending).since, (*pending).opened) };
    // An entry that is removed or replaced leaves its memory to another's at once. That it is still found where it was
    // after the copy, and that we are the one to remove it, proves that the copy is of this connection's caller.
    let is_still_there = PENDING.get_ptr(&connection).is_some_and(|now| core::ptr::eq(now, pending));
    if !is_still_there || PENDING.remove(&connection).is_err() {
        return;
    }
    // SAFETY: a whole `Opened`, and its socket is locked here.
    unsafe { *attributed = opened };
    free_slot(opened.by.group, slot, since);
    if logs() {
        debug!(ctx, "port {}: opened by cgroup {}", ends.remote_port, opened.by.cgroup_id);
    }
}

/// The client's connection is over.
#[inline(always)]
fn client_closes(ops: *mut bpf_sock_ops, socket: *mut bpf_sock, client: *mut Client) {
    let old = read!(ops.__bindgen_anon_1.args[0]);
    let segments_in = read!(ops.segs_in);
    // SAFETY: `client` is a whole `Client`, and its socket is locked here.
    let (group, flags, since, slot_and_one) = unsafe {
        ((*client).opened.by.group, (*client).opened.by.flags, (*client).since, (*client).slot_and_one)
    };
    if old == BPF_TCP_SYN_SENT && flags & caller_flags::IMDS == 0 {
        let counters = counters(group);
        // Whatever came in while nothing but the SYN was out was a reset. Retransmissions do not tell: a client may give up
        // before the first one.
        if segments_in > 0 {
            count!(counters, refused);
        } else {
            count!(counters, timed_out);
        }
    }
    if slot_and_one != 0 {
        // SAFETY: as above.
        let connection = unsafe {
            (*client).slot_and_one = 0;
            &(*client).connection
        };
        if PENDING.remove(connection).is_ok() {
            free_slot(group, slot_and_one - 1, since);
        }
    }
    no_longer_counted(client);
    CALLER.delete(socket);
}

#[inline(always)]
fn note_latency(counters: *mut Counters, nanoseconds: u64) {
    let mut bucket = 0;
    while bucket < LATENCY_BOUNDS.len() && nanoseconds > LATENCY_BOUNDS[bucket] {
        bucket += 1;
    }
    // SAFETY: a whole element of COUNTERS; there is one bucket more than bounds.
    unsafe {
        add(&raw mut (*counters).latency_sum, nanoseconds);
        add(&raw mut (*counters).latency[bucket], 1);
    }
}

#[inline(always)]
fn logs() -> bool {
    SETTINGS.get(0).is_some_and(|settings| settings.flags & settings_flags::LOG != 0)
}

/// Both ends of a socket's connection; addresses as IPv6 or v4-mapped, ports in host byte order.
struct Ends {
    local: [u32; 4],
    remote: [u32; 4],
    local_port: u32,
    remote_port: u32,
}

impl Ends {
    #[inline(always)]
    fn read(ops: *mut bpf_sock_ops) -> Ends {
        let family = read!(ops.family);
        let local_port = read!(ops.local_port);
        // This one is in network byte order, in the upper half.
        let remote_port = u32::from_be(read!(ops.remote_port));
        let (local4, remote4) = (read!(ops.local_ip4), read!(ops.remote_ip4));
        let local6 = [
            read!(ops.local_ip6[0]),
            read!(ops.local_ip6[1]),
            read!(ops.local_ip6[2]),
            read!(ops.local_ip6[3]),
        ];
        let remote6 = [
            read!(ops.remote_ip6[0]),
            read!(ops.remote_ip6[1]),
            read!(ops.remote_ip6[2]),
            read!(ops.remote_ip6[3]),
        ];
        // A v6 socket with a v4 peer has mapped addresses, and only those on both sides make one connection.
        match family {
            INET6 => Ends { local: local6, remote: remote6, local_port, remote_port },
            _ => Ends {
                local: [0, 0, MAPPED, local4],
                remote: [0, 0, MAPPED, remote4],
                local_port,
                remote_port,
            },
        }
    }
}
