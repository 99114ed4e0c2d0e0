//! The user's handle on a policy: a built-in's name, a file, bytes, or Rust code; with parameters, and pinned if so
//! wished.
//!
//! A [`Policy`] only says what is wanted, and costs nothing. [`Policy::load`] finds, checks and compiles it; the
//! [`Module`] that comes back says what it is and what parameters it takes, and is what a cache runs.

use std::{
    fmt, fs, io,
    io::Read,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    engine::{self, Bounds, Compiled},
    eviction::{Eviction, Fault, Limits},
};

include!(concat!(env!("OUT_DIR"), "/builtins.rs"));

/// The largest file that is taken for a module: a whole language's runtime is a tenth of it.
const MAX_FILE: u64 = 256 << 20;

/// Who stays in a cache: a policy, and how it is configured.
///
/// ```
/// use larder::Policy;
///
/// let by_name = Policy::builtin("fifo")?;
/// let by_text: Policy = "fifo".parse()?;
/// assert_eq!(by_name.to_string(), by_text.to_string());
/// assert_eq!(by_text.load()?.description().name, "fifo");
///
/// let error = Policy::builtin("fivo").unwrap_err();
/// assert!(error.to_string().contains("did you mean `fifo`?"), "{error}");
/// # Ok::<(), larder::PolicyError>(())
/// ```
///
/// As text, a policy is a built-in's name or the path of a file, and then its parameters, each after a colon:
/// `s3-fifo:small-share=0.05`, `./my-policy.wasm:window=0.2:seeded=yes`.
///
/// ```
/// let tuned: larder::Policy = "s3-fifo:small-share=0.05".parse()?;
/// tuned.load()?;
/// # Ok::<(), larder::PolicyError>(())
/// ```
#[derive(Clone)]
pub struct Policy {
    source: Source,
    parameters: Vec<(String, Value)>,
    sha256: Option<String>,
    bounds: Bounds,
}

type Factory = dyn Fn(&Limits) -> Result<Box<dyn Eviction>, PolicyError> + Send + Sync;

#[derive(Clone)]
enum Source {
    Builtin(&'static str),
    File(PathBuf),
    Bytes(Arc<[u8]>),
    Native(Arc<str>, Arc<Factory>),
}

impl Policy {
    /// The name of the policy of a cache that was told of none.
    pub const DEFAULT: &'static str = "adaptive";

    fn new(source: Source) -> Self {
        Policy { source, parameters: Vec::new(), sha256: None, bounds: Bounds::default() }
    }

    /// One of the policies that come with Larder: see [`Policy::builtins`].
    ///
    /// # Errors
    /// [`PolicyError::Unknown`], with the names that there are.
    pub fn builtin(name: &str) -> Result<Self, PolicyError> {
        match BUILTINS.iter().find(|(known, _)| *known == name) {
            Some((name, _)) => Ok(Policy::new(Source::Builtin(name))),
            None => Err(unknown(name)),
        }
    }

    /// The names of the policies that come with Larder, in alphabetical order.
    pub fn builtins() -> impl ExactSizeIterator<Item = &'static str> {
        BUILTINS.iter().map(|(name, _)| *name)
    }

