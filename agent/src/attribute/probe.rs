//! The kernel programs, loaded and attached, and what they know.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use agent_ebpf::{Caller, Counters, Kind, LATENCY_BOUNDS};
use agent_ebpf::{Connection, Destination, LOST, PENDING_FOR, Pending, Settings, settings_flags};
use aya::maps::{Array, HashMap, Map, MapData, MapError, SkStorage};
use aya::programs::{CgroupSockAddr, ProgramError, SockOps};
use aya::{Ebpf, EbpfLoader, Pod};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::clock::since_boot;

pub use error::ProbeError;
pub use log::ProbeLog;
use sys::Hook;

mod error;
mod log;
mod sys;

/// Made by `cargo xtask build-ebpf` from agent-ebpf, and checked against it in CI.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../agent-ebpf/probe.o"));

#[derive(Clone, Debug)]
pub struct ProbeConfig {
    /// The directory of the cgroup that holds all pods.
    pub kubepods: PathBuf,
    /// How deep that cgroup is; the root is 0.
    pub kubepods_level: u32,
    /// The directory of the cgroup that this process is in, in the same mount.
    pub agent_cgroup: PathBuf,
    /// Where on a bpffs programs and maps are pinned, so that they outlive this process.
    pub pins: Option<PathBuf>,
    /// The host's network namespace's cookie; None means the kernel's initial one.
    pub host_netns: Option<u64>,
    pub refuse_imds: bool,
    pub learn_namespaces: bool,
    /// Whether the programs write messages, see [`Probe::take_log`].
    pub log: bool,
}

/// The programs run for as long as this lives.
pub struct Probe {
    attached_to: Vec<Place>,
    links: Mutex<Vec<Option<OwnedFd>>>,
    log: Mutex<Option<ProbeLog>>,
    destinations: Mutex<HashMap<MapData, Destination, u32>>,
    imds_allowed: Mutex<HashMap<MapData, u64, u32>>,
    marker: Mutex<SkStorage<MapData, u32>>,
    attributed: SkStorage<MapData, Caller>,
    pending: Mutex<HashMap<MapData, Connection, Pending>>,
    namespaces: Mutex<HashMap<MapData, u64, u64>>,
    counters: Mutex<HashMap<MapData, u64, Counters>>,
    lost: Array<MapData, u64>,
}

/// One program at one cgroup.
struct Place {
    program: &'static str,
    hook: Hook,
    cgroup: PathBuf,
    fd: OwnedFd,
}

/// What had no room in the programs' maps since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostEvents {
    /// Events of groups that have no counters.
    pub counters: u64,
    /// Connections not attributed.
    pub pending: u64,
    /// Network namespaces not learned.
    pub namespaces: u64,
}

/// What [`Probe::maintain`] found.
#[derive(Debug)]
pub enum Upkeep {
    /// Somebody detached the program, or the cgroup was removed and made anew; it is attached again.
    Reattached { program: &'static str, cgroup: PathBuf },
    /// Something did not work; the next call tries again.
    Failed { error: ProbeError },
    /// Connections whose server side never came; they are forgotten.
    Expired { connections: usize },
}

impl Probe {
    pub fn load(config: &ProbeConfig) -> Result<Probe, ProbeError> {
        raise_locked_memory();
        let mut object = EbpfLoader::new().load(OBJECT).map_err(ProbeError::loading)?;
        let mut settings: Array<MapData, Settings> = map(&mut object, "SETTINGS")?;
        settings
            .set(0, settings_of(config), 0)
            .map_err(|source| ProbeError::Map { map: "SETTINGS", source })?;

        // connect4 and connect6 last: what they write down is read by the other one.
        let mut attached_to = Vec::new();
        for cgroup in sock_ops_cgroups(&config.kubepods, &config.agent_cgroup) {
            let fd = load_sock_ops(&mut object)?;
            attached_to.push(Place {
                program: HANDSHAKE,
                hook: Hook::SockOps,
                cgroup: cgroup.to_owned(),
                fd,
            });
        }
        for (program, hook) in [("connect4", Hook::Connect4), ("connect6", Hook::Connect6)] {
            let fd = load_connect(&mut object, program)?;
            attached_to.push(Place { program, hook, cgroup: config.kubepods.clone(), fd });
        }
        let log = ProbeLog::open(&mut object)?;
        let probe = Probe {
            links: Mutex::new(Vec::new()),
            log: Mutex::new(Some(log)),
            destinations: Mutex::new(map(&mut object, "DESTINATIONS")?),
            imds_allowed: Mutex::new(map(&mut object, "IMDS_ALLOWED")?),
            marker: Mutex::new(map(&mut object, "MARKER")?),
            attributed: map(&mut object, "ATTRIBUTED")?,
            pending: Mutex::new(map(&mut object, "PENDING")?),
            namespaces: Mutex::new(map(&mut object, "NAMESPACES")?),
            counters: Mutex::new(map(&mut object, "COUNTERS")?),
            lost: map(&mut object, "LOST_EVENTS")?,
            attached_to,
        };
        let links: Result<Vec<_>, _> =
            probe.attached_to.iter().map(|place| place.attach().map(Some)).collect();
        *lock(&probe.links) = links?;
        Ok(probe)
    }

