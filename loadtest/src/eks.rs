//! A simulated EKS: everything of AWS that a pod's credentials depend on, in the real wire formats, on one address.
//!
//! | path | what | signed for, by |
//! |---|---|---|
//! | `/id/ID/.well-known/openid-configuration`, `/id/ID/keys` | the cluster's OIDC issuer | |
//! | `POST /clusters/C/assume-role-for-pod-identity` | EKS Auth | `eks-auth`, the node role |
//! | `/clusters/C/pod-identity-associations[/ID]` | the associations API | `eks`, the administrator |
//! | `POST /` with `Action=GetCallerIdentity` | STS | `sts`, anybody known |
//! | `/control/…` | below | unsigned, loopback only |
//!
//! # The control API
//! Plain JSON. Errors are `{"error": "…"}` with 400, 403 or 404.
//!
//! | call | body → answer |
//! |---|---|
//! | `GET /control/settings` | → all of [`Settings`], in camelCase |
//! | `PATCH /control/settings` | the fields to change → all of them |
//! | `GET /control/calls` | → the EKS Auth calls, oldest first: a list of [`Call`] |
//! | `GET /control/counts` | → [`Counts`]: `{total, byRole: {"ns/sa": n}, byResult: {"OK": n}, issuerKeyFetches, inFlight}` |
//! | `POST /control/calls/reset` | → `{}`; forgets calls and counts |
//! | `POST /control/tokens` | [`PodToken`] `{namespace, serviceAccount, podName, serviceAccountUid?, podUid?, nodeName?, audience?, expirationSeconds?, claimOverrides?: {"/json/pointer": value or null}, headerOverrides?: {name: value or null}, foreignKey?}` → [`Minted`] `{token, expirationTimestamp, expires, tokenId, podUid, serviceAccountUid}` |
//! | `POST /control/keys/rotate` | `{publish?: true, retireOld?: false}` → `{kid}`; a new key signs from now on |
//! | `POST /control/keys/publish` | → `{}`; publishes the key that signs |
//! | `POST /control/associations` | [`NewAssociation`], as the real API has it, unsigned → [`Association`] |
//! | `PUT /control/roles` | `{arn, trustPolicy?: {…}}` → `{arn}`; without a policy the role trusts EKS Pod Identity |
//! | `GET /control/sessions/ACCESS_KEY_ID` | → [`Session`] `{roleArn, sessionArn, tags, transitiveTagKeys, policy, expiration, …}` |
//! | `POST /control/pods/UID/delete` | → `{}`; its tokens are refused as InvalidTokenException from now on |
//! | `POST /control/service-accounts/recreate` | `{namespace, serviceAccount}` → `{serviceAccountUid}`; for tokens minted from now on |
//! | `PUT /control/node-credentials` | `{accessKeyId, secretAccessKey, sessionToken?, expiresInSeconds?}` → `{accessKeyId}`; the former ones are unknown from then on |
//!
//! # Where the real thing is not known, or simplified
//! EKS Auth's reaction to a deleted pod's token is not documented: here it is InvalidTokenException. It looks the
//! association up by name, so a service account's new UID does not end its older tokens. IAM permissions of sessions are
//! not simulated. There is one cluster. Role ARNs may name any account.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use aws_credential_types::Credentials;
use tokio_util::sync::{CancellationToken, DropGuard};

mod app;
mod associations;
mod callers;
mod calls;
mod control;
mod eks_auth;
mod id;
mod issuer;
mod keys;
mod reply;
mod roles;
mod route;
mod server;
mod settings;
mod sigv4;
mod sts;
mod token;
mod trust;

pub use associations::{Association, AssociationChange, NewAssociation};
pub use callers::Session;
pub use calls::{Call, Counts};
pub use reply::{ApiError, ErrorCode};
pub use settings::{Outage, Settings};
pub use token::{Minted, PodToken};

use app::App;
use associations::Cluster;
use callers::Identity;
use keys::SigningKey;

