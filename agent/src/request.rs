//! One request, from its headers to its answer.
//!
//! Who is calling was asked when the connection came. The other steps stand in `Service::credentials_for`, each once, in order; any of them may end it with a [`Rejection`].

mod logged;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response};
use tokio::sync::SemaphorePermit;
use tokio::time::sleep_until;

pub use self::logged::Logged;
use crate::attribute::{Attribution, Caller};
use crate::authenticate::last::LastToken;
use crate::authenticate::token::TokenError;
use crate::authenticate::{Authenticated, Authenticator};
use crate::authorize::{Authorized, Policy, Verdict, authorize, check_host};
use crate::clock::{Clock, Now};
use crate::credentials::{Credentials, Issued, ServedFrom};
use crate::metrics::Metrics;
use crate::pods::{Pod, Pods};
use crate::reject::Rejection;

const PATH: &str = "/v1/credentials";
const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const HEADER_BLOCK: usize = 32 * 1024;

/// The connection that a request came in on.
#[derive(Debug)]
pub struct Connection {
    pub peer: SocketAddr,
    pub local: IpAddr,
    pub caller: Caller,
    /// The caller's entry among the pods, where there is a caller.
    pub pod: Option<Arc<Pod>>,
    /// Where nobody knows whose it is; a pod has one for all its connections.
    pub last_token: LastToken,
}

impl Connection {
    fn last_token(&self) -> &LastToken {
        self.pod.as_deref().map_or(&self.last_token, |pod| &pod.last_token)
    }
}

#[derive(Debug)]
pub struct Service {
    pub authenticator: Authenticator,
    pub attribution: Attribution,
    pub pods: Pods,
    pub policy: Policy,
    /// The longest that a request takes, and the shortest that a 503 does.
    pub wait: Duration,
    pub credentials: Credentials,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub logged: Logged,
}

impl Service {
    /// The answer, and when it was ready.
    pub async fn respond<B>(
        &self,
        request: &Request<B>,
        connection: &Connection,
    ) -> (Response<Full<Bytes>>, Now) {
        let asked = self.clock.now();
        let result = self.credentials_for(request, connection, asked).await;
        match result {
            Ok((issued, from)) => {
                let answered = self.clock.now();
                self.metrics.served(from, answered.mono.saturating_duration_since(asked.mono));
                count(connection, |pod| &pod.served);
                (ok(issued.body.clone()), answered)
            }
            Err(rejection) => {
                let response = refusal(&rejection);
                // Java spends its six attempts in 5 ms where a 503 comes at once.
                if response.status().is_server_error() {
                    Box::pin(sleep_until(asked.mono + self.wait)).await;
                }
                let answered = self.clock.now();
                let took = answered.mono.saturating_duration_since(asked.mono);
                self.metrics.rejected(&rejection, response.status(), took);
                count(connection, |pod| &pod.refused);
                self.logged.rejected(&rejection, connection.peer, answered);
                (response, answered)
            }
        }
    }

    async fn credentials_for<B>(
        &self,
        request: &Request<B>,
        connection: &Connection,
        now: Now,
    ) -> Result<(Arc<Issued>, ServedFrom), Rejection> {
        // First, as it takes its time to refuse as well.
        let _place = self.place_among_the_waiting(connection, now).await?;
        route(request)?;
        bound_headers(request.headers())?;
        check_host(host(request), connection.local)?;
        if self.policy.refuses() && !self.attribution.can_enforce() {
            return Err(Rejection::CannotEnforce);
        }
        let token = the_token(request.headers())?;
        let authenticated = self.authenticate(connection, token, now).await?;
        let (verdict, authorized) = authorize(&connection.caller, authenticated, &self.policy);
        self.compared(connection, &verdict);
        match authorized? {
            Authorized::Checked(permit) => self.credentials.get(&permit, token, now).await,
            Authorized::Unchecked(permit) => {
                Box::pin(self.credentials.get_unchecked(&permit, token, now)).await
            }
        }
    }