    /// A module in a file. It is read by [`load`](Self::load), each time anew.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Policy::new(Source::File(path.into()))
    }

    /// A module in memory.
    pub fn bytes(component: impl Into<Arc<[u8]>>) -> Self {
        Policy::new(Source::Bytes(component.into()))
    }

    /// A policy in Rust, linked into this program: trusted, and not contained. `open` is called once for each shard.
    pub fn native(
        name: &str,
        open: impl Fn(&Limits) -> Result<Box<dyn Eviction>, PolicyError> + Send + Sync + 'static,
    ) -> Self {
        Policy::new(Source::Native(name.into(), Arc::new(open)))
    }

    /// Sets a parameter. What names, kinds and bounds a module takes is in its [`Description`]; they are checked by
    /// [`load`](Self::load). A text is read as the kind that the module declares.
    #[must_use]
    pub fn parameter(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        let (name, value) = (name.into(), value.into());
        match self.parameters.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.parameters.push((name, value)),
        }
        self
    }

    /// Pins the module: [`load`](Self::load) takes it only if its bytes have this SHA-256, in hexadecimal.
    #[must_use]
    pub fn sha256(mut self, digest: impl Into<String>) -> Self {
        self.sha256 = Some(digest.into());
        self
    }

    /// How long a call of the module may take, 100 ms if nothing is said. Calls that tell it of many entries at once may
    /// take longer (4 µs for each), and so may all in a large cache, whose tables grow within one call (200 ns for each entry of
    /// a shard); starting it may take ten times as long. A module that takes longer is stopped.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.bounds.deadline = deadline;
        self
    }

    /// How many bytes of memory an instance of the module may have (there is one for each shard), 32 MiB if nothing is
    /// said. On top comes what its file declares, and 256 bytes for each entry.
    #[must_use]
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.bounds.memory = bytes;
        self
    }

    /// Finds the module, checks it, compiles it (or finds it compiled), and checks the parameters.
    ///
    /// # Errors
    /// A [`PolicyError`] that names the place, what is wrong there, and what to do about it.
    pub fn load(&self) -> Result<Module, PolicyError> {
        let read;
        let bytes: &[u8] = match &self.source {
            Source::Native(name, open) => return self.load_native(name, open.clone()),
            Source::Builtin(name) => match BUILTINS.iter().find(|(known, _)| known == name) {
                Some((_, bytes)) => bytes,
                None => return Err(unknown(name)),
            },
            Source::File(path) => {
                read = read_file(path).map_err(|source| PolicyError::Unreadable { path: path.clone(), source })?;
                &read
            }
            Source::Bytes(bytes) => bytes,
        };
        let sha256: [u8; 32] = Sha256::digest(bytes).into();
        let hex = hex(&sha256);
        let place = match &self.source {
            Source::Builtin(name) => format!("built-in `{name}`"),
            Source::File(path) => path.display().to_string(),
            _ => format!("module {}… of {} bytes", &hex[..12], bytes.len()),
        };
        if let Some(pinned) = &self.sha256
            && !pinned.eq_ignore_ascii_case(&hex)
        {
            return Err(PolicyError::Digest { place, expected: pinned.clone(), actual: hex });
        }
        let compiled = engine::compile(&place, bytes, &sha256, self.bounds)?;
        let parameters = checked(compiled.description(), &self.parameters)?;
        Ok(Module(Arc::new(Loaded {
            description: compiled.description().clone(),
            sha256: Some(hex),
            size: Some(bytes.len()),
            parameters,
            code: Code::Component(compiled, self.bounds),
        })))
    }

    fn load_native(&self, name: &str, open: Arc<Factory>) -> Result<Module, PolicyError> {
        let description = Description {
            name: name.into(),
            version: String::new(),
            summary: "Linked into this program".into(),
            roles: vec![Role::Eviction],
            parameters: Vec::new(),
        };
        checked(&description, &self.parameters)?;
        if let Some(pinned) = &self.sha256 {
            let (place, actual) = (format!("`{name}`, which is not a module"), "none".into());
            return Err(PolicyError::Digest { place, expected: pinned.clone(), actual });
        }
        Ok(Module(Arc::new(Loaded {
            description,
            sha256: None,
            size: None,
            parameters: Vec::new(),
            code: Code::Native(open),
        })))
    }
}

impl Default for Policy {
    /// The built-in [`Policy::DEFAULT`].
    fn default() -> Self {
        Policy::new(Source::Builtin(Self::DEFAULT))
    }
}

impl fmt::Display for Policy {
    /// As [`FromStr`] reads it; bytes and Rust code by a name alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Builtin(name) => f.write_str(name)?,
            Source::File(path) => write!(f, "{}", path.display())?,
            Source::Bytes(bytes) => write!(f, "a module of {} bytes", bytes.len())?,
            Source::Native(name, _) => f.write_str(name)?,
        }
        self.parameters.iter().try_for_each(|(name, value)| write!(f, ":{name}={value}"))
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Policy({self})")
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    /// Reads `NAME[:PARAMETER=VALUE]…` or `PATH[:PARAMETER=VALUE]…`. A path has a separator in it, or ends in `.wasm`, or
    /// is that of a file.
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let mut head = text;
        let mut parameters = Vec::new();
        // From the end, for a path may hold a colon too.
        while let Some((before, last)) = head.rsplit_once(':')
            && let Some((name, value)) = last.split_once('=')
            && !name.contains(['/', '\\'])
        {
            parameters.push((name, value));
            head = before;
        }
        let is_path = head.contains(['/', '\\']) || head.ends_with(".wasm");
        let policy = match Policy::builtin(head) {
            Ok(policy) => policy,
            Err(_) if is_path || fs::metadata(head).is_ok_and(|metadata| metadata.is_file()) => Policy::file(head),
            Err(unknown) => return Err(unknown),
        };
        Ok(parameters.into_iter().rev().fold(policy, |policy, (name, value)| policy.parameter(name, value)))
    }
}

