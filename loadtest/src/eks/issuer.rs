//! The cluster's OIDC issuer: discovery and keys.

use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::json;

use super::app::{App, ConnectionReset, Passage};
use super::reply::{Received, Reply, json_reply, reply};

/// Answers `/id/{id}/…`.
pub(super) async fn answer(
    app: &App,
    id: &str,
    path: &[&str],
    request: &Received,
) -> Result<Reply, ConnectionReset> {
    if app.pass_outage(|settings| settings.issuer_outage).await? == Passage::Refused {
        return Ok(reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "simulated outage of the issuer"));
    }
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    let known = get && app.issuer.ends_with(&format!("/id/{id}"));
    Ok(match path {
        [".well-known", "openid-configuration"] if known => discovery(app),
        ["keys"] if known => keys(app),
        _ => reply(StatusCode::NOT_FOUND, "text/plain", "no such issuer or document"),
    })
}

fn discovery(app: &App) -> Reply {
    let document = json!({
        "issuer": app.issuer,
        "jwks_uri": format!("{}/keys", app.issuer),
        "authorization_endpoint": "urn:kubernetes:programmatic_authorization",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "claims_supported": ["sub", "iss"],
        "id_token_signing_alg_values_supported": ["RS256"],
    });
    with_max_age(app, json_reply(StatusCode::OK, &document))
}

fn keys(app: &App) -> Reply {
    let mut state = app.state();
    state.calls.keys_fetched();
    with_max_age(app, json_reply(StatusCode::OK, &state.keys.published()))
}

fn with_max_age(app: &App, mut reply: Reply) -> Reply {
    let max_age = app.settings.borrow().keys_max_age_seconds;
    if let Some(value) = max_age.and_then(|age| HeaderValue::from_str(&format!("max-age={age}")).ok()) {
        reply.headers_mut().insert(CACHE_CONTROL, value);
    }
    reply
}
