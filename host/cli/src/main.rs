//! The `larder` command.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use larder::{PolicyError, Role};
use larder_cli::args::{Cli, Command, ListFormat, Policy, Replay, Usage, exit};
use larder_cli::demo;
use larder_cli::modules::{self, Card};
use larder_cli::operate;
use larder_cli::output;
use larder_cli::plot;
use larder_cli::replay::{self, Named, Outcome, Plan, ReplayError, Source, Unit};
use larder_cli::scaffold::{self, ScaffoldError};
use larder_cli::trace;
use larder_guest::testkit::Suite;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        // Who reads our output has read enough, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            larder_cli::say!("error: {}", output::told(&error));
            ExitCode::from(code(&error))
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = match error.downcast_ref::<serde_json::Error>() {
        Some(error) => error.io_error_kind(),
        None => error.downcast_ref::<io::Error>().map(io::Error::kind),
    };
    kind == Some(io::ErrorKind::BrokenPipe)
}

/// The exit code that the help promises for an error.
fn code(error: &anyhow::Error) -> u8 {
    if error.is::<PolicyError>() {
        return exit::POLICY;
    }
    if error.is::<Usage>() {
        return exit::USAGE;
    }
    match error.downcast_ref() {
        Some(ScaffoldError::Name(_) | ScaffoldError::NotTheSdk(_)) => return exit::USAGE,
        Some(_) => return exit::FAILURE,
        None => {}
    }
    match error.downcast_ref() {
        Some(ReplayError::Trace(_)) => exit::TRACE,
        Some(ReplayError::Policy(_) | ReplayError::Swap(_) | ReplayError::Shadow(_)) => exit::POLICY,
        Some(ReplayError::Shape(_) | ReplayError::NeverReached { .. } | ReplayError::TooLong(_)) => exit::USAGE,
        Some(ReplayError::Threads { .. } | ReplayError::Changed(_)) | None => exit::FAILURE,
    }
}

fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Demo(args) => demo::run(args),
        Command::Keys(args) => operate::keys(&args, &mut io::stdout()),
        Command::Get(args) => operate::get(&args, &mut io::stdout()),
        Command::Invalidate(args) => operate::invalidate(&args, &mut io::stdout()),
        Command::Tags(args) => operate::tags(&args, &mut io::stdout()),
        Command::Journal(args) => operate::journal(&args, &mut io::stdout()),
        Command::Doctor(args) => operate::doctor(&args, &mut io::stdout()),
        Command::Replay(args) => replay_traces(*args),
        Command::Policy(Policy::List { format }) => {
            let cards = modules::builtins()?;
            match format {
                ListFormat::Table => modules::list(&cards, &mut io::stdout())?,
                ListFormat::Json => json(&cards)?,
            }
            Ok(exit::SUCCESS)
        }
        Command::Policy(Policy::Inspect { file, format }) => {
            let card = Card::find(&file)?;
            match format {
                ListFormat::Table => card.write(&mut io::stdout())?,
                ListFormat::Json => json(&card)?,
            }
            Ok(exit::SUCCESS)
        }
        Command::Policy(Policy::Check { file, histories, events, seed }) => {
            let end = seed.checked_add(histories).ok_or_else(|| {
                let most = u64::MAX - histories;
                Usage(format!(
                    "there are not {histories} histories from --seed {seed} on: choose one of at most {most}"
                ))
            })?;
            check(&file, &Suite { seeds: seed..end, events, ..Suite::default() })
        }
        Command::Policy(Policy::New { name, path, sdk }) => {
            let path = path.unwrap_or_else(|| PathBuf::from(&name));
            scaffold::write(&name, &path, sdk.as_deref())?;
            let shown = path.display();
            let module = format!("target/wasm32-wasip2/release/{}.wasm", name.replace('-', "_"));
            writeln!(
                io::stdout(),
                "wrote {shown}: the policy is {shown}/src/lib.rs\n\nnext:\n  cd {shown}\n  cargo test\n  \
                 cargo build --release --target wasm32-wasip2\n  larder policy check {module}"
            )
            .context("cannot print")?;
            Ok(exit::SUCCESS)
        }
        Command::Completions { shell } => {
            // Into memory first: the generator panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "larder", &mut script);
            io::stdout().write_all(&script)?;
            Ok(exit::SUCCESS)
        }
    }
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    // Into memory first: an error of writing stays one of writing.
    out.write_all(&serde_json::to_vec_pretty(value)?)?;
    Ok(writeln!(out)?)
}

fn named(text: &str) -> Result<Named, PolicyError> {
    Ok(Named { text: text.into(), policy: text.parse()? })
}

