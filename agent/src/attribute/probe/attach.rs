//! Programs at cgroups, and that they stay there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::Ebpf;
use aya::programs::{CgroupSock, CgroupSockAddr, Program, ProgramError, SockOps};

use super::pins::{Locked, Pins};
use super::sys::{self, Hook};
use super::{ProbeConfig, ProbeError, Upkeep};
use crate::clock::since_boot;

/// One program at one cgroup.
struct Place {
    program: &'static str,
    hook: Hook,
    cgroup: PathBuf,
    code: OwnedFd,
}

pub(super) struct Attachments {
    places: Vec<Place>,
    /// In the places' order; None where attaching anew failed.
    links: Mutex<Vec<Option<OwnedFd>>>,
    /// When one was attached last, in milliseconds since boot.
    attached_at: AtomicU64,
}

impl Attachments {
    /// Loads the programs and attaches them; those that are pinned already and where they should be are exchanged, without
    /// a moment in which none runs.
    pub(super) fn make(
        object: &mut Ebpf,
        config: &ProbeConfig,
        pins: Option<&Locked<'_>>,
    ) -> Result<Attachments, ProbeError> {
        let handshake = load_sock_ops(object, "handshake")?;
        let release = load_release(object, "release")?;
        let connect4 = load_connect(object, "connect4")?;
        let connect6 = load_connect(object, "connect6")?;
        let mut places = Vec::new();
        for cgroup in sock_ops_cgroups(&config.kubepods, &config.agent_cgroup) {
            let code = handshake.try_clone().map_err(|error| no_descriptor("handshake", error))?;
            places.push(Place::new("handshake", Hook::SockOps, cgroup, code));
        }
        places.push(Place::new("release", Hook::SocketRelease, &config.kubepods, release));
        // Last: what these write down is for the others.
        places.push(Place::new("connect4", Hook::Connect4, &config.kubepods, connect4));
        places.push(Place::new("connect6", Hook::Connect6, &config.kubepods, connect6));

        let mut links = Vec::new();
        let mut names = Vec::new();
        for place in &places {
            let (link, name) = place.attach(pins)?;
            links.push(Some(link));
            names.push(name);
        }
        if let Some(pins) = pins {
            pins.remove_other_links(&names)?;
        }
        let attached_at = AtomicU64::new(since_boot().as_millis() as u64);
        Ok(Attachments { places, links: Mutex::new(links), attached_at })
    }

    /// Attaches anew what is not attached any more.
    pub(super) fn mend(&self, pins: Option<&Pins>) -> Vec<Upkeep> {
        let mut links = self.links();
        let mut report = Vec::new();
        for (place, link) in self.places.iter().zip(links.iter_mut()) {
            if is_attached(link.as_ref()) {
                continue;
            }
            *link = None;
            let new = pins.map(Pins::lock).transpose().and_then(|pins| place.attach(pins.as_ref()));
            match new {
                Ok((new, _)) => {
                    *link = Some(new);
                    self.attached_at.store(since_boot().as_millis() as u64, Ordering::Relaxed);
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
        // Held only by who mends, which can take its time: then something is amiss.
        let links = self.links.try_lock().ok()?;
        let since = Duration::from_millis(self.attached_at.load(Ordering::Relaxed));
        links.iter().all(|link| is_attached(link.as_ref())).then(|| since_boot().saturating_sub(since))
    }

    pub(super) fn detach(&self) -> Result<(), ProbeError> {
        for (place, link) in self.places.iter().zip(self.links().iter()) {
            if let Some(link) = link {
                sys::link_detach(link.as_fd()).map_err(|source| place.error(source))?;
            }
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

    fn links(&self) -> MutexGuard<'_, Vec<Option<OwnedFd>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_attached(link: Option<&OwnedFd>) -> bool {
    link.is_some_and(|link| matches!(sys::link_cgroup(link.as_fd()), Ok(Some(_))))
}

impl Place {
    fn new(program: &'static str, hook: Hook, cgroup: &Path, code: OwnedFd) -> Place {
        Place { program, hook, cgroup: cgroup.to_owned(), code }
    }

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

fn load_sock_ops(object: &mut Ebpf, name: &'static str) -> Result<OwnedFd, ProbeError> {
    let program: &mut SockOps =
        program(object, name)?.try_into().map_err(|error| ProbeError::program(name, error))?;
    program.load().map_err(|error| ProbeError::program(name, error))?;
    duplicate(name, program.fd())
}

fn load_connect(object: &mut Ebpf, name: &'static str) -> Result<OwnedFd, ProbeError> {
    let program: &mut CgroupSockAddr =
        program(object, name)?.try_into().map_err(|error| ProbeError::program(name, error))?;
    program.load().map_err(|error| ProbeError::program(name, error))?;
    duplicate(name, program.fd())
}

fn load_release(object: &mut Ebpf, name: &'static str) -> Result<OwnedFd, ProbeError> {
    let program: &mut CgroupSock =
        program(object, name)?.try_into().map_err(|error| ProbeError::program(name, error))?;
    program.load().map_err(|error| ProbeError::program(name, error))?;
    duplicate(name, program.fd())
}

fn program<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, ProbeError> {
    object.program_mut(name).ok_or_else(|| ProbeError::Object(format!("it has no program {name}")))
}

fn duplicate(name: &'static str, fd: Result<&impl AsFd, ProgramError>) -> Result<OwnedFd, ProbeError> {
    let fd = fd.map_err(|error| ProbeError::program(name, error))?;
    fd.as_fd().try_clone_to_owned().map_err(|error| no_descriptor(name, error))
}

fn no_descriptor(name: &'static str, error: io::Error) -> ProbeError {
    ProbeError::program(name, ProgramError::IOError(error))
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
