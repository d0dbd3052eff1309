use std::path::Path;

use proptest::prelude::*;

use super::*;

const UID: &str = "0d9b2a68-7a50-4a52-b9fd-1d7e3a2c9f10";
const UID_: &str = "0d9b2a68_7a50_4a52_b9fd_1d7e3a2c9f10";
const HASH: &str = "9a7f5c0f3be1d1c8e02ad4c4a3a1f7b2";
const ID: &str = "3f1c6d1f4a0b6b7e0f9d5c2b8a7e6f5d4c3b2a190817263544536271809fabcd";

fn expand(template: &str) -> String {
    template.replace("UID_", UID_).replace("UID", UID).replace("HASH", HASH).replace("ID", ID)
}

fn parsed(template: &str) -> Option<(String, Option<String>)> {
    let found = parse(Path::new(&expand(template)))?;
    Some((found.pod_uid.to_string(), found.container_id.map(|id| id.to_string())))
}

#[test]
fn every_driver_and_runtime_leads_to_the_pod_and_its_container() {
    for path in [
        // systemd: containerd, cri-o with runc and with crun, docker by its shim
        "kubepods-burstable.slice/kubepods-burstable-podUID_.slice/cri-containerd-ID.scope",
        "kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/crio-ID.scope",
        "kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/crio-ID.scope/container",
        "kubepods-burstable.slice/kubepods-burstable-podUID_.slice/docker-ID.scope",
        "kubepods-podUID_.slice/cri-containerd-ID.scope",
        // cgroupfs
        "burstable/podUID/ID",
        "besteffort/podUID/crio-ID",
        "podUID/ID",
        // kind
        "kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podUID_.slice/cri-containerd-ID.scope",
        "kubelet-kubepods-podUID_.slice/cri-containerd-ID.scope",
        "some-pods-kubepods-podUID_.slice/cri-containerd-ID.scope",
    ] {
        assert_eq!(parsed(path), Some((UID.to_owned(), Some(ID.to_owned()))), "{path}");
    }
}

#[test]
fn a_pods_own_cgroup_and_its_helpers_belong_to_no_container() {
    for path in [
        "kubepods-podUID_.slice",
        "burstable/podUID",
        "besteffort/podUID/crio-conmon-ID",
        "kubepods-burstable.slice/kubepods-burstable-podUID_.slice/crio-conmon-ID.scope",
        "kubepods-podUID_.slice/cri-containerd-0123.scope",
        "podUID/init",
    ] {
        assert_eq!(parsed(path), Some((UID.to_owned(), None)), "{path}");
    }
}

#[test]
fn static_pods_are_known_by_their_hash() {
    for path in
        ["burstable/podHASH/ID", "kubepods-burstable.slice/kubepods-burstable-podHASH.slice/docker-ID.scope"]
    {
        assert_eq!(parsed(path), Some((HASH.to_owned(), Some(ID.to_owned()))), "{path}");
    }
}

#[test]
fn a_pods_name_at_a_wrong_place_is_no_pod() {
    for path in [
        "",
        "burstable",
        "burstable/burstable/podUID/ID",
        "system.slice/podUID/ID",
        "ID/podUID",
        "kubepods-burstable.slice/podUID/ID",
        "burstable/kubepods-burstable-podUID_.slice",
        "kubepods-burstable.slice/kubepods-besteffort-podUID_.slice/docker-ID.scope",
        "kubepods-burstable.slice/kubepods-podUID_.slice",
        "kubepods-burstable-podUID_.slice/docker-ID.scope",
        "kubepods-podUID.slice",
        "podUID_/ID",
        "pod/ID",
        "podID/ID",
        "pod0D9B2A68-7A50-4A52-B9FD-1D7E3A2C9F10/ID",
        "/burstable/podUID",
    ] {
        assert_eq!(parsed(path), None, "{path}");
    }
}

#[test]
fn a_container_may_call_its_own_cgroups_what_it_likes() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    let container = expand("burstable/podUID/ID");
    let mut name = container.clone().into_bytes();
    name.extend_from_slice(b"/\xff\xfe\n/podUID");
    assert_eq!(parse(Path::new(&OsString::from_vec(name))), parse(Path::new(&container)));
}

proptest! {
    #[test]
    fn nothing_below_the_container_changes_the_answer(
        base in proptest::sample::select(vec![
            "burstable/podUID/ID",
            "podUID/ID",
            "kubepods-burstable.slice/kubepods-burstable-podUID_.slice/cri-containerd-ID.scope",
            "kubepods-podUID_.slice/crio-conmon-ID.scope",
        ]),
        below in proptest::collection::vec(
            prop_oneof![
                "[^/\\x00]{1,40}",
                Just(expand("podUID")),
                Just(expand("kubepods-podHASH.slice")),
                Just(expand("cri-containerd-ID.scope")),
                Just("..".to_owned()),
                Just("burstable".to_owned()),
            ],
            0..6,
        ),
    ) {
        let container = expand(base);
        let nested = below.iter().fold(container.clone(), |path, name| path + "/" + name);
        prop_assert_eq!(parse(Path::new(&nested)), parse(Path::new(&container)));
    }

    #[test]
    fn what_is_taken_for_a_uid_is_one(path in "(burstable/)?(kubepods-)?pod[0-9a-f_-]{30,38}(\\.slice)?(/x)?") {
        if let Some(found) = parse(Path::new(&path)) {
            let digits = found.pod_uid.bytes().filter(u8::is_ascii_hexdigit).count();
            prop_assert_eq!(digits, 32);
            prop_assert!(path.replace('_', "-").contains(&*found.pod_uid));
        }
    }
}
