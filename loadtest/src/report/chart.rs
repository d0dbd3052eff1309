//! Line charts as SVG. Colours are names that the page's style gives a light and a dark value.

mod axis;

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub(super) use self::axis::Axis;

/// Twice the size that a chart has on the page: plotters rounds coordinates to whole pixels, which would show.
const SIZE: (u32, u32) = (1120, 500);
const FONT: i32 = 26;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Text,
    Grid,
    Blue,
    Orange,
    Red,
    Green,
}

#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) ink: Ink,
    /// Filled down to the axis.
    pub(super) filled: bool,
    /// With gaps between them.
    pub(super) lines: Vec<Vec<(f64, f64)>>,
}

#[derive(Debug)]
pub(super) struct Chart {
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// Vertical lines with a word at their upper end.
    pub(super) marks: Vec<(f64, String)>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plot<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

impl Ink {
    const ALL: [Ink; 6] = [Ink::Text, Ink::Grid, Ink::Blue, Ink::Orange, Ink::Red, Ink::Green];

    /// What the page's style calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Ink::Text => "muted",
            Ink::Grid => "grid",
            Ink::Blue => "blue",
            Ink::Orange => "orange",
            Ink::Red => "red",
            Ink::Green => "green",
        }
    }

    /// Only told apart: what a reader sees comes from the style.
    fn colour(self) -> RGBColor {
        match self {
            Ink::Text => RGBColor(0x60, 0x60, 0x60),
            Ink::Grid => RGBColor(0xd0, 0xd0, 0xd0),
            Ink::Blue => RGBColor(0x20, 0x60, 0xd0),
            Ink::Orange => RGBColor(0xd0, 0x70, 0x10),
            Ink::Red => RGBColor(0xd0, 0x20, 0x30),
            Ink::Green => RGBColor(0x10, 0x80, 0x50),
        }
    }

    /// A rule of style for each ink: plotters writes colours as attributes, over which a style has the last word.
    pub(super) fn style() -> String {
        let rule = |ink: Ink| {
            let (RGBColor(red, green, blue), name) = (ink.colour(), ink.name());
            let colour = format!("#{red:02X}{green:02X}{blue:02X}");
            format!(
                "svg [fill=\"{colour}\"]{{fill:var(--{name})}}svg [stroke=\"{colour}\"]{{stroke:var(--{name})}}\n"
            )
        };
        Ink::ALL.map(rule).concat()
    }
}

impl Chart {
    pub(super) fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        self.draw(&root)?;
        root.present()?;
        drop(root);
        Ok(svg)
    }

    fn draw(&self, root: &Area<'_>) -> Result<()> {
        let mut plot = ChartBuilder::on(root)
            .margin_top(if self.marks.is_empty() { 14 } else { 40 })
            .margin_right(30)
            .x_label_area_size(52)
            .y_label_area_size(116)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        let text = ("sans-serif", FONT).into_font().color(&Ink::Text.colour());
        plot.configure_mesh()
            .disable_x_mesh()
            .bold_line_style(Ink::Grid.colour())
            .light_line_style(TRANSPARENT)
            .axis_style(Ink::Grid.colour())
            .set_all_tick_mark_size(10)
            .label_style(text)
            .draw()?;
        for series in &self.series {
            self.draw_series(&mut plot, series)?;
        }
        self.draw_marks(root, &mut plot)
    }

    fn draw_series(&self, plot: &mut Plot<'_, '_>, series: &Series) -> Result<()> {
        let colour = series.ink.colour();
        for points in &series.lines {
            if series.filled {
                plot.draw_series(AreaSeries::new(points.iter().copied(), self.y.from(), colour.mix(0.25)))?;
            }
            match points[..] {
                // A line of one point is nothing to be seen.
                [point] => plot.draw_series([Circle::new(point, 5, colour.filled())])?,
                _ => plot.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(4)))?,
            };
        }
        Ok(())
    }

    fn draw_marks(&self, root: &Area<'_>, plot: &mut Plot<'_, '_>) -> Result<()> {
        let muted = Ink::Text.colour();
        let above = Pos::new(HPos::Center, VPos::Bottom);
        let text = ("sans-serif", FONT).into_font().color(&muted).pos(above);
        for (at, word) in &self.marks {
            let line = [(*at, self.y.from()), (*at, self.y.to())];
            plot.draw_series(DashedLineSeries::new(line, 8, 8, muted.stroke_width(2)))?;
            let (x, y) = plot.backend_coord(&line[1]);
            root.draw_text(word, &text, (x, y - 6))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(lines: Vec<Vec<(f64, f64)>>) -> Chart {
        let series = Series { name: "a".to_owned(), ink: Ink::Red, filled: true, lines };
        let marks = vec![(3.0, "<1>".to_owned())];
        Chart {
            x: Axis::seconds(10.0),
            y: Axis::from_zero(0.0, |at| at.to_string()),
            series: vec![series],
            marks,
        }
    }

    #[test]
    fn what_is_drawn_has_the_style_of_its_ink_and_is_escaped() {
        let svg = chart(vec![vec![(0.0, 0.0), (10.0, 1.0)]]).svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("#D02030") && Ink::style().contains(r##"[stroke="#D02030"]"##));
        assert!(svg.contains("&lt;1&gt;") && !svg.contains("<1>"));
    }

    #[test]
    fn a_chart_of_nothing_or_of_one_point_can_be_drawn() {
        assert!(!chart(Vec::new()).svg().unwrap().contains("polygon"));
        assert!(chart(vec![vec![(1.0, 0.5)]]).svg().unwrap().contains("circle"));
    }
}
