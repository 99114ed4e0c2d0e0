//! The command line: every flag is defined here once, and feeds parsing, help and shell completions.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use larder::tiered::WriteId;
use larder_guest::testkit::Suite;

use crate::capacity::Capacity;
use crate::demo::controls::Cue;
use crate::replay::Position;
use crate::synthetic::Synthetic;
use crate::{opt, output, trace};

const EXIT_CODES: &str = "\
Exit codes:
  0  done; `policy check` found nothing wrong
  1  the operation failed, or `policy check` found violations
  2  the command line is wrong
  3  a trace cannot be read, is truncated or malformed
  4  a policy is unknown, its parameters are wrong, or its file is no module that can be used
  5  `replay` ran to its end and printed its results, but had to stop a policy or the shadow (a trap, a deadline,
     memory)";

const EXAMPLES: &str = "\
Examples:
  Which policy suits a workload like this?
    larder replay --synthetic zipf:0.99:1000000:5000000:1 --policy lru,sieve,adaptive --capacity 1%,10% --opt
  Write one, build it, check it:
    larder policy new my-policy && cd my-policy
    cargo build --release --target wasm32-wasip2
    larder policy check target/wasm32-wasip2/release/my_policy.wasm";

/// Exit codes, as the help lists them.
pub mod exit {
    /// Done.
    pub const SUCCESS: u8 = 0;
    /// The operation failed, or a check found violations.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// A trace cannot be read.
    pub const TRACE: u8 = 3;
    /// A policy cannot be used.
    pub const POLICY: u8 = 4;
    /// A policy or a shadow was stopped during a replay.
    pub const STOPPED: u8 = 5;
}

/// Words of the command line that do not go together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Caching policies as WebAssembly components: compare them on traces, and write, inspect and check your own.
#[derive(Debug, Parser)]
#[command(name = "larder", version, max_term_width = 110, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Open a shop under load, to look at and to break: stampedes, dead stores, swaps
    Demo(Demo),
    /// Replay traces against policies: hit ratios, evictions, time a request
    Replay(Box<Replay>),
    /// List the built-in policies; write, inspect and check modules
    #[command(subcommand)]
    Policy(Policy),
    /// List the keys that shared tiers have of a keyspace
    Keys(Keys),
    /// Show what shared tiers have of a key, and on what terms
    Get(Get),
    /// Take copies away, or end their freshness: by key, tag or prefix, or all, in every process
    Invalidate(Invalidate),
    /// Show which tags and prefixes were invalidated
    Tags(Tags),
    /// List the writes that wait to be saved, and those that the source refused; retry or discard those
    Journal(Journal),
    /// Check a configuration and all that it names: the file, the rules, each store and query
    Doctor(Doctor),
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  larder completions bash > ~/.local/share/bash-completion/completions/larder
  larder completions fish > ~/.config/fish/completions/larder.fish
  larder completions zsh > \"${fpath[1]}/_larder\"")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `larder policy`.
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// List the built-in policies and their parameters
    List {
        /// How to print
        #[arg(long, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
    },
    /// Show what a module says of itself, what it exports and imports, its size and SHA-256
    Inspect {
        /// A component (.wasm) or the name of a built-in; parameters after colons: s3-fifo:small-share=0.05;
        /// `patterns`: the built-in module of patterns, with what a rule may set
        #[arg(value_name = "FILE|NAME")]
        file: String,
        /// How to print
        #[arg(long, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
    },
    /// Run the conformance suite on an eviction policy, and show the shortest history that it answers wrongly
    #[command(after_help = "\
Examples:
  larder policy check target/wasm32-wasip2/release/my_policy.wasm
  larder policy check my_policy.wasm --histories 100000 --seed 7     # look harder, elsewhere
  larder policy check my_policy.wasm --histories 50 --events 20000   # in larger caches, for longer")]
    Check {
        /// A component (.wasm) or the name of a built-in; parameters after colons: s3-fifo:small-share=0.05
        #[arg(value_name = "FILE|NAME")]
        file: String,
        /// How many random histories to try
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
        histories: u64,
        /// About how many events each has, from 1 to 100000; every sixteenth has ten times as many. Long ones fill
        /// larger caches
        #[arg(
            long,
            value_name = "N",
            default_value_t = Suite::default().events,
            value_parser = RangedU64ValueParser::<usize>::new().range(1..=100_000)
        )]
        events: usize,
        /// Where the random histories begin; a violation names the seed that shows it again
        #[arg(long, value_name = "N", default_value_t = 0)]
        seed: u64,
    },
    /// Write a crate for a new policy: it builds with `cargo build --release --target wasm32-wasip2`
    #[command(after_help = "\
