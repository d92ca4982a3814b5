//! A chart of cost against size with logarithmic axes, as an SVG for light and dark pages.

use std::fmt::Write;

use crate::scaling::Line;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 30.0;
const COLOURS: [&str; 9] =
    ["#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf", "#8c564b", "#e377c2", "#7f7f7f"];

pub fn svg(charts: &[(&str, &[u32], &[Line])]) -> String {
    let most_lines = charts.iter().map(|(_, _, lines)| lines.len()).max().unwrap_or(0) as f64;
    let (width, height) =
        (charts.len() as f64 * (WIDTH + LEFT + 30.0), TOP + HEIGHT + 50.0 + 18.0 * most_lines);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (index, (title, sizes, lines)) in charts.iter().enumerate() {
        panel(&mut svg, index as f64 * (WIDTH + LEFT + 30.0) + LEFT, title, sizes, lines);
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, left: f64, title: &str, sizes: &[u32], lines: &[Line]) {
    let costs = || lines.iter().flat_map(|line| &line.costs);
    let low = costs().fold(f64::MAX, |low, &cost| low.min(cost)).log10().floor();
    let high = costs().fold(0.0_f64, |high, &cost| high.max(cost)).log10().ceil();
    let (from, to) = (f64::from(sizes[0]).log10(), f64::from(*sizes.last().unwrap()).log10());
    let x = |size: f64| left + WIDTH * (size.log10() - from) / (to - from).max(1.0);
    let y = |cost: f64| TOP + HEIGHT * (high - cost.log10()) / (high - low);

    writeln!(svg, "<text x=\"{left}\" y=\"18\" font-weight=\"bold\">{title}</text>").unwrap();
    for power in low as i32..=high as i32 {
        let (y, label) = (y(10_f64.powi(power)), time(10_f64.powi(power)));
        writeln!(svg, "<path d=\"M{left} {y:.1}h{WIDTH}\" stroke=\"#ddd\"/>").unwrap();
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            left - 6.0,
            y + 4.0
        )
        .unwrap();
    }
    for &size in sizes {
        let x = x(size.into());
        writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            TOP + HEIGHT + 18.0,
            thousands(size.into())
        )
        .unwrap();
    }
    for (index, (line, colour)) in lines.iter().zip(COLOURS).enumerate() {
        let points: Vec<String> = sizes
            .iter()
            .zip(&line.costs)
            .map(|(&size, &cost)| format!("{:.1},{:.1}", x(size.into()), y(cost)))
            .collect();
        writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        )
        .unwrap();
        let y = TOP + HEIGHT + 42.0 + 18.0 * index as f64;
        writeln!(svg, "<path d=\"M{left} {:.1}h18\" stroke=\"{colour}\" stroke-width=\"2\"/>", y - 4.0)
            .unwrap();
        writeln!(svg, "<text x=\"{:.1}\" y=\"{y:.1}\">{}</text>", left + 24.0, line.name).unwrap();
    }
}

/// Microseconds, in the unit that fits.
pub fn time(micros: f64) -> String {
    match micros {
        ..100.0 => format!("{} µs", short(micros)),
        ..1e3 => format!("{micros:.0} µs"),
        ..1e6 => format!("{} ms", short(micros / 1e3)),
        _ => format!("{} s", short(micros / 1e6)),
    }
}

fn short(number: f64) -> String {
    if number < 10.0 { format!("{number:.1}").replace(".0", "") } else { format!("{number:.0}") }
}

pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let grouped: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    grouped.join(",")
}
