use std::fs;
use std::path::{Path, PathBuf};

use podcred::attribute::cgroup::{Cgroups, id_of};
use podcred::attribute::layout::{Layout, LayoutProblem, V1Pods, Version};

use crate::cgroups::{Cgroup, ID, UID, V1, v2};

const ROOT: &str = "/sys/fs/cgroup";

fn find(root: &str, kubepods: &Path) -> Result<Layout, LayoutProblem> {
    Layout::find(Path::new(root), Some(kubepods), Path::new("/proc"))
}

fn name(cgroup: &Cgroup) -> PathBuf {
    cgroup.path().file_name().expect("a test cgroup has a name").into()
}

#[test]
fn a_node_with_cgroup_v2_is_found_with_its_levels_and_the_agents_own_cgroup() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let kubepods = root.make("kubepods.slice");
    let relative = name(&root).join("kubepods.slice");
    for (cgroup_root, given) in [(ROOT, &relative), (ROOT, &kubepods), (v2(), &relative), (v2(), &kubepods)] {
        let layout = find(cgroup_root, given).unwrap();
        assert_eq!(layout.mount, Path::new(v2()));
        assert_eq!(layout.kubepods, kubepods);
        assert_eq!(layout.kubepods_level, 2);
        assert_eq!(layout.version, Version::V2);
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        assert_eq!(layout.agent_cgroup, Path::new(v2()).join(own));
    }
}

#[test]
fn a_kubelet_that_has_not_started_yet_is_waited_for() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let problem = find(ROOT, &name(&root).join("kubepods.slice")).unwrap_err();
    assert!(matches!(problem, LayoutProblem::NoKubepods { .. }), "{problem}");
    assert!(problem.may_pass());
}

#[test]
fn a_part_of_the_hierarchy_is_refused() {
    let Some(root) = Cgroup::new(v2()) else { return };
    root.make("kubepods");
    let problem = find(root.path().to_str().unwrap(), Path::new("kubepods")).unwrap_err();
    let LayoutProblem::NotTheRoot { id, .. } = problem else { panic!("{problem}") };
    assert_eq!(id, id_of(root.path()).unwrap());
    assert!(!problem.may_pass());
}

#[test]
fn pods_in_v1_hierarchies_are_seen_and_the_programs_go_to_the_root_of_v2() {
    let Some(root) = Cgroup::new(V1) else { return };
    let kubepods = root.make("kubepods");
    let layout = find(ROOT, &name(&root).join("kubepods")).unwrap();
    assert_eq!(layout.version, Version::V1Pods(V1Pods { hierarchy: V1.into(), kubepods }));
    assert_eq!((layout.kubepods.as_path(), layout.kubepods_level), (Path::new(v2()), 0));
}

#[test]
fn without_a_cgroup2_mount_one_is_made_that_nobody_sees() {
    let Some(v1) = Cgroup::new(V1) else { return };
    let Some(v2) = Cgroup::new(v2()) else { return };
    let kubepods = v1.make("kubepods");
    let layout = find(V1, &name(&v1).join("kubepods")).unwrap();
    assert_eq!(layout.version, Version::V1Pods(V1Pods { hierarchy: V1.into(), kubepods }));
    assert_eq!(id_of(&layout.mount).unwrap(), 1);
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&*layout.mount.to_string_lossy()));

    // It is the same hierarchy as the one that is mounted here, and ids are found through it.
    v2.make(&format!("kubepods/pod{UID}/{ID}"));
    let through = layout.mount.join(name(&v2)).join("kubepods");
    let cgroups = Cgroups::open(&layout.mount, &through).unwrap();
    let id = id_of(&v2.path().join(format!("kubepods/pod{UID}/{ID}"))).unwrap();
    assert_eq!(&*cgroups.pod_of(id).unwrap().pod_uid, UID);
}

#[test]
fn the_agents_own_cgroup_is_where_it_is_listed_whatever_proc_shows() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let own = root.make("own");
    // In a cgroup namespace, /proc shows another path than the one in the node's mount.
    let fake = tempfile::tempdir().unwrap();
    fs::create_dir(fake.path().join("self")).unwrap();
    fs::write(fake.path().join("self/cgroup"), format!("0::/{}/own\n", name(&root).display())).unwrap();
    let layout = Layout::find(Path::new(ROOT), Some(&name(&root).join("own")), fake.path()).unwrap();
    assert_ne!(layout.agent_cgroup, own);
    let procs = fs::read_to_string(layout.agent_cgroup.join("cgroup.procs")).unwrap();
    assert!(procs.lines().any(|pid| pid == std::process::id().to_string()));
}
