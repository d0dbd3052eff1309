//! Numbers as a person reads them.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Count,
    Milliseconds,
    Bytes,
}

pub(super) fn quantity(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Count => number(value),
        Unit::Milliseconds => milliseconds(value),
        Unit::Bytes => bytes(value),
    }
}

/// Whole numbers whole, others to three digits.
pub(super) fn number(value: f64) -> String {
    if value.abs() >= 100.0 || value.fract() == 0.0 { grouped(value) } else { digits(value) }
}

pub(super) fn count(value: u64) -> String {
    grouped(value as f64)
}

pub(super) fn milliseconds(value: f64) -> String {
    match value {
        0.0 => "0 ms".to_owned(),
        ..1.0 => format!("{} µs", digits(value * 1e3)),
        ..1e3 => format!("{} ms", digits(value)),
        _ => format!("{} s", digits(value / 1e3)),
    }
}

pub(super) fn bytes(value: f64) -> String {
    match value {
        ..1e3 => format!("{value:.0} B"),
        ..1e6 => format!("{} kB", digits(value / 1e3)),
        ..1e9 => format!("{} MB", digits(value / 1e6)),
        _ => format!("{} GB", digits(value / 1e9)),
    }
}

/// Three digits, without zeroes behind the point that say nothing.
fn digits(value: f64) -> String {
    let text = match value.abs() {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => return grouped(value),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// 1,234,567
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_unit_that_fits_them_and_three_digits() {
        let written = [0.0, 0.0123, 0.5, 1.0, 48.04, 999.4, 1234.0, 63_000.0].map(milliseconds);
        assert_eq!(written, ["0 ms", "12.3 µs", "500 µs", "1 ms", "48 ms", "999 ms", "1.23 s", "63 s"]);
        assert_eq!([12.0, 15_300.0, 16e6, 1.5e9].map(bytes), ["12 B", "15.3 kB", "16 MB", "1.5 GB"]);
        assert_eq!([0.0, 7.0, 2.345, 1234567.2].map(number), ["0", "7", "2.35", "1,234,567"]);
    }
}
