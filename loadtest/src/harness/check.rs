//! Whether an answer of 200 is what this pod should have.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_smithy_types::date_time::{DateTime, Format};
use serde::Deserialize;

use super::http::Answer;
use crate::clock;
use crate::eks::{Session, SimulatedEks};

/// The keys that SDKs read, as they spell them. A value with an escape in it cannot be borrowed.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told<'a> {
    #[serde(borrow)]
    access_key_id: Cow<'a, str>,
    #[serde(borrow)]
    secret_access_key: Cow<'a, str>,
    #[serde(borrow)]
    token: Cow<'a, str>,
    #[serde(borrow)]
    account_id: Cow<'a, str>,
    #[serde(borrow)]
    expiration: Cow<'a, str>,
}

/// What a 200 has that a pod must not be given. Nothing secret is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    #[error("ill-formed: {0}")]
    IllFormed(String),
    #[error("{left} s of life left, where at least {least} s were to be had")]
    TooLittleLife { left: i64, least: u64 },
    #[error("the access key id {0} was handed out by nobody")]
    Unknown(String),
    #[error("{0} is not what was handed out with this access key id")]
    Altered(&'static str),
    #[error("credentials of {was}, asked for by a pod of {wanted}")]
    OthersRole { was: String, wanted: String },
    #[error("credentials of {was}, which was replaced by generation {wanted} long before this pod started")]
    FormerRole { was: String, wanted: u32 },
}

impl Wrong {
    pub(super) fn class(&self) -> &'static str {
        match self {
            Wrong::IllFormed(_) => "wrong: ill-formed",
            Wrong::TooLittleLife { .. } => "wrong: too little life left",
            Wrong::Unknown(_) => "wrong: unknown credentials",
            Wrong::Altered(_) => "wrong: altered credentials",
            Wrong::OthersRole { .. } => "wrong: role of others",
            Wrong::FormerRole { .. } => "wrong: former role",
        }
    }
}

/// What a pod may expect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    /// Its service account's number.
    pub(super) role: u32,
    /// Its role has been changed so often that an older one will not do.
    pub(super) generation: u32,
}

pub(super) const NAMESPACE: &str = "load";

pub(super) fn service_account(role: u32) -> String {
    format!("app-{role}")
}

/// The role that a service account has after so many changes.
pub(super) fn role_arn(role: u32, generation: u32) -> String {
    format!("arn:aws:iam::111122223333:role/app-{role}-g{generation}")
}

/// Judges answers. Most of them are the same bytes as the one before, which costs a comparison.
#[derive(Debug)]
pub(super) struct Judge {
    /// Absent for an agent that is not ours: who its credentials belong to cannot be asked.
    eks: Option<Arc<SimulatedEks>>,
    least_life: Duration,
    /// By role, what was judged good last.
    good: Mutex<HashMap<u32, Good>>,
}

#[derive(Clone, Debug)]
struct Good {
    body: Arc<[u8]>,
    expires: SystemTime,
    generation: u32,
}

impl Judge {
    pub(super) fn new(eks: Option<Arc<SimulatedEks>>, least_life: Duration) -> Judge {
        Judge { eks, least_life, good: Mutex::default() }
    }

    /// Gives when the credentials expire.
    pub(super) fn judge(&self, answer: &Answer, due: Due) -> Result<SystemTime, Wrong> {
        self.judge_at(answer, due, clock::wall())
    }

    fn judge_at(&self, answer: &Answer, due: Due, now: SystemTime) -> Result<SystemTime, Wrong> {
        headers(answer.head.length.is_some(), answer.head.is_json)?;
        if let Some(doubt) = answer.doubt() {
            return Err(Wrong::IllFormed(doubt.to_owned()));
        }
        if let Some(good) = self.known(answer.body(), due) {
            return enough_life(good.expires, self.least_life, now);
        }
        let (told, expires) = well_formed(answer.body())?;
        let mut generation = 0;
        if let Some(eks) = &self.eks {
            let key = &*told.access_key_id;
            let handed_out = eks.session(key).zip(eks.session_credentials(key));
            let (session, credentials) = handed_out.ok_or_else(|| Wrong::Unknown(key.to_owned()))?;
            generation = of_role(&session, due)?;
            as_handed_out(&told, expires, &session, &credentials)?;
        }
        let expires = enough_life(expires, self.least_life, now)?;
        let good = Good { body: answer.body().into(), expires, generation };
        self.lock().insert(due.role, good);
        Ok(expires)
    }

