//! The command line: what the official agent's chart passes, and podcred's own.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `podcred server`, checked.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub cluster_name: String,
    pub port: u16,
    pub probe_port: u16,
    pub metrics_address: IpAddr,
    pub metrics_port: u16,
    pub bind_hosts: Vec<IpAddr>,
    pub max_credential_retention: Duration,
    /// Role keys kept; 0 turns caching off.
    pub max_cache_size: usize,
    /// Renewals a second towards EKS Auth.
    pub max_service_qps: u32,
    pub rotate_credentials: bool,
    pub endpoint: Option<String>,
    /// None: read from the agent's own projected token.
    pub issuer: Option<String>,
    pub token_file: PathBuf,
    pub jwks_url: Option<String>,
    pub sharing: Sharing,
    pub revalidate_after: Duration,
    pub eks_auth_wait: Duration,
    pub workers: usize,
    pub verify: Verify,
    pub node_name: Option<String>,
    pub instance_id: Option<String>,
    pub zone: Option<String>,
    pub control_socket: PathBuf,
    pub max_connections: usize,
    pub shutdown_grace: Duration,
}

/// Which service accounts share credentials among their pods.
#[derive(Clone, Debug, Default)]
pub struct Sharing {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    Off,
    Audit,
    Enforce,
}
