//! EKS Auth: `AssumeRoleForPodIdentity`, with all the checks that stand between a token and a role.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::app::{App, ConnectionReset, Passage};
use super::associations::Association;
use super::callers::{Caller, Identity, Session};
use super::calls::Call;
use super::id;
use super::reply::{ApiError, ErrorCode, Received, Reply, json_reply, read_json};
use super::roles::{RoleArn, Roles};
use super::sigv4::{self, Scope};
use super::token::AUDIENCE;
use super::token::verify::{self, Claims};
use super::trust::{Attempt, Principal};
use crate::clock;

/// Role chaining allows an hour; EKS Auth stays a minute below.
const CHAINED_LIFE: Duration = Duration::from_secs(59 * 60);

/// Answers `POST /clusters/{cluster}/assume-role-for-pod-identity`.
pub(super) async fn answer(app: &App, cluster: &str, request: &Received) -> Result<Reply, ConnectionReset> {
    let input: Result<Input, String> = read_json(&request.body);
    let mut entry = Entry::begin(app, request, input.as_ref().ok());
    match app.pass_outage(|settings| settings.outage).await {
        Err(reset) => {
            entry.end("reset", None);
            return Err(reset);
        }
        Ok(Passage::Refused) => {
            let error =
                ApiError::new(ErrorCode::ServiceUnavailableException, "Simulated outage of EKS Auth.");
            entry.end(error.code, None);
            return Ok(error.rest_json());
        }
        Ok(Passage::Open) => {}
    }
    tokio::time::sleep(app.current_settings().latency()).await;
    Ok(match assume(app, cluster, request, input) {
        Ok(granted) => {
            entry.end("OK", Some(granted.access_key_id));
            json_reply(StatusCode::OK, &granted.body)
        }
        Err(error) => {
            entry.end(error.code, None);
            error.rest_json()
        }
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Input {
    #[serde(default)]
    token: String,
    eks_node_name: Option<String>,
    instance_id: Option<String>,
    zone: Option<String>,
}

struct Granted {
    access_key_id: String,
    body: Value,
}

/// The way of a call, in the order in which AWS would find fault with it.
fn assume(
    app: &App,
    cluster: &str,
    request: &Received,
    input: Result<Input, String>,
) -> Result<Granted, ApiError> {
    let now = clock::wall();
    simulated_failure(app)?;
    let scope = Scope { service: "eks-auth", regions: &[&app.cluster.region] };
    let caller = sigv4::verify(request, &scope, now, |key| app.state().callers.get(key))
        .map_err(|invalid| invalid.rest_json())?;
    throttle(app)?;
    permission(app, &caller)?;
    app.cluster_named(cluster)?;
    let token = input
        .and_then(well_formed_token)
        .map_err(|why| ApiError::new(ErrorCode::InvalidParameterException, why))?;
    let claims = {
        let state = app.state();
        verify::check(&token, &app.issuer, clock::epoch_seconds(now), &state.keys, &state.objects)?
    };
    let association = association(app, &claims)?;
    let tags = session_tags(app, &association, &claims);
    trust(app, &association, &tags)?;
    Ok(grant(app, &association, &claims, tags, now))
}

fn simulated_failure(app: &App) -> Result<(), ApiError> {
    let settings = app.settings.borrow();
    if let Some(code) = settings.forced_error {
        return Err(ApiError::new(code, "Simulated: the settings ask for this error."));
    }
    if fastrand::f64() < settings.error_rate {
        return Err(ApiError::new(ErrorCode::InternalServerException, "Simulated internal error."));
    }
    Ok(())
}

fn throttle(app: &App) -> Result<(), ApiError> {
    let Some(rate) = app.settings.borrow().throttle_per_second else { return Ok(()) };
    if app.state().throttle.take(rate, clock::mono()) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::ThrottlingException,
        format!("Rate exceeded: {rate} calls per second are allowed."),
    ))
}

fn permission(app: &App, caller: &Caller) -> Result<(), ApiError> {
    let allowed = match caller.identity {
        Identity::Node { .. } => app.settings.borrow().node_permission,
        Identity::Admin { .. } => true,
        Identity::Session(_) => false,
    };
    if allowed {
        return Ok(());
    }
    let message = format!(
        "User: {} is not authorized to perform: eks-auth:AssumeRoleForPodIdentity on resource: {}",
        caller.identity.arn(),
        app.cluster.arn(),
    );
    Err(ApiError::new(ErrorCode::AccessDeniedException, message))
}

fn well_formed_token(input: Input) -> Result<String, String> {
    let legal = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b))
    };
    let parts: Vec<&str> = input.token.split('.').collect();
    if parts.len() == 3 && parts.into_iter().all(legal) {
        return Ok(input.token);
    }
    Err("token is missing or is not three base64url parts with dots between them.".to_owned())
}