    async fn place_among_the_waiting<'a>(
        &self,
        connection: &'a Connection,
        now: Now,
    ) -> Result<Option<SemaphorePermit<'a>>, Rejection> {
        match connection.pod.as_deref() {
            Some(pod) => pod.wait(now, now.mono + self.wait).await.map(Some).ok_or(Rejection::TooManyWaiting),
            None => Ok(None),
        }
    }

    /// A pod that presents bad tokens by the hundred has only its good ones looked at.
    async fn authenticate(
        &self,
        connection: &Connection,
        token: &[u8],
        now: Now,
    ) -> Result<Authenticated, Rejection> {
        let epoch = self.authenticator.epoch();
        if let Some(again) = connection.last_token().again(token, epoch, now) {
            return Ok(again);
        }
        let pod = connection.pod.as_deref();
        if pod.is_some_and(|pod| !pod.may_fail(now)) && self.authenticator.pod_of(token).is_none() {
            return Err(Rejection::TooManyFailures);
        }
        match self.authenticator.authenticate(token, now).await {
            Ok(authenticated) => {
                if let (Some(pod), Some(claims)) = (pod, authenticated.verified()) {
                    pod.learn_name(claims);
                }
                connection.last_token().note(token, epoch, &authenticated);
                Ok(authenticated)
            }
            Err(error) => {
                if let Some(pod) = pod.filter(|_| !matches!(error, TokenError::KeysUnavailable)) {
                    pod.failed(now);
                }
                // A token that was verified once, and has expired since, still says whose it was.
                Err(Rejection::Token { error, pod: self.authenticator.pod_of(token) })
            }
        }
    }

    fn compared(&self, connection: &Connection, verdict: &Verdict) {
        self.metrics.compared(verdict);
        if let Verdict::OtherPod { caller, token: Some(token) } = verdict {
            let name = connection.pod.as_deref().and_then(Pod::claims);
            self.logged.other_pod(caller, name.map(|name| &**name), token);
        }
    }
}

fn count(connection: &Connection, counter: impl Fn(&Pod) -> &AtomicU64) {
    if let Some(pod) = &connection.pod {
        counter(pod).fetch_add(1, Ordering::Relaxed);
    }
}

fn route<B>(request: &Request<B>) -> Result<(), Rejection> {
    match (request.uri().path(), request.method()) {
        (PATH, &Method::GET | &Method::HEAD) => Ok(()),
        (PATH, _) => Err(Rejection::MethodNotAllowed),
        _ => Err(Rejection::NotFound),
    }
}

/// hyper bounds what it has to buffer before it can parse, which may be more than this.
fn bound_headers(headers: &HeaderMap) -> Result<(), Rejection> {
    let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if size > HEADER_BLOCK { Err(Rejection::HeadersTooLarge) } else { Ok(()) }
}

/// What the client thinks it is talking to. A request line with a whole URL overrides `Host` (RFC 9112, 3.2.2), and
/// several `Host` headers are nobody's.
fn host<B>(request: &Request<B>) -> Option<&str> {
    if let Some(authority) = request.uri().authority() {
        return Some(authority.as_str());
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        (Some(_), Some(_)) | (None, _) => None,
    }
}

fn the_token(headers: &HeaderMap) -> Result<&[u8], TokenError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (Some(token), None) if !token.is_empty() => Ok(token.as_bytes()),
        (Some(_), Some(_)) => Err(TokenError::Duplicate),
        (Some(_), None) | (None, _) => Err(TokenError::Missing),
    }
}

fn ok(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

fn refusal(rejection: &Rejection) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(rejection.body()));
    *response.status_mut() = rejection.status();
    let server_error = response.status().is_server_error();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    if server_error {
        // Java leaves the connection of a 5xx that it retries open.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if matches!(rejection, Rejection::MethodNotAllowed) {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
