//! A pod's connection to an agent, for requests that are looked at one by one.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;

use crate::place::Place;

#[derive(Debug)]
pub(crate) struct Asking {
    sender: SendRequest<Empty<Bytes>>,
    address: SocketAddr,
}

impl Asking {
    pub(crate) async fn open(place: &Place, address: SocketAddr) -> Result<Asking> {
        let stream = place.connect(address).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Asking { sender, address })
    }

    /// The body of an answer that is credentials.
    pub(crate) async fn ask(&mut self, token: &str) -> Result<Bytes> {
        let request = Request::get("/v1/credentials")
            .header("host", self.address.to_string())
            .header("authorization", token)
            .body(Empty::new())?;
        self.sender.ready().await.context("the connection is closed")?;
        let answer = self.sender.send_request(request).await.context("no answer")?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }
}
