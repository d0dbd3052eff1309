//! The command line: what the official agent's chart passes, and podcred's own.
//!
//! Every value is checked while it is parsed, so that a [`ServerConfig`] from [`Cli::from_args`] needs no second look.

mod attribution;
mod duration;
mod sharing;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use self::attribution::{
    Imds, ImdsConfig, NodePaths, PodLimits, Switch, Unattributed, Verification, Verify,
};
pub use self::sharing::{Pattern, Sharing, SharingMode};
use self::values::{Checked, Choice};

const OFFICIAL: &str = "Flags of the official agent";
const OWN: &str = "Flags of podcred";

/// `podcred …`
#[derive(Clone, Debug, Parser)]
#[command(
    name = "podcred",
    version,
    about = "AWS credentials for the pods of an EKS node",
    // The official agent's flag library lets the last of two equal flags win, so charts append overrides.
    args_override_self = true,
    subcommand_required = true
)]
pub struct Cli {
    #[command(flatten)]
    pub log: LogConfig,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct LogConfig {
    /// Least severe level to log
    #[arg(
        short = 'v',
        long,
        global = true,
        env = "PODCRED_VERBOSITY",
        value_name = "LEVEL",
        default_value = "info",
        value_parser = Choice::<Verbosity>::default(),
        help_heading = OFFICIAL
    )]
    pub verbosity: Verbosity,

    /// Log format, for people (text) or machines (json)
    #[arg(
        long,
        global = true,
        env = "PODCRED_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        value_parser = Choice::<LogFormat>::default(),
        help_heading = OWN
    )]
    pub log_format: LogFormat,
}

/// The official agent's levels; its two above `error` would end the process and mean `error` here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Verbosity {
    #[value(alias = "fatal", alias = "panic")]
    Error,
    #[value(alias = "warning")]
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve credentials to the pods of this node
    Server(Box<ServerConfig>),
    /// Create the network device with the two link-local addresses that AWS SDKs use
    Initialize(InitializeConfig),
    /// Drop the running agent's cached credentials, for one service account or for all
    Flush(FlushConfig),
    /// Report how well this node can attribute callers, and how to fix what limits it
    #[command(after_help = DOCTOR_STATUS)]
    Doctor(DoctorConfig),
    /// Print the version
    Version,
}

