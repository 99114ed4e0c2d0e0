//! The live view, on a terminal of 80 by 24 characters or more.
//!
//! [`draw`] makes a frame of a [`Scene`] and of nothing else, so that a test can draw one. [`show`] takes a scene ten times a
//! second, and hands keys to the controls. Whatever ends it, a key, a signal, the time, an error or a panic in any
//! task, the terminal is as it was before.

use std::io;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Flex, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Clear, Paragraph, Row, Sparkline, Table};
use tokio::sync::mpsc;

use super::controls::{Action, Controls, Event, Stampede, TOUR};
use super::goods::Part;
use super::meter::{Counts, Moment};
use super::play;
use super::report::{Places, time};
use crate::output::grouped;

/// What is drawn.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    /// What the shop runs on.
    pub stores: String,
    /// How things stood, the last one now.
    pub moments: Vec<Moment>,
    /// What happened.
    pub events: Vec<Event>,
    /// The last stampedes without protection and with it, and the queries that were under way around them.
    pub stampedes: [Option<(Stampede, Vec<u64>)>; 2],
    /// The policy that is in.
    pub policy: String,
    /// The module of patterns that is in.
    pub patterns: String,
    /// Whether the far tier can be reached.
    pub far_up: bool,
    /// Whether the database can be reached.
    pub database_up: bool,
    /// Whether customers stay away.
    pub paused: bool,
    /// Whether the help is open.
    pub help: bool,
}

impl Scene {
    /// How a running demo looks now.
    pub fn of(controls: &Controls, places: &Places, help: bool) -> Self {
        let moments = controls.shop.meter.moments(usize::MAX);
        let stampedes = controls.stampedes();
        let around = |stampede: &Stampede| {
            let shown = stampede.at - 0.5..=stampede.at + stampede.lasted.max(2.0) + 1.0;
            let within = moments.iter().filter(|moment| shown.contains(&moment.at.as_secs_f64()));
            within.map(|moment| moment.open_queries).collect::<Vec<_>>()
        };
        let last = |protected| stampedes.iter().rfind(|one| one.protected == protected);
        Scene {
            stores: format!("{} and {}", places.database, places.far),
            stampedes: [false, true].map(|one| last(one).map(|stampede| (stampede.clone(), around(stampede)))),
            moments,
            events: controls.events(),
            policy: controls.policy(),
            patterns: controls.pattern(),
            far_up: controls.shop.far_line.is_up(),
            database_up: controls.shop.database_line.is_up(),
            paused: controls.is_paused(),
            help,
        }
    }

    fn now(&self) -> Moment {
        self.moments.last().copied().unwrap_or_default()
    }

    /// What came between the moment a second ago and now.
    fn last_second(&self) -> (Moment, Moment) {
        let now = self.now();
        let before = self.moments.len().checked_sub(11).map(|at| self.moments[at]).unwrap_or_default();
        (before, now)
    }

    /// A figure over time, as many half seconds as there are columns, each the most of five moments.
    fn history(&self, columns: u16, figure: impl Fn(&Moment) -> u64) -> Vec<u64> {
        // By the clock, not by the end: else the columns would flicker.
        let half = |moment: &Moment| moment.at.as_millis() / 500;
        let halves = self.moments.chunk_by(|a, b| half(a) == half(b));
        let most: Vec<_> = halves.map(|some| some.iter().map(&figure).max().unwrap_or(0)).collect();
        most[most.len().saturating_sub(usize::from(columns))..].into()
    }
}

/// The least size that it can be drawn in.
const LEAST: (u16, u16) = (76, 22);

const GOOD: Color = Color::Green;
const BAD: Color = Color::Red;
const OLD: Color = Color::Yellow;

