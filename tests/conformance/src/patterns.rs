//! The corpus of the role `patterns`: operations, step by step, under many rules.
//!
//! `tests/corpus/patterns/SET.jsonl` has a line for each set of rules that is opened (or refused) and one for each operation:
//! what the host told at each step, and the cookie and action that the native twin answered. Each operation is run to its
//! end by the test kit's model of a host, which holds every answer against the contract; see [`record`].
//!
//! What is recorded is a step's arguments and its answer, and nothing of the host that made them up. So a replay carries
//! nothing out, takes any step without those before it, and takes them one by one or many in a call.

pub mod record;
pub mod words;

use std::{fs, io, path::PathBuf, time::Duration};

use larder::tiered::testkit::steps;
use larder::{Patterns, PolicyError};
use larder_guest::patterns as guest;
use larder_guest::testkit::fingerprint;
use larder_modules::patterns::Textbook;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::{Difference, Setting, twin_value};
use words::Word;

/// A line of the corpus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Line {
    /// New rules; the runs that follow go by them.
    Open(Vec<Keyspace>),
    /// Rules that are refused. Those before stay in force.
    Refuse(Refusal),
    /// An operation, or what is left of it under new rules.
    Run(Run),
}

/// A keyspace and its rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyspace {
    /// Its name.
    pub name: String,
    /// Its tiers, as bits.
    pub tiers: u8,
    /// Those that are shared.
    pub shared: u8,
    /// What the host has for it, as a list of names.
    pub abilities: Json,
    /// The parameters that are set, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<(String, Setting)>,
}

/// Rules that are refused, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The rules.
    pub keyspaces: Vec<Keyspace>,
    /// The keyspace at fault.
    pub keyspace: String,
    /// The parameter at fault.
    pub parameter: String,
    /// What the user is told.
    pub message: String,
}

/// What all steps of an operation have in common, and the steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Which keyspace.
    pub keyspace: u32,
    /// What it is for.
    pub kind: Json,
    /// What it speaks of; a key if nothing is said.
    #[serde(default = "of_a_key", skip_serializing_if = "is_of_a_key")]
    pub target: Json,
    /// More about it, as a list of names.
    #[serde(default = "no_flags", skip_serializing_if = "has_no_flags")]
    pub traits: Json,
    /// The moment at which it started.
    pub began: u64,
    /// The value that it brings.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub brought: Json,
    /// The cookie of its first step here, where it began under the rules before.
    #[serde(default = "nothing", skip_serializing_if = "is_nothing")]
    pub cookie: Json,
    /// The steps: milliseconds since it started, the random bits, the copy that is held, the event; and the answer: the
    /// cookie, which is that of the next step, and the action.
    pub steps: Vec<Step>,
}

/// A step: elapsed, random, held, event, cookie, action.
pub type Step = (u64, Json, Json, Json, Json, Json);

fn of_a_key() -> Json {
    json!("key")
}
fn is_of_a_key(target: &Json) -> bool {
    *target == of_a_key()
}
fn no_flags() -> Json {
    json!([])
}
fn has_no_flags(flags: &Json) -> bool {
    *flags == no_flags()
}
fn nothing() -> Json {
    json!(0)
}
fn is_nothing(cookie: &Json) -> bool {
    *cookie == nothing()
}

/// The random bits of a step: those that splitmix64 makes of a number, or the very bits in decimal digits.
fn bits(random: &Json) -> Result<u64, String> {
    match random.as_u64() {
        Some(number) => Ok(fingerprint(number)),
        None => u64::read(random),
    }
}

/// Where the corpus of this role is.
pub fn directory() -> PathBuf {
    crate::directory().join("patterns")
}

