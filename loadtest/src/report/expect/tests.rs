use proptest::prelude::*;

use super::*;
use crate::report::sample;

fn judge(condition: &str) -> Expected {
    condition.parse::<Expectation>().unwrap().judge(&sample::outage())
}

fn error(condition: &str) -> String {
    condition.parse::<Expectation>().unwrap_err().to_string()
}

fn outcome(condition: &str) -> (String, bool) {
    let judged = judge(condition);
    assert_eq!(judged.condition, condition);
    (judged.was, judged.held)
}

#[test]
fn a_measure_is_compared_with_a_number_in_its_unit() {
    assert_eq!(outcome("p99<50ms"), ("5.13 ms".to_owned(), true));
    assert_eq!(outcome("p99<500us"), ("5.13 ms".to_owned(), false));
    assert_eq!(outcome("p50>=0.9ms"), ("900 µs".to_owned(), true));
    assert_eq!(outcome("wrong=0"), ("0".to_owned(), true));
    assert_eq!(outcome("agent_memory<=17.8MB"), ("17.8 MB".to_owned(), true));
    assert_eq!(outcome("agent_cpu<9s"), ("9.1 s".to_owned(), false));
    assert!(judge("agent_cpu_per_request<1ms").held);
}

#[test]
fn a_measure_is_compared_with_another_and_a_factor() {
    assert_eq!(outcome("eks_auth_calls<=roles"), ("60; roles 50".to_owned(), false));
    assert_eq!(outcome("eks_auth_calls<=1.2*roles"), ("60; 1.2 × roles 60".to_owned(), true));
    let (was, held) = outcome("p99(known roles) <= 1.1 * p99(new roles)");
    assert_eq!((was.as_str(), held), ("3.99 ms; 1.1 × p99(new roles) 16.3 ms", true));
    assert!(judge("served>=pods").held);
}

#[test]
fn a_measure_of_a_group_is_that_of_the_group() {
    assert!(judge("failed(known roles)=0").held);
    assert!(!judge("failed(new roles)<=3").held);
}

#[test]
fn what_was_not_measured_has_not_held() {
    let nothing = |condition: &str| condition.parse::<Expectation>().unwrap().judge(&sample::empty());
    for condition in ["eks_auth_calls<=roles", "p99<1s", "agent_memory<=1GB", "requests_per_second>=0"] {
        let judged = nothing(condition);
        assert!(!judged.held && judged.was.ends_with(": not measured"), "{judged:?}");
    }
    let judged = judge("p99(jaba)<1s");
    assert!(!judged.held && judged.was.contains("there are all, known roles, new roles"), "{judged:?}");
}

#[test]
fn a_condition_that_cannot_be_read_says_what_would_do() {
    assert!(error("p98<1s").contains("p98") && error("p98<1s").contains("p90, p99, p999"));
    assert!(error("p99").contains("p99<50ms"));
    assert!(error("p99<50").contains("p99 is a time (us, ms, s)"));
    assert!(error("failed<=1%").contains("us, ms, s, kB, MB, GB"));
    assert!(error("failed<=p99").contains("without a unit"));
    assert!(error("roles(a)=1").contains("whole run"));
    assert!(error("p99(a<1s").contains("parentheses"));
    assert!(error("p99()<1s").contains("parentheses"));
    assert!(error("p99<2ms*p50").contains("2ms"));
    assert!(error("failed<inf").contains("inf"));
    assert!(error("failed>=-1").contains("-1"));
}

proptest! {
    #[test]
    fn no_text_makes_parsing_panic(text in any::<String>()) {
        let _read = text.parse::<Expectation>();
    }

    #[test]
    fn what_looks_like_a_condition_is_read_or_refused_and_judged(
        text in "(p99|failed|agent_memory|x)(\\([a-z ]{0,3}\\)?)?[<=>]{1,2}[0-9.e+-]{0,5}(\\*|ms|GB|é| )?(p50|roles|harness_memory)?",
    ) {
        if let Ok(expectation) = text.parse::<Expectation>() {
            prop_assert_eq!(expectation.to_string(), text.trim());
            prop_assert!(!expectation.judge(&sample::outage()).was.is_empty());
        }
    }
}
