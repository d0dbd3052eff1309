//! The way to the cluster's API server, for what a flag needs of it.

use std::time::Duration;

use http_body_util::Limited;
use hyper::http::uri::InvalidUri;
use hyper::{Response, Uri};
use kube::client::ClientBuilder;
use kube::config::InClusterError;
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

impl ApiServerError {
    /// For a log. What the API server, or a proxy before it, says at length may repeat the token that it was sent.
    pub(crate) fn told(&self) -> String {
        match self {
            ApiServerError::Client(kube::Error::Api(status)) => format!("{} {}", status.code, status.reason),
            ApiServerError::NotInAPod(_)
            | ApiServerError::Url { .. }
            | ApiServerError::NoAnswer
            | ApiServerError::Client(_) => chain(self).chars().take(LONGEST).collect(),
        }
    }
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
