//! Whose permission is missing when EKS Auth says AccessDenied: one role's, or the agent's own?
//!
//! Both look the same on the wire. A role's trust policy denies one role key while others go on being served; the
//! agent's own `eks-auth:AssumeRoleForPodIdentity` denies them all. Credentials are dropped only for the former.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::claims::RoleKey;
use crate::clock::Now;
use crate::locks::lock;

/// "At once": denials further apart than this say nothing about each other.
const TOGETHER: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Default)]
pub(super) struct Denials {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Role keys denied since any call last succeeded, and when each was first.
    denied: HashMap<RoleKey, Instant>,
    last_success: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Another role key was served after this one was first denied, or there is no other: it is the role.
    TheRole,
    /// Several role keys, and no success among them.
    OwnPermission,
    /// Nobody else has asked yet: let one do so.
    AskAnother,
}

impl Denials {
    pub(super) fn denied(&self, key: &RoleKey, now: Now) {
        let mut state = self.lock();
        state.denied.retain(|_, at| now.mono.saturating_duration_since(*at) < TOGETHER);
        let one_was = state.denied.len() == 1;
        state.denied.entry(key.clone()).or_insert(now.mono);
        // Said when the second comes to the first.
        if !(one_was && state.denied.len() == 2) {
            return;
        }
        tracing::error!(
            event = "permission_suspected_lost",
            "EKS Auth denies several service accounts at once: check that the node role allows \
             eks-auth:AssumeRoleForPodIdentity on this cluster; credentials that are still valid stay in use"
        );
    }

    pub(super) fn succeeded(&self, now: Now) {
        let mut state = self.lock();
        if state.denied.len() > 1 {
            tracing::info!(event = "permission_back", "EKS Auth serves this agent again");
        }
        state.denied.clear();
        state.last_success = Some(now.mono);
    }

    /// On a role key that two pods' tokens were denied for, the first at `since`.
    pub(super) fn verdict(&self, since: Instant, others_live: bool) -> Verdict {
        let state = self.lock();
        if state.last_success.is_some_and(|at| at > since) || !others_live {
            Verdict::TheRole
        } else if state.denied.len() > 1 {
            Verdict::OwnPermission
        } else {
            Verdict::AskAnother
        }
    }

    /// For the metric: the agent itself seems to have lost its permission.
    pub(super) fn own_permission_suspected(&self) -> bool {
        self.lock().denied.len() > 1
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}
