//! What the kernel programs and the agent tell each other.
//!
//! Every type is `#[repr(C)]` without padding: the kernel compares and hashes keys byte by byte, and what it copies to
//! user space must be initialised.
#![no_std]

/// Why connections to a destination are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    /// The agent's own listener: connections are attributed.
    Credentials = 1,
    /// The instance metadata service: connections are counted, and refused where the settings say so.
    Imds = 2,
}

/// Key of DESTINATIONS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Destination {
    /// IPv6 or v4-mapped, in network byte order.
    pub address: [u32; 4],
    /// In host byte order.
    pub port: u32,
}

impl Destination {
    /// Its place in WATCHED. Of the last word and the port, in which destinations differ.
    #[inline(always)]
    pub fn place(&self) -> u32 {
        const GOLDEN_RATIO: u32 = 0x9e37_79b1;
        (self.address[3] ^ self.port).wrapping_mul(GOLDEN_RATIO) >> (u32::BITS - WATCHED.ilog2())
    }
}

/// Places of WATCHED. A power of two, so many that few destinations of others share one with ours.
pub const WATCHED: u32 = 256;

/// Who called connect(), as it was inside that call. Of 32 bytes: since Linux 5.12, only for the value of a socket option that
/// is larger does the kernel allocate memory, each time that it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Caller {
    pub cgroup_id: u64,
    /// What the limits and counters go by: the ancestor cgroup two levels below kubepods, or the cgroup itself where it is
    /// no deeper. That is the pod for a burstable or best-effort one and the container for a guaranteed one; what lies
    /// below it is made by containers as they like.
    pub group: u64,
    /// The network namespace's cookie.
    pub netns: u64,
    pub tgid: u32,
    /// [`caller_flags`].
    pub flags: u32,
}

/// One connect() call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Opened {
    pub by: Caller,
    /// In nanoseconds since boot (suspended time included).
    pub at: u64,
}

pub mod caller_flags {
    /// The socket is in the host's network namespace.
    pub const HOST_NETWORK: u32 = 1;
    /// The destination is of [`Kind::Imds`](super::Kind::Imds).
    pub const IMDS: u32 = 2;
}

impl Caller {
    pub fn host_network(&self) -> bool {
        self.flags & caller_flags::HOST_NETWORK != 0
    }
}

/// The socket option whose value is the [`Caller`]: for the agent alone, and no kernel's own.
pub const CALLER_LEVEL: i32 = i32::from_ne_bytes(*b"podc");
pub const CALLER_OPTION: i32 = 1;

/// Key of PENDING: a connection as its client sees it. Both sides' initial sequence numbers are in it: two network namespaces
/// may have the same addresses and ports, and one may use them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Connection {
    pub client: [u32; 4],
    pub server: [u32; 4],
    pub client_port: u32,
    pub server_port: u32,
    /// The first sequence number after the SYN that the client sent, and after the one that the server sent.
    pub client_sequence: u32,
    pub server_sequence: u32,
}

/// Value of PENDING: a client whose handshake is done, waiting for the server's side of it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Pending {
    pub opened: Opened,
    /// In nanoseconds since boot.
    pub since: u64,
    /// Which of its group's slots it holds.
    pub slot: u64,
}

/// How many connections of one group may be pending at once. Between both sides' callbacks lie microseconds; more than
/// these are handshakes held back on purpose, or a listener whose queue is full.
pub const PENDING_PER_GROUP: usize = 64;

/// How many open sockets of one group may be connected, or be connecting, to a destination. The kernel charges what is
/// written on a socket to whoever made the map, which is the agent: about 400 bytes each.
pub const SOCKETS_PER_GROUP: i64 = 1_024;

/// After this time a pending connection is given up, in nanoseconds.
pub const PENDING_FOR: u64 = 30_000_000_000;

/// How many network namespaces one group may be learned with in its life. A pod has one.
pub const NAMESPACES_PER_GROUP: u64 = 16;

/// Upper bounds of the connect latency's buckets, in nanoseconds; one more bucket takes the rest.
pub const LATENCY_BOUNDS: [u64; 16] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
];

/// Value of COUNTERS, one for each group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Calls of connect() towards the agent, and what came of them.
    pub connects: u64,
    pub established: u64,
    /// Answered by a reset: nobody listened.
    pub refused: u64,
    /// Given up without any answer, by the kernel or by the client.
    pub timed_out: u64,
    /// Not attributed, because the group had its share already: of pending connections or of sockets.
    pub over_share: u64,
    pub imds_connects: u64,
    pub imds_established: u64,
    pub imds_refused: u64,
    /// Network namespaces learned, see [`NAMESPACES_PER_GROUP`].
    pub namespaces: u64,
    /// Sockets that have an entry in CALLER now, see [`SOCKETS_PER_GROUP`]. The one number that also falls.
    pub sockets: i64,
    /// From connect() until the client's side is established, in nanoseconds.
    pub latency_sum: u64,
    /// Not cumulative.
    pub latency: [u64; LATENCY_BOUNDS.len() + 1],
}

/// Indices of LOST: what had no room in a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Lost {
    /// Events of groups that have no counters.
    Counters = 0,
    /// Connections not attributed because PENDING was full.
    Pending = 1,
    /// Network namespaces not learned.
    Namespaces = 2,
}

pub const LOST: u32 = 3;

/// The only element of SETTINGS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// The host's network namespace's cookie; 0 means the kernel's initial one.
    pub host_netns: u64,
    /// How deep the kubepods cgroup is; the root is 0.
    pub kubepods_level: u32,
    /// [`settings_flags`].
    pub flags: u32,
}

pub mod settings_flags {
    /// connect() to IMDS fails with EPERM outside the host's network namespace.
    pub const REFUSE_IMDS: u32 = 1;
    /// NAMESPACES is filled.
    pub const LEARN_NAMESPACES: u32 = 2;
    /// The programs write log messages.
    pub const LOG: u32 = 4;
}

const _: () = {
    assert!(size_of::<Destination>() == 20);
    assert!(size_of::<Caller>() == 32);
    assert!(size_of::<Opened>() == 40);
    assert!(size_of::<Connection>() == 48);
    assert!(size_of::<Pending>() == 56);
    assert!(size_of::<Counters>() == 28 * 8);
    assert!(size_of::<Settings>() == 16);
};

#[cfg(not(target_arch = "bpf"))]
mod pod {
    #![expect(unsafe_code, reason = "aya copies these types from and to the kernel's maps")]
    // SAFETY: all of them are `#[repr(C)]` made of integers alone, without padding: the sizes above are the sums of
    // their fields. Any bytes are a valid value.
    unsafe impl aya::Pod for super::Destination {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Opened {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Connection {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Pending {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Settings {}
}