/// Draws it.
pub fn draw(frame: &mut Frame<'_>, scene: &Scene) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let (width, height) = LEAST;
        let words = format!("Make the terminal {width} by {height} characters or larger; q ends");
        return frame.render_widget(Paragraph::new(words).wrap(ratatui::widgets::Wrap { trim: true }), area);
    }
    let rows =
        [Constraint::Length(1), Constraint::Fill(3), Constraint::Length(8), Constraint::Fill(4), Constraint::Length(2)];
    let [title, charts, parts, below, keys] = Layout::vertical(rows).areas(area);
    head(frame, title, scene);
    let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).areas(charts);
    pages(frame, left, scene);
    database(frame, right, scene);
    served(frame, parts, scene);
    let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).areas(below);
    stampedes(frame, left, scene);
    events(frame, right, scene);
    footer(frame, keys, scene);
    if scene.help {
        help(frame, area);
    }
}

fn panel(title: impl Into<Line<'static>>) -> Block<'static> {
    Block::bordered().border_type(BorderType::Rounded).border_style(Style::new().dim()).title(title.into())
}

fn head(frame: &mut Frame<'_>, area: Rect, scene: &Scene) {
    let seconds = scene.now().at.as_secs();
    let clock = format!("{}:{:02} ", seconds / 60, seconds % 60);
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(clock.len() as u16)]).areas(area);
    let words = [" larder demo ".bold().reversed(), Span::raw(" a shop on "), Span::raw(scene.stores.clone())];
    frame.render_widget(Line::from_iter(words), left);
    frame.render_widget(Line::raw(clock), right);
}

/// A sparkline with a line of words above it.
fn chart(frame: &mut Frame<'_>, area: Rect, block: Block<'static>, words: Line<'_>, data: &[u64], colour: Color) {
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [top, chart] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(inner);
    frame.render_widget(words, top);
    let data: Vec<u64> = data.iter().copied().skip(data.len().saturating_sub(usize::from(chart.width))).collect();
    frame.render_widget(Sparkline::default().data(data).style(colour), chart);
}

fn pages(frame: &mut Frame<'_>, area: Rect, scene: &Scene) {
    let (before, now) = scene.last_second();
    let seconds = (now.at - before.at).as_secs_f64().max(0.1);
    let answered = (now.totals.answered - before.totals.answered) as f64 / seconds;
    let failed = (now.totals.failed - before.totals.failed) as f64 / seconds;
    let failed = Span::styled(format!("{failed:.0} failed/s"), if failed > 0.0 { BAD } else { Color::Reset });
    let words = Line::from_iter([
        Span::raw(format!("{answered:.0}/s, ")),
        failed,
        Span::raw(format!(", {} waiting", grouped(now.totals.open()))),
    ]);
    let [p50, p99] = [now.p50_us, now.p99_us].map(|us| time(us as f64 / 1e3));
    let title = Line::from_iter([" pages: p50 ".into(), p50.bold(), ", p99 ".into(), p99.bold(), " (drawn) ".into()]);
    let data = scene.history(area.width.saturating_sub(2), |moment| moment.p99_us);
    chart(frame, area, panel(title), words, &data, Color::Cyan);
}

fn database(frame: &mut Frame<'_>, area: Rect, scene: &Scene) {
    let (before, now) = scene.last_second();
    let seconds = (now.at - before.at).as_secs_f64().max(0.1);
    let queries = (now.queries - before.queries) as f64 / seconds;
    let reads = |moment: &Moment| moment.parts.iter().map(|counts| counts.reads).sum::<u64>();
    let reads = (reads(&now) - reads(&before)) as f64 / seconds;
    let waiting = now.waiting.map_or(String::new(), |waiting| format!(", {} in line", grouped(waiting)));
    let words = Line::raw(format!("{queries:.0}/s for {reads:.0} reads/s{waiting}"));
    let open = format!("{} queries", grouped(now.open_queries)).bold();
    let title = match scene.database_up {
        true => Line::from_iter([" database: ".into(), open, " under way (drawn) ".into()]),
        false => Line::from_iter([" database: ".into(), Span::styled("cut off ", Style::new().fg(BAD).bold())]),
    };
    let data = scene.history(area.width.saturating_sub(2), |moment| moment.open_queries);
    chart(frame, area, panel(title), words, &data, Color::Magenta);
}