Examples:
  larder policy new my-policy
  larder policy new my-policy --sdk ~/src/larder/guest/sdk     # follow a checkout instead of a copy of the SDK")]
    New {
        /// The name of the crate and of the policy: lower-case letters, digits, hyphens
        name: String,
        /// The directory to create [default: NAME]
        #[arg(long, value_name = "DIR")]
        path: Option<PathBuf>,
        /// Depend on the SDK in this directory (guest/sdk of a checkout) instead of a copy beside the crate
        #[arg(long, value_name = "DIR")]
        sdk: Option<PathBuf>,
    },
}

/// How to print what is not a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// For people.
    Table,
    /// For tools.
    Json,
}

/// Where the commands for operators look.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The configuration of the service
    #[arg(short, long, value_name = "FILE", env = "LARDER_CONFIG", default_value = "larder.toml", global = true)]
    pub config: PathBuf,
}

/// `larder keys`.
#[derive(Debug, Args)]
pub struct Keys {
    /// Where the stores are named.
    #[command(flatten)]
    pub config: ConfigFile,
    /// The keyspace
    pub keyspace: String,
    /// Only keys that begin so
    #[arg(long)]
    pub prefix: Option<String>,
    /// Only this tier, by its name in the configuration
    #[arg(long)]
    pub tier: Option<String>,
    /// So many keys at most
    #[arg(long, default_value_t = 1_000)]
    pub limit: usize,
    /// How to print; `json` is an object a line
    #[arg(long, value_enum, default_value_t = ListFormat::Table)]
    pub format: ListFormat,
}

/// `larder get`.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 if some tier has a copy, 1 if none has or a tier does not answer.")]
pub struct Get {
    /// Where the stores are named.
    #[command(flatten)]
    pub config: ConfigFile,
    /// The keyspace
    pub keyspace: String,
    /// The key, as text
    pub key: String,
    /// Only this tier, by its name in the configuration
    #[arg(long)]
    pub tier: Option<String>,
    /// How to print; `json` is an object a line, one for each tier
    #[arg(long, value_enum, default_value_t = ListFormat::Table)]
    pub format: ListFormat,
}

/// `larder invalidate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  larder invalidate products 42 43
  larder invalidate products --tag sale --soft
  larder invalidate products --all

It is done when the command ends with 0: no read that begins later gets an older value, in any process on the bus. Where it
ends with 1, some of it was not done, and the command is to be run again: nobody makes up for it later.")]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["keys", "tag", "prefix", "all"]))]
pub struct Invalidate {
    /// Where the stores are named.
    #[command(flatten)]
    pub config: ConfigFile,
    /// The keyspace
    pub keyspace: String,
    /// Keys, as text
    pub keys: Vec<String>,
    /// All copies that carry this tag; may be given several times
    #[arg(long)]
    pub tag: Vec<String>,
    /// All keys that begin so
    #[arg(long, value_parser = some_prefix)]
    pub prefix: Option<String>,
    /// The whole keyspace
    #[arg(long, conflicts_with_all = ["keys", "tag", "prefix"])]
    pub all: bool,
    /// Let copies be served stale, as the rule allows, while they are refreshed
    #[arg(long)]
    pub soft: bool,
}

/// A script whose variable is not set must not take everything.
fn some_prefix(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("all keys begin so: write --all for the whole keyspace".into()) } else { Ok(text.into()) }
}

/// `larder tags`.
#[derive(Debug, Args)]
pub struct Tags {
    /// Where the stores are named.
    #[command(flatten)]
    pub config: ConfigFile,
    /// The keyspace
    pub keyspace: String,
    /// Only this tier, by its name in the configuration
    #[arg(long)]
    pub tier: Option<String>,
    /// How to print; `json` is an object a line
    #[arg(long, value_enum, default_value_t = ListFormat::Table)]
    pub format: ListFormat,
}

/// `larder journal`.
#[derive(Debug, Args)]
#[command(after_help = "A journal is open in one process at a time: stop the service, or ask it, before this command.")]
pub struct Journal {
    /// Where the journal is named.
    #[command(flatten)]
    pub config: ConfigFile,
    /// How to print; `json` is an object a line
    #[arg(long, value_enum, default_value_t = ListFormat::Table, global = true)]
    pub format: ListFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: JournalCommand,
}

