//! `larder demo`: a shop under load, to look at and to break.
//!
//! A shop's product page is made of five parts, each a keyspace with its own rule ([`shop`]), out of a database that is slow
//! for the reasons that databases are ([`database`]), behind lines that can be cut ([`stores`]). Customers come whether the
//! shop is fast or not ([`customers`]). What they get is checked, read for read, against what was acknowledged
//! ([`ledger`]), and counted ([`meter`]). A person at a terminal sees it live ([`view`]) and may do what operations
//! dread ([`controls`]); a script gets a line a second and a report ([`report`]), or a picture ([`picture`]).
//!
//! Nothing here is a simulation of Larder: the caches are [`larder::Tiered`], and the modules are those that everybody gets.
//! What stands for something else are the customers, the database and the network to the far tier.

pub mod books;
pub mod controls;
pub mod customers;
pub mod database;
pub mod goods;
pub mod ledger;
pub mod meter;
pub mod picture;
pub mod postgres;
pub mod redis;
pub mod report;
pub mod shop;
pub mod stores;
pub mod view;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use larder::tiered::{Bus, LocalBus, MemoryTier, Tier};
use larder::{Patterns, Policy};
use tokio::time::{Instant, MissedTickBehavior};

use crate::args::{Demo, ListFormat, exit};
use crate::output;
use books::Books;
use controls::{Action, Controls, Cue, TOUR};
use database::Database;
use postgres::Postgres;
use report::{HEAD, Places, Report};
use shop::{Plan, Shop};
use stores::{Line, RemoteTier, Stores};

/// How long a run without a terminal takes, if nothing is said.
const SECONDS: u64 = 30;

/// Runs the demo; the exit code.
///
/// # Errors
/// What kept the shop from opening, or the terminal or a file from being written.
pub fn run(args: Demo) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let code = runtime.block_on(open(args));
    // Loads may wait at the database still; nobody waits for them.
    runtime.shutdown_background();
    code
}

async fn open(mut args: Demo) -> anyhow::Result<u8> {
    if args.clean {
        return clean(&args).await;
    }
    if let Some(path) = &args.record {
        output::can_be_written(path).with_context(|| cannot_write(path))?;
    }
    let live = io::stdout().is_terminal() && !args.plain && args.record.is_none() && args.format == ListFormat::Table;
    let seconds = args.seconds.or((!live).then_some(SECONDS)).map(Duration::from_secs);
    let is_tour = args.at.is_empty();
    let cues: Vec<Cue> = match (args.at.is_empty(), live) {
        // First the caches fill, which the database feels.
        _ if args.record.is_some() => vec![Cue { at: Duration::from_secs(8), action: Action::Unprotected }],
        (false, _) => std::mem::take(&mut args.at),
        (true, true) => Vec::new(),
        (true, false) => TOUR.into(),
    };
    let too_late = |end: Duration| cues.iter().find(|cue| cue.at >= end).map(|cue| (cue.at, end));
    if let Some((at, end)) = seconds.filter(|_| args.record.is_none()).and_then(too_late) {
        let (at, seconds) = (at.as_secs_f64(), end.as_secs());
        anyhow::ensure!(is_tour, "--at {at} is after the end, {seconds} seconds: set --seconds to more");
        let whole = SECONDS;
        writeln!(io::stderr(), "the tour takes {whole} seconds: of it, what comes after {seconds} is left out")?;
    }
    let policies = policies(args.policy.as_deref())?;
    let patterns =
        [Patterns::builtin()].into_iter().chain(args.patterns.iter().map(Patterns::file)).collect::<Vec<_>>();
    // A file may be no module: better now than in the middle.
    patterns.iter().try_for_each(|patterns| patterns.load().map(drop))?;
    let plan = Plan {
        products: args.products.get(),
        near: u64::from(args.products.get() / 5).max(16),
        policy: policies[0].clone(),
        patterns: patterns[0].clone(),
        seed: args.seed,
    };
    let (database, stores) = stores(&args, &plan).await?;
    let places = Places { database: database.summary(), far: stores[0].far.summary() };
    let shop = Arc::new(Shop::open(plan, database, stores).await?);
    let controls = Controls::new(shop.clone(), policies, patterns);
    let tasks = [
        tokio::spawn(customers::browse(shop.clone(), args.rate, controls.paused.clone())),
        tokio::spawn(customers::run(shop.clone(), controls.paused.clone())),
        tokio::spawn(remember(shop.clone())),
        tokio::spawn(play(controls.clone(), cues)),
    ];
    let ended = match &args.record {
        None if live => view::show(&controls, &places, seconds).await,
        None => plain(&controls, seconds, args.format).await,
        Some(_) => tokio::select! {
            ended = plain(&controls, None, args.format) => ended,
            recorded = both_stampedes(&controls) => recorded,
        },
    };
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    ended?;

    if let Some(path) = &args.record {
        let picture = picture(&controls, &places, args.rate)?;
        std::fs::write(path, picture).with_context(|| cannot_write(path))?;
    }
    let report = Report::of(&controls, &places).await;
    let mut out = io::stdout().lock();
    match args.format {
        ListFormat::Table => report.write(&mut out)?,
        ListFormat::Json => {
            out.write_all(&serde_json::to_vec_pretty(&report)?)?;
            writeln!(out)?;
        }
    }
    Ok(if report.wrong_reads == 0 { exit::SUCCESS } else { exit::FAILURE })
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write the picture to {}; choose another --record", path.display())
}

