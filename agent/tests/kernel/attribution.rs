//! Many connections at once, of every kind that the kernel tells apart.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use agent_ebpf::Caller;
use loadtest::node::{Layout, Pod};
use podcred::attribute::probe::Probe;
use socket2::SockAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{BROKEN, Listener, Watched, connections, socket_for};

const PODS: usize = 50;
/// Connections that each pod keeps open while it opens more.
const KEPT: usize = 16;
/// Requests on each of these before it closes.
const REQUESTS: usize = 3;
const WRONG_SHOWN: usize = 10;

/// What the agent's side found.
#[derive(Default)]
struct Tally {
    right: AtomicUsize,
    wrong: AtomicUsize,
    examples: Mutex<Vec<String>>,
}

impl Tally {
    fn judge(&self, caller: Option<Caller>, said: u64) {
        if caller.is_some_and(|caller| caller.cgroup_id == said) {
            self.right.fetch_add(1, Ordering::Relaxed);
        } else if self.wrong.fetch_add(1, Ordering::Relaxed) < WRONG_SHOWN {
            self.examples.lock().unwrap().push(format!("cgroup {said}, and the kernel says {caller:?}"));
        }
    }

    #[track_caller]
    fn assert_all_right(&self, count: usize) {
        let examples = self.examples.lock().unwrap();
        assert_eq!(self.wrong.load(Ordering::Relaxed), 0, "{}", examples.join("\n"));
        assert_eq!(self.right.load(Ordering::Relaxed), count);
    }
}

/// The agent's side: who opened this is asked straight after accept(), before the client says who it is.
async fn serve(listener: TcpListener, probe: Arc<Probe>, tally: Arc<Tally>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let caller = probe.caller(&stream).unwrap();
        let tally = Arc::clone(&tally);
        tokio::spawn(async move {
            let mut first = true;
            while let Ok(said) = stream.read_u64_le().await {
                if std::mem::take(&mut first) {
                    tally.judge(caller, said);
                }
                if stream.write_all(b"!").await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Serves both addresses while `clients` runs, and gives what was found.
fn while_served(node: &Watched, clients: impl FnOnce(&[SocketAddr; 3])) -> Arc<Tally> {
    let tally = Arc::new(Tally::default());
    let (v4, v6) = (node.listener(), node.listener_v6());
    let targets = [v4.address, v6.address, v4.mapped()];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for listener in [v4, v6].map(Listener::into_socket) {
        listener.set_nonblocking(true).unwrap();
        let _inside = runtime.enter();
        let listener = TcpListener::from_std(listener).unwrap();
        runtime.spawn(serve(listener, Arc::clone(&node.probe), Arc::clone(&tally)));
    }
    clients(&targets);
    tally
}

fn ask(stream: &mut TcpStream, cgroup: u64) {
    stream.write_all(&cgroup.to_le_bytes()).unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

/// One pod: the addresses in turn; each third connection closes at once, the others are kept for some requests.
fn open_connections(pod: &Pod, count: usize, targets: &[SocketAddr; 3]) {
    pod.enter().unwrap();
    let mut kept = VecDeque::new();
    for n in 0..count {
        let mut stream = TcpStream::connect(targets[n % 3]).unwrap();
        stream.set_read_timeout(Some(BROKEN)).unwrap();
        if (n / 3) % 3 == 0 {
            ask(&mut stream, pod.cgroup_id());
            continue;
        }
        kept.push_back(stream);
        if kept.len() > KEPT {
            keep_asking(kept.pop_front(), pod);
        }
    }
    kept.into_iter().for_each(|stream| keep_asking(Some(stream), pod));
}

fn keep_asking(stream: Option<TcpStream>, pod: &Pod) {
    let Some(mut stream) = stream else { return };
    for _ in 0..REQUESTS {
        ask(&mut stream, pod.cgroup_id());
    }
}

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
fn both_drivers_layouts_are_attributed_alike() {
    use loadtest::node::{Driver, Runtime};
    for layout in [
        Layout { driver: Driver::Cgroupfs, runtime: Runtime::Containerd },
        Layout { driver: Driver::Systemd, runtime: Runtime::CriO },
    ] {
        let Some(node) = Watched::with(layout, |_| {}) else { return };
        let pods = node.node.pods(3).unwrap();
        let tally = while_served(&node, |targets| {
            for pod in &pods {
                std::thread::scope(|threads| threads.spawn(|| open_connections(pod, 9, targets)).join())
                    .unwrap();
            }
        });
        tally.assert_all_right(9 * pods.len());
    }
}
