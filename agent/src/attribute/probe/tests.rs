//! What takes a look inside, or a hand on the kernel that only [`sys`](super::sys) has.

use std::fs::{self, File};
use std::sync::atomic::{AtomicU32, Ordering};

use loadtest::left_out_without_root;
use rustix::thread::CapabilitySet;

use super::*;

/// A cgroup with a `kubepods` in it; this process is in neither.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Option<Cgroup> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if left_out_without_root() {
            return None;
        }
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mount = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [_, mount, "cgroup2", ..] => Some(PathBuf::from(mount)),
            _ => None,
        });
        let name = format!("podcred-unit-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = Cgroup(mount.expect("cgroup2 is mounted").join(name));
        fs::create_dir_all(cgroup.0.join("kubepods")).unwrap();
        Some(cgroup)
    }

    fn config(&self) -> ProbeConfig {
        ProbeConfig::new(self.0.join("kubepods"), 2, self.0.clone())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.0.join("kubepods"));
        let _ = fs::remove_dir(&self.0);
    }
}

/// As both accept loops, a probe and the upkeep do.
#[test]
fn all_who_ask_at_once_for_how_long_the_programs_are_attached_are_told() {
    let Some(cgroup) = Cgroup::new() else { return };
    let probe = Probe::load(&cgroup.config()).unwrap();
    let ask = || (0..1_000).all(|_| probe.attached_for().is_some());
    std::thread::scope(|scope| {
        let asking = [(); 3].map(|()| scope.spawn(ask));
        for one in asking {
            assert!(one.join().unwrap(), "the programs are attached all the while");
        }
    });
}

#[test]
fn a_foreign_exclusive_program_is_named_with_its_cgroup() {
    let Some(cgroup) = Cgroup::new() else { return };
    let config = cgroup.config();
    let probe = Probe::load(&config).unwrap();
    let program = probe.attachments.program("connect4").unwrap();
    probe.detach().unwrap();
    for place in [&cgroup.0, &config.kubepods] {
        // What `bpftool cgroup attach` without "multi" does.
        let directory = File::open(place).unwrap();
        let hook = sys::Hook::Connect4;
        let exclusive = sys::Exclusive::attach(program.as_fd(), directory.as_fd(), hook).unwrap();
        let error = Probe::load(&config).unwrap_err();
        let tried = Probe::try_each(&config).unwrap();
        drop(exclusive);
        let ProbeError::Foreign { program, owner, place: named, .. } = &error else { panic!("{error}") };
        assert_eq!((*program, named), ("connect4", place));
        assert!(owner.starts_with("the program \"connect4\" (id "), "{owner}");
        let failed = tried.iter().filter(|tried| tried.attached.is_err()).map(|tried| tried.hook);
        assert_eq!((tried.len(), failed.collect::<Vec<_>>()), (5, vec!["connect4"]), "{tried:?}");
    }
    Probe::load(&config).expect("nobody is in the way any more");
}

#[test]
fn a_capability_that_is_missing_is_named() {
    let Some(cgroup) = Cgroup::new() else { return };
    let config = cgroup.config();
    // What aya finds out about the kernel it finds out once for the process: not by a thread that may do nothing.
    let _looked = aya::features();
    let without = |dropped| {
        let drop_and_load = || {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective.remove(dropped | CapabilitySet::SYS_ADMIN);
            // Of this thread alone.
            rustix::thread::set_capabilities(None, sets).unwrap();
            Probe::load(&config)
        };
        let result = std::thread::scope(|scope| scope.spawn(drop_and_load).join().unwrap());
        result.unwrap_err().to_string()
    };
    for (capability, name) in [
        (CapabilitySet::BPF, "Missing: BPF;"),
        (CapabilitySet::NET_ADMIN, "Missing: NET_ADMIN;"),
        (CapabilitySet::PERFMON, "Missing: PERFMON;"),
    ] {
        let error = without(capability);
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn a_socket_tells_its_caller_in_the_agents_cgroup_and_is_looked_up_elsewhere() {
    let Some(cgroup) = Cgroup::new() else { return };
    let elsewhere = cgroup.config();
    let here = ProbeConfig { agent_cgroup: cgroup.0.parent().unwrap().to_owned(), ..cgroup.config() };
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let by = Caller { cgroup_id: 1, group: 2, netns: 3, tgid: 4, flags: 5 };
    let opened = Opened { by, at: 6 };
    for (config, tells) in [(here, true), (elsewhere, false)] {
        let probe = Probe::load(&config).unwrap();
        probe.mark(&socket).unwrap();
        assert_eq!((sockopt::caller(&socket), probe.caller(&socket).unwrap()), (None, None));
        probe.attributed.insert(&socket, opened).unwrap();
        assert_eq!(sockopt::caller(&socket), tells.then_some(by));
        assert_eq!(probe.caller(&socket).unwrap(), Some(by));
        assert_eq!(probe.opened(&socket).unwrap(), Some(opened));
    }
}

#[test]
fn connections_that_pend_too_long_are_forgotten() {
    let Some(cgroup) = Cgroup::new() else { return };
    let probe = Probe::load(&cgroup.config()).unwrap();
    let connection = |client_port| Connection {
        client: [1; 4],
        server: [2; 4],
        client_port,
        server_port: 80,
        client_sequence: 3,
        server_sequence: 4,
    };
    let opened = Opened { by: Caller { cgroup_id: 1, group: 1, netns: 1, tgid: 1, flags: 0 }, at: 1 };
    let limit = Duration::from_nanos(PENDING_FOR);
    for (port, since) in [(1, 1_000), (2, 2_000)] {
        probe.pending.insert(connection(port), Pending { opened, since, slot: 0 }).unwrap();
    }
    assert_eq!(probe.expire_at(limit + Duration::from_nanos(1_000)).unwrap(), 0);
    assert_eq!(probe.expire_at(limit + Duration::from_nanos(1_001)).unwrap(), 1);
    let left: Vec<u32> =
        probe.pending.entries().unwrap().keys().map(|connection| connection.client_port).collect();
    assert_eq!(left, [2]);
}

#[test]
fn a_full_table_says_which_and_how_much_is_in_it() {
    let Some(cgroup) = Cgroup::new() else { return };
    let probe = Probe::load(&cgroup.config()).unwrap();
    let watch = |port| probe.watch(SocketAddr::from(([169, 254, 170, 23], port)), Kind::Credentials);
    (1..=64).for_each(|port| watch(port).unwrap());
    let error = watch(65).unwrap_err();
    assert_eq!(error.to_string(), "map DESTINATIONS has no room for another entry (64 are there)");
    watch(64).expect("what is watched may be watched again");
}

#[test]
fn a_v4_address_is_watched_as_the_v6_one_it_is_mapped_to() {
    let of = |address: &str| destination(address.parse().unwrap());
    assert_eq!(of("169.254.170.23:80"), of("[::ffff:169.254.170.23]:80"));
    assert_ne!(of("169.254.170.23:80"), of("169.254.170.23:81"));
    let expected = [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([169, 254, 170, 23])];
    assert_eq!(of("169.254.170.23:80").address, expected);
}

#[test]
fn settings_carry_what_was_asked_for() {
    let config = ProbeConfig {
        host_netns: Some(7),
        refuse_imds: true,
        log: true,
        ..ProbeConfig::new(PathBuf::new(), 3, PathBuf::new())
    };
    let flags = settings_flags::REFUSE_IMDS | settings_flags::LOG;
    assert_eq!(settings_of(&config), Settings { host_netns: 7, kubepods_level: 3, flags });
}