/// A built-in module of the role `patterns`.
pub(crate) fn builtin_patterns(name: &str) -> Result<&'static [u8], PolicyError> {
    let known = || BUILTIN_PATTERNS.iter().map(|(name, _)| name.to_string()).collect();
    let found = BUILTIN_PATTERNS.iter().find(|(known, _)| *known == name);
    found.map(|(_, bytes)| *bytes).ok_or_else(|| PolicyError::Unknown {
        name: name.into(),
        nearest: None,
        known: known(),
    })
}

pub(crate) fn read_file(path: &PathBuf) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unknown(name: &str) -> PolicyError {
    if BUILTIN_PATTERNS.iter().any(|(known, _)| *known == name) {
        return PolicyError::OtherRole { place: format!("built-in `{name}`"), role: Role::Patterns };
    }
    let known: Vec<_> = BUILTINS.iter().map(|(name, _)| name.to_string()).collect();
    PolicyError::Unknown { name: name.into(), nearest: nearest(name, &known), known }
}

/// The parameters as the module declares them.
pub(crate) fn checked(card: &Description, set: &[(String, Value)]) -> Result<Vec<(String, Value)>, PolicyError> {
    set.iter()
        .map(|(name, value)| {
            let Some(spec) = card.parameters.iter().find(|spec| spec.name == *name) else {
                let known: Vec<_> = card.parameters.iter().map(|spec| spec.name.clone()).collect();
                let nearest = nearest(name, &known);
                return Err(PolicyError::UnknownParameter {
                    policy: card.name.clone(),
                    parameter: name.clone(),
                    nearest,
                    known,
                });
            };
            match spec.read(value) {
                Some(value) => Ok((name.clone(), value)),
                None => Err(PolicyError::BadValue {
                    policy: card.name.clone(),
                    parameter: name.clone(),
                    value: value.clone(),
                    expected: spec.expected(),
                }),
            }
        })
        .collect()
}

/// The known name that was probably meant.
pub(crate) fn nearest(name: &str, known: &[String]) -> Option<String> {
    let distance = |known: &String| distance(&name.to_lowercase(), known);
    known
        .iter()
        .map(|known| (distance(known), known))
        .min()
        .filter(|(far, known)| *far <= 1 + known.len() / 3)
        .map(|(_, known)| known.clone())
}

/// Levenshtein's: how many bytes to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A policy that was found, checked and compiled. Cheap to clone.
#[derive(Clone)]
pub struct Module(Arc<Loaded>);

struct Loaded {
    description: Description,
    sha256: Option<String>,
    size: Option<usize>,
    parameters: Vec<(String, Value)>,
    code: Code,
}

enum Code {
    Component(Arc<Compiled>, Bounds),
    Native(Arc<Factory>),
}

impl Module {
    /// The name on its card.
    pub fn name(&self) -> &str {
        &self.description().name
    }

    /// The module's card.
    pub fn description(&self) -> &Description {
        &self.0.description
    }

    /// The SHA-256 of its bytes in hexadecimal; none, if the policy is linked into this program.
    pub fn sha256(&self) -> Option<&str> {
        self.0.sha256.as_deref()
    }

    /// How many bytes the file has; none, if the policy is linked into this program.
    pub fn size(&self) -> Option<usize> {
        self.0.size
    }

    /// The interfaces that it imports. A policy needs none; those of WASI 0.2 are given, and empty.
    pub fn imports(&self) -> Vec<String> {
        match &self.0.code {
            Code::Component(compiled, _) => compiled.imports().to_vec(),
            Code::Native(_) => Vec::new(),
        }
    }

    /// The parameters that were set, as the kinds that the module declares.
    pub fn parameters(&self) -> &[(String, Value)] {
        &self.0.parameters
    }

    /// Opens the policy with no residents.
    ///
    /// # Errors
    /// [`PolicyError::Refused`] if the module refuses, [`PolicyError::Stopped`] if it had to be stopped.
    pub fn open(&self, limits: &Limits) -> Result<Box<dyn Eviction>, PolicyError> {
        match &self.0.code {
            Code::Component(compiled, bounds) => engine::open(compiled, *bounds, limits, &self.0.parameters),
            Code::Native(open) => open(limits),
        }
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Description { name, version, .. } = self.description();
        f.debug_struct("Module").field("name", name).field("version", version).finish_non_exhaustive()
    }
}

