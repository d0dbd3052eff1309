//! The growth of a request's cost, as a picture for a page.

use anyhow::Result;
use plotters::prelude::*;

use super::growth::Point;

const SIZE: (u32, u32) = (1280, 640);
const PODCRED: RGBColor = RGBColor(0x2b, 0x6c, 0xdf);
const HYPER: RGBColor = RGBColor(0x80, 0x88, 0x94);

/// One line for the agent and one for hyper in the same rounds, over `x`.
pub(crate) fn svg(points: &[Point], title: &str, x: fn(&Point) -> usize) -> Result<String> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let most =
        points.iter().map(|point| point.microseconds.max(point.hyper_microseconds)).fold(1.0, f64::max);
    let (first, last) = (points.first().map_or(1, x), points.last().map_or(10, x));
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("CPU of a request (µs), by {title}"), ("sans-serif", 30))
        .margin(24)
        .margin_right(60)
        .x_label_area_size(50)
        .y_label_area_size(60)
        .build_cartesian_2d((first as f64..last as f64).log_scale(), 0.0..most * 1.2)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 22))
        .x_label_formatter(&|count| format!("{count:.0}"))
        .y_label_formatter(&|cost| format!("{cost:.0}"))
        .draw()?;
    for (name, colour, cost) in [
        ("podcred", PODCRED, (|point| point.microseconds) as fn(&Point) -> f64),
        ("bare hyper", HYPER, |point| point.hyper_microseconds),
    ] {
        let line = points.iter().map(|point| (x(point) as f64, cost(point)));
        chart
            .draw_series(LineSeries::new(line, colour.filled().stroke_width(4)).point_size(6))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 6), (x + 18, y + 6)], colour.filled()));
    }
    let legend = ("sans-serif", 24);
    chart.configure_series_labels().label_font(legend).position(SeriesLabelPosition::LowerRight).draw()?;
    root.present()?;
    drop(chart);
    drop(root);
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_are_drawn_and_named() {
        let point = |pods| Point { pods, roles: 1, microseconds: 9.0, hyper_microseconds: 8.0 };
        let svg = svg(&[point(10), point(10_000)], "pods", |point| point.pods).unwrap();
        assert!(svg.contains("podcred") && svg.contains("bare hyper") && svg.contains("by pods"), "{svg}");
        for line in ["stroke=\"#2B6CDF\" stroke-width=\"4\"", "stroke=\"#808894\" stroke-width=\"4\""] {
            assert_eq!(svg.matches(line).count(), 1, "{svg}");
        }
    }
}
