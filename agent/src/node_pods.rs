//! The pods of this node and their service accounts, as the API server lists them.
//!
//! Watched only where a flag names service accounts that the kernel's pod UIDs have to be compared with; then the
//! agent's own service account needs permission to list and watch pods.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures_util::StreamExt;
use kube::Api;
use kube::core::{ApiResource, NotUsed, Object};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use serde::Deserialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::api_server::{self, ApiServer};
use crate::config::ServiceAccount;
use crate::locks::{read, write};

const CLIENT_AGAIN: Duration = Duration::from_secs(10);

/// What is read of a pod. Code that reads the whole of one is more than a megabyte.
type Pod = Object<PodSpec, NotUsed>;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    service_account_name: Option<String>,
}

/// Which pod runs as which service account.
#[derive(Debug, Default)]
pub struct NodePods {
    seen: RwLock<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    accounts: HashMap<String, ServiceAccount>,
    /// While a list is being read again, its pods stand here until it is whole.
    relisted: HashMap<String, ServiceAccount>,
    complete: bool,
}

/// Service accounts whose pods may present other pods' tokens.
#[derive(Debug, Default)]
pub struct Delegates {
    accounts: Vec<ServiceAccount>,
    pods: Arc<NodePods>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delegacy {
    Granted,
    None,
    /// The API server has not listed this pod yet.
    Unknown,
}

impl Delegates {
    pub fn new(accounts: Vec<ServiceAccount>, pods: Arc<NodePods>) -> Self {
        Delegates { accounts, pods }
    }

    pub fn says(&self, pod_uid: &str) -> Delegacy {
        if self.accounts.is_empty() {
            return Delegacy::None;
        }
        match self.pods.account_of(pod_uid) {
            Some(account) if self.accounts.contains(&account) => Delegacy::Granted,
            Some(_) => Delegacy::None,
            // The kernel names it, so the list is behind.
            None => Delegacy::Unknown,
        }
    }
}

impl NodePods {
    pub fn account_of(&self, pod_uid: &str) -> Option<ServiceAccount> {
        let seen = read(&self.seen);
        seen.accounts.get(pod_uid).cloned()
    }

    /// The UIDs of the pods that run as one of `accounts`.
    pub fn running_as(&self, accounts: &[ServiceAccount]) -> Vec<String> {
        let seen = read(&self.seen);
        let theirs = seen.accounts.iter().filter(|(_, account)| accounts.contains(account));
        theirs.map(|(uid, _)| uid.clone()).collect()
    }

    pub fn is_complete(&self) -> bool {
        read(&self.seen).complete
    }

    /// Follows the API server's word until `cancel`led. Without it, what was known stays known.
    pub async fn run(&self, node_name: &str, api_server: &ApiServer, cancel: CancellationToken) {
        let mut told = false;
        let client = loop {
            match api_server.client() {
                Ok(client) => break client,
                Err(error) if !std::mem::replace(&mut told, true) => {
                    let error = api_server::told(&error);
                    tracing::error!(
                        event = "pods_not_watched",
                        %error,
                        "cannot connect to the API server, so delegates and IMDS exceptions are unknown. The agent's pod needs \
                         its service account's token, or --api-server"
                    );
                }
                Err(_) => {}
            }
            if cancel.run_until_cancelled(sleep(CLIENT_AGAIN)).await.is_none() {
                return;
            }
        };
        let kind = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let of_this_node = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
        let mut events = pin!(watcher(Api::<Pod>::all_with(client, &kind), of_this_node).default_backoff());
        let mut failing = false;
        while let Some(Some(event)) = cancel.run_until_cancelled(events.next()).await {
            match event {
                Ok(event) => {
                    // With these an attempt has only begun.
                    failing &= matches!(event, Event::Init | Event::InitApply(_));
                    self.take(event);
                }
                Err(error) => {
                    // The watcher tries again by itself; one line tells that it began to fail.
                    if !std::mem::replace(&mut failing, true) {
                        let error = api_server::told(&error);
                        tracing::warn!(
                            event = "pods_not_watched",
                            %error,
                            "cannot list or watch this node's pods; the agent's service account needs `list` and `watch` on \
                             pods"
                        );
                    }
                }
            }
        }
    }

