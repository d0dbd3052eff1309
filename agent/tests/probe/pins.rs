//! Programs and maps that outlive the agent, and links that somebody detaches.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use podcred::attribute::probe::{Kind, Probe, ProbeConfig, ProbeError, Upkeep, pins};
use rustix::fs::{FlockOperation, flock};

use crate::cgroups::{Node, until};
use crate::loader::{CONTAINER, POD, V4, attributed_to, counters, listener};

/// A bpffs of our own; what is pinned there ends with it.
struct Bpffs(tempfile::TempDir);

impl Bpffs {
    fn mount() -> Bpffs {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "bpf", "bpf"]).arg(directory.path()).status().expect("mount(8)");
        assert!(status.success(), "a bpffs can be mounted");
        Bpffs(directory)
    }

    fn pins(&self) -> PathBuf {
        self.0.path().join("podcred")
    }

    /// As an agent has it that is starting.
    fn lock(&self) -> fs::File {
        let lock = fs::File::open(self.pins().join("lock")).expect("made by an agent");
        flock(&lock, FlockOperation::LockExclusive).expect("waits for it");
        lock
    }

    /// The folder of this version's pins.
    fn folder(&self) -> PathBuf {
        let mut folders = list(&self.pins());
        folders.retain(|folder| !folder.ends_with("lock"));
        assert_eq!(folders.len(), 1, "{folders:?}");
        folders.remove(0)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn list(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).expect("readable").map(|entry| entry.expect("readable").path()).collect()
}

fn pinned(node: &Node, bpffs: &Bpffs) -> ProbeConfig {
    ProbeConfig { pins: Some(bpffs.pins()), ..node.config() }
}

/// Two at the agent's cgroup, which is above the pods' here, the others at the pods'.
const LINKS: usize = 5;

#[test]
fn attempts_are_counted_while_no_agent_is_there() {
    let Some(node) = Node::new() else { return };
    let bpffs = Bpffs::mount();
    let probe = node.load_with(&pinned(&node, &bpffs));
    let (listener, address) = listener(&probe, V4);
    drop((probe, listener));

    let failed = node.inside(CONTAINER, || TcpStream::connect(address).unwrap_err().kind());
    assert_eq!(failed, ErrorKind::ConnectionRefused);
    let probe = node.load_with(&pinned(&node, &bpffs));
    assert_eq!(counters(&probe, node.id(POD)).refused, 1);
}

#[test]
fn without_pins_nothing_stays() {
    let Some(node) = Node::new() else { return };
    let probe =
        node.load_with(&ProbeConfig { refuse_imds: true, host_netns: Some(u64::MAX), ..node.config() });
    let imds = std::net::TcpListener::bind(V4).unwrap();
    let address = imds.local_addr().unwrap();
    probe.watch(address, Kind::Imds).unwrap();
    node.inside(CONTAINER, || TcpStream::connect(address).unwrap_err());
    drop(probe);
    node.inside(CONTAINER, || TcpStream::connect(address).unwrap());
}

#[test]
fn a_restarted_agent_goes_on_with_the_same_links_and_each_connection_counts_once() {
    let Some(node) = Node::new() else { return };
    let bpffs = Bpffs::mount();
    drop(node.load_with(&pinned(&node, &bpffs)));
    let before = list(&bpffs.folder().join("links"));
    assert_eq!(before.len(), LINKS, "{before:?}");
    let probe = node.load_with(&pinned(&node, &bpffs));
    assert_eq!(list(&bpffs.folder().join("links")), before);
    let listener = listener(&probe, V4);
    assert_eq!(attributed_to(&node, &probe, &listener), Some(node.id(CONTAINER)));
    let after = counters(&probe, node.id(POD));
    assert_eq!((after.connects, after.established), (1, 1));
}

#[test]
fn two_agents_at_once_share_the_pins_and_the_older_may_end_first() {
    let Some(node) = Node::new() else { return };
    let bpffs = Bpffs::mount();
    let older = node.load_with(&pinned(&node, &bpffs));
    let older_listener = listener(&older, V4);
    let newer = node.load_with(&pinned(&node, &bpffs));
    let newer_listener = listener(&newer, V4);
    assert_eq!(attributed_to(&node, &older, &older_listener), Some(node.id(CONTAINER)));
    assert_eq!(attributed_to(&node, &newer, &newer_listener), Some(node.id(CONTAINER)));
    drop(older);
    assert_eq!(attributed_to(&node, &newer, &newer_listener), Some(node.id(CONTAINER)));
    let after = counters(&newer, node.id(POD));
    assert_eq!((after.connects, after.established), (3, 3), "each connection counts once");
}

