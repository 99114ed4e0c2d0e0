//! Any bytes are a trace or an error, in any format, however they come.

use std::io::{self, Read};

/// The command, as far as it is needed.
#[path = "../../../host/cli/src"]
mod cli {
    pub mod trace;
}

use cli::trace::{Format, Options, Reader, Request, TraceError};

const FORMATS: [Option<Format>; 7] = [
    None,
    Some(Format::U64),
    Some(Format::U64u32),
    Some(Format::OracleGeneral),
    Some(Format::Csv),
    Some(Format::Lis),
    Some(Format::Keys),
];
/// More than any reader holds at once.
const MOST: usize = 1 << 17;

/// One file: a byte for what its user says of it, and its content.
pub fn check(data: &[u8]) {
    let Some((&first, content)) = data.split_first() else { return };
    let format = FORMATS[usize::from(first) % FORMATS.len()];
    let columns = (first >= 128).then(|| vec!["size".into(), "id".into()]);
    let options = Options { format, columns };
    let whole = read(content, &options);
    match &whole {
        Ok(requests) => assert!(!requests.is_empty(), "an empty trace is an error"),
        Err(error) => assert!(!error.remedy.is_empty() && !error.to_string().is_empty()),
    }
    // What a pipe gives, a few bytes at a time, is the same trace.
    let pieces = read(Pieces(content), &options);
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => assert!(whole == pieces),
        (Err(whole), Err(pieces)) => assert_eq!(whole.to_string(), pieces.to_string()),
        (whole, pieces) => {
            panic!("{:?} at once, {:?} in pieces", whole.map(|all| all.len()), pieces.map(|all| all.len()))
        }
    }
}

fn read(source: impl Read + Send, options: &Options) -> Result<Vec<Request>, TraceError> {
    let mut reader = Reader::of("fuzzed", source, options)?;
    let (mut requests, mut block) = (Vec::new(), Vec::new());
    while requests.len() < MOST && reader.fill(&mut block)? {
        requests.extend_from_slice(&block);
    }
    Ok(requests)
}

struct Pieces<'a>(&'a [u8]);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = 1 + self.0.len() % 7;
        let end = buffer.len().min(most);
        self.0.read(&mut buffer[..end])
    }
}