/// What `larder journal` can do.
#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// The writes that wait to be saved, the oldest first
    List,
    /// The writes that the source will not take, and why
    Dead,
    /// Make dead letters writes again, which are saved when the service runs
    Retry {
        /// Their ids
        #[arg(required = true, value_parser = write_id)]
        ids: Vec<WriteId>,
    },
    /// Give dead letters up, for good
    Discard {
        /// Their ids
        #[arg(required = true, value_parser = write_id)]
        ids: Vec<WriteId>,
    },
}

fn write_id(text: &str) -> Result<WriteId, String> {
    let id = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32);
    id.map(WriteId).ok_or_else(|| "an id has 32 hexadecimal digits, as `larder journal dead` prints it".into())
}

/// `larder doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 if all is well, 1 if something is not.")]
pub struct Doctor {
    /// What to check.
    #[command(flatten)]
    pub config: ConfigFile,
    /// How to print; `json` is an object a line
    #[arg(long, value_enum, default_value_t = ListFormat::Table)]
    pub format: ListFormat,
}

/// `larder demo`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  Open the shop, and press keys:
    larder demo
  See everything once, without a terminal:
    larder demo --plain
  Kill the database after five seconds, for a script:
    larder demo --seconds 15 --at 5=kill-database --at 10=restore-database --format json

  The same shop on real stores, and what it leaves there taken away:
    larder demo --postgres postgres://me:secret@localhost/shop --redis redis://localhost
    larder demo --postgres postgres://me:secret@localhost/shop --redis redis://localhost --clean

Actions for --at:
  stampede          the hottest key goes, and nothing protects the database
  protected         the same, under the key's rule
  kill-far          cut the line to the far tier      restore-far       mend it
  kill-database     cut the line to the database      restore-database  mend it
  swap-policy       the next eviction policy, while it runs
  swap-patterns     the next module of patterns (see --patterns)
  pause             no more customers                 resume            customers again

Exit codes: 0, and 1 if a read was older than an acknowledged write or invalidation.")]
pub struct Demo {
    /// End after so many seconds [default: 30 without a terminal, else when you press q]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
    /// Customers a second
    #[arg(long, value_name = "N", default_value_t = 500.0, value_parser = rate)]
    pub rate: f64,
    /// Products that the shop sells
    #[arg(long, value_name = "N", default_value = "3000")]
    pub products: NonZeroU32,
    /// The eviction policy to begin with: a built-in's name or a module's path, parameters after colons [default: adaptive]
    #[arg(short, long, value_name = "P")]
    pub policy: Option<String>,
    /// A module of patterns (.wasm) to swap in, beside the built-in; may be given several times
    #[arg(long, value_name = "FILE")]
    pub patterns: Vec<PathBuf>,
    /// Do something at a time; may be given several times. Without any, and without a terminal, everything is done once
    #[arg(long, value_name = "SECONDS=ACTION")]
    pub at: Vec<Cue>,
    /// Record a stampede without protection and one with it, draw both, and end
    #[arg(long, value_name = "FILE.svg", conflicts_with_all = ["seconds", "at"])]
    pub record: Option<PathBuf>,
    /// Run on this PostgreSQL instead of the embedded database, in a schema `larder_demo` that is made anew
    #[arg(long, value_name = "URL")]
    pub postgres: Option<String>,
    /// Run over this Redis instead of a tier in memory: its keys begin with `larder-demo`
    #[arg(long, value_name = "URL")]
    pub redis: Option<String>,
    /// Take away what the demo has left in the stores of --postgres and --redis, and end
    #[arg(long)]
    pub clean: bool,
    /// A line a second instead of the live view, even on a terminal
    #[arg(long)]
    pub plain: bool,
    /// How to print the report at the end; `json` prints nothing else
    #[arg(long, value_enum, default_value_t = ListFormat::Table)]
    pub format: ListFormat,
    /// What is drawn at random is drawn from this
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (1.0..=100_000.0).contains(rate));
    rate.ok_or_else(|| "give a number from 1 to 100000".into())
}

/// `larder replay`.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  Policies side by side, at sizes that are shares of the trace's unique keys:
    larder replay web.oracleGeneral.zst --policy lru,s3-fifo,adaptive --capacity 0.1%,1%,10% --opt --plot web.svg
  A policy of your own, as a simulator would run it, for a script:
    larder replay OLTP.lis --policy ./my_policy.wasm --capacity 1000 --exact --format json
  Swap halfway, and see what a third policy would have won:
    larder replay big.u64.zst --policy lru --capacity 5% --swap 50%=sieve --shadow arc
  Keys from a pipe:
    cut -f3 access.log | larder replay - --policy adaptive --capacity 64k