/// `podcred server`, checked.
#[derive(Clone, Debug, Args)]
#[command(args_override_self = true)]
pub struct ServerConfig {
    /// Name of the EKS cluster this node belongs to
    #[arg(short = 'c', long, env = "PODCRED_CLUSTER_NAME", value_name = "NAME",
        value_parser = Checked(values::cluster_name), help_heading = OFFICIAL)]
    pub cluster_name: String,

    /// Port to serve credentials on (0: any free port)
    #[arg(short = 'p', long, env = "PODCRED_PORT", default_value = "80",
        value_parser = Checked(values::port), help_heading = OFFICIAL)]
    pub port: u16,

    /// Port for /healthz and /readyz, on localhost (0: any free port)
    #[arg(long, env = "PODCRED_PROBE_PORT", value_name = "PORT", default_value = "2703",
        value_parser = Checked(values::port), help_heading = OFFICIAL)]
    pub probe_port: u16,

    /// Address for /metrics
    #[arg(long, env = "PODCRED_METRICS_ADDRESS", value_name = "IP", default_value = "0.0.0.0",
        value_parser = Checked(values::ip_address), help_heading = OFFICIAL)]
    pub metrics_address: IpAddr,

    /// Port for /metrics (0: any free port)
    #[arg(long, env = "PODCRED_METRICS_PORT", value_name = "PORT", default_value = "2705",
        value_parser = Checked(values::port), help_heading = OFFICIAL)]
    pub metrics_port: u16,

    /// Address to serve credentials on (repeatable, or comma-separated)
    #[arg(short = 'b', long, env = "PODCRED_BIND_HOSTS", value_name = "IP", value_delimiter = ',',
        default_value = "169.254.170.23,[fd00:ec2::23]",
        value_parser = Checked(values::ip_address), help_heading = OFFICIAL)]
    pub bind_hosts: Vec<IpAddr>,

    /// Age at which credentials are renewed at the latest (0 turns caching off)
    #[arg(long = "max-credential-retention-before-renewal",
        env = "PODCRED_MAX_CREDENTIAL_RETENTION_BEFORE_RENEWAL", value_name = "DURATION", default_value = "3h",
        value_parser = Checked(values::any_duration), help_heading = OFFICIAL)]
    pub max_credential_retention: Duration,

    /// Maximum number of cached role keys; those with live pods are kept beyond it (0 turns caching off)
    #[arg(long, env = "PODCRED_MAX_CACHE_SIZE", value_name = "N", default_value = "2000",
        value_parser = values::number(0..=10_000_000_usize), help_heading = OFFICIAL)]
    pub max_cache_size: usize,

    /// Maximum renewals per second to EKS Auth
    #[arg(long, env = "PODCRED_MAX_SERVICE_QPS", value_name = "N", default_value = "3",
        value_parser = values::number(1..=10_000_u32), help_heading = OFFICIAL)]
    pub max_service_qps: u32,

    /// Reread the shared AWS credentials file every 60 s (for hybrid nodes)
    // `--rotate-credentials true` is what the official chart writes. The official agent reads the second word as a
    // stray argument, so there `--rotate-credentials false` turns rotation on; here it does what it says.
    #[arg(long, env = "PODCRED_ROTATE_CREDENTIALS", value_name = "BOOL", action = ArgAction::Set,
        num_args = 0..=1, default_value = "false", default_missing_value = "true",
        value_parser = Checked(values::boolean), help_heading = OFFICIAL)]
    pub rotate_credentials: bool,

    /// EKS Auth endpoint to use instead of the region's own
    #[arg(long, env = "PODCRED_ENDPOINT", value_name = "URL",
        value_parser = Checked(values::trusted_url), help_heading = OFFICIAL)]
    pub endpoint: Option<String>,

    /// The cluster's token issuer [default: the issuer of the agent's own token, see --token-file]
    #[arg(long, env = "PODCRED_ISSUER", value_name = "URL",
        value_parser = Checked(values::issuer), help_heading = OWN)]
    pub issuer: Option<String>,

    /// The agent's own projected token, which names the issuer if --issuer is not set
    #[arg(long, env = "PODCRED_TOKEN_FILE", value_name = "PATH",
        default_value = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount/eks-pod-identity-token",
        value_parser = Checked(values::file), help_heading = OWN)]
    pub token_file: PathBuf,

    /// URL of the issuer's keys, for nodes that cannot reach the issuer [default: ISSUER/keys]
    #[arg(long, env = "PODCRED_JWKS_URL", value_name = "URL",
        value_parser = Checked(values::trusted_url), help_heading = OWN)]
    pub jwks_url: Option<String>,

    #[command(flatten)]
    pub sharing: Sharing,

    /// Age from which a new pod causes its service account's credentials to be renewed, so that a changed association applies
    #[arg(long, env = "PODCRED_REVALIDATE_AFTER", value_name = "DURATION", default_value = "60s",
        value_parser = values::bounded(Duration::from_secs(1), Duration::MAX,
            "a shorter interval would call EKS Auth for every new pod; a long one, such as 24h, turns revalidation off"),
        help_heading = OWN)]
    pub revalidate_after: Duration,

    /// Maximum time a request waits for EKS Auth before it gets a 503
    #[arg(long, env = "PODCRED_EKS_AUTH_WAIT", value_name = "DURATION", default_value = "1.8s",
        value_parser = values::bounded(Duration::from_millis(1), Duration::from_secs(10),
            "give 1ms to 10s; boto3 hangs up after 2 s, so a longer wait helps only clients that wait longer themselves"),
        help_heading = OWN)]
    pub eks_auth_wait: Duration,

    /// Number of threads that serve requests
    #[arg(long, env = "PODCRED_WORKERS", value_name = "N", default_value = "2",
        value_parser = values::number(1..=256_usize), help_heading = OWN)]
    pub workers: usize,

    #[command(flatten)]
    pub verification: Verification,

    #[command(flatten)]
    pub node: NodePaths,

    #[command(flatten)]
    pub imds: ImdsConfig,

    #[command(flatten)]
    pub pod_limits: PodLimits,

    /// Kubernetes name of this node; sent to EKS Auth, and compared with the node that a token names
    #[arg(long, env = "PODCRED_NODE_NAME", value_name = "NAME",
        value_parser = Checked(values::identifier), help_heading = OWN)]
    pub node_name: Option<String>,

    /// URL of the cluster's API server, for the flags that require it [default: from the pod's environment]
    #[arg(long, env = "PODCRED_API_SERVER", value_name = "URL",
        value_parser = Checked(values::trusted_url), help_heading = OWN)]
    pub api_server: Option<String>,

    /// Key of a taint to remove from this node when the agent is ready to serve [default: none]
    #[arg(long, env = "PODCRED_STARTUP_TAINT", value_name = "KEY",
        value_parser = Checked(values::taint_key), help_heading = OWN)]
    pub startup_taint: Option<String>,

    /// EC2 instance ID of this node, sent to EKS Auth
    #[arg(long, env = "PODCRED_INSTANCE_ID", value_name = "ID",
        value_parser = Checked(values::identifier), help_heading = OWN)]
    pub instance_id: Option<String>,

    /// Availability zone of this node, sent to EKS Auth
    #[arg(long, env = "PODCRED_ZONE", value_name = "ZONE",
        value_parser = Checked(values::identifier), help_heading = OWN)]
    pub zone: Option<String>,

    /// Unix socket for `podcred flush`
    #[arg(long, env = "PODCRED_CONTROL_SOCKET", value_name = "PATH", default_value = CONTROL_SOCKET,
        value_parser = Checked(values::socket_path), help_heading = OWN)]
    pub control_socket: PathBuf,

    /// Maximum number of open connections from pods
    #[arg(long, env = "PODCRED_MAX_CONNECTIONS", value_name = "N", default_value = "4096",
        value_parser = values::number(1..=1_000_000_usize), help_heading = OWN)]
    pub max_connections: usize,

    /// Maximum time for running requests to finish after SIGTERM
    #[arg(long, env = "PODCRED_SHUTDOWN_GRACE", value_name = "DURATION", default_value = "10s",
        value_parser = values::bounded(Duration::ZERO, Duration::from_secs(600),
            "give 0 to 10m, and less than the pod's terminationGracePeriodSeconds"),
        help_heading = OWN)]
    pub shutdown_grace: Duration,
}

