//! A simulated API server: the pods of a cluster, listed and watched as `GET /api/v1/pods` has it, its nodes' taints, read
//! and written under `/api/v1/nodes/NAME`, and nothing else.
//!
//! Changes are numbered; a watch goes on from the number that its list was of. Only the field selector
//! `spec.nodeName=NAME` is known. Bookmarks, pages and compaction are not simulated, and of patches only a merge of taints.

mod nodes;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::nodes::Node;

/// What the API server knows of a pod.
#[derive(Clone, Debug)]
pub struct RunningPod {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    pub node: String,
}

/// How requests for pods are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Granted,
    /// The service account may not list or watch pods.
    Forbidden,
    /// A 503, and running watches end.
    Down,
}

/// Dropping it ends it: no new connections, and those that are open close.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    /// Watched, so that a change reaches the watches.
    cluster: watch::Sender<Cluster>,
    requests: AtomicU64,
}

#[derive(Debug)]
struct Cluster {
    access: Access,
    /// That of the latest change.
    version: u64,
    pods: BTreeMap<String, Value>,
    nodes: BTreeMap<String, Node>,
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
struct Change {
    version: u64,
    kind: &'static str,
    pod: Value,
}

type Body = BoxBody<Bytes, Infallible>;

impl ApiServer {
    /// Listens on a port of loopback; the runtime that this is called in serves. There are no pods yet.
    pub async fn start() -> Result<ApiServer> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a port of loopback")?;
        let address = listener.local_addr()?;
        let cluster = Cluster {
            access: Access::Granted,
            version: 1,
            pods: BTreeMap::new(),
            nodes: BTreeMap::new(),
            changes: Vec::new(),
        };
        let shared = Arc::new(Shared { cluster: watch::Sender::new(cluster), requests: AtomicU64::new(0) });
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, Arc::clone(&shared), stop.clone()));
        Ok(ApiServer { address, shared, _stop: stop.drop_guard() })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set_access(&self, access: Access) {
        self.shared.cluster.send_modify(|cluster| cluster.access = access);
    }

    pub fn add_pod(&self, pod: &RunningPod) {
        self.shared.cluster.send_modify(|cluster| {
            let object = cluster.next(|version| object(pod, version), "ADDED");
            cluster.pods.insert(pod.uid.clone(), object);
        });
    }

    pub fn remove_pod(&self, uid: &str) {
        self.shared.cluster.send_modify(|cluster| {
            if let Some(pod) = cluster.pods.remove(uid) {
                cluster.next(|_| pod, "DELETED");
            }
        });
    }

    /// How many lists and watches were asked for.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Cluster {
    fn next(&mut self, pod: impl FnOnce(u64) -> Value, kind: &'static str) -> Value {
        self.version += 1;
        let pod = pod(self.version);
        self.changes.push(Change { version: self.version, kind, pod: pod.clone() });
        pod
    }
}

fn object(pod: &RunningPod, version: u64) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "uid": pod.uid,
            "namespace": pod.namespace,
            "name": pod.name,
            "resourceVersion": version.to_string(),
        },
        "spec": { "serviceAccountName": pod.service_account, "nodeName": pod.node, "containers": [] },
    })
}

async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, Arc::clone(&shared));
                tokio::spawn(stop.clone().run_until_cancelled_owned(connection));
            }
            Err(error) => tracing::warn!(%error, "cannot accept a connection"),
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(async |request| Ok::<_, Infallible>(answer(&shared, request).await));
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "connection ended");
    }
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    let Some(resource) = path.strip_prefix("/api/v1/") else {
        return refusal(StatusCode::NOT_FOUND, "NotFound", "the simulation has pods and nodes only");
    };
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let query = |name: &str| {
        let query = request.uri().query().unwrap_or_default().as_bytes();
        form_urlencoded::parse(query).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    let access = shared.cluster.borrow().access;
    match access {
        Access::Granted => {}
        Access::Forbidden => {
            let kind = resource.split('/').next().unwrap_or_default();
            let message = format!(
                "{kind} is forbidden: User \"system:serviceaccount:kube-system:podcred\" cannot {} resource \"{kind}\" in \
                 API group \"\" at the cluster scope",
                if kind == "nodes" { "get" } else { "list" }
            );
            return refusal(StatusCode::FORBIDDEN, "Forbidden", &message);
        }
        Access::Down => {
            return refusal(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "simulated outage");
        }
    }
    if let Some(name) = resource.strip_prefix("nodes/") {
        let name = name.to_owned();
        return nodes::answer(shared, &name, request).await;
    }
    if resource != "pods" {
        return refusal(StatusCode::NOT_FOUND, "NotFound", "the simulation has pods and nodes only");
    }
    let selector = query("fieldSelector").unwrap_or_default();
    let node = match selector.strip_prefix("spec.nodeName=") {
        Some(node) => Some(node.to_owned()),
        None if selector.is_empty() => None,
        None => return refusal(StatusCode::BAD_REQUEST, "BadRequest", "unknown field selector"),
    };
    if query("watch").is_some_and(|watch| watch == "true" || watch == "1") {
        let Some(from) = query("resourceVersion").and_then(|version| version.parse().ok()) else {
            return refusal(StatusCode::BAD_REQUEST, "BadRequest", "a watch needs a resourceVersion");
        };
        let changes = changes(shared.cluster.subscribe(), from, node);
        return json_body(StatusCode::OK, BodyExt::boxed(StreamBody::new(changes)));
    }
    let cluster = shared.cluster.borrow();
    let items: Vec<&Value> = cluster.pods.values().filter(|pod| is_on(pod, node.as_deref())).collect();
    let list = json!({
        "apiVersion": "v1",
        "kind": "PodList",
        "metadata": { "resourceVersion": cluster.version.to_string() },
        "items": items,
    });
    json_body(StatusCode::OK, whole(&list))
}