fn served(frame: &mut Frame<'_>, area: Rect, scene: &Scene) {
    let (before, now) = scene.last_second();
    let seconds = (now.at - before.at).as_secs_f64().max(0.1);
    let recent = scene.moments.iter().rev().take(10);
    let oldest = recent
        .fold([0; 5], |most: [u64; 5], moment| std::array::from_fn(|part| most[part].max(moment.oldest_ms[part])));
    let shown = |part: Part| {
        let counts = now.parts[part as usize].since(&before.parts[part as usize]);
        let Counts { reads, near, far, database, failed, stale, rescued, .. } = counts;
        let rate = |count: u64| format!("{:.0}", count as f64 / seconds);
        let percent = |of: u64| if reads == failed { "-".into() } else { format!("{:.1}", 100.0 * counts.share(of)) };
        let style = |count: u64, colour| if count > 0 { Style::new().fg(colour) } else { Style::new().dim() };
        let right = |text: String, style: Style| Line::styled(text, style).right_aligned();
        let plain = Style::new();
        Row::new([
            Line::raw(part.name()),
            right(rate(reads), plain),
            right(percent(near), Style::new().fg(GOOD)),
            right(percent(far), plain),
            right(percent(database), plain),
            right(rate(stale), style(stale, OLD)),
            right(rate(rescued), style(rescued, OLD)),
            right(rate(failed), style(failed, BAD)),
            right(format!("{:.1} s", counts.mean_age().as_secs_f64()), plain),
            right(format!("{:.0} s", oldest[part as usize] as f64 / 1e3), plain),
        ])
    };
    let names = ["served", "reads/s", "near %", "far %", "db %", "stale/s", "rescued/s", "failed/s", "age", "oldest"];
    let head = names.iter().enumerate().map(|(i, name)| match i {
        0 => Line::raw(*name),
        _ => Line::raw(*name).right_aligned(),
    });
    let widths = [8, 7, 6, 6, 6, 7, 9, 8, 6, 6].map(Constraint::Length);
    let wrong: u64 = now.parts.iter().map(|counts| counts.wrong).sum();
    let all: u64 = now.parts.iter().map(|counts| counts.reads).sum();
    let title = Line::from_iter([
        Span::raw(" older than an acknowledged change: "),
        Span::styled(grouped(wrong), Style::new().fg(if wrong == 0 { GOOD } else { BAD }).bold()),
        Span::raw(format!(" of {} reads ", grouped(all))),
    ]);
    let table = Table::new(Part::ALL.map(shown), widths)
        .header(Row::new(head).style(Style::new().add_modifier(Modifier::BOLD)))
        .flex(Flex::SpaceBetween)
        .column_spacing(0)
        .block(panel(title));
    frame.render_widget(table, area);
}

fn stampedes(frame: &mut Frame<'_>, area: Rect, scene: &Scene) {
    let block = panel(" stampede: queries under way ");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let most = scene.stampedes.iter().flatten().flat_map(|(_, open)| open).max().copied().unwrap_or(1);
    let halves = Layout::vertical([Constraint::Fill(1); 2]).areas::<2>(inner);
    let sides = [("without protection", 'u', BAD), ("with protection", 'e', GOOD)];
    for ((shown, area), (name, key, colour)) in scene.stampedes.iter().zip(halves).zip(sides) {
        let [words, drawn] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        match shown {
            None => frame.render_widget(Line::raw(format!("{name}: press {key}")).dim(), words),
            Some((stampede, open)) => {
                let plural = if stampede.queries == 1 { "query" } else { "queries" };
                let queries = format!("{} {plural}", grouped(stampede.queries));
                let p99 = format!(" p99 {}", time(stampede.worst_p99_ms));
                let short = name.split(' ').next().unwrap_or(name);
                let line = Line::from_iter([format!("{short}: ").into(), queries.fg(colour).bold(), p99.into()]);
                frame.render_widget(line, words);
                // One scale for both, or they could not be compared.
                let width = usize::from(drawn.width).max(1);
                let most_of = |some: &[u64]| some.iter().copied().max().unwrap_or(0);
                let data: Vec<u64> = open.chunks(open.len().div_ceil(width).max(1)).map(most_of).collect();
                frame.render_widget(Sparkline::default().data(data).max(most.max(1)).style(colour), drawn);
            }
        }
    }
}

