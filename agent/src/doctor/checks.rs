//! One function for each line of the report.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FsWord;
use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;

use super::{Item, State};
use crate::attribute::cgroup::{Cgroups, NoPod, id_of};
use crate::attribute::inet_diag::{InetDiag, InetDiagProblem};
use crate::attribute::layout::{Layout, LayoutProblem, Version};
use crate::attribute::probe::{ProbeError, Tried};
use crate::attribute::proc::{HostProc, HostProcProblem};
use crate::causes::chain;

const BTF: &str = "/sys/kernel/btf/vmlinux";
const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";
/// linux/magic.h
const BPF_FS_MAGIC: FsWord = 0xcafe_4a11;
/// PROC_CGROUP_INIT_INO of the kernel's include/linux/proc_ns.h: the namespace that the node itself is in.
const NODES_CGROUP_NAMESPACE: u64 = 0xefff_fffb;

/// A kernel's release, and its first two numbers.
pub(super) struct Kernel {
    release: String,
    version: (u32, u32),
}

impl Kernel {
    pub(super) fn running() -> Self {
        Self::named(&rustix::system::uname().release().to_string_lossy())
    }

    pub(super) fn named(release: &str) -> Self {
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Kernel { release: release.to_owned(), version }
    }
}

pub(super) fn kernel(kernel: &Kernel) -> Item {
    let release = &kernel.release;
    if kernel.version < (5, 10) {
        return broken("kernel", format!("{release}: attribution requires 5.10 or newer; use a newer AMI"));
    }
    ok("kernel", release)
}

pub(super) fn btf() -> Item {
    match fs::metadata(BTF) {
        Ok(_) => ok("BTF", BTF),
        Err(error) => broken(
            "BTF",
            format!(
                "{BTF}: {error}. The kernel programs require a kernel with CONFIG_DEBUG_INFO_BTF, and a readable /sys"
            ),
        ),
    }
}

pub(super) fn effective_capabilities() -> io::Result<CapabilitySet> {
    Ok(rustix::thread::capabilities(None)?.effective)
}

pub(super) fn capabilities(effective: io::Result<CapabilitySet>) -> Item {
    const NAME: &str = "capabilities";
    let effective = match effective {
        Ok(effective) => effective,
        Err(error) => return broken(NAME, format!("cannot read them: {error}")),
    };
    let admin = effective.contains(CapabilitySet::SYS_ADMIN);
    // (name, there, what it is for, whether attribution needs it)
    let wanted = [
        ("BPF", admin || effective.contains(CapabilitySet::BPF), "to load the kernel programs", true),
        ("NET_ADMIN", effective.contains(CapabilitySet::NET_ADMIN), "to attach them", true),
        (
            "PERFMON",
            admin || effective.contains(CapabilitySet::PERFMON),
            "for their pointer operations",
            true,
        ),
        (
            "DAC_READ_SEARCH",
            effective.contains(CapabilitySet::DAC_READ_SEARCH),
            "to find a cgroup by its ID",
            true,
        ),
        (
            "NET_BIND_SERVICE",
            effective.contains(CapabilitySet::NET_BIND_SERVICE),
            "to listen on port 80",
            false,
        ),
    ];
    let missing: Vec<_> = wanted.iter().filter(|(_, there, _, _)| !there).collect();
    if missing.is_empty() {
        let substitute =
            if effective.contains(CapabilitySet::BPF) { "" } else { " (SYS_ADMIN stands in for BPF)" };
        return ok(NAME, &format!("all{substitute}"));
    }
    let reasons: Vec<_> = missing.iter().map(|(name, _, reason, _)| format!("{name} {reason}")).collect();
    let names: Vec<_> = missing.iter().map(|(name, ..)| *name).collect();
    let text =
        format!("missing {}: securityContext.capabilities.add: [{}]", reasons.join(", "), names.join(", "));
    let needed = missing.iter().any(|(.., needed)| *needed);
    Item { state: if needed { State::Broken } else { State::Degraded }, name: NAME, text }
}

pub(super) fn locked_memory(kernel: &Kernel) -> Item {
    const NAME: &str = "locked memory";
    let limit = getrlimit(Resource::Memlock);
    let size = limit.maximum.map_or("unlimited".to_owned(), |bytes| format!("at most {} KiB", bytes / 1024));
    if kernel.version >= (5, 11) {
        return ok(NAME, &format!("{size}; this kernel does not count maps against it"));
    }
    let may_raise = effective_capabilities().is_ok_and(|set| set.contains(CapabilitySet::SYS_RESOURCE));
    if limit.maximum.is_none() || may_raise {
        return ok(NAME, &size);
    }
    degraded(
        NAME,
        format!(
            "{size}; before Linux 5.11 the kernel programs' maps count against it. If they do not load, raise the container \
             runtime's LimitMEMLOCK, or add the capability SYS_RESOURCE"
        ),
    )
}

