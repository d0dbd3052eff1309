//! The cluster's pod identity associations, and when EKS Auth comes to know of a change.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::id;
use super::reply::{ApiError, ErrorCode};
use crate::clock;

pub(super) mod api;
mod check;

/// As the API shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Association {
    pub cluster_name: String,
    pub namespace: String,
    pub service_account: String,
    pub role_arn: String,
    pub association_arn: String,
    pub association_id: String,
    pub tags: BTreeMap<String, String>,
    /// Seconds since 1970.
    pub created_at: f64,
    pub modified_at: f64,
    pub disable_session_tags: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_role_arn: Option<String>,
    /// What the target role's trust policy finds in `sts:ExternalId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

/// The body of CreatePodIdentityAssociation.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NewAssociation {
    pub namespace: String,
    pub service_account: String,
    pub role_arn: String,
    pub client_request_token: Option<String>,
    pub tags: Option<BTreeMap<String, String>>,
    pub disable_session_tags: Option<bool>,
    pub target_role_arn: Option<String>,
    pub policy: Option<String>,
}

/// The body of UpdatePodIdentityAssociation: what is not named stays.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AssociationChange {
    pub role_arn: Option<String>,
    pub disable_session_tags: Option<bool>,
    pub target_role_arn: Option<String>,
    pub policy: Option<String>,
}

/// When a change is made, and when EKS Auth sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) wall: SystemTime,
    pub(super) mono: Instant,
    pub(super) delay: Duration,
}

/// The cluster that the associations belong to.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) name: String,
    pub(super) region: String,
    pub(super) account_id: String,
}

impl Cluster {
    pub(super) fn arn(&self) -> String {
        format!("arn:aws:eks:{}:{}:cluster/{}", self.region, self.account_id, self.name)
    }
}

type Subject = (String, String);

#[derive(Debug, Default)]
pub(super) struct Associations {
    /// In the order of creation, which is the order that they are listed in.
    by_number: BTreeMap<u64, Association>,
    next_number: u64,
    number_by_id: HashMap<String, u64>,
    number_by_subject: HashMap<Subject, u64>,
    /// `clientRequestToken`s that were used, with what they were used for.
    requests: HashMap<String, (NewAssociation, String)>,
    /// What EKS Auth knows, from when on; `None` for a deletion.
    propagated: HashMap<Subject, Vec<(Instant, Option<Association>)>>,
}

impl Associations {
    pub(super) fn create(
        &mut self,
        cluster: &Cluster,
        new: NewAssociation,
        limit: usize,
        at: Moment,
    ) -> Result<Association, ApiError> {
        check::new(&new)?;
        if let Some((earlier, id)) =
            new.client_request_token.as_ref().and_then(|token| self.requests.get(token))
        {
            if *earlier == new {
                return self.describe(id).cloned();
            }
            let message = "The clientRequestToken was used for another request before; use a new one.";
            return Err(ApiError::new(ErrorCode::InvalidRequestException, message));
        }
        let subject = (new.namespace.clone(), new.service_account.clone());
        if let Some(number) = self.number_by_subject.get(&subject) {
            let id = self.by_number.get(number).map_or("", |existing| &existing.association_id);
            return Err(ApiError::new(
                ErrorCode::ResourceInUseException,
                format!(
                    "Association already exists: {id}. Service account {} in namespace {} has a role; \
                     update or delete that association.",
                    subject.1, subject.0,
                ),
            ));
        }
        if self.by_number.len() >= limit {
            let message =
                format!("The cluster {} has {limit} associations, as many as it may.", cluster.name);
            return Err(ApiError::new(ErrorCode::ResourceLimitExceededException, message));
        }
        let association = self.insert(cluster, &new, at);
        if let Some(token) = new.client_request_token.clone() {
            self.requests.insert(token, (new, association.association_id.clone()));
        }
        self.propagate(subject, Some(association.clone()), at);
        Ok(association)
    }

    pub(super) fn describe(&self, id: &str) -> Result<&Association, ApiError> {
        self.number_by_id.get(id).and_then(|number| self.by_number.get(number)).ok_or_else(|| not_found(id))
    }

