//! Traces of lines.

use csv_core::ReadRecordResult;

use super::input::Input;
use super::{BLOCK, Decode, Place, Problem, Request, key_of};

/// Some text of a trace for an error message: printable, and not long.
pub(super) fn shown(text: &[u8]) -> String {
    let short = &text[..text.len().min(40)];
    format!("\"{}{}\"", short.escape_ascii(), if short.len() < text.len() { "…" } else { "" })
}

/// A number in decimal digits.
fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// A key a line.
pub(super) struct Keys;

impl Decode for Keys {
    fn fill(&mut self, input: &mut Input<'_>, block: &mut Vec<Request>) -> Result<(), Problem> {
        while block.len() < BLOCK {
            let Some(line) = input.line()? else { break };
            block.push(Request { key: key_of(line), size: 1 });
        }
        Ok(())
    }
}

/// The four fields of a line of an ARC trace.
pub(super) fn lis_fields(line: &[u8]) -> Option<[u64; 4]> {
    let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    let mut next = || number(fields.next()?);
    let four = [next()?, next()?, next()?, next()?];
    fields.next().is_none().then_some(four)
}

/// ARC's format: a line asks for a run of blocks.
#[derive(Default)]
pub(super) struct Lis {
    /// What is left of the run of the last line.
    run: std::ops::Range<u64>,
}

/// The longest run of blocks that a line may ask for (half a GiB of 512-byte blocks): a mistaken format must not turn
/// into years of requests.
const LONGEST_RUN: u64 = 1 << 20;

impl Decode for Lis {
    fn fill(&mut self, input: &mut Input<'_>, block: &mut Vec<Request>) -> Result<(), Problem> {
        const REMEDY: &str = "an ARC trace has lines `first-block blocks ignored request-number`, four whole numbers; \
                              is it another --trace-format?";
        loop {
            let room = BLOCK - block.len();
            block.extend(self.run.by_ref().take(room).map(|key| Request { key, size: 1 }));
            if block.len() == BLOCK {
                return Ok(());
            }
            let number = input.line_number() + 1;
            let Some(line) = input.line()? else { return Ok(()) };
            let wrong = |problem: String| Problem::new(Place::Line(number), problem, REMEDY);
            let Some([first, blocks, ..]) = lis_fields(line) else {
                return Err(wrong(format!("expected four whole numbers, found {}", shown(line))));
            };
            if blocks > LONGEST_RUN {
                return Err(wrong(format!("asks for {blocks} blocks at once, more than {LONGEST_RUN}")));
            }
            let Some(end) = first.checked_add(blocks) else {
                return Err(wrong(format!("the blocks from {first} on do not fit into 64 bits")));
            };
            self.run = first..end;
        }
    }
}

/// The separators that are tried, in this order where several are equally frequent.
const SEPARATORS: [u8; 3] = [b',', b'\t', b';'];

fn separator(line: &[u8]) -> u8 {
    let count = |c: &u8| memchr::memchr_iter(*c, line).count();
    SEPARATORS.into_iter().rev().max_by_key(count).unwrap_or(b',')
}

/// Whether a line without a header can be taken for columns: time, key, size, and maybe more.
pub(super) fn looks_like_csv(line: &[u8]) -> bool {
    let fields: Vec<_> = line.split(|&c| c == separator(line)).map(|field| number(field.trim_ascii())).collect();
    fields.len() >= 3 && fields[0].is_some() && fields[2].is_some()
}

/// Which columns of a CSV file hold what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    id: usize,
    size: Option<usize>,
}

impl Columns {
    fn named<'n>(names: impl Iterator<Item = &'n str>) -> Option<Self> {
        let (mut id, mut size) = (None, None);
        for (at, name) in names.enumerate() {
            let name = name.trim_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '#' | '\u{feff}'));
            match name.to_ascii_lowercase().replace(['-', ' '], "_").as_str() {
                "id" | "key" | "obj" | "object" | "obj_id" | "object_id" | "objid" | "lbn" | "lba" | "block" => {
                    id = id.or(Some(at));
                }
                "size" | "obj_size" | "object_size" | "objsize" | "bytes" => size = size.or(Some(at)),
                _ => {}
            }
        }
        id.map(|id| Columns { id, size })
    }

    /// The columns by the names in a header; nothing where it names no key.
    pub(super) fn of_header(line: &[u8]) -> Option<Self> {
        let separator = char::from(separator(line));
        let line = std::str::from_utf8(line).ok().filter(|line| line.contains(separator))?;
        Self::named(line.split(separator))
    }
}