/// What a simulation is started with.
#[derive(Clone, Debug)]
pub struct Config {
    pub cluster_name: String,
    pub region: String,
    /// The account of the cluster, the node role and the administrator.
    pub account_id: String,
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Serves the same over https as well, by a certificate authority made for this run.
    pub https_listen: Option<SocketAddr>,
    /// The issuer's URL is the https one.
    pub issuer_over_https: bool,
    /// Of an API server that signs by [`SimulatedEks::signing_key_pem`], instead of one of the simulation's own.
    pub issuer: Option<String>,
    /// Made up where not given.
    pub node_credentials: Option<Credentials>,
    pub settings: Settings,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            cluster_name: "demo".to_owned(),
            region: "eu-west-1".to_owned(),
            account_id: "111122223333".to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            https_listen: None,
            issuer_over_https: false,
            issuer: None,
            node_credentials: None,
            settings: Settings::default(),
        }
    }
}

/// A running simulation. Dropping it ends it: no new connections, and those that are open close.
#[derive(Debug)]
pub struct SimulatedEks {
    app: Arc<App>,
    url: String,
    https: Option<Https>,
    node_credentials: Credentials,
    admin_credentials: Credentials,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Https {
    url: String,
    ca_pem: String,
}

impl SimulatedEks {
    /// Listens; the runtime that this is called in serves.
    pub async fn start(config: Config) -> Result<SimulatedEks> {
        config.settings.check().map_err(anyhow::Error::msg)?;
        let listener = server::listen(config.listen)?;
        let url = format!("http://{}", listener.local_addr()?);
        let secure = config.https_listen.map(|address| {
            let listener = server::listen(address)?;
            let tls = server::Tls::for_address(listener.local_addr()?)?;
            anyhow::Ok((listener, tls))
        });
        let secure = secure.transpose().context("https")?;
        let https = match &secure {
            Some((listener, tls)) => {
                Some(Https { url: format!("https://{}", listener.local_addr()?), ca_pem: tls.ca_pem.clone() })
            }
            None => None,
        };
        let base = match (&https, config.issuer_over_https) {
            (Some(https), true) => &https.url,
            (None, true) => anyhow::bail!("an issuer over https needs an address for https"),
            (_, false) => &url,
        };
        let issuer = config.issuer.unwrap_or_else(|| format!("{base}/id/{}", id::issuer_id()));
        let cluster =
            Cluster { name: config.cluster_name, region: config.region, account_id: config.account_id };
        let settings = config.settings;
        let app = tokio::task::spawn_blocking(move || App::new(cluster, issuer, settings)).await??;
        let app = Arc::new(app);

        let node_credentials = config.node_credentials.unwrap_or_else(app::long_lived_credentials);
        let admin_credentials = app::long_lived_credentials();
        app.set_node_credentials(node_credentials.clone());
        app.add_admin(admin_credentials.clone());

        let stop = CancellationToken::new();
        tokio::spawn(server::serve(Arc::clone(&app), listener, None, stop.clone()));
        if let Some((listener, tls)) = secure {
            tokio::spawn(server::serve(Arc::clone(&app), listener, Some(tls.acceptor()), stop.clone()));
        }
        Ok(SimulatedEks { app, url, https, node_credentials, admin_credentials, _stop: stop.drop_guard() })
    }

    /// The endpoint of EKS Auth, the associations API and STS: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn https_url(&self) -> Option<&str> {
        self.https.as_ref().map(|https| https.url.as_str())
    }

    /// What a client of [`SimulatedEks::https_url`] must trust.
    pub fn ca_pem(&self) -> Option<&str> {
        self.https.as_ref().map(|https| https.ca_pem.as_str())
    }

    /// The private key that tokens are signed with, in PKCS#8, for an API server to sign with it too.
    pub fn signing_key_pem(&self) -> Result<String> {
        self.app.state().keys.current().private_pem()
    }

    pub fn issuer(&self) -> &str {
        &self.app.issuer
    }

    pub fn cluster_name(&self) -> &str {
        &self.app.cluster.name
    }

    pub fn region(&self) -> &str {
        &self.app.cluster.region
    }

    /// Signs calls of EKS Auth: what the simulation was started with.
    pub fn node_credentials(&self) -> &Credentials {
        &self.node_credentials
    }

