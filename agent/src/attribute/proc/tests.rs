use super::*;

fn hierarchy(controllers: &[&str], namespace: &str) -> Hierarchy {
    Hierarchy {
        controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
        kubepods: "/kubepods".into(),
        namespace: namespace.into(),
    }
}

const LINES: &str =
    "12:cpu,cpuacct:/kubepods/a\n3:name=systemd:/kubepods/b: c\n2:pids:/\n0::/kubepods/d (deleted)\n";

#[test]
fn each_hierarchy_has_its_own_line() {
    for (controllers, path) in [
        (&["cpu", "cpuacct"][..], "/kubepods/a"),
        (&["systemd"], "/kubepods/b: c"),
        (&["pids"], "/"),
        (&[], "/kubepods/d"),
    ] {
        assert_eq!(hierarchy(controllers, "/").path_of(LINES), Some(path.into()), "{controllers:?}");
    }
    assert_eq!(hierarchy(&["memory"], "/").path_of(LINES), None);
}

#[test]
fn paths_are_read_from_within_a_cgroup_namespace() {
    let inside = hierarchy(&[], "/kubepods/besteffort/podA/one");
    for (shown, path) in [
        ("/", "/kubepods/besteffort/podA/one"),
        ("/nested", "/kubepods/besteffort/podA/one/nested"),
        ("/../two", "/kubepods/besteffort/podA/two"),
        ("/../../../burstable/podB/three", "/kubepods/burstable/podB/three"),
        ("/../../../../system.slice", "/system.slice"),
        ("/../../../../../../..", "/"),
    ] {
        assert_eq!(inside.path_of(&format!("0::{shown}\n")), Some(path.into()), "{shown}");
    }
}

#[test]
fn the_namespace_begins_where_the_shown_path_ends() {
    for (own, shown, root) in [
        ("/", "/", "/"),
        ("/system.slice/podcred.service", "/system.slice/podcred.service", "/"),
        ("/kubepods/podA/one", "/", "/kubepods/podA/one"),
        ("/kubepods/podA/one/nested", "/nested", "/kubepods/podA/one"),
    ] {
        assert_eq!(namespace_root(Path::new(own), Path::new(shown)), Path::new(root), "{own} {shown}");
    }
}

#[test]
fn a_programs_name_does_not_shift_the_numbers() {
    let stat = "7 (a) R 1 (b c) S 2 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0\n";
    assert_eq!(stat_field(stat, 9), Some(2_129_984));
    assert_eq!(stat_field(stat, 22), Some(4711));
    assert_eq!(stat_field("7", 22), None);
}

#[test]
fn process_2_of_a_container_is_no_kernel_thread() {
    let fake = tempfile::tempdir().unwrap();
    fs::create_dir(fake.path().join("2")).unwrap();
    fs::write(fake.path().join("2/stat"), "2 (kthreadd) R 0 0 0 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 5\n")
        .unwrap();
    assert!(!shows_kernel_threads(fake.path()));
    assert!(!shows_kernel_threads(&fake.path().join("missing")));
}