Traces (recognised by name, else by content; --trace-format names it; zstd-compressed or not):
  u64, u64u32      little-endian u64 key; and u32 size             *.u64  *.u64u32
  oracle-general   libCacheSim's 24-byte records                   *oracleGeneral*
  csv              columns, with a header or not                   *.csv
  lis              ARC's: first-block blocks ignored number        *.lis
  keys             a key a line, any text                          anything else that is text

{EXIT_CODES}"))]
pub struct Replay {
    /// The traces, replayed one after another, each from a cold cache; `-` is standard input
    #[arg(value_name = "TRACE", required_unless_present = "synthetic")]
    pub traces: Vec<PathBuf>,
    /// Generate a trace: zipf:S:KEYS:REQUESTS:SEED, uniform:KEYS:REQUESTS:SEED or loop:KEYS:REQUESTS
    #[arg(long, value_name = "SPEC")]
    pub synthetic: Vec<Synthetic>,
    /// The format of the traces, where neither name nor content tells it
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub trace_format: Option<trace::Format>,
    /// The columns of CSV traces in order, such as time,id,size; names other than id and size are ignored
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub trace_columns: Option<Vec<String>>,

    /// Policies: names of built-ins (see `larder policy list`) or paths of modules; parameters after colons, such as
    /// s3-fifo:small-share=0.05
    #[arg(short, long, value_name = "P", value_delimiter = ',', required = true)]
    pub policy: Vec<String>,
    /// Capacities in entries (1000, 10k), or shares of the trace's unique keys (0.1%, 10%)
    #[arg(short, long, value_name = "N|N%", value_delimiter = ',', required_unless_present = "capacity_bytes")]
    pub capacity: Vec<Capacity>,
    /// Capacities in bytes (64MiB, 1gb), or shares of the bytes of the trace's unique keys
    #[arg(long, value_name = "N|N%", value_delimiter = ',', conflicts_with_all = ["capacity", "opt"])]
    pub capacity_bytes: Vec<Capacity>,

    /// Threads that ask, 1024 at most; each takes the next 256 requests of the trace as soon as it is free. Only one
    /// thread gives the same figures each time
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = threads)]
    pub threads: NonZeroUsize,
    /// Shards of the cache: a power of two, another number is rounded up to one [default: the library's, by capacity
    /// and cores]
    #[arg(long, value_name = "N")]
    pub shards: Option<NonZeroUsize>,
    /// One shard and batches of one: what a simulator of the policy does, to the request
    #[arg(long, conflicts_with = "shards")]
    pub exact: bool,

    /// Swap the policy for P before request AT (a number from 0, or a share such as 50%); may be given several times
    #[arg(long, value_name = "AT=P")]
    pub swap: Vec<Swap>,
    /// Run P beside the policy on a sample of the keys, and say what it would have won
    #[arg(long, value_name = "P")]
    pub shadow: Option<String>,
    /// Also compute Belady's exact bound. `demand` is the textbook's MIN, which must keep what it loads; the default
    /// may refuse it, as policies here may, and is the bound for all of them
    #[arg(long, value_enum, value_name = "RULE", num_args = 0..=1, require_equals = true, default_missing_value = "bypass")]
    pub opt: Option<opt::Rule>,

    /// How to print the results
    #[arg(long, value_enum, default_value_t = output::Format::Table)]
    pub format: output::Format,
    /// Draw the hit ratio against the capacity into this file
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// More threads than any machine has cores would only wait for each other, and not all of them can be started.
fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let threads = text.parse().ok().filter(|threads: &NonZeroUsize| threads.get() <= 1024);
    threads.ok_or_else(|| "give a number from 1 to 1024; as many as there are cores ask fastest".into())
}

/// A swap of policies during a replay.
#[derive(Clone, Debug, PartialEq)]
pub struct Swap {
    /// Before which request.
    pub at: Position,
    /// For which policy.
    pub policy: String,
}

