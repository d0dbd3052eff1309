//! Which way of attribution this node bears: the best first, and for each one down the reason.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use agent_ebpf::Kind;

use super::cgroup::{self, Cgroups, NoPod};
use super::inet_diag::{Followed, InetDiag};
use super::layout::{Layout, LayoutProblem, Version};
use super::probe::{Probe, ProbeConfig, ProbeError, Tried, pins};
use super::probed::Probed;
use super::proc::HostProc;
use super::{Attribution, Processes, Sockets, Source};
use crate::config::{Imds, NodePaths};
use crate::{link, sockopt};

/// What attribution is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub paths: NodePaths,
    pub trusted_proxies: Vec<PathBuf>,
    pub imds: Imds,
    /// Whether the kernel programs write log messages.
    pub log: bool,
}

const IMDS_PORT: u16 = 80;

pub(crate) fn best(settings: &Settings) -> Attribution {
    let layout = match find(&settings.paths) {
        Ok(layout) => layout,
        Err(problem) => return nowhere(&problem),
    };
    // Pins only count while the agent is down; what is wrong with them must not cost more.
    let (loaded, pins) = match load(settings, &layout) {
        Err(pins) if settings.paths.pin.is_some() => (load(&without_pins(settings), &layout), Some(pins)),
        loaded => (loaded, None),
    };
    let pins = pins.filter(|_| loaded.is_ok());
    let mut attribution = choose(settings, layout, loaded);
    if let Some(pins) = pins {
        let pins = format!("the kernel programs end with the agent, because --pin does not work: {pins}");
        let problem = attribution.problem.take();
        attribution.problem = Some(problem.map_or(pins.clone(), |problem| format!("{problem}; {pins}")));
    }
    attribution
}

pub(crate) fn find(paths: &NodePaths) -> Result<Layout, LayoutProblem> {
    Layout::find(&paths.cgroup_root, paths.kubepods_cgroup.as_deref(), &paths.host_proc)
}

/// On a node whose cgroups cannot be found.
pub(crate) fn nowhere(problem: &LayoutProblem) -> Attribution {
    Attribution { source: Source::None, problem: Some(problem.to_string()), _layout: None }
}

/// What to attribute by, given what came of the kernel programs.
pub(crate) fn choose(settings: &Settings, layout: Layout, loaded: Result<Probe, ProbeError>) -> Attribution {
    let (source, mut problem) = match loaded {
        Ok(probe) => with_probe(settings, &layout, probe),
        Err(problem) => without_probe(settings, &layout, problem.to_string()),
    };
    if settings.imds == Imds::RefusePods && !matches!(source, Source::Probe(_)) {
        problem = problem.map(|problem| format!("{problem}. --imds refuse-pods refuses nobody here"));
    }
    Attribution { source, problem, _layout: Some(layout) }
}

fn without_pins(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    settings.paths.pin = None;
    settings
}

/// Programs that an earlier agent pinned would go on for ever: counting, and refusing IMDS.
pub(super) fn leave_no_pins(settings: &Settings) -> Option<String> {
    pins::clear(settings.paths.pin.as_deref()?).err().map(|error| error.to_string())
}

/// With what there is to tell the operator of it.
type Chosen = (Source, Option<String>);

pub(crate) fn load(settings: &Settings, layout: &Layout) -> Result<Probe, ProbeError> {
    let probe = Probe::load(&config(settings, layout))?;
    for address in [link::IMDS_IPV4.into(), link::IMDS_IPV6.into()] {
        probe.watch(SocketAddr::new(address, IMDS_PORT), Kind::Imds)?;
    }
    Ok(probe)
}

/// What comes of each kernel program by itself.
pub(crate) fn try_each(settings: &Settings, layout: &Layout) -> Result<Vec<Tried>, ProbeError> {
    Probe::try_each(&config(settings, layout))
}

fn config(settings: &Settings, layout: &Layout) -> ProbeConfig {
    ProbeConfig {
        kubepods: layout.kubepods.clone(),
        kubepods_level: layout.kubepods_level,
        agent_cgroup: layout.agent_cgroup.clone(),
        pins: settings.paths.pin.clone(),
        host_netns: own_netns_cookie(),
        // Where all pods share one cgroup of version 2, refusing and its exceptions could not tell them apart.
        refuse_imds: settings.imds == Imds::RefusePods && layout.version == Version::V2,
        learn_namespaces: !settings.trusted_proxies.is_empty(),
        log: settings.log,
    }
}

