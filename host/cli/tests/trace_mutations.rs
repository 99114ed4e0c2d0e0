//! The short, always-run version of the fuzzing of traces: traces of every format with damage, from seeds. Whatever the
//! bytes are, the answer is at least one request or an error; and what comes in pieces is read as what comes at once.
//!
//! The long one is `tests/fuzz`.

use std::io::{self, Read};

use larder_cli::trace::{Format, Options, Reader, Request};

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Gives a few bytes at a time, and is interrupted now and then.
struct Dribble<'a>(&'a [u8], Random);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.1.below(8) == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let most = (1 + self.1.below(7)).min(buffer.len());
        self.0.read(&mut buffer[..most])
    }
}

fn read(source: impl Read + Send, options: &Options) -> Result<Vec<Request>, String> {
    let mut requests = Vec::new();
    Reader::of("damaged", source, options)
        .and_then(|reader| reader.for_each(|request| requests.push(request)))
        .map_err(|error| error.to_string())?;
    Ok(requests)
}

/// A whole trace of each format.
fn whole() -> Vec<(Format, Vec<u8>)> {
    let keys = (0..200u64).map(|n| n * n % 37);
    let binary = |size: bool, rest: bool| {
        let mut bytes = Vec::new();
        for key in keys.clone() {
            if rest {
                bytes.extend(7u32.to_le_bytes());
            }
            bytes.extend(key.to_le_bytes());
            if size {
                bytes.extend((key as u32 + 1).to_le_bytes());
            }
            if rest {
                bytes.extend((-1i64).to_le_bytes());
            }
        }
        bytes
    };
    let text = |line: fn(u64) -> String| keys.clone().map(line).collect::<String>().into_bytes();
    let mut csv = b"time,id,size\n".to_vec();
    csv.extend(text(|key| format!("1,\"key {key}\",{}\n", key + 1)));
    vec![
        (Format::U64, binary(false, false)),
        (Format::U64u32, binary(true, false)),
        (Format::OracleGeneral, binary(true, true)),
        (Format::Csv, csv),
        (Format::Lis, text(|key| format!("{key} 3 0 1\n"))),
        (Format::Keys, text(|key| format!("key {key}\r\n"))),
    ]
}

#[test]
fn a_damaged_trace_is_a_trace_or_an_error() {
    let mut random = Random(1);
    for (format, original) in whole() {
        let named = Options { format: Some(format), columns: None };
        assert!(read(&original[..], &named).is_ok_and(|requests| requests.len() >= 200), "{format}");
        let mut errors = 0;
        for round in 0..400 {
            let mut bytes = original.clone();
            // Zstandard's magic, now and then: what follows is no frame.
            if random.below(40) == 0 {
                bytes.splice(0..0, [0x28, 0xb5, 0x2f, 0xfd]);
            }
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len().max(1));
                match random.below(4) {
                    _ if bytes.is_empty() => {}
                    0 => bytes.truncate(at),
                    1 => bytes[at] = random.below(256) as u8,
                    2 => bytes[at] = b",\"\n\r;\t\0 "[random.below(8)],
                    _ => drop(bytes.drain(at..(at + random.below(30)).min(bytes.len()))),
                }
            }
            for options in [&named, &Options::default()] {
                let at_once = read(&bytes[..], options);
                let in_pieces = read(Dribble(&bytes, Random(round)), options);
                assert_eq!(at_once, in_pieces, "{format}, round {round}");
                match at_once {
                    Ok(requests) => assert!(!requests.is_empty(), "{format}, round {round}"),
                    Err(error) => {
                        errors += 1;
                        assert!(error.starts_with("damaged: "), "{error}");
                    }
                }
            }
        }
        assert!(errors > 0, "no damage was noticed in {format}");
    }
}
