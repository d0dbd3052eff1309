use std::fs::{create_dir_all, write};

use super::*;

fn tree(dirs: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for dir in dirs {
        create_dir_all(root.path().join(dir)).unwrap();
    }
    root
}

fn found(root: &tempfile::TempDir, given: Option<&str>) -> Option<String> {
    let found = find::kubepods(root.path(), given.map(Path::new)).unwrap()?;
    Some(found.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned())
}

#[test]
fn kubepods_is_found_under_each_name_that_kubelets_give_it() {
    for name in [
        "kubepods",
        "kubepods.slice",
        "kubelet/kubepods",
        "kubelet.slice/kubelet-kubepods.slice",
        "system.slice/docker-0123.scope/kubelet.slice/kubelet-kubepods.slice",
    ] {
        let root = tree(&["init.scope", "user.slice/notkubepods", name]);
        assert_eq!(found(&root, None).as_deref(), Some(name));
    }
}

#[test]
fn a_name_made_deeper_down_does_not_hide_the_kubelets() {
    let root = tree(&[
        "kubepods.slice/kubepods.slice",
        "docker/0123/kubepods",
        "system.slice/docker.service/kubepods.slice",
    ]);
    assert_eq!(found(&root, None).as_deref(), Some("kubepods.slice"));
}

#[test]
fn two_kubelets_are_not_chosen_between() {
    let root = tree(&["docker/a/kubelet/kubepods", "docker/b/kubelet/kubepods"]);
    let problem = find::kubepods(root.path(), None).unwrap_err();
    let LayoutProblem::SeveralKubepods { found } = &problem else { panic!("{problem}") };
    assert_eq!(found.len(), 2);
    assert!(problem.to_string().contains("--kubepods-cgroup"), "{problem}");
    assert_eq!(
        found_by_flag(&root, "docker/b/kubelet/kubepods"),
        Some("docker/b/kubelet/kubepods".to_owned())
    );
}

fn found_by_flag(root: &tempfile::TempDir, given: &str) -> Option<String> {
    found(root, Some(given))
}

#[test]
fn the_flag_takes_paths_from_the_mount_on_and_absolute_ones() {
    let root = tree(&["a/b"]);
    let absolute = root.path().join("a/b");
    for given in ["a/b", "/a/b", absolute.to_str().unwrap()] {
        assert_eq!(found_by_flag(&root, given).as_deref(), Some("a/b"), "{given}");
    }
    assert_eq!(found_by_flag(&root, "a/c"), None);
    for outside in ["../a", "a/../../b", "/", ""] {
        let problem = find::kubepods(root.path(), Some(Path::new(outside))).unwrap_err();
        assert!(matches!(problem, LayoutProblem::KubepodsElsewhere { .. }), "{outside}: {problem}");
    }
}

#[test]
fn on_hybrid_nodes_the_processes_tell_which_version_the_pods_use() {
    const POD: &str = "burstable/pod0d9b2a68-7a50-4a52-b9fd-1d7e3a2c9f10";
    let v2 = tree(&["."]);
    let populated = |yes: u8| write(v2.path().join("cgroup.events"), format!("populated {yes}\n")).unwrap();
    let (with_pods, without) = (tree(&[POD]), tree(&["burstable"]));
    let v1 = |kubepods: &tempfile::TempDir| V1Pods {
        hierarchy: "/sys/fs/cgroup/pids".into(),
        kubepods: kubepods.path().to_owned(),
    };
    let in_v2 = || Some(v2.path().to_owned());

    populated(1);
    assert_eq!(choose(in_v2(), Some(v1(&with_pods))), Some((Version::V2, in_v2())));
    populated(0);
    assert_eq!(choose(in_v2(), Some(v1(&without))), Some((Version::V2, in_v2())));
    assert_eq!(choose(in_v2(), None), Some((Version::V2, in_v2())));
    let in_v1 = Some((Version::V1Pods(v1(&with_pods)), None));
    assert_eq!(choose(in_v2(), Some(v1(&with_pods))), in_v1);
    assert_eq!(choose(None, Some(v1(&with_pods))), in_v1);
    assert_eq!(choose(None, None), None);
}

#[test]
fn what_is_no_cgroup_file_system_is_refused() {
    let root = tree(&["unified/kubepods", "pids/kubepods"]);
    let problem = Layout::find(root.path(), None, Path::new("/proc")).unwrap_err();
    assert!(matches!(problem, LayoutProblem::NotCgroup { .. }), "{problem}");
    assert!(!problem.may_pass());
    let problem = Layout::find(&root.path().join("missing"), None, Path::new("/proc")).unwrap_err();
    assert!(matches!(problem, LayoutProblem::Unreadable { .. }), "{problem}");
}
