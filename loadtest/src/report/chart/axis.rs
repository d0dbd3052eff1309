//! Axes with ticks where a person would put them.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use super::super::figures::{milliseconds, number};

#[derive(Clone, Debug)]
pub(in super::super) struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    /// Within both.
    ticks: Vec<f64>,
    label: fn(f64) -> String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Even,
    Logarithmic,
}

/// A chart has room for about so many.
const TICKS: f64 = 6.0;

impl Axis {
    /// Time since the run began.
    pub(in super::super) fn seconds(to: f64) -> Axis {
        let to = if to > 0.0 { to } else { 1.0 };
        let steps = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0];
        let step =
            steps.into_iter().find(|step| to / step <= TICKS).unwrap_or_else(|| round_step(to / TICKS));
        let label: fn(f64) -> String = match to {
            ..=300.0 => |at| format!("{} s", number(at)),
            _ => |at| format!("{} min", number(at / 60.0)),
        };
        Axis { scale: Scale::Even, from: 0.0, to, ticks: multiples(step, to), label }
    }

    /// From zero up to a round number that has the greatest in it.
    pub(in super::super) fn from_zero(greatest: f64, label: fn(f64) -> String) -> Axis {
        let greatest = if greatest > 0.0 { greatest } else { 1.0 };
        let step = round_step(greatest / 4.0);
        let to = (greatest / step).ceil() * step;
        Axis { scale: Scale::Even, from: 0.0, to, ticks: multiples(step, to), label }
    }

    /// Times, each decade as wide as the next.
    pub(in super::super) fn milliseconds(least: f64, greatest: f64) -> Axis {
        let (from, to) = match least {
            ..=0.0 => (0.1, 10.0),
            // What all took the same time is seen within its decade.
            _ if greatest < 3.0 * least => {
                let decade = 10_f64.powf(least.log10().floor());
                (decade, (10.0 * decade).max(greatest))
            }
            _ => (least, greatest),
        };
        // One tick a decade, and two more between where there is room.
        let within: &[f64] = if to / from > 1000.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let decades = from.log10().floor() as i32..=to.log10().ceil() as i32;
        let ticks = decades.flat_map(|decade| within.iter().map(move |one| one * 10_f64.powi(decade)));
        let ticks = ticks.filter(|tick| (from * 0.999..=to * 1.001).contains(tick)).collect();
        Axis { scale: Scale::Logarithmic, from, to, ticks, label: milliseconds }
    }

    pub(super) fn from(&self) -> f64 {
        self.from
    }

    pub(super) fn to(&self) -> f64 {
        self.to
    }

    /// 0 at the axis's beginning, 1 at its end; what is outside stays at the edge.
    fn share(&self, value: f64) -> f64 {
        let value = value.clamp(self.from, self.to);
        match self.scale {
            Scale::Even => (value - self.from) / (self.to - self.from),
            Scale::Logarithmic => (value / self.from).ln() / (self.to / self.from).ln(),
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        first + (f64::from(last - first) * self.share(*value)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _room: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, at: &f64) -> String {
        (self.label)(*at)
    }
}

/// 1, 2, 2.5 or 5 times a power of ten, and not less than `least`.
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0].into_iter().find(|step| step * power >= least);
    step.unwrap_or(10.0) * power
}

fn multiples(step: f64, to: f64) -> Vec<f64> {
    let count = (to / step + 1e-9).floor() as u32;
    (0..=count).map(|times| f64::from(times) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|tick| axis.format_ext(tick)).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(&Axis::seconds(120.0)), ["0 s", "20 s", "40 s", "60 s", "80 s", "100 s", "120 s"]);
        assert_eq!(labels(&Axis::seconds(400.0)), ["0 min", "2 min", "4 min", "6 min"]);
        assert_eq!(labels(&Axis::from_zero(730.0, number)), ["0", "200", "400", "600", "800"]);
        assert_eq!(labels(&Axis::milliseconds(0.05, 2000.0)), ["100 µs", "1 ms", "10 ms", "100 ms", "1 s"]);
        assert_eq!(labels(&Axis::milliseconds(1.0, 1.2)), ["1 ms", "2 ms", "5 ms", "10 ms"]);
    }

    #[test]
    fn an_axis_of_nothing_has_a_length() {
        let axes = [Axis::seconds(0.0), Axis::from_zero(0.0, number), Axis::milliseconds(0.0, 0.0)];
        assert!(axes.iter().all(|axis| axis.to > axis.from && axis.ticks.len() > 1), "{axes:?}");
    }

    #[test]
    fn what_is_outside_stays_at_the_edge() {
        let axis = Axis::milliseconds(1.0, 1000.0);
        assert_eq!([0.0, 1.0, 10.0, 1e9].map(|value| axis.map(&value, (60, 0))), [60, 60, 40, 0]);
    }
}
