//! A client that signs with AWS's own crate and says everything by hand, so that a test can also say it wrongly.

use std::sync::LazyLock;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use loadtest::eks::SimulatedEks;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};

/// One for all, because making one reads the system's certificates. Each call has its own connection: every test has
/// its own runtime, and a pooled connection would die with the test that made it.
pub(crate) static HTTP: LazyLock<Client> =
    LazyLock::new(|| Client::builder().pool_max_idle_per_host(0).no_proxy().build().unwrap());

/// What came back: the status, `x-amzn-ErrorType` where there is one, and the body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) error: String,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) async fn of(response: Response) -> Answer {
        let status = response.status().as_u16();
        let error = response.headers().get("x-amzn-errortype");
        let error = error.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { status, error, body }
    }

    pub(crate) fn credentials(&self) -> Credentials {
        let field = |name: &str| self.body["credentials"][name].as_str().unwrap().to_owned();
        Credentials::new(
            field("accessKeyId"),
            field("secretAccessKey"),
            Some(field("sessionToken")),
            None,
            "test",
        )
    }

    /// Status and code, for comparisons that say both.
    pub(crate) fn outcome(&self) -> (u16, &str) {
        (self.status, self.error.as_str())
    }
}

/// Sends a request signed for `service`.
pub(crate) async fn send(
    eks: &SimulatedEks,
    credentials: &Credentials,
    service: &str,
    method: Method,
    path: &str,
    body: String,
) -> reqwest::Result<Response> {
    let url = format!("{}{path}", eks.url());
    let identity: Identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(eks.region())
        .name(service)
        .time(now())
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let signable =
        SignableRequest::new(method.as_str(), &url, std::iter::empty(), SignableBody::Bytes(body.as_bytes()));
    let (instructions, _) = sign(signable.unwrap(), &params).unwrap().into_parts();
    let mut request = HTTP.request(method, url);
    for (name, value) in instructions.headers() {
        request = request.header(name, value);
    }
    request.body(body).send().await
}

#[expect(clippy::disallowed_methods, reason = "a signature is dated by the real clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// One call of EKS Auth by the node role.
pub(crate) async fn assume(eks: &SimulatedEks, token: &str) -> Answer {
    assume_as(eks, eks.node_credentials(), json!({ "token": token })).await
}

pub(crate) async fn assume_as(eks: &SimulatedEks, caller: &Credentials, body: Value) -> Answer {
    let path = format!("/clusters/{}/assume-role-for-pod-identity", eks.cluster_name());
    Answer::of(send(eks, caller, "eks-auth", Method::POST, &path, body.to_string()).await.unwrap()).await
}

/// One call of the associations API by the administrator; `path` follows `pod-identity-associations`.
pub(crate) async fn associations(eks: &SimulatedEks, method: Method, path: &str, body: Value) -> Answer {
    let path = format!("/clusters/{}/pod-identity-associations{path}", eks.cluster_name());
    let body = if body.is_null() { String::new() } else { body.to_string() };
    Answer::of(send(eks, eks.admin_credentials(), "eks", method, &path, body).await.unwrap()).await
}

pub(crate) async fn caller_identity(eks: &SimulatedEks, credentials: &Credentials) -> Answer {
    let body = "Action=GetCallerIdentity&Version=2011-06-15".to_owned();
    Answer::of(send(eks, credentials, "sts", Method::POST, "/", body).await.unwrap()).await
}

/// One call of the control API.
pub(crate) async fn control(eks: &SimulatedEks, method: Method, path: &str, body: Value) -> Answer {
    let request = HTTP.request(method, format!("{}/control{path}", eks.url()));
    let request = if body.is_null() { request } else { request.json(&body) };
    Answer::of(request.send().await.unwrap()).await
}

pub(crate) async fn get(url: impl reqwest::IntoUrl) -> Response {
    HTTP.get(url).send().await.unwrap()
}
