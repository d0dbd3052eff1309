//! EKS Auth by AWS's own SDK: signing, the node's credentials, endpoints and regions are AWS's to keep right.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_eksauth::Client;
use aws_sdk_eksauth::config::retry::RetryConfig;
use aws_sdk_eksauth::config::timeout::TimeoutConfig;
use aws_sdk_eksauth::config::{Builder, SharedHttpClient};
use aws_sdk_eksauth::operation::assume_role_for_pod_identity::AssumeRoleForPodIdentityOutput;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder as HttpBuilder, Connector};
use aws_types::service_config::ServiceConfigKey;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};

use super::failure::{failure, unreadable};
use super::rotation::RotatingProfile;
use super::{Assumed, EksAuth, Failure};
use crate::authenticate::keys::{check_url, read_certificates};
use crate::clock::{Clock, UnixTime};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// The attempt, and before it possibly a fetch of the agent's own credentials.
const CALL_TIMEOUT: Duration = Duration::from_secs(12);

/// What the agent tells EKS Auth, and how it gets there.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub cluster_name: String,
    /// None: the region's, or what the SDK's own settings say.
    pub endpoint: Option<String>,
    /// Read the shared credentials file again every minute.
    pub rotate_credentials: bool,
    pub node_name: Option<String>,
    pub instance_id: Option<String>,
    pub zone: Option<String>,
}

#[derive(Clone)]
pub struct EksAuthClient {
    client: Client,
    config: Arc<ClientConfig>,
}

impl EksAuthClient {
    /// Finds region, credentials and endpoint the way that all AWS tools do. Nothing is sent to EKS Auth yet.
    pub async fn connect(config: &ClientConfig) -> Result<EksAuthClient, String> {
        let bundle = std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty());
        let http = http_client(bundle.as_deref().map(Path::new))?;
        let mut sdk = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone());
        if let Ok(name) = AppName::new("podcred") {
            sdk = sdk.app_name(name);
        }
        let sdk = sdk.load().await;
        if config.endpoint.is_none()
            && let Some(endpoint) = endpoint_of_settings(&sdk)
        {
            check_url(&endpoint).map_err(|problem| {
                format!("the endpoint of EKS Auth in AWS_ENDPOINT_URL_EKS_AUTH, AWS_ENDPOINT_URL or the AWS profile {problem}")
            })?;
        }
        let region = sdk.region().cloned().ok_or(
            "no AWS region is known: set AWS_REGION, or region in the AWS profile, or let the agent reach the \
             instance metadata service",
        )?;
        if !config.rotate_credentials {
            return Ok(EksAuthClient::new(&sdk, config));
        }
        let profile = rotating_profile(region, http);
        let sdk = sdk.into_builder().credentials_provider(SharedCredentialsProvider::new(profile)).build();
        Ok(EksAuthClient::new(&sdk, config))
    }

    /// A client with region, credentials and HTTP client as `sdk` has them.
    pub fn new(sdk: &SdkConfig, config: &ClientConfig) -> EksAuthClient {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(CALL_TIMEOUT)
            .build();
        // The agent paces retries by role key and by what EKS Auth said; retries below it would multiply with those.
        // What fetches the agent's own credentials is configured by `sdk` and keeps its retries.
        let mut client = Builder::from(sdk).retry_config(RetryConfig::disabled()).timeout_config(timeouts);
        if let Some(endpoint) = &config.endpoint {
            client = client.endpoint_url(endpoint);
        }
        EksAuthClient { client: Client::from_conf(client.build()), config: Arc::new(config.clone()) }
    }

    async fn call(self, token: SecretString) -> Result<Assumed, Failure> {
        let answer = self
            .client
            .assume_role_for_pod_identity()
            .cluster_name(&self.config.cluster_name)
            .token(token.expose_secret())
            .set_eks_node_name(self.config.node_name.clone())
            .set_instance_id(self.config.instance_id.clone())
            .set_zone(self.config.zone.clone())
            .send()
            .await
            .map_err(|error| failure(&error, token.expose_secret()))?;
        assumed(answer).ok_or_else(|| unreadable("a part of the credentials is missing"))
    }
}

impl EksAuth for EksAuthClient {
    fn assume_role_for_pod_identity(
        &self,
        token: SecretString,
    ) -> BoxFuture<'static, Result<Assumed, Failure>> {
        self.clone().call(token).boxed()
    }
}

impl fmt::Debug for EksAuthClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EksAuthClient").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The SDK fills in what a server leaves out (an empty text, the year 1970), so that counts as missing here.
fn assumed(answer: AssumeRoleForPodIdentityOutput) -> Option<Assumed> {
    let subject = answer.subject?;
    let user = answer.assumed_role_user?;
    let credentials = answer.credentials?;
    let expiration = u64::try_from(credentials.expiration.secs()).ok().filter(|seconds| *seconds > 0)?;
    let complete = [
        &subject.namespace,
        &subject.service_account,
        &user.arn,
        &credentials.access_key_id,
        &credentials.secret_access_key,
        &credentials.session_token,
    ]
    .iter()
    .all(|text| !text.is_empty());
    complete.then(|| Assumed {
        namespace: subject.namespace,
        service_account: subject.service_account,
        audience: answer.audience,
        association_id: answer.pod_identity_association.map(|a| a.association_id).unwrap_or_default(),
        session_arn: user.arn,
        access_key_id: credentials.access_key_id,
        secret_access_key: credentials.secret_access_key.into(),
        session_token: credentials.session_token.into(),
        expiration: UnixTime(expiration),
    })
}

/// The SDK's own default client, which knows nothing of `AWS_CA_BUNDLE`, with that added.
pub(super) fn http_client(ca_bundle: Option<&Path>) -> Result<SharedHttpClient, String> {
    let mut roots = TrustStore::empty().with_native_roots(true);
    if let Some(path) = ca_bundle {
        // Checked first: the SDK panics on a bad one, and only when it connects.
        let (pem, _) = read_certificates(path).map_err(|error| format!("AWS_CA_BUNDLE: {error}"))?;
        roots = roots.with_pem_certificate(pem);
    }
    let tls = TlsContext::builder()
        .with_trust_store(roots)
        .build()
        .map_err(|error| format!("no TLS for EKS Auth: {error}"))?;
    Ok(HttpBuilder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(tls.clone())
            .proxy_config(ProxyConfig::from_env());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        connector.build()
    }))
}

/// Where the SDK's own settings have calls sent.
fn endpoint_of_settings(sdk: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id("EKS Auth");
    let key = key.env("AWS_ENDPOINT_URL").profile("endpoint_url").build().ok()?;
    let of_eks_auth = sdk.service_config().and_then(|settings| settings.load_config(key));
    of_eks_auth.or_else(|| sdk.endpoint_url().map(str::to_owned))
}

fn rotating_profile(region: Region, http: SharedHttpClient) -> RotatingProfile {
    RotatingProfile::new(Clock::default(), move || {
        use aws_config::profile::ProfileFileCredentialsProvider;
        use aws_config::provider_config::ProviderConfig;
        // Made anew each time: a ProviderConfig and its clones keep the file that they parsed first.
        let around =
            ProviderConfig::without_region().with_region(Some(region.clone())).with_http_client(http.clone());
        SharedCredentialsProvider::new(ProfileFileCredentialsProvider::builder().configure(&around).build())
    })
}
