//! `--rotate-credentials`: the agent's own credentials from a file that something else keeps fresh (hybrid nodes).

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};

use crate::causes::chain;
use crate::clock::Clock;
use crate::locks::lock;

/// The SDK asks again shortly before this is over.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Loads the profile each time it is asked, and makes the SDK ask again by stamping an expiry on what it loaded.
pub(super) struct RotatingProfile {
    clock: Clock,
    /// A provider that has not read the files yet.
    fresh: Box<dyn Fn() -> SharedCredentialsProvider + Send + Sync>,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    good: Option<Credentials>,
    failing: bool,
}

impl RotatingProfile {
    pub(super) fn new(
        clock: Clock,
        fresh: impl Fn() -> SharedCredentialsProvider + Send + Sync + 'static,
    ) -> Self {
        RotatingProfile { clock, fresh: Box::new(fresh), last: Mutex::default() }
    }

    async fn load(&self) -> Result<Credentials, CredentialsError> {
        let loaded = (self.fresh)().provide_credentials().await;
        let mut last = lock(&self.last);
        let mut credentials = match loaded {
            Ok(credentials) => {
                if std::mem::take(&mut last.failing) {
                    tracing::info!(
                        event = "own_credentials_recovered",
                        "can read the agent's own credentials again"
                    );
                }
                last.good = Some(credentials.clone());
                credentials
            }
            Err(error) => {
                if !std::mem::replace(&mut last.failing, true) {
                    let meanwhile =
                        if last.good.is_some() { "the last good ones stay in use" } else { "none are known" };
                    tracing::warn!(
                        event = "own_credentials_failed",
                        error = chain(&error),
                        meanwhile,
                        "cannot read the agent's own credentials; retrying, without another line"
                    );
                }
                // Whoever renews the file may be replacing it just now, or may be down while these still hold.
                last.good.clone().ok_or(error)?
            }
        };
        let stamp =
            UNIX_EPOCH + Duration::from_secs(self.clock.now().wall.saturating_add(READ_AGAIN_AFTER).0);
        let expiry = credentials.expiry_mut();
        *expiry = Some(expiry.map_or(stamp, |own| own.min(stamp)));
        Ok(credentials)
    }
}

impl ProvideCredentials for RotatingProfile {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.load())
    }
}

impl fmt::Debug for RotatingProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotatingProfile").finish_non_exhaustive()
    }
}