impl FromStr for Swap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let swap = text.split_once('=').and_then(|(at, policy)| {
            let at = match at.strip_suffix('%') {
                Some(percent) => {
                    Position::Share(percent.parse().ok().filter(|p| (0.0..100.0).contains(p)).map(|p: f64| p / 100.0)?)
                }
                None => Position::Request(at.replace('_', "").parse().ok()?),
            };
            (!policy.is_empty()).then(|| Swap { at, policy: policy.into() })
        });
        swap.ok_or_else(|| {
            "give the number of a request (or a share below 100%) and a policy, such as 50%=sieve".into()
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn replay(words: &str) -> Result<Box<Replay>, clap::Error> {
        match Cli::try_parse_from(["larder", "replay"].into_iter().chain(words.split(' ')))?.command {
            Command::Replay(replay) => Ok(replay),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    fn all_commands(command: &clap::Command, each: &mut impl FnMut(&clap::Command)) {
        each(command);
        command.get_subcommands().for_each(|command| all_commands(command, each));
    }

    #[test]
    fn the_examples_are_command_lines() {
        let mut examples = 0;
        all_commands(&Cli::command(), &mut |command| {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in text.lines() {
                let line = line.trim_start();
                let line = line.split(" | ").find(|part| part.starts_with("larder ")).unwrap_or_default();
                let words = line.split(' ').filter(|word| !word.is_empty());
                let words: Vec<_> = words.take_while(|word| !["&&", ">", "#"].contains(word)).collect();
                if !words.is_empty() {
                    examples += 1;
                    assert!(Cli::try_parse_from(&words).is_ok(), "{line}");
                }
            }
        });
        assert!(examples > 15, "{examples} examples were found");
    }

    #[test]
    fn the_policies_in_the_help_take_their_parameters() {
        let mut policies = 0;
        all_commands(&Cli::command(), &mut |command| {
            let text = command.clone().render_long_help().to_string();
            for word in text.split([' ', '\n', ',', ';', '`']) {
                let is_policy = word.split_once(':').is_some_and(|(name, rest)| {
                    larder::Policy::builtins().any(|builtin| builtin == name) && rest.contains('=')
                });
                if is_policy {
                    policies += 1;
                    let loaded = word.parse::<larder::Policy>().and_then(|policy| policy.load());
                    assert!(loaded.is_ok(), "{word}: {}", loaded.map(drop).unwrap_err());
                }
            }
        });
        assert!(policies >= 3, "{policies} policies with parameters were found");
    }

    #[test]
    fn the_whole_of_replay() {
        let all = replay(
            "a.u64 b.lis --synthetic zipf:1:10:10:1 --policy lru,./x.wasm --capacity 1%,10 --threads 2 --shards 4 \
             --swap 5=sieve --swap 1_000=lru --swap 12.5%=./x.wasm:a=1 --shadow arc --opt --format json --plot p.svg --trace-columns time,id",
        )
        .unwrap();
        assert_eq!((all.traces.len(), all.synthetic.len(), all.capacity.len()), (2, 1, 2));
        assert_eq!(all.policy, ["lru", "./x.wasm"]);
        assert_eq!(all.swap[1], Swap { at: Position::Request(1000), policy: "lru".into() });
        assert_eq!(all.swap[2], Swap { at: Position::Share(0.125), policy: "./x.wasm:a=1".into() });
        assert_eq!(all.opt, Some(opt::Rule::Bypass));
        assert_eq!(replay("a --policy lru --capacity 1 --opt=demand").unwrap().opt, Some(opt::Rule::Demand));
        // `--opt` takes no word that follows: that is a trace.
        assert_eq!(replay("--policy lru --capacity 1 --opt demand").unwrap().traces, [PathBuf::from("demand")]);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for words in [
            "--policy lru --capacity 1",
            "a --capacity 1",
            "a --policy lru",
            "a --policy lru --capacity 0",
            "a --policy lru --capacity 1 --capacity-bytes 1",
            "a --policy lru --capacity-bytes 1 --opt",
            "a --policy lru --capacity 1 --exact --shards 2",
            "a --policy lru --capacity 1 --threads 0",
            "a --policy lru --capacity 1 --threads 1025",
            "a --policy lru --capacity 1 --threads 100000",
            "a --policy lru --capacity 1 --swap sieve",
            "a --policy lru --capacity 1 --swap 100%=sieve",
            "a --policy lru --capacity 1 --swap nan%=sieve",
            "--synthetic zipf:1:1 --policy lru --capacity 1",
        ] {
            assert_eq!(replay(words).expect_err(words).exit_code(), i32::from(exit::USAGE), "{words}");
        }
    }
}
