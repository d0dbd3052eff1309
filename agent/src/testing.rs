//! For tests: an HTTP server on loopback that answers as it is told, and a log that can be read.

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::header::HeaderName;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub(crate) type Answer = Response<Full<Bytes>>;
type Script = Box<dyn Fn(Request<Bytes>) -> BoxFuture<'static, Answer> + Send + Sync>;

/// Remembers what it was asked. It ends, with its connections, when it is dropped.
pub(crate) struct Loopback {
    pub(crate) url: String,
    script: Arc<Mutex<Script>>,
    asked: watch::Receiver<Vec<Request<Bytes>>>,
    _accepting: AbortOnDropHandle<()>,
}

impl Loopback {
    pub(crate) async fn answering(answer: impl Fn(Request<Bytes>) -> Answer + Send + Sync + 'static) -> Self {
        Self::start(Box::new(move |request| std::future::ready(answer(request)).boxed())).await
    }

    /// Answers when the future is ready.
    pub(crate) async fn taking_its_time<F>(
        answer: impl Fn(Request<Bytes>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self::start(Box::new(move |request| answer(request).boxed())).await
    }

    /// From the next request on.
    pub(crate) fn answer(&self, answer: impl Fn(Request<Bytes>) -> Answer + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Box::new(move |request| std::future::ready(answer(request)).boxed());
    }

    pub(crate) fn asked(&self) -> Vec<Request<Bytes>> {
        self.asked.borrow().clone()
    }

    /// Waits until so many requests have come in, in all.
    pub(crate) async fn was_asked(&self, times: usize) {
        self.asked.clone().wait_for(|asked| asked.len() >= times).await.unwrap();
    }

    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script = Arc::new(Mutex::new(script));
        let (seen, asked) = watch::channel(Vec::new());
        let accepting = AbortOnDropHandle::new(tokio::spawn(accept(listener, Arc::clone(&script), seen)));
        Loopback { url, script, asked, _accepting: accepting }
    }
}

pub(crate) fn answer(status: u16, headers: &[(&'static str, &str)], body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::builder().status(status);
    for (name, value) in headers {
        answer = answer.header(HeaderName::from_static(name), *value);
    }
    answer.body(Full::new(body.into())).unwrap()
}

/// What was logged on this thread, by event.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// For as long as what it gives is kept.
    pub(crate) fn capture(&self, level: tracing::Level) -> impl Drop + use<> {
        let log = self.clone();
        let subscriber =
            tracing_subscriber::fmt().json().with_max_level(level).with_writer(move || log.clone()).finish();
        // As long as there is only one subscriber, tracing asks nobody about a line that another thread, without it,
        // logs first, and holds that nobody ever wants that line. It asks all once there are two.
        Box::leak(Box::new(tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new())));
        tracing::subscriber::set_default(subscriber)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The names of the events, in order.
    pub(crate) fn events(&self) -> Vec<String> {
        let event = |line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["fields"]["event"].as_str().unwrap().to_owned()
        };
        self.text().lines().map(event).collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn accept(listener: TcpListener, script: Arc<Mutex<Script>>, seen: watch::Sender<Vec<Request<Bytes>>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (script, seen) = (Arc::clone(&script), seen.clone());
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let (script, seen) = (Arc::clone(&script), seen.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let request = Request::from_parts(head, body);
                seen.send_modify(|all| all.push(request.clone()));
                let answer = (script.lock().unwrap())(request);
                Ok::<_, Infallible>(answer.await)
            }
        });
        // A client that hangs up is part of some tests.
        connections.spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