    /// For tests: these are all pods of the node.
    #[cfg(test)]
    pub(crate) fn list(&self, pods: &[(&str, ServiceAccount)]) {
        let mut seen = write(&self.seen);
        seen.accounts = pods.iter().map(|(uid, account)| ((*uid).to_owned(), account.clone())).collect();
        seen.complete = true;
    }

    fn take(&self, event: Event<Pod>) {
        let mut seen = write(&self.seen);
        match event {
            Event::Apply(pod) => seen.accounts.extend(account(pod)),
            Event::Delete(pod) => {
                if let Some(uid) = pod.metadata.uid {
                    seen.accounts.remove(&uid);
                }
            }
            Event::Init => seen.relisted.clear(),
            Event::InitApply(pod) => seen.relisted.extend(account(pod)),
            Event::InitDone => {
                seen.accounts = std::mem::take(&mut seen.relisted);
                seen.complete = true;
            }
        }
    }
}

/// A pod's UID and its service account.
fn account(pod: Pod) -> Option<(String, ServiceAccount)> {
    let name = pod.spec.service_account_name.unwrap_or_else(|| "default".to_owned());
    Some((pod.metadata.uid?, ServiceAccount { namespace: pod.metadata.namespace?, name }))
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;

    use super::*;

    fn pod(uid: &str, namespace: &str, account: Option<&str>) -> Pod {
        let metadata = ObjectMeta {
            uid: Some(uid.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        };
        let spec = PodSpec { service_account_name: account.map(str::to_owned) };
        Pod { types: None, metadata, spec, status: None }
    }

    fn driver() -> ServiceAccount {
        ServiceAccount { namespace: "kube-system".to_owned(), name: "csi".to_owned() }
    }

    #[test]
    fn a_delegate_is_known_by_its_pod_once_the_pods_are_listed() {
        let pods = Arc::new(NodePods::default());
        let delegates = Delegates::new(vec![driver()], Arc::clone(&pods));
        assert_eq!(delegates.says("1"), Delegacy::Unknown);
        pods.take(Event::Init);
        pods.take(Event::InitApply(pod("1", "kube-system", Some("csi"))));
        assert_eq!(delegates.says("1"), Delegacy::Unknown, "the list is not whole");
        pods.take(Event::InitApply(pod("2", "shop", Some("csi"))));
        pods.take(Event::InitApply(pod("3", "kube-system", None)));
        pods.take(Event::InitDone);
        assert_eq!(delegates.says("1"), Delegacy::Granted);
        for other in ["2", "3"] {
            assert_eq!(delegates.says(other), Delegacy::None, "{other}");
        }
        assert_eq!(delegates.says("4"), Delegacy::Unknown, "it is new, and the list is behind");
    }

    #[test]
    fn pods_come_and_go_and_a_new_list_replaces_the_old_at_once() {
        let pods = NodePods::default();
        pods.take(Event::Init);
        pods.take(Event::InitDone);
        pods.take(Event::Apply(pod("1", "kube-system", Some("csi"))));
        pods.take(Event::Apply(pod("2", "kube-system", Some("csi"))));
        pods.take(Event::Delete(pod("2", "kube-system", Some("csi"))));
        assert_eq!(pods.running_as(&[driver()]), ["1"]);
        pods.take(Event::Init);
        assert_eq!(pods.running_as(&[driver()]), ["1"], "what was known stays known meanwhile");
        pods.take(Event::InitApply(pod("5", "kube-system", Some("csi"))));
        pods.take(Event::InitDone);
        assert_eq!(pods.running_as(&[driver()]), ["5"]);
        assert_eq!(pods.account_of("1"), None);
    }

    #[test]
    fn without_delegates_nobody_has_to_be_asked() {
        assert_eq!(Delegates::default().says("1"), Delegacy::None);
    }
}
