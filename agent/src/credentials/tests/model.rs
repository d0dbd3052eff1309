//! Random histories against a model that knows only this: what EKS Auth was asked, what it answered and when, and when
//! there was a flush.

use std::collections::HashMap;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

const ACCOUNTS: u8 = 3;

#[derive(Clone, Debug)]
enum Step {
    Ask {
        service_account: u8,
        pods: std::ops::Range<u8>,
        /// One that comes while they wait, of their service account or of all.
        flush: Option<(u64, bool)>,
    },
    Pass {
        seconds: u64,
    },
    EksAuth {
        mood: Mood,
        latency_ms: u64,
    },
    Flush {
        service_account: Option<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Works,
    Down,
    Throttles,
    /// The first pod of each service account has a token that is not taken.
    RefusesTheFirstPods,
    /// There are no associations.
    KnowsNone,
}

fn step() -> impl Strategy<Value = Step> {
    let mood = prop_oneof![
        3 => Just(Mood::Works),
        1 => Just(Mood::Down),
        1 => Just(Mood::Throttles),
        2 => Just(Mood::RefusesTheFirstPods),
        1 => Just(Mood::KnowsNone),
    ];
    let pods = prop_oneof![(0..4_u8).prop_map(|n| n..n + 1), (2..6_u8).prop_map(|n| 0..n)];
    let flush = proptest::option::weighted(0.2, (1..400_u64, any::<bool>()));
    prop_oneof![
        6 => (0..ACCOUNTS, pods, flush)
            .prop_map(|(service_account, pods, flush)| Step::Ask { service_account, pods, flush }),
        3 => prop_oneof![1..90_u64, 600..4_000_u64, 10_000..30_000_u64].prop_map(|seconds| Step::Pass { seconds }),
        2 => (mood, prop_oneof![Just(1), 1..400_u64])
            .prop_map(|(mood, latency_ms)| Step::EksAuth { mood, latency_ms }),
        1 => proptest::option::of(0..ACCOUNTS).prop_map(|service_account| Step::Flush { service_account }),
    ]
}

/// One call; the credentials that it brings are numbered by its place among all.
#[derive(Clone, Debug)]
struct Call {
    token: String,
    began: Now,
    lands: Instant,
    answer: Result<(), Failure>,
}

impl Call {
    fn is_of(&self, name: &str) -> bool {
        self.token.split('/').nth(1) == Some(name)
    }

    fn was_refused(&self) -> bool {
        matches!(self.answer, Err(Failure::Refused(_)))
    }
}

type Calls = Arc<Mutex<Vec<Call>>>;

struct History {
    node: Node,
    calls: Calls,
    flushed: HashMap<String, Instant>,
    mood: Mood,
    /// By then whatever went before is over: the longest backoff, and what is remembered of refusals.
    settled: Instant,
}

async fn follow(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let node = Node::new();
    let settled = node.clock.now().mono;
    let mut history =
        History { node, calls: Calls::default(), flushed: HashMap::new(), mood: Mood::Works, settled };
    history.set_mood(Mood::Works, 1);
    for step in steps {
        match step {
            Step::Pass { seconds } => pass(seconds).await,
            Step::EksAuth { mood, latency_ms } => {
                history.set_mood(mood, latency_ms);
                history.settled = history.node.clock.now().mono + secs(6);
            }
            Step::Flush { service_account } => {
                let named = service_account.map(|n| format!("app{n}"));
                history.flush(named.as_deref());
            }
            Step::Ask { service_account, pods, flush } => {
                history.ask(&format!("app{service_account}"), pods, flush).await?;
            }
        }
    }
    Ok(())
}

impl History {
    fn set_mood(&mut self, mood: Mood, latency_ms: u64) {
        self.mood = mood;
        let (calls, clock, latency) =
            (Arc::clone(&self.calls), self.node.clock.clone(), Duration::from_millis(latency_ms));
        self.node.rule(move |token| {
            let answer = match mood {
                Mood::Works => Ok(()),
                Mood::Down => Err(unavailable()),
                Mood::Throttles => Err(throttled()),
                Mood::RefusesTheFirstPods if token.ends_with("/p0") => {
                    Err(refusal(RefusalKind::InvalidToken))
                }
                Mood::RefusesTheFirstPods => Ok(()),
                Mood::KnowsNone => Err(refusal(RefusalKind::ResourceNotFound)),
            };
            let began = clock.now();
            let call =
                Call { token: token.to_owned(), began, lands: began.mono + latency, answer: answer.clone() };
            calls.lock().unwrap().push(call);
            (latency, answer)
        });
    }

    fn flush(&mut self, named: Option<&str>) {
        self.node.credentials.flush(named.map(|name| ("web", name)));
        for name in (0..ACCOUNTS).map(|n| format!("app{n}")) {
            if named.is_none_or(|named| *named == name) {
                self.flushed.insert(name, self.node.clock.now().mono);
            }
        }
    }

