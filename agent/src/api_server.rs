//! The way to the cluster's API server, for what a flag needs of it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Limited;
use hyper::header::{AUTHORIZATION, HeaderValue, InvalidHeaderValue};
use hyper::http::uri::{InvalidUri, PathAndQuery, Uri};
use hyper::{Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use reqwest::redirect::Policy;
use secrecy::{ExposeSecret, SecretString};
use tower::{BoxError, service_fn};

use crate::authenticate::keys::{SERVICE_ACCOUNT_FILES, read_certificates};
use crate::causes::chain;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A watch that nothing changes in ends by itself before this; what is silent for longer is a connection that was lost.
const SILENCE: Duration = Duration::from_secs(330);
const LONGEST: usize = 300;
/// Of one answer, which is held in memory, and of a watch, which would go on elsewhere. A page of 500 pods that are described
/// at length is 10 MB.
const LARGEST: usize = 32 << 20;

/// As Kubernetes tells pods, or by `--api-server`.
///
/// kube's own way there can also read kubeconfigs, run the programs that they name, and look into what those say, by YAML,
/// JSONPath and regular expressions: a tenth of podcred's code. So it goes by the client that fetches keys.
#[derive(Clone, Debug)]
pub struct ApiServer {
    url: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ApiServerError {
    #[error("this process has no service account's token for the API server, as a pod has")]
    NotInAPod,
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
        let files = Path::new(SERVICE_ACCOUNT_FILES);
        let (url, source) = match &self.url {
            Some(url) => (url.clone(), url.parse::<Uri>()),
            None => {
                let url = in_a_pod().filter(|_| files.exists()).ok_or(ApiServerError::NotInAPod)?;
                (url.clone(), url.parse())
            }
        };
        let url = source.map_err(|source| ApiServerError::Url { url, source })?;
        // The token and the authority are those of the pod, wherever the API server is.
        let way = Arc::new(Way { url, files: files.exists().then(|| files.to_owned()) });
        Ok(way.client())
    }
}

#[derive(Debug)]
struct Way {
    url: Uri,
    /// `ca.crt` and `token`.
    files: Option<PathBuf>,
}

impl Way {
    fn client(self: Arc<Self>) -> Client {
        Client::new(service_fn(move |request| Arc::clone(&self).send(request)), "default")
    }

    /// Requests are few, and the kubelet renews the files: each request has a client that knows them as they are.
    async fn send(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Limited<reqwest::Body>>, BoxError> {
        let (mut parts, body) = request.into_parts();
        let mut url = self.url.clone().into_parts();
        url.path_and_query = Some(self.path(parts.uri.path_and_query())?);
        parts.uri = Uri::from_parts(url)?;
        let mut http = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE);
        if self.url.scheme_str() == Some("http") {
            // Plain text can be had without any authority.
            http = http.tls_certs_only([]);
        }
        if let Some(files) = &self.files {
            if self.url.scheme_str() == Some("https") {
                let (_, authority) = read_certificates(&files.join("ca.crt"))?;
                http = http.tls_certs_only(authority);
            }
            let token = SecretString::from(tokio::fs::read_to_string(files.join("token")).await?);
            parts.headers.insert(AUTHORIZATION, bearer(&token)?);
        }
        let request = Request::from_parts(parts, body.collect_bytes().await?);
        let answer = Response::from(http.build()?.execute(request.try_into()?).await?);
        Ok(answer.map(|body| Limited::new(body, LARGEST)))
    }

    /// Below the path of `--api-server`, which may be a proxy's.
    fn path(&self, asked: Option<&PathAndQuery>) -> Result<PathAndQuery, InvalidUri> {
        let asked = asked.map_or("/", PathAndQuery::as_str);
        format!("{}{asked}", self.url.path().trim_end_matches('/')).parse()
    }
}

fn bearer(token: &SecretString) -> Result<HeaderValue, InvalidHeaderValue> {
    let header = SecretString::from(format!("Bearer {}", token.expose_secret().trim()));
    let mut header = HeaderValue::from_str(header.expose_secret())?;
    header.set_sensitive(true);
    Ok(header)
}

/// Where Kubernetes tells a pod that its API server is.
fn in_a_pod() -> Option<String> {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (host, port) = (set("KUBERNETES_SERVICE_HOST")?, set("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Some(format!("https://{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
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
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("token"), TOKEN).unwrap();
        let way = Way { url: server.url.parse().unwrap(), files: Some(files.path().to_owned()) };
        let kind = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let pods = Api::<Object<NotUsed, NotUsed>>::all_with(Arc::new(way).client(), &kind);
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

    #[test]
    fn a_path_is_asked_below_that_of_the_api_server() {
        for (url, asked, path) in [
            ("https://10.0.0.1:6443", "/api/v1/pods?watch=true", "/api/v1/pods?watch=true"),
            ("https://proxy.example/clusters/one/", "/api/v1/nodes/n", "/clusters/one/api/v1/nodes/n"),
        ] {
            let way = Way { url: url.parse().unwrap(), files: None };
            assert_eq!(way.path(Some(&asked.parse().unwrap())).unwrap(), path);
        }
    }

    #[test]
    fn a_token_is_sent_without_the_end_of_its_line_and_is_not_shown() {
        let header = bearer(&SecretString::from("a.b.c\n")).unwrap();
        assert_eq!(header, "Bearer a.b.c");
        assert!(header.is_sensitive() && !format!("{header:?}").contains("a.b.c"));
    }
}