/// A module's card: what it says of itself. `description` in `wit/about.wit`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Description {
    /// As users type it.
    pub name: String,
    /// The module's own version.
    pub version: String,
    /// What it is good at, in one line.
    pub summary: String,
    /// The roles that it plays.
    pub roles: Vec<Role>,
    /// The parameters that it takes.
    pub parameters: Vec<ParameterSpec>,
}

/// A role that a module can play.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Role {
    /// Who leaves when the cache is full, and who is let in.
    Eviction,
    /// What one operation does next.
    Patterns,
}

/// A parameter that a module takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParameterSpec {
    /// Its name.
    pub name: String,
    /// What it does, with the unit.
    pub doc: String,
    /// What holds where nothing is set; its case is the kind of the parameter.
    pub default: Value,
    /// The least value allowed.
    pub minimum: Option<f64>,
    /// The greatest value allowed.
    pub maximum: Option<f64>,
}

impl ParameterSpec {
    /// The value as this parameter's kind, if it is of that kind and within bounds.
    fn read(&self, value: &Value) -> Option<Value> {
        let read = match (&self.default, value) {
            (Value::Flag(_), Value::Text(text)) => match text.as_str() {
                "true" | "yes" | "on" => Value::Flag(true),
                "false" | "no" | "off" => Value::Flag(false),
                _ => return None,
            },
            (Value::Integer(_), Value::Text(text)) => Value::Integer(text.trim().parse().ok()?),
            (Value::Number(_), Value::Text(text)) => Value::Number(text.trim().parse().ok()?),
            (Value::Number(_), Value::Integer(n)) => Value::Number(*n as f64),
            (Value::Flag(_), Value::Flag(_))
            | (Value::Integer(_), Value::Integer(_))
            | (Value::Number(_), Value::Number(_))
            | (Value::Text(_), Value::Text(_)) => value.clone(),
            _ => return None,
        };
        let size = match read {
            Value::Integer(n) => n as f64,
            Value::Number(x) => x,
            _ => return Some(read),
        };
        let within = self.minimum.is_none_or(|least| size >= least) && self.maximum.is_none_or(|most| size <= most);
        (within && !size.is_nan()).then_some(read)
    }

    /// What a value must be, in words.
    fn expected(&self) -> String {
        let kind = match self.default {
            Value::Flag(_) => return format!("yes or no (default {})", self.default),
            Value::Text(_) => return "a text".into(),
            Value::Integer(_) => "a whole number",
            Value::Number(_) => "a number",
        };
        let bounds = match (self.minimum, self.maximum) {
            (Some(least), Some(most)) => format!(" from {least} to {most}"),
            (Some(least), None) => format!(" of at least {least}"),
            (None, Some(most)) => format!(" of at most {most}"),
            (None, None) => String::new(),
        };
        format!("{kind}{bounds} (default {})", self.default)
    }
}

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// Yes or no.
    Flag(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// A text; or any of the others, as text.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Flag(yes) => f.write_str(if *yes { "yes" } else { "no" }),
            Value::Integer(n) => write!(f, "{n}"),
            Value::Number(x) => write!(f, "{x}"),
            Value::Text(text) => f.write_str(text),
        }
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Value::Flag(yes)
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Value::Integer(n)
    }
}

impl From<i32> for Value {
    fn from(n: i32) -> Self {
        Value::Integer(n.into())
    }
}

impl From<u32> for Value {
    fn from(n: u32) -> Self {
        Value::Integer(n.into())
    }
}

impl From<std::time::Duration> for Value {
    /// Whole milliseconds, as parameters named `…-ms` take them. Less than one is one: 0 often means without end.
    fn from(duration: std::time::Duration) -> Self {
        let least = u128::from(!duration.is_zero());
        Value::Integer(i64::try_from(duration.as_millis().max(least)).unwrap_or(i64::MAX))
    }
}

