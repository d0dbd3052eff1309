//! As much of an HTTP client as the control API, probes and metrics need: one connection per request, plain http.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;

use crate::place::Place;

const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) async fn request(
    place: &Place,
    address: SocketAddr,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes)> {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    send(place, address, request.body(Full::new(Bytes::from(body)))?).await
}

/// As a pod asks podcred.
pub(crate) async fn ask(place: &Place, address: SocketAddr, token: &str) -> Result<(StatusCode, Bytes)> {
    let request = Request::builder().uri("/v1/credentials").header("authorization", token);
    send(place, address, request.body(Full::default())?).await
}

async fn send(
    place: &Place,
    address: SocketAddr,
    mut request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes)> {
    let what = format!("{} http://{address}{}", request.method(), request.uri());
    request.headers_mut().insert("host", address.to_string().try_into()?);
    let exchange = async {
        let stream = place.connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        anyhow::Ok((status, answer.into_body().collect().await?.to_bytes()))
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .with_context(|| format!("{what}: no answer within {} s", PATIENCE.as_secs()))?
        .with_context(|| what)
}
