//! The kernel programs, loaded and attached, and what they know.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use agent_ebpf::{Connection, Destination, Lost, PENDING_FOR, Pending, Settings, settings_flags};
use aya::EbpfLoader;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::clock::since_boot;
use crate::locks::lock;
use crate::sockopt;

pub use agent_ebpf::{Caller, Counters, Kind, LATENCY_BOUNDS, Opened};
pub use attach::Tried;
pub use error::ProbeError;
pub use log::ProbeLog;

use attach::Attachments;
use pins::Pins;
use table::{OnSockets, Row, Table};

mod attach;
mod error;
mod log;
pub mod pins;
mod sys;
mod table;
#[cfg(test)]
mod tests;

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

impl ProbeConfig {
    /// For the node's own network, with nothing refused, learned, logged or pinned.
    pub fn new(kubepods: PathBuf, kubepods_level: u32, agent_cgroup: PathBuf) -> ProbeConfig {
        ProbeConfig {
            kubepods,
            kubepods_level,
            agent_cgroup,
            pins: None,
            host_netns: None,
            refuse_imds: false,
            learn_namespaces: false,
            log: false,
        }
    }
}

/// The programs run for as long as this lives, and longer where they are pinned.
pub struct Probe {
    attachments: Attachments,
    pins: Option<Pins>,
    log: Mutex<Option<ProbeLog>>,
    watched: Row<u32>,
    destinations: Table<Destination, u32>,
    imds_allowed: Table<u64, u32>,
    attributed: OnSockets<Opened>,
    pending: Table<Connection, Pending>,
    namespaces: Table<u64, u64>,
    counters: Table<u64, Counters>,
    lost: Row<u64>,
    settings: Row<Settings>,
    wanted: Settings,
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

/// Of a listener, and of what it accepts until the kernel programs know better.
const NOBODY: Opened = Opened { by: Caller { cgroup_id: 0, group: 0, netns: 0, tgid: 0, flags: 0 }, at: 0 };

impl Probe {
    pub fn load(config: &ProbeConfig) -> Result<Probe, ProbeError> {
        raise_locked_memory();
        let pins = config.pins.as_deref().map(|root| Pins::of(OBJECT, root));
        let locked = pins.as_ref().map(Pins::lock).transpose()?;
        let mut loader = EbpfLoader::new();
        if let Some(pins) = &locked {
            pins.use_maps(&mut loader);
        }
        let mut object = loader.load(OBJECT).map_err(ProbeError::loading)?;
        // Before anything is attached: the programs go by them. And held until they are loaded.
        let settings = Row::take(&mut object, "SETTINGS")?;
        let wanted = settings_of(config);
        settings.set(0, wanted)?;
        let attachments = Attachments::make(&mut object, config, locked.as_ref())?;
        if let Some(pins) = &locked {
            pins.remove_other_versions()?;
        }
        drop(locked);
        Ok(Probe {
            attachments,
            log: Mutex::new(Some(ProbeLog::open(&mut object)?)),
            watched: Row::take(&mut object, "WATCHED")?,
            destinations: Table::take(&mut object, "DESTINATIONS")?,
            imds_allowed: Table::take(&mut object, "IMDS_ALLOWED")?,
            attributed: OnSockets::take(&mut object, "ATTRIBUTED")?,
            pending: Table::take(&mut object, "PENDING")?,
            namespaces: Table::take(&mut object, "NAMESPACES")?,
            counters: Table::take(&mut object, "COUNTERS")?,
            lost: Row::take(&mut object, "LOST_EVENTS")?,
            settings,
            wanted,
            pins,
        })
    }

    /// Where [`Probe::load`] fails: what comes of each program by itself. Nothing stays attached, and for as long as they are
    /// the programs do nothing: no destination is watched.
    pub fn try_each(config: &ProbeConfig) -> Result<Vec<Tried>, ProbeError> {
        raise_locked_memory();
        let mut object = EbpfLoader::new().load(OBJECT).map_err(ProbeError::loading)?;
        Ok(attach::try_each(&mut object, config))
    }

    /// As [`Probe::try_each`] tells it, where all went well.
    pub fn tried(&self) -> Vec<Tried> {
        self.attachments.tried()
    }

    /// From here on connections to this address are watched.
    pub fn watch(&self, address: SocketAddr, kind: Kind) -> Result<(), ProbeError> {
        let destination = destination(address);
        self.destinations.insert(destination, kind as u32)?;
        self.watched.set(destination.place(), 1)
    }

