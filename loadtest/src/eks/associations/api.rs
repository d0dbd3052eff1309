//! The associations API over HTTP: service `eks`, rest-json, signed by an administrator.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::super::app::App;
use super::super::callers::Identity;
use super::super::reply::{ApiError, ErrorCode, Received, Reply, json_reply, read_json};
use super::super::sigv4::{self, Scope};
use super::{Association, AssociationChange, NewAssociation};
use crate::clock;

/// Answers `/clusters/{cluster}/pod-identity-associations[/{id}]`.
pub(in super::super) fn answer(app: &App, cluster: &str, id: Option<&str>, request: &Received) -> Reply {
    respond(app, cluster, id, request).unwrap_or_else(|error| error.rest_json())
}

fn respond(app: &App, cluster: &str, id: Option<&str>, request: &Received) -> Result<Reply, ApiError> {
    admin(app, request)?;
    app.cluster_named(cluster)?;
    let association = match (request.method(), id) {
        (&Method::POST, None) => app.associate(read::<NewAssociation>(request)?)?,
        (&Method::GET, None) => return list(app, request),
        (&Method::GET, Some(id)) => app.state().associations.describe(id)?.clone(),
        (&Method::POST, Some(id)) => app.update_association(id, read::<AssociationChange>(request)?)?,
        (&Method::DELETE, Some(id)) => app.delete_association(id)?,
        (method, _) => {
            let message = format!("There is no operation {method} on {}.", request.path());
            return Err(ApiError::forbidden("UnknownOperationException", message));
        }
    };
    Ok(json_reply(StatusCode::OK, &json!({ "association": association })))
}

fn admin(app: &App, request: &Received) -> Result<(), ApiError> {
    let scope = Scope { service: "eks", regions: &[&app.cluster.region] };
    let caller = sigv4::verify(request, &scope, clock::wall(), |key| app.state().callers.get(key))
        .map_err(|invalid| invalid.rest_json())?;
    match &caller.identity {
        Identity::Admin { .. } => Ok(()),
        Identity::Node { .. } | Identity::Session(_) => Err(ApiError::forbidden(
            "AccessDeniedException",
            format!("{} may not use the associations API; sign as the administrator.", caller.identity.arn()),
        )),
    }
}

fn list(app: &App, request: &Received) -> Result<Reply, ApiError> {
    let max = match request.query("maxResults") {
        None => 100,
        Some(text) => text
            .parse()
            .ok()
            .filter(|max| (1..=100).contains(max))
            .ok_or_else(|| invalid(format!("maxResults is {text:?}; it must be from 1 to 100.")))?,
    };
    let after = request.query("nextToken").map(|token| page_after(&token)).transpose()?;
    let (namespace, account) = (request.query("namespace"), request.query("serviceAccount"));
    let state = app.state();
    let (page, next) = state.associations.list(namespace.as_deref(), account.as_deref(), after, max);
    let body = Page {
        associations: page.into_iter().map(Summary::of).collect(),
        next_token: next.map(|number| URL_SAFE_NO_PAD.encode(number.to_string())),
    };
    Ok(json_reply(StatusCode::OK, &body))
}

fn page_after(token: &str) -> Result<u64, ApiError> {
    let decoded = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    decoded
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid("nextToken is none that a list call gave; leave it out to start anew."))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    associations: Vec<Summary<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    cluster_name: &'a str,
    namespace: &'a str,
    service_account: &'a str,
    association_arn: &'a str,
    association_id: &'a str,
}

impl<'a> Summary<'a> {
    fn of(association: &'a Association) -> Summary<'a> {
        Summary {
            cluster_name: &association.cluster_name,
            namespace: &association.namespace,
            service_account: &association.service_account,
            association_arn: &association.association_arn,
            association_id: &association.association_id,
        }
    }
}

fn read<T: for<'de> serde::Deserialize<'de>>(request: &Received) -> Result<T, ApiError> {
    read_json(&request.body).map_err(invalid)
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidParameterException, message)
}
