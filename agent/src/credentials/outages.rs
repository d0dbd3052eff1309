//! Calls that EKS Auth gave no answer to, in the log once a minute for each kind of trouble; the metric has the numbers.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Now;
use crate::eks_auth::Failure;
use crate::locks::lock;

const ONE_LINE_IN: Duration = Duration::from_secs(60);

/// When each kind was last told. There are as many as there are texts in the code.
#[derive(Debug, Default)]
pub(super) struct Outages(Mutex<HashMap<&'static str, Instant>>);

impl Outages {
    pub(super) fn tell(&self, failure: &Failure, now: Now) {
        let Failure::Unavailable { message, cause } = failure else { return };
        let mut told = lock(&self.0);
        let recently =
            told.get(message).is_some_and(|at| now.mono.saturating_duration_since(*at) < ONE_LINE_IN);
        if !recently {
            told.insert(message, now.mono);
            tracing::warn!(event = "eks_auth_unavailable", %cause, "{message}");
        }
    }
}
