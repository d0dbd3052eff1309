//! Agents that end, start again and meet; nodes that cannot do everything.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use loadtest::node::Pod;
use nix::sched::{CloneFlags, unshare};
use podcred::attribute::probe::Probe;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::agent::{Cluster, WEB};
use crate::harness::{Bpffs, config_for, refuses, until};

const ENFORCE: [&str; 2] = ["--verify", "enforce"];

#[test]
fn a_killed_agent_leaves_nothing_and_its_successor_enforces_again() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod] = cluster.pods();
    let token = cluster.token_of(&pod, WEB);
    for _ in 0..2 {
        let agent = cluster.agent(&ENFORCE);
        assert_eq!(agent.attribution()["source"], "probe");
        agent.ask(&pod, &token).assert_credentials();
        // Nothing is remembered of the attempts that found nobody.
        assert_eq!(agent.count("podcred_connects_total", "refused"), 0.0);
        drop(agent);
        assert!(refuses(&pod));
    }
}

#[test]
fn with_pins_the_successor_knows_who_was_refused_meanwhile() {
    let Some(cluster) = Cluster::start() else { return };
    let bpffs = Bpffs::mount();
    let [pod] = cluster.pods();
    let token = cluster.token_of(&pod, WEB);
    let args = [ENFORCE, bpffs.args()].concat();
    let agent = cluster.agent(&args);
    agent.ask(&pod, &token).assert_credentials();
    drop(agent);
    for _ in 0..3 {
        assert!(refuses(&pod));
    }
    let agent = cluster.agent(&args);
    agent.ask(&pod, &token).assert_credentials();
    assert_eq!(agent.count("podcred_connects_total", "refused"), 3.0);
}

/// As while a DaemonSet rolls out, or by mistake.
#[test]
fn two_agents_at_once_both_enforce_with_and_without_pins() {
    let Some(cluster) = Cluster::start() else { return };
    let bpffs = Bpffs::mount();
    let [pod] = cluster.pods();
    let token = cluster.token_of(&pod, WEB);
    for pins in [&[][..], &bpffs.args()] {
        let older = cluster.agent(&[&ENFORCE[..], pins].concat());
        let younger = cluster.agent(&[&ENFORCE[..], &["--port", "81"], pins].concat());
        for agent in [&older, &younger] {
            agent.ask(&pod, &token).assert_credentials();
        }
        drop(older);
        younger.ask(&pod, &token).assert_credentials();
    }
}

/// With the pins somebody else holds the very links that the agent does.
#[test]
fn links_that_somebody_else_detaches_are_attached_again() {
    let Some(cluster) = Cluster::start() else { return };
    let bpffs = Bpffs::mount();
    let [pod] = cluster.pods();
    let token = cluster.token_of(&pod, WEB);
    let agent = cluster.agent(&[ENFORCE, bpffs.args()].concat());
    let somebody = {
        let mut config = config_for(&cluster.node);
        config.pins = Some(bpffs.path().to_owned());
        Probe::load(&config).expect("the same pins")
    };
    somebody.detach().expect("links can be detached");
    assert_ne!(agent.ask(&pod, &token).status, 200, "nobody is served whom the kernel does not know");

    agent.until_logged("probe_reattached", 1);
    until("callers are known again", || agent.ask(&pod, &token).status == 200);
    assert!(agent.metric("podcred_probe_links_mended_total", &[]).unwrap() > 0.0);
}

/// Nobody has to start the agent again for it.
#[test]
fn an_address_that_is_made_later_is_served_then_and_missed_when_it_is_taken_away() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod] = cluster.pods();
    let later = "169.254.170.24";
    let args = [&cluster.cgroups()[..], &["--bind-hosts", later]].concat();
    let agent = cluster.agent_after(&args, || Ok(()));
    agent.ask(&pod, &cluster.token_of(&pod, WEB)).assert_credentials();
    let unready = agent.readiness();
    assert!(unready.status == 503 && unready.body.contains(later), "{unready:?}");

    let ip = |what: &str| {
        let mut ip = Command::new("ip");
        ip.args(["address", what, &format!("{later}/32"), "dev", "lo"]);
        let done = cluster.node.agent().run(|| ip.status()).expect("the agent's place").expect("iproute2");
        assert!(done.success(), "{what}");
    };
    let served = || agent.metric("podcred_listener_bound", &[("address", later)]);
    ip("add");
    agent.until_ready();
    agent.until_logged("port_free", 1);
    assert_eq!(served(), Some(1.0));

    ip("del");
    agent.until_logged("address_gone", 1);
    let unready = agent.readiness();
    assert!(unready.status == 503 && unready.body.contains(later), "{unready:?}");
    assert_eq!(served(), Some(0.0));
    ip("add");
    agent.until_logged("address_back", 1);
    agent.until_ready();
    assert_eq!(served(), Some(1.0));
}