/// The database, and the stores of each process.
async fn stores(args: &Demo, plan: &Plan) -> anyhow::Result<(Books, Vec<Stores>)> {
    let mut shared = Vec::new();
    match &args.redis {
        None => {
            let memory = RemoteTier::new(MemoryTier::new(8 * u64::from(plan.products) + 64)?, Line::new());
            let far: Arc<dyn Tier> = Arc::new(memory.round_trip(Duration::from_micros(500)));
            let bus: Arc<dyn Bus> = Arc::new(LocalBus::new());
            shared.resize(shop::PROCESSES, (far, bus));
        }
        Some(url) => {
            for _ in 0..shop::PROCESSES {
                shared.push(redis::connect(url).await?);
            }
        }
    }
    let shared = shared.into_iter();
    Ok(match &args.postgres {
        None => {
            let database = Arc::new(Database::new(plan.products, plan.seed));
            let stores = shared.map(|(far, bus)| stores::embedded(&database, far, bus)).collect();
            (Books::Embedded(database), stores)
        }
        Some(url) => {
            let postgres = Postgres::open(url, plan.products, plan.seed).await?;
            let stores = shared.map(|(far, bus)| postgres.stores(far, bus)).collect::<anyhow::Result<_>>()?;
            (Books::Postgres(postgres), stores)
        }
    })
}

/// Takes away what a demo has left.
async fn clean(args: &Demo) -> anyhow::Result<u8> {
    anyhow::ensure!(
        args.postgres.is_some() || args.redis.is_some(),
        "--clean is for real stores: say which, by --postgres and --redis; the embedded ones leave nothing"
    );
    let mut out = io::stdout();
    if let Some(url) = &args.postgres {
        Postgres::clean_up(url).await?;
        writeln!(out, "the schema {} is gone", postgres::SCHEMA)?;
    }
    if let Some(url) = &args.redis {
        let keys = redis::clean_up(url).await?;
        writeln!(out, "{keys} keys that begin with {} are gone", redis::PREFIX)?;
    }
    Ok(exit::SUCCESS)
}

