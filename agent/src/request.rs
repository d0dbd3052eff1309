//! One request, from its headers to its answer.
//!
//! The steps stand in `Service::credentials_for`, each once, in order; any of them may end it with a [`Rejection`].

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response};
use tokio::time::Instant;

use crate::authenticate::Authenticator;
use crate::authenticate::token::TokenError;
use crate::authorize::{Authorized, authorize, check_host};
use crate::clock::{Clock, Now};
use crate::config::{Sharing, Verify};
use crate::credentials::{Credentials, Issued, ServedFrom};
use crate::metrics::Metrics;
use crate::reject::Rejection;

const PATH: &str = "/v1/credentials";
const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const HEADER_BLOCK: usize = 32 * 1024;
/// A pod with a broken token asks every second; its owner needs one line, not a flood.
const ONE_LINE_IN: Duration = Duration::from_secs(60);
const KEPT_LINES: usize = 1_024;

/// The ends of the connection that a request came in on.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub peer: SocketAddr,
    pub local: IpAddr,
}

#[derive(Debug)]
pub struct Service {
    pub authenticator: Authenticator,
    pub sharing: Sharing,
    pub verify: Verify,
    pub credentials: Credentials,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub logged: Logged,
}

impl Service {
    pub async fn respond<B>(&self, request: &Request<B>, ends: Ends) -> Response<Full<Bytes>> {
        let asked = self.clock.now();
        let result = self.credentials_for(request, ends, asked).await;
        let answered = self.clock.now();
        let took = answered.mono.saturating_duration_since(asked.mono);
        match result {
            Ok((issued, from)) => {
                self.metrics.served(from, took);
                ok(issued.body.clone())
            }
            Err(rejection) => {
                let response = refusal(&rejection);
                self.metrics.rejected(&rejection, response.status(), took);
                self.logged.rejected(&rejection, ends.peer, answered);
                response
            }
        }
    }

    async fn credentials_for<B>(
        &self,
        request: &Request<B>,
        ends: Ends,
        now: Now,
    ) -> Result<(Arc<Issued>, ServedFrom), Rejection> {
        route(request)?;
        bound_headers(request.headers())?;
        check_host(host(request), ends.local)?;
        if self.verify == Verify::Enforce {
            return Err(Rejection::CannotEnforce);
        }
        let token = the_token(request.headers())?;
        let authenticated = self.authenticator.authenticate(token, now).await;
        let authenticated = authenticated.map_err(|error| self.token_refused(error, token))?;
        match authorize(authenticated, &self.sharing) {
            Authorized::Checked(permit) => self.credentials.get(&permit, token, now).await,
            Authorized::Unchecked(permit) => self.credentials.get_unchecked(&permit, token, now).await,
        }
    }

    /// A token that was verified once, and has expired since, still says whose it was.
    fn token_refused(&self, error: TokenError, token: &[u8]) -> Rejection {
        Rejection::Token { error, pod: self.authenticator.pod_of(token) }
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

/// One log line for each reason and pod in a minute; the metric has the numbers.
#[derive(Debug, Default)]
pub struct Logged {
    last: Mutex<HashMap<About, Instant>>,
}

/// A reason, and the pod's UID where it was verified.
type About = (&'static str, Option<Arc<str>>);

impl Logged {
    fn rejected(&self, rejection: &Rejection, peer: SocketAddr, now: Now) {
        let reason = rejection.reason();
        let pod = rejection.pod();
        if !self.is_due((reason, pod.map(|pod| Arc::clone(&pod.pod_uid))), now) {
            return;
        }
        tracing::warn!(
            event = "request_refused",
            reason,
            status = rejection.status().as_u16(),
            peer = %peer.ip(),
            namespace = pod.map(|pod| &*pod.namespace),
            service_account = pod.map(|pod| &*pod.service_account),
            pod = pod.map(|pod| &*pod.pod_name),
            "refused; for a minute further ones like it are counted in podcred_requests_total only"
        );
    }

    pub(crate) fn accept_failed(&self, error: &std::io::Error, now: Now) {
        if self.is_due(("accept_failed", None), now) {
            tracing::warn!(event = "accept_failed", %error, "a connection could not be accepted");
        }
    }

    pub(crate) fn connection_refused(&self, now: Now) {
        if self.is_due(("connection_refused", None), now) {
            tracing::warn!(
                event = "connections_full",
                "connections are refused: --max-connections are open, and all of them wait for an answer"
            );
        }
    }

    fn is_due(&self, about: About, now: Now) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = |at: &Instant| now.mono.saturating_duration_since(*at) < ONE_LINE_IN;
        if last.get(&about).is_some_and(recent) {
            return false;
        }
        // Only verified pods are told apart, so this stays small; what is over is dropped before it grows.
        if last.len() >= KEPT_LINES {
            last.retain(|_, at| recent(at));
        }
        last.insert(about, now.mono);
        true
    }
}