    pub(super) fn update(
        &mut self,
        id: &str,
        change: AssociationChange,
        at: Moment,
    ) -> Result<Association, ApiError> {
        let mut changed = self.describe(id)?.clone();
        changed.role_arn = change.role_arn.unwrap_or(changed.role_arn);
        changed.disable_session_tags = change.disable_session_tags.unwrap_or(changed.disable_session_tags);
        changed.policy = change.policy.or(changed.policy);
        if let Some(target) = change.target_role_arn {
            changed.target_role_arn = Some(target);
            changed.external_id = changed.external_id.or_else(|| Some(id::uuid()));
        }
        changed.modified_at = clock::epoch_fraction(at.wall);
        check::role_and_policy(
            &changed.role_arn,
            changed.target_role_arn.as_deref(),
            changed.policy.as_deref(),
            changed.disable_session_tags,
        )?;
        if let Some(number) = self.number_by_id.get(id) {
            self.by_number.insert(*number, changed.clone());
        }
        let subject = (changed.namespace.clone(), changed.service_account.clone());
        self.propagate(subject, Some(changed.clone()), at);
        Ok(changed)
    }

    pub(super) fn delete(&mut self, id: &str, at: Moment) -> Result<Association, ApiError> {
        let number = self.number_by_id.remove(id).ok_or_else(|| not_found(id))?;
        let association = self.by_number.remove(&number).ok_or_else(|| not_found(id))?;
        let subject = (association.namespace.clone(), association.service_account.clone());
        self.number_by_subject.remove(&subject);
        self.requests.retain(|_, (_, used_for)| used_for != id);
        self.propagate(subject, None, at);
        Ok(association)
    }

    /// Up to `max` associations that come after number `after`, and the number to go on from.
    pub(super) fn list(
        &self,
        namespace: Option<&str>,
        service_account: Option<&str>,
        after: Option<u64>,
        max: usize,
    ) -> (Vec<&Association>, Option<u64>) {
        let from = after.map_or(0, |number| number.saturating_add(1));
        let mut matching = self.by_number.range(from..).filter(|(_, association)| {
            namespace.is_none_or(|wanted| association.namespace == wanted)
                && service_account.is_none_or(|wanted| association.service_account == wanted)
        });
        let page: Vec<_> = matching.by_ref().take(max).collect();
        let next = page.last().map(|(number, _)| **number).filter(|_| matching.next().is_some());
        (page.into_iter().map(|(_, association)| association).collect(), next)
    }

    /// The association as EKS Auth knows it at `now`, which may be behind what the API shows.
    pub(super) fn seen_by_eks_auth(
        &self,
        namespace: &str,
        service_account: &str,
        now: Instant,
    ) -> Option<&Association> {
        let history = self.propagated.get(&(namespace.to_owned(), service_account.to_owned()))?;
        history.iter().rev().find(|(from, _)| *from <= now).and_then(|(_, association)| association.as_ref())
    }

    fn insert(&mut self, cluster: &Cluster, new: &NewAssociation, at: Moment) -> Association {
        let association_id = id::association_id();
        let association = Association {
            cluster_name: cluster.name.clone(),
            namespace: new.namespace.clone(),
            service_account: new.service_account.clone(),
            role_arn: new.role_arn.clone(),
            association_arn: format!(
                "arn:aws:eks:{}:{}:podidentityassociation/{}/{association_id}",
                cluster.region, cluster.account_id, cluster.name,
            ),
            association_id: association_id.clone(),
            tags: new.tags.clone().unwrap_or_default(),
            created_at: clock::epoch_fraction(at.wall),
            modified_at: clock::epoch_fraction(at.wall),
            disable_session_tags: new.disable_session_tags.unwrap_or(false),
            external_id: new.target_role_arn.is_some().then(id::uuid),
            target_role_arn: new.target_role_arn.clone(),
            policy: new.policy.clone(),
        };
        let number = self.next_number;
        self.next_number += 1;
        self.by_number.insert(number, association.clone());
        self.number_by_id.insert(association_id, number);
        self.number_by_subject.insert((new.namespace.clone(), new.service_account.clone()), number);
        association
    }

    fn propagate(&mut self, subject: Subject, association: Option<Association>, at: Moment) {
        let history = self.propagated.entry(subject).or_default();
        // A shorter delay set meanwhile must not let a later change overtake an earlier one.
        let from = history.last().map_or(at.mono, |(last, _)| *last).max(at.mono + at.delay);
        let current = history.iter().rposition(|(from, _)| *from <= at.mono).unwrap_or(0);
        history.drain(..current);
        history.push((from, association));
    }
}

fn not_found(id: &str) -> ApiError {
    let message = format!(
        "The association {id} cannot be found; list the cluster's associations to see which are there."
    );
    ApiError::new(ErrorCode::ResourceNotFoundException, message)
}

#[cfg(test)]
mod tests;