/// Waits for a stampede without protection, then has one with it.
async fn both_stampedes(controls: &Arc<Controls>) -> anyhow::Result<()> {
    let begun = Instant::now();
    for stampedes in 1..=2 {
        while controls.stampedes().len() < stampedes {
            anyhow::ensure!(
                begun.elapsed() < Duration::from_secs(120),
                "the shop did not get over the stampede within two minutes: lower --rate"
            );
            tokio::time::sleep(meter::TICK).await;
        }
        // What comes after it belongs to the picture.
        tokio::time::sleep(Duration::from_secs(3)).await;
        if stampedes == 1 {
            controls.act(Action::Protected);
        }
    }
    let stampedes = controls.stampedes();
    let last = stampedes.last().map_or(0.0, |stampede| stampede.at);
    let lasted = stampedes.iter().map(|stampede| stampede.lasted).fold(0.0, f64::max);
    let until = Duration::from_secs_f64(last + picture::after(lasted));
    tokio::time::sleep(until.saturating_sub(controls.shop.meter.elapsed())).await;
    Ok(())
}

/// The picture of both.
fn picture(controls: &Controls, places: &Places, rate: f64) -> anyhow::Result<String> {
    let (stampedes, moments) = (controls.stampedes(), controls.shop.meter.moments(usize::MAX));
    let [without, with] = [false, true].map(|protected| stampedes.iter().find(|one| one.protected == protected));
    let (Some(without), Some(with)) = (without, with) else {
        anyhow::bail!("there were not two stampedes to be drawn: let it run to its end");
    };
    let caption = format!(
        "{rate:.0} customers a second, {} processes; {} ({} connections), {}",
        shop::PROCESSES,
        places.database,
        database::CONNECTIONS,
        places.far
    );
    let side = |stampede| picture::Side { stampede, moments: &moments };
    Ok(picture::svg(&side(without), &side(with), &caption))
}

/// The policies to go around through: the one that was asked for, and then the built-ins.
fn policies(first: Option<&str>) -> anyhow::Result<Vec<Policy>> {
    let first: Policy = first.unwrap_or(Policy::DEFAULT).parse()?;
    first.load()?;
    let others = Policy::builtins().filter(|name| *name != first.to_string()).map(Policy::builtin);
    Ok([Ok(first.clone())].into_iter().chain(others).collect::<Result<_, _>>()?)
}

/// Remembers ten times a second how things stand.
async fn remember(shop: Arc<Shop>) {
    let mut tick = tokio::time::interval(meter::TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        shop.remember();
    }
}

/// Does what a script says, when it says.
async fn play(controls: Arc<Controls>, mut cues: Vec<Cue>) {
    cues.sort_by_key(|cue| cue.at);
    let begun = Instant::now();
    for cue in cues {
        tokio::time::sleep_until(begun + cue.at).await;
        controls.act(cue.action);
    }
}

/// A line a second, until the time is over or somebody interrupts.
async fn plain(controls: &Controls, seconds: Option<Duration>, format: ListFormat) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut tick = tokio::time::interval_at(begun + Duration::from_secs(1), Duration::from_secs(1));
    let (mut last, mut told, mut lines) = (meter::Moment::default(), 0, 0);
    let ends = async {
        match seconds {
            Some(seconds) => tokio::time::sleep_until(begun + seconds).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(ends);
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let over = tokio::select! {
            biased;
            _ = tick.tick() => false,
            () = &mut ends => true,
            signal = &mut interrupted => { signal.context("cannot hear interrupts")?; true },
        };
        if format == ListFormat::Table {
            let mut out = io::stdout().lock();
            for event in controls.events().iter().skip(told) {
                writeln!(out, "{:>6.1}  -- {}", event.at, event.what)?;
                told += 1;
            }
            if let Some(now) = controls.shop.meter.moments(1).pop().filter(|_| !over) {
                if lines % 20 == 0 {
                    writeln!(out, "{HEAD}")?;
                }
                writeln!(out, "{}", report::line(&last, &now))?;
                (last, lines) = (now, lines + 1);
            }
        }
        if over {
            return Ok(());
        }
    }
}