#[test]
fn agents_that_start_in_the_same_moment_do_not_meet() {
    let Some(node) = Node::new() else { return };
    let bpffs = Bpffs::mount();
    let config = pinned(&node, &bpffs);
    let probes: Vec<Probe> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..4).map(|_| scope.spawn(|| node.load_with(&config))).collect();
        starting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(list(&bpffs.folder().join("links")).len(), LINKS);
    let listener = listener(&probes[2], V4);
    assert_eq!(attributed_to(&node, &probes[2], &listener), Some(node.id(CONTAINER)));
    assert_eq!(counters(&probes[0], node.id(POD)).connects, 1);
}

#[test]
fn whatever_is_missing_among_the_pins_is_made_again() {
    let Some(node) = Node::new() else { return };
    let bpffs = Bpffs::mount();
    let config = pinned(&node, &bpffs);
    drop(node.load_with(&config));
    let all = |folder: &Path| {
        let (mut paths, links) = (list(folder), list(&folder.join("links")));
        paths.retain(|path| !path.ends_with("links"));
        [paths, links].concat()
    };
    let complete = all(&bpffs.folder()).len();
    // One by one, as a kill -9 could have left it.
    for path in all(&bpffs.folder()) {
        fs::remove_file(&path).unwrap();
        let probe = node.load_with(&config);
        assert_eq!(all(&bpffs.folder()).len(), complete, "without {}", path.display());
        let listener = listener(&probe, V4);
        assert_eq!(attributed_to(&node, &probe, &listener), Some(node.id(CONTAINER)), "{}", path.display());
    }
    fs::remove_dir_all(bpffs.folder()).unwrap();
    fs::create_dir_all(bpffs.pins().join("0123456789abcdef/links")).unwrap();
    drop(node.load_with(&config));
    assert_eq!(all(&bpffs.folder()).len(), complete);
}

#[test]
fn another_versions_pins_go_once_ours_are_there() {
    let Some(node) = Node::new() else { return };
    let bpffs = Bpffs::mount();
    let config = pinned(&node, &bpffs);
    drop(node.load_with(&config));
    fs::rename(bpffs.folder(), bpffs.pins().join("0123456789abcdef")).unwrap();
    let of_somebody_else = bpffs.pins().join("fedcba9876543210");
    fs::create_dir(&of_somebody_else).unwrap();
    let probe = node.load_with(&config);
    fs::remove_dir(of_somebody_else).expect("a folder without links was not ours to remove");
    assert!(!bpffs.folder().ends_with("0123456789abcdef"));
    let listener = listener(&probe, V4);
    assert_eq!(attributed_to(&node, &probe, &listener), Some(node.id(CONTAINER)));
}

#[test]
fn links_to_a_cgroup_that_was_made_anew_are_replaced() {
    let Some(node) = Node::new() else { return };
    let bpffs = Bpffs::mount();
    let config = pinned(&node, &bpffs);
    drop(node.load_with(&config));
    let before = list(&bpffs.folder().join("links"));
    fs::remove_dir(&config.kubepods).unwrap();
    let config = pinned(&node, &bpffs);
    let probe = node.load_with(&config);
    let after = list(&bpffs.folder().join("links"));
    assert_eq!(after.len(), LINKS, "{after:?}");
    assert_eq!(after.iter().filter(|link| before.contains(link)).count(), 2, "those at the agent's cgroup");
    let listener = listener(&probe, V4);
    assert_eq!(attributed_to(&node, &probe, &listener), Some(node.id(CONTAINER)));
}

#[test]
fn links_that_somebody_detaches_are_attached_anew() {
    let Some(node) = Node::new() else { return };
    let bpffs = Bpffs::mount();
    for config in [node.config(), pinned(&node, &bpffs)] {
        let probe = node.load_with(&config);
        let listener = listener(&probe, V4);
        assert!(probe.maintain().is_empty(), "nothing to do");
        probe.detach().unwrap();
        assert_eq!(attributed_to(&node, &probe, &listener), None);
        let mended = probe.maintain();
        let all_attached = mended.iter().all(|one| matches!(one, Upkeep::Reattached { .. }));
        assert!(mended.len() == LINKS && all_attached, "{mended:?}");
        assert_eq!(attributed_to(&node, &probe, &listener), Some(node.id(CONTAINER)));
        assert!(probe.maintain().is_empty(), "nothing to do");
    }
    let probe = node.load_with(&pinned(&node, &bpffs));
    assert_eq!(list(&bpffs.folder().join("links")).len(), LINKS);
    let listener = listener(&probe, V4);
    assert_eq!(attributed_to(&node, &probe, &listener), Some(node.id(CONTAINER)));
    assert_eq!(counters(&probe, node.id(POD)).connects, 2, "counted once each");
}

