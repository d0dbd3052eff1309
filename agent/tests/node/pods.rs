use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podcred::attribute::cgroup::{Cgroups, NoPod, PodCgroup, id_of};

use crate::cgroups::{Cgroup, ID, OTHER_UID, UID, v2};

fn pod(uid: &str, container: Option<&str>) -> PodCgroup {
    PodCgroup { pod_uid: uid.into(), container_id: container.map(Arc::from) }
}

fn cgroups(kubepods: &Path) -> Cgroups {
    Cgroups::open(Path::new(v2()), kubepods).expect("the cgroups are there")
}

#[test]
fn an_id_leads_to_the_pod_whatever_a_container_makes_below_its_cgroup() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let container = root.make(&format!("kubepods/burstable/pod{UID}/{ID}"));
    let nested =
        root.make(&format!("kubepods/burstable/pod{UID}/{ID}/burstable/pod{OTHER_UID}/{ID} (deleted)"));
    let cgroups = cgroups(&root.path().join("kubepods"));
    for path in [&container, &nested] {
        assert_eq!(cgroups.pod_of(id_of(path).unwrap()).unwrap(), pod(UID, Some(ID)));
    }
    assert_eq!(cgroups.pod_of(id_of(container.parent().unwrap()).unwrap()).unwrap(), pod(UID, None));
}

#[test]
fn a_cgroup_beside_kubepods_is_no_pods() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let kubepods = root.make("kubepods");
    let cgroups = cgroups(&kubepods);
    let beside = root.make(&format!("kubepods-2/burstable/pod{UID}/{ID}"));
    for path in [&beside, &root.make("kubepods/burstable"), &kubepods, Path::new(v2())] {
        let problem = cgroups.pod_of(id_of(path).unwrap()).unwrap_err();
        let NoPod::NotAPod { path: told } = problem else { panic!("{}: {problem}", path.display()) };
        assert_eq!(told, *path);
    }
}

#[test]
fn a_removed_cgroup_is_gone_but_one_seen_before_is_known_until_the_sweep() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let kubepods = root.make("kubepods");
    let seen = root.make(&format!("kubepods/pod{UID}/{ID}"));
    let unseen = root.make(&format!("kubepods/pod{OTHER_UID}"));
    let (seen_id, unseen_id) = (id_of(&seen).unwrap(), id_of(&unseen).unwrap());
    let cgroups = cgroups(&kubepods);
    let expected = cgroups.pod_of(seen_id).unwrap();
    assert!(cgroups.is_alive(seen_id) && cgroups.is_alive(unseen_id));
    assert_eq!(cgroups.forget_dead(), []);

    fs::remove_dir(&seen).unwrap();
    fs::remove_dir(&unseen).unwrap();
    assert!(!cgroups.is_alive(seen_id) && !cgroups.is_alive(unseen_id));
    assert_eq!(cgroups.pod_of(seen_id).unwrap(), expected);
    assert!(matches!(cgroups.pod_of(unseen_id), Err(NoPod::Gone)));
    assert_eq!(cgroups.forget_dead(), [(seen_id, expected)]);
    assert!(matches!(cgroups.pod_of(seen_id), Err(NoPod::Gone)));
    assert_eq!(cgroups.forget_dead(), []);
}

#[test]
fn a_pod_that_makes_many_cgroups_is_found_from_each_but_not_all_are_kept() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let kubepods = root.make("kubepods");
    let nested: Vec<_> = (0..100).map(|n| root.make(&format!("kubepods/pod{UID}/{ID}/{n}"))).collect();
    let other = root.make(&format!("kubepods/pod{OTHER_UID}/{ID}"));
    let cgroups = cgroups(&kubepods);
    for path in &nested {
        assert_eq!(cgroups.pod_of(id_of(path).unwrap()).unwrap(), pod(UID, Some(ID)));
    }
    let other_id = id_of(&other).unwrap();
    cgroups.pod_of(other_id).unwrap();
    for path in nested.iter().chain([&other]) {
        fs::remove_dir(path).unwrap();
    }
    let dead = cgroups.forget_dead();
    assert_eq!(dead.iter().filter(|(_, dead)| *dead.pod_uid == *UID).count(), 64);
    assert!(dead.contains(&(other_id, pod(OTHER_UID, Some(ID)))));
}

#[test]
fn all_pods_are_listed_with_their_own_cgroup_first() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let kubepods = root.make("kubepods.slice");
    let slice = UID.replace('-', "_");
    let burstable =
        root.make(&format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice"));
    let container = burstable.join(format!("cri-containerd-{ID}.scope"));
    fs::create_dir_all(container.join("nested")).unwrap();
    let slice = OTHER_UID.replace('-', "_");
    let guaranteed = root.make(&format!("kubepods.slice/kubepods-pod{slice}.slice"));
    root.make("kubepods.slice/kubepods-besteffort.slice");

    let mut pods = cgroups(&kubepods).groups_of_pods().unwrap();
    pods.sort_by(|a, b| a.pod_uid.cmp(&b.pod_uid));
    let ids = |paths: &[&Path]| paths.iter().map(|path| id_of(path).unwrap()).collect::<Vec<_>>();
    let found: Vec<_> = pods.iter().map(|pod| (&*pod.pod_uid, pod.ids.clone())).collect();
    assert_eq!(found, [(UID, ids(&[&burstable, &container])), (OTHER_UID, ids(&[&guaranteed]))]);
}

/// The best of some rounds: what else runs on the machine must not count.
fn best_of_rounds(works: impl Fn() -> bool) -> Duration {
    let round = || {
        #[expect(clippy::disallowed_methods, reason = "a test that measures")]
        let start = Instant::now();
        assert!((0..5_000).all(|_| works()));
        #[expect(clippy::disallowed_methods, reason = "a test that measures")]
        let took = start.elapsed();
        took / 5_000
    };
    (0..20).map(|_| round()).min().unwrap()
}

#[test]
fn looking_up_a_known_cgroup_costs_less_than_one_system_call() {
    let Some(root) = Cgroup::new(v2()) else { return };
    let id = id_of(&root.make(&format!("kubepods/pod{UID}/{ID}"))).unwrap();
    let cgroups = cgroups(&root.path().join("kubepods"));
    let path = root.path().join("kubepods");
    let known = best_of_rounds(|| cgroups.pod_of(id).is_ok());
    let system_call = best_of_rounds(|| fs::metadata(&path).is_ok());
    eprintln!("{known:?} for each, {system_call:?} for a stat()");
    assert!(known < system_call);
}
