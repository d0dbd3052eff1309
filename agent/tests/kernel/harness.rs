//! A simulated node with the probe attached, listeners as the agent makes them, and clients.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use agent_ebpf::{Caller, Counters, Kind};
use loadtest::left_out_without_root;
use loadtest::node::{CREDENTIALS_V4, CREDENTIALS_V6, Layout, Node, Place, Pod, PodSpec};
use podcred::attribute::cgroup::{Cgroups, PodCgroup};
use podcred::attribute::probe::{Probe, ProbeConfig};
use podcred::clock::Clock;
use rustix::mount::{MountFlags, UnmountFlags};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tempfile::TempDir;
use tokio::runtime::Builder;

/// Nothing here takes this long unless it is broken, not even where an emulator runs the kernel.
pub(crate) const BROKEN: Duration = Duration::from_secs(120);

/// Below those that connect() takes.
const FIRST_PORT: u16 = 2_000;

/// What the issue of attribution asks for; fewer where the machine is slow.
pub(crate) fn connections() -> usize {
    match std::env::var("PODCRED_TEST_CONNECTIONS") {
        Ok(number) => number.parse().expect("PODCRED_TEST_CONNECTIONS is a number"),
        Err(_) => 20_000,
    }
}

/// A node on which the probe watches.
pub(crate) struct Watched {
    pub(crate) probe: Arc<Probe>,
    cgroups: Cgroups,
    pub(crate) node: Node,
    next_port: AtomicU16,
    _others: Others,
}

