//! What the demo shows.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use super::Role;
use crate::eks::CallCounts;
use crate::report::{Counts, table};
use crate::sdk::Sdk;

#[derive(Debug)]
pub(super) struct PodOutcome {
    /// `namespace/serviceaccount`
    pub(super) role: String,
    pub(super) sdk: Sdk,
    pub(super) name: String,
    /// How many milliseconds its SDK took, and the session it got.
    pub(super) result: Result<(u64, String)>,
}

#[derive(Debug)]
pub(super) struct Outcome<'a> {
    pub(super) roles: &'a [Role],
    pub(super) pods: &'a [PodOutcome],
    pub(super) calls: &'a CallCounts,
    pub(super) took: Duration,
}

const HEADER: [&str; 7] =
    ["service account", "pods", "with the right role", "EKS Auth calls", "one per pod", "p50 ms", "max ms"];

impl Outcome<'_> {
    /// One check per pod, and one per role for the number of calls.
    pub(super) fn print(&self) -> Counts {
        let (mut counts, mut problems) = (Counts::default(), String::new());
        let mut rows = Vec::new();
        for role in self.roles {
            let name = format!("{}/{}", role.namespace, role.account);
            let calls = self.calls.by_role.get(&name).copied().unwrap_or_default();
            let pods: Vec<&PodOutcome> = self.pods.iter().filter(|pod| pod.role == name).collect();
            rows.push(role_row(&name, &pods, calls));
            counts.add(check(
                calls == 1,
                || format!("{name}: {calls} EKS Auth calls, not one"),
                &mut problems,
            ));
            for pod in pods {
                let says = |error| format!("{} ({}): {error:#}", pod.name, pod.sdk.title());
                let failure = pod.result.as_ref().err().map(says);
                counts.add(check(failure.is_none(), || failure.unwrap_or_default(), &mut problems));
            }
        }
        let all: Vec<&PodOutcome> = self.pods.iter().collect();
        rows.push(role_row("all", &all, self.calls.total));
        println!("\n{}\n{}", table(&HEADER, &rows), sdk_table(self.pods));
        self.print_sessions();
        println!("\nTimes are of the SDK's first fetch in a new pod (of the aws CLI: of a whole command).");
        println!(
            "{} pods in {:.0} s; EKS Auth calls: {} with podcred, {} by an agent that caches per pod.",
            all.len(),
            self.took.as_secs_f32(),
            self.calls.total,
            all.len()
        );
        println!("{problems}");
        counts
    }

    /// Whose credentials they are: the session's name is that of the pod that fetched first.
    fn print_sessions(&self) {
        println!("Sessions handed out, as STS tells them:");
        let mut sessions: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for pod in self.pods {
            if let Ok((_, session)) = &pod.result {
                *sessions.entry((&pod.role, session)).or_default() += 1;
            }
        }
        for ((role, session), pods) in sessions {
            println!("  {role}: {session} to {pods} pods");
        }
    }
}

fn check(good: bool, otherwise: impl FnOnce() -> String, problems: &mut String) -> Counts {
    if good {
        return Counts { passed: 1, ..Counts::default() };
    }
    *problems += &format!("\nFAILED {}\n", otherwise());
    Counts { failed: 1, ..Counts::default() }
}

fn role_row(name: &str, pods: &[&PodOutcome], calls: u64) -> Vec<String> {
    let (served, times) = times(pods);
    let cells = [pods.len().to_string(), served, calls.to_string(), pods.len().to_string()];
    [&[name.to_owned()], &cells[..], &times].concat()
}

fn sdk_table(pods: &[PodOutcome]) -> String {
    let rows: Vec<Vec<String>> = Sdk::ALL
        .into_iter()
        .filter_map(|sdk| {
            let pods: Vec<&PodOutcome> = pods.iter().filter(|pod| pod.sdk == sdk).collect();
            let (served, times) = times(&pods);
            let name = sdk.title().to_owned();
            (!pods.is_empty()).then(|| [&[name, pods.len().to_string(), served], &times[..]].concat())
        })
        .collect();
    table(&["SDK", "pods", "with the right role", "p50 ms", "max ms"], &rows)
}

/// How many got what they should, and the median and longest time of those.
fn times(pods: &[&PodOutcome]) -> (String, [String; 2]) {
    let mut times: Vec<u64> = pods.iter().filter_map(|pod| Some(pod.result.as_ref().ok()?.0)).collect();
    times.sort_unstable();
    let shown = |time: Option<&u64>| time.map_or_else(|| "–".to_owned(), u64::to_string);
    (times.len().to_string(), [shown(times.get(times.len() / 2)), shown(times.last())])
}
