//! From a request's path to its service.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};

use super::app::{App, ConnectionReset};
use super::reply::{ApiError, Received, Reply, control_error};
use super::{associations, control, eks_auth, issuer, sts};

/// Far above what any of these APIs takes.
const BODY_LIMIT: usize = 1 << 20;

/// Answers one request; the error is the simulated outage's way to end the connection.
pub(super) async fn answer(
    app: &App,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Reply, ConnectionReset> {
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            let message = format!("the body cannot be read, or has more than {BODY_LIMIT} bytes: {error}");
            return Ok(control_error(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
    };
    let request = Received { parts, body };
    let path = request.path().to_owned();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let reply = match segments.as_slice() {
        ["id", id, rest @ ..] => issuer::answer(app, id, rest, &request).await?,
        ["clusters", cluster, "assume-role-for-pod-identity"] if request.method() == Method::POST => {
            eks_auth::answer(app, cluster, &request).await?
        }
        ["clusters", cluster, "pod-identity-associations"] => {
            associations::api::answer(app, cluster, None, &request)
        }
        ["clusters", cluster, "pod-identity-associations", id] => {
            associations::api::answer(app, cluster, Some(id), &request)
        }
        [""] if request.method() == Method::POST => sts::answer(app, &request),
        ["control", rest @ ..] => control::answer(app, peer, rest, &request),
        _ => not_found(&request),
    };
    tracing::debug!(method = %request.method(), path, status = reply.status().as_u16(), "answered");
    Ok(reply)
}

fn not_found(request: &Received) -> Reply {
    let message = format!("The simulation has nothing at {} {}.", request.method(), request.path());
    ApiError { code: "UnknownOperationException", status: 404, message }.rest_json()
}