impl From<f64> for Value {
    fn from(x: f64) -> Self {
        Value::Number(x)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}

/// Why a policy cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// There is no built-in policy of this name.
    #[error(
        "no policy is called `{name}`{}; there are {}; a file is named by its path, such as ./{}.wasm",
        meant(nearest), known.join(", "), file_of(name)
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// What was probably meant.
        nearest: Option<String>,
        /// What there is.
        known: Vec<String>,
    },
    /// The file cannot be read.
    #[error("{}: the module cannot be read: {source}; {}", path.display(), read_instead(path, source))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The bytes are not a WebAssembly component.
    #[error("{place}: {what}")]
    NotAComponent {
        /// Where the module came from.
        place: String,
        /// What it is instead, and how to make a component of it.
        what: String,
    },
    /// The file ends too early.
    #[error(
        "{place}: the file is cut short: it has {length} bytes, and what begins at byte {at} does not end there; copy or build it again"
    )]
    Truncated {
        /// Where the module came from.
        place: String,
        /// How many bytes it has.
        length: usize,
        /// Where the part begins that is not complete.
        at: usize,
    },
    /// It is no valid component, or uses a feature that policies may not.
    #[error(
        "{place}: the component is not valid: {message}; copy or build it again, for wasm32-wasip2 and without \
         threads or relaxed SIMD"
    )]
    Invalid {
        /// Where the module came from.
        place: String,
        /// What the compiler says.
        message: String,
    },
    /// It is a component, but not of the world of the role that it was to play.
    #[error(
        "{place}: the component is not a policy: {problem}; build it against wit/ of this version (larder:policy@0.1.0)"
    )]
    WrongWorld {
        /// Where the module came from.
        place: String,
        /// What is missing or different.
        problem: String,
    },
    /// It is whole, but of another role than the one that it was to play.
    #[error("{place}: {}", misplaced(*role))]
    OtherRole {
        /// Where the module came from.
        place: String,
        /// The role that it has.
        role: Role,
    },
    /// It imports what no host gives.
    #[error("{place}: the module imports {}; a policy needs no imports, and is given none but an empty WASI 0.2", imports.join(", "))]
    Import {
        /// Where the module came from.
        place: String,
        /// What it imports.
        imports: Vec<String>,
    },
    /// Its SHA-256 is not the one that was asked for.
    #[error(
        "{place}: the SHA-256 is {actual}, and {expected} was asked for; if you trust the new file, pin its digest"
    )]
    Digest {
        /// Where the module came from.
        place: String,
        /// The digest that was asked for.
        expected: String,
        /// The digest that it has.
        actual: String,
    },
    /// It takes no parameter of this name.
    #[error("`{policy}` takes no parameter `{parameter}`{}; {}", meant(nearest), takes(known))]
    UnknownParameter {
        /// The module's name.
        policy: String,
        /// What was set.
        parameter: String,
        /// What was probably meant.
        nearest: Option<String>,
        /// What there is.
        known: Vec<String>,
    },
    /// The value is of the wrong kind, or out of bounds.
    #[error("the parameter `{parameter}` of `{policy}` is set to `{value}`; it must be {expected}")]
    BadValue {
        /// The module's name.
        policy: String,
        /// The parameter's name.
        parameter: String,
        /// What was set.
        value: Value,
        /// What it must be.
        expected: String,
    },
    /// The module itself refused.
    #[error("`{policy}` refuses{}: {message}", parameter.as_ref().map(|p| format!(" the parameter `{p}`")).unwrap_or_default())]
    Refused {
        /// The module's name.
        policy: String,
        /// The parameter at fault, if it is one.
        parameter: Option<String>,
        /// What it says.
        message: String,
    },
    /// The module had to be stopped before it was open.
    #[error("{policy}: the module was stopped: {fault}")]
    Stopped {
        /// The module's name, or where it came from.
        policy: String,
        /// Why.
        fault: Fault,
    },
    /// No module can run on this machine.
    #[error("WebAssembly cannot be run here: {message}; policies that are linked natively can")]
    Engine {
        /// What wasmtime says.
        message: String,
    },
}

/// An example of a path, after what was asked for where that can name a file.
fn file_of(name: &str) -> &str {
    let is_name = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if is_name { name } else { "my_policy" }
}

/// What to do about a file that cannot be read.
fn read_instead(path: &Path, source: &io::Error) -> &'static str {
    match source.kind() {
        _ if path.is_dir() => "name the module in it: a file, such as target/wasm32-wasip2/release/my_policy.wasm",
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::FileTooLarge => "name a component: a file that `cargo build --target wasm32-wasip2` makes",
        _ => "check that this user may read it",
    }
}

