//! Programs at cgroups, and that they stay there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use aya::Ebpf;
use aya::programs::{CgroupSock, CgroupSockAddr, CgroupSockopt, ProgramError, SockOps};

use super::pins::{Locked, Pins};
use super::sys::{self, Hook};
use super::{ProbeConfig, ProbeError, Upkeep};
use crate::clock::since_boot;
use crate::locks::lock;

/// One program at one cgroup.
struct Place {
    program: &'static str,
    hook: Hook,
    cgroup: PathBuf,
    code: OwnedFd,
}

/// Those of connect() last: what they write down is for the others.
const PROGRAMS: [(&str, Hook); 5] = [
    ("answer", Hook::GetSocketOption),
    ("handshake", Hook::SockOps),
    ("release", Hook::SocketRelease),
    ("connect4", Hook::Connect4),
    ("connect6", Hook::Connect6),
];

/// What came of one program, at one of its cgroups.
#[derive(Debug)]
pub struct Tried {
    /// As the kernel calls the place that it is attached to: connect4, connect6, getsockopt, sock_ops or sock_release.
    pub hook: &'static str,
    /// The cgroup where it is attached.
    pub attached: Result<PathBuf, ProbeError>,
}

/// Loads and attaches each program whatever comes of the others. Nothing stays attached.
pub(super) fn try_each(object: &mut Ebpf, config: &ProbeConfig) -> Vec<Tried> {
    let mut tried = Vec::new();
    for (program, hook) in PROGRAMS {
        match load(object, program, hook, config) {
            Ok(places) => tried.extend(places.into_iter().map(|place| Tried {
                hook: hook.name(),
                attached: place.attach(None).map(|_| place.cgroup),
            })),
            Err(error) => tried.push(Tried { hook: hook.name(), attached: Err(error) }),
        }
    }
    tried
}

pub(super) struct Attachments {
    places: Vec<Place>,
    /// Held for moments only: who accepts a connection may ask.
    links: Mutex<Links>,
}

struct Links {
    /// In the places' order, also those that somebody has detached.
    of_places: Vec<OwnedFd>,
    /// When one was attached last, in time since boot.
    attached_at: Duration,
}

impl Attachments {
    /// Loads the programs and attaches them; those that are pinned already and where they should be are exchanged, without
    /// a moment in which none runs.
    pub(super) fn make(
        object: &mut Ebpf,
        config: &ProbeConfig,
        pins: Option<&Locked<'_>>,
    ) -> Result<Attachments, ProbeError> {
        let mut places = Vec::new();
        for (program, hook) in PROGRAMS {
            places.extend(load(object, program, hook, config)?);
        }
        let mut links = Vec::new();
        let mut names = Vec::new();
        for place in &places {
            let (link, name) = place.attach(pins)?;
            links.push(link);
            names.push(name);
        }
        if let Some(pins) = pins {
            pins.remove_other_links(&names)?;
        }
        let links = Links { of_places: links, attached_at: since_boot() };
        Ok(Attachments { places, links: Mutex::new(links) })
    }

    /// Attaches anew what is not attached any more.
    pub(super) fn mend(&self, pins: Option<&Pins>) -> Vec<Upkeep> {
        let mut report = Vec::new();
        for (index, place) in self.places.iter().enumerate() {
            if is_attached(&lock(&self.links).of_places[index]) {
                continue;
            }
            // Not under the lock: another agent can have the pins for seconds.
            let new = pins.map(Pins::lock).transpose().and_then(|pins| place.attach(pins.as_ref()));
            match new {
                Ok((new, _)) => {
                    let mut links = lock(&self.links);
                    links.of_places[index] = new;
                    links.attached_at = since_boot();
                    let (program, cgroup) = (place.program, place.cgroup.clone());
                    report.push(Upkeep::Reattached { program, cgroup });
                }
                Err(error) => report.push(Upkeep::Failed { error }),
            }
        }
        report
    }

    /// For how long all of them have been attached; None while one is not.
    pub(super) fn attached_for(&self) -> Option<Duration> {
        let links = lock(&self.links);
        links.of_places.iter().all(is_attached).then(|| since_boot().saturating_sub(links.attached_at))
    }