    /// Wants the callers of all connections that this listener accepts. Before listen(): a connection that is there already
    /// is not attributed.
    pub fn mark(&self, listener: &impl AsFd) -> Result<(), ProbeError> {
        self.attributed.insert(listener, NOBODY)
    }

    /// Who called connect() at the other end of this accepted socket. None: no process below kubepods, or one of the reasons
    /// in [`LostEvents`] and [`Counters::over_share`].
    pub fn caller(&self, accepted: &impl AsFd) -> Result<Option<Caller>, ProbeError> {
        match sockopt::caller(accepted) {
            Some(caller) => Ok(Some(caller)),
            // Nobody is known; or nobody answers, because the program is detached, or this process is in another cgroup than
            // where it is attached. The look-up costs more, and can tell these apart.
            None => Ok(self.opened(accepted)?.map(|opened| opened.by)),
        }
    }

    /// As [`Probe::caller`], and when that was.
    pub fn opened(&self, accepted: &impl AsFd) -> Result<Option<Opened>, ProbeError> {
        Ok(self.attributed.get(accepted)?.filter(|opened| *opened != NOBODY))
    }

    /// The group (see [`Caller::group`]) of the pod that has this network namespace.
    pub fn namespace_owner(&self, cookie: u64) -> Result<Option<u64>, ProbeError> {
        self.namespaces.get(cookie)
    }

    /// All network namespaces by their cookies, with their groups.
    pub fn namespaces(&self) -> Result<HashMap<u64, u64>, ProbeError> {
        self.namespaces.entries()
    }

    pub fn forget_namespace(&self, cookie: u64) -> Result<(), ProbeError> {
        self.namespaces.remove(cookie)
    }

    /// The numbers of every group that has any.
    pub fn counters(&self) -> Result<HashMap<u64, Counters>, ProbeError> {
        self.counters.entries()
    }

    /// Makes room for another group's numbers. For groups whose cgroup is gone.
    pub fn forget_group(&self, group: u64) -> Result<(), ProbeError> {
        self.counters.remove(group)
    }

    /// Lets a pod's or container's cgroup use IMDS where pods are refused.
    pub fn allow_imds(&self, cgroup: u64) -> Result<(), ProbeError> {
        self.imds_allowed.insert(cgroup, 1)
    }

    pub fn deny_imds(&self, cgroup: u64) -> Result<(), ProbeError> {
        self.imds_allowed.remove(cgroup)
    }

    /// The cgroups that [`Probe::allow_imds`] was called for, in an earlier process too where maps are pinned.
    pub fn imds_allowed(&self) -> Result<Vec<u64>, ProbeError> {
        Ok(self.imds_allowed.entries()?.into_keys().collect())
    }

    pub fn lost(&self) -> Result<LostEvents, ProbeError> {
        Ok(LostEvents {
            counters: self.lost.get(Lost::Counters as u32)?,
            pending: self.lost.get(Lost::Pending as u32)?,
            namespaces: self.lost.get(Lost::Namespaces as u32)?,
        })
    }

    /// The programs' messages; once.
    pub fn take_log(&self) -> Option<ProbeLog> {
        lock(&self.log).take()
    }

    /// To be called every few seconds: attaches what was detached, and forgets what nobody will ask for.
    pub fn maintain(&self) -> Vec<Upkeep> {
        let mut report = self.attachments.mend(self.pins.as_ref());
        // Pinned, they are another agent's as well, which may have ended since it wrote its own.
        report.extend(self.settings.set(0, self.wanted).err().map(|error| Upkeep::Failed { error }));
        match self.expire_at(since_boot()) {
            Ok(0) => {}
            Ok(connections) => report.push(Upkeep::Expired { connections }),
            Err(error) => report.push(Upkeep::Failed { error }),
        }
        report
    }

    /// For how long all programs have been where they should be; None while one is not.
    pub fn attached_for(&self) -> Option<Duration> {
        self.attachments.attached_for()
    }

    /// Detaches all programs, pinned or not, until [`Probe::maintain`] attaches them again.
    pub fn detach(&self) -> Result<(), ProbeError> {
        self.attachments.detach()
    }

    fn expire_at(&self, now: Duration) -> Result<usize, ProbeError> {
        let mut expired = 0;
        for (connection, pending) in self.pending.entries()? {
            if now.saturating_sub(Duration::from_nanos(pending.since)) > Duration::from_nanos(PENDING_FOR) {
                self.pending.remove(connection)?;
                expired += 1;
            }
        }
        Ok(expired)
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.attachments.places()).finish()
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
