//! The hit ratio against the capacity, a line a policy, as an SVG file.
//!
//! Written by hand: the plotting libraries bake colours in, and this picture must be readable on a light page and on a
//! dark one. It carries a style sheet that asks for the reader's preference instead, and it is one screen of arithmetic.

use std::fmt::Write;

use crate::output::{Run, grouped};

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 180.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 56.0;

/// Colours of equal weight on white and on near-black (after Okabe and Ito, readable with colour blindness too).
pub(crate) const COLOURS: [&str; 12] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a7fd6", "#a08c00", "#b2627a", "#5f9e3e",
    "#7f7f7f", "#c06be0",
];

pub(crate) const STYLE: &str = "\
svg { color: #1f2328; font: 13px system-ui, sans-serif } .page { fill: #ffffff }
@media (prefers-color-scheme: dark) { svg { color: #e6edf3 } .page { fill: #0d1117 } }
text { fill: currentColor } .title { font-size: 15px; font-weight: 600 }
.grid { stroke: currentColor; stroke-opacity: .15 } .axis { stroke: currentColor; fill: none }
.line { fill: none; stroke-width: 2; stroke-linejoin: round } .opt { stroke: currentColor; stroke-dasharray: 6 4 }";

/// One line of the plot.
struct Line<'r> {
    name: &'r str,
    /// Capacity and hit ratio, by capacity.
    points: Vec<(f64, f64)>,
    /// Its colour; the bound has none and is dashed.
    colour: Option<&'static str>,
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The lines of one trace: its policies in the order of the runs, and the bound first, for it lies highest.
fn lines(runs: &[Run]) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    let bound = runs.iter().filter_map(|run| Some((run.capacity as f64, run.opt_hit_ratio?))).collect::<Vec<_>>();
    if !bound.is_empty() {
        lines.push(Line { name: "OPT", points: bound, colour: None });
    }
    let mut colours = COLOURS.iter().cycle();
    for run in runs {
        let point = (run.capacity as f64, run.hit_ratio);
        match lines.iter_mut().find(|line| line.name == run.policy && line.colour.is_some()) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: &run.policy, points: vec![point], colour: colours.next().copied() }),
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        line.points.dedup_by_key(|point| point.0);
    }
    lines
}

/// A step for some `count` ticks over `span`: 1, 2 or 5 times a power of ten.
pub(crate) fn step(span: f64, count: f64) -> f64 {
    let rough = span / count;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&step| step >= rough).unwrap_or(power)
}

/// The picture of one or more traces, below each other.
pub fn svg(runs: &[Run], unit: &str) -> String {
    let panels: Vec<_> = runs.chunk_by(|a, b| a.trace == b.trace).collect();
    let height = HEIGHT * panels.len().max(1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"Hit ratio against capacity\">\n<style>\n{STYLE}\n</style>\n\
         <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n"
    );
    for (i, runs) in panels.into_iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate(0 {})\">", HEIGHT * i as f64);
        panel(&mut svg, runs, unit);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