fn replay_traces(args: Replay) -> anyhow::Result<u8> {
    let no_plot = |path: &Path| format!("cannot write the plot to {}; choose another --plot", path.display());
    if let Some(path) = &args.plot {
        output::can_be_written(path).with_context(|| no_plot(path))?;
    }
    let options = trace::Options { format: args.trace_format, columns: args.trace_columns };
    let files = args.traces.into_iter().map(|path| Source::File(path, options.clone()));
    let (unit, capacities) = match args.capacity_bytes.is_empty() {
        true => (Unit::Entries, args.capacity),
        false => (Unit::Bytes, args.capacity_bytes),
    };
    let plan = Plan {
        sources: files.chain(args.synthetic.into_iter().map(Source::Synthetic)).collect(),
        policies: args.policy.iter().map(|text| named(text)).collect::<Result<_, _>>()?,
        capacities,
        unit,
        threads: args.threads,
        shards: args.shards,
        exact: args.exact,
        swaps: args
            .swap
            .into_iter()
            .map(|swap| Ok((swap.at, named(&swap.policy)?)))
            .collect::<Result<_, PolicyError>>()?,
        shadow: args.shadow.as_deref().map(named).transpose()?,
        opt: args.opt,
    };
    let outcomes = replay::replay(&plan, io::stderr().is_terminal())?;
    let runs: Vec<_> = outcomes.iter().map(|outcome| outcome.run.clone()).collect();
    output::write(&runs, args.format, &mut io::stdout().lock())?;
    if let (Some(asked), Some(run)) = (args.shards, runs.first())
        && asked.get() as u64 != run.shards
    {
        larder_cli::say!("--shards {asked} was rounded up to {}: the shards of a cache are a power of two", run.shards);
    }
    outcomes.iter().for_each(remark);
    if let Some(path) = args.plot {
        let unit = if plan.unit == Unit::Bytes { "bytes" } else { "entries" };
        std::fs::write(&path, plot::svg(&runs, unit)).with_context(|| no_plot(&path))?;
    }
    match outcomes.iter().any(Outcome::has_stopped) {
        true => Ok(exit::STOPPED),
        false => Ok(exit::SUCCESS),
    }
}

/// What there is to say of a run beside its figures, on standard error.
fn remark(outcome: &Outcome) {
    let run = &outcome.run;
    let which = format!("{} at {}, {}", run.trace, output::grouped(run.capacity), run.policy);
    let percent = |ratio: Option<f64>| ratio.map_or("none".into(), |ratio| format!("{:.2} %", 100.0 * ratio));
    for (at, swap) in &outcome.swaps {
        larder_cli::say!(
            "{which}: swapped {} for {} at request {}: {} entries adopted, {} evicted, pause {:.0?}, took {:.0?}, \
             hit ratio {} before, {} after",
            swap.from,
            swap.to,
            output::grouped(*at),
            output::grouped(swap.adopted),
            output::grouped(swap.evicted),
            swap.pause,
            swap.took,
            percent(swap.hit_ratio_before),
            percent(swap.hit_ratio_after),
        );
    }
    if let Some(shadow) = &outcome.shadow {
        larder_cli::say!(
            "{which}: {} would have had {} where the cache had {}, on {} of the keys ({} requests){}",
            shadow.policy,
            percent(Some(shadow.shadow_hit_ratio())),
            percent(Some(shadow.hit_ratio())),
            percent(Some(shadow.sample)),
            output::grouped(shadow.reads),
            shadow.fault.as_ref().map(|fault| format!("; it was ended: {fault}")).unwrap_or_default(),
        );
    }
    if run.faults > 0 {
        let (faults, traps) = (output::grouped(run.faults), outcome.traps);
        let ending = if traps > 0 { "; the cache went on without the policy" } else { "" };
        larder_cli::say!("{which}: {faults} faults, {traps} of them fatal{ending}");
        outcome.faults.iter().take(3).for_each(|fault| larder_cli::say!("  {fault}"));
    }
    for policy in &outcome.faulty {
        larder_cli::say!("  `larder policy check {policy}` finds out what it does wrong");
    }
}

fn check(file: &str, suite: &Suite) -> anyhow::Result<u8> {
    let module = match named(file).and_then(|named| named.policy.load()) {
        Err(error @ PolicyError::OtherRole { role: Role::Patterns, .. }) => {
            return Err(error).context(
                "`larder policy check` is for eviction policies; `cargo test` in its own crate checks a module of \
                 patterns, by larder_guest::testkit::patterns::check",
            );
        }
        loaded => loaded?,
    };
    let (name, version) = (module.name(), &module.description().version);
    let bar = replay::bar(io::stderr().is_terminal(), suite.seeds.end - suite.seeds.start, name.into());
    let verdict = modules::check(&module, suite, &bar, |words| bar.suspend(|| larder_cli::say!("{words}")));
    bar.finish_and_clear();
    let mut out = io::stdout();
    match verdict {
        Ok(report) => {
            let [histories, events, victims] = [report.histories, report.events, report.victims].map(output::grouped);
            writeln!(
                out,
                "{name} {version} keeps the contract: {histories} random histories of {events} events in all, {victims} \
                 victims, nothing wrong"
            )?;
            Ok(exit::SUCCESS)
        }
        Err(violation) => {
            writeln!(out, "{name} {version} breaks the contract\n{violation}")?;
            let events = match suite.events == Suite::default().events {
                true => String::new(),
                false => format!(" --events {}", suite.events),
            };
            writeln!(out, "again: larder policy check {file} --seed {} --histories 1{events}", violation.seed)?;
            Ok(exit::FAILURE)
        }
    }
}
