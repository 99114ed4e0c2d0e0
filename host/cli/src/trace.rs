//! Traces: requests in the order in which they came, from the formats that cache research uses.
//!
//! A [`Reader`] streams: it holds one buffer of the input and one block of requests, however long the trace. It checks
//! what it reads, because a trace that is cut short or read in the wrong format still looks like a trace and gives a
//! hit ratio, only a wrong one. Every [`TraceError`] says where, what was expected, and what to do.
//!
//! | format | a request is | sizes |
//! |---|---|---|
//! | [`Format::U64`] | 8 bytes: u64 key, little-endian, as everything binary here | no |
//! | [`Format::U64u32`] | 12 bytes: u64 key, u32 size | yes |
//! | [`Format::OracleGeneral`] | 24 bytes: u32 time, u64 key, u32 size, i64 next access (libCacheSim) | yes |
//! | [`Format::Csv`] | a line of columns, with a header or not (libCacheSim) | where there is a column |
//! | [`Format::Lis`] | a line `first-block blocks ignored request-number`, a request for each block (ARC, FAST 03) | no |
//! | [`Format::Keys`] | a line: the key, any bytes | no |
//!
//! Any of them may be compressed with zstd, which is recognised by content; a file whose name says that it is
//! compressed, and is not, is an error. As libCacheSim does with its two formats,
//! requests of size 0 are left out there. Keys that are decimal numbers below 2⁶⁴, as Rust prints them, stand for
//! themselves, so that the same trace in two formats is the same trace; any other key becomes its 64-bit XXH3 hash.

mod binary;
mod frames;
mod input;
mod text;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use input::Input;
use text::Columns;

/// How many requests [`Reader::fill`] reads at a time.
pub const BLOCK: usize = 1 << 14;

/// How much of a trace is looked at to recognise its format.
const HEAD: usize = 4096;

/// A request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The key; not well mixed (often small and dense).
    pub key: u64,
    /// The size of the object in bytes; 1 where the trace has none.
    pub size: u32,
}

/// How a trace is written; the table is in the [module's documentation](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Little-endian u64 keys.
    U64,
    /// Little-endian u64 key and u32 size, packed into 12 bytes.
    U64u32,
    /// libCacheSim's oracleGeneral: 24-byte records of time, key, size, next access.
    #[value(alias = "oracleGeneral")]
    OracleGeneral,
    /// Columns separated by commas, semicolons or tabs, as libCacheSim reads them; see --trace-columns.
    Csv,
    /// ARC's: first block, number of blocks, ignored, request number.
    Lis,
    /// A key a line.
    #[value(alias = "txt")]
    Keys,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::U64 => "u64",
            Format::U64u32 => "u64u32",
            Format::OracleGeneral => "oracle-general",
            Format::Csv => "csv",
            Format::Lis => "lis",
            Format::Keys => "keys",
        })
    }
}

/// What the user says of a trace; what is left out is recognised.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The format.
    pub format: Option<Format>,
    /// The columns of a CSV file in order: `id` and perhaps `size`; other names are ignored.
    pub columns: Option<Vec<String>>,
}

/// Where in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A byte of the (decompressed) content, from 0.
    Byte(u64),
    /// A line, from 1.
    Line(u64),
    /// The whole file.
    Whole,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Byte(at) => write!(f, "byte {at}: "),
            Place::Line(at) => write!(f, "line {at}: "),
            Place::Whole => Ok(()),
        }
    }
}

/// A trace that cannot be read, truncated or malformed.
#[derive(Debug, thiserror::Error)]
#[error("{trace}: {place}{problem}\n  {remedy}")]
pub struct TraceError {
    /// The file, as the user named it.
    pub trace: String,
    /// Where.
    pub place: Place,
    /// What was found and what was expected.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
    /// What the system said.
    #[source]
    pub source: Option<io::Error>,
}

/// A problem within a trace whose name the caller adds.
struct Problem {
    place: Place,
    problem: String,
    remedy: String,
    source: Option<io::Error>,
}