fn misplaced(role: Role) -> &'static str {
    match role {
        Role::Eviction => {
            "it is an eviction policy, and no module of patterns: give it where a policy is named (`Policy::file`, \
             `policy` in a configuration, `--policy`)"
        }
        Role::Patterns => {
            "it is a module of patterns, and no eviction policy: give it where patterns are named (`Patterns::file`, \
             `patterns` in a configuration, `larder demo --patterns`)"
        }
    }
}

fn meant(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default()
}

fn takes(known: &[String]) -> String {
    if known.is_empty() { "it takes none".into() } else { format!("it takes {}", known.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(default: Value, minimum: Option<f64>, maximum: Option<f64>) -> ParameterSpec {
        ParameterSpec { name: "p".into(), doc: String::new(), default, minimum, maximum }
    }

    #[test]
    fn a_builtin_is_called_what_its_card_says() {
        for name in Policy::builtins() {
            let module = Policy::builtin(name).unwrap().load().unwrap();
            assert_eq!(module.description().name, name);
            assert!(module.imports().is_empty(), "`{name}` imports {:?}", module.imports());
        }
    }

    #[test]
    fn the_default_policy_exists() {
        Policy::default().load().unwrap();
    }

    #[test]
    fn text_is_read_back_as_it_is_shown() {
        for text in
            ["fifo", "fifo:a=1:b=x", "./x.wasm", "./x.wasm:a=1", "a:b/x.wasm:c=d", "C:\\x.wasm:c=d", "/a=b/x.wasm"]
        {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
        let policy: Policy = "C:\\x.wasm:c=d".parse().unwrap();
        assert!(matches!(&policy.source, Source::File(path) if path.as_os_str() == "C:\\x.wasm"));
        assert_eq!(policy.parameters, [("c".into(), Value::from("d"))]);
        assert!(matches!("nonsense".parse::<Policy>(), Err(PolicyError::Unknown { .. })));
    }

    #[test]
    fn values_are_read_as_the_kind_that_is_declared() {
        let integer = spec(Value::Integer(5), Some(1.0), Some(10.0));
        assert_eq!(integer.read(&"7".into()), Some(Value::Integer(7)));
        assert_eq!(integer.read(&7.into()), Some(Value::Integer(7)));
        for bad in [Value::from("7.5"), "0".into(), "11".into(), "".into(), 11.into(), 7.0.into(), true.into()] {
            assert_eq!(integer.read(&bad), None, "{bad:?}");
        }
        let number = spec(Value::Number(0.5), Some(0.0), None);
        assert_eq!(number.read(&"1e3".into()), Some(Value::Number(1000.0)));
        assert_eq!(number.read(&2.into()), Some(Value::Number(2.0)));
        for bad in [Value::from("NaN"), f64::NAN.into(), "-1".into(), "x".into()] {
            assert_eq!(number.read(&bad), None, "{bad:?}");
        }
        let flag = spec(Value::Flag(false), None, None);
        assert_eq!(flag.read(&"on".into()), Some(Value::Flag(true)));
        assert_eq!(flag.read(&1.into()), None);
        let text = spec(Value::Text(String::new()), None, None);
        assert_eq!(text.read(&"1".into()), Some(Value::Text("1".into())));
        assert_eq!(integer.expected(), "a whole number from 1 to 10 (default 5)");
        assert_eq!(number.expected(), "a number of at least 0 (default 0.5)");
    }

    #[test]
    fn what_was_meant() {
        let known: Vec<_> = ["lru", "s3-fifo", "small-share"].map(String::from).into();
        assert_eq!(nearest("LRU", &known).as_deref(), Some("lru"));
        assert_eq!(nearest("s3fifo", &known).as_deref(), Some("s3-fifo"));
        assert_eq!(nearest("smal-sahre", &known).as_deref(), Some("small-share"));
        assert_eq!(nearest("window", &known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn a_duration_is_never_cut_to_nothing() {
        let of = |micros| Value::from(std::time::Duration::from_micros(micros));
        assert_eq!([0, 1, 900, 1999, 2000].map(of), [0, 1, 1, 1, 2].map(Value::Integer));
    }

    #[test]
    fn a_pin_holds() {
        let fifo = Policy::builtin("fifo").unwrap();
        let digest = fifo.load().unwrap().sha256().unwrap().to_string();
        assert!(fifo.clone().sha256(digest.to_uppercase()).load().is_ok());
        let wrong = "0".repeat(64);
        let error = fifo.sha256(wrong.clone()).load().unwrap_err().to_string();
        assert!(error.contains(&digest) && error.contains(&wrong), "{error}");
    }
}
