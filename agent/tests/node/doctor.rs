use std::fs;
use std::process::{Command, Output};

use crate::cgroups::{Cgroup, UID, V1, v2};

const PODCRED: &str = env!("CARGO_BIN_EXE_podcred");

fn output(command: &mut Command) -> (i32, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
    (status.code().unwrap(), text)
}

fn doctor(arguments: &[&str]) -> (i32, String) {
    output(Command::new(PODCRED).arg("doctor").args(arguments))
}

/// The line of the report that has this name.
fn line<'a>(report: &'a str, name: &str) -> &'a str {
    let named = |line: &&str| line.get(10..).is_some_and(|rest| rest.starts_with(name));
    report.lines().find(named).unwrap_or_else(|| panic!("no line {name} in\n{report}"))
}

fn kubepods(root: &Cgroup) -> String {
    root.make(&format!("kubepods/burstable/pod{UID}"));
    root.path().join("kubepods").to_str().unwrap().to_owned()
}

#[test]
fn a_node_that_has_everything_can_enforce() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let kubepods = kubepods(&root);
    let (status, report) = doctor(&["--kubepods-cgroup", &kubepods]);
    assert_eq!(status, 0, "{report}");
    for program in ["connect4", "connect6", "sock_release"] {
        assert!(line(&report, program).ends_with(&kubepods), "{report}");
    }
    for program in ["getsockopt", "sock_ops"] {
        assert!(line(&report, program).contains("can be attached"), "{report}");
    }
    assert!(line(&report, "pods' cgroups").ends_with("pods there: 1"), "{report}");
    assert!(!report.contains("broken"), "{report}");
}

#[test]
fn a_kubelet_that_has_not_started_leaves_the_question_open() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let (status, report) = doctor(&["--kubepods-cgroup", &format!("{}/later", root.path().display())]);
    assert_eq!(status, 2, "{report}");
    assert!(line(&report, "cgroups").contains("has not started yet"), "{report}");
}

#[test]
fn pods_in_cgroup_v1_are_for_audit_only() {
    let Some(root) = Cgroup::new(V1) else { return };
    let (status, report) = doctor(&["--kubepods-cgroup", &kubepods(&root)]);
    assert_eq!(status, 1, "{report}");
    assert!(line(&report, "cgroups").starts_with("degraded"), "{report}");
    assert!(report.lines().last().unwrap().starts_with("Callers are attributed by proc"), "{report}");
}

#[test]
fn missing_capabilities_are_told_as_such() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let bounded = ["--bounding-set=-all", "--inh-caps=-all", PODCRED, "doctor", "--kubepods-cgroup"];
    let (status, report) = output(Command::new("setpriv").args(bounded).arg(kubepods(&root)));
    assert_eq!(status, 1, "{report}");
    for name in ["BPF", "NET_ADMIN", "PERFMON", "DAC_READ_SEARCH", "NET_BIND_SERVICE"] {
        assert!(line(&report, "capabilities").contains(name), "{report}");
    }
    assert!(line(&report, "kernel programs").starts_with("broken"), "{report}");
    assert!(line(&report, "pods' cgroups").contains("DAC_READ_SEARCH"), "{report}");
}

#[test]
fn each_program_that_cannot_be_loaded_says_why() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let bounded = ["--bounding-set=-net_admin,-sys_admin", PODCRED, "doctor", "--kubepods-cgroup"];
    let (status, report) = output(Command::new("setpriv").args(bounded).arg(kubepods(&root)));
    assert_eq!(status, 1, "{report}");
    for program in ["connect4", "connect6", "getsockopt", "sock_ops", "sock_release"] {
        let line = line(&report, program);
        assert!(line.starts_with("broken") && line.contains("Missing: NET_ADMIN"), "{report}");
    }
}

#[test]
fn in_a_cgroup_namespace_only_the_nodes_mount_will_do() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let (own, kubepods) = (root.make("own"), kubepods(&root));
    let fresh = tempfile::tempdir().unwrap();
    let in_a_namespace = |doctor: &str| {
        let enter = format!(
            "echo $$ > {}/cgroup.procs && exec unshare --cgroup --mount sh -c '{doctor}'",
            own.display()
        );
        output(Command::new("sh").args(["-ec", &enter]))
    };

    let place = fresh.path().display();
    let (status, report) =
        in_a_namespace(&format!("mount -t cgroup2 none {place} && {PODCRED} doctor --cgroup-root {place}"));
    assert_eq!(status, 1, "{report}");
    assert!(line(&report, "cgroups").contains("does not show the node"), "{report}");
    assert!(report.contains("hostPath"), "{report}");
    assert_eq!(fs::read_dir(fresh.path()).unwrap().count(), 0, "the mount ends with its namespace");

    let (status, report) = in_a_namespace(&format!("{PODCRED} doctor --kubepods-cgroup {kubepods}"));
    assert_eq!(status, 0, "{report}");
    assert!(line(&report, "cgroup namespace").contains("own"), "{report}");
    assert!(line(&report, "own cgroup").contains(own.to_str().unwrap()), "{report}");
}

#[test]
fn a_wrong_command_line_is_neither_yes_nor_no() {
    let (status, text) = doctor(&["--kubepods"]);
    assert_eq!(status, 2, "{text}");
}