    pub(super) fn detach(&self) -> Result<(), ProbeError> {
        for (place, link) in self.places.iter().zip(&lock(&self.links).of_places) {
            sys::link_detach(link.as_fd()).map_err(|source| place.error(source))?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn program(&self, name: &str) -> Option<&OwnedFd> {
        self.places.iter().find(|place| place.program == name).map(|place| &place.code)
    }

    /// Each program's name and where it is.
    pub(super) fn places(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.places.iter().map(|place| (place.program, place.cgroup.as_path()))
    }

    pub(super) fn tried(&self) -> Vec<Tried> {
        let attached = |place: &Place| Tried { hook: place.hook.name(), attached: Ok(place.cgroup.clone()) };
        self.places.iter().map(attached).collect()
    }
}

fn is_attached(link: &OwnedFd) -> bool {
    matches!(sys::link_cgroup(link.as_fd()), Ok(Some(_)))
}

impl Place {
    /// The link, and what it is called among the pins.
    fn attach(&self, pins: Option<&Locked<'_>>) -> Result<(OwnedFd, String), ProbeError> {
        let unreadable = |source| ProbeError::Cgroup { path: self.cgroup.clone(), source };
        let cgroup = File::open(&self.cgroup).map_err(unreadable)?;
        let id = cgroup.metadata().map_err(unreadable)?.ino();
        // With the id, so that one for a cgroup that was removed and made anew is not taken for it.
        let name = format!("{}-{id}", self.program);
        let create = || {
            sys::link_create(self.code.as_fd(), cgroup.as_fd(), self.hook)
                .map_err(|source| self.error(source))
        };
        let Some(pins) = pins else { return Ok((create()?, name)) };
        if let Some(link) = pins.link(&name)?
            && matches!(sys::link_cgroup(link.as_fd()), Ok(Some(attached_to)) if attached_to == id)
            && sys::link_update(link.as_fd(), self.code.as_fd()).is_ok()
        {
            return Ok((link, name));
        }
        // Missing, detached by somebody, or of another cgroup.
        let link = create()?;
        pins.pin_link(&name, link.as_fd())?;
        Ok((link, name))
    }

    fn error(&self, source: io::Error) -> ProbeError {
        ProbeError::attaching(self.program, self.hook, self.cgroup.clone(), source)
    }
}

/// Where sock_ops must be to see the sockets of the pods and of this process, each once: a program also runs for the cgroups
/// below its own.
fn sock_ops_cgroups<'a>(kubepods: &'a Path, agent: &'a Path) -> Vec<&'a Path> {
    if agent.starts_with(kubepods) {
        vec![kubepods]
    } else if kubepods.starts_with(agent) {
        vec![agent]
    } else {
        vec![kubepods, agent]
    }
}

/// Loads a program, and says where it is to be attached.
fn load(
    object: &mut Ebpf,
    name: &'static str,
    hook: Hook,
    config: &ProbeConfig,
) -> Result<Vec<Place>, ProbeError> {
    let failed = |error| ProbeError::program(name, error);
    let program =
        object.program_mut(name).ok_or_else(|| ProbeError::Object(format!("it has no program {name}")))?;
    let (fd, cgroups) = match hook {
        Hook::SockOps => {
            let program: &mut SockOps = program.try_into().map_err(failed)?;
            program.load().map_err(failed)?;
            (program.fd(), sock_ops_cgroups(&config.kubepods, &config.agent_cgroup))
        }
        Hook::GetSocketOption => {
            let program: &mut CgroupSockopt = program.try_into().map_err(failed)?;
            program.load().map_err(failed)?;
            (program.fd(), vec![config.agent_cgroup.as_path()])
        }
        Hook::SocketRelease => {
            let program: &mut CgroupSock = program.try_into().map_err(failed)?;
            program.load().map_err(failed)?;
            (program.fd(), vec![config.kubepods.as_path()])
        }
        Hook::Connect4 | Hook::Connect6 => {
            let program: &mut CgroupSockAddr = program.try_into().map_err(failed)?;
            program.load().map_err(failed)?;
            (program.fd(), vec![config.kubepods.as_path()])
        }
    };
    let fd = fd.map_err(failed)?;
    let place = |cgroup: &Path| {
        let code = fd.as_fd().try_clone_to_owned().map_err(|error| failed(ProgramError::IOError(error)))?;
        Ok(Place { program: name, hook, cgroup: cgroup.to_owned(), code })
    };
    cgroups.into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sock_ops_runs_once_for_each_socket_of_pods_and_agent() {
        let places = |kubepods, agent| sock_ops_cgroups(Path::new(kubepods), Path::new(agent)).len();
        assert_eq!(
            sock_ops_cgroups(Path::new("/c/kubepods"), Path::new("/c/kubepods/pod1")),
            [Path::new("/c/kubepods")]
        );
        assert_eq!(sock_ops_cgroups(Path::new("/c/kubepods"), Path::new("/c")), [Path::new("/c")]);
        assert_eq!(places("/c/kubepods", "/c/system.slice/podcred.service"), 2);
        assert_eq!(
            places("/c/kubepods", "/c/kubepods-other"),
            2,
            "a name that begins alike is another cgroup"
        );
    }
}
