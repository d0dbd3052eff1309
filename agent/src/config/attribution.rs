//! Who is calling, what that is used for, and what one pod may cost the others.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ServiceAccount;
use super::values::{self, Checked, Choice};

/// `--verify` and what belongs to it.
#[derive(Clone, Debug, Args)]
pub struct Verification {
    /// How to use kernel attribution: ignore it, report it, or refuse mismatches
    #[arg(id = "verify", long = "verify", env = "PODCRED_VERIFY", value_name = "MODE", default_value = "audit",
        value_parser = Choice::<Verify>::default(), help_heading = super::OWN)]
    pub mode: Verify,

    /// What to do with connections that the kernel cannot attribute to a pod [default: allow in audit, deny in enforce]
    #[arg(id = "verify-unattributed", long = "verify-unattributed", env = "PODCRED_VERIFY_UNATTRIBUTED", value_name = "WHAT",
        value_parser = Choice::<Unattributed>::default(), help_heading = super::OWN)]
    unattributed: Option<Unattributed>,

    /// Service account whose pods may present other pods' tokens, such as a CSI driver's (repeatable, or
    /// comma-separated; requires --node-name and permission to watch pods)
    #[arg(id = "delegate", long = "delegate", env = "PODCRED_DELEGATE", value_name = "NAMESPACE/SERVICEACCOUNT",
        value_delimiter = ',', value_parser = Checked(ServiceAccount::parse), help_heading = super::OWN)]
    pub delegates: Vec<ServiceAccount>,

    /// Cgroup of a node proxy that connects on behalf of pods, from inside their network namespaces, such as Istio's
    /// ztunnel (repeatable, or comma-separated)
    #[arg(id = "trusted-proxy-cgroup", long = "trusted-proxy-cgroup", env = "PODCRED_TRUSTED_PROXY_CGROUP", value_name = "PATH",
        value_delimiter = ',', value_parser = Checked(values::file), help_heading = super::OWN)]
    pub trusted_proxies: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Verify {
    Off,
    Audit,
    Enforce,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Unattributed {
    Allow,
    Deny,
}

impl Verification {
    pub fn unattributed(&self) -> Unattributed {
        self.unattributed.unwrap_or(match self.mode {
            Verify::Off | Verify::Audit => Unattributed::Allow,
            Verify::Enforce => Unattributed::Deny,
        })
    }
}

/// Where the node shows itself to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct NodePaths {
    /// Where the node's cgroup file systems are mounted
    #[arg(long, env = "PODCRED_CGROUP_ROOT", value_name = "PATH", default_value = "/sys/fs/cgroup",
        value_parser = Checked(values::file), help_heading = super::OWN)]
    pub cgroup_root: PathBuf,

    /// Parent cgroup of all pods, relative to the cgroup mount [default: found by its name]
    #[arg(long, env = "PODCRED_KUBEPODS_CGROUP", value_name = "PATH",
        value_parser = Checked(values::file), help_heading = super::OWN)]
    pub kubepods_cgroup: Option<PathBuf>,

    /// Where the node's own /proc is mounted; required on nodes with cgroup v1
    #[arg(long, env = "PODCRED_HOST_PROC", value_name = "PATH", default_value = "/proc",
        value_parser = Checked(values::file), help_heading = super::OWN)]
    pub host_proc: PathBuf,

    /// Folder on a bpf file system to pin the kernel programs in, so that they go on counting while the agent is down
    /// [default: they end with the agent]
    #[arg(long, env = "PODCRED_PIN", value_name = "PATH",
        value_parser = Checked(values::file), help_heading = super::OWN)]
    pub pin: Option<PathBuf>,
}

/// The node's own role, which pods reach at IMDS.
#[derive(Clone, Debug, Args)]
pub struct ImdsConfig {
    /// What to do with pods' connections to IMDS (hostNetwork pods excepted): count them, or refuse them as well, which
    /// does not stop pods with CAP_NET_RAW, because they can connect without connect()
    #[arg(id = "imds", long = "imds", env = "PODCRED_IMDS", value_name = "MODE", default_value = "observe",
        value_parser = Choice::<Imds>::default(), help_heading = super::OWN)]
    pub mode: Imds,

    /// Service account whose pods may reach IMDS all the same (repeatable, or comma-separated; requires --node-name and
    /// permission to watch pods)
    #[arg(id = "imds-except", long = "imds-except", env = "PODCRED_IMDS_EXCEPT", value_name = "NAMESPACE/SERVICEACCOUNT",
        value_delimiter = ',', value_parser = Checked(ServiceAccount::parse), help_heading = super::OWN)]
    pub except: Vec<ServiceAccount>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Imds {
    Observe,
    RefusePods,
}

/// What one pod may have of the agent, and whether the metrics tell pods apart.
#[derive(Clone, Copy, Debug, Args)]
pub struct PodLimits {
    /// Maximum open connections of one pod, up to 1,000; one more closes its longest-idle connection
    #[arg(id = "pod-connections", long = "pod-connections", env = "PODCRED_POD_CONNECTIONS", value_name = "N", default_value = "64",
        value_parser = values::number(1..=1_000_usize), help_heading = super::OWN)]
    pub connections: usize,

    /// Maximum requests of one pod that wait for an answer at the same time
    #[arg(id = "pod-waiting", long = "pod-waiting", env = "PODCRED_POD_WAITING", value_name = "N", default_value = "16",
        value_parser = values::number(1..=1_000_000_usize), help_heading = super::OWN)]
    pub waiting: usize,

    /// Maximum requests of one pod answered per second; further ones take turns
    #[arg(id = "pod-requests", long = "pod-requests", env = "PODCRED_POD_REQUESTS", value_name = "N", default_value = "1000",
        value_parser = values::number(1..=1_000_000_u32), help_heading = super::OWN)]
    pub requests: u32,

    /// Maximum bad tokens of one pod per second; beyond it, only tokens already known to be good are accepted
    #[arg(id = "pod-failures", long = "pod-failures", env = "PODCRED_POD_FAILURES", value_name = "N", default_value = "50",
        value_parser = values::number(1..=1_000_000_u32), help_heading = super::OWN)]
    pub failures: u32,

    /// Maximum verified tokens remembered per pod
    #[arg(id = "pod-tokens", long = "pod-tokens", env = "PODCRED_POD_TOKENS", value_name = "N", default_value = "4",
        value_parser = values::number(1..=10_000_usize), help_heading = super::OWN)]
    pub tokens: usize,

    /// Whether /metrics, which the whole VPC may be able to reach, has series for each pod
    #[arg(id = "pod-metrics", long = "pod-metrics", env = "PODCRED_POD_METRICS", value_name = "MODE", default_value = "on",
        value_parser = Choice::<Switch>::default(), help_heading = super::OWN)]
    pub metrics: Switch,

    /// Maximum number of pods with series of their own in /metrics
    #[arg(id = "pod-metrics-max", long = "pod-metrics-max", env = "PODCRED_POD_METRICS_MAX", value_name = "N", default_value = "500",
        value_parser = values::number(1..=100_000_usize), help_heading = super::OWN)]
    pub metrics_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}
