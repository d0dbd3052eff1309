//! Process 1 of the node, in its namespaces.

use std::fs::{create_dir, create_dir_all, write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use super::cluster::{Cluster, ISSUER};
use super::runtime::Runtime;
use super::{ADDRESS, Plan, trial};
use crate::eks::Eks;
use crate::namespace::batch;
use crate::place::Place;

pub(crate) const COMMAND: &str = "node-inside";

pub(super) const CGROUPS: &str = "/sys/fs/cgroup";
/// The machine's whole hierarchy.
pub(super) const MACHINE_CGROUPS: &str = "/run/machine-cgroups";

pub(crate) async fn run(plan: &Path) -> Result<()> {
    let plan: Plan = serde_json::from_slice(&std::fs::read(plan)?)?;
    file_systems(&plan).context("mounting what a node has")?;
    network()?;
    let key = plan.scratch.join("service-account.key");
    let more = ["--issuer", ISSUER, "--signing-key-out", &key.display().to_string()];
    let (listen, log) = (SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), plan.logs.join("simulated-eks.log"));
    let eks = Eks::start_with(Place::Host, &plan.simulated_eks, listen, &more, &log).await?;
    let runtime = async { Runtime::start(&plan).await };
    let (cluster, runtime) = tokio::try_join!(Cluster::start(&plan, &key), runtime)?;
    let kubelet = cluster.join(&plan, &runtime).await?;
    trial::run(&plan, &cluster, &eks).await;
    // In this order, so that nobody complains in its log that another is gone.
    drop((kubelet, runtime, cluster, eks));
    Ok(())
}

/// This mount namespace's own: a sysfs that shows this network, cgroup v2 alone with the node's cgroup as its root, and memory
/// over every folder that is written to.
fn file_systems(plan: &Plan) -> Result<()> {
    for on in ["/mnt", "/run"] {
        mount("tmpfs", on, "tmpfs", MountFlags::empty(), Some(c"mode=755")).with_context(|| on.to_owned())?;
    }
    create_dir(MACHINE_CGROUPS)?;
    mount_bind(&plan.cgroup_mount, MACHINE_CGROUPS)?;
    unmount("/sys", UnmountFlags::DETACH)?;
    for (kind, on) in [("sysfs", "/sys"), ("cgroup2", CGROUPS), ("bpf", "/sys/fs/bpf")] {
        mount(kind, on, kind, MountFlags::empty(), None).with_context(|| on.to_owned())?;
    }
    // The kubelet hands controllers on from the root, which then may have no processes.
    let own = Path::new(CGROUPS).join("node");
    create_dir(&own)?;
    write(own.join("cgroup.procs"), "0")?;
    for (on, options) in [
        ("/etc", c"lowerdir=/etc,upperdir=/mnt/etc/upper,workdir=/mnt/etc/work"),
        ("/var", c"lowerdir=/var,upperdir=/mnt/var/upper,workdir=/mnt/var/work"),
    ] {
        for folder in ["upper", "work"] {
            create_dir_all(format!("/mnt{on}/{folder}"))?;
        }
        mount("overlay", on, "overlay", MountFlags::empty(), Some(options)).with_context(|| on.to_owned())?;
    }
    // Mounts of pods have to reach those who look for them.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
    // Where it points to may be in /run, which is empty now. Nothing here is looked up.
    let resolver = Path::new("/etc/resolv.conf");
    let _was_not_there = std::fs::remove_file(resolver);
    write(resolver, "")?;
    Ok(())
}

/// Pods hang on a bridge of containerd's; there is no way out. The API server's Service address is the node's own.
fn network() -> Result<()> {
    let lines = [
        "link set lo up".to_owned(),
        format!("address add {}/32 dev lo", super::cluster::SERVICE),
        "link add node0 type bridge".to_owned(),
        format!("address add {ADDRESS}/24 dev node0"),
        "link set node0 up".to_owned(),
        // The API server wants one.
        "route add default dev node0".to_owned(),
        String::new(),
    ];
    batch(None, &lines.join("\n"))?;
    write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot make the node forward")
}
