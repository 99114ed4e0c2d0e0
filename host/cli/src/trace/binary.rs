//! Traces of fixed-size little-endian records.

use super::input::Input;
use super::{BLOCK, Decode, Place, Problem, Request};

/// A record at the beginning of `bytes`, which are at least as many as it needs.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// Takes whole records of `size` bytes; a part of one at the end is an error.
fn records(
    input: &mut Input<'_>,
    block: &mut Vec<Request>,
    size: usize,
    request: impl Fn(&[u8]) -> Option<Request>,
) -> Result<(), Problem> {
    while block.len() < BLOCK {
        let offset = input.offset();
        let bytes = input.peek(size)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let whole = (bytes.len() / size).min(BLOCK - block.len());
        if whole == 0 {
            let problem = format!("ends within a record: {} bytes where a record has {size}", bytes.len());
            let remedy = "the file is truncated, or in another format: fetch it anew, or name its --trace-format";
            return Err(Problem::new(Place::Byte(offset), problem, remedy));
        }
        block.extend(bytes[..whole * size].chunks_exact(size).filter_map(&request));
        input.take(whole * size);
    }
    Ok(())
}

/// u64 key.
pub(super) struct U64;

impl Decode for U64 {
    fn fill(&mut self, input: &mut Input<'_>, block: &mut Vec<Request>) -> Result<(), Problem> {
        records(input, block, 8, |record| Some(Request { key: u64_at(record, 0), size: 1 }))
    }
}

/// u64 key, u32 size.
pub(super) struct U64U32;

impl Decode for U64U32 {
    fn fill(&mut self, input: &mut Input<'_>, block: &mut Vec<Request>) -> Result<(), Problem> {
        records(input, block, 12, |record| Some(Request { key: u64_at(record, 0), size: u32_at(record, 8) }))
    }
}

/// u32 time, u64 key, u32 size, i64 number of the next request for the key.
pub(super) struct OracleGeneral;

impl Decode for OracleGeneral {
    fn fill(&mut self, input: &mut Input<'_>, block: &mut Vec<Request>) -> Result<(), Problem> {
        records(input, block, 24, |record| {
            let size = u32_at(record, 12);
            // Left out as in libCacheSim, so that its counts of requests are ours.
            (size != 0).then_some(Request { key: u64_at(record, 4), size })
        })
    }
}

/// Whether the beginning of a trace can be oracleGeneral: time does not go back, what is said of the next access lies
/// ahead or is one of libCacheSim's words for "never", and some object has a size (small u64 keys, read so, have none).
pub(super) fn looks_like_oracle_general(head: &[u8]) -> bool {
    let mut before = 0;
    head.chunks_exact(24).any(|record| u32_at(record, 12) != 0)
        && head.chunks_exact(24).enumerate().all(|(i, record)| {
            let (time, next) = (u32_at(record, 0), u64_at(record, 16) as i64);
            let ordered = time >= before;
            before = time;
            // Some tools count requests from 1.
            ordered && (next == -1 || next == i64::MAX || (next > i as i64 && next < 1 << 40))
        })
}
