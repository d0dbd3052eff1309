//! The way to the cluster's API server, for what a flag needs of it.

use std::error::Error;
use std::time::Duration;

use http_body_util::Limited;
use hyper::http::uri::InvalidUri;
use hyper::{Response, StatusCode, Uri};
use kube::client::ClientBuilder;
use kube::config::InClusterError;
use kube::core::Status;
use kube::{Client, Config};
use tower::util::MapResponseLayer;

use crate::causes::chain;

/// A watch that nothing changes in ends by itself before this; what is silent for longer is a connection that was lost.
const SILENCE: Duration = Duration::from_secs(330);
const LONGEST: usize = 300;
/// Of one answer, which is held in memory, and of a watch, which would go on elsewhere. A page of 500 pods that are described
/// at length is 10 MB.
const LARGEST: usize = 32 << 20;

/// As Kubernetes tells pods, or by `--api-server`. A kubeconfig is not read: the code that does is half a megabyte.
#[derive(Clone, Debug)]
pub struct ApiServer {
    url: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ApiServerError {
    #[error("this process has no service account's token for the API server, as a pod has")]
    NotInAPod(#[from] InClusterError),
    #[error("--api-server {url}")]
    Url { url: String, source: InvalidUri },
    #[error("the API server has not answered")]
    NoAnswer,
    #[error(transparent)]
    Client(#[from] kube::Error),
}

/// For a log. What the API server sends, or a proxy before it, may repeat the token that it was sent: of an answer only its
/// status is told.
pub(crate) fn told(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.into_iter().find_map(answered).unwrap_or_else(|| chain(error).chars().take(LONGEST).collect())
}

fn answered(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(status) = error.downcast_ref::<Box<Status>>() {
        let code = StatusCode::from_u16(status.code).map(|code| code.to_string());
        return Some(code.unwrap_or_else(|_| "an error without a status".to_owned()));
    }
    error.is::<serde_json::Error>().then(|| "an answer that cannot be read".to_owned())
}

impl ApiServer {
    pub fn new(url: Option<String>) -> ApiServer {
        ApiServer { url }
    }

    /// Whoever uses it paces its attempts; with retries of the client's own it would hear of a failure after minutes.
    pub(crate) fn client(&self) -> Result<Client, ApiServerError> {
        let url = match &self.url {
            Some(url) => {
                Some(url.parse::<Uri>().map_err(|source| ApiServerError::Url { url: url.clone(), source })?)
            }
            None => None,
        };
        // The token and the authority are those of the pod, wherever the API server is.
        let mut config = match (Config::incluster(), url) {
            (Ok(config), None) => config,
            (Ok(mut config), Some(url)) => {
                config.cluster_url = url;
                config
            }
            (Err(_), Some(url)) => Config::new(url),
            (Err(error), None) => return Err(error.into()),
        };
        config.default_retry = false;
        config.read_timeout = Some(SILENCE);
        let limited =
            MapResponseLayer::new(|answer: Response<_>| answer.map(|body| Limited::new(body, LARGEST)));
        Ok(ClientBuilder::try_from(config)?.with_layer(&limited).build())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use hyper::Request;
    use hyper::header::AUTHORIZATION;
    use kube::Api;
    use kube::core::{ApiResource, NotUsed, Object};
    use kube::runtime::watcher::{self, watcher};
    use serde_json::json;

    use super::*;
    use crate::testing::{Answer, Loopback, answer};

    const TOKEN: &str = "t-o-k-e-n";
    const LIST: &str = r#"{"metadata":{"resourceVersion":"1"},"items":[]}"#;

    fn echo<B>(request: &Request<B>) -> String {
        request.headers()[AUTHORIZATION].to_str().unwrap().to_owned()
    }

    fn sent(status: u16, body: &impl ToString) -> Answer {
        answer(status, &[("content-type", "application/json")], body.to_string())
    }

    /// What is told of the first thing that goes wrong while pods are listed and watched.
    async fn trouble(server: &Loopback) -> String {
        let mut config = Config::new(server.url.parse().unwrap());
        config.auth_info.token = Some(TOKEN.to_owned().into());
        config.default_retry = false;
        let client = Client::try_from(config).unwrap();
        let kind = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let pods = Api::<Object<NotUsed, NotUsed>>::all_with(client, &kind);
        let mut events = std::pin::pin!(watcher(pods, watcher::Config::default()));
        loop {
            if let Err(error) = events.next().await.unwrap() {
                assert!(chain(&error).contains(TOKEN), "{error:?}");
                return told(&error);
            }
        }
    }

    #[tokio::test]
    async fn a_server_that_repeats_the_token_does_not_have_it_logged() {
        let status = |echo: &str| json!({ "code": 403, "reason": echo, "message": echo });
        let server = Loopback::answering(move |request| sent(403, &status(&echo(&request)))).await;
        assert_eq!(trouble(&server).await, "403 Forbidden");
        server.answer(|request| sent(502, &echo(&request)));
        assert_eq!(trouble(&server).await, "502 Bad Gateway");
        server.answer(|request| sent(200, &json!({ "metadata": echo(&request) })));
        assert_eq!(trouble(&server).await, "an answer that cannot be read");
        server.answer(move |request| match request.uri().query().unwrap_or_default().contains("watch=") {
            true => sent(200, &json!({ "type": "ERROR", "object": status(&echo(&request)) })),
            false => sent(200, &LIST),
        });
        assert_eq!(trouble(&server).await, "403 Forbidden");
    }
}