/// One line for each change after `seen`, for as long as the API server is there for its clients.
fn changes(
    cluster: watch::Receiver<Cluster>,
    seen: u64,
    node: Option<String>,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    let batches = stream::unfold((cluster, seen), |(mut cluster, seen)| async move {
        let news = |cluster: &Cluster| cluster.access != Access::Granted || cluster.version > seen;
        let (batch, version) = {
            let cluster = cluster.wait_for(news).await.ok()?;
            if cluster.access != Access::Granted {
                return None;
            }
            let new = cluster.changes.iter().filter(|change| change.version > seen);
            (new.cloned().collect::<Vec<_>>(), cluster.version)
        };
        Some((stream::iter(batch), (cluster, version)))
    });
    batches.flatten().filter_map(move |change| {
        let line = is_on(&change.pod, node.as_deref())
            .then(|| format!("{}\n", json!({ "type": change.kind, "object": change.pod })));
        std::future::ready(line.map(|line| Ok(Frame::data(line.into()))))
    })
}

fn is_on(pod: &Value, node: Option<&str>) -> bool {
    node.is_none_or(|node| pod["spec"]["nodeName"] == node)
}

fn refusal(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let status = json!({
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": code.as_u16(),
    });
    json_body(code, whole(&status))
}

fn whole(value: &Value) -> Body {
    Full::new(Bytes::from(value.to_string())).boxed()
}

fn json_body(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, node: &str) -> RunningPod {
        RunningPod {
            uid: uid.to_owned(),
            namespace: "web".to_owned(),
            name: format!("app-{uid}"),
            service_account: "app".to_owned(),
            node: node.to_owned(),
        }
    }

    async fn get(server: &ApiServer, query: &str) -> reqwest::Response {
        let url = format!("http://{}/api/v1/pods?{query}", server.address);
        reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap()
    }

    async fn event(watch: &mut reqwest::Response) -> (String, String) {
        let line: Value = serde_json::from_slice(&watch.chunk().await.unwrap().unwrap()).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&line["type"]), text(&line["object"]["metadata"]["uid"]))
    }

    #[tokio::test]
    async fn a_watch_tells_what_its_list_had_not_and_only_of_its_node() {
        let server = ApiServer::start().await.unwrap();
        server.add_pod(&pod("1", "here"));
        server.add_pod(&pod("2", "elsewhere"));
        let list: Value = get(&server, "fieldSelector=spec.nodeName%3Dhere").await.json().await.unwrap();
        assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
        server.add_pod(&pod("3", "elsewhere"));
        server.add_pod(&pod("4", "here"));
        let version = list["metadata"]["resourceVersion"].as_str().unwrap();
        let query = format!("watch=true&resourceVersion={version}&fieldSelector=spec.nodeName%3Dhere");
        let mut watch = get(&server, &query).await;
        assert_eq!(event(&mut watch).await, ("ADDED".to_owned(), "4".to_owned()));
        server.remove_pod("1");
        assert_eq!(event(&mut watch).await, ("DELETED".to_owned(), "1".to_owned()));
    }

    #[tokio::test]
    async fn an_outage_ends_watches_and_refuses_lists() {
        let server = ApiServer::start().await.unwrap();
        let mut watch = get(&server, "watch=true&resourceVersion=1").await;
        server.set_access(Access::Down);
        assert_eq!(watch.chunk().await.unwrap(), None);
        assert_eq!(get(&server, "").await.status(), 503);
        server.set_access(Access::Forbidden);
        assert_eq!(get(&server, "").await.status(), 403);
        assert_eq!(server.requests(), 3);
    }
}