    fn known(&self, body: &[u8], due: Due) -> Option<Good> {
        self.lock()
            .get(&due.role)
            .filter(|good| *good.body == *body && good.generation >= due.generation)
            .cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Good>> {
        self.good.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn headers(has_length: bool, is_json: bool) -> Result<(), Wrong> {
    if !has_length {
        return Err(Wrong::IllFormed("no Content-Length, which the CRT's clients refuse".to_owned()));
    }
    if !is_json {
        return Err(Wrong::IllFormed("the Content-Type is not application/json".to_owned()));
    }
    Ok(())
}

fn well_formed(body: &[u8]) -> Result<(Told<'_>, SystemTime), Wrong> {
    let ill_formed = |why: &str| Wrong::IllFormed(why.to_owned());
    // The body itself, secrets and all, must not get into a report by way of an error.
    let told: Told<'_> = serde_json::from_slice(body).map_err(|error| {
        Wrong::IllFormed(format!("{:?} error in line {} of the body", error.classify(), error.line()))
    })?;
    let Told { access_key_id, secret_access_key, token, account_id, expiration } = &told;
    let filled = [access_key_id, secret_access_key, token, account_id];
    if filled.iter().any(|value| value.is_empty()) {
        return Err(ill_formed("an empty value"));
    }
    // JS v3 and Rust refuse an offset such as +00:00.
    if !expiration.ends_with('Z') {
        return Err(ill_formed("Expiration does not end with Z"));
    }
    let expires = DateTime::from_str(expiration, Format::DateTime)
        .ok()
        .and_then(|expires| SystemTime::try_from(expires).ok())
        .ok_or_else(|| ill_formed("Expiration is no time"))?;
    Ok((told, expires))
}

/// An end that is told too early costs a refresh, one that is told too late an outage.
fn as_handed_out(
    told: &Told<'_>,
    expires: SystemTime,
    session: &Session,
    credentials: &Credentials,
) -> Result<(), Wrong> {
    let account = session.role_arn.split(':').nth(4);
    let same = [
        ("the SecretAccessKey", *told.secret_access_key == *credentials.secret_access_key()),
        ("the Token", Some(&*told.token) == credentials.session_token()),
        ("the AccountId", Some(&*told.account_id) == account),
        ("the Expiration", clock::epoch_seconds(expires) <= session.expiration),
    ];
    match same.into_iter().find(|(_, same)| !same) {
        Some((altered, _)) => Err(Wrong::Altered(altered)),
        None => Ok(()),
    }
}

/// Gives the generation of the role that these credentials are of.
fn of_role(session: &Session, due: Due) -> Result<u32, Wrong> {
    let was = format!("{}/{}", session.namespace, session.service_account);
    let wanted = format!("{NAMESPACE}/{}", service_account(due.role));
    if was != wanted {
        return Err(Wrong::OthersRole { was, wanted });
    }
    let prefix = format!("role/app-{}-g", due.role);
    let generation = session.role_arn.split_once(&prefix).and_then(|(_, generation)| generation.parse().ok());
    match generation {
        None => Err(Wrong::OthersRole { was: session.role_arn.clone(), wanted }),
        Some(generation) if generation < due.generation => {
            Err(Wrong::FormerRole { was: session.role_arn.clone(), wanted: due.generation })
        }
        Some(generation) => Ok(generation),
    }
}

fn enough_life(expires: SystemTime, least: Duration, now: SystemTime) -> Result<SystemTime, Wrong> {
    if expires.duration_since(now).is_ok_and(|left| left >= least) {
        return Ok(expires);
    }
    let left = clock::epoch_seconds(expires) - clock::epoch_seconds(now);
    Err(Wrong::TooLittleLife { left, least: least.as_secs() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::UNIX_EPOCH;

    use serde_json::{Value, json};

    use super::*;

    fn body() -> Value {
        json!({
            "AccessKeyId": "ASIA", "SecretAccessKey": "s", "Token": "t", "AccountId": "111122223333",
            "Expiration": "2026-11-21T15:00:00Z",
        })
    }

    #[track_caller]
    fn is_refused(change: impl FnOnce(&mut Value), because: &str) {
        let mut body = body();
        change(&mut body);
        let wrong = well_formed(body.to_string().as_bytes()).err().unwrap();
        assert_eq!(wrong.class(), "wrong: ill-formed");
        assert!(wrong.to_string().contains(because), "{wrong}");
    }

    #[test]
    fn a_body_has_all_keys_filled_and_an_expiration_in_utc() {
        let text = body().to_string();
        let (told, expires) = well_formed(text.as_bytes()).unwrap();
        assert_eq!((&*told.access_key_id, clock::epoch_seconds(expires)), ("ASIA", 1_795_273_200));
        is_refused(|body| body["Token"] = json!(""), "empty");
        is_refused(|body| drop(body.as_object_mut().unwrap().remove("AccountId")), "error");
        is_refused(|body| body["Expiration"] = json!("2026-11-21T15:00:00+00:00"), "end with Z");
        is_refused(|body| body["Expiration"] = json!("soonZ"), "no time");
        assert!(well_formed(b"").is_err());
        let escaped = body().to_string().replace("\"t\"", r#""a\/b\u003d""#);
        assert!(well_formed(escaped.as_bytes()).is_ok(), "every SDK reads escapes");
    }

    #[test]
    fn what_is_wrong_tells_no_secret() {
        let wrong =
            well_formed(br#"{"AccessKeyId":"ASIA","SecretAccessKey":"hush","Token":7}"#).err().unwrap();
        assert!(!wrong.to_string().contains("hush"), "{wrong}");
    }

    #[test]
    fn headers_that_an_sdk_would_refuse_are_ill_formed() {
        assert_eq!(headers(true, true), Ok(()));
        assert!(headers(false, true).is_err() && headers(true, false).is_err());
    }

    fn session(account: &str, role: &str) -> Session {
        Session {
            access_key_id: String::new(),
            role_arn: role.to_owned(),
            session_arn: String::new(),
            assumed_role_id: String::new(),
            source_role_arn: None,
            association_id: String::new(),
            namespace: NAMESPACE.to_owned(),
            service_account: account.to_owned(),
            pod_uid: String::new(),
            tags: BTreeMap::new(),
            transitive_tag_keys: Vec::new(),
            policy: None,
            expiration: 0,
        }
    }

    #[test]
    fn another_service_accounts_credentials_and_a_former_roles_are_told_apart() {
        let due = Due { role: 3, generation: 1 };
        assert_eq!(of_role(&session("app-3", &role_arn(3, 1)), due), Ok(1));
        assert_eq!(of_role(&session("app-3", &role_arn(3, 2)), due), Ok(2));
        let class = |session: &Session| of_role(session, due).unwrap_err().class();
        assert_eq!(class(&session("app-3", &role_arn(3, 0))), "wrong: former role");
        assert_eq!(class(&session("app-4", &role_arn(4, 1))), "wrong: role of others");
        assert_eq!(class(&session("app-3", &role_arn(4, 1))), "wrong: role of others");
    }

    #[test]
    fn credentials_that_are_not_those_of_their_access_key_id_are_altered() {
        let session = Session { expiration: 1_795_273_200, ..session("app-0", &role_arn(0, 0)) };
        let judged = |change: fn(&mut Value)| {
            let mut body = body();
            change(&mut body);
            let text = body.to_string();
            let (told, expires) = well_formed(text.as_bytes()).unwrap();
            let credentials = Credentials::new("ASIA", "s", Some("t".to_owned()), None, "test");
            as_handed_out(&told, expires, &session, &credentials)
        };
        assert_eq!(judged(|_| {}), Ok(()));
        assert_eq!(judged(|body| body["Expiration"] = json!("2026-11-21T14:59:59Z")), Ok(()));
        let altered = |what| Err(Wrong::Altered(what));
        assert_eq!(judged(|body| body["SecretAccessKey"] = json!("other")), altered("the SecretAccessKey"));
        assert_eq!(judged(|body| body["Token"] = json!("other")), altered("the Token"));
        assert_eq!(judged(|body| body["AccountId"] = json!("999999999999")), altered("the AccountId"));
        assert_eq!(
            judged(|body| body["Expiration"] = json!("2026-11-21T15:00:01Z")),
            altered("the Expiration")
        );
    }

    #[test]
    fn credentials_near_their_end_are_wrong_where_better_can_be_had() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let least = Duration::from_secs(900);
        assert!(enough_life(now + least, least, now).is_ok());
        let short = enough_life(now + least - Duration::from_secs(1), least, now).unwrap_err();
        assert_eq!(short, Wrong::TooLittleLife { left: 899, least: 900 });
        let past = enough_life(now - Duration::from_secs(5), Duration::ZERO, now).unwrap_err();
        assert_eq!(past, Wrong::TooLittleLife { left: -5, least: 0 });
    }
}
