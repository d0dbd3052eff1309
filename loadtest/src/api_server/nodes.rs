//! Nodes and their taints.

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::{ApiServer, Body, Cluster, Shared, json_body, refusal, whole};

const LONGEST_PATCH: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Node {
    taints: Value,
    version: u64,
    /// So many patches will find that somebody else was faster.
    outruns: u32,
}

impl ApiServer {
    /// A node with these taints, as `spec.taints` has them; before the next `outruns` patches somebody else changes it.
    pub fn add_node(&self, name: &str, taints: Value, outruns: u32) {
        self.shared.cluster.send_modify(|cluster| {
            let version = cluster.version;
            cluster.nodes.insert(name.to_owned(), Node { taints, version, outruns });
        });
    }

    /// `spec.taints`, null for a node that is not there.
    pub fn taints(&self, name: &str) -> Value {
        self.shared.cluster.borrow().nodes.get(name).map(|node| node.taints.clone()).unwrap_or_default()
    }
}

pub(super) async fn answer(shared: &Shared, name: &str, request: Request<Incoming>) -> Response<Body> {
    if request.method() == Method::GET {
        return shared.cluster.borrow().read(name);
    }
    let is_merge =
        request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/merge-patch+json");
    if request.method() != Method::PATCH || !is_merge {
        return refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "a node is read or merge-patched",
        );
    }
    let Ok(body) = Limited::new(request.into_body(), LONGEST_PATCH).collect().await else {
        return refusal(StatusCode::BAD_REQUEST, "BadRequest", "the patch breaks off or is too long");
    };
    let patch: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    let mut response = None;
    shared.cluster.send_modify(|cluster| response = Some(cluster.patch(name, &patch)));
    response
        .unwrap_or_else(|| refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "nothing was done"))
}

impl Cluster {
    fn read(&self, name: &str) -> Response<Body> {
        let Some(node) = self.nodes.get(name) else {
            return refusal(StatusCode::NOT_FOUND, "NotFound", &format!("nodes \"{name}\" not found"));
        };
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": name, "resourceVersion": node.version.to_string() },
            "spec": { "taints": node.taints },
        });
        json_body(StatusCode::OK, whole(&object))
    }

    fn patch(&mut self, name: &str, patch: &Value) -> Response<Body> {
        let Some(node) = self.nodes.get_mut(name) else { return self.read(name) };
        self.version += 1;
        if node.outruns > 0 {
            node.outruns -= 1;
            node.version = self.version;
        }
        let version = &patch["metadata"]["resourceVersion"];
        if version.as_str().is_some_and(|version| version.parse() != Ok(node.version)) {
            let message =
                format!("Operation cannot be fulfilled on nodes \"{name}\": the object has been modified");
            return refusal(StatusCode::CONFLICT, "Conflict", &message);
        }
        node.taints = patch["spec"]["taints"].clone();
        node.version = self.version;
        self.read(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_patch_of_an_older_version_is_a_conflict() {
        let server = ApiServer::start().await.unwrap();
        server.add_node("n", json!([{ "key": "a", "effect": "NoSchedule" }]), 1);
        let url = format!("http://{}/api/v1/nodes/n", server.address);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let attempt = async || {
            let node: Value =
                serde_json::from_slice(&client.get(&url).send().await.unwrap().bytes().await.unwrap())
                    .unwrap();
            let version = &node["metadata"]["resourceVersion"];
            let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": [] } });
            let request = client.patch(&url).header(CONTENT_TYPE, "application/merge-patch+json");
            request.body(patch.to_string()).send().await.unwrap().status()
        };
        assert_eq!(attempt().await, 409);
        assert_eq!(server.taints("n"), json!([{ "key": "a", "effect": "NoSchedule" }]));
        assert_eq!(attempt().await, 200);
        assert_eq!(server.taints("n"), json!([]));
    }
}
