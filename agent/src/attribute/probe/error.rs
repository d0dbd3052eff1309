//! What can keep the probe from working, and what to do about it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::{ProgramError, loaded_programs};
use rustix::thread::{CapabilitySet, capabilities};

use super::sys::{Attached, Hook, attached};

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "{path}: {source}. The cgroup must be there and readable: mount the host's cgroup2 file system, and see \
         --kubepods-cgroup",
        path = path.display()
    )]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("{what}: not permitted. Missing: {missing}; add them to securityContext.capabilities")]
    Capabilities { what: String, missing: String },
    #[error(
        "{what}: not permitted, though CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are there. A security module or lockdown may \
         forbid it (the kernel's log tells), or, before Linux 5.8, CAP_SYS_ADMIN is needed"
    )]
    Forbidden { what: String },
    #[error(
        "{what}: this kernel knows no bpf(2), or CONFIG_CGROUP_BPF is off: run with --verify off or audit"
    )]
    Unsupported { what: String },
    #[error(
        "{what}: no memory ({source}). Before Linux 5.11 maps count as locked memory: raise RLIMIT_MEMLOCK"
    )]
    Memory { what: String, source: io::Error },
    #[error(
        "the kernel has no BTF (/sys/kernel/btf/vmlinux), which the probe's socket storage needs: CONFIG_DEBUG_INFO_BTF \
         must be on. {what}: {detail}"
    )]
    NoBtf { what: String, detail: String },
    #[error(
        "the kernel refuses program {program}: {source}. This is podcred's fault, please report it: {log}"
    )]
    Verifier { program: &'static str, source: io::Error, log: String },
    #[error(
        "program {program} cannot be attached to {cgroup}: {owner} is attached to {place} as the only one allowed. Its owner \
         must attach it by link, or with BPF_F_ALLOW_MULTI",
        cgroup = cgroup.display(), place = place.display()
    )]
    Foreign { program: &'static str, cgroup: PathBuf, owner: String, place: PathBuf },
    #[error("program {program} cannot be attached to {cgroup}: {source}", cgroup = cgroup.display())]
    Attach { program: &'static str, cgroup: PathBuf, source: io::Error },
    #[error("map {map}: {source}")]
    Map { map: &'static str, source: MapError },
    #[error("map {map} has no room for another entry ({entries} are there)")]
    Full { map: &'static str, entries: usize },
    #[error("{path}: {source} (see --pin)", path = path.display())]
    Pins { path: PathBuf, source: io::Error },
    #[error(
        "{path} is not on a bpffs, which alone can hold pins: mount the host's /sys/fs/bpf (`mount -t bpf bpf \
         /sys/fs/bpf` makes it where it is missing), or run without --pin",
        path = path.display()
    )]
    NoBpffs { path: PathBuf },
    #[error(
        "{path}: another process has held the lock on this folder for 10 s; an agent that starts holds it for a moment. See \
         who has the folder open, or give --pin another one",
        path = path.display()
    )]
    PinsLocked { path: PathBuf },
    #[error("the kernel object that podcred carries cannot be used: {0}")]
    Object(String),
}

impl ProbeError {
    /// From aya's error about the object as a whole, or one of its maps.
    pub(super) fn loading(error: EbpfError) -> ProbeError {
        let EbpfError::MapError(MapError::CreateError { name, io_error }) = error else {
            return ProbeError::Object(crate::causes::chain(&error));
        };
        by_errno(format!("map {name}"), io_error).unwrap_or_else(|(what, source)| match has_btf() {
            false => ProbeError::NoBtf { what, detail: source.to_string() },
            true => ProbeError::Object(format!("{what}: {source}")),
        })
    }