/// Columns, with a header or not.
pub(super) struct Csv {
    /// As the user named them, or else as the header does.
    columns: Option<Columns>,
    /// Known from the first line on.
    parser: Option<csv_core::Reader>,
    /// The cells of a line, end to end, and where each ends.
    cells: Vec<u8>,
    ends: Vec<usize>,
}

/// More columns than any trace has.
const MOST_COLUMNS: usize = 256;

impl Csv {
    pub(super) fn new(columns: Option<&[String]>) -> Result<Self, Problem> {
        let columns = match columns {
            None => None,
            Some(names) => Some(Columns::named(names.iter().map(String::as_str)).ok_or_else(|| {
                let problem = format!("--trace-columns {} names no column `id`", names.join(","));
                let remedy = "name the columns in order, such as `time,id,size`; other names are ignored";
                Problem::new(Place::Whole, problem, remedy)
            })?),
        };
        Ok(Csv { columns, parser: None, cells: Vec::new(), ends: vec![0; MOST_COLUMNS] })
    }
}

impl Decode for Csv {
    fn fill(&mut self, input: &mut Input<'_>, block: &mut Vec<Request>) -> Result<(), Problem> {
        while block.len() < BLOCK {
            let Some(line) = input.line()? else { break };
            let mut header = false;
            if self.parser.is_none() {
                self.parser = Some(csv_core::ReaderBuilder::new().delimiter(separator(line)).build());
                let named = Columns::of_header(line);
                // A line of words is a header even where the user names the columns otherwise.
                header = named.is_some() || !line.iter().any(u8::is_ascii_digit);
                self.columns = self.columns.take().or(named);
                if self.columns.is_none() && !header && looks_like_csv(line) {
                    self.columns = Some(Columns { id: 1, size: Some(2) });
                }
            }
            if header && self.columns.is_some() {
                continue;
            }
            let request = self.request(line);
            let number = input.line_number();
            match request {
                Ok(Request { size: 0, .. }) => {}
                Ok(request) => block.push(request),
                Err((problem, remedy)) => return Err(Problem::new(Place::Line(number), problem, remedy)),
            }
        }
        Ok(())
    }
}

impl Csv {
    /// The request of a line, or the problem and its remedy.
    fn request(&mut self, line: &[u8]) -> Result<Request, (String, String)> {
        const NAME_THEM: &str = "name the columns in order: --trace-columns time,id,size (other names are ignored)";
        let wrong = |problem: String| (problem, NAME_THEM.to_string());
        let Some(columns) = &self.columns else {
            return Err(wrong(format!("cannot tell which column is the key in {}", shown(line))));
        };
        let parser = self.parser.get_or_insert_with(csv_core::Reader::new);
        parser.reset();
        // No cell is longer than its line.
        self.cells.resize(self.cells.len().max(line.len()), 0);
        let (result, _, _, mut count) = parser.read_record(line, &mut self.cells, &mut self.ends);
        if result == ReadRecordResult::OutputEndsFull {
            return Err(wrong(format!("more than {MOST_COLUMNS} columns")));
        }
        // The end of the line ends the last cell, unless a quote is open.
        let (result, _, _, last) = parser.read_record(b"\n", &mut [0; 2], &mut self.ends[count..]);
        if result != ReadRecordResult::Record {
            let remedy = "close the quote: a cell lies on one line";
            return Err((format!("a quote opens and does not close: {}", shown(line)), remedy.into()));
        }
        count += last;
        let cell = |at: usize| {
            let start = if at == 0 { 0 } else { self.ends[at - 1] };
            (at < count).then(|| self.cells[start..self.ends[at]].trim_ascii())
        };
        let missing = |what: &str, at: usize| {
            wrong(format!("expected the {what} in column {}, found {count} columns: {}", at + 1, shown(line)))
        };
        let id = cell(columns.id).ok_or_else(|| missing("key", columns.id))?;
        if id.is_empty() {
            return Err(wrong(format!("an empty key in column {}", columns.id + 1)));
        }
        let Some(at) = columns.size else { return Ok(Request { key: key_of(id), size: 1 }) };
        let text = cell(at).ok_or_else(|| missing("size", at))?;
        let size = number(text)
            .ok_or_else(|| wrong(format!("expected the size in bytes in column {}, found {}", at + 1, shown(text))))?;
        let size = u32::try_from(size).map_err(|_| {
            let remedy = "give sizes in a larger unit: Larder's weights are 32 bits".to_string();
            (format!("a size of {size}, more than {}", u32::MAX), remedy)
        })?;
        Ok(Request { key: key_of(id), size })
    }
}