/// Without CAP_SYS_ADMIN the agent sees its own network namespace alone, so this is a hostNetwork pod.
#[test]
fn without_bpf_the_table_of_sockets_stands_in_for_audit() {
    let Some(cluster) = Cluster::start() else { return };
    let pod = cluster.host_network_pod();
    degraded(&cluster, &pod, "inet_diag", &cluster.cgroups(), || {
        for capability in [CapabilitySet::BPF, CapabilitySet::SYS_ADMIN, CapabilitySet::NET_ADMIN] {
            remove_capability_from_bounding_set(capability)?;
        }
        Ok(())
    });
}

/// What a container gets that mounts cgroups itself: its own part of the hierarchy, which looks whole.
#[test]
fn a_cgroup_mount_of_a_private_namespace_is_refused() {
    let Some(cluster) = Cluster::start() else { return };
    let [pod] = cluster.pods();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_owned();
    let place = ["--cgroup-root", root.to_str().unwrap()];
    let problem = degraded(&cluster, &pod, "none", &place, || mount_privately(&root));
    assert!(problem.contains("/sys/fs/cgroup") && problem.contains("hostPath"), "{problem}");
}

/// In a mount namespace of the calling thread's own, which its children inherit.
fn mount_privately(at: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(mount("none", at, "cgroup2", MountFlags::empty(), None)?)
}

#[test]
fn with_cgroup_v1_alone_the_nodes_proc_tells_the_pod() {
    let Some(cluster) = Cluster::alone() else { return };
    let Some(hierarchy) = v1_hierarchy() else {
        eprintln!("left out: no cgroup of version 1 is mounted here");
        return;
    };
    let [pod] = cluster.pods();
    // The process that connects is this one, so this one moves.
    let _moved = InV1::enter(&hierarchy, &pod.uid(), &pod.container_id());
    let kubepods = format!("{}/kubepods", InV1::name());
    let root = hierarchy.to_str().unwrap();
    let place = ["--cgroup-root", root, "--kubepods-cgroup", &kubepods];
    degraded(&cluster, &pod, "proc", &place, || Ok(()));
}

/// In audit every pod is served and the readiness tells why callers are known no better, by this source; in enforce
/// nobody is. Gives the reason.
fn degraded(
    cluster: &Cluster,
    pod: &Pod,
    source: &str,
    place: &[&str],
    prepare: impl Fn() -> io::Result<()> + Sync,
) -> String {
    let token = cluster.token_of(pod, WEB);
    let agent = cluster.agent_after(&[&["--verify", "audit"], place].concat(), &prepare);
    agent.until_ready();
    let attribution = agent.attribution();
    assert_eq!(attribution["source"], source, "{attribution}");
    assert_eq!(agent.metric("podcred_attribution", &[("source", source)]), Some(1.0));
    agent.ask(pod, &token).assert_credentials();
    let problem = attribution["problem"].as_str().expect("a reason").to_owned();
    assert!(agent.readiness().body.contains("degraded"), "{:?}", agent.readiness());
    let known = agent.count("podcred_connections_attributed_total", "pod");
    assert_eq!(known > 0.0, source != "none", "{known} connections were attributed");
    drop(agent);

    let agent = cluster.agent_after(&[&ENFORCE[..], place].concat(), &prepare);
    let answer = agent.ask(pod, &token);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("podcred doctor"), "{answer:?}");
    assert_eq!(agent.readiness().status, 503);
    problem
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