    pub(super) fn program(program: &'static str, error: ProgramError) -> ProbeError {
        let ProgramError::LoadError { io_error, verifier_log } = error else {
            return ProbeError::Object(format!("program {program}: {}", crate::causes::chain(&error)));
        };
        by_errno(format!("program {program}"), io_error).unwrap_or_else(|(what, source)| {
            // Without PERFMON the verifier takes less, and says so as if the program were at fault.
            let missing = missing_capabilities();
            if !missing.is_empty() {
                return ProbeError::Capabilities { what, missing };
            }
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let log = lines[lines.len().saturating_sub(VERIFIER_LINES)..].join("; ");
            match has_btf() {
                false => ProbeError::NoBtf { what, detail: format!("{source}: {log}") },
                true => ProbeError::Verifier { program, source, log },
            }
        })
    }

    pub(super) fn attaching(
        program: &'static str,
        hook: Hook,
        cgroup: PathBuf,
        source: io::Error,
    ) -> ProbeError {
        if source.raw_os_error() != Some(libc::EPERM) {
            return ProbeError::Attach { program, cgroup, source };
        }
        match exclusive(&cgroup, hook) {
            Some((place, owner)) => ProbeError::Foreign { program, cgroup, owner, place },
            None => match by_errno(format!("attaching program {program}"), source) {
                Ok(error) => error,
                Err((_, source)) => ProbeError::Attach { program, cgroup, source },
            },
        }
    }
}

/// The last lines of the verifier's log say what it did not like.
const VERIFIER_LINES: usize = 6;

/// What an errno of bpf(2) means whatever the command was; or what was given, where it depends on that.
fn by_errno(what: String, source: io::Error) -> Result<ProbeError, (String, io::Error)> {
    match source.raw_os_error() {
        Some(libc::EPERM) => Ok(match missing_capabilities() {
            missing if missing.is_empty() => ProbeError::Forbidden { what },
            missing => ProbeError::Capabilities { what, missing },
        }),
        Some(libc::ENOMEM | libc::ENOSPC) => Ok(ProbeError::Memory { what, source }),
        Some(libc::ENOSYS) => Ok(ProbeError::Unsupported { what }),
        Some(_) | None => Err((what, source)),
    }
}

fn has_btf() -> bool {
    Path::new("/sys/kernel/btf/vmlinux").exists()
}

/// Of the capabilities that the probe needs, those that this process does not have.
fn missing_capabilities() -> String {
    let Ok(own) = capabilities(None) else { return "unknown".to_owned() };
    let needed = [
        (CapabilitySet::BPF, "BPF"),
        (CapabilitySet::NET_ADMIN, "NET_ADMIN"),
        (CapabilitySet::PERFMON, "PERFMON"),
    ];
    // SYS_ADMIN stands for what was split off it.
    let stand_in = match own.effective.contains(CapabilitySet::SYS_ADMIN) {
        true => CapabilitySet::BPF | CapabilitySet::PERFMON,
        false => CapabilitySet::empty(),
    };
    let here = own.effective | stand_in;
    let missing: Vec<&str> =
        needed.iter().filter(|(one, _)| !here.contains(*one)).map(|(_, name)| *name).collect();
    missing.join(", ")
}

/// The cgroup, this one or above it, where a program is attached that tolerates no other, and that program.
fn exclusive(cgroup: &Path, hook: Hook) -> Option<(PathBuf, String)> {
    const ALLOW_OVERRIDE: u32 = 1;
    const ALLOW_MULTI: u32 = 2;
    for place in cgroup.ancestors() {
        let Ok(directory) = File::open(place) else { return None };
        // Above the cgroup file system the query fails.
        let Ok(Attached { flags, programs }) = attached(directory.as_fd(), hook) else { return None };
        // A program that may be overridden lets others in below its own cgroup only.
        let tolerant = if place == cgroup { ALLOW_MULTI } else { ALLOW_MULTI | ALLOW_OVERRIDE };
        if let Some(&id) = programs.first().filter(|_| flags & tolerant == 0) {
            return Some((place.to_owned(), describe(id)));
        }
    }
    None
}

fn describe(id: u32) -> String {
    // Reading a program by id takes CAP_SYS_ADMIN; without it there is the id alone.
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id);
    match info.as_ref().and_then(|info| info.name_as_str()) {
        Some(name) => format!("the program {name:?} (id {id})"),
        None => format!("a program (id {id})"),
    }
}
