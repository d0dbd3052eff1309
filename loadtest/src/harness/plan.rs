//! What a scenario is, before anything of it happens: its pods, what is done to them and when, and what must come of it.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use super::manners::Client;
use crate::eks::{Outage, Settings};

/// How large a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) pods: u32,
    pub(super) roles: u32,
    /// How long pods want credentials.
    pub(super) duration: Duration,
    /// The time in which pods start, or that of one burst.
    pub(super) within: Duration,
    /// How long a pod waits until it wants them again, where it does so at a constant rate.
    pub(super) every: Duration,
}

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) groups: Vec<String>,
    pub(super) turns: Turns,
    pub(super) visits: Vec<Visit>,
    pub(super) steps: Vec<(Duration, Step)>,
    pub(super) roles: u32,
    pub(super) duration: Duration,
    pub(super) eks: Settings,
    pub(super) agent_args: Vec<String>,
    /// Whether the run begins with an agent that podcred is to follow.
    pub(super) begins_with_stand_in: bool,
    pub(super) tokens: TokenLife,
    /// A 200 with less life left than this is wrong.
    pub(super) least_life: Duration,
    /// How many times faster than in the world credentials age: SDKs' thresholds shrink by as much.
    pub(super) compression: f64,
    /// As `--expect` takes them.
    pub(super) expectations: Vec<String>,
    pub(super) findings: Vec<Finding>,
    pub(super) notes: Vec<String>,
}

/// In turns of this length, what is wanted is counted in one of these groups after the other.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turns {
    pub(super) each: Duration,
    pub(super) groups: &'static [usize],
}

/// What one goose user does: it is one pod, from when it starts until it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visit {
    /// Where two visits have the same number they are of one pod.
    pub(super) pod: u32,
    pub(super) group: usize,
    /// Counted in the plan's [`Turns`] instead.
    pub(super) by_turns: bool,
    pub(super) role: u32,
    pub(super) client: Client,
    pub(super) start: Duration,
    pub(super) end: Duration,
    /// Whether the pod itself is gone when it ends: its cgroup, and what its token is worth.
    pub(super) dies: bool,
    pub(super) pace: Pace,
    /// The pod whose token it presents as its own.
    pub(super) thief_of: Option<u32>,
    /// Roles before this change of its association are wrong.
    pub(super) generation: u32,
}

/// When credentials are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// When the pod starts.
    Once,
    /// When it starts, and at a constant rate from then on, however long the answers take.
    Every(Duration),
    /// When it starts, and as soon as they were given.
    AtOnce,
    /// When it starts, and when the SDK refreshes what it has.
    Refresh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenLife {
    /// A day.
    Usual,
    /// This long; the pod has a new one after 0.6 to 0.8 of it, as from the kubelet.
    Short(Duration),
}

/// What is done to what the pods depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    EksAuth(Outage),
    Issuer(Outage),
    /// Gives every association its next role.
    ChangeAssociations,
    StopAgent,
    StartAgent,
    /// podcred takes the place of the agent before it.
    ChangeToPodcred,
    /// That agent takes podcred's.
    ChangeBack,
    /// Nothing happens; the time is of interest.
    Say(&'static str),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outage = |f: &mut fmt::Formatter<'_>, what: &str, outage: Outage| match outage {
            Outage::Off => write!(f, "{what} is back"),
            Outage::Refuse => write!(f, "{what} answers 503"),
            Outage::Hang => write!(f, "{what} does not answer"),
            Outage::Reset => write!(f, "{what} resets connections"),
        };
        match self {
            Step::EksAuth(kind) => outage(f, "EKS Auth", *kind),
            Step::Issuer(kind) => outage(f, "the issuer", *kind),
            Step::ChangeAssociations => f.write_str("every association gets another role"),
            Step::StopAgent => f.write_str("the agent is told to stop"),
            Step::StartAgent => f.write_str("the agent is started again"),
            Step::ChangeToPodcred => f.write_str("podcred takes the other agent's place"),
            Step::ChangeBack => f.write_str("the other agent takes podcred's place"),
            Step::Say(what) => f.write_str(what),
        }
    }
}

