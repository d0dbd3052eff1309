//! Clients that say which pod they are, and the agent's side, which knows already.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use agent_ebpf::Caller;
use loadtest::node::Pod;
use podcred::attribute::inet_diag::InetDiag;
use podcred::attribute::probe::Probe;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{BROKEN, Listener, Watched};

/// Connections that each pod keeps open while it opens more.
const KEPT: usize = 16;
/// Requests on each of these before it closes.
const REQUESTS: usize = 3;
/// One of so many connections is looked up by inet_diag as well. No multiple of 3 or 2, so that every kind has its turn.
const WITNESSED: usize = 7;
const WRONG_SHOWN: usize = 10;

/// What the agent's side found.
#[derive(Default)]
pub(crate) struct Tally {
    right: AtomicUsize,
    wrong: AtomicUsize,
    examples: Mutex<Vec<String>>,
}

impl Tally {
    pub(crate) fn judge(&self, caller: Option<Caller>, said: u64) {
        if caller.is_some_and(|caller| caller.cgroup_id == said) {
            self.right.fetch_add(1, Ordering::Relaxed);
        } else if self.wrong.fetch_add(1, Ordering::Relaxed) < WRONG_SHOWN {
            self.examples.lock().unwrap().push(format!("cgroup {said}, and the kernel says {caller:?}"));
        }
    }

    #[track_caller]
    pub(crate) fn assert_all_right(&self, count: usize) {
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
pub(crate) fn while_served(node: &Watched, clients: impl FnOnce(&[SocketAddr; 3])) -> Arc<Tally> {
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

pub(crate) fn ask(stream: &mut TcpStream, cgroup: u64) {
    stream.write_all(&cgroup.to_le_bytes()).unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

/// One pod: the addresses in turn; each third connection closes at once, the others are kept for some requests. Now and
/// then the kernel's own table of sockets is asked, in the pod's namespace, whose the connection is.
pub(crate) fn open_connections(pod: &Pod, count: usize, targets: &[SocketAddr; 3]) {
    pod.enter().unwrap();
    let table = InetDiag::open().unwrap();
    let mut kept = VecDeque::new();
    for n in 0..count {
        let mut stream = TcpStream::connect(targets[n % 3]).unwrap();
        stream.set_read_timeout(Some(BROKEN)).unwrap();
        if n % WITNESSED == 0 {
            let owner = table.cgroup_of(stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            assert_eq!(owner.unwrap(), Some(pod.cgroup_id()), "by inet_diag");
        }
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
