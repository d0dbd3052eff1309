//! Random histories against a model that knows only this: what EKS Auth handed out for a service account since the
//! last flush, and until when it is valid.

use std::collections::HashMap;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Ask { service_account: u8, pod: u8 },
    AskTogether { service_account: u8, pods: u8 },
    Pass { seconds: u64 },
    EksAuth { mood: Mood },
    Flush { service_account: Option<u8> },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Works,
    Down,
    Throttles,
}

fn step() -> impl Strategy<Value = Step> {
    let mood = prop_oneof![Just(Mood::Works), Just(Mood::Works), Just(Mood::Down), Just(Mood::Throttles)];
    prop_oneof![
        4 => (0..3_u8, 0..4_u8).prop_map(|(service_account, pod)| Step::Ask { service_account, pod }),
        2 => (0..3_u8, 2..6_u8).prop_map(|(service_account, pods)| Step::AskTogether { service_account, pods }),
        3 => prop_oneof![1..90_u64, 600..4_000_u64, 10_000..30_000_u64].prop_map(|seconds| Step::Pass { seconds }),
        2 => mood.prop_map(|mood| Step::EksAuth { mood }),
        1 => proptest::option::of(0..3_u8).prop_map(|service_account| Step::Flush { service_account }),
    ]
}

/// What EKS Auth handed out, by service account: when each was.
type Issues = Arc<Mutex<HashMap<String, Vec<Now>>>>;

async fn follow(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let node = Node::new();
    let issues: Issues = Arc::default();
    let mut flushed: HashMap<String, Instant> = HashMap::new();
    set_mood(&node, &issues, Mood::Works);
    // Well again after the longest backoff at the latest.
    let mut well_from = Some(node.clock.now().mono);
    for step in steps {
        match step {
            Step::Pass { seconds } => pass(seconds).await,
            Step::EksAuth { mood } => {
                set_mood(&node, &issues, mood);
                well_from = (mood == Mood::Works).then(|| node.clock.now().mono + secs(6));
            }
            Step::Flush { service_account } => {
                let named = service_account.map(|n| format!("app{n}"));
                node.credentials.flush(named.as_deref().map(|name| ("web", name)));
                for n in 0..3 {
                    let name = format!("app{n}");
                    if named.as_ref().is_none_or(|named| *named == name) {
                        flushed.insert(name, node.clock.now().mono);
                    }
                }
                // Paused time stands still between steps, and what came before must not look as if it came after.
                pass(1).await;
            }
            Step::Ask { service_account, pod } => {
                let name = format!("app{service_account}");
                check(&node, &issues, &flushed, well_from, &name, &[pod]).await?;
            }
            Step::AskTogether { service_account, pods } => {
                let name = format!("app{service_account}");
                let pods: Vec<u8> = (0..pods).collect();
                check(&node, &issues, &flushed, well_from, &name, &pods).await?;
            }
        }
    }
    Ok(())
}

fn set_mood(node: &Node, issues: &Issues, mood: Mood) {
    let (issues, clock) = (Arc::clone(issues), node.clock.clone());
    node.rule(move |token| {
        let result = match mood {
            Mood::Works => {
                let service_account = token.split('/').nth(1).unwrap().to_owned();
                issues.lock().unwrap().entry(service_account).or_default().push(clock.now());
                Ok(())
            }
            Mood::Down => Err(unavailable()),
            Mood::Throttles => Err(throttled()),
        };
        (Duration::ZERO, result)
    });
}

async fn check(
    node: &Node,
    issues: &Issues,
    flushed: &HashMap<String, Instant>,
    well_from: Option<Instant>,
    name: &str,
    pods: &[u8],
) -> Result<(), TestCaseError> {
    let asked = node.clock.now();
    let well = well_from.is_some_and(|from| asked.mono >= from);
    let issues_before = issues.lock().unwrap().get(name).map_or(0, Vec::len);
    let pods: Vec<Pod> = pods
        .iter()
        .map(|n| pod_with("web", name, "sa", &format!("p{n}"), 1_000 * HOUR, Scope::Role))
        .collect();
    let got = join_all(pods.iter().map(|pod| node.ask(pod))).await;
    let now = node.clock.now();
    prop_assert!(now.mono - asked.mono <= Duration::from_millis(1_800));

    let since_flush = |at: Instant| flushed.get(name).is_none_or(|flushed| at > *flushed);
    let newest = issues.lock().unwrap().get(name).and_then(|all| all.last().copied());
    let valid_until =
        newest.filter(|at| since_flush(at.mono)).map_or(UnixTime(0), |at| at.wall.saturating_add(secs(LIFE)));
    for got in &got {
        match got {
            Ok((issued, _)) => {
                prop_assert_eq!(issued.fetched_by.service_account(), name);
                prop_assert!(issued.expiration > asked.wall, "expired credentials were handed out");
                prop_assert!(since_flush(issued.obtained.mono), "flushed credentials were handed out");
                if well {
                    prop_assert!(!issued.is_low_at(now), "better could be had");
                }
            }
            Err(_) => {
                prop_assert!(!well, "refused although EKS Auth works");
                prop_assert!(valid_until <= now.wall, "refused although valid credentials are known");
            }
        }
    }
    let issues_after = issues.lock().unwrap().get(name).map_or(0, Vec::len);
    prop_assert!(issues_after - issues_before <= 1, "more than one call served one question");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn the_cache_does_as_the_model_says(steps in proptest::collection::vec(step(), 1..40), seed: u64) {
        // Backoffs and renewals are jittered; a failing history must fail again.
        fastrand::seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(follow(steps))?;
    }
}
