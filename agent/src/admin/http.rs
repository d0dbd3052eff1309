//! A small HTTP/1 server for pages that are made on request: one request for each connection, few connections.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

pub(super) struct Page {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Page {
    pub(super) fn text(body: String) -> Self {
        Page { status: StatusCode::OK, content_type: "text/plain; charset=utf-8", body }
    }

    pub(super) fn with(self, status: StatusCode) -> Self {
        Page { status, ..self }
    }
}

/// What a slow or hostile client may cost.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    connections: usize,
    headers: Duration,
    connection: Duration,
}

impl Limits {
    pub(super) fn of(connections: usize) -> Self {
        Limits { connections, headers: Duration::from_secs(5), connection: Duration::from_secs(10) }
    }
}

/// Serves until `cancel`, then lets the requests under way finish. `respond` gives no page where there is none.
pub(super) async fn serve<F, P>(listener: TcpListener, limits: Limits, respond: F, cancel: CancellationToken)
where
    F: Fn(&str) -> P + Send + Sync + 'static,
    P: Future<Output = Option<Page>> + Send + 'static,
{
    let respond = Arc::new(respond);
    let permits = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = cancel.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => {
                failing = false;
                stream
            }
            Err(error) => {
                // Out of file descriptors, most likely: accept fails until one is free, and must neither spin till
                // then nor fill the log.
                if !std::mem::replace(&mut failing, true) {
                    warn!(event = "accept_failed", %error, "cannot accept a connection for probes or metrics");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Over the limit: dropping the stream closes it, and costs nothing that could be exhausted.
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
        let (respond, cancel) = (Arc::clone(&respond), cancel.clone());
        connections.spawn(async move {
            connection(stream, limits, respond, cancel).await;
            drop(permit);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection<F, P>(stream: TcpStream, limits: Limits, respond: Arc<F>, cancel: CancellationToken)
where
    F: Fn(&str) -> P,
    P: Future<Output = Option<Page>>,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let readable = request.method() == Method::GET || request.method() == Method::HEAD;
        let page = readable.then(|| respond(request.uri().path()));
        async move { Ok::<_, Infallible>(answer(page).await) }
    });
    // No keep-alive: with few connections allowed, idle ones would shut the others out.
    let serving = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    let finished = tokio::time::timeout(limits.connection, async {
        tokio::select! {
            result = serving.as_mut() => result,
            () = cancel.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.as_mut().await
            }
        }
    });
    match finished.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection for probes or metrics failed"),
        Err(_) => debug!("a connection for probes or metrics took too long"),
    }
}