impl Problem {
    fn new(place: Place, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Problem { place, problem: problem.into(), remedy: remedy.into(), source: None }
    }

    fn of_reading(place: Place, source: io::Error) -> Self {
        let remedy = match source.kind() {
            io::ErrorKind::InvalidData => {
                "fetch or compress the file anew; `zstd --test FILE` tells whether it is whole"
            }
            _ => "check that the file can be read",
        };
        Problem { place, problem: format!("cannot read: {source}"), remedy: remedy.into(), source: Some(source) }
    }

    fn of(self, trace: &str) -> TraceError {
        let Problem { place, problem, remedy, source } = self;
        TraceError { trace: trace.into(), place, problem, remedy, source }
    }
}

/// A format at work: how to turn input into requests.
trait Decode: Send {
    /// Appends requests until `block` has [`BLOCK`] of them or the input ends.
    fn fill(&mut self, input: &mut Input<'_>, block: &mut Vec<Request>) -> Result<(), Problem>;
}

/// Reads a trace, a block of requests at a time.
pub struct Reader<'a> {
    name: String,
    format: Format,
    input: Input<'a>,
    decode: Box<dyn Decode>,
    empty: bool,
    /// After an error or the end there is nothing more to read.
    over: bool,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("name", &self.name).field("format", &self.format).finish_non_exhaustive()
    }
}

impl Reader<'static> {
    /// Opens a file, or standard input where the path is `-`.
    ///
    /// # Errors
    /// Where the file cannot be read or its format not be recognised.
    pub fn open(path: &Path, options: &Options) -> Result<Self, TraceError> {
        let name = path.display().to_string();
        if name == "-" {
            return Reader::of("standard input", io::stdin(), options);
        }
        let file = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
            true => Err(io::Error::new(io::ErrorKind::IsADirectory, "is a directory")),
            false => Ok(file),
        });
        match file {
            Ok(file) => Reader::of(&name, file, options),
            Err(source) => {
                let remedy = match source.kind() {
                    io::ErrorKind::NotFound => "check the path, or name a synthetic trace with --synthetic",
                    io::ErrorKind::IsADirectory => "name the files in it",
                    _ => "check that the file can be read",
                };
                let problem = format!("cannot open: {source}");
                Err(Problem { source: Some(source), ..Problem::new(Place::Whole, problem, remedy) }.of(&name))
            }
        }
    }
}

impl<'a> Reader<'a> {
    /// Reads a trace from anything. The name is what errors call it; its ending tells the format where the options do
    /// not.
    ///
    /// # Errors
    /// Where the beginning cannot be read or the format not be recognised.
    pub fn of(name: &str, source: impl Read + Send + 'a, options: &Options) -> Result<Self, TraceError> {
        Self::new(name, Box::new(source), options).map_err(|problem| problem.of(name))
    }

    fn new(name: &str, source: Box<dyn Read + Send + 'a>, options: &Options) -> Result<Self, Problem> {
        let mut input = Input::new(source, named_compressed(name))?;
        let head = input.peek(HEAD)?;
        // However much the source gave at once.
        let head = &head[..head.len().min(HEAD)];
        let format = match options.format {
            Some(format) => format,
            None => recognise(name, head)?,
        };
        let decode: Box<dyn Decode> = match format {
            Format::U64 => Box::new(binary::U64),
            Format::U64u32 => Box::new(binary::U64U32),
            Format::OracleGeneral => Box::new(binary::OracleGeneral),
            Format::Csv => Box::new(text::Csv::new(options.columns.as_deref())?),
            Format::Lis => Box::new(text::Lis::default()),
            Format::Keys => Box::new(text::Keys),
        };
        Ok(Reader { name: name.into(), format, input, decode, empty: true, over: false })
    }

