//! Durations as Go writes them: `3h`, `1h30m`, `1.5h`, `300ms`.
//!
//! Own code because podcred takes the official agent's flags as they stand, and the crates that parse durations
//! read other grammars: they accept `3 hours`, refuse `1.5h`, or take `m` for months.

use std::time::Duration;

/// Go keeps durations in an `i64` of nanoseconds (about 292 years).
const LONGEST: u64 = i64::MAX as u64;

const ALLOWED: &str = "write a number with a unit (h, m, s, ms, us, ns), such as 3h, 1h30m, 1.5s or 300ms";

pub(super) fn parse(text: &str) -> Result<Duration, String> {
    if text.starts_with('-') {
        return Err(format!("is negative; {ALLOWED}"));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(format!("is not a duration; {ALLOWED}"));
    }
    let mut total = 0u64;
    while !rest.is_empty() {
        let (number, unit, tail) = split_component(rest);
        if unit.is_empty() {
            return Err(format!("has no unit after {number}; {ALLOWED}"));
        }
        let nanos = nanoseconds(number, unit)?;
        total = total.checked_add(nanos).filter(|t| *t <= LONGEST).ok_or_else(too_long)?;
        rest = tail;
    }
    Ok(Duration::from_nanos(total))
}

/// `1.5h30m` → (`1.5`, `h`, `30m`).
fn split_component(text: &str) -> (&str, &str, &str) {
    let in_number = |c: char| c.is_ascii_digit() || c == '.';
    let (number, rest) = text.split_at(text.find(|c| !in_number(c)).unwrap_or(text.len()));
    let (unit, tail) = rest.split_at(rest.find(in_number).unwrap_or(rest.len()));
    (number, unit, tail)
}

fn nanoseconds(number: &str, unit: &str) -> Result<u64, String> {
    let unit: u64 = match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(format!("has the unknown unit {unit:?}; {ALLOWED}")),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(format!("is not a duration; {ALLOWED}"));
    }
    let whole: u64 = match whole {
        "" => 0,
        digits => digits.parse().map_err(|_| too_long())?,
    };
    // The 19th digit of a fraction of an hour is less than a nanosecond; Go drops such digits too.
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10u128.pow(fraction.len() as u32);
    let fraction: u128 = fraction.parse().unwrap_or(0);
    let part = u64::try_from(fraction * u128::from(unit) / scale).map_err(|_| too_long())?;
    whole.checked_mul(unit).and_then(|w| w.checked_add(part)).ok_or_else(too_long)
}

fn too_long() -> String {
    "is longer than 292 years".to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn go_spellings_mean_what_go_takes_them_for() {
        for (text, nanos) in [
            ("0", 0),
            ("+0", 0),
            ("0s", 0),
            ("3h", 10_800_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("+5s", 5_000_000_000),
            ("300ms", 300_000_000),
            ("1.8s", 1_800_000_000),
            ("1us", 1_000),
            ("1\u{b5}s", 1_000),
            ("1\u{3bc}s", 1_000),
            ("0.0000000000000000001h", 0),
            ("0.3333333333333333333h", 1_200_000_000_000),
            ("1m1m", 120_000_000_000),
            ("9223372036854775807ns", i64::MAX as u64),
        ] {
            let expected = match text {
                // Go computes this one in floating point and may round the last nanosecond.
                "0.3333333333333333333h" => nanos - 1,
                _ => nanos,
            };
            assert_eq!(parse(text), Ok(Duration::from_nanos(expected)), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "is not a duration"),
            ("+", "is not a duration"),
            ("3", "has no unit"),
            ("1h30", "has no unit after 30"),
            ("h", "is not a duration"),
            (".s", "is not a duration"),
            ("1..5s", "is not a duration"),
            ("-1s", "is negative"),
            ("3 h", "unknown unit \" h\""),
            ("1d", "unknown unit \"d\""),
            ("1H", "unknown unit \"H\""),
            ("9223372036854775808ns", "292 years"),
            ("99999999999999999999999h", "292 years"),
            ("5000000h", "292 years"),
        ] {
            let problem = parse(text).expect_err(text);
            assert!(problem.contains(reason), "{text:?}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[-+0-9.a-z\u{b5}\u{3bc} ]{0,40}|.{0,20}") {
            let _ = parse(&text);
        }

        #[test]
        fn a_duration_spelled_in_any_mix_of_units_is_read_back(h in 0u64..1_000_000, m in 0u64..600, s in 0u64..600, ns in 0u64..2_000_000_000) {
            let expected = Duration::from_secs(h * 3600 + m * 60 + s) + Duration::from_nanos(ns);
            prop_assert_eq!(parse(&format!("{h}h{m}m{s}s{ns}ns")), Ok(expected));
            prop_assert_eq!(parse(&format!("{ns}ns{s}s{h}h{m}m")), Ok(expected));
        }

        #[test]
        fn a_fraction_of_a_second_is_exact_to_the_nanosecond(s in 0u64..1_000_000, ns in 0u32..1_000_000_000) {
            prop_assert_eq!(parse(&format!("{s}.{ns:09}s")), Ok(Duration::new(s, ns)));
        }
    }
}