/// The names of its files, without `.jsonl`.
///
/// # Errors
/// A directory that cannot be read.
pub fn sets() -> io::Result<Vec<String>> {
    let name = |entry: io::Result<fs::DirEntry>| Ok(PathBuf::from(entry?.file_name()));
    let mut names = Vec::new();
    for file in fs::read_dir(directory())?.map(name).collect::<io::Result<Vec<_>>>()? {
        if let (Some(stem), Some("jsonl")) = (file.file_stem(), file.extension().and_then(|e| e.to_str())) {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The lines of a set.
///
/// # Errors
/// A file that cannot be read, or what is no line.
pub fn read(set: &str) -> io::Result<Vec<Line>> {
    crate::read_lines(&directory().join(format!("{set}.jsonl")))
}

/// Something that takes rules and steps: the component in this host, or its native twin.
pub trait Subject {
    /// A turn, in its own words.
    type Turn;

    /// Takes rules, or refuses them: keyspace, parameter and message, or else what went wrong.
    ///
    /// # Errors
    /// What is not in the corpus: a trap, or a rule that the card does not allow.
    fn open(&mut self, keyspaces: &[Keyspace]) -> Result<Result<(), [String; 3]>, String>;

    /// A turn of a run.
    ///
    /// # Errors
    /// What is no turn.
    fn turn(&self, run: &Run, cookie: &Json, step: &Step) -> Result<Self::Turn, String>;

    /// The answers, as they are written.
    ///
    /// # Errors
    /// No answer.
    fn steps(&mut self, turns: &[Self::Turn]) -> Result<Vec<Json>, String>;
}

/// Takes every recorded step, so many in a call. Answers with how many there were.
///
/// # Errors
/// The first answer that is not as recorded.
pub fn replay<S: Subject>(lines: &[Line], at_once: usize, subject: &mut S) -> Result<usize, Difference> {
    let (mut count, mut opened) = (0, false);
    // Turns that are to be taken, with their lines and recorded answers.
    let mut waiting: Vec<(usize, S::Turn, Json)> = Vec::new();
    let mut take = |waiting: &mut Vec<(usize, S::Turn, Json)>, subject: &mut S| {
        let first = waiting.first().map_or(0, |(line, ..)| *line);
        let (mut turns, mut recorded) = (Vec::new(), Vec::new());
        for (line, turn, answer) in waiting.drain(..) {
            turns.push(turn);
            recorded.push((line, answer));
        }
        let answers = if turns.is_empty() { Ok(Vec::new()) } else { subject.steps(&turns) };
        let answers = answers.map_err(|error| differs(first, error, "answers"))?;
        if answers.len() != recorded.len() {
            return Err(differs(first, format!("{} answers", answers.len()), recorded.len()));
        }
        count += answers.len();
        match answers.into_iter().zip(recorded).find(|(answer, (_, recorded))| answer != recorded) {
            Some((answer, (line, recorded))) => Err(differs(line, answer, recorded)),
            None => Ok(()),
        }
    };
    for (i, line) in lines.iter().enumerate() {
        let line_number = i + 1;
        let fails = |error: String| differs(line_number, error, "a line that can be replayed");
        match line {
            Line::Open(keyspaces) => {
                take(&mut waiting, subject)?;
                if let Err(why) = subject.open(keyspaces).map_err(fails)? {
                    return Err(differs(line_number, format!("refused: {why:?}"), "rules that are taken"));
                }
                opened = true;
            }
            Line::Refuse(Refusal { keyspaces, keyspace, parameter, message }) => {
                take(&mut waiting, subject)?;
                let recorded = Err([keyspace.clone(), parameter.clone(), message.clone()]);
                let answer = subject.open(keyspaces).map_err(fails)?;
                if answer != recorded {
                    return Err(differs(line_number, format!("{answer:?}"), format!("{recorded:?}")));
                }
            }
            Line::Run(run) => {
                let mut cookie = &run.cookie;
                for step in &run.steps {
                    if !opened {
                        return Err(fails("nothing was opened".into()));
                    }
                    let turn = subject.turn(run, cookie, step).map_err(fails)?;
                    let (.., next, action) = step;
                    waiting.push((line_number, turn, json!([next, action])));
                    cookie = next;
                    if waiting.len() >= at_once {
                        take(&mut waiting, subject)?;
                    }
                }
            }
        }
    }
    take(&mut waiting, subject)?;
    Ok(count)
}

fn differs(line: usize, answered: impl ToString, recorded: impl ToString) -> Difference {
    Difference { line, answered: answered.to_string(), recorded: recorded.to_string() }
}

/// A turn in the words of a crate: both have the same, made from the same text.
macro_rules! turn {
    ($words:ident, $run:ident, $cookie:ident, $step:ident) => {{
        let (elapsed_ms, random, held, event, ..) = $step;
        Ok($words::Turn {
            moment: $words::Moment { now: $run.began.saturating_add(*elapsed_ms), random: bits(random)? },
            operation: $words::Operation {
                keyspace: $run.keyspace,
                kind: Word::read(&$run.kind)?,
                target: Word::read(&$run.target)?,
                traits: Word::read(&$run.traits)?,
                cookie: Word::read($cookie)?,
                elapsed_ms: *elapsed_ms,
                held: Word::read(held)?,
                brought: Word::read(&$run.brought)?,
            },
            event: Word::read(event)?,
        })
    }};
}

/// The built-in, linked into this program.
#[derive(Debug, Default)]
pub struct Twin(Option<guest::Rulebook<Textbook>>);

impl Twin {
    fn rules(keyspaces: &[Keyspace]) -> Result<Result<guest::Rulebook<Textbook>, [String; 3]>, String> {
        let mut read = Vec::new();
        for Keyspace { name, tiers, shared, abilities, parameters } in keyspaces {
            let set = parameters.iter().map(|(name, value)| (name.clone(), twin_value(value)));
            let keyspace = guest::Keyspace::new::<Textbook>(name, *tiers, *shared, Word::read(abilities)?, set);
            read.push(keyspace.map_err(|refusal| format!("{}: {}", refusal.parameter, refusal.message))?);
        }
        let refused = |guest::Refused { keyspace, refusal }| [keyspace, refusal.parameter, refusal.message];
        Ok(guest::Rulebook::open(&read).map_err(refused))
    }
}

impl Subject for Twin {
    type Turn = guest::Turn;

    fn open(&mut self, keyspaces: &[Keyspace]) -> Result<Result<(), [String; 3]>, String> {
        Ok(Twin::rules(keyspaces)?.map(|rules| self.0 = Some(rules)))
    }
    fn turn(&self, run: &Run, cookie: &Json, step: &Step) -> Result<guest::Turn, String> {
        turn!(guest, run, cookie, step)
    }
    fn steps(&mut self, turns: &[guest::Turn]) -> Result<Vec<Json>, String> {
        let rules = self.0.as_ref().ok_or("nothing was opened")?;
        Ok(turns.iter().map(|turn| rules.step(turn).write()).collect())
    }
}

/// The built-in component, called as the driver of this host calls it.
#[derive(Debug, Default)]
pub struct Component(Option<steps::Rulebook>);

impl Subject for Component {
    type Turn = steps::Turn;

    fn open(&mut self, keyspaces: &[Keyspace]) -> Result<Result<(), [String; 3]>, String> {
        // Speed is not what is tested here, and other tests run beside.
        let module = Patterns::builtin().deadline(Duration::from_secs(60)).load().map_err(|error| error.to_string())?;
        let mut read = Vec::new();
        for Keyspace { name, tiers, shared, abilities, parameters } in keyspaces {
            let value = |value: &Setting| match value {
                Setting::Flag(yes) => larder::Value::Flag(*yes),
                Setting::Integer(n) => larder::Value::Integer(*n),
                Setting::Number(x) => larder::Value::Number(*x),
                Setting::Text(text) => larder::Value::Text(text.clone()),
            };
            read.push(steps::Keyspace {
                name: name.clone(),
                tiers: *tiers,
                shared: *shared,
                abilities: Word::read(abilities)?,
                parameters: parameters.iter().map(|(name, set)| (name.clone(), value(set))).collect(),
            });
        }
        match steps::Rulebook::open(&module, read) {
            Ok(rules) => {
                self.0 = Some(rules);
                Ok(Ok(()))
            }
            Err(PolicyError::Refused { parameter, message, .. }) => {
                // The host puts the keyspace behind the message, for its users.
                let parts = message.strip_suffix("`)").and_then(|text| text.rsplit_once(" (keyspace `"));
                let (message, keyspace) = parts.ok_or_else(|| format!("no keyspace is named in {message:?}"))?;
                Ok(Err([keyspace.into(), parameter.unwrap_or_default(), message.into()]))
            }
            Err(error) => Err(error.to_string()),
        }
    }
    fn turn(&self, run: &Run, cookie: &Json, step: &Step) -> Result<steps::Turn, String> {
        turn!(steps, run, cookie, step)
    }
    fn steps(&mut self, turns: &[steps::Turn]) -> Result<Vec<Json>, String> {
        let rules = self.0.as_ref().ok_or("nothing was opened")?;
        let answers = match turns {
            [turn] => rules.step(turn).map(|answer| vec![answer]),
            turns => rules.step_many(turns),
        };
        Ok(answers.map_err(|fault| fault.to_string())?.iter().map(Word::write).collect())
    }
}