    /// The format that was named or recognised.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Replaces the content of `block` by the next requests, at most [`BLOCK`]; answers whether there were any.
    ///
    /// # Errors
    /// Where the trace cannot be read, is truncated or malformed, or holds no request at all. After an error there is
    /// nothing more.
    pub fn fill(&mut self, block: &mut Vec<Request>) -> Result<bool, TraceError> {
        block.clear();
        if self.over {
            return Ok(false);
        }
        let filled = self.decode.fill(&mut self.input, block);
        self.over = filled.is_err() || block.is_empty();
        filled.map_err(|problem| problem.of(&self.name))?;
        if self.over && self.empty {
            let remedy = "give a trace with at least one request";
            return Err(Problem::new(Place::Whole, "holds no requests", remedy).of(&self.name));
        }
        self.empty = false;
        Ok(!self.over)
    }

    /// Calls `each` with every request from here to the end.
    ///
    /// # Errors
    /// As [`Reader::fill`].
    pub fn for_each(mut self, mut each: impl FnMut(Request)) -> Result<(), TraceError> {
        let mut block = Vec::with_capacity(BLOCK);
        while self.fill(&mut block)? {
            block.iter().copied().for_each(&mut each);
        }
        Ok(())
    }
}

/// The key that some text stands for.
fn key_of(text: &[u8]) -> u64 {
    // As Rust prints numbers: "7" and "07" are two keys.
    let canonical = !text.is_empty() && text.len() <= 20 && (text[0] != b'0' || text.len() == 1);
    let number = || {
        text.iter().try_fold(0u64, |n, &c| match c {
            b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(c - b'0')),
            _ => None,
        })
    };
    canonical.then(number).flatten().unwrap_or_else(|| xxhash_rust::xxh3::xxh3_64(text))
}

/// The name of a file that is named as compressed, without what says so.
fn without_compression(file: &str) -> Option<&str> {
    file.strip_suffix(".zst").or(file.strip_suffix(".zstd"))
}

/// Whether a file's name says that it is compressed.
fn named_compressed(name: &str) -> bool {
    without_compression(&name.to_ascii_lowercase()).is_some()
}

/// The format by the ending of the name, or else by the first bytes.
fn recognise(name: &str, head: &[u8]) -> Result<Format, Problem> {
    let file = name.rsplit(['/', '\\']).next().unwrap_or(name).to_ascii_lowercase();
    let stem = without_compression(&file).unwrap_or(&file);
    match stem.rsplit_once('.').map(|(_, ending)| ending) {
        Some("u64") => return Ok(Format::U64),
        Some("u64u32") => return Ok(Format::U64u32),
        Some("csv" | "tsv") => return Ok(Format::Csv),
        Some("lis") => return Ok(Format::Lis),
        Some("keys") => return Ok(Format::Keys),
        _ if stem.contains("oraclegeneral") => return Ok(Format::OracleGeneral),
        _ => {}
    }
    if binary::looks_like_oracle_general(head) {
        return Ok(Format::OracleGeneral);
    }
    if memchr::memchr(0, head).is_some() {
        let problem = "a binary trace in a format that neither its name nor its content tells";
        let remedy = "name it: --trace-format u64, u64u32 or oracle-general";
        return Err(Problem::new(Place::Whole, problem, remedy));
    }
    // Whole lines, or the only one.
    let lines = &head[..memchr::memrchr(b'\n', head).unwrap_or(head.len())];
    let lines = lines.split(|&c| c == b'\n').take(100).zip(1..);
    let mut lines = lines.filter(|(line, _)| !line.trim_ascii().is_empty()).peekable();
    let first = lines.peek().map(|&(line, _)| line).unwrap_or_default();
    if text::lis_fields(first).is_some() {
        // Whether one line is damaged or all are keys that look like ARC's lines at first, nobody can tell from here.
        let Some((line, number)) = lines.find(|(line, _)| text::lis_fields(line).is_none()) else {
            return Ok(Format::Lis);
        };
        let problem =
            format!("the lines before are four whole numbers, as in an ARC trace; found {}", text::shown(line));
        let remedy = "mend the line, or name the format: --trace-format lis, or keys where each line is a key";
        return Err(Problem::new(Place::Line(number), problem, remedy));
    }
    if Columns::of_header(first).is_some() || text::looks_like_csv(first) {
        return Ok(Format::Csv);
    }
    Ok(Format::Keys)
}

#[cfg(test)]
mod tests;
