//! The control API: what the real AWS would never let one do. Its calls are listed in the head of [`super`].

use std::net::SocketAddr;
use std::time::Duration;

use aws_credential_types::Credentials;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::app::App;
use super::associations::NewAssociation;
use super::callers::Identity;
use super::keys::SigningKey;
use super::reply::{Received, Reply, control_error, json_reply, read_json};
use super::roles::RoleArn;
use super::token::PodToken;
use super::trust::TrustPolicy;
use crate::clock;

/// Answers `/control/…`, to this machine only: there is no authentication.
pub(super) fn answer(app: &App, peer: SocketAddr, path: &[&str], request: &Received) -> Reply {
    if !peer.ip().to_canonical().is_loopback() {
        return control_error(StatusCode::FORBIDDEN, "the control API answers to loopback addresses only");
    }
    match respond(app, path, request) {
        Ok(body) => json_reply(StatusCode::OK, &body),
        Err((status, message)) => control_error(status, message),
    }
}

type Refusal = (StatusCode, String);

fn respond(app: &App, path: &[&str], request: &Received) -> Result<Value, Refusal> {
    let body = &request.body;
    match (request.method(), path) {
        (&Method::GET, ["settings"]) => to_json(app.current_settings()),
        (&Method::PATCH, ["settings"]) => patch_settings(app, read(body)?),
        (&Method::GET, ["calls"]) => to_json(app.state().calls.calls()),
        (&Method::GET, ["counts"]) => to_json(app.state().calls.counts()),
        (&Method::POST, ["calls", "reset"]) => {
            app.state().calls.reset();
            Ok(json!({}))
        }
        (&Method::POST, ["tokens"]) => to_json(app.mint(read::<PodToken>(body)?).map_err(bad)?),
        (&Method::POST, ["keys", "rotate"]) => rotate(app, read(body)?),
        (&Method::POST, ["keys", "publish"]) => {
            app.state().keys.publish_current();
            Ok(json!({}))
        }
        (&Method::POST, ["associations"]) => {
            let made =
                app.associate(read::<NewAssociation>(body)?).map_err(|error| bad(error.to_string()))?;
            to_json(made)
        }
        (&Method::PUT, ["roles"]) => put_role(app, read(body)?),
        (&Method::GET, ["sessions", access_key_id]) => session(app, access_key_id),
        (&Method::POST, ["pods", uid, "delete"]) => {
            app.state().objects.delete_pod(uid);
            Ok(json!({}))
        }
        (&Method::POST, ["service-accounts", "recreate"]) => {
            let account: ServiceAccount = read(body)?;
            let uid =
                app.state().objects.recreate_service_account(&account.namespace, &account.service_account);
            Ok(json!({ "serviceAccountUid": uid }))
        }
        (&Method::PUT, ["node-credentials"]) => put_node_credentials(app, read(body)?),
        (method, _) => {
            let message = format!("the control API has no {method} {}", request.path());
            Err((StatusCode::NOT_FOUND, message))
        }
    }
}

fn patch_settings(app: &App, patch: Value) -> Result<Value, Refusal> {
    let mut outcome = Ok(());
    app.settings.send_if_modified(|settings| {
        outcome = settings.patched(patch).map(|patched| *settings = patched);
        outcome.is_ok()
    });
    outcome.map_err(bad)?;
    to_json(app.current_settings())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rotation {
    #[serde(default = "yes")]
    publish: bool,
    #[serde(default)]
    retire_old: bool,
}

fn yes() -> bool {
    true
}

fn rotate(app: &App, Rotation { publish, retire_old }: Rotation) -> Result<Value, Refusal> {
    let key =
        SigningKey::generate().map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let kid = key.kid.clone();
    app.state().keys.rotate(key, publish, retire_old);
    Ok(json!({ "kid": kid }))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Role {
    arn: String,
    trust_policy: Option<Value>,
}

fn put_role(app: &App, role: Role) -> Result<Value, Refusal> {
    if RoleArn::parse(&role.arn).is_none() {
        return Err(bad(format!(
            "arn is {:?}; it must be a role's, such as arn:aws:iam::111122223333:role/a",
            role.arn
        )));
    }
    let trust = role.trust_policy.map(TrustPolicy::parse).transpose().map_err(bad)?;
    app.state().roles.set_trust(&role.arn, trust);
    Ok(json!({ "arn": role.arn }))
}

fn session(app: &App, access_key_id: &str) -> Result<Value, Refusal> {
    match app.state().callers.get(access_key_id).map(|caller| caller.identity) {
        Some(Identity::Session(session)) => to_json(session),
        Some(Identity::Node { .. } | Identity::Admin { .. }) | None => Err((
            StatusCode::NOT_FOUND,
            format!("no session was handed out with access key id {access_key_id}"),
        )),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceAccount {
    namespace: String,
    service_account: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeCredentials {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expires_in_seconds: Option<u64>,
}

fn put_node_credentials(app: &App, new: NodeCredentials) -> Result<Value, Refusal> {
    let expiry =
        new.expires_in_seconds.and_then(|seconds| clock::wall().checked_add(Duration::from_secs(seconds)));
    let access_key_id = new.access_key_id.clone();
    let credentials = Credentials::new(
        new.access_key_id,
        new.secret_access_key,
        new.session_token,
        expiry,
        "simulated-eks",
    );
    app.set_node_credentials(credentials);
    Ok(json!({ "accessKeyId": access_key_id }))
}

fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Refusal> {
    read_json(body).map_err(bad)
}

fn to_json(value: impl serde::Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(value).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn bad(message: String) -> Refusal {
    (StatusCode::BAD_REQUEST, message)
}