/// What must come of a run besides its figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// EKS Auth is called no more after this.
    NoCallsAfter(Duration),
    /// After this no second has more EKS Auth calls than so many times their mean.
    CallsSpread { after: Duration, times: u32 },
    /// The agent's log names each pod that presented a token of another, and whose it was.
    ThievesNamed,
}

impl Plan {
    /// Nothing happens, and everything is as on a node of today.
    pub(super) fn new(size: Size, groups: &[&str]) -> Plan {
        Plan {
            groups: groups.iter().map(|&group| group.to_owned()).collect(),
            turns: Turns::default(),
            visits: Vec::new(),
            steps: Vec::new(),
            roles: size.roles,
            duration: size.duration,
            eks: Settings::default(),
            agent_args: Vec::new(),
            begins_with_stand_in: false,
            tokens: TokenLife::Usual,
            least_life: Duration::from_secs(15 * 60),
            compression: 1.0,
            expectations: Vec::new(),
            findings: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(super) fn expect(&mut self, conditions: &[&str]) {
        self.expectations.extend(conditions.iter().map(|&condition| condition.to_owned()));
    }

    /// Credentials live so long instead of six hours, and everything that depends on it shrinks with them.
    pub(super) fn compress(&mut self, life: Duration) {
        const USUAL: Duration = Duration::from_secs(6 * 3600);
        self.compression = USUAL.div_duration_f64(life);
        self.eks.credential_life_seconds = life.as_secs();
        self.least_life = self.least_life.div_f64(self.compression);
        self.notes.push(format!(
            "Credentials live {} s instead of 6 h: time runs {:.0} times as fast.",
            life.as_secs(),
            self.compression
        ));
    }

    pub(super) fn pods(&self) -> u32 {
        self.visits.iter().map(|visit| visit.pod + 1).max().unwrap_or(0)
    }

    /// Roles that pods have: fewer than there are where there are more of them than pods.
    pub(super) fn roles_of_pods(&self) -> usize {
        self.visits.iter().map(|visit| visit.role).collect::<HashSet<_>>().len()
    }

    /// Of the visits with a constant rate, as if all were there at the same time.
    pub(super) fn wants_per_second(&self) -> f64 {
        let rate = |visit: &Visit| match visit.pace {
            Pace::Every(period) => 1.0 / period.as_secs_f64(),
            Pace::Once | Pace::AtOnce | Pace::Refresh => 0.0,
        };
        self.visits.iter().map(rate).sum()
    }

    /// The groups that a visit's wants are counted in.
    pub(super) fn groups_of<'a>(&self, visit: &'a Visit) -> &'a [usize] {
        if visit.by_turns { self.turns.groups } else { std::slice::from_ref(&visit.group) }
    }

    /// The one that a want of this moment is counted in.
    pub(super) fn group_at(&self, visit: &Visit, wanted: Duration) -> usize {
        if !visit.by_turns {
            return visit.group;
        }
        let Turns { each, groups } = self.turns;
        groups[wanted.div_duration_f64(each) as usize % groups.len()]
    }

    /// What the target must be for this.
    pub(super) fn needs_own_agent(&self) -> bool {
        let usual = self.eks == Settings::default() && self.agent_args.is_empty();
        let done = self.steps.iter().any(|(_, step)| !matches!(step, Step::Say(_)));
        done || !usual || !self.findings.is_empty() || self.tokens != TokenLife::Usual
    }
}

impl Visit {
    /// A pod that lives through the run.
    pub(super) fn new(
        pod: u32,
        role: u32,
        client: Client,
        start: Duration,
        end: Duration,
        pace: Pace,
    ) -> Visit {
        Visit {
            pod,
            group: 0,
            by_turns: false,
            role,
            client,
            start,
            end,
            dies: false,
            pace,
            thief_of: None,
            generation: 0,
        }
    }

    pub(super) fn in_group(self, group: usize) -> Visit {
        Visit { group, ..self }
    }

    pub(super) fn that_dies(self) -> Visit {
        Visit { dies: true, ..self }
    }
}
