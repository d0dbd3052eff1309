use std::io;

use rustix::thread::CapabilitySet;

use super::checks::Kernel;
use super::*;
use crate::attribute::probe::{ProbeError, Tried};

const NEEDED: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::NET_BIND_SERVICE);

#[test]
fn old_kernels_are_named() {
    for (release, state) in [
        ("6.18.44", State::Ok),
        ("5.10.0-33-cloud-amd64", State::Ok),
        ("5.9.16", State::Broken),
        ("4.14.355-276.639.amzn2.x86_64", State::Broken),
        ("unheard of", State::Broken),
    ] {
        let item = checks::kernel(&Kernel::named(release));
        assert_eq!(item.state, state, "{release}");
        assert!(item.text.contains(release));
    }
}

#[test]
fn missing_capabilities_are_named_as_a_manifest_has_them() {
    assert_eq!(checks::capabilities(Ok(NEEDED)).state, State::Ok);

    let item = checks::capabilities(Ok(NEEDED - CapabilitySet::PERFMON - CapabilitySet::DAC_READ_SEARCH));
    assert_eq!(item.state, State::Broken);
    assert!(item.text.ends_with("capabilities.add: [PERFMON, DAC_READ_SEARCH]"), "{}", item.text);

    let item = checks::capabilities(Ok(NEEDED - CapabilitySet::NET_BIND_SERVICE));
    assert_eq!(item.state, State::Degraded);

    let old = (NEEDED - CapabilitySet::PERFMON - CapabilitySet::BPF) | CapabilitySet::SYS_ADMIN;
    let item = checks::capabilities(Ok(old));
    assert_eq!(item.state, State::Ok);
    assert!(item.text.contains("SYS_ADMIN"), "{}", item.text);

    let unreadable = checks::capabilities(Err(io::ErrorKind::Unsupported.into()));
    assert_eq!(unreadable.state, State::Broken);
}

#[test]
fn a_place_for_pins_is_checked_where_one_is_asked_for() {
    let elsewhere = tempfile::tempdir().unwrap();
    let item = checks::bpf_file_system(Some(&elsewhere.path().join("podcred")));
    assert_eq!(item.state, State::Degraded);
    assert!(item.text.contains("hostPath"), "{}", item.text);
    assert_eq!(checks::bpf_file_system(None).state, State::Ok);
}

#[test]
fn each_program_has_a_line_that_says_where_it_can_be_attached_or_what_to_do() {
    let missing = || ProbeError::Capabilities { what: "program x".to_owned(), missing: "PERFMON".to_owned() };
    let items = checks::programs(Ok(vec![
        Tried { hook: "sock_ops", attached: Ok("/sys/fs/cgroup/kubepods".into()) },
        Tried { hook: "connect4", attached: Err(missing()) },
    ]));
    let states: Vec<_> = items.iter().map(|item| (item.name, item.state)).collect();
    assert_eq!(states, [("sock_ops", State::Ok), ("connect4", State::Broken)]);
    assert!(items[0].text.ends_with("/sys/fs/cgroup/kubepods"), "{}", items[0].text);
    assert!(items[1].text.contains("Missing: PERFMON; add"), "{}", items[1].text);

    let items = checks::programs(Err(missing()));
    assert_eq!((items.len(), items[0].name, items[0].state), (1, "kernel programs", State::Broken));
    assert!(items[0].text.contains("Missing: PERFMON; add"), "{}", items[0].text);
}

#[test]
fn a_report_has_a_line_for_each_item_and_ends_with_what_comes_of_them() {
    let report = Report {
        items: vec![
            Item { state: State::Ok, name: "kernel", text: "6.18.44".to_owned() },
            Item { state: State::Broken, name: "cgroups", text: "none: mount them".to_owned() },
        ],
        verdict: Verdict::AuditBy { source: "none", why: "no cgroups".to_owned() },
    };
    assert_eq!(
        report.to_string(),
        "ok        kernel             6.18.44\n\
         broken    cgroups            none: mount them\n\
         \n\
         Callers cannot be attributed, and --verify enforce is impossible: no cgroups"
    );
}

#[test]
fn the_exit_status_tells_whether_enforce_is_possible() {
    let status = |verdict| Report { items: Vec::new(), verdict }.exit_code();
    assert_eq!(status(Verdict::Enforce), ExitCode::from(0));
    let audit = Verdict::AuditBy { source: "inet_diag", why: String::new() };
    assert_eq!(status(audit), ExitCode::from(1));
    assert_eq!(status(Verdict::TooEarly), ExitCode::from(2));
}
