//! Any bytes in a shared tier are an envelope or an error, and an envelope that was written is read as it was.

use arbitrary::{Arbitrary, Unstructured};

use crate::tiered::FarCopy;
use crate::tiered::envelope::Envelope;

/// One value of a store.
pub fn check(data: &[u8]) {
    read(data);
    read(&repaired(data));
    if let Ok(envelope) = any(&mut Unstructured::new(data)) {
        assert_eq!(Envelope::decode(envelope.encode()), Ok(envelope), "what was written is read");
    }
}

fn read(bytes: &[u8]) {
    let Ok(envelope) = Envelope::decode(bytes.to_vec()) else { return };
    assert_eq!(envelope.encode(), bytes, "there is one way to write an envelope");
    // Past its terms a copy may not be served, and nothing makes it fresher than it was.
    let end = envelope.written_at.checked_add(envelope.lifetime_ms()).filter(|end| *end < FarCopy::FOREVER);
    if let Some(end) = end {
        assert_eq!(envelope.clone().copy_at(end, Envelope::NOT_ENDED), None);
    }
    for now in [0, envelope.written_at, envelope.written_at / 2 + u64::MAX / 2, u64::MAX] {
        for ended in [0, envelope.written_at, Envelope::NOT_ENDED] {
            let Some(copy) = envelope.clone().copy_at(now, ended) else { continue };
            assert!(copy.fresh_ms <= envelope.copy.fresh_ms && copy.age_ms >= envelope.copy.age_ms);
            assert!(copy.stale_ms <= envelope.copy.stale_ms && copy.rescue_ms <= envelope.copy.rescue_ms);
        }
    }
}

/// The same past the checks that a mutation does not pass: the beginning, the checksum, those of the two moments.
fn repaired(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    if bytes.len() < 34 {
        return bytes;
    }
    bytes[..5].copy_from_slice(b"LRDR\x02");
    for moment in [10, 18] {
        let part = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let check = !(part(moment) ^ part(moment + 2) ^ part(moment + 4));
        bytes[moment + 6..moment + 8].copy_from_slice(&check.to_be_bytes());
    }
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes[..6]);
    checksum.update(&bytes[26..]);
    bytes[6..10].copy_from_slice(&checksum.finalize().to_be_bytes());
    bytes
}

fn any(data: &mut Unstructured<'_>) -> arbitrary::Result<Envelope> {
    Ok(Envelope {
        copy: FarCopy::arbitrary(data)?,
        // Of 48 bits; the last moment stands for none where freshness ends.
        written_at: u64::arbitrary(data)? >> 16,
        ended_at: Some(u64::arbitrary(data)? >> 16).filter(|at| *at < u64::MAX >> 16).unwrap_or(Envelope::NOT_ENDED),
        stamp: u64::arbitrary(data)?,
        fence: u64::arbitrary(data)?,
    })
}