    /// From here on connections to this address are watched.
    pub fn watch(&self, address: SocketAddr, kind: Kind) -> Result<(), ProbeError> {
        insert("DESTINATIONS", &self.destinations, destination(address), kind as u32)
    }

    /// Wants the callers of all connections that this listener accepts. Before listen(): a connection that is there already
    /// is not attributed.
    pub fn mark(&self, listener: &impl AsFd) -> Result<(), ProbeError> {
        lock(&self.marker)
            .insert(&listener.as_fd().as_raw_fd(), 1, 0)
            .map_err(|source| ProbeError::Map { map: "MARKER", source })
    }

    /// Who called connect() at the other end of this accepted socket. None: not a process below the cgroup that the programs
    /// are attached to, or one of the reasons in [`LostEvents`].
    pub fn caller(&self, accepted: &impl AsFd) -> Result<Option<Caller>, ProbeError> {
        found("ATTRIBUTED", self.attributed.get(&accepted.as_fd().as_raw_fd(), 0))
    }

    /// The group (see [`Caller::group`]) whose pod has this network namespace.
    pub fn namespace_owner(&self, cookie: u64) -> Result<Option<u64>, ProbeError> {
        found("NAMESPACES", lock(&self.namespaces).get(&cookie, 0))
    }

    pub fn forget_namespace(&self, cookie: u64) -> Result<(), ProbeError> {
        found("NAMESPACES", lock(&self.namespaces).remove(&cookie)).map(drop)
    }

    /// The numbers of every group that has any.
    pub fn counters(&self) -> Result<Vec<(u64, Counters)>, ProbeError> {
        entries("COUNTERS", &self.counters)
    }

    /// Makes room for another group's numbers. For groups whose cgroup is gone.
    pub fn forget_group(&self, group: u64) -> Result<(), ProbeError> {
        found("COUNTERS", lock(&self.counters).remove(&group)).map(drop)
    }

    /// Lets a cgroup, and those below it, use IMDS where pods are refused. It must be a pod's, a container's or the caller's
    /// own.
    pub fn allow_imds(&self, cgroup: u64) -> Result<(), ProbeError> {
        insert("IMDS_ALLOWED", &self.imds_allowed, cgroup, 1)
    }

    pub fn deny_imds(&self, cgroup: u64) -> Result<(), ProbeError> {
        found("IMDS_ALLOWED", lock(&self.imds_allowed).remove(&cgroup)).map(drop)
    }

    pub fn lost(&self) -> Result<LostEvents, ProbeError> {
        let mut numbers = [0; LOST as usize];
        for (index, number) in (0..LOST).zip(&mut numbers) {
            *number =
                self.lost.get(&index, 0).map_err(|source| ProbeError::Map { map: "LOST_EVENTS", source })?;
        }
        let [counters, pending, namespaces] = numbers;
        Ok(LostEvents { counters, pending, namespaces })
    }

    /// The programs' messages; once.
    pub fn take_log(&self) -> Option<ProbeLog> {
        lock(&self.log).take()
    }

    /// To be called every few seconds: attaches what was detached, and forgets what nobody will ask for.
    pub fn maintain(&self) -> Vec<Upkeep> {
        let mut found = self.reattach();
        match self.expire(since_boot().as_nanos() as u64) {
            Ok(0) => {}
            Ok(connections) => found.push(Upkeep::Expired { connections }),
            Err(error) => found.push(Upkeep::Failed { error }),
        }
        found
    }

    /// Detaches all programs, until [`Probe::maintain`] attaches them again.
    pub fn detach(&self) -> Result<(), ProbeError> {
        let links = lock(&self.links);
        for (place, link) in self.attached_to.iter().zip(links.iter()) {
            if let Some(link) = link {
                sys::link_detach(link.as_fd()).map_err(|source| place.error(source))?;
            }
        }
        Ok(())
    }

    fn reattach(&self) -> Vec<Upkeep> {
        let mut found = Vec::new();
        for (place, link) in self.attached_to.iter().zip(lock(&self.links).iter_mut()) {
            let is_attached =
                link.as_ref().is_some_and(|link| matches!(sys::link_cgroup(link.as_fd()), Ok(Some(_))));
            if is_attached {
                continue;
            }
            match place.attach() {
                Ok(new) => {
                    *link = Some(new);
                    found.push(Upkeep::Reattached { program: place.program, cgroup: place.cgroup.clone() });
                }
                Err(error) => {
                    *link = None;
                    found.push(Upkeep::Failed { error });
                }
            }
        }
        found
    }

