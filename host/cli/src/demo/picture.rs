//! The picture of a stampede: what the database and the customers went through without protection, and with it.
//!
//! Four panels: two columns, for the two rules, and two rows, for the queries under way and for the time of a page. A row has
//! one scale, so that what is small beside the other looks small. Colours and the page follow the reader's preference, as
//! in [`crate::plot`].

use std::fmt::Write;

use super::controls::Stampede;
use super::meter::Moment;
use super::report::time;
use crate::plot::{COLOURS, STYLE, escape, step};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 470.0;
const LEFT: f64 = 64.0;
/// Where the panels of a row begin, and how wide and high they are.
const COLUMNS: [f64; 2] = [LEFT, LEFT + 398.0];
const ROWS: [f64; 2] = [96.0, 278.0];
const ACROSS: f64 = 370.0;
const DOWN: f64 = 130.0;

/// Seconds before the key expired that are shown.
const BEFORE: f64 = 1.0;

/// One stampede, and how things stood around it.
pub struct Side<'a> {
    /// What came of it.
    pub stampede: &'a Stampede,
    /// How things stood.
    pub moments: &'a [Moment],
}

impl Side<'_> {
    /// Seconds since the key expired, and a figure.
    fn points(&self, after: f64, figure: fn(&Moment) -> f64) -> Vec<(f64, f64)> {
        let points = self.moments.iter().map(|moment| (moment.at.as_secs_f64() - self.stampede.at, figure(moment)));
        points.filter(|(at, _)| (-BEFORE..=after).contains(at)).collect()
    }
}

/// A row of panels: its title, its figure, and how to label its axis.
type Row = (&'static str, fn(&Moment) -> f64, fn(f64) -> String);

/// How many seconds after the key went are drawn, if the longer stampede lasted so many.
pub fn after(lasted: f64) -> f64 {
    (lasted + 1.5).ceil()
}

/// The picture; `caption` says what the shop was.
pub fn svg(without: &Side<'_>, with: &Side<'_>, caption: &str) -> String {
    let after = after(without.stampede.lasted.max(with.stampede.lasted));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         role=\"img\" aria-label=\"A stampede, without protection and with it\">\n<style>\n{STYLE}\n.head {{ font-weight: 600 \
         }} .quiet {{ opacity: .7 }} .area {{ fill-opacity: .25; stroke: none }}\n</style>\n\
         <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n\
         <text class=\"title\" x=\"8\" y=\"22\">A new release: the key that 7 of 10 pages need is invalidated under load</text>\n\
         <text class=\"quiet\" x=\"8\" y=\"42\">{}</text>\n",
        escape(caption)
    );
    let rows: [Row; 2] = [
        ("queries under way at the database", |moment| moment.open_queries as f64, |value| format!("{value:.0}")),
        ("p99 of a page, over a second", |moment| moment.p99_us as f64 / 1e3, time),
    ];
    let sides = [(without, COLOURS[4]), (with, COLOURS[0])];
    for ((title, figure, label), top) in rows.into_iter().zip(ROWS) {
        let points = sides.map(|(side, _)| side.points(after, figure));
        let most = points.iter().flatten().map(|point| point.1).fold(1.0, f64::max);
        let tick = step(most, 4.0);
        let most = (most / tick).ceil() * tick;
        for ((points, (_, colour)), left) in points.iter().zip(sides).zip(COLUMNS) {
            panel(&mut svg, &Panel { left, top, after, most, tick, colour, points, label });
        }
        // Writing to a string does not fail.
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">{title}</text>", top - 10.0);
    }
    for ((side, colour), left) in sides.into_iter().zip(COLUMNS) {
        let Stampede { protected, queries, worst_p99_ms, .. } = side.stampede;
        let rule = if *protected { "Under its rule" } else { "With a TTL alone" };
        let plural = if *queries == 1 { "query" } else { "queries" };
        let said = format!("{rule}: {queries} {plural} for the key, p99 {}", time(*worst_p99_ms));
        let _ = writeln!(svg, "<text class=\"head\" x=\"{left}\" y=\"66\" style=\"fill:{colour}\">{said}</text>");
        let (x, y) = (left + ACROSS / 2.0, ROWS[1] + DOWN + 40.0);
        let _ =
            writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">seconds since it was invalidated</text>");
    }
    svg.push_str("</svg>\n");
    svg
}