/// Only `--pin` needs it.
pub(super) fn bpf_file_system(pin: Option<&Path>) -> Item {
    const NAME: &str = "bpf file system";
    let path = pin.unwrap_or(Path::new(BPF_FILE_SYSTEM));
    // The folder itself is made by the agent.
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let there = rustix::fs::statfs(existing).is_ok_and(|file_system| file_system.f_type == BPF_FS_MAGIC);
    match (there, pin) {
        (true, _) => ok(NAME, &path.display().to_string()),
        (false, None) => ok(NAME, "none mounted; only --pin needs one"),
        (false, Some(pin)) => degraded(
            NAME,
            format!(
                "--pin {} is not on one, so the kernel programs cannot outlive the agent. Mount the node's {BPF_FILE_SYSTEM} as \
                 a hostPath volume, and use a folder in it",
                pin.display()
            ),
        ),
    }
}

pub(super) fn layout(layout: &Result<Layout, LayoutProblem>) -> Item {
    const NAME: &str = "cgroups";
    match layout {
        Ok(Layout { mount, version: Version::V2, .. }) => {
            ok(NAME, &format!("version 2 at {}", mount.display()))
        }
        Ok(Layout { version: Version::V1Pods(pods), .. }) => degraded(
            NAME,
            format!(
                "the pods are in version 1, at {}, where a cgroup ID does not identify a pod. For --verify enforce use an AMI \
                 with cgroup v2",
                pods.hierarchy.display()
            ),
        ),
        Err(problem) => broken(NAME, problem.to_string()),
    }
}

pub(super) fn cgroup_namespace(layout: &Result<Layout, LayoutProblem>) -> Item {
    const NAME: &str = "cgroup namespace";
    match fs::metadata("/proc/self/ns/cgroup") {
        Ok(namespace) if namespace.ino() == NODES_CGROUP_NAMESPACE => ok(NAME, "the node's"),
        Ok(_) if layout.is_ok() => ok(NAME, "the container's own, but the mount shows the node's cgroups"),
        Ok(_) => degraded(
            NAME,
            "the container's own, so a mount made inside it shows this container only. Mount the node's /sys/fs/cgroup as \
             a hostPath volume"
                .to_owned(),
        ),
        Err(error) => degraded(NAME, format!("cannot determine it: {error}")),
    }
}

pub(super) fn kubepods(layout: &Layout, cgroups: io::Result<Cgroups>) -> Item {
    const NAME: &str = "pods' cgroups";
    if let Version::V1Pods(pods) = &layout.version {
        return degraded(NAME, format!("{}, in version 1", pods.kubepods.display()));
    }
    let path = layout.kubepods.display();
    let found = cgroups.and_then(|cgroups| {
        // Looked up as every caller's is.
        match cgroups.pod_of(id_of(&layout.kubepods)?) {
            Err(NoPod::CannotTell { cause }) => Err(cause),
            Ok(_) | Err(NoPod::Gone | NoPod::NotAPod { .. }) => cgroups.groups_of_pods(),
        }
    });
    match found {
        Ok(pods) => {
            ok(NAME, &format!("{path}, at level {}; pods there: {}", layout.kubepods_level, pods.len()))
        }
        Err(cause) => broken(NAME, format!("{path}: {}", NoPod::CannotTell { cause })),
    }
}

pub(super) fn own_cgroup(layout: &Layout) -> Item {
    let place = match &layout.version {
        Version::V1Pods(_) => "",
        Version::V2 if layout.agent_cgroup.starts_with(&layout.kubepods) => ", below the pods'",
        Version::V2 => ", outside the pods'",
    };
    ok("own cgroup", &format!("{}{place}", layout.agent_cgroup.display()))
}

/// A line for each program and cgroup, or one for all where it does not get that far.
pub(super) fn programs(tried: Result<Vec<Tried>, ProbeError>) -> Vec<Item> {
    let line = |Tried { hook, attached }| match attached {
        Ok(cgroup) => ok(hook, &format!("loads, and can be attached to {}", cgroup.display())),
        Err(error) => broken(hook, chain(&error)),
    };
    match tried {
        Ok(tried) => tried.into_iter().map(line).collect(),
        Err(error) => vec![broken("kernel programs", format!("cannot load them: {}", chain(&error)))],
    }
}

pub(super) fn host_proc(layout: &Layout, processes: &Result<HostProc, HostProcProblem>) -> Item {
    const NAME: &str = "node's /proc";
    match (processes, &layout.version) {
        (Ok(_), _) => ok(NAME, "there"),
        (Err(problem), Version::V2) => {
            ok(NAME, &format!("not there; not needed while the kernel programs work ({problem})"))
        }
        (Err(problem), Version::V1Pods(_)) => broken(NAME, problem.to_string()),
    }
}

pub(super) fn socket_diagnosis(sockets: &Result<InetDiag, InetDiagProblem>) -> Item {
    const NAME: &str = "inet_diag";
    match sockets {
        Ok(_) => ok(NAME, "can replace the kernel programs, for audit and metrics only"),
        Err(problem) => degraded(NAME, format!("cannot replace the kernel programs: {problem}")),
    }
}

fn ok(name: &'static str, text: &str) -> Item {
    Item { state: State::Ok, name, text: text.to_owned() }
}

fn degraded(name: &'static str, text: String) -> Item {
    Item { state: State::Degraded, name, text }
}

fn broken(name: &'static str, text: String) -> Item {
    Item { state: State::Broken, name, text }
}
