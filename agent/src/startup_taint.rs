//! The taint that keeps pods off a new node until its agent is ready.
//!
//! A pod that starts before its node has an agent gets no credentials, and Java's SDK gives up within milliseconds. Whoever
//! makes the node (Karpenter, a node group) puts the taint on; the agent, whose DaemonSet tolerates it, takes it off.

use std::time::Duration;

use hyper::StatusCode;
use kube::Api;
use kube::api::{GetParams, Patch, PatchParams};
use kube::core::{ApiResource, NotUsed, Object};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::api_server::{self, ApiServer, ApiServerError};
use crate::clock::Clock;

/// Readiness has no event; a node that is new waits for much longer things.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Whoever makes the node may put the taint on when its agent is ready already, or once more: Karpenter and EKS both do. A new
/// node is looked at often, every node from time to time; both out of the API server's cache.
const NEW_FOR: Duration = Duration::from_secs(10 * 60);
const WHILE_NEW: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_secs(60);
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
const MOST_OUTRUNS: u32 = 10;

type Node = Object<NodeSpec, NotUsed>;

#[derive(Clone, Debug, Deserialize, Serialize)]
struct NodeSpec {
    /// Written back as they were read, also in fields that are not known here.
    taints: Option<Vec<Value>>,
}

/// Takes taints with this key off the node whenever they are seen there, from when `is_ready`.
pub async fn remove(
    key: &str,
    node: &str,
    api_server: &ApiServer,
    clock: &Clock,
    is_ready: impl Fn() -> bool,
    cancel: CancellationToken,
) {
    let work = async {
        while !is_ready() {
            sleep(LOOK_AGAIN).await;
        }
        let new_until = clock.now().mono + NEW_FOR;
        let mut told = false;
        let mut outruns = 0;
        loop {
            let attempted = timeout(ANSWERED_WITHIN, attempt(key, node, api_server)).await;
            match attempted.unwrap_or(Err(ApiServerError::NoAnswer)) {
                // Somebody else changed the node meanwhile, as the kubelet of a new one often does.
                Ok(Attempt::Outrun) if outruns < MOST_OUTRUNS => {
                    outruns += 1;
                    sleep(LOOK_AGAIN).await;
                    continue;
                }
                Ok(Attempt::Removed) => {
                    told = false;
                    tracing::info!(
                        event = "startup_taint_removed",
                        taint = key,
                        node,
                        "removed the startup taint: pods can be scheduled to this node now"
                    );
                }
                Ok(Attempt::NotThere) => told = false,
                Ok(Attempt::Outrun) => tell(&mut told, key, node, "the node keeps changing meanwhile"),
                Err(error) => tell(&mut told, key, node, &api_server::told(&error)),
            }
            outruns = 0;
            sleep(if clock.now().mono < new_until { WHILE_NEW } else { LATER }).await;
        }
    };
    cancel.run_until_cancelled(work).await;
}

/// Once, until it is mended.
fn tell(told: &mut bool, key: &str, node: &str, error: &str) {
    if !std::mem::replace(told, true) {
        tracing::error!(
            event = "startup_taint_kept",
            taint = key,
            node,
            error,
            "cannot read or remove the startup taint; pods stay off this node. The agent's service account needs `get` and \
             `patch` on nodes, and the agent must reach the API server"
        );
    }
}

enum Attempt {
    Removed,
    NotThere,
    Outrun,
}

async fn attempt(key: &str, name: &str, api_server: &ApiServer) -> Result<Attempt, ApiServerError> {
    let kind = ApiResource::erase::<k8s_openapi::api::core::v1::Node>(&());
    let nodes: Api<Node> = Api::all_with(api_server.client()?, &kind);
    let Node { metadata, spec, .. } = nodes.get_with(name, &GetParams::any()).await?;
    let taints = spec.taints.unwrap_or_default();
    let kept: Vec<&Value> = taints.iter().filter(|taint| taint["key"] != key).collect();
    if kept.len() == taints.len() {
        return Ok(Attempt::NotThere);
    }
    // A list is replaced as a whole; with its version the API server refuses to if another's change came between.
    let patch =
        json!({ "metadata": { "resourceVersion": metadata.resource_version }, "spec": { "taints": kept } });
    match nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(Attempt::Removed),
        Err(kube::Error::Api(status)) if status.code == StatusCode::CONFLICT.as_u16() => Ok(Attempt::Outrun),
        Err(error) => Err(error.into()),
    }
}