const CONTROL_SOCKET: &str = "/run/podcred/control.sock";

/// `podcred initialize`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(args_override_self = true)]
pub struct InitializeConfig {
    /// Whether to set up fd00:ec2::23 too (auto: if the kernel has IPv6)
    #[arg(long, env = "PODCRED_IPV6", value_name = "MODE", default_value = "auto",
        value_parser = Choice::<Ipv6>::default())]
    pub ipv6: Ipv6,

    /// Remove the device with its addresses and routes, instead of creating it
    #[arg(long)]
    pub remove: bool,

    /// With --remove: also remove what `podcred server --pin` left here, so that pods are no longer refused at IMDS
    #[arg(long, env = "PODCRED_PIN", value_name = "PATH", value_parser = Checked(values::file))]
    pub pin: Option<PathBuf>,

    /// Stay until SIGTERM when done; with --remove, first wait until no agent serves on the device (for a DaemonSet)
    #[arg(long)]
    pub stay: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ipv6 {
    Auto,
    On,
    Off,
}

/// `podcred flush`, checked.
#[derive(Clone, Debug, Args)]
#[command(args_override_self = true)]
pub struct FlushConfig {
    /// Service account whose credentials to drop [default: all]
    #[arg(value_name = "NAMESPACE/SERVICEACCOUNT", value_parser = Checked(ServiceAccount::parse))]
    pub service_account: Option<ServiceAccount>,

    /// Unix socket of the running agent
    #[arg(long, env = "PODCRED_CONTROL_SOCKET", value_name = "PATH", default_value = CONTROL_SOCKET,
        value_parser = Checked(values::socket_path))]
    pub control_socket: PathBuf,
}

/// `podcred doctor`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(args_override_self = true)]
pub struct DoctorConfig {
    #[command(flatten)]
    pub node: NodePaths,
}

const DOCTOR_STATUS: &str = "Exit status: 0 if `--verify enforce` is possible on this node; 1 if it is not; 2 if this \
    cannot be determined yet because the kubelet has not created its cgroups, or if the command line is wrong.";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    pub namespace: String,
    pub name: String,
}

impl ServiceAccount {
    /// Reads `NAMESPACE/SERVICEACCOUNT`; the error continues a sentence that starts with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (namespace, name) = sharing::split_service_account(text, false)?;
        Ok(ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl Cli {
    /// Reads a whole command line with its program name, and the environment. `clap::Error::exit` tells the user.
    pub fn from_args(args: Vec<OsString>) -> Result<Self, clap::Error> {
        let mut command = command();
        let matches = command.try_get_matches_from_mut(normalise_args(args))?;
        let cli = Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))?;
        if let Command::Server(config) = &cli.command {
            config.check_listeners().and_then(|()| config.check_attribution()).map_err(|problem| {
                clap::Error::raw(ErrorKind::ValueValidation, problem + "\n").with_cmd(&command)
            })?;
        }
        Ok(cli)
    }
}

