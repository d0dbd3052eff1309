//! What the kubelet and the container runtimes call the cgroups of a pod.
//!
//! | | systemd driver | cgroupfs driver |
//! |---|---|---|
//! | level, none for guaranteed pods | `kubepods-burstable.slice` | `burstable` |
//! | pod | `kubepods-burstable-pod<uid, with _ for ->.slice` | `pod<uid>` |
//! | container | `cri-containerd-<id>.scope`, `crio-…`, `docker-…` | `<id>`, `crio-<id>` |
//!
//! A kubelet with a cgroup root of its own (kind's) writes that in front of its slices. What is below the container
//! is named by whoever runs in it, so it is never looked at.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::PodCgroup;

const LEVELS: [&str; 2] = ["burstable", "besteffort"];
const CONTAINER_ID_LENGTH: usize = 64;

/// Reads a path from the kubepods cgroup on. None: no pod's, such as the cgroup of a level.
pub fn parse(below_kubepods: &Path) -> Option<PodCgroup> {
    let names = below_kubepods.as_os_str().as_bytes().split(|byte| *byte == b'/');
    let mut names = names.map(|name| str::from_utf8(name).unwrap_or_default());
    let first = names.next()?;
    let pod_uid = match Level::parse(first) {
        Some(level) => level.pod_uid(names.next()?)?,
        None => guaranteed_pod_uid(first)?,
    };
    let container_id = names.next().and_then(container_id).map(Arc::from);
    Some(PodCgroup { pod_uid: pod_uid.into(), container_id })
}

enum Level<'a> {
    Directory,
    /// The slice's name without `.slice`, with which systemd wants the names of its children to begin.
    Slice(&'a str),
}

impl<'a> Level<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        if LEVELS.contains(&name) {
            return Some(Level::Directory);
        }
        let stem = name.strip_suffix(".slice")?;
        is_level(stem).then_some(Level::Slice(stem))
    }

    fn pod_uid(&self, name: &str) -> Option<String> {
        match self {
            Level::Directory => directory_pod_uid(name),
            Level::Slice(stem) => {
                slice_pod_uid(name).filter(|(parent, _)| parent == stem).map(|(_, uid)| uid)
            }
        }
    }
}

fn guaranteed_pod_uid(name: &str) -> Option<String> {
    let slice = slice_pod_uid(name).filter(|(parent, _)| !is_level(parent)).map(|(_, uid)| uid);
    slice.or_else(|| directory_pod_uid(name))
}

fn is_level(stem: &str) -> bool {
    stem.rsplit_once('-').is_some_and(|(_, level)| LEVELS.contains(&level))
}

fn directory_pod_uid(name: &str) -> Option<String> {
    let uid = name.strip_prefix("pod")?;
    is_uid(uid).then(|| uid.to_owned())
}

/// The parent slice's stem, and the UID.
fn slice_pod_uid(name: &str) -> Option<(&str, String)> {
    let (parent, uid) = name.strip_suffix(".slice")?.rsplit_once("-pod")?;
    // A dash would stand for one more level of slices.
    let uid = if uid.contains('-') { return None } else { uid.replace('_', "-") };
    is_uid(&uid).then_some((parent, uid))
}

/// A UUID, or the 32 digits of the hash that stands for it with static pods.
fn is_uid(uid: &str) -> bool {
    let dash = |at: usize| uid.len() == 36 && [8, 13, 18, 23].contains(&at);
    [32, 36].contains(&uid.len())
        && uid.bytes().enumerate().all(|(at, byte)| if dash(at) { byte == b'-' } else { is_hex(byte) })
}

fn container_id(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (runtime, id) = name.rsplit_once('-').unwrap_or(("", name));
    // cri-o's helper has the container's id in its name, but runs outside of it.
    let container = id.len() == CONTAINER_ID_LENGTH && id.bytes().all(is_hex) && runtime != "crio-conmon";
    container.then_some(id)
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}