/// Without `page` the request wanted something else than to read one.
async fn answer(page: Option<impl Future<Output = Option<Page>>>) -> Response<Full<Bytes>> {
    let readable = page.is_some();
    let page = match page {
        Some(page) => {
            page.await.unwrap_or_else(|| Page::text("not found\n".to_owned()).with(StatusCode::NOT_FOUND))
        }
        None => Page::text("GET and HEAD only\n".to_owned()).with(StatusCode::METHOD_NOT_ALLOWED),
    };
    let mut response = Response::new(Full::new(Bytes::from(page.body)));
    *response.status_mut() = page.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    if !readable {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::admin::{Readiness, serve_metrics, serve_probes};
    use crate::clock::Clock;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // Fails where the server closed first; what it said before that is what counts.
        let _ = stream.write_all(request.as_bytes()).await;
        rest(&mut stream).await
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    /// Until the server closes; nothing where it resets, as it does with a request that it never read.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    async fn page_server(limits: Limits) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let (listener, address) = listener().await;
        let cancel = CancellationToken::new();
        let respond = |path: &str| ready((path == "/page").then(|| Page::text("hello".to_owned())));
        (address, cancel.clone(), tokio::spawn(serve(listener, limits, respond, cancel)))
    }

    #[tokio::test]
    async fn probes_answer_liveness_always_and_readiness_by_its_parts() {
        let (listener, address) = listener().await;
        let unready = || Readiness::default().ok("keys").failing("listeners", "none is bound");
        tokio::spawn(serve_probes(listener, unready, CancellationToken::new()));

        let live = get(address, "/healthz").await;
        assert!(live.starts_with("HTTP/1.1 200 ") && live.ends_with("\r\n\r\nok\n"), "{live}");
        let ready = get(address, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
        assert!(ready.ends_with("\r\n\r\nkeys: ok\nlisteners: none is bound\n"), "{ready}");
        assert!(get(address, "/metrics").await.starts_with("HTTP/1.1 404 "));
    }

    #[tokio::test]
    async fn metrics_are_gathered_for_each_scrape_and_labelled_as_prometheus_text() {
        let (listener, address) = listener().await;
        let scrapes = AtomicU32::new(0);
        let gather = move || format!("scrapes {}\n", scrapes.fetch_add(1, Ordering::Relaxed));
        tokio::spawn(serve_metrics(listener, gather, 4, Clock::default(), CancellationToken::new()));

        for expected in ["scrapes 0\n", "scrapes 1\n"] {
            let answer = get(address, "/metrics").await;
            assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
            assert!(answer.ends_with(expected), "{answer}");
        }
    }

    /// On the one thread that there is here.
    #[tokio::test]
    async fn a_scrape_under_way_holds_up_nothing_but_the_next_one() {
        let (scrapes, metrics) = listener().await;
        let (probes, probed) = listener().await;
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let (go, may_end) = mpsc::channel::<()>();
        let may_end = std::sync::Mutex::new(may_end);
        let gather = move || {
            begun.send(()).unwrap();
            may_end
                .lock()
                .unwrap()
                .recv_timeout(Duration::from_secs(9))
                .map_or("late", |()| "in time")
                .to_owned()
        };
        tokio::spawn(serve_metrics(scrapes, gather, 4, Clock::default(), CancellationToken::new()));
        tokio::spawn(serve_probes(probes, Readiness::default, CancellationToken::new()));
        let scraped = [(); 2].map(|()| tokio::spawn(async move { get(metrics, "/metrics").await }));

        begins.recv().await.unwrap();
        assert!(get(probed, "/healthz").await.starts_with("HTTP/1.1 200 "));
        assert!(begins.try_recv().is_err(), "one at a time");
        for _ in &scraped {
            go.send(()).unwrap();
        }
        for answer in scraped {
            let answer = answer.await.unwrap();
            assert!(answer.ends_with("in time"), "{answer}");
        }
    }

    #[tokio::test]
    async fn only_get_and_head_of_known_paths_are_answered() {
        let (address, ..) = page_server(Limits::of(4)).await;
        let answer = ask(address, "HEAD /page HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.contains("200 OK") && answer.contains("content-length: 5"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        let answer = ask(address, "POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
        assert!(answer.contains("405") && answer.contains("allow: GET, HEAD"), "{answer}");
        assert!(get(address, "/page/").await.contains("404"));
        assert!(get(address, "/page?x=1").await.ends_with("hello"));
    }

    #[tokio::test]
    async fn a_connection_over_the_limit_is_closed_and_the_next_after_it_served() {
        let (address, ..) = page_server(Limits::of(1)).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(b"GET /page HTTP/1.1\r\n").await.unwrap();

        let mut second = TcpStream::connect(address).await.unwrap();
        assert_eq!(rest(&mut second).await, "", "closed without an answer");

        first.write_all(b"Host: x\r\n\r\n").await.unwrap();
        assert!(rest(&mut first).await.ends_with("hello"));
        // The permit comes back just after the client sees the end: the state to wait for is an answer.
        while !get(address, "/page").await.ends_with("hello") {}
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_headers_is_dropped_by_either_limit() {
        let (short, long) = (Duration::from_millis(20), Duration::from_secs(3600));
        for (headers, connection) in [(short, long), (long, short)] {
            let (address, ..) = page_server(Limits { connections: 4, headers, connection }).await;
            let answer = ask(address, "GET /page HTTP/1.1\r\nHost:");
            let answer = tokio::time::timeout(Duration::from_secs(9), answer).await.expect("it is closed");
            assert!(!answer.contains("hello"), "{answer}");
        }
    }

    #[tokio::test]
    async fn headers_without_end_are_refused() {
        let (address, ..) = page_server(Limits::of(4)).await;
        let request = format!("GET /page HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
        assert!(!ask(address, &request).await.contains("hello"));
    }

    #[tokio::test]
    async fn after_cancel_nothing_is_accepted_and_the_server_ends() {
        let (address, cancel, server) = page_server(Limits::of(4)).await;
        let idle = TcpStream::connect(address).await.unwrap();
        assert!(
            get(address, "/page").await.ends_with("hello"),
            "by now the idle connection is accepted as well"
        );
        cancel.cancel();
        tokio::time::timeout(Duration::from_secs(4), server)
            .await
            .expect("before the header timeout")
            .unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "the listener is gone");
        drop(idle);
    }
}
