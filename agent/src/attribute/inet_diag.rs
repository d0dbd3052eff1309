//! From the two addresses of a connection to the cgroup of the socket at its other end, by the kernel's socket
//! diagnosis (`inet_diag`).
//!
//! This is a look-up by addresses, and a pod can have a socket with another pod's: by raw packets from an address that
//! it inherited, or in a network namespace that it makes for itself. So the answer is for audit and metrics, never for a
//! refusal, and in tests for comparison with what the kernel programs say.
//!
//! A query sees one network namespace. The agent's own has the sockets of hostNetwork pods; for the others
//! [`InetDiag::follow`] keeps a netlink socket in each pod's namespace, where the node lets it.

mod message;
mod socket;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use self::socket::DiagSocket;
use super::proc::{FirstProcess, HostProc};
use crate::locks::lock;

/// Sockets of this network namespace and of those of the pods that were followed.
#[derive(Debug)]
pub struct InetDiag {
    own: DiagSocket,
    pods: Mutex<HashMap<Arc<str>, PodNamespace>>,
}

#[derive(Debug)]
struct PodNamespace {
    id: u64,
    socket: DiagSocket,
    /// Where it was last seen to connect from, to be asked first.
    address: Option<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum InetDiagProblem {
    #[error("no netlink socket for socket diagnosis: {0}")]
    NoSocket(io::Error),
    #[error(
        "the kernel does not answer for TCP sockets: load its modules tcp_diag and inet_diag (modprobe tcp_diag), or \
         allow them if a list of allowed modules keeps them out"
    )]
    NoModule,
    #[error(
        "this kernel does not tell sockets' cgroups, which it does since 5.8 with CONFIG_SOCK_CGROUP_DATA"
    )]
    NoCgroups,
    #[error("the kernel's answer on a socket of our own: {0}")]
    Query(io::Error),
}

/// What a round of [`InetDiag::follow`] came to.
#[derive(Debug, Default)]
pub struct Followed {
    pub namespaces: usize,
    /// One of the reasons, if a namespace could not be entered.
    pub refused: Option<io::Error>,
}

impl InetDiag {
    /// In the network namespace of the calling thread. It needs no capability.
    pub fn open() -> Result<Self, InetDiagProblem> {
        let own = DiagSocket::open().map_err(InetDiagProblem::NoSocket)?;
        own.check()?;
        Ok(InetDiag { own, pods: Mutex::default() })
    }

    /// The cgroup of the socket that has these addresses, in the first namespace that knows it.
    /// 4 µs for each namespace that is asked, so up to 1 ms on a full node for a pod's first connection.
    pub fn cgroup_of(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u64>> {
        if let Some(found) = self.own.cgroup_of(local, remote)? {
            return Ok(Some(found));
        }
        let mut pods = self.pods();
        let address = local.ip().to_canonical();
        let (likely, others): (Vec<_>, Vec<_>) =
            pods.values_mut().partition(|pod| pod.address == Some(address));
        for pod in likely.into_iter().chain(others) {
            // One that cannot be asked keeps nobody from asking the others.
            if let Ok(Some(found)) = pod.socket.cgroup_of(local, remote) {
                pod.address = Some(address);
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Enters the namespaces of pods that are new, and leaves those of pods that are gone: a socket in one keeps it
    /// alive. It takes CAP_SYS_ADMIN and CAP_SYS_PTRACE, and reads all of /proc, so not from a request.
    pub fn follow(&self, processes: &HostProc) -> io::Result<Followed> {
        let own = fs::metadata("/proc/thread-self/ns/net")?.ino();
        let known: HashMap<_, _> = self.pods().iter().map(|(uid, pod)| (Arc::clone(uid), pod.id)).collect();
        let mut current = HashMap::new();
        let mut new = Vec::new();
        let mut refused = None;
        for FirstProcess { pod_uid, pid } in processes.first_processes()? {
            let entered = processes.network_namespace(pid).and_then(|namespace| {
                let id = namespace.metadata()?.ino();
                if id != own && known.get(&pod_uid) != Some(&id) {
                    let socket = socket_in(namespace)?;
                    new.push((Arc::clone(&pod_uid), PodNamespace { id, socket, address: None }));
                }
                Ok(id)
            });
            match entered {
                Ok(id) => drop(current.insert(pod_uid, id)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => refused = Some(error),
            }
        }
        let mut pods = self.pods();
        pods.retain(|uid, pod| current.get(uid) == Some(&pod.id));
        pods.extend(new);
        Ok(Followed { namespaces: pods.len(), refused })
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<Arc<str>, PodNamespace>> {
        lock(&self.pods)
    }
}

/// A socket stays in the namespace in which it was made. The thread that made it ends, so no other work is ever done
/// in a pod's namespace.
fn socket_in(namespace: File) -> io::Result<DiagSocket> {
    let enter_and_open = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        DiagSocket::open()
    };
    let thread = thread::Builder::new().name("pod-namespace".to_owned()).spawn(enter_and_open)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that entered the namespace panicked")))
}