fn events(frame: &mut Frame<'_>, area: Rect, scene: &Scene) {
    let block = panel(" what happened ");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    // The last ones, broken into lines, as many as there is room for.
    let width = usize::from(inner.width);
    let mut lines: Vec<Line<'_>> = Vec::new();
    for event in &scene.events {
        let mut words = format!("{:.0} s ", event.at);
        for word in event.what.split(' ') {
            if words.chars().count() + word.chars().count() >= width && !words.trim().is_empty() {
                lines.push(Line::raw(std::mem::replace(&mut words, "  ".into())));
            }
            words.push_str(word);
            words.push(' ');
        }
        lines.push(Line::raw(words));
    }
    if lines.is_empty() {
        lines.push(Line::raw("press a key below, or t for a tour").dim());
    }
    let room = usize::from(inner.height);
    let last = lines.split_off(lines.len().saturating_sub(room));
    frame.render_widget(Paragraph::new(last), inner);
}

fn footer(frame: &mut Frame<'_>, area: Rect, scene: &Scene) {
    let key = |key: &'static str| Span::styled(key, Style::new().add_modifier(Modifier::BOLD).fg(Color::Cyan));
    let store = |up: bool| match up {
        true => Span::styled("up", GOOD),
        false => Span::styled("CUT", Style::new().fg(BAD).bold()),
    };
    let first = Line::from_iter([
        key(" e"),
        " expire the hottest key  ".into(),
        key("u"),
        " ... unprotected  ".into(),
        key("f"),
        " far tier ".into(),
        store(scene.far_up),
        "  ".into(),
        key("d"),
        " database ".into(),
        store(scene.database_up),
    ]);
    let second = Line::from_iter([
        key(" s"),
        format!(" swap {}  ", scene.policy).into(),
        key("m"),
        format!(" swap {}  ", scene.patterns).into(),
        key("t"),
        " tour  ".into(),
        key("p"),
        if scene.paused { Span::styled(" PAUSED  ", Style::new().fg(OLD).bold()) } else { " pause  ".into() },
        key("?"),
        " help  ".into(),
        key("q"),
        " quit".into(),
    ]);
    frame.render_widget(Paragraph::new(vec![first, second]), area);
}

const HELP: &str = "\
Customers look at product pages of five parts; each part is a
keyspace with its own rule, in two processes that share a far tier,
a bus and a database.

 e  a new release: the template that 7 of 10 pages need is
    invalidated; its rule lets one process load it once
 u  the same with a time to live and nothing else: whoever
    misses loads, and everybody stands in line behind that
 f  cut the line to the far tier and the bus, or mend it
 d  cut the line to the database, or mend it: pages live on
    copies that may be served old (rescued)
 s  swap the eviction policy in all caches, for the next built-in
 m  swap the module of patterns (larder demo --patterns FILE)
 t  all of this once, in half a minute
 p  no more customers, or customers again      q  quit

near: this process's memory. db: a load, its own or another's.
age: since what was served was loaded. Every read is checked
against what was acknowledged when it began.";

fn help(frame: &mut Frame<'_>, area: Rect) {
    let height = HELP.lines().count() as u16 + 2;
    let width = HELP.lines().map(str::len).max().unwrap_or(0) as u16 + 4;
    let [middle] = Layout::vertical([Constraint::Length(height)]).flex(Flex::Center).areas(area);
    let [middle] = Layout::horizontal([Constraint::Length(width)]).flex(Flex::Center).areas(middle);
    frame.render_widget(Clear, middle);
    let block = panel(" help: any key closes it ").padding(ratatui::widgets::Padding::horizontal(1));
    frame.render_widget(Paragraph::new(HELP).block(block), middle);
}

