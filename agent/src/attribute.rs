//! Which pod opened this connection? The kernel's word, not the caller's.

pub mod cgroup;
mod counters;
mod handle;
pub mod inet_diag;
pub mod layout;
pub mod probe;
mod probed;
pub mod proc;
mod start;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use agent_ebpf::Kind;

use self::cgroup::Cgroups;
pub use self::counters::Counted;
use self::inet_diag::{Followed, InetDiag};
use self::layout::Layout;
use self::probe::{Opened, Probe};
pub use self::probed::Probed;
use self::probed::{cannot_tell, recorded, workload};
use self::proc::HostProc;
pub use self::start::Settings;
pub(crate) use self::start::{choose, find, load, nowhere, try_each};
use crate::config::Verify;
use crate::link;

/// What the kernel says of the caller of one connection.
pub type Caller = Result<Workload, Unattributed>;

/// The pod that opened a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub pod_uid: Arc<str>,
    /// None where the process ran in the pod's own cgroup, outside any container's.
    pub container_id: Option<Arc<str>>,
    pub cgroup_id: u64,
    pub tgid: u32,
    /// The network namespace's cookie; 0 where only the table of sockets was asked.
    pub netns: u64,
    pub host_network: bool,
}

/// Why there is no workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unattributed {
    /// `--verify off`: nobody looked.
    Off,
    /// This node has nothing to attribute connections by.
    NoProbe,
    /// The kernel programs have not seen the connect() call: it came from outside the pods' cgroups or from a sandbox
    /// with a network stack of its own (gVisor, Kata), another program rewrote its destination, or too many connections
    /// of its pod were half-way through their handshakes.
    NoRecord,
    /// The caller's cgroup is no pod's.
    NotAPod,
    /// The caller's cgroup does not exist any more.
    Gone,
    /// A trusted proxy connected for a pod that has not connected itself yet.
    NotYetKnown,
    /// The kernel programs are detached, or were attached so short a time ago that the connection may be older.
    JustAttached,
    /// The kernel could not be asked.
    CannotTell,
}

impl Unattributed {
    /// Another attempt may fare better.
    pub fn is_passing(self) -> bool {
        match self {
            Unattributed::NotYetKnown | Unattributed::JustAttached | Unattributed::CannotTell => true,
            Unattributed::Off
            | Unattributed::NoProbe
            | Unattributed::NoRecord
            | Unattributed::NotAPod
            | Unattributed::Gone => false,
        }
    }

    /// A metric label, and the reason in the log.
    pub fn label(self) -> &'static str {
        match self {
            Unattributed::Off => "off",
            Unattributed::NoProbe => "no_probe",
            Unattributed::NoRecord => "no_record",
            Unattributed::NotAPod => "not_a_pod",
            Unattributed::Gone => "gone",
            Unattributed::NotYetKnown => "not_yet_known",
            Unattributed::JustAttached => "just_attached",
            Unattributed::CannotTell => "cannot_tell",
        }
    }
}

/// Continues "the pod that opened this connection is not known: …".
impl fmt::Display for Unattributed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unattributed::Off => "attribution is off on this node",
            Unattributed::NoProbe => "this node cannot tell; `podcred doctor` says why",
            Unattributed::NoRecord => {
                "it was opened outside the pods' cgroups, in a sandbox with its own network stack, through a proxy, or while \
                 the pod had 64 other handshakes under way"
            }
            Unattributed::NotAPod => "its process belongs to the node and not to a pod",
            Unattributed::Gone => "its container has ended",
            Unattributed::NotYetKnown => "a proxy opened it for a pod that has not connected by itself yet",
            Unattributed::JustAttached => "it may have been opened before the kernel programs were attached",
            Unattributed::CannotTell => "the kernel could not be asked",
        })
    }
}

/// The probe, with what makes pods of its process numbers.
#[derive(Debug)]
struct Processes {
    probe: Probe,
    host: HostProc,
}

/// The kernel's table of sockets, with what makes pods of its cgroup ids.
#[derive(Debug)]
struct Sockets {
    table: InetDiag,
    cgroups: Cgroups,
    /// Without it only the sockets in the agent's own network namespace are seen, which are those of hostNetwork pods.
    host: Option<HostProc>,
}

/// What this node attributes connections by, from the best down.
#[derive(Debug)]
pub struct Attribution {
    source: Source,
    /// Why it is not the best, for the operator.
    problem: Option<String>,
    /// Keeps the cgroup mount there where it is the agent's own.
    _layout: Option<Layout>,
}

#[derive(Debug)]
enum Source {
    /// The kernel programs, and cgroups whose ids lead to pods. Nothing less can enforce.
    Probe(Arc<Probed>),
    /// The kernel programs name the process, and the node's /proc its pod: where pods live in cgroup v1.
    Proc(Box<Processes>),
    /// Without kernel programs: a look at the kernel's table of sockets, which a pod can spoof.
    InetDiag(Box<Sockets>),
    None,
    Off,
}

impl Processes {
    fn caller(&self, socket: &impl AsFd) -> Caller {
        let Opened { by, at } = recorded(&self.probe, self.probe.opened(socket))?;
        let pod = self.host.pod_of_tgid(by.tgid, Duration::from_nanos(at))?;
        Ok(workload(&by, pod))
    }
}

