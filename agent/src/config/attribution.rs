//! Who is calling, what that is used for, and what one pod may cost the others.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ServiceAccount;
use super::values::{self, Checked, Choice};

/// `--verify` and what belongs to it.
#[derive(Clone, Debug, Args)]
pub struct Verification {
    /// What the kernel's word on who is calling is used for: nothing, the log and metrics, or refusal
    #[arg(id = "verify", long = "verify", env = "PODCRED_VERIFY", value_name = "MODE", default_value = "audit",
        value_parser = Choice::<Verify>::default(), help_heading = super::OWN)]
    pub mode: Verify,

    /// What happens to connections that the kernel cannot tell the pod of [default: allow in audit, deny in enforce]
    #[arg(id = "verify-unattributed", long = "verify-unattributed", env = "PODCRED_VERIFY_UNATTRIBUTED", value_name = "WHAT",
        value_parser = Choice::<Unattributed>::default(), help_heading = super::OWN)]
    unattributed: Option<Unattributed>,

    /// Service account whose pods may present the tokens of other pods, such as a CSI driver's (repeatable, or
    /// comma-separated; needs --node-name and leave to watch pods)
    #[arg(id = "delegate", long = "delegate", env = "PODCRED_DELEGATE", value_name = "NAMESPACE/SERVICEACCOUNT",
        value_delimiter = ',', value_parser = Checked(ServiceAccount::parse), help_heading = super::OWN)]
    pub delegates: Vec<ServiceAccount>,

    /// Cgroup of a node proxy that connects for pods from inside their network namespaces, such as Istio's ztunnel
    /// (repeatable, or comma-separated)
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

    /// The cgroup that all pods are below, from the cgroup mount on [default: found by its name]
    #[arg(long, env = "PODCRED_KUBEPODS_CGROUP", value_name = "PATH",
        value_parser = Checked(values::file), help_heading = super::OWN)]
    pub kubepods_cgroup: Option<PathBuf>,

    /// Where the node's own /proc is; nodes with cgroup v1 need it
    #[arg(long, env = "PODCRED_HOST_PROC", value_name = "PATH", default_value = "/proc",
        value_parser = Checked(values::file), help_heading = super::OWN)]
    pub host_proc: PathBuf,

    /// Folder on a bpf file system that keeps the kernel programs, so that they count on while the agent is down
    /// [default: they end with the agent]
    #[arg(long, env = "PODCRED_PIN", value_name = "PATH",
        value_parser = Checked(values::file), help_heading = super::OWN)]
    pub pin: Option<PathBuf>,
}

/// The node's own role, which pods reach at IMDS.
#[derive(Clone, Debug, Args)]
pub struct ImdsConfig {
    /// What happens to pods' connections to IMDS (hostNetwork pods excepted): they are counted, or refused too.
    /// Refusing is no boundary against pods with CAP_NET_RAW, which need no connect() for a connection
    #[arg(id = "imds", long = "imds", env = "PODCRED_IMDS", value_name = "MODE", default_value = "observe",
        value_parser = Choice::<Imds>::default(), help_heading = super::OWN)]
    pub mode: Imds,

    /// Service account whose pods reach IMDS all the same (repeatable, or comma-separated; needs --node-name and leave
    /// to watch pods)
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
    /// Most connections of one pod, up to 1,000; at that number its own longest idle one closes
    #[arg(id = "pod-connections", long = "pod-connections", env = "PODCRED_POD_CONNECTIONS", value_name = "N", default_value = "64",
        value_parser = values::number(1..=1_000_usize), help_heading = super::OWN)]
    pub connections: usize,

    /// Most requests of one pod that wait for an answer at one time
    #[arg(id = "pod-waiting", long = "pod-waiting", env = "PODCRED_POD_WAITING", value_name = "N", default_value = "16",
        value_parser = values::number(1..=1_000_000_usize), help_heading = super::OWN)]
    pub waiting: usize,

    /// Most requests of one pod that are answered in a second; those beyond it take turns
    #[arg(id = "pod-requests", long = "pod-requests", env = "PODCRED_POD_REQUESTS", value_name = "N", default_value = "1000",
        value_parser = values::number(1..=1_000_000_u32), help_heading = super::OWN)]
    pub requests: u32,

    /// Most tokens of one pod that are found bad in a second; then only tokens known to be good are looked at
    #[arg(id = "pod-failures", long = "pod-failures", env = "PODCRED_POD_FAILURES", value_name = "N", default_value = "50",
        value_parser = values::number(1..=1_000_000_u32), help_heading = super::OWN)]
    pub failures: u32,

    /// Most verified tokens that are remembered for one pod
    #[arg(id = "pod-tokens", long = "pod-tokens", env = "PODCRED_POD_TOKENS", value_name = "N", default_value = "4",
        value_parser = values::number(1..=10_000_usize), help_heading = super::OWN)]
    pub tokens: usize,

    /// Whether /metrics, which the whole VPC may reach, says which pod uses what
    #[arg(id = "pod-metrics", long = "pod-metrics", env = "PODCRED_POD_METRICS", value_name = "MODE", default_value = "on",
        value_parser = Choice::<Switch>::default(), help_heading = super::OWN)]
    pub metrics: Switch,

    /// Most pods that /metrics tells apart
    #[arg(id = "pod-metrics-max", long = "pod-metrics-max", env = "PODCRED_POD_METRICS_MAX", value_name = "N", default_value = "500",
        value_parser = values::number(1..=100_000_usize), help_heading = super::OWN)]
    pub metrics_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}
