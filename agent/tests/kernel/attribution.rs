//! Many connections at once, of every kind that the kernel tells apart.

use loadtest::node::{Driver, Layout, Runtime};
use socket2::SockAddr;

use crate::harness::{Watched, connect, connections, socket_for};
use crate::load::{ask, open_connections, while_served};

const PODS: usize = 50;

#[test]
fn every_connection_of_fifty_pods_is_attributed_to_the_pod_that_opened_it() {
    let Some(node) = Watched::node() else { return };
    let pods = node.node.pods(PODS).unwrap();
    let each = connections().div_ceil(PODS);
    let tally = while_served(&node, |targets| {
        std::thread::scope(|threads| {
            for pod in &pods {
                threads.spawn(move || open_connections(pod, each, targets));
            }
        });
    });
    tally.assert_all_right(each * PODS);
}

/// A load generator moves one thread from pod to pod; the programs run inside connect(), also where it does not wait.
#[test]
fn a_thread_that_is_each_pod_in_turn_is_always_the_one_it_is() {
    let Some(node) = Watched::node() else { return };
    let pods = node.node.pods(8).unwrap();
    let count = connections().div_ceil(10);
    let tally = while_served(&node, |targets| {
        std::thread::scope(|threads| {
            let pods = &pods;
            let (send, opened) = std::sync::mpsc::sync_channel(64);
            threads.spawn(move || {
                for n in 0..count {
                    let (pod, to) = (&pods[n % pods.len()], targets[n % 3]);
                    pod.enter().unwrap();
                    let socket = socket_for(to);
                    socket.set_nonblocking(true).unwrap();
                    let begun = socket.connect(&SockAddr::from(to));
                    assert!(
                        begun.is_ok() || begun.is_err_and(|e| e.raw_os_error() == Some(libc::EINPROGRESS))
                    );
                    send.send((socket, pod.cgroup_id())).unwrap();
                }
            });
            for (socket, cgroup) in opened {
                // Writing waits until the handshake is done.
                socket.set_nonblocking(false).unwrap();
                ask(&mut socket.into(), cgroup);
            }
        });
    });
    tally.assert_all_right(count);
}

#[test]
fn the_cgroup_leads_to_the_pod_in_every_layout() {
    for (driver, runtime) in [
        (Driver::Cgroupfs, Runtime::Containerd),
        (Driver::Cgroupfs, Runtime::CriO),
        (Driver::Systemd, Runtime::Containerd),
        (Driver::Systemd, Runtime::CriO),
    ] {
        let Some(node) = Watched::with(Layout { driver, runtime }, |_| {}) else { return };
        let listener = node.listener();
        // One of each QoS class.
        for pod in node.pods::<3>() {
            let _client = connect(&pod, listener.address);
            let found = node.pod_of(&listener.accept());
            assert_eq!(&*found.pod_uid, pod.uid());
            assert_eq!(found.container_id.as_deref(), Some(&*pod.container_id()));
        }
    }
}