    fn expire(&self, now: u64) -> Result<usize, ProbeError> {
        let mut expired = 0;
        for (connection, pending) in entries("PENDING", &self.pending)? {
            if now.saturating_sub(pending.since) > PENDING_FOR {
                found("PENDING", lock(&self.pending).remove(&connection))?;
                expired += 1;
            }
        }
        Ok(expired)
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = self.attached_to.iter().map(|place| (place.program, &place.cgroup));
        f.debug_map().entries(places).finish()
    }
}

impl Place {
    fn attach(&self) -> Result<OwnedFd, ProbeError> {
        let cgroup = File::open(&self.cgroup)
            .map_err(|source| ProbeError::Cgroup { path: self.cgroup.clone(), source })?;
        sys::link_create(self.fd.as_fd(), cgroup.as_fd(), self.hook).map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> ProbeError {
        ProbeError::attaching(self.program, self.hook, self.cgroup.clone(), source)
    }
}

const HANDSHAKE: &str = "handshake";

fn load_sock_ops(object: &mut Ebpf) -> Result<OwnedFd, ProbeError> {
    let program: &mut SockOps = program(object, HANDSHAKE)?;
    if program.fd().is_err() {
        program.load().map_err(|error| ProbeError::program(HANDSHAKE, error))?;
    }
    let fd = program.fd().map_err(|error| ProbeError::program(HANDSHAKE, error))?;
    duplicate(HANDSHAKE, fd)
}

fn load_connect(object: &mut Ebpf, name: &'static str) -> Result<OwnedFd, ProbeError> {
    let program: &mut CgroupSockAddr = program(object, name)?;
    program.load().map_err(|error| ProbeError::program(name, error))?;
    let fd = program.fd().map_err(|error| ProbeError::program(name, error))?;
    duplicate(name, fd)
}

fn duplicate(name: &'static str, fd: &impl AsFd) -> Result<OwnedFd, ProbeError> {
    fd.as_fd().try_clone_to_owned().map_err(|error| ProbeError::program(name, ProgramError::IOError(error)))
}

fn program<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, ProbeError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = object.program_mut(name).ok_or_else(|| ProbeError::Object(format!("no program {name}")))?;
    program.try_into().map_err(|error| ProbeError::program(name, error))
}

fn map<M: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, name: &'static str) -> Result<M, ProbeError> {
    let map = object.take_map(name).ok_or_else(|| ProbeError::Object(format!("no map {name}")))?;
    M::try_from(map).map_err(|source| ProbeError::Map { map: name, source })
}

/// Where sock_ops must be so that it sees the sockets of the pods and of this process, each once: a program runs for all
/// cgroups below its own, too.
fn sock_ops_cgroups<'a>(kubepods: &'a Path, agent: &'a Path) -> Vec<&'a Path> {
    if agent.starts_with(kubepods) {
        vec![kubepods]
    } else if kubepods.starts_with(agent) {
        vec![agent]
    } else {
        vec![kubepods, agent]
    }
}

fn settings_of(config: &ProbeConfig) -> Settings {
    let flags = [
        (config.refuse_imds, settings_flags::REFUSE_IMDS),
        (config.learn_namespaces, settings_flags::LEARN_NAMESPACES),
        (config.log, settings_flags::LOG),
    ];
    Settings {
        host_netns: config.host_netns.unwrap_or_default(),
        kubepods_level: config.kubepods_level,
        flags: flags.iter().filter(|(on, _)| *on).fold(0, |flags, (_, flag)| flags | flag),
    }
}

fn destination(address: SocketAddr) -> Destination {
    let octets = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(octets.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    Destination { address: words, port: address.port().into() }
}

/// Before Linux 5.11 what maps take counts against this limit, 64 KiB by default. Where it may not be raised, it may not
/// matter either; if it does, creating the maps fails and says so.
fn raise_locked_memory() {
    let unlimited = Rlimit { current: None, maximum: None };
    if setrlimit(Resource::Memlock, unlimited).is_err() {
        let maximum = getrlimit(Resource::Memlock).maximum;
        let _as_it_was = setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum });
    }
}

fn insert<K: Pod, V: Pod>(
    name: &'static str,
    map: &Mutex<HashMap<MapData, K, V>>,
    key: K,
    value: V,
) -> Result<(), ProbeError> {
    let mut map = lock(map);
    map.insert(key, value, 0).map_err(|source| match &source {
        MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
            ProbeError::Full { map: name, entries: map.keys().count() }
        }
        _ => ProbeError::Map { map: name, source },
    })
}

/// What is not there is no error.
fn found<T>(map: &'static str, result: Result<T, MapError>) -> Result<Option<T>, ProbeError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(source) => Err(ProbeError::Map { map, source }),
    }
}

/// All entries; those that come and go meanwhile may be missing.
fn entries<K: Pod, V: Pod>(
    name: &'static str,
    map: &Mutex<HashMap<MapData, K, V>>,
) -> Result<Vec<(K, V)>, ProbeError> {
    let map = lock(map);
    let mut entries = Vec::new();
    for key in map.keys() {
        let Some(key) = found(name, key)? else { break };
        if let Some(value) = found(name, map.get(&key, 0))? {
            entries.push((key, value));
        }
    }
    Ok(entries)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
