//! The `larder` command.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use larder_cli::args::{Cli, Command, Policy, exit};
use larder_cli::scaffold::{self, ScaffoldError};
use larder_cli::trace::TraceError;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads our output has read enough, as `head` does.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(code(&error))
        }
    }
}

/// The exit code that the help promises for an error.
fn code(error: &anyhow::Error) -> u8 {
    match () {
        () if error.is::<TraceError>() => exit::TRACE,
        () if matches!(error.downcast_ref(), Some(ScaffoldError::Name(_) | ScaffoldError::NotTheSdk(_))) => exit::USAGE,
        () => exit::FAILURE,
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Completions { shell } => {
            // Into memory first: the generator panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "larder", &mut script);
            Ok(io::stdout().write_all(&script)?)
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
            .context("cannot print")
        }
        other => anyhow::bail!("not in this build yet: {other:?}"),
    }
}