#[test]
fn cleared_pins_end_the_programs_and_what_others_pinned_beside_them_stays() {
    let Some(node) = Node::new() else { return };
    let bpffs = Bpffs::mount();
    let probe = node.load_with(&ProbeConfig {
        refuse_imds: true,
        host_netns: Some(u64::MAX),
        ..pinned(&node, &bpffs)
    });
    let imds = std::net::TcpListener::bind(V4).unwrap();
    let address = imds.local_addr().unwrap();
    probe.watch(address, Kind::Imds).unwrap();
    let reaches_imds = || node.inside(CONTAINER, || TcpStream::connect(address).is_ok());
    drop(probe);
    assert!(!reaches_imds(), "what is pinned outlives its agent");
    // A name alone makes it none of ours.
    let others = ["somebody", "0123456789abcdef"].map(|name| bpffs.pins().join(name));
    for folder in &others {
        fs::create_dir_all(folder.join("theirs")).unwrap();
    }
    let starting = bpffs.lock();
    std::thread::scope(|scope| {
        let clearing = scope.spawn(|| pins::clear(&bpffs.pins()));
        assert!(!reaches_imds(), "who is starting may go on");
        drop(starting);
        assert!(clearing.join().unwrap().unwrap());
    });
    until(reaches_imds);
    let mut left = list(&bpffs.pins());
    left.sort();
    assert_eq!(left, [others[1].clone(), others[0].clone()]);
    assert!(!pins::clear(&bpffs.pins()).unwrap(), "nothing of ours is left");

    for folder in others {
        fs::remove_dir_all(folder).unwrap();
    }
    drop(node.load_with(&pinned(&node, &bpffs)));
    assert!(pins::clear(&bpffs.pins()).unwrap() && !bpffs.pins().exists());
    assert!(!pins::clear(&bpffs.pins()).unwrap());
    let elsewhere = tempfile::tempdir().unwrap();
    assert!(matches!(pins::clear(elsewhere.path()), Err(ProbeError::NoBpffs { .. })));
}

/// Without the lock for as long as it takes away, or with a lock that went away with the pins, it would unpin them half-way.
#[test]
fn agents_start_with_all_their_pins_while_somebody_clears_them() {
    let Some(node) = Node::new() else { return };
    let bpffs = Bpffs::mount();
    let config = pinned(&node, &bpffs);
    let started = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !started.load(Ordering::Relaxed) {
                let _ = pins::clear(&bpffs.pins());
            }
        });
        let agents: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| (0..10).map(|_| Probe::load(&config).map(drop)).collect::<Vec<_>>()))
            .collect();
        let loaded: Vec<_> = agents.into_iter().flat_map(|agent| agent.join().unwrap()).collect();
        started.store(true, Ordering::Relaxed);
        let failed: Vec<_> = loaded.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{failed:?}");
    });
}

#[test]
fn who_asks_whether_the_programs_are_attached_does_not_wait_for_them_to_be() {
    let Some(node) = Node::new() else { return };
    let bpffs = Bpffs::mount();
    let probe = node.load_with(&pinned(&node, &bpffs));
    let starting = bpffs.lock();
    probe.detach().unwrap();
    std::thread::scope(|scope| {
        let mending = scope.spawn(|| probe.maintain());
        assert_eq!(probe.attached_for(), None);
        assert!(!mending.is_finished(), "another agent has the pins");
        drop(starting);
        assert_eq!(mending.join().unwrap().len(), LINKS);
    });
    assert!(probe.attached_for().is_some());
}

#[test]
fn pins_elsewhere_than_on_a_bpffs_are_refused() {
    let Some(node) = Node::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let config = ProbeConfig { pins: Some(directory.path().to_owned()), ..node.config() };
    let error = Probe::load(&config).unwrap_err();
    assert!(matches!(error, ProbeError::NoBpffs { .. }), "{error}");
    assert!(error.to_string().contains("mount -t bpf"), "{error}");
}

#[test]
fn a_kubepods_cgroup_that_is_not_there_is_named() {
    let Some(node) = Node::new() else { return };
    let config = ProbeConfig { kubepods: node.config().kubepods.join("absent"), ..node.config() };
    let error = Probe::load(&config).unwrap_err();
    assert!(matches!(&error, ProbeError::Cgroup { path, .. } if path.ends_with("absent")), "{error}");
}
