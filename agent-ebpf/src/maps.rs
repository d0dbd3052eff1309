//! What the programs keep, how much of it, and what happens when it is full.

use agent_ebpf::{
    Connection, Counters, Destination, LOST, Lost, Opened, PENDING_PER_GROUP, Pending, Settings,
};
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap};
use aya_ebpf::macros::btf_map;

use crate::storage::{INHERITED, PLAIN, SocketStorage};

/// Memory is taken for what is there, not for what could be.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// One element, written by the agent before anything is attached.
#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();

/// Whether a destination may be watched, by its place: 0 where none is. Every connect() on the node comes by here, and what
/// an array says costs next to nothing, while the map below hashes 20 bytes first.
#[btf_map]
pub(crate) static WATCHED: Array<u32, { agent_ebpf::WATCHED as usize }> = Array::new();

/// Which connections are watched: address and port → `Kind`. 64; the agent writes a handful, and is told when it is full.
#[btf_map]
pub(crate) static DESTINATIONS: HashMap<Destination, u32, 64, ON_DEMAND> = HashMap::new();

/// Cgroups that may use IMDS where pods are refused. 4,096; the agent writes them, and is told when it is full.
#[btf_map]
pub(crate) static IMDS_ALLOWED: HashMap<u64, u32, 4096, ON_DEMAND> = HashMap::new();

/// On a client's socket, until its connection is over: who called connect(). 1,024 open sockets of one group; beyond them,
/// and where the socket's option memory is used up (by its owner), a connection is not attributed.
#[btf_map]
pub(crate) static CALLER: SocketStorage<Client, PLAIN> = SocketStorage::new();

/// On the agent's listener, where it is empty, and by inheritance on what that accepts: here a caller is wanted. On an accepted
/// socket: who called connect() at the other end, or nobody (cgroup 0). As many as there are such sockets.
#[btf_map]
pub(crate) static ATTRIBUTED: SocketStorage<Opened, INHERITED> = SocketStorage::new();

/// Connections between the client's and the server's side of their handshakes. 65,536, and 64 of one group (see SLOTS), so
/// that it takes a thousand pods to fill it; then connections are not attributed, and counted in LOST.
#[btf_map]
pub(crate) static PENDING: HashMap<Connection, Pending, 65536, ON_DEMAND> = HashMap::new();

/// When each of a group's pending connections was entered, 0 for a free slot. A number that goes up and down would leak
/// with each entry that is not removed; a slot frees itself by age. 4,096 groups (2 MiB, taken at load); beyond them the
/// least recently used group starts anew, which gives it 64 more slots.
#[btf_map]
pub(crate) static SLOTS: LruHashMap<u64, Slots, 4096> = LruHashMap::new();

/// Network namespace's cookie → the group whose pod has it. 65,536 and 16 of one group, so that groups with counters
/// cannot fill it; what is not learned is counted in LOST.
#[btf_map]
pub(crate) static NAMESPACES: HashMap<u64, u64, 65536, ON_DEMAND> = HashMap::new();

/// Group → numbers. 4,096 groups, which the agent removes when their cgroups are gone. When it is full, the events of new
/// groups are counted in LOST alone.
#[btf_map]
pub(crate) static COUNTERS: HashMap<u64, Counters, 4096, ON_DEMAND> = HashMap::new();

/// What had no room, by `Lost`.
#[btf_map]
static LOST_EVENTS: Array<u64, { LOST as usize }> = Array::new();

/// Zeroes to copy new values from: on the stack they would need a memset, which is a function of its own to the verifier,
/// and the largest would fill the stack's 512 bytes.
#[btf_map]
pub(crate) static ZEROES: Array<Slots, 1> = Array::new();

pub(crate) type Slots = [u64; PENDING_PER_GROUP];
const _: () = assert!(size_of::<Counters>() <= size_of::<Slots>());

/// What is known about a client's socket.
#[repr(C)]
pub(crate) struct Client {
    pub(crate) opened: Opened,
    /// The entry in PENDING, where `slot_and_one` is not 0.
    pub(crate) connection: Connection,
    pub(crate) since: u64,
    pub(crate) slot_and_one: u64,
    /// The group that this is counted for; 0 once the socket is closed.
    pub(crate) holder: u64,
}

pub(crate) fn lost(what: Lost) {
    if let Some(number) = LOST_EVENTS.get_ptr_mut(what as u32) {
        crate::group::add(number, 1);
    }
}
