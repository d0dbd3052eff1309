//! Connections: taking them, bounding them, and letting them finish.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Connected;
use crate::request::{Ends, Service};

/// A client that has not sent its headers by then is stuck or hostile. Idle keep-alive connections end by it too.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// hyper answers 431 above it.
const HEADER_BLOCK: usize = 32 * 1024;
/// Pods of a whole node may start at once.
const BACKLOG: i32 = 4_096;
/// Out of file descriptors: connections must end before more can begin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listening socket on the given address.
///
/// Without `SO_REUSEPORT`, by which another root process could share the port and collect tokens, and without
/// `TCP_DEFER_ACCEPT`, which would break the kernel's attribution of connections to pods.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves on these listeners until `cancel`led; then stops accepting and gives what is running `grace` to finish.
pub async fn serve(
    listeners: Vec<TcpListener>,
    service: Arc<Service>,
    max_connections: usize,
    grace: Duration,
    cancel: CancellationToken,
) {
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(max_connections));
    let accepting = TaskTracker::new();
    for listener in listeners {
        let accept =
            accept(listener, Arc::clone(&service), connections.clone(), Arc::clone(&room), cancel.clone());
        accepting.spawn(accept);
    }
    accepting.close();
    accepting.wait().await;
    connections.close();
    if timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!(
            event = "drain_cut_short",
            open = connections.len(),
            "connections were still open at the end"
        );
    }
}

async fn accept(
    listener: TcpListener,
    service: Arc<Service>,
    connections: TaskTracker,
    room: Arc<Semaphore>,
    cancel: CancellationToken,
) {
    while let Some(accepted) = cancel.run_until_cancelled(listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly the peer's doing (ECONNABORTED); with no descriptor left a pause lets some go.
                if !matches!(error.kind(), std::io::ErrorKind::ConnectionAborted) {
                    tracing::warn!(event = "accept_failed", %error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            service.metrics.connection_refused();
            continue;
        };
        let Ok(local) = stream.local_addr() else { continue };
        let ends = Ends { peer, local: local.ip().to_canonical() };
        let connected = service.metrics.connected();
        let (service, cancel) = (Arc::clone(&service), cancel.clone());
        connections.spawn(async move {
            connection(stream, ends, service, connected, cancel).await;
            drop(place);
        });
    }
}

async fn connection(
    stream: TcpStream,
    ends: Ends,
    service: Arc<Service>,
    _connected: Connected,
    cancel: CancellationToken,
) {
    let respond = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, std::convert::Infallible>(service.respond(&request, ends).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(HEADER_BLOCK)
        // Head and body together are small: one write of one buffer costs less than a writev of two.
        .writev(false)
        .serve_connection(TokioIo::new(stream), respond);
    let mut serving = std::pin::pin!(serving);
    let ended = match cancel.run_until_cancelled(serving.as_mut()).await {
        Some(ended) => ended,
        None => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(event = "connection_failed", peer = %ends.peer, %error, "a connection ended early");
    }
}
