//! Medians: they do not see the few rounds in which another process had the processor.

/// The median of some measurements, and where that of all is with 95 % confidence, whatever their distribution: between
/// the ranks within which as many heads of a fair coin fall.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Middle {
    pub(crate) median: f64,
    pub(crate) interval: [f64; 2],
}

/// With fewer, not even the least and the greatest are that far apart.
pub(crate) const FEWEST: u32 = 6;

impl Middle {
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Middle {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        let count = numbers.len();
        let at = |rank: usize| numbers.get(rank).copied().unwrap_or(f64::NAN);
        // As many heads, of as many coins, as are within 95 % of the middle.
        let away = 0.98 * (count as f64).sqrt();
        let lowest = (count as f64 / 2.0 - away).floor().max(1.0) as usize - 1;
        Middle {
            median: f64::midpoint(at(count.saturating_sub(1) / 2), at(count / 2)),
            interval: [at(lowest), at(count.saturating_sub(lowest + 1))],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_lies_around_the_median_and_leaves_outliers_out() {
        let middle = Middle::of((0..100).rev().map(f64::from).chain([1e9]));
        assert_eq!(middle, Middle { median: 50.0, interval: [39.0, 61.0] });
    }

    #[test]
    fn few_measurements_have_all_of_them_for_an_interval() {
        assert_eq!(Middle::of([3.0, 1.0, 2.0]), Middle { median: 2.0, interval: [1.0, 3.0] });
        assert_eq!(Middle::of([4.0, 1.0, 2.0, 3.0]), Middle { median: 2.5, interval: [1.0, 4.0] });
        assert!(Middle::of([]).median.is_nan());
    }
}