// Writing to a string does not fail.
fn panel(svg: &mut String, runs: &[Run], unit: &str) {
    let Some(first) = runs.first() else { return };
    let lines = lines(runs);
    let capacities = || runs.iter().map(|run| run.capacity.max(1) as f64);
    let (least, most) = capacities().fold((f64::MAX, f64::MIN), |(a, b), c| (a.min(c), b.max(c)));
    // Sizes of caches are compared by factors: a logarithmic axis, half an octave wider than the data if that is a point.
    let (from, to) = if least < most { (least.ln(), most.ln()) } else { (least.ln() - 0.35, least.ln() + 0.35) };
    let ratios = || lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
    let (low, high) = ratios().fold((f64::MAX, f64::MIN), |(a, b), r| (a.min(r), b.max(r)));
    let tick = step((high - low).max(0.01), 6.0);
    let (low, high) =
        ((low / tick).floor() * tick, ((high / tick).ceil() * tick).max((low / tick).floor() * tick + tick));
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let x = |capacity: f64| LEFT + (capacity.ln() - from) / (to - from) * (right - LEFT);
    let y = |ratio: f64| bottom - (ratio - low) / (high - low) * (bottom - TOP);

    let _ = writeln!(svg, "<text class=\"title\" x=\"8\" y=\"18\">{}</text>", escape(&first.trace));
    let decimals = if tick < 0.01 { 1 } else { 0 };
    for i in 0..=((high - low) / tick).round() as u32 {
        let ratio = low + f64::from(i) * tick;
        let (at, label) = (y(ratio), format!("{:.decimals$} %", 100.0 * ratio));
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{right}\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, at + 4.0);
    }
    // A tick for each capacity that was run, but those whose labels would touch.
    let mut sorted: Vec<f64> = capacities().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.dedup();
    let mut free = f64::MIN;
    for capacity in sorted {
        let (at, label) = (x(capacity), grouped(capacity as u64));
        let half = 4.0 * label.len() as f64;
        let _ = writeln!(svg, "<path class=\"axis\" d=\"M{at:.1} {bottom}v5\"/>");
        if at - half >= free {
            free = at + half + 6.0;
            let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", bottom + 20.0);
        }
    }
    let middle = (LEFT + right) / 2.0;
    let _ = writeln!(svg, "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>");
    let _ =
        writeln!(svg, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">capacity ({unit})</text>", HEIGHT - 14.0);
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"start\">hit ratio</text>", 8.0, TOP - 9.0);

    for line in &lines {
        let stroke = line.colour.map_or(String::new(), |colour| format!(" stroke=\"{colour}\""));
        let class = if line.colour.is_some() { "line" } else { "line opt" };
        let at: Vec<_> = line.points.iter().map(|&(c, r)| format!("{:.1},{:.1}", x(c.max(1.0)), y(r))).collect();
        let _ = writeln!(svg, "<polyline class=\"{class}\"{stroke} points=\"{}\"/>", at.join(" "));
        let fill = line.colour.unwrap_or("currentColor");
        for (point, at) in line.points.iter().zip(&at) {
            let (cx, cy) = at.split_once(',').unwrap_or((at, "0"));
            let tip = format!("{}: {:.2} % at {}", escape(line.name), 100.0 * point.1, grouped(point.0 as u64));
            let _ =
                writeln!(svg, "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"3\" fill=\"{fill}\"><title>{tip}</title></circle>");
        }
    }
    // The legend in the order of the lines at their right end, so that the eye need not cross over.
    let mut legend: Vec<_> = lines.iter().collect();
    legend.sort_by(|a, b| {
        b.points.last().map(|p| p.1).unwrap_or(0.0).total_cmp(&a.points.last().map(|p| p.1).unwrap_or(0.0))
    });
    for (i, line) in legend.into_iter().enumerate() {
        let (left, at) = (right + 20.0, TOP + 10.0 + 20.0 * i as f64);
        let stroke = line.colour.map_or(String::new(), |colour| format!(" stroke=\"{colour}\""));
        let class = if line.colour.is_some() { "line" } else { "line opt" };
        let _ = writeln!(svg, "<path class=\"{class}\"{stroke} d=\"M{left} {at}h24\"/>");
        let name: String = line.name.rsplit('/').next().unwrap_or(line.name).chars().take(18).collect();
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\">{}</text>", left + 30.0, at + 4.0, escape(&name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(policy: &str, capacity: u64, hit_ratio: f64, opt: Option<f64>) -> Run {
        Run {
            trace: "a<b>&c.u64".into(),
            policy: policy.into(),
            capacity,
            shards: 1,
            threads: 1,
            requests: 100,
            hits: (hit_ratio * 100.0) as u64,
            hit_ratio,
            byte_hit_ratio: hit_ratio,
            evictions: 0,
            ns_per_request: 0.0,
            policy_calls: 0,
            policy_ns: 0,
            swaps: 0,
            faults: 0,
            opt_hit_ratio: opt,
        }
    }

    /// Every coordinate that the picture draws at.
    fn coordinates(svg: &str) -> Vec<(f64, f64)> {
        let lists = svg.split("points=\"").skip(1).filter_map(|rest| rest.split('"').next());
        let points = lists.flat_map(|list| list.split(' ').filter_map(|point| point.split_once(',')));
        points.map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).collect()
    }

    #[test]
    fn a_line_a_policy_and_the_bound_dashed() {
        let mut runs = Vec::new();
        for (capacity, ratio) in [(1000, 0.5), (10, 0.1), (100, 0.3)] {
            runs.push(run("lru", capacity, ratio, Some(ratio + 0.2)));
            runs.push(run("sieve", capacity, ratio + 0.1, Some(ratio + 0.2)));
        }
        let svg = svg(&runs, "entries");
        assert_eq!(svg.matches("<polyline").count(), 3);
        assert_eq!(svg.matches("class=\"line opt\" points").count(), 1);
        assert!(svg.contains("a&lt;b&gt;&amp;c.u64") && svg.contains("prefers-color-scheme: dark"));
        let points = coordinates(&svg);
        assert_eq!(points.len(), 9);
        for &(x, y) in &points {
            assert!((LEFT..=WIDTH - RIGHT).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y), "({x}, {y})");
        }
        // By capacity, from left to right; more hits are higher up; factors of ten are equally far apart.
        let lru = &points[3..6];
        assert!(lru[0].0 < lru[1].0 && lru[1].0 < lru[2].0 && lru[0].1 > lru[2].1);
        assert!((lru[1].0 - lru[0].0 - (lru[2].0 - lru[1].0)).abs() < 0.2);
    }

    #[test]
    fn a_single_run_and_equal_ratios_are_drawn_too() {
        for runs in [vec![run("lru", 1, 0.0, None)], vec![run("a", 5, 1.0, None), run("b", 9, 1.0, None)], vec![]] {
            let svg = svg(&runs, "bytes");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(svg.ends_with("</svg>\n"));
        }
    }
}