fn with_probe(settings: &Settings, layout: &Layout, probe: Probe) -> Chosen {
    match &layout.version {
        Version::V2 => {}
        Version::V1Pods(pods) => {
            let place = pods.kubepods.display();
            return match HostProc::open(&settings.paths.host_proc, layout) {
                Ok(host) => {
                    let problem = format!(
                        "the pods of this node are in cgroup v1 ({place}), so each is looked up by its process; good for \
                         audit and metrics, not for enforce"
                    );
                    (Source::Proc(Box::new(Processes { probe, host })), Some(problem))
                }
                Err(problem) => {
                    none(format!("the pods of this node are in cgroup v1 ({place}), and {problem}"))
                }
            };
        }
    }
    let cgroups = match cgroups(layout) {
        Ok(cgroups) => cgroups,
        Err(problem) => return none(problem),
    };
    let (mut proxies, mut problems) = (Vec::new(), Vec::new());
    for proxy in &settings.trusted_proxies {
        match place_of_proxy(layout, proxy) {
            Ok(place) => proxies.push(place),
            Err(problem) => problems.push(format!("--trusted-proxy-cgroup {}: {problem}", proxy.display())),
        }
    }
    let problem = (!problems.is_empty()).then(|| problems.join("; "));
    (Source::Probe(Arc::new(Probed::new(probe, cgroups, proxies))), problem)
}

/// From kubepods on.
fn place_of_proxy(layout: &Layout, proxy: &Path) -> Result<PathBuf, String> {
    let path = proxy.strip_prefix(&layout.mount).or_else(|_| proxy.strip_prefix("/")).unwrap_or(proxy);
    let path = layout.mount.join(path);
    let kubepods = layout.kubepods.display();
    let place = path.strip_prefix(&layout.kubepods).map_err(|_| {
        format!("is not below the pods' cgroup {kubepods}, so the kernel programs do not see its connections")
    })?;
    let is_plain = place.components().all(|part| matches!(part, Component::Normal(_)));
    if !is_plain || cgroup::parse(place).is_none() {
        return Err(format!(
            "has to be a pod's cgroup, or one below it, without `..`; all pods are below {kubepods}"
        ));
    }
    if !path.is_dir() {
        return Err("there is no such cgroup (a pod's changes with the pod)".to_owned());
    }
    Ok(place.to_owned())
}

fn without_probe(settings: &Settings, layout: &Layout, problem: String) -> Chosen {
    if layout.version != Version::V2 {
        return none(problem);
    }
    let cgroups = match cgroups(layout) {
        Ok(cgroups) => cgroups,
        Err(other) => return none(format!("{problem}; and {other}")),
    };
    let table = match InetDiag::open() {
        Ok(table) => table,
        Err(other) => return none(format!("{problem}; and inet_diag cannot stand in: {other}")),
    };
    let host = HostProc::open(&settings.paths.host_proc, layout).ok();
    let seen = match host.as_ref().map(|host| table.follow(host)) {
        Some(Ok(Followed { refused: None, .. })) => "all pods",
        Some(Ok(Followed { refused: Some(_), .. }) | Err(_)) | None => {
            "hostNetwork pods alone (the others take the node's /proc, see --host-proc, with CAP_SYS_ADMIN and \
             CAP_SYS_PTRACE)"
        }
    };
    let problem = format!(
        "{problem}. Instead the kernel's table of sockets is asked (inet_diag), for {seen}; pods can spoof it: good for \
         audit and metrics, not for enforce"
    );
    (Source::InetDiag(Box::new(Sockets { table, cgroups, host })), Some(problem))
}

/// The node's cgroups, if their ids lead to them.
fn cgroups(layout: &Layout) -> Result<Cgroups, String> {
    let unreadable = |error: std::io::Error| format!("{} cannot be read: {error}", layout.kubepods.display());
    let cgroups = Cgroups::open(&layout.mount, &layout.kubepods).map_err(unreadable)?;
    let id = cgroup::id_of(&layout.kubepods).map_err(unreadable)?;
    match cgroups.pod_of(id) {
        Err(NoPod::CannotTell { cause }) => Err(NoPod::CannotTell { cause }.to_string()),
        Ok(_) | Err(NoPod::Gone | NoPod::NotAPod { .. }) => Ok(cgroups),
    }
}

/// The agent shares the host's network, so its namespace is the one that hostNetwork pods are in.
fn own_netns_cookie() -> Option<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    sockopt::netns_cookie(&socket).ok()
}

fn none(problem: String) -> Chosen {
    (Source::None, Some(problem))
}