impl Sockets {
    /// The caller's socket has the accepted one's addresses the other way round.
    fn caller(&self, peer: SocketAddr, local: SocketAddr) -> Caller {
        let found = self.table.cgroup_of(peer, local).map_err(|error| cannot_tell(&error))?;
        let cgroup_id = found.ok_or(Unattributed::NoRecord)?;
        let pod = self.cgroups.pod_of(cgroup_id)?;
        // The table knows neither the process nor whether it is in the host's network.
        let unknown = agent_ebpf::Caller { cgroup_id, group: 0, netns: 0, tgid: 0, flags: 0 };
        Ok(workload(&unknown, pod))
    }
}

impl Attribution {
    /// Takes the best that this node bears, and says in one log line which that is.
    pub fn start(verify: Verify, settings: &Settings) -> Self {
        let attribution = match verify {
            Verify::Off => {
                Attribution { source: Source::Off, problem: start::leave_no_pins(settings), _layout: None }
            }
            Verify::Audit | Verify::Enforce => start::best(settings),
        };
        attribution.say(verify);
        attribution
    }

    /// The one that was taken; a metric label.
    pub fn source(&self) -> &'static str {
        match self.source {
            Source::Probe(_) => "probe",
            Source::Proc(_) => "proc",
            Source::InetDiag(_) => "inet_diag",
            Source::None => "none",
            Source::Off => "off",
        }
    }

    pub const SOURCES: [&'static str; 5] = ["probe", "proc", "inet_diag", "none", "off"];

    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    pub fn can_enforce(&self) -> bool {
        self.probed().is_some()
    }

    pub fn probed(&self) -> Option<&Arc<Probed>> {
        match &self.source {
            Source::Probe(probed) => Some(probed),
            Source::Proc(_) | Source::InetDiag(_) | Source::None | Source::Off => None,
        }
    }

    /// The UIDs of all pods that have a cgroup now; none where nothing is charged to pods.
    pub fn live_pods(&self) -> io::Result<HashSet<Arc<str>>> {
        match self.probed() {
            Some(probed) => Ok(probed.cgroups.groups_of_pods()?.into_iter().map(|pod| pod.pod_uid).collect()),
            None => Ok(HashSet::new()),
        }
    }

    /// Prepares a listener, before any connection can come in on it.
    pub fn prepare(&self, listener: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
        let Some(probe) = self.probe() else { return Ok(()) };
        // Pods connect to a certain address, also where the listener takes all.
        let host = match address.ip() {
            one if !one.is_unspecified() => one,
            IpAddr::V4(_) => link::IPV4.into(),
            IpAddr::V6(_) => link::IPV6.into(),
        };
        probe.watch(SocketAddr::new(host, address.port()), Kind::Credentials).map_err(io::Error::other)?;
        probe.mark(&listener).map_err(io::Error::other)
    }

    /// Who opened the connection that was just accepted.
    pub fn caller(&self, socket: &impl AsFd, peer: SocketAddr, local: SocketAddr) -> Caller {
        match &self.source {
            Source::Probe(probed) => probed.caller(socket),
            Source::Proc(processes) => processes.caller(socket),
            Source::InetDiag(sockets) => sockets.caller(peer, local),
            Source::None => Err(Unattributed::NoProbe),
            Source::Off => Err(Unattributed::Off),
        }
    }

    /// Passes the kernel programs' messages on to the log, for ever. They write none unless told to.
    pub async fn forward_log(&self) -> io::Result<()> {
        match self.probe().and_then(Probe::take_log) {
            Some(log) => log.forward().await,
            None => Ok(()),
        }
    }

    /// Looks for pods that have come and gone, where callers are looked for in the pods' own network namespaces.
    pub fn follow_pods(&self) {
        let Source::InetDiag(sockets) = &self.source else { return };
        let Sockets { table, host: Some(host), .. } = &**sockets else { return };
        match table.follow(host) {
            Ok(Followed { refused: None, .. }) => {}
            Ok(Followed { refused: Some(error), .. }) | Err(error) => {
                tracing::debug!(event = "attribution_failed", %error, "a pod's network namespace cannot be entered");
            }
        }
    }

    pub fn probe(&self) -> Option<&Probe> {
        match &self.source {
            Source::Probe(probed) => Some(&probed.probe),
            Source::Proc(processes) => Some(&processes.probe),
            Source::InetDiag(_) | Source::None | Source::Off => None,
        }
    }

    fn say(&self, verify: Verify) {
        let source = self.source();
        match (&self.problem, verify) {
            (None, _) => tracing::info!(event = "attribution", source, "caller attribution source"),
            (Some(problem), Verify::Enforce) if !self.can_enforce() => tracing::error!(
                event = "attribution",
                source,
                %problem,
                "--verify enforce is impossible on this node, so every request is refused; run `podcred doctor`"
            ),
            (Some(problem), _) => tracing::warn!(
                event = "attribution",
                source,
                %problem,
                "caller attribution is limited; run `podcred doctor`"
            ),
        }
    }
}