struct Panel<'a> {
    left: f64,
    top: f64,
    after: f64,
    most: f64,
    tick: f64,
    colour: &'a str,
    points: &'a [(f64, f64)],
    label: fn(f64) -> String,
}

fn panel(svg: &mut String, panel: &Panel<'_>) {
    let Panel { left, top, after, most, tick, colour, points, label } = panel;
    let (right, bottom) = (left + ACROSS, top + DOWN);
    let x = |seconds: f64| left + (seconds + BEFORE) / (after + BEFORE) * ACROSS;
    let y = |value: f64| bottom - value / most * DOWN;
    for i in 0..=(most / tick).round() as u32 {
        let (at, value) = (y(f64::from(i) * tick), f64::from(i) * tick);
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{left} {at:.1}H{right}\"/>");
        if *left == LEFT {
            let words = if value == 0.0 { "0".into() } else { label(value) };
            let _ =
                writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{words}</text>", left - 8.0, at + 4.0);
        }
    }
    let every = step(after + BEFORE, 8.0).max(1.0);
    let mut seconds = 0.0;
    while seconds <= *after {
        let at = x(seconds);
        let _ = writeln!(svg, "<path class=\"axis\" d=\"M{at:.1} {bottom}v5\"/>");
        let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{seconds}</text>", bottom + 19.0);
        seconds += every;
    }
    let _ = writeln!(svg, "<path class=\"axis\" stroke-dasharray=\"3 4\" d=\"M{:.1} {top}V{bottom}\"/>", x(0.0));
    let _ = writeln!(svg, "<path class=\"axis\" d=\"M{left} {top}V{bottom}H{right}\"/>");
    let line: Vec<_> = points.iter().map(|&(at, value)| format!("{:.1},{:.1}", x(at), y(value))).collect();
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        let (from, to) = (x(first.0), x(last.0));
        let area = line.join(" ");
        let _ = writeln!(
            svg,
            "<polygon class=\"area\" fill=\"{colour}\" points=\"{from:.1},{bottom} {area} {to:.1},{bottom}\"/>"
        );
        let _ = writeln!(svg, "<polyline class=\"line\" stroke=\"{colour}\" points=\"{area}\"/>");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn moments(open: impl Fn(u64) -> u64) -> Vec<Moment> {
        let moment = |tenth: u64| Moment {
            at: Duration::from_millis(100 * tenth),
            open_queries: open(tenth),
            p99_us: 1_000 * open(tenth),
            ..Moment::default()
        };
        (0..200).map(moment).collect()
    }

    fn stampede(protected: bool, queries: u64, lasted: f64) -> Stampede {
        Stampede { protected, at: 5.0, queries, lasted, most_open_queries: queries, worst_p99_ms: 10.0 }
    }

    #[test]
    fn both_sides_are_drawn_on_one_scale() {
        let (bad, good) = (stampede(false, 200, 3.0), stampede(true, 1, 0.3));
        let (steep, flat) = (moments(|tenth| if tenth > 50 { 200 } else { 2 }), moments(|_| 2));
        let svg = svg(&Side { stampede: &bad, moments: &steep }, &Side { stampede: &good, moments: &flat }, "a <shop>");
        assert!(svg.contains("a &lt;shop&gt;") && svg.contains("200 queries for") && svg.contains(": 1 query for"));
        assert!(svg.contains("prefers-color-scheme: dark") && svg.ends_with("</svg>\n"));
        let lines: Vec<Vec<(f64, f64)>> = svg
            .lines()
            .filter(|line| line.starts_with("<polyline"))
            .map(|line| {
                let points = line.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
                let pair = |point: &str| point.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()));
                points.split(' ').filter_map(pair).collect()
            })
            .collect();
        assert_eq!(lines.len(), 4);
        // A second before, and five after: three that it lasted, and some.
        assert!(lines.iter().all(|line| line.len() == 61), "{:?}", lines.iter().map(Vec::len).collect::<Vec<_>>());
        for (i, line) in lines.iter().enumerate() {
            let (left, top) = (COLUMNS[i % 2], ROWS[i / 2]);
            for (x, y) in line {
                assert!((left..=left + ACROSS).contains(x) && (top..=top + DOWN).contains(y), "{i}: ({x}, {y})");
            }
        }
        assert!(lines[0][60].1 < lines[0][0].1 - 100.0, "a stampede rises");
        assert!((lines[1][60].1 - lines[0][0].1).abs() < 0.2, "two queries are as high on either side");
    }
}