fn association(app: &App, claims: &Claims) -> Result<Association, ApiError> {
    let subject = &claims.kubernetes;
    let state = app.state();
    let found =
        state.associations.seen_by_eks_auth(&subject.namespace, &subject.serviceaccount.name, clock::mono());
    found.cloned().ok_or_else(|| {
        let message = format!(
            "No association found for service account {} in namespace {} of cluster {}.",
            subject.serviceaccount.name, subject.namespace, app.cluster.name,
        );
        ApiError::new(ErrorCode::ResourceNotFoundException, message)
    })
}

fn session_tags(app: &App, association: &Association, claims: &Claims) -> BTreeMap<String, String> {
    if association.disable_session_tags {
        return BTreeMap::new();
    }
    let subject = &claims.kubernetes;
    let tags = [
        ("eks-cluster-arn", app.cluster.arn()),
        ("eks-cluster-name", app.cluster.name.clone()),
        ("kubernetes-namespace", subject.namespace.clone()),
        ("kubernetes-service-account", subject.serviceaccount.name.clone()),
        ("kubernetes-pod-name", subject.pod.name.clone()),
        ("kubernetes-pod-uid", subject.pod.uid.clone()),
    ];
    tags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The association's role must trust EKS Pod Identity, and its target role, if any, that role.
fn trust(app: &App, association: &Association, tags: &BTreeMap<String, String>) -> Result<(), ApiError> {
    // Who sets no tags needs no permission to set them.
    let actions: &[&str] =
        if tags.is_empty() { &["sts:AssumeRole"] } else { &["sts:AssumeRole", "sts:TagSession"] };
    let mut context: BTreeMap<String, String> =
        tags.iter().map(|(key, value)| (format!("aws:requesttag/{key}"), value.clone())).collect();
    context.insert("aws:sourceaccount".to_owned(), app.cluster.account_id.clone());
    context.insert("aws:sourcearn".to_owned(), app.cluster.arn());
    let source = Attempt { principal: Principal::Service(AUDIENCE), actions, context };
    let state = app.state();
    trusted(&state.roles, &association.role_arn, &source)?;

    let Some(target) = &association.target_role_arn else { return Ok(()) };
    let mut context = source.context;
    context.retain(|key, _| key.starts_with("aws:requesttag/"));
    context.extend(association.external_id.clone().map(|id| ("sts:externalid".to_owned(), id)));
    let chained = Attempt { principal: Principal::Role(&association.role_arn), actions, context };
    trusted(&state.roles, target, &chained)
}

fn trusted(roles: &Roles, role: &str, attempt: &Attempt<'_>) -> Result<(), ApiError> {
    let Some(action) = roles.refuses(role, attempt) else { return Ok(()) };
    let principal = match attempt.principal {
        Principal::Service(name) | Principal::Role(name) => name,
    };
    let message = format!("The trust policy of {role} does not allow {principal} to perform {action}.");
    Err(ApiError::new(ErrorCode::AccessDeniedException, message))
}

fn grant(
    app: &App,
    association: &Association,
    claims: &Claims,
    tags: BTreeMap<String, String>,
    now: SystemTime,
) -> Granted {
    let life = Duration::from_secs(app.settings.borrow().credential_life_seconds);
    let life = if association.target_role_arn.is_some() { life.min(CHAINED_LIFE) } else { life };
    let expires = now + life;
    let subject = &claims.kubernetes;
    let role_arn = association.target_role_arn.as_ref().unwrap_or(&association.role_arn);
    let session_name = session_name(&app.cluster.name, &subject.pod.name);
    let session_arn = RoleArn::parse(role_arn).map(|role| role.session(&session_name)).unwrap_or_default();

    let mut state = app.state();
    let assumed_role_id = format!("{}:{session_name}", state.roles.id(role_arn));
    let access_key_id = id::access_key_id("ASIA");
    let (secret, session_token) = (id::secret_access_key(), id::session_token());
    let body = json!({
        "subject": { "namespace": subject.namespace, "serviceAccount": subject.serviceaccount.name },
        "audience": AUDIENCE,
        "podIdentityAssociation": {
            "associationArn": association.association_arn,
            "associationId": association.association_id,
        },
        "assumedRoleUser": { "arn": session_arn, "assumeRoleId": assumed_role_id },
        "credentials": {
            "sessionToken": session_token,
            "secretAccessKey": secret,
            "accessKeyId": access_key_id,
            "expiration": clock::epoch_seconds(expires),
        },
    });
    let session = Session {
        access_key_id: access_key_id.clone(),
        role_arn: role_arn.clone(),
        session_arn,
        assumed_role_id,
        source_role_arn: association.target_role_arn.is_some().then(|| association.role_arn.clone()),
        association_id: association.association_id.clone(),
        namespace: subject.namespace.clone(),
        service_account: subject.serviceaccount.name.clone(),
        pod_uid: subject.pod.uid.clone(),
        transitive_tag_keys: tags.keys().cloned().collect(),
        tags,
        policy: association.policy.clone(),
        expiration: clock::epoch_seconds(expires),
    };
    let credentials =
        Credentials::new(access_key_id.clone(), secret, Some(session_token), Some(expires), "simulated-eks");
    state.callers.insert_session(Caller { credentials, identity: Identity::Session(Box::new(session)) }, now);
    Granted { access_key_id, body }
}

/// IAM takes 64 characters: a long pod name costs the UUID its end.
fn session_name(cluster: &str, pod: &str) -> String {
    let mut name = format!("eks-{cluster}-{pod}-{}", id::uuid());
    name.truncate(name.floor_char_boundary(64));
    name
}

/// A call's line in the log. A client that leaves before its answer has one as well: the entry is written on drop.
struct Entry<'a> {
    app: &'a App,
    call: Option<Call>,
    started: Instant,
}