/// A task has panicked: the terminal is as it was, and the panic's message is on it.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Shows it until a key, a signal or the time ends it.
///
/// # Errors
/// Where the terminal cannot be used, or a task has panicked.
pub async fn show(controls: &Arc<Controls>, places: &Places, seconds: Option<Duration>) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init().context("cannot use the terminal; try --plain")?;
    // Ratatui's own hook puts the terminal back; tokio goes on after the panic of a task, but nobody would see it.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        PANICKED.store(true, Ordering::SeqCst);
        hook(panic);
    }));
    let shown = run(&mut terminal, controls, places, seconds).await;
    ratatui::try_restore().context("cannot put the terminal back as it was; `reset` does")?;
    shown
}

async fn run(
    terminal: &mut ratatui::DefaultTerminal,
    controls: &Arc<Controls>,
    places: &Places,
    seconds: Option<Duration>,
) -> anyhow::Result<()> {
    let (sender, mut inputs) = mpsc::unbounded_channel();
    // Reading keys blocks. The thread ends at the first input after nobody listens, or with the process.
    std::thread::spawn(move || while sender.send(event::read()).is_ok() {});
    let ends = async {
        match seconds {
            Some(seconds) => tokio::time::sleep(seconds).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(ends);
    let stopped = stopped();
    tokio::pin!(stopped);
    let mut frames = tokio::time::interval(Duration::from_millis(100));
    frames.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut help = false;
    loop {
        tokio::select! {
            _ = frames.tick() => {}
            input = inputs.recv() => match input {
                Some(Ok(Input::Key(key))) if key.kind == KeyEventKind::Press => {
                    if pressed(key, controls, &mut help) {
                        return Ok(());
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("cannot read keys"),
                None => return Ok(()),
            },
            () = &mut ends => return Ok(()),
            signal = &mut stopped => return signal.context("cannot hear signals"),
        }
        anyhow::ensure!(!PANICKED.load(Ordering::SeqCst), "a task of the demo panicked: its message is above");
        let scene = Scene::of(controls, places, help);
        terminal.draw(|frame| draw(frame, &scene)).context("cannot draw")?;
    }
}

/// What a key does; whether it ends the demo.
fn pressed(key: KeyEvent, controls: &Arc<Controls>, help: &mut bool) -> bool {
    let interrupts = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    if interrupts || key.code == KeyCode::Char('q') {
        return true;
    }
    if std::mem::take(help) {
        return false;
    }
    match key.code {
        KeyCode::Char('e') => controls.act(Action::Protected),
        KeyCode::Char('u') => controls.act(Action::Unprotected),
        KeyCode::Char('f') => controls.act(Action::Far(!controls.shop.far_line.is_up())),
        KeyCode::Char('d') => controls.act(Action::Database(!controls.shop.database_line.is_up())),
        KeyCode::Char('s') => controls.act(Action::Policy),
        KeyCode::Char('m') => controls.act(Action::Patterns),
        KeyCode::Char('t') => drop(tokio::spawn(play(controls.clone(), TOUR.into()))),
        KeyCode::Char('p' | ' ') => controls.act(Action::Pause(!controls.is_paused())),
        KeyCode::Char('?' | 'h') => *help = true,
        KeyCode::Esc => return true,
        _ => {}
    }
    false
}

/// Somebody ends the process from outside.
async fn stopped() -> io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            interrupt = tokio::signal::ctrl_c() => interrupt?,
        }
        Ok(())
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::demo::meter::Totals;

    fn scene() -> Scene {
        let moment = |tenth: u64| {
            let counts = Counts {
                reads: 50 * tenth,
                near: 40 * tenth,
                far: 5 * tenth,
                database: 5 * tenth,
                rescued: tenth,
                age_ms: 100_000 * tenth,
                ..Counts::default()
            };
            Moment {
                at: Duration::from_millis(100 * tenth),
                totals: Totals { asked: 50 * tenth + 7, answered: 50 * tenth, ..Totals::default() },
                parts: [counts; 5],
                oldest_ms: [12_000; 5],
                queries: 30 * tenth,
                open_queries: if tenth > 500 { 120 } else { 3 },
                waiting: Some(104),
                p50_us: 1_500,
                p99_us: 2_500_000,
            }
        };
        let stampede = |protected, queries| Stampede {
            protected,
            at: 5.0,
            queries,
            lasted: 2.0,
            most_open_queries: 120,
            worst_p99_ms: 2_500.0,
        };
        Scene {
            stores: "an embedded database and a tier in memory".into(),
            moments: (0..620).map(moment).collect(),
            events: vec![Event {
                at: 5.0,
                what: "a new release: the template `en` goes, and nothing protects the database".into(),
            }],
            stampedes: [Some((stampede(false, 143), vec![3, 3, 120, 80, 3])), Some((stampede(true, 1), vec![3; 40]))],
            policy: "s3-fifo".into(),
            patterns: "patterns".into(),
            far_up: true,
            database_up: false,
            ..Scene::default()
        }
    }

    fn drawn(scene: &Scene, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, scene)).unwrap();
        terminal.backend().to_string()
    }

    /// The words, with single spaces between them.
    fn words(screen: &str) -> String {
        screen.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn all_there_is_to_know_in_80_by_24() {
        let scene = scene();
        let screen = drawn(&scene, 80, 24);
        let shown = words(&screen);
        for expected in [
            "larder demo a shop on an embedded database and a tier in memory 1:01",
            "pages: p50 1.5 ms, p99 2.5 s",
            "500/s, 0 failed/s, 7 waiting",
            "database: cut off",
            "300/s for 2500 reads/s, 104 in line",
            "stampede: queries under way",
            "older than an acknowledged change: 0 of 154,750 reads",
            "served reads/s near % far % db % stale/s rescued/s failed/s age oldest",
            "template 500 80.0 10.0 10.0 0 10 0 2.0 s 12 s",
            "stock 500 80.0 10.0 10.0",
            "without: 143 queries p99 2.5 s",
            "with: 1 query p99 2.5 s",
            "5 s a new release: the template `en`",
            "expire the hottest key u ... unprotected f far tier up d database CUT",
            "s swap s3-fifo m swap patterns t tour p pause ? help q quit",
        ] {
            assert!(shown.contains(expected), "{expected}\n{screen}");
        }
    }

    #[test]
    fn a_wrong_read_is_seen() {
        let mut scene = scene();
        scene.moments.last_mut().unwrap().parts[2].wrong = 3;
        assert!(words(&drawn(&scene, 80, 24)).contains("older than an acknowledged change: 3 of"));
    }

    #[test]
    fn any_size_and_any_moment_can_be_drawn() {
        let mut help = scene();
        help.help = true;
        for (width, height) in [(1, 1), (10, 3), (76, 22), (80, 24), (81, 50), (200, 60), (400, 30)] {
            for scene in [Scene::default(), scene(), help.clone()] {
                let screen = drawn(&scene, width, height);
                assert!(width < 76 || screen.contains("larder demo"), "{width} x {height}\n{screen}");
            }
        }
        assert!(words(&drawn(&help, 80, 24)).contains("cut the line to the far tier and the bus"));
        assert!(words(&drawn(&Scene::default(), 79, 20)).contains("Make the terminal"));
        assert!(words(&drawn(&Scene::default(), 80, 24)).contains("press a key below, or t for a tour"));
    }

    #[test]
    fn history_is_the_most_of_each_half_second() {
        let mut scene = scene();
        scene.moments[612].open_queries = 999;
        let history = scene.history(4, |moment| moment.open_queries);
        assert_eq!(history, [120, 120, 999, 120]);
        assert_eq!(scene.history(500, |moment| moment.open_queries).len(), 124);
    }
}
