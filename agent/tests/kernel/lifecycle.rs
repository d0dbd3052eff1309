//! Agents that end, start again and meet; nodes that cannot do everything.

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use loadtest::node::{Pod, PodSpec};
use nix::sched::{CloneFlags, unshare};
use podcred::attribute::probe::Probe;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::harness::{config_for, until};
use crate::site::{Agent, Bpffs, PORT, Site, get};

const ENFORCE: [&str; 2] = ["--verify", "enforce"];

#[test]
fn a_killed_agent_leaves_nothing_and_its_successor_enforces_again() {
    let Some(site) = Site::new() else { return };
    let (pod, token) = site.pod();
    for _ in 0..2 {
        let agent = site.agent(&ENFORCE);
        agent.until_ready(&site);
        assert_eq!(agent.attribution["source"], "probe");
        assert_eq!(agent.ask(&pod, &token).0, 200);
        // Nothing is remembered of the attempts that found nobody.
        assert_eq!(agent.metric(&site, "podcred_connects_total", "\"refused\""), 0.0);
        let address = agent.credentials;
        agent.kill();
        assert_eq!(get(&pod, address, "/", "").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn with_pins_the_successor_knows_who_was_refused_meanwhile() {
    let Some(site) = Site::new() else { return };
    let bpffs = Bpffs::mount();
    let (pod, token) = site.pod();
    let pinned = pinned(&bpffs);
    let agent = site.agent(&[&ENFORCE[..], &pinned_args(&pinned)].concat());
    agent.until_ready(&site);
    assert_eq!(agent.ask(&pod, &token).0, 200);
    let address = agent.credentials;
    agent.kill();
    for _ in 0..3 {
        assert_eq!(get(&pod, address, "/", "").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    let agent = site.agent(&[&ENFORCE[..], &pinned_args(&pinned)].concat());
    agent.until_ready(&site);
    assert_eq!(agent.ask(&pod, &token).0, 200);
    assert_eq!(agent.metric(&site, "podcred_connects_total", "\"refused\""), 3.0);
}

/// As while a DaemonSet rolls out, or by mistake.
#[test]
fn two_agents_at_once_both_enforce_with_and_without_pins() {
    let Some(site) = Site::new() else { return };
    let bpffs = Bpffs::mount();
    let pinned = pinned(&bpffs);
    let (pod, token) = site.pod();
    let other_port = (PORT + 1).to_string();
    for pins in [vec![], pinned_args(&pinned)] {
        let older = site.agent(&[&ENFORCE[..], &pins].concat());
        let younger = site.agent(&[&ENFORCE[..], &["--port", &other_port], &pins].concat());
        for agent in [&older, &younger] {
            agent.until_ready(&site);
            assert_eq!(agent.ask(&pod, &token).0, 200);
        }
        older.kill();
        assert_eq!(younger.ask(&pod, &token).0, 200);
    }
}

/// With the pins somebody else holds the very links that the agent does.
#[test]
fn links_that_somebody_else_detaches_are_attached_again() {
    let Some(site) = Site::new() else { return };
    let bpffs = Bpffs::mount();
    let pinned = pinned(&bpffs);
    let (pod, token) = site.pod();
    let agent = site.agent(&[&ENFORCE[..], &pinned_args(&pinned)].concat());
    agent.until_ready(&site);
    let somebody = {
        let mut config = config_for(&site.node);
        config.pins = Some(PathBuf::from(&pinned));
        Probe::load(&config).expect("the same pins")
    };
    somebody.detach().expect("links can be detached");
    assert_ne!(agent.ask(&pod, &token).0, 200, "nobody is served whom the kernel does not know");

    agent.event("probe_reattached");
    until("callers are known again", || agent.ask(&pod, &token).0 == 200);
    assert!(agent.metric(&site, "podcred_probe_links_mended_total", "") > 0.0);
}

/// Without CAP_SYS_ADMIN the agent sees its own network namespace alone, so this is a hostNetwork pod.
#[test]
fn without_bpf_the_table_of_sockets_stands_in_for_audit() {
    let Some(site) = Site::new() else { return };
    let pod = site.node.pod(PodSpec::default().host_network()).unwrap();
    let mount = site.node.cgroup_mount().to_str().unwrap();
    let kubepods = site.node.kubepods().to_str().unwrap();
    let place = ["--cgroup-root", mount, "--kubepods-cgroup", kubepods];
    degraded(&site, &pod, "inet_diag", &place, || {
        for capability in [CapabilitySet::BPF, CapabilitySet::SYS_ADMIN, CapabilitySet::NET_ADMIN] {
            remove_capability_from_bounding_set(capability)?;
        }
        Ok(())
    });
}

/// What a container gets that mounts cgroups itself: its own part of the hierarchy, which looks whole.
#[test]
fn a_cgroup_mount_of_a_private_namespace_is_refused() {
    let Some(site) = Site::new() else { return };
    let (pod, _) = site.pod();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_owned();
    let attribution =
        degraded(&site, &pod, "none", &["--cgroup-root", root.to_str().unwrap()], || mount_privately(&root));
    assert!(attribution.contains("/sys/fs/cgroup") && attribution.contains("hostPath"), "{attribution}");
}

/// In a mount namespace of the calling thread's own, which its children inherit.
fn mount_privately(at: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(mount("none", at, "cgroup2", MountFlags::empty(), None)?)
}

#[test]
fn with_cgroup_v1_alone_the_nodes_proc_tells_the_pod() {
    let Some(site) = Site::alone() else { return };
    let Some(hierarchy) = v1_hierarchy() else {
        eprintln!("left out: no cgroup of version 1 is mounted here");
        return;
    };
    let (pod, _) = site.pod();
    // The process that connects is this one, so this one moves.
    let _moved = InV1::enter(&hierarchy, pod.uid(), pod.container_id());
    let kubepods = format!("{}/kubepods", InV1::name());
    let root = hierarchy.to_str().unwrap();
    let place = ["--cgroup-root", root, "--kubepods-cgroup", &kubepods];
    degraded(&site, &pod, "proc", &place, || Ok(()));
}

/// In audit every pod is served and the readiness tells why callers are known no better, by this source; in enforce
/// nobody is. Gives the reason.
fn degraded(
    site: &Site,
    pod: &Pod,
    source: &str,
    place: &[&str],
    prepare: impl Fn() -> io::Result<()> + Sync,
) -> String {
    let token = site.token_of(pod);
    let agent = site.agent_after(&[&["--verify", "audit"], place].concat(), &prepare);
    agent.until_ready(site);
    assert_eq!(agent.attribution["source"], source, "{}", agent.attribution);
    assert_eq!(agent.metric(site, "podcred_attribution", &format!("\"{source}\"")), 1.0);
    assert_eq!(agent.ask(pod, &token).0, 200);
    let problem = agent.attribution["problem"].as_str().expect("a reason").to_owned();
    assert!(agent.readiness(site).1.contains("degraded"), "{:?}", agent.readiness(site));
    let known = agent.metric(site, "podcred_connections_attributed_total", "\"pod\"");
    assert_eq!(known > 0.0, source != "none", "{known} connections were attributed");
    drop(agent);

    let agent: Agent = site.agent_after(&[&ENFORCE[..], place].concat(), &prepare);
    let (status, body) = agent.ask(pod, &token);
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("podcred doctor"), "{body}");
    assert_eq!(agent.readiness(site).0, 503);
    problem
}

fn pinned(bpffs: &Bpffs) -> String {
    bpffs.path().join("podcred").to_str().expect("a readable path").to_owned()
}

fn pinned_args(folder: &str) -> Vec<&str> {
    vec!["--pin", folder]
}

/// A hierarchy of version 1 that is mounted here and has a controller.
fn v1_hierarchy() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let of_v1 = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut of_v1 = of_v1.filter(|fields| fields.get(2) == Some(&"cgroup"));
    of_v1
        .find(|fields| fields.get(3).is_some_and(|options| options.contains("pids")))
        .map(|fields| fields[1].into())
}

/// This process in a pod's cgroup of version 1. It goes back when the guard ends.
struct InV1 {
    root: PathBuf,
    former: PathBuf,
}

impl InV1 {
    fn name() -> String {
        format!("podcred-test-{}-v1", std::process::id())
    }

    fn enter(hierarchy: &Path, pod_uid: &str, container: &str) -> InV1 {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let of = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers: HashSet<_> = fields.next()?.split(',').collect();
            let path = fields.next()?.trim_start_matches('/');
            controllers.contains("pids").then(|| hierarchy.join(path))
        };
        let former = own.lines().find_map(of).expect("this process is in each hierarchy");
        let moved = InV1 { root: hierarchy.join(InV1::name()), former };
        let pod = moved.root.join(format!("kubepods/burstable/pod{pod_uid}/{container}"));
        fs::create_dir_all(&pod).unwrap();
        fs::write(pod.join("cgroup.procs"), "0").unwrap();
        moved
    }
}

impl Drop for InV1 {
    fn drop(&mut self) {
        fs::write(self.former.join("cgroup.procs"), "0").expect("this process was there before");
        let mut cgroup = Some(self.root.join("kubepods/burstable"));
        let pods = fs::read_dir(cgroup.as_ref().expect("just made")).into_iter().flatten().flatten();
        for pod in pods.filter(|entry| entry.path().is_dir()) {
            for container in fs::read_dir(pod.path()).into_iter().flatten().flatten() {
                if container.path().is_dir() {
                    until("the container's cgroup is empty", || fs::remove_dir(container.path()).is_ok());
                }
            }
            until("the pod's cgroup is empty", || fs::remove_dir(pod.path()).is_ok());
        }
        while let Some(empty) = cgroup.filter(|cgroup| cgroup.starts_with(&self.root)) {
            until("the cgroup is empty", || fs::remove_dir(&empty).is_ok());
            cgroup = empty.parent().map(Path::to_owned);
        }
    }
}
