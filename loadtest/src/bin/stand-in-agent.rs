//! An agent with the official one's contract, for changing over from it and back: its flags and ports, an EKS Auth call for
//! each token, plain-text errors, an end when a port is taken, and on SIGTERM closed ports at once.
//!
//! The official agent itself cannot be had where these tests run. What it does was read from its release 0.1.37. Left out are
//! its renewals and its limit of requests: a run has no time for the one and no load for the other.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use aws_config::BehaviorVersion;
use aws_sdk_eksauth::Client;
use aws_sdk_eksauth::operation::assume_role_for_pod_identity::AssumeRoleForPodIdentityOutput;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;
use clap::{Args, Parser};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Go's `Shutdown` is given this long there.
const RUNNING_REQUESTS: Duration = Duration::from_secs(35);

#[derive(Debug, Parser)]
enum Cli {
    Server(Flags),
}

/// Those of the official agent that a run gives; there, too, the last of two equal ones wins.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Flags {
    #[arg(short, long)]
    cluster_name: String,
    #[arg(long)]
    endpoint: String,
    #[arg(short, long, value_delimiter = ',')]
    bind_hosts: Vec<IpAddr>,
    #[arg(short, long, default_value_t = 80)]
    port: u16,
    #[arg(long, default_value_t = 2703)]
    probe_port: u16,
    #[arg(long, default_value_t = Ipv4Addr::UNSPECIFIED.into())]
    metrics_address: IpAddr,
    #[arg(long, default_value_t = 2705)]
    metrics_port: u16,
}

struct Agent {
    client: Client,
    cluster_name: String,
    /// By token, for as long as this runs.
    answers: Mutex<HashMap<String, Bytes>>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Cli::Server(flags) = Cli::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut pods = Vec::new();
    for host in &flags.bind_hosts {
        pods.push(listen(*host, flags.port).await?);
    }
    let probes = listen(Ipv4Addr::LOCALHOST.into(), flags.probe_port).await?;
    let metrics = listen(flags.metrics_address, flags.metrics_port).await?;
    let sdk = aws_config::defaults(BehaviorVersion::latest()).load().await;
    let config = aws_sdk_eksauth::config::Builder::from(&sdk).endpoint_url(&flags.endpoint).build();
    let agent = Arc::new(Agent {
        client: Client::from_conf(config),
        cluster_name: flags.cluster_name,
        answers: Mutex::default(),
    });
    let first = pods.first().context("--bind-hosts names no address")?;
    eprintln!(
        "{}",
        json!({
            "event": "serving",
            "credentials": first.local_addr()?.to_string(),
            "probes": probes.local_addr()?.to_string(),
            "metrics": metrics.local_addr()?.to_string(),
        })
    );
    let (stop, running) = (CancellationToken::new(), TaskTracker::new());
    for listener in pods.into_iter().chain([probes, metrics]) {
        running.spawn(serve(listener, Arc::clone(&agent), running.clone(), stop.clone()));
    }
    running.close();
    terminate.recv().await;
    stop.cancel();
    timeout(RUNNING_REQUESTS, running.wait()).await.context("requests were still running")
}

async fn listen(host: IpAddr, port: u16) -> Result<TcpListener> {
    let address = SocketAddr::new(host, port);
    TcpListener::bind(address).await.with_context(|| format!("unable to listen on {address}"))
}

async fn serve(listener: TcpListener, agent: Arc<Agent>, running: TaskTracker, stop: CancellationToken) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        if let Ok((stream, _)) = accepted {
            running.spawn(serve_one(stream, Arc::clone(&agent), stop.clone()));
        }
    }
}

async fn serve_one(stream: TcpStream, agent: Arc<Agent>, stop: CancellationToken) {
    let respond = service_fn(async |request| Ok::<_, Infallible>(agent.answer(&request).await));
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), respond));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // A client that goes early is no matter here.
    drop(ended);
}

impl Agent {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match request.uri().path() {
            "/v1/credentials" => {}
            "/healthz" | "/readyz" => return plain(StatusCode::OK, "ok"),
            _ => return plain(StatusCode::NOT_FOUND, "404 page not found"),
        }
        let token = request.headers().get(AUTHORIZATION).and_then(|token| token.to_str().ok());
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return plain(StatusCode::BAD_REQUEST, "Service account token cannot be empty");
        };
        let known = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned();
        let body = match known {
            Some(body) => body,
            None => match self.fetch(token).await {
                Ok(body) => body,
                Err((status, problem)) => return plain(status, problem),
            },
        };
        let mut response = Response::new(Full::new(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    async fn fetch(&self, token: &str) -> Result<Bytes, (StatusCode, &'static str)> {
        let call = self.client.assume_role_for_pod_identity();
        let answer = call.cluster_name(&self.cluster_name).token(token).send().await.map_err(|error| {
            let answered = error.raw_response().map(|answer| answer.status().as_u16());
            let status = answered.and_then(|status| StatusCode::from_u16(status).ok());
            (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), "Unable to fetch credentials from EKS Auth")
        })?;
        let body =
            body(&answer).ok_or((StatusCode::INTERNAL_SERVER_ERROR, "EKS Auth's answer is not whole"))?;
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(token.to_owned(), body.clone());
        Ok(body)
    }
}

fn body(answer: &AssumeRoleForPodIdentityOutput) -> Option<Bytes> {
    let credentials = answer.credentials()?;
    let body = json!({
        "AccessKeyId": credentials.access_key_id(),
        "SecretAccessKey": credentials.secret_access_key(),
        "Token": credentials.session_token(),
        "AccountId": answer.assumed_role_user()?.arn().split(':').nth(4)?,
        "Expiration": credentials.expiration().fmt(Format::DateTime).ok()?,
    });
    Some(body.to_string().into())
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