/// Tests that measure run alone; the others run beside each other.
pub(crate) enum Others {
    #[expect(dead_code, reason = "held until the test ends")]
    Welcome(RwLockReadGuard<'static, ()>),
    #[expect(dead_code, reason = "held until the test ends")]
    Waiting(RwLockWriteGuard<'static, ()>),
}

static QUIET: RwLock<()> = RwLock::new(());

impl Others {
    pub(crate) fn welcome() -> Others {
        Others::Welcome(QUIET.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn waiting() -> Others {
        Others::Waiting(QUIET.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Watched {
    /// None where this test is left out.
    pub(crate) fn node() -> Option<Watched> {
        Watched::with(Layout::default(), |_| {})
    }

    /// As [`Watched::node`], with no other test beside.
    pub(crate) fn alone() -> Option<Watched> {
        Watched::start(Layout::default(), Others::waiting(), |_| {})
    }

    pub(crate) fn with(layout: Layout, change: impl FnOnce(&mut ProbeConfig)) -> Option<Watched> {
        Watched::start(layout, Others::welcome(), change)
    }

    fn start(layout: Layout, others: Others, change: impl FnOnce(&mut ProbeConfig)) -> Option<Watched> {
        if left_out_without_root() {
            return None;
        }
        let node = Node::start(layout).expect("a simulated node");
        let mut config = config_for(&node);
        change(&mut config);
        let probe = Arc::new(Probe::load(&config).expect("the probe loads"));
        let cgroups = Cgroups::open(node.cgroup_mount(), node.kubepods()).expect("the cgroups");
        Some(Watched { probe, cgroups, node, next_port: AtomicU16::new(FIRST_PORT), _others: others })
    }

    /// The same node with its probe loaded anew.
    pub(crate) fn reloaded(self, change: impl FnOnce(&mut ProbeConfig)) -> Watched {
        let Watched { probe, node, .. } = self;
        drop(probe);
        let mut config = config_for(&node);
        change(&mut config);
        let probe = Arc::new(Probe::load(&config).expect("the probe loads"));
        Watched { probe, node, ..self }
    }

    pub(crate) fn pods<const N: usize>(&self) -> [Pod; N] {
        self.node.pods(N).expect("pods").try_into().expect("as many as were asked for")
    }

    pub(crate) fn host_network_pod(&self) -> Pod {
        self.node.pod(PodSpec::default().host_network()).expect("a pod")
    }

    /// The agent's listener on the first of its addresses.
    pub(crate) fn listener(&self) -> Listener {
        self.listener_at(CREDENTIALS_V4.into())
    }

    pub(crate) fn listener_v6(&self) -> Listener {
        self.listener_at(CREDENTIALS_V6.into())
    }

    fn listener_at(&self, ip: IpAddr) -> Listener {
        let mark = |socket: BorrowedFd<'_>, _| self.probe.mark(&socket).map_err(io::Error::other);
        let listen = || {
            // Only to please tokio, which has nothing to do here.
            let runtime = Builder::new_current_thread().enable_io().build()?;
            let _inside = runtime.enter();
            podcred::server::listen(SocketAddr::new(ip, self.port()), mark)?.into_std()
        };
        let listener = Listener::new(self.in_agent(listen), Arc::clone(&self.probe));
        self.probe.watch(listener.address, Kind::Credentials).expect("room for a destination");
        listener
    }

    /// A listener of the agent's as it must not be made: whatever the node's sysctls say of TCP Fast Open goes.
    pub(crate) fn careless_listener(&self) -> Listener {
        let listen = || {
            let address = SocketAddr::from((CREDENTIALS_V4, self.port()));
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.bind(&address.into())?;
            self.probe.mark(&socket).map_err(io::Error::other)?;
            socket.listen(16)?;
            Ok(TcpListener::from(socket))
        };
        let listener = Listener::new(self.in_agent(listen), Arc::clone(&self.probe));
        self.probe.watch(listener.address, Kind::Credentials).expect("room for a destination");
        listener
    }

    /// A listener of somebody else on the node, on which the agent's port means nothing.
    pub(crate) fn foreign_listener(&self, ip: IpAddr) -> Listener {
        Listener::new(self.in_agent(|| TcpListener::bind((ip, self.port()))), Arc::clone(&self.probe))
    }

    /// No client's of any namespace: attackers listen on it too.
    pub(crate) fn port(&self) -> u16 {
        self.next_port.fetch_add(1, Ordering::Relaxed)
    }

    fn in_agent<T: Send>(&self, f: impl FnOnce() -> io::Result<T> + Send) -> T {
        self.node.agent().run(f).expect("the agent's place").expect("a socket")
    }

    /// The pod that the cgroup of this connection leads to.
    pub(crate) fn pod_of(&self, accepted: &Accepted) -> PodCgroup {
        self.cgroups.pod_of(accepted.caller().cgroup_id).expect("the cgroup of a pod")
    }

    /// By [`Caller::group`].
    pub(crate) fn counters_of(&self, group: u64) -> Counters {
        self.probe.counters().expect("the counters").remove(&group).unwrap_or_default()
    }
}

/// What the agent gives its probe on such a node.
pub(crate) fn config_for(node: &Node) -> ProbeConfig {
    ProbeConfig::new(node.kubepods().to_owned(), node.kubepods_level(), node.agent().cgroup())
}

/// A bpf file system of a test's own; what is pinned there ends with it.
pub(crate) struct Bpffs(TempDir);

impl Bpffs {
    pub(crate) fn mount() -> Bpffs {
        let folder = tempfile::tempdir().expect("a folder");
        rustix::mount::mount("bpf", folder.path(), "bpf", MountFlags::empty(), None)
            .expect("a bpf file system");
        Bpffs(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// What an agent is told that is to pin there.
    pub(crate) fn args(&self) -> [&str; 2] {
        ["--pin", self.path().to_str().expect("a readable path")]
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(self.path(), UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", self.path().display());
        }
    }
}

pub(crate) struct Listener {
    socket: TcpListener,
    pub(crate) address: SocketAddr,
    probe: Arc<Probe>,
}

/// A connection as the agent has it, and what the kernel said of it straight after accept().
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) caller: Option<Caller>,
}

impl Listener {
    fn new(socket: TcpListener, probe: Arc<Probe>) -> Listener {
        socket.set_nonblocking(false).expect("a blocking socket");
        // A listener's time-out is that of its accept().
        SockRef::from(&socket).set_read_timeout(Some(BROKEN)).expect("a time-out");
        let address = socket.local_addr().expect("it is bound");
        Listener { socket, address, probe }
    }

    pub(crate) fn accept(&self) -> Accepted {
        let (stream, peer) = self.socket.accept().expect("somebody connects");
        let caller = self.probe.caller(&stream).expect("socket storage can be read");
        Accepted { stream, peer, caller }
    }

    pub(crate) fn into_socket(self) -> TcpListener {
        self.socket
    }

    /// The address as a socket of IPv6 writes that of IPv4.
    pub(crate) fn mapped(&self) -> SocketAddr {
        match self.address.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), self.address.port()),
            IpAddr::V6(_) => self.address,
        }
    }
}

impl Accepted {
    pub(crate) fn caller(&self) -> Caller {
        self.caller.unwrap_or_else(|| panic!("the connection of {} is not attributed", self.peer))
    }

    /// Says something and hears the answer: the connection is whole.
    pub(crate) fn talks_with(&mut self, client: &mut (impl Read + Write)) {
        client.write_all(b"?").expect("a question");
        self.answers();
        client.read_exact(&mut [0]).expect("an answer");
    }

    pub(crate) fn answers(&mut self) {
        self.stream.read_exact(&mut [0]).expect("a question");
        self.stream.write_all(b"!").expect("an answer");
    }
}

/// What a test says of a connection.
#[track_caller]
pub(crate) fn assert_opened_by(accepted: &Accepted, place: &Place) {
    assert_eq!(accepted.caller().cgroup_id, place.cgroup_id(), "{:?}", accepted.caller());
}

/// Waits for a state that nothing tells.
#[track_caller]
pub(crate) fn until(state: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Clock::default().now().mono + BROKEN;
    while !reached() {
        assert!(Clock::default().now().mono < deadline, "not within {BROKEN:?}: {state}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn connect(from: &Place, to: SocketAddr) -> TcpStream {
    let stream = from.run(|| TcpStream::connect_timeout(&to, BROKEN)).expect("a thread in the pod");
    let stream = stream.expect("a connection");
    stream.set_read_timeout(Some(BROKEN)).expect("a time-out");
    stream
}

/// Whether a connection to the agent is refused, as it is while there is none.
pub(crate) fn refuses(from: &Place) -> bool {
    let connected = from.run(|| TcpStream::connect((CREDENTIALS_V4, 80))).expect("a thread in the pod");
    connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A socket of TCP that is connected to nothing yet, made in this pod.
pub(crate) fn socket_for(to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.set_read_timeout(Some(BROKEN)).expect("a time-out");
    socket
}
