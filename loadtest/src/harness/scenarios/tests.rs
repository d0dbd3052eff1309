use std::collections::HashSet;

use clap::ValueEnum;
use proptest::prelude::*;

use super::*;
use crate::harness::plan::Pace;
use crate::report::Expectation;

fn plans() -> impl Iterator<Item = (Scenario, bool, Size, Plan)> {
    let sizes =
        Scenario::value_variants().iter().flat_map(|scenario| [(*scenario, false), (*scenario, true)]);
    sizes.map(|(scenario, short)| {
        let size = scenario.size(short);
        let chance = fastrand::Rng::with_seed(1);
        let plan = scenario.plan(&mut Ask { size, clients: Clients::Mixed, chance, short });
        (scenario, short, size, plan)
    })
}

fn is_whole(scenario: Scenario, plan: &Plan) {
    let name = scenario.name();
    assert!(!plan.visits.is_empty() && !scenario.question().is_empty(), "{name}");
    plan.eks.check().unwrap();
    for visit in &plan.visits {
        let groups = plan.groups_of(visit);
        assert!(!groups.is_empty(), "{name}: {visit:?}");
        assert!(groups.iter().all(|group| *group < plan.groups.len()), "{name}: {visit:?}");
        assert!(visit.role < plan.roles && visit.thief_of != Some(visit.pod), "{name}: {visit:?}");
        assert!(visit.start < visit.end && visit.end <= plan.duration, "{name}: {visit:?}");
    }
    let numbers: HashSet<u32> = plan.visits.iter().map(|visit| visit.pod).collect();
    assert_eq!(numbers.len(), plan.pods() as usize, "{name}: pods are numbered without gaps");
    assert!(plan.steps.iter().all(|(at, _)| *at <= plan.duration), "{name}");
}

#[test]
fn every_plan_is_whole() {
    for (scenario, short, size, plan) in plans() {
        is_whole(scenario, &plan);
        assert!(!short || plan.duration <= s(15), "{}: a short run is short", scenario.name());
        assert!(scenario.least(short) <= size.duration, "{}", scenario.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn plans_of_any_size_are_whole(
        pods in 1_u32..200,
        roles in 1_u32..50,
        more in 1_u64..200_000,
        within in 1_u64..300_000,
        every in 1_u64..300_000,
        short: bool,
    ) {
        let ms = Duration::from_millis;
        for scenario in Scenario::value_variants() {
            // Also exactly the least.
            let duration = if more % 8 == 0 { ms(1) } else { ms(more) }.max(scenario.least(short));
            let size = Size { pods, roles, duration, within: ms(within), every: ms(every) };
            let chance = fastrand::Rng::with_seed(more);
            is_whole(*scenario, &scenario.plan(&mut Ask { size, clients: Clients::Mixed, chance, short }));
        }
    }
}

#[test]
fn roles_are_those_that_pods_have_and_wants_are_those_of_all_pods() {
    let size = Size { pods: 3, roles: 50, duration: s(9), within: s(1), every: Duration::from_millis(500) };
    let chance = fastrand::Rng::with_seed(1);
    let plan = Scenario::Steady.plan(&mut Ask { size, clients: Clients::Mixed, chance, short: true });
    assert_eq!((plan.roles_of_pods(), plan.wants_per_second()), (3, 6.0));
}

#[test]
fn each_scenario_expects_something_that_can_be_read() {
    for (scenario, _, _, plan) in plans() {
        assert!(plan.expectations.iter().any(|condition| condition == "wrong=0"), "{}", scenario.name());
        for condition in &plan.expectations {
            assert!(condition.parse::<Expectation>().is_ok(), "{}: {condition}", scenario.name());
        }
    }
}

#[test]
fn what_a_scenario_says_it_goes_by_changes_its_plan_and_the_other_does_not() {
    for scenario in Scenario::value_variants() {
        let planned = |every, within| {
            let size = Size { every: s(every), within: s(within), ..scenario.size(false) };
            let chance = fastrand::Rng::with_seed(1);
            format!("{:?}", scenario.plan(&mut Ask { size, clients: Clients::Mixed, chance, short: false }))
        };
        let (usual, other_every, other_within) = (planned(3, 3), planned(4, 3), planned(3, 4));
        let changed = (usual != other_every, usual != other_within);
        let rate = scenario.asks_at_a_rate();
        assert_eq!(changed, (rate, !rate), "{}", scenario.name());
    }
}

#[test]
fn the_same_seed_makes_the_same_pods_at_the_same_moments() {
    let starts = || -> Vec<Duration> {
        plans().flat_map(|(.., plan)| plan.visits.into_iter().map(|visit| visit.start)).collect()
    };
    assert_eq!(starts(), starts());
}

#[test]
fn each_client_has_all_roles() {
    let roles = 10;
    let clients = u32::try_from(Client::ALL.len()).unwrap();
    for client in 0..clients {
        let of_client: HashSet<u32> =
            (0..600).filter(|pod| pod % clients == client).map(|pod| role_of(pod, roles)).collect();
        assert_eq!(of_client.len(), roles as usize);
    }
}

#[test]
fn only_what_pods_alone_do_can_be_done_to_somebody_elses_agent() {
    let possible: Vec<String> = plans()
        .filter(|(_, short, ..)| *short)
        .filter(|(scenario, .., plan)| {
            let usual = Plan {
                eks: crate::eks::Settings::default(),
                ..Plan::new(Scenario::Steady.size(true), &["a"])
            };
            assert!(!usual.needs_own_agent());
            !plan.needs_own_agent() && scenario.needs_cgroups().is_none()
        })
        .map(|(scenario, ..)| scenario.name())
        .collect();
    assert_eq!(possible, ["steady", "chatty", "saturate"]);
}

#[test]
fn the_noisy_pod_is_one_pod() {
    let (_, _, size, plan) = plans().find(|(scenario, ..)| *scenario == Scenario::Noisy).unwrap();
    let mut noisy = plan.visits.iter().filter(|visit| !visit.by_turns);
    assert!(noisy.all(|visit| visit.pod == size.pods));
    assert!(plan.visits.iter().any(|visit| visit.pace == Pace::AtOnce), "it floods");
}
