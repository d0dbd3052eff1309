use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use podcred::attribute::cgroup::{Cgroups, NoPod};
use podcred::attribute::layout::Layout;
use podcred::attribute::proc::{HostProc, HostProcProblem};
use rustix::time::{ClockId, clock_gettime};

use crate::cgroups::{Cgroup, ID, Process, UID, V1, v2};

fn now() -> Duration {
    clock_gettime(ClockId::Boottime).try_into().unwrap()
}

fn sleeper_in(cgroup: &Path) -> Process {
    let child = Process(Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().unwrap());
    fs::write(cgroup.join("cgroup.procs"), child.0.id().to_string()).unwrap();
    child
}

fn host_proc(kubepods: &Path) -> HostProc {
    let layout = Layout::find(Path::new("/sys/fs/cgroup"), Some(kubepods), Path::new("/proc")).unwrap();
    HostProc::open(Path::new("/proc"), &layout).unwrap()
}

#[test]
fn a_process_leads_to_its_pod_in_either_cgroup_version() {
    for hierarchy in [V1, v2()] {
        let Some(root) = Cgroup::new(hierarchy) else { continue };
        let container = root.make(&format!("kubepods/burstable/pod{UID}/{ID}"));
        let sleeper = sleeper_in(&container);
        let processes = host_proc(&root.path().join("kubepods"));
        let pod = processes.pod_of_tgid(sleeper.0.id(), now()).unwrap();
        assert_eq!((&*pod.pod_uid, pod.container_id.as_deref()), (UID, Some(ID)));
        let own = processes.pod_of_tgid(std::process::id(), now()).unwrap_err();
        assert!(matches!(own, NoPod::NotAPod { .. }), "{own}");

        let first = processes.first_processes().unwrap();
        assert_eq!(first.len(), 1, "{first:?}");
        assert_eq!((&*first[0].pod_uid, first[0].pid), (UID, sleeper.0.id()));
    }
}

#[test]
fn a_pods_first_process_is_the_oldest_in_its_containers() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let container = root.make(&format!("kubepods/burstable/pod{UID}/{ID}"));
    let helper = root.make(&format!("kubepods/burstable/pod{UID}/crio-conmon-{ID}"));
    // Start times are told in hundredths of a second.
    let a_tick = || std::thread::sleep(Duration::from_millis(25));
    let _helper = sleeper_in(&helper);
    a_tick();
    let first = sleeper_in(&container);
    a_tick();
    let _later = sleeper_in(&container);
    let found = host_proc(&root.path().join("kubepods")).first_processes().unwrap();
    assert_eq!(found.iter().map(|found| found.pid).collect::<Vec<_>>(), [first.0.id()]);
}

#[test]
fn a_process_that_started_after_the_connection_is_another_one() {
    let Some(root) = Cgroup::new(V1) else { return };
    let container = root.make(&format!("kubepods/pod{UID}/{ID}"));
    let before = now() - Duration::from_millis(20);
    let mut sleeper = sleeper_in(&container);
    let pid = sleeper.0.id();
    let processes = host_proc(&root.path().join("kubepods"));
    assert!(matches!(processes.pod_of_tgid(pid, before), Err(NoPod::Gone)));
    assert!(processes.pod_of_tgid(pid, now()).is_ok());
    sleeper.0.kill().unwrap();
    sleeper.0.wait().unwrap();
    assert!(matches!(processes.pod_of_tgid(pid, now()), Err(NoPod::Gone)));
}

#[test]
fn both_ways_to_the_pod_agree() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let container = root.make(&format!("kubepods/pod{UID}/{ID}/nested/\u{fc}"));
    let sleeper = sleeper_in(&container);
    let kubepods = root.path().join("kubepods");
    let by_id = Cgroups::open(Path::new(v2()), &kubepods).unwrap();
    let id = podcred::attribute::cgroup::id_of(&container).unwrap();
    let by_process = host_proc(&kubepods).pod_of_tgid(sleeper.0.id(), now()).unwrap();
    assert_eq!(by_id.pod_of(id).unwrap(), by_process);
}

#[test]
fn a_folder_that_is_not_the_nodes_proc_is_refused_with_the_mend() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let kubepods = root.make("kubepods");
    let layout = Layout::find(Path::new("/sys/fs/cgroup"), Some(&kubepods), Path::new("/proc")).unwrap();
    let other = tempfile::tempdir().unwrap();
    let problem = HostProc::open(other.path(), &layout).unwrap_err();
    assert!(matches!(problem, HostProcProblem::NotTheNodes { .. }), "{problem}");
    assert!(problem.to_string().contains("--host-proc"), "{problem}");
}
