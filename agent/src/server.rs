//! Connections: taking them, bounding them, and letting them finish.

mod connections;

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::connections::CapOf;
pub(crate) use self::connections::Share;
use self::connections::{Caps, Connections, Place, Told};
use crate::authenticate::last::LastToken;
use crate::clock::Clock;
use crate::listeners::Port;
use crate::metrics::Connected;
use crate::request::{Connection, HEADER_BLOCK, Service};
use crate::sockopt;

/// A client that has not sent its headers by then is stuck or hostile, or has no more requests.
const IDLE_FOR: Duration = Duration::from_secs(5);
/// How often to look for those. hyper would set a timer for each request, which is 1 % of its cost.
const LOOK_FOR_IDLE: Duration = Duration::from_secs(1);
/// A client that does not take its answer: the kernel keeps it no longer, also of a connection that was closed.
const ANSWER_TAKEN_WITHIN: Duration = Duration::from_secs(5);
/// What the kernel keeps for a connection each way, in bytes; it takes twice as many. By itself it would let each grow to
/// megabytes, charged to the agent, for a client that pipelines requests and reads no answer.
const SOCKET_BUFFER: usize = 8 * 1024;
/// Descriptors that are not pods' connections: listeners, calls to EKS Auth and the issuer, probes, scrapes.
const OTHER_DESCRIPTORS: usize = 256;
/// Pods of a whole node may start at once.
const BACKLOG: i32 = 4_096;
/// Out of file descriptors: connections must end before more can begin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listening socket on the given address.
///
/// Without `SO_REUSEPORT`, by which another root process could share the port and collect tokens, and without
/// `TCP_DEFER_ACCEPT`, which would break the kernel's attribution of connections to pods. `prepare` is given the socket
/// before any connection can come in on it.
pub fn listen(
    address: SocketAddr,
    prepare: impl FnOnce(BorrowedFd<'_>, SocketAddr) -> io::Result<()>,
) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit these.
    socket.set_tcp_user_timeout(Some(ANSWER_TAKEN_WITHIN))?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    let address = socket.local_addr()?.as_socket().unwrap_or(address);
    prepare(socket.as_fd(), address)?;
    socket.listen(BACKLOG)?;
    sockopt::without_fast_open(&socket)?;
    TcpListener::from_std(socket.into())
}

/// Serves on these ports, as soon as each is held, until `cancel`led; then takes who is waiting already, and gives what is running `grace` to finish.
pub async fn serve(
    ports: Vec<Port>,
    service: Arc<Service>,
    max_connections: usize,
    grace: Duration,
    cancel: CancellationToken,
) {
    // Where the kernel tells pods apart, whoever it does not know leaves half of the node to those that it does.
    let unattributed =
        if service.attribution.can_enforce() { max_connections.div_ceil(2) } else { usize::MAX };
    let caps = Caps { node: max_connections, pod: service.pods.limits().connections, unattributed };
    let connections = Connections::new(caps);
    tokio::select! {
        () = accept_all(ports, &service, &connections, grace, cancel) => {}
        () = end_idle(&connections, &service.clock) => {}
    }
}

async fn accept_all(
    ports: Vec<Port>,
    service: &Arc<Service>,
    connections: &Arc<Connections>,
    grace: Duration,
    cancel: CancellationToken,
) {
    let (tracker, accepting) = (TaskTracker::new(), TaskTracker::new());
    for port in ports {
        let (service, connections) = (Arc::clone(service), Arc::clone(connections));
        let (tracker, cancel) = (tracker.clone(), cancel.clone());
        accepting.spawn(async move {
            let host = port.address().ip();
            if let Some(listener) = port.held(&service.attribution, &cancel).await {
                service.metrics.listener(host, true);
                accept(listener, service, connections, tracker, cancel).await;
            }
        });
    }
    accepting.close();
    accepting.wait().await;
    connections.finish();
    tracker.close();
    if timeout(grace, tracker.wait()).await.is_err() {
        tracing::warn!(
            event = "drain_cut_short",
            open = tracker.len(),
            "connections were still open when --shutdown-grace was over"
        );
    }
}

/// For as long as it is polled.
async fn end_idle(connections: &Connections, clock: &Clock) {
    loop {
        sleep(LOOK_FOR_IDLE).await;
        connections.end_idle(IDLE_FOR, clock.now());
    }
}

/// How many connections this process can hold, which may be fewer than `wanted`: each costs a descriptor, and the calls
/// to EKS Auth, probes and scrapes need some too.
pub fn affordable_connections(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Containers often get a soft limit of 1,024 and a hard one of millions.
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(event = "descriptor_limit", %error, "cannot raise the limit on open files");
    }
    let Some(descriptors) = getrlimit(Resource::Nofile).current else { return wanted };
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let affordable = descriptors.saturating_sub(OTHER_DESCRIPTORS).max(descriptors / 2).max(1);
    if affordable < wanted {
        tracing::warn!(
            event = "descriptor_limit",
            descriptors,
            connections = affordable,
            "the limit on open files allows fewer connections than --max-connections; raise the one or lower the other"
        );
    }
    wanted.min(affordable)
}

