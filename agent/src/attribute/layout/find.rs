//! Cgroups found by their names and by who runs in them.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::LayoutProblem;
use crate::attribute::cgroup::{self, children};

/// How deep a kubepods cgroup is looked for: kind has it at
/// `/system.slice/docker-<id>.scope/kubelet.slice/kubelet-kubepods.slice`.
const DEPTH: usize = 4;

/// The cgroup that all pods are below, in one hierarchy.
pub(super) fn kubepods(hierarchy: &Path, given: Option<&Path>) -> Result<Option<PathBuf>, LayoutProblem> {
    match given {
        Some(given) => given_kubepods(hierarchy, given),
        None => search_kubepods(hierarchy),
    }
}

/// Whether any pod has a cgroup there.
pub(super) fn has_pods(kubepods: &Path) -> bool {
    let is_pod = |below: &Path| cgroup::parse(below).is_some();
    let levels = children(kubepods).unwrap_or_default();
    levels.iter().any(|(level, _)| {
        let below = children(&kubepods.join(level)).unwrap_or_default();
        is_pod(level) || below.iter().any(|(name, _)| is_pod(&level.join(name)))
    })
}

/// The cgroup that this process is in, in the hierarchy of `mount`; `is_hierarchy` knows it by the list of its
/// controllers.
pub(in crate::attribute) fn own_cgroup(
    mount: &Path,
    proc: &Path,
    is_hierarchy: impl Fn(&str) -> bool,
) -> Result<PathBuf, LayoutProblem> {
    let file = proc.join("self/cgroup");
    let lines = fs::read_to_string(&file).map_err(|cause| LayoutProblem::unreadable(&file, cause))?;
    // In a cgroup namespace of one's own every path starts at that namespace's root. What the cgroup itself says is
    // right in any namespace.
    // Taken apart, because joining an empty path would leave a slash at the end.
    let below = |shown: &str| {
        mount.components().chain(Path::new(shown.trim_start_matches('/')).components()).collect()
    };
    match shown_cgroup(&lines, is_hierarchy).map(below) {
        Some::<PathBuf>(shown) if holds_this_process(&shown) => Ok(shown),
        Some(_) | None => {
            let found = search_own(mount).map_err(|cause| LayoutProblem::unreadable(mount, cause))?;
            found.ok_or_else(|| LayoutProblem::NoOwnCgroup { mount: mount.to_owned() })
        }
    }
}

/// The path that the lines of a `/proc/<pid>/cgroup` have for one hierarchy.
pub(in crate::attribute) fn shown_cgroup(lines: &str, is_hierarchy: impl Fn(&str) -> bool) -> Option<&str> {
    lines.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        is_hierarchy(controllers).then_some(path)
    })
}

fn given_kubepods(hierarchy: &Path, given: &Path) -> Result<Option<PathBuf>, LayoutProblem> {
    let below = given.strip_prefix(hierarchy).or_else(|_| given.strip_prefix("/")).unwrap_or(given);
    let named = below.components().all(|component| matches!(component, Component::Normal(_)));
    if !named || below == Path::new("") {
        return Err(LayoutProblem::KubepodsElsewhere {
            kubepods: given.to_owned(),
            root: hierarchy.to_owned(),
        });
    }
    let kubepods = hierarchy.join(below);
    Ok(kubepods.is_dir().then_some(kubepods))
}

/// Level by level, and not below one that was found: a pod's processes may make cgroups with any name.
fn search_kubepods(hierarchy: &Path) -> Result<Option<PathBuf>, LayoutProblem> {
    let mut level = vec![hierarchy.to_owned()];
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for parent in &level {
            let below = children(parent).map_err(|cause| LayoutProblem::unreadable(parent, cause))?;
            next.extend(below.into_iter().map(|(name, _)| parent.join(name)));
        }
        let mut found: Vec<_> = next.iter().filter(|path| is_kubepods(path)).cloned().collect();
        if found.len() > 1 {
            found.sort();
            return Err(LayoutProblem::SeveralKubepods { found });
        }
        if let Some(found) = found.pop() {
            return Ok(Some(found));
        }
        level = next;
    }
    Ok(None)
}

fn is_kubepods(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let name = name.strip_suffix(".slice").unwrap_or(name);
    name == "kubepods" || name.ends_with("-kubepods")
}

fn search_own(root: &Path) -> io::Result<Option<PathBuf>> {
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        if holds_this_process(&path) {
            return Ok(Some(path));
        }
        left.extend(children(&path)?.into_iter().map(|(name, _)| path.join(name)));
    }
    Ok(None)
}

/// `cgroup.procs` shows processes by the numbers that they have for its reader, so a pid namespace does no harm.
fn holds_this_process(cgroup: &Path) -> bool {
    let own = std::process::id().to_string();
    fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|pids| pids.lines().any(|pid| pid == own))
}
