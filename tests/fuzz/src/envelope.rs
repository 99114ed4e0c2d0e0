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

/// The same past the checks that a mutation does not pass: the beginning, the checksum, the moments that lie there twice.
fn repaired(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    if bytes.len() < Envelope::HEADER_BYTES {
        return bytes;
    }
    bytes[..5].copy_from_slice(b"LRDR\x01");
    bytes.copy_within(24..32, 32);
    bytes.copy_within(40..48, 48);
    // Nor lengths of gigabytes.
    for high in [8, 12, 16] {
        if bytes[high] != 0xff {
            bytes[high..high + 2].fill(0);
        }
    }
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes[..20]);
    checksum.update(&bytes[56..]);
    bytes[20..24].copy_from_slice(&checksum.finalize().to_be_bytes());
    bytes
}

fn any(data: &mut Unstructured<'_>) -> arbitrary::Result<Envelope> {
    Ok(Envelope {
        copy: FarCopy::arbitrary(data)?,
        written_at: u64::arbitrary(data)?,
        ended_at: u64::arbitrary(data)?,
        epoch: u64::arbitrary(data)?,
        stamp: u64::arbitrary(data)?,
        fence: u64::arbitrary(data)?,
    })
}
