//! Where the keys are, and the one HTTP request that fetches them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};

use super::set::{KeySet, fresh_for};
use crate::causes::chain;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_BODY_BYTES: usize = 1 << 20;
const API_SERVER: &str = "kubernetes.default.svc";
pub(crate) const SERVICE_ACCOUNT_FILES: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A URL that key sets may be fetched from.
#[derive(Clone)]
pub struct KeySource {
    url: Url,
    ca_bundle: Option<PathBuf>,
    api_server: Option<ApiServer>,
}

/// What it takes to be let in by the cluster's own API server. Other hosts never see any of it.
#[derive(Clone)]
struct ApiServer {
    /// `ca.crt` and `token`.
    files: PathBuf,
    /// A pod on the host's network may not be able to resolve the API server's name.
    address: Option<IpAddr>,
}

/// What a source depends on besides its URL.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) service_host: Option<String>,
    pub(super) service_account_files: PathBuf,
    pub(super) ca_bundle: Option<PathBuf>,
}

impl KeySource {
    /// `<issuer>/keys`, where EKS publishes them. The discovery document is not asked: it may name an internal host.
    pub fn of_issuer(issuer: &str) -> Result<KeySource, String> {
        if check_url(issuer)?.query().is_some() {
            return Err("has a query, which an issuer cannot have: remove it".to_owned());
        }
        KeySource::at(&format!("{}/keys", issuer.trim_end_matches('/')))
    }

    /// An error says what is wrong with the URL; whoever gave it is to be named before that.
    pub fn at(url: &str) -> Result<KeySource, String> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        KeySource::within(
            url,
            Surroundings {
                service_host: set("KUBERNETES_SERVICE_HOST"),
                service_account_files: PathBuf::from(SERVICE_ACCOUNT_FILES),
                ca_bundle: set("AWS_CA_BUNDLE").map(PathBuf::from),
            },
        )
    }

    pub(super) fn within(url: &str, around: Surroundings) -> Result<KeySource, String> {
        let url = check_url(url)?;
        let host = bare_host(&url);
        let is_api_server = host == API_SERVER || around.service_host.as_deref() == Some(host);
        let api_server = (is_api_server && url.scheme() == "https").then(|| ApiServer {
            files: around.service_account_files,
            address: around.service_host.and_then(|host| host.parse().ok()),
        });
        Ok(KeySource { url, ca_bundle: around.ca_bundle, api_server })
    }

    /// A client for this source and no other: it trusts what this source needs trusted. `SSL_CERT_FILE` takes the
    /// place of the system's roots, `AWS_CA_BUNDLE` and the cluster's authority come on top of them.
    pub fn client(&self) -> Result<Client, String> {
        // A redirect would let whoever answers choose where keys come from.
        let mut client =
            Client::builder().redirect(Policy::none()).connect_timeout(CONNECT_TIMEOUT).timeout(TIMEOUT);
        if self.url.scheme() == "http" {
            // A machine without any roots can still reach loopback, and no proxy gets to see plain text.
            return client.no_proxy().tls_certs_only([]).build().map_err(|error| chain(&error));
        }
        if let Some(bundle) = &self.ca_bundle {
            client = client
                .tls_certs_merge(certificates(bundle).map_err(|error| format!("AWS_CA_BUNDLE: {error}"))?);
        }
        if let Some(api_server) = &self.api_server {
            client = client.no_proxy().tls_certs_merge(certificates(&api_server.files.join("ca.crt"))?);
            if let Some(address) = api_server.address {
                // Port 0: the URL's.
                client = client.resolve(API_SERVER, SocketAddr::new(address, 0));
            }
        }
        client.build().map_err(|error| format!("no HTTPS client for the issuer's keys: {}", chain(&error)))
    }

    pub(super) async fn fetch(&self, http: &Client) -> Result<(KeySet, Duration), String> {
        let request = self.request(http).await?;
        let mut response = http.execute(request).await.map_err(|error| chain(&error.without_url()))?;
        let status = response.status();
        if status.is_redirection() {
            return Err(format!(
                "the answer is a redirect ({status}), which is not followed; give the final URL"
            ));
        }
        if status != StatusCode::OK {
            return Err(format!("the answer is {status}"));
        }
        let fresh_for = fresh_for(response.headers());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error.without_url()))? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(format!("the answer is longer than {MAX_BODY_BYTES} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((KeySet::parse(&body)?, fresh_for))
    }

    pub(super) async fn request(&self, http: &Client) -> Result<reqwest::Request, String> {
        let mut request = http.get(self.url.clone());
        if let Some(api_server) = &self.api_server {
            // Read for each fetch: the kubelet renews it.
            let path = api_server.files.join("token");
            let token = tokio::fs::read_to_string(&path)
                .await
                .map(SecretString::from)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            request = request.bearer_auth(token.expose_secret().trim());
        }
        request.build().map_err(|error| chain(&error.without_url()))
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeySource").field(&self.to_string()).finish()
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A query may carry what is not for logs.
        let mut shown = self.url.clone();
        shown.set_query(None);
        shown.fmt(f)
    }
}

/// A URL that keys may come from and tokens go to: https, or plain http to this machine itself.
pub fn check_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text)
        .map_err(|error| format!("is not a URL ({error}): write https://HOST[:PORT][/PATH]"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("carries a user name or password: remove it".to_owned());
    }
    if url.fragment().is_some() {
        return Err("has a fragment (#…): remove it".to_owned());
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => Err(
            "is plain http to another host, and on the way there tokens and secrets could be read, and keys \
                 replaced: use https (http is for loopback addresses only)"
                .to_owned(),
        ),
        other => Err(format!("has the scheme {other}: use https")),
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = bare_host(url);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Without the brackets of an IPv6 address.
fn bare_host(url: &Url) -> &str {
    let host = url.host_str().unwrap_or_default();
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    read_certificates(path).map(|(_, certificates)| certificates)
}

/// The file as it is, and its certificates, all of them usable as roots.
pub(crate) fn read_certificates(path: &Path) -> Result<(Vec<u8>, Vec<Certificate>), String> {
    let pem = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| {
        format!("{} is not a bundle of PEM certificates: {}", path.display(), chain(&error))
    })?;
    if certificates.is_empty() {
        return Err(format!("{} holds no PEM certificate", path.display()));
    }
    Client::builder()
        .tls_certs_only(certificates.clone())
        .build()
        .map_err(|error| format!("{} holds an unusable certificate: {}", path.display(), chain(&error)))?;
    Ok((pem, certificates))
}