/// As with the official agent's flag library, the word after a flag is its value even when it starts with a dash:
/// `--port -1` is a bad port, not an unknown flag.
fn command() -> clap::Command {
    Cli::command().mut_subcommand("server", |server| {
        server.mut_args(|arg| {
            let needs_value = arg.get_action().takes_values() && arg.get_id() != "rotate_credentials";
            arg.allow_hyphen_values(needs_value)
        })
    })
}

impl ServerConfig {
    /// Off where either of the official agent's two switches is at zero.
    pub fn caching(&self) -> bool {
        self.max_cache_size > 0 && !self.max_credential_retention.is_zero()
    }

    /// The node whose pods are watched, where a flag names service accounts.
    pub fn watched_node(&self) -> Option<&str> {
        let named = !self.verification.delegates.is_empty() || !self.imds.except.is_empty();
        self.node_name.as_deref().filter(|_| named)
    }

    fn check_attribution(&self) -> Result<(), String> {
        if self.startup_taint.is_some() && self.node_name.is_none() {
            return Err("--startup-taint requires --node-name: the node to remove the taint from".to_owned());
        }
        let named = [
            ("--delegate", !self.verification.delegates.is_empty()),
            ("--imds-except", !self.imds.except.is_empty()),
        ];
        if let Some((flag, _)) = named.iter().find(|(_, named)| *named && self.node_name.is_none()) {
            return Err(format!(
                "{flag} requires --node-name, to find the pods of this node that run as that service account"
            ));
        }
        if self.imds.mode == Imds::RefusePods && self.verification.mode == Verify::Off {
            return Err(
                "--imds refuse-pods requires the kernel programs, which --verify off does not load: use --verify audit"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Two listeners on one address and port would let only the first of them start, and not say why.
    fn check_listeners(&self) -> Result<(), String> {
        let mut taken = vec![
            ("--probe-port", IpAddr::from(Ipv4Addr::LOCALHOST), self.probe_port),
            ("--metrics-port", self.metrics_address, self.metrics_port),
        ];
        taken.extend(self.bind_hosts.iter().map(|host| ("--port", *host, self.port)));
        for (i, (flag, host, port)) in taken.iter().enumerate() {
            for (other_flag, other_host, other_port) in &taken[..i] {
                // Listeners on IPv6 take no IPv4 connections, so :: and 0.0.0.0 go together.
                let one_family = host.is_ipv4() == other_host.is_ipv4();
                let same_host = host == other_host
                    || one_family && (host.is_unspecified() || other_host.is_unspecified());
                if *port == 0 || port != other_port || !same_host {
                    continue;
                }
                if flag == other_flag {
                    return Err(format!(
                        "--bind-hosts: {host} and {other_host} cannot both be served: name each address once, and \
                         none beside an unspecified one (0.0.0.0, ::)"
                    ));
                }
                return Err(format!(
                    "{flag}: port {port} on {host} is already used by {other_flag} on {other_host}: give them different ports"
                ));
            }
        }
        Ok(())
    }
}

/// The official chart starts `/go-runner /eks-pod-identity-agent server …`, where go-runner is a launcher that runs
/// the rest of its command line. podcred's image holds itself under both names, so the launcher's is dropped.
pub fn normalise_args(mut args: Vec<OsString>) -> Vec<OsString> {
    let launcher = args.first().and_then(|arg| Path::new(arg).file_name()).is_some_and(|n| n == "go-runner");
    if launcher && args.len() > 1 {
        args.remove(0);
    }
    args
}

/// `podcred server`'s flags as a Markdown table, for docs/reference.md: flag, environment variable, default, meaning.
pub fn flag_table() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut table = String::from("| flag | environment variable | default | meaning |\n|---|---|---|---|\n");
    let server = cli.find_subcommand("server").into_iter().flat_map(clap::Command::get_arguments);
    for arg in server.filter(|arg| arg.get_env().is_some()) {
        let cell = |text: String| text.replace('|', "\\|");
        let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
        table.push_str(&format!(
            "| {} | {} | {} | {} |\n",
            flag_names(arg),
            code(&arg.get_env().unwrap_or_default().to_string_lossy()),
            code(&arg.get_default_values().join("".as_ref()).to_string_lossy()),
            cell(arg.get_help().map(ToString::to_string).unwrap_or_default() + &choices(arg)),
        ));
    }
    table
}

fn flag_names(arg: &Arg) -> String {
    let long = arg.get_long().unwrap_or_default();
    let value = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
    let short = arg.get_short().map(|c| format!(", `-{c}`")).unwrap_or_default();
    format!("`--{long} {value}`{short}")
}

fn choices(arg: &Arg) -> String {
    let names: Vec<_> = arg.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect();
    if names.is_empty() { String::new() } else { format!(". One of: {}", names.join(", ")) }
}