impl<'a> Entry<'a> {
    fn begin(app: &'a App, request: &Received, input: Option<&Input>) -> Entry<'a> {
        let claims = input.and_then(|input| verify::unchecked(&input.token));
        let subject = claims.as_ref().map(|claims| &claims.kubernetes);
        let call = Call {
            time: clock::rfc3339(clock::wall()),
            role: subject.map(|s| format!("{}/{}", s.namespace, s.serviceaccount.name)).unwrap_or_default(),
            pod_name: subject.map(|s| s.pod.name.clone()).unwrap_or_default(),
            pod_uid: subject.map(|s| s.pod.uid.clone()).unwrap_or_default(),
            token_id: claims.as_ref().map(|claims| claims.jti.clone()).unwrap_or_default(),
            eks_node_name: input.and_then(|input| input.eks_node_name.clone()),
            instance_id: input.and_then(|input| input.instance_id.clone()),
            zone: input.and_then(|input| input.zone.clone()),
            caller: sigv4::claimed_access_key(request),
            result: "abandoned".to_owned(),
            access_key_id: None,
            duration_ms: 0.0,
        };
        app.state().calls.begun();
        Entry { app, call: Some(call), started: clock::mono() }
    }

    fn end(&mut self, result: &str, access_key_id: Option<String>) {
        if let Some(call) = &mut self.call {
            call.result = result.to_owned();
            call.access_key_id = access_key_id;
        }
        self.write();
    }

    fn write(&mut self) {
        let Some(mut call) = self.call.take() else { return };
        call.duration_ms = clock::mono().duration_since(self.started).as_secs_f64() * 1000.0;
        tracing::debug!(
            role = call.role,
            pod = call.pod_name,
            result = call.result,
            "AssumeRoleForPodIdentity"
        );
        self.app.state().calls.record(call);
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_name_has_at_most_64_characters_and_names_the_pod() {
        let short = session_name("demo", "cart-1");
        assert_eq!(short.len(), "eks-demo-cart-1-".len() + 36);
        let long = session_name("demo", &"x".repeat(80));
        assert_eq!(long.len(), 64);
        assert!(long.starts_with("eks-demo-xxx"), "{long}");
    }
}
