//! `podcred doctor`: what this node can do for attribution, in words that an operator can act on.
//!
//! It looks as the server would, from the same container, and tries what the server would try: for a moment the kernel
//! programs are attached. It changes nothing that stays.

mod checks;
#[cfg(test)]
mod tests;

use std::fmt;
use std::process::ExitCode;

use crate::attribute::cgroup::Cgroups;
use crate::attribute::inet_diag::InetDiag;
use crate::attribute::proc::HostProc;
use crate::attribute::{Attribution, Settings, choose, find, load, nowhere, try_each};
use crate::config::{DoctorConfig, Imds, NodePaths};

/// What was looked at, and what comes of it.
#[derive(Debug)]
pub struct Report {
    items: Vec<Item>,
    verdict: Verdict,
}

/// One line of the report.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    state: State,
    name: &'static str,
    /// What was found, and where it is not as it should be, what to do.
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// Podcred serves, with less than it could have.
    Degraded,
    /// `--verify enforce` is impossible for this.
    Broken,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// `--verify enforce` would work.
    Enforce,
    /// It would not; what callers would be known by, and why it is no more than that.
    AuditBy { source: &'static str, why: String },
    /// The kubelet's cgroups are not there yet.
    TooEarly,
}

pub fn run(config: &DoctorConfig) -> Report {
    let paths = &config.node;
    let kernel = checks::Kernel::running();
    let mut items = vec![
        checks::kernel(&kernel),
        checks::btf(),
        checks::capabilities(checks::effective_capabilities()),
        checks::locked_memory(&kernel),
        checks::bpf_file_system(paths.pin.as_deref()),
    ];
    let layout = find(paths);
    items.push(checks::layout(&layout));
    items.push(checks::cgroup_namespace(&layout));
    let verdict = match layout {
        Ok(layout) => {
            items.push(checks::kubepods(&layout, Cgroups::open(&layout.mount, &layout.kubepods)));
            items.push(checks::own_cgroup(&layout));
            // Pins are left to the agent: they would outlive this look.
            let paths = NodePaths { pin: None, ..paths.clone() };
            let settings = Settings { paths, trusted_proxies: Vec::new(), imds: Imds::Observe, log: false };
            let loaded = load(&settings, &layout);
            items.extend(checks::programs(match &loaded {
                Ok(probe) => Ok(probe.tried()),
                Err(_) => try_each(&settings, &layout),
            }));
            items.push(checks::host_proc(&layout, &HostProc::open(&settings.paths.host_proc, &layout)));
            Verdict::of(&choose(&settings, layout, loaded))
        }
        Err(problem) if problem.may_pass() => Verdict::TooEarly,
        Err(problem) => Verdict::of(&nowhere(&problem)),
    };
    items.push(checks::socket_diagnosis(&InetDiag::open()));
    Report { items, verdict }
}

impl Report {
    /// 0: enforce is possible. 1: it is not. 2: it cannot be told yet.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.verdict {
            Verdict::Enforce => 0,
            Verdict::AuditBy { .. } => 1,
            Verdict::TooEarly => 2,
        })
    }
}

impl Verdict {
    fn of(attribution: &Attribution) -> Self {
        if attribution.can_enforce() {
            return Verdict::Enforce;
        }
        let why = attribution.problem().unwrap_or_default().to_owned();
        Verdict::AuditBy { source: attribution.source(), why }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Item { state, name, text } in &self.items {
            writeln!(f, "{:<9} {name:<18} {text}", state.label())?;
        }
        writeln!(f)?;
        write!(f, "{}", self.verdict)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Enforce => {
                write!(f, "The kernel programs attribute callers: --verify enforce is possible.")
            }
            Verdict::AuditBy { source: "none", why } => {
                write!(f, "Callers cannot be attributed, and --verify enforce is impossible: {why}")
            }
            Verdict::AuditBy { source, why } => {
                write!(
                    f,
                    "Callers are attributed by {source} only, and --verify enforce is impossible: {why}"
                )
            }
            Verdict::TooEarly => {
                write!(
                    f,
                    "Not known yet: the kubelet has not created its cgroups, which attribution depends on."
                )
            }
        }
    }
}

impl State {
    fn label(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Degraded => "degraded",
            State::Broken => "broken",
        }
    }
}