async fn accept(
    listener: TcpListener,
    service: Arc<Service>,
    connections: Arc<Connections>,
    tracker: TaskTracker,
    cancel: CancellationToken,
) {
    // Only where the listener takes all addresses has each connection to be asked for its own.
    let bound = listener.local_addr().ok().filter(|address| !address.ip().is_unspecified());
    let mut cancelled = pin!(cancel.cancelled());
    // Who has connected and asked before the end is answered, as closing the listener would reset it. But nobody puts the end off by
    // connecting on and on.
    let mut late = 0..BACKLOG;
    loop {
        if cancel.is_cancelled() && late.next().is_none() {
            break;
        }
        let accepted = tokio::select! {
            // The other way round each connection would pay for an entry among those that wait for the end.
            biased;
            accepted = listener.accept() => accepted,
            () = cancelled.as_mut() => break,
        };
        let now = service.clock.now();
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly the peer's doing (ECONNABORTED); with no descriptor left a pause lets some go.
                if error.kind() != ErrorKind::ConnectionAborted {
                    service.logged.accept_failed(&error, now);
                    if cancel.run_until_cancelled(sleep(ACCEPT_PAUSE)).await.is_none() {
                        break;
                    }
                }
                continue;
            }
        };
        let Some(local) = bound.or_else(|| stream.local_addr().ok()) else { continue };
        let caller = service.attribution.caller(&stream, peer, local);
        service.metrics.attributed(&caller);
        // What a pod can spoof must not be charged to another.
        let known = caller.as_ref().ok().filter(|_| service.attribution.can_enforce());
        let pod = known.map(|workload| service.pods.of(&workload.pod_uid));
        let place = match connections.admit(pod.clone(), now) {
            Ok(place) => place,
            Err(full) => {
                service.metrics.connection_refused(full);
                service.logged.connection_refused(full, pod.as_deref(), now);
                continue;
            }
        };
        let connection = Connection {
            peer,
            local: local.ip().to_canonical(),
            caller,
            pod,
            last_token: LastToken::default(),
        };
        let evicted_at = place.evicted_at;
        let connected = service.metrics.connected();
        tracker.spawn(serve_one(stream, connection, Arc::clone(&service), place, connected));
        if let Some(cap_of) = evicted_at {
            service.metrics.connection_evicted(cap_of);
            // The one that had to go has its descriptor until its task has run.
            yield_now().await;
        }
    }
}

#[expect(clippy::manual_async_fn, reason = "an async function's future has room for its arguments twice")]
fn serve_one(
    stream: TcpStream,
    connection: Connection,
    service: Arc<Service>,
    place: Place,
    connected: Connected,
) -> impl Future<Output = ()> {
    async move {
        let _connected = connected;
        serve_on(stream, &connection, &service, &place).await;
    }
}

async fn serve_on(stream: TcpStream, connection: &Connection, service: &Service, place: &Place) {
    // Not an async closure, whose future has room for the request twice.
    let respond = service_fn(|request| async move {
        place.busy();
        let (response, answered) = service.respond(&request, connection).await;
        // From here on it is the client's turn, also to take this answer.
        place.idle(answered);
        Ok::<_, Infallible>(response)
    });
    let serving = http1::Builder::new()
        .max_buf_size(HEADER_BLOCK)
        // Head and body together are small: one write of one buffer costs less than a writev of two.
        .writev(false)
        .serve_connection(TokioIo::new(stream), respond);
    let mut serving = pin!(serving);
    let ended = loop {
        tokio::select! {
            // Nothing goes before a request that is there, and the order need not be drawn by lot for each.
            biased;
            ended = serving.as_mut() => break ended,
            told = place.told() => match told {
                Told::Leave => break Ok(()),
                // It is told again if it will have been idle that long.
                Told::LeaveIfIdle if !place.is_idle(IDLE_FOR, service.clock.now()) => {}
                Told::LeaveIfIdle => break Ok(()),
                Told::Finish => serving.as_mut().graceful_shutdown(),
            },
        }
    };
    if let Err(error) = ended {
        tracing::debug!(event = "connection_failed", peer = %connection.peer, %error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    #[tokio::test]
    async fn what_is_accepted_has_the_listeners_limits_on_answers_that_nobody_takes() {
        let listener =
            listen("127.0.0.1:0".parse().expect("an address"), |_, _| Ok(())).expect("a port is free");
        let client = TcpStream::connect(listener.local_addr().expect("bound"));
        let (accepted, _client) = tokio::join!(listener.accept(), client);
        let (accepted, _) = accepted.expect("it connects");
        let accepted = SockRef::from(&accepted);
        assert_eq!(accepted.tcp_user_timeout().expect("an option"), Some(ANSWER_TAKEN_WITHIN));
        assert_eq!(accepted.send_buffer_size().expect("an option"), 2 * SOCKET_BUFFER);
        assert_eq!(accepted.recv_buffer_size().expect("an option"), 2 * SOCKET_BUFFER);
    }
}