    /// Signs calls of the associations API.
    pub fn admin_credentials(&self) -> &Credentials {
        &self.admin_credentials
    }

    /// Replaces the node role's credentials; the former ones are unknown from now on.
    pub fn set_node_credentials(&self, credentials: Credentials) {
        self.app.set_node_credentials(credentials);
    }

    /// Changes settings, for requests from now on; a request that hangs in an outage goes on when that ends.
    ///
    /// # Panics
    /// Where [`Settings::check`] refuses what `change` makes of them.
    pub fn settings(&self, change: impl FnOnce(&mut Settings)) {
        self.app.settings.send_modify(|settings| {
            change(settings);
            settings.check().unwrap_or_else(|why| panic!("{why}"));
        });
    }

    /// # Panics
    /// Where the request names a claim by no JSON pointer.
    pub fn mint(&self, token: PodToken) -> Minted {
        self.app.mint(token).unwrap_or_else(|why| panic!("cannot mint: {why}"))
    }

    /// Associates a role with a service account and gives the association's id.
    ///
    /// # Panics
    /// Where the API refuses; [`SimulatedEks::associate`] tells why.
    pub fn create_association(&self, namespace: &str, service_account: &str, role_arn: &str) -> String {
        let new = NewAssociation {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            role_arn: role_arn.to_owned(),
            ..NewAssociation::default()
        };
        self.associate(new).unwrap_or_else(|error| panic!("cannot associate: {error}")).association_id
    }

    pub fn associate(&self, new: NewAssociation) -> Result<Association, ApiError> {
        self.app.associate(new)
    }

    pub fn update_association(&self, id: &str, change: AssociationChange) -> Result<Association, ApiError> {
        self.app.update_association(id, change)
    }

    pub fn delete_association(&self, id: &str) -> Result<Association, ApiError> {
        self.app.delete_association(id)
    }

    /// Sets a role's trust policy, or makes it trust EKS Pod Identity again.
    pub fn set_trust_policy(&self, role_arn: &str, policy: Option<serde_json::Value>) -> Result<(), String> {
        let policy = policy.map(trust::TrustPolicy::parse).transpose()?;
        self.app.state().roles.set_trust(role_arn, policy);
        Ok(())
    }

    /// The EKS Auth calls that were answered so far, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.app.state().calls.calls()
    }

    pub fn counts(&self) -> Counts {
        self.app.state().calls.counts()
    }

    pub fn reset_calls(&self) {
        self.app.state().calls.reset();
    }

    /// A new key signs from now on; `publish` shows it, `retire_old` hides all older ones. Gives its id.
    pub fn rotate_keys(&self, publish: bool, retire_old: bool) -> Result<String> {
        let key = SigningKey::generate()?;
        let kid = key.kid.clone();
        self.app.state().keys.rotate(key, publish, retire_old);
        Ok(kid)
    }

    /// Publishes the key that signs.
    pub fn publish_keys(&self) {
        self.app.state().keys.publish_current();
    }

    /// The role session that an access key id was handed out for.
    pub fn session(&self, access_key_id: &str) -> Option<Session> {
        match self.app.state().callers.get(access_key_id)?.identity {
            Identity::Session(session) => Some(*session),
            Identity::Node { .. } | Identity::Admin { .. } => None,
        }
    }

    /// The credentials that were handed out with this access key id.
    pub fn session_credentials(&self, access_key_id: &str) -> Option<Credentials> {
        let caller = self.app.state().callers.get(access_key_id)?;
        match caller.identity {
            Identity::Session(_) => Some(caller.credentials),
            Identity::Node { .. } | Identity::Admin { .. } => None,
        }
    }

    /// EKS Auth refuses this pod's tokens from now on.
    pub fn delete_pod(&self, uid: &str) {
        self.app.state().objects.delete_pod(uid);
    }

    /// Gives the service account another UID, for tokens minted from now on.
    pub fn recreate_service_account(&self, namespace: &str, name: &str) -> String {
        self.app.state().objects.recreate_service_account(namespace, name)
    }
}
