//! How the kubelet lays out cgroups, by its driver and the container runtime.

use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The kubelet's `cgroupDriver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Cgroupfs,
    Systemd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    Containerd,
    CriO,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// EKS nodes have systemd and containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub driver: Driver,
    pub runtime: Runtime,
}

impl Default for Layout {
    fn default() -> Self {
        Layout { driver: Driver::Systemd, runtime: Runtime::Containerd }
    }
}

impl Layout {
    pub(super) fn kubepods(self) -> &'static Path {
        Path::new(match self.driver {
            Driver::Cgroupfs => "kubepods",
            Driver::Systemd => "kubepods.slice",
        })
    }

    /// A pod's cgroup, below `kubepods`.
    pub(super) fn pod(self, qos: Qos, uid: &str) -> PathBuf {
        let class = match qos {
            Qos::Guaranteed => None,
            Qos::Burstable => Some("burstable"),
            Qos::BestEffort => Some("besteffort"),
        };
        let mut path = PathBuf::new();
        match self.driver {
            Driver::Cgroupfs => {
                path.extend(class);
                path.push(format!("pod{uid}"));
            }
            Driver::Systemd => {
                // In a slice's name a dash stands for a level, so the kubelet writes the UID's as underscores.
                let uid = uid.replace('-', "_");
                let class = class.map(|class| format!("kubepods-{class}"));
                path.extend(class.as_ref().map(|class| format!("{class}.slice")));
                path.push(format!("{}-pod{uid}.slice", class.as_deref().unwrap_or("kubepods")));
            }
        }
        path
    }

    /// A container's cgroup, below its pod's.
    pub(super) fn container(self, id: &str) -> String {
        match (self.driver, self.runtime) {
            (Driver::Cgroupfs, Runtime::Containerd) => id.to_owned(),
            (Driver::Cgroupfs, Runtime::CriO) => format!("crio-{id}"),
            (Driver::Systemd, Runtime::Containerd) => format!("cri-containerd-{id}.scope"),
            (Driver::Systemd, Runtime::CriO) => format!("crio-{id}.scope"),
        }
    }
}

/// Of a pod whose cgroup this is, in either layout.
pub(super) fn pod_uid(cgroup: &Path) -> String {
    let name = cgroup.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let name = name.strip_suffix(".slice").unwrap_or(name);
    name.rsplit("pod").next().unwrap_or_default().replace('_', "-")
}

/// Of a container whose cgroup this is.
pub(super) fn container_id(cgroup: &Path) -> &str {
    let name = cgroup.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let name = name.strip_suffix(".scope").unwrap_or(name);
    name.rsplit('-').next().unwrap_or_default()
}

/// A version 4 UUID.
pub(super) fn new_uid() -> String {
    uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid().to_string()
}

pub(super) fn new_container_id() -> String {
    let mut id = String::with_capacity(64);
    for _ in 0..2 {
        let _ = write!(id, "{:032x}", fastrand::u128(..));
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(driver: Driver, runtime: Runtime, qos: Qos) -> String {
        let layout = Layout { driver, runtime };
        let path = layout.kubepods().join(layout.pod(qos, "0aa0-b1")).join(layout.container("c0ffee"));
        path.display().to_string()
    }

    #[test]
    fn cgroups_are_named_as_the_kubelet_and_the_runtime_name_them() {
        use {Driver::*, Qos::*, Runtime::*};
        assert_eq!(path(Cgroupfs, Containerd, Guaranteed), "kubepods/pod0aa0-b1/c0ffee");
        assert_eq!(path(Cgroupfs, CriO, BestEffort), "kubepods/besteffort/pod0aa0-b1/crio-c0ffee");
        assert_eq!(
            path(Systemd, Containerd, Burstable),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0aa0_b1.slice/cri-containerd-c0ffee.scope"
        );
        assert_eq!(
            path(Systemd, CriO, Guaranteed),
            "kubepods.slice/kubepods-pod0aa0_b1.slice/crio-c0ffee.scope"
        );
    }

    #[test]
    fn a_pod_is_known_by_its_cgroup() {
        for driver in [Driver::Cgroupfs, Driver::Systemd] {
            for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
                for uid in ["0aa0-b1", "0aa0b1"] {
                    let layout = Layout { driver, runtime: Runtime::Containerd };
                    assert_eq!(pod_uid(&layout.kubepods().join(layout.pod(qos, uid))), uid);
                }
            }
        }
    }

    #[test]
    fn a_container_is_known_by_its_cgroup() {
        for (driver, runtime) in [
            (Driver::Cgroupfs, Runtime::Containerd),
            (Driver::Cgroupfs, Runtime::CriO),
            (Driver::Systemd, Runtime::Containerd),
            (Driver::Systemd, Runtime::CriO),
        ] {
            let name = Layout { driver, runtime }.container("c0ffee");
            assert_eq!(container_id(&Path::new("kubepods").join(name)), "c0ffee");
        }
    }

    #[test]
    fn uids_and_container_ids_have_their_length() {
        assert_eq!(new_uid().len(), 36);
        assert_eq!(new_container_id().len(), 64);
    }
}