    async fn ask(
        &mut self,
        name: &str,
        pods: std::ops::Range<u8>,
        flush: Option<(u64, bool)>,
    ) -> Result<(), TestCaseError> {
        let asked = self.node.clock.now();
        let before = self.calls.lock().unwrap().clone();
        let pods: Vec<Pod> =
            pods.map(|n| pod_with("web", name, "sa", &format!("p{n}"), 1_000 * HOUR, Scope::Role)).collect();
        let (credentials, clock) = (self.node.credentials.clone(), self.node.clock.clone());
        let asking = join_all(pods.iter().map(async |pod| {
            let got = credentials.get(&pod.permit, pod.token.as_bytes(), clock.now()).await;
            (got, clock.now())
        }));
        let earlier = self.flushed.get(name).copied();
        let (got, ()) = tokio::join!(asking, async {
            if let Some((after_ms, all)) = flush {
                sleep(Duration::from_millis(after_ms)).await;
                self.flush((!all).then_some(name));
            }
        });
        let meanwhile = self.flushed.get(name).copied();
        for (pod, (got, answered)) in pods.iter().zip(&got) {
            prop_assert!(answered.mono - asked.mono <= Duration::from_millis(1_800));
            let flushed = if meanwhile.is_some_and(|at| at < answered.mono) { meanwhile } else { earlier };
            self.check(name, pod, got, asked, *answered, flushed, &before)?;
        }
        let all = self.calls.lock().unwrap();
        let calls: Vec<_> = all[before.len()..].iter().filter(|call| call.is_of(name)).collect();
        // As many as backoffs leave room for.
        prop_assert!(calls.len() <= 20, "{} calls while one question was answered", calls.len());
        let brought = calls.iter().filter(|call| call.answer.is_ok());
        // One that came too late for a flush, and one for a token that was refused before.
        let most = 1 + usize::from(flush.is_some()) + usize::from(pods[0].token.ends_with("/p0"));
        prop_assert!(brought.count() <= most, "calls for one question: {calls:?}");
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "all that is known of one answer")]
    fn check(
        &self,
        name: &str,
        pod: &Pod,
        got: &Got,
        asked: Now,
        answered: Now,
        flushed: Option<Instant>,
        before: &[Call],
    ) -> Result<(), TestCaseError> {
        let landed = |call: &&Call| call.lands < asked.mono && call.is_of(name);
        let own_word = before.iter().filter(landed).rfind(|call| call.token == pod.token);
        let condemned = own_word.is_some_and(|call| call.answer == Err(refusal(RefusalKind::InvalidToken)));
        let gone = |call: &&Call| call.answer == Err(refusal(RefusalKind::ResourceNotFound));
        let gone = before.iter().filter(landed).filter(gone).map(|call| call.lands).next_back();
        let settled = asked.mono >= self.settled;
        let well = settled
            && match self.mood {
                Mood::Works => true,
                Mood::RefusesTheFirstPods => !pod.token.ends_with("/p0"),
                Mood::Down | Mood::Throttles | Mood::KnowsNone => false,
            };
        match got {
            Ok((issued, _)) => {
                let all = self.calls.lock().unwrap();
                let number: usize = issued.access_key_id.trim_start_matches("ASIA").parse().unwrap();
                let call = &all[number];
                prop_assert!(call.is_of(name), "another service account's: {call:?}");
                prop_assert!(issued.expiration > asked.wall, "expired credentials were handed out");
                prop_assert!(
                    flushed.is_none_or(|at| call.began.mono >= at),
                    "flushed credentials were handed out"
                );
                prop_assert!(gone.is_none_or(|at| call.lands > at), "of an association that was gone");
                prop_assert!(
                    !condemned || call.token == pod.token,
                    "a refused token was served by another's"
                );
                if well {
                    prop_assert!(!issued.is_low_at(answered), "better could be had");
                }
            }
            Err(_) => {
                prop_assert!(!well, "refused although EKS Auth works");
                let kept = |call: &&Call| {
                    call.answer.is_ok()
                        && flushed.is_none_or(|at| call.began.mono > at)
                        && gone.is_none_or(|at| call.lands > at)
                };
                let newest = before.iter().filter(landed).rfind(kept);
                let valid =
                    newest.is_some_and(|call| call.began.wall.saturating_add(secs(LIFE)) > answered.wall);
                let all = self.calls.lock().unwrap();
                let own_refused = all.iter().any(|call| call.token == pod.token && call.was_refused());
                let may_be_refused = own_refused || self.mood == Mood::KnowsNone || !settled;
                prop_assert!(!valid || may_be_refused, "refused although valid credentials are known");
            }
        }
        Ok(())
    }
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
