//! The envelope: what lies in a shared tier beside a value, so that any process in any language can tell whether it may
//! serve it. `wit/envelope.md` is the specification, byte by byte, and `wit/envelope.json` has vectors of it; this is one
//! implementation.
//!
//! Four things decide its form. **Bytes in a store are not to be trusted**: a header that is damaged, cut off, or of a later
//! version is an error and never a panic or another value, so a checksum covers all that a bit could change in silence.
//! **Moments are those of the tier's own clock**, of which there is one where machines have many: a copy ages alike for all
//! who read it. **A soft invalidation changes eight bytes at a fixed place**, so that a script in the store can end the
//! freshness of a value without reading it; those bytes, and the moment of writing, which a store may fill in, are outside
//! the checksum, and each has a check of its own. **Values are small**, most of them, and a header is in the store's memory
//! and in each answer beside every one: so what may be small takes few bytes (LEB128), and what is not needed none. With
//! fields of fixed width it was 128 bytes, which made an answer of 100 values of 100 bytes twice as long.
//!
//! Not a self-describing format (CBOR, protobuf): the header is read at each far hit, a script in Lua has to find its way in
//! it, and any language can read it without a library.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::FarCopy;
use super::near::after;

/// A copy as it lies in a shared tier.
///
/// ```
/// use larder::tiered::{Envelope, FarCopy};
///
/// let copy = FarCopy {
///     value: Some("seven".into()),
///     validator: None,
///     tags: ["shop:red".into()].into(),
///     age_ms: 0,
///     fresh_ms: 1_000,
///     stale_ms: 500,
///     rescue_ms: 0,
///     early_us: 0,
///     cost_us: 12,
/// };
/// let bytes = Envelope::new(copy.clone(), 10_000).encode();
/// let read = Envelope::decode(bytes.clone())?;
/// assert_eq!(read.clone().copy_at(10_400, Envelope::NOT_ENDED).map(|copy| copy.fresh_ms), Some(600));
/// assert_eq!(read.clone().copy_at(11_100, Envelope::NOT_ENDED).map(|copy| copy.stale_ms), Some(400));
/// assert_eq!(read.copy_at(11_600, Envelope::NOT_ENDED), None);
///
/// let mut damaged = bytes;
/// *damaged.last_mut().unwrap() ^= 1;
/// assert!(Envelope::decode(damaged).is_err());
/// # Ok::<(), larder::tiered::EnvelopeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The value and its terms, as of the moment of writing.
    pub copy: FarCopy,
    /// The moment of writing, in milliseconds of the tier's clock. (Of 48 bits: what is later is written as the last.)
    pub written_at: u64,
    /// When a soft invalidation ended its freshness; [`NOT_ENDED`](Self::NOT_ENDED): none has.
    pub ended_at: u64,
    /// The stamp of the token by which it was kept.
    pub stamp: u64,
    /// The fence of that token.
    pub fence: u64,
}

/// Why bytes are no envelope that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Somebody else's bytes, or damaged ones.
    #[error("it is damaged, or was not written by Larder: {0}")]
    Damaged(&'static str),
    /// Written by a later version of Larder.
    #[error("it is of version {0}, and this reads version 2: update this process, or wait until the copy has expired")]
    Newer(u8),
    /// It has something that this version does not know, such as another way of compression.
    #[error("it has flags that this version does not know ({0:#04x}): update this process")]
    Unknown(u8),
}

const MAGIC: [u8; 4] = *b"LRDR";
const VERSION: u8 = 2;
const NEGATIVE: u8 = 1;
const FLAGS_AT: usize = 5;
const CHECKSUM_AT: usize = 6;
const WRITTEN_AT: usize = 10;
const ENDED_AT: usize = 18;
/// The checksum covers what is from here on, and what is before itself.
const FENCE_AT: usize = 26;
/// What is at fixed places; behind it, numbers and texts.
const FIXED: usize = 34;
/// The last moment that there is; where freshness ends, it stands for never.
const LAST_MOMENT: u64 = (1 << 48) - 1;
/// What is before the value.
struct Beginning {
    /// Without its value.
    envelope: Envelope,
    is_negative: bool,
    length: usize,
}

impl Envelope {
    /// What `ended_at` is where no soft invalidation has reached the copy.
    pub const NOT_ENDED: u64 = u64::MAX;
    /// A copy that is written now, in a tier without counters.
    pub fn new(copy: FarCopy, now: u64) -> Self {
        Envelope { copy, written_at: now, ended_at: Self::NOT_ENDED, stamp: 0, fence: 0 }
    }

    /// The bytes to be stored.
    pub fn encode(&self) -> Vec<u8> {
        let value = self.copy.value.as_deref().unwrap_or_default();
        let mut bytes = self.beginning(value.len());
        bytes.extend_from_slice(value);
        let checksum = checksum(&bytes);
        bytes[CHECKSUM_AT..WRITTEN_AT].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// What is before the value, without the checksum; with room for as many bytes more.
    fn beginning(&self, room: usize) -> Vec<u8> {
        let FarCopy { value, validator, tags, age_ms, fresh_ms, stale_ms, rescue_ms, early_us, cost_us } = &self.copy;
        let texts = validator.as_deref().map_or(0, str::len) + tags.iter().map(|tag| 10 + tag.len()).sum::<usize>();
        let mut bytes = Vec::with_capacity(FIXED + 9 * 10 + texts + room);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, if value.is_none() { NEGATIVE } else { 0 }]);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&moment(self.written_at));
        bytes.extend_from_slice(&moment(self.ended_at));
        bytes.extend_from_slice(&self.fence.to_be_bytes());
        let numbers = [self.stamp, or_none(*fresh_ms), or_none(*stale_ms), or_none(*rescue_ms)];
        for number in numbers.into_iter().chain([*age_ms, *early_us, *cost_us]) {
            put_number(&mut bytes, number);
        }
        put_number(&mut bytes, or_none(validator.as_deref().map_or(u64::MAX, |text| text.len() as u64)));
        bytes.extend_from_slice(validator.as_deref().unwrap_or_default().as_bytes());
        put_number(&mut bytes, tags.len() as u64);
        for tag in &**tags {
            put_number(&mut bytes, tag.len() as u64);
            bytes.extend_from_slice(tag.as_bytes());
        }
        bytes
    }

    /// At most so many bytes the beginning has of an envelope with the same validator and the same tags.
    #[cfg(feature = "redis")]
    pub(crate) fn most_before_value(&self) -> usize {
        // Each of seven numbers takes a byte at least and ten at most.
        self.beginning(0).len() + 7 * 9
    }

    /// What takes the place of the beginning of an envelope of so many bytes, for it to be this one with the value that it has;
    /// and how long the beginning is whose place it takes. `None`: it is not of this validator and these tags, or has no value.
    ///
    /// The checksum is told from the old one without the value: CRC-32 is linear, so two messages that differ in their
    /// beginnings have checksums that differ as those of the beginnings do, moved on over as many bytes as follow.
    #[cfg(any(test, feature = "redis"))]
    pub(crate) fn renewed(&self, old: &[u8], whole: usize) -> Option<(Vec<u8>, usize)> {
        let there = Beginning::read(old).ok()?;
        let (this, that) = (&self.copy, &there.envelope.copy);
        if there.is_negative || (&this.validator, &this.tags) != (&that.validator, &that.tags) {
            return None;
        }
        let (old, follow) = (&old[..there.length], whole.checked_sub(there.length)? as u64);
        let copy = FarCopy { value: Some(Bytes::new()), ..this.clone() };
        let mut new = Envelope { copy, ..self.clone() }.beginning(0);
        let moved_on = |checksum: u32| {
            let mut hasher = crc32fast::Hasher::new_with_initial(checksum);
            hasher.combine(&crc32fast::Hasher::new_with_initial_len(0, follow));
            hasher.finalize()
        };
        let checksum = u32::from_be_bytes(field(old, CHECKSUM_AT)) ^ moved_on(checksum(old)) ^ moved_on(checksum(&new));
        new[CHECKSUM_AT..WRITTEN_AT].copy_from_slice(&checksum.to_be_bytes());
        Some((new, old.len()))
    }

    /// The fence and the stamp of what was stored, if it is an envelope; whether it is one, [`Self::decode`] says.
    #[cfg(feature = "redis")]
    #[inline]
    pub(crate) fn peek(bytes: &[u8]) -> Option<(u64, u64)> {
        let (fixed, mut rest) = bytes.split_first_chunk::<FIXED>()?;
        Some((u64::from_be_bytes(field(fixed, FENCE_AT)), take_number(&mut rest)?))
    }

    /// Reads what was stored. The value is a part of these bytes, and not a copy.
    ///
    /// # Errors
    /// [`EnvelopeError`]: it counts as absent.
    #[inline]
    pub fn decode(bytes: impl Into<Bytes>) -> Result<Self, EnvelopeError> {
        let mut bytes: Bytes = bytes.into();
        let damaged = EnvelopeError::Damaged;
        let (magic, version) = (bytes.get(..4), bytes.get(4).copied());
        let (Some(magic), Some(version)) = (magic, version) else { return Err(damaged("it is too short")) };
        if *magic != MAGIC {
            return Err(damaged("it does not begin as an envelope does"));
        }
        if version < VERSION {
            return Err(damaged("its version is of before the first release"));
        }
        if version > VERSION {
            return Err(EnvelopeError::Newer(version));
        }
        if bytes.len() < FIXED {
            return Err(damaged("it is too short"));
        }
        if u32::from_be_bytes(field(&bytes, CHECKSUM_AT)) != checksum(&bytes) {
            return Err(damaged("its checksum is wrong"));
        }
        let Beginning { mut envelope, is_negative, length } = Beginning::read(&bytes)?;
        if !is_negative {
            // (A slice would be a second handle on them, which takes an allocation.)
            bytes.advance(length);
            envelope.copy.value = Some(bytes);
        } else if length < bytes.len() {
            return Err(damaged("a negative copy has a value"));
        }
        Ok(envelope)
    }

    /// The copy as of now, if it may still be served in some way; its freshness ended at `ended_at` by a soft invalidation
    /// that is not written in the envelope, such as one of a group.
    #[inline]
    pub fn copy_at(self, now: u64, ended_at: u64) -> Option<FarCopy> {
        let ended_at = ended_at.min(self.ended_at);
        // What has happened was not later than now, whatever the reader's clock says.
        let happened = if ended_at == Self::NOT_ENDED { self.written_at } else { ended_at.max(self.written_at) };
        let now = now.max(happened);
        let until = after(self.written_at, self.copy.fresh_ms).min(ended_at);
        let beyond = now.saturating_sub(until);
        let forever = FarCopy::FOREVER;
        let left = |window: u64| if window == forever { forever } else { window.saturating_sub(beyond) };
        let copy = FarCopy {
            age_ms: self.copy.age_ms.saturating_add(now.saturating_sub(self.written_at)),
            // No longer than its terms, wherever the tier's clock has been since.
            fresh_ms: if until == forever { forever } else { until.saturating_sub(now) }.min(self.copy.fresh_ms),
            stale_ms: left(self.copy.stale_ms),
            rescue_ms: left(self.copy.rescue_ms),
            ..self.copy
        };
        (copy.fresh_ms > 0 || copy.stale_ms > 0 || copy.rescue_ms > 0).then_some(copy)
    }

    /// How long a store has to have it, in milliseconds from the moment of writing; [`FarCopy::FOREVER`]: without end; 0:
    /// its terms allow nothing.
    pub fn lifetime_ms(&self) -> u64 {
        self.copy.fresh_ms.saturating_add(self.copy.stale_ms.max(self.copy.rescue_ms))
    }
}

impl Beginning {
    /// What is before the value, whatever its checksum: of an envelope that begins as one of this version does.
    // Inlined, for it is large, and else moved with each return.
    #[inline(always)]
    fn read(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let damaged = EnvelopeError::Damaged;
        let Some((fixed, mut rest)) = bytes.split_first_chunk::<FIXED>() else {
            return Err(damaged("it is too short"));
        };
        if (&fixed[..4], fixed[4]) != (&MAGIC, VERSION) {
            return Err(damaged("it does not begin as an envelope does"));
        }
        let flags = fixed[FLAGS_AT];
        if flags & !NEGATIVE != 0 {
            return Err(EnvelopeError::Unknown(flags));
        }
        let moment_at = |at| read_moment(field(fixed, at)).ok_or(damaged("its moments"));
        let (written_at, ended_at) = (moment_at(WRITTEN_AT)?, moment_at(ENDED_AT)?);

        let mut number = || take_number(&mut rest).ok_or(damaged("a number is cut off, or longer than it need be"));
        let stamp = number()?;
        let windows = [number()?, number()?, number()?];
        let [fresh_ms, stale_ms, rescue_ms] = windows.map(|window| window.wrapping_sub(1));
        let (age_ms, early_us, cost_us) = (number()?, number()?, number()?);
        let validator = match number()? {
            0 => None,
            length => Some(take_text(&mut rest, length - 1)?),
        };
        let tag_count = take_number(&mut rest).ok_or(damaged("the number of its tags"))?;
        // An empty list that is made anew is an allocation.
        let mut tags = Arc::default();
        if tag_count > 0 {
            // Room for as many as are usual: a number that is not true is not believed.
            let mut list = Vec::with_capacity(tag_count.min(64) as usize);
            for _ in 0..tag_count {
                let length = take_number(&mut rest).ok_or(damaged("its tags are not as many as it says"))?;
                list.push(take_text(&mut rest, length)?);
            }
            tags = list.into();
        }
        let copy = FarCopy { value: None, validator, tags, age_ms, fresh_ms, stale_ms, rescue_ms, early_us, cost_us };
        Ok(Beginning {
            envelope: Envelope {
                copy,
                written_at,
                ended_at: if ended_at == LAST_MOMENT { Envelope::NOT_ENDED } else { ended_at },
                stamp,
                fence: u64::from_be_bytes(field(fixed, FENCE_AT)),
            },
            is_negative: flags & NEGATIVE != 0,
            length: bytes.len() - rest.len(),
        })
    }
}

/// A field at a fixed place. (Inlined, its place is known to lie there; a check for each field took half the time of reading one.)
#[inline(always)]
fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    // Not `array::from_fn`, which goes byte by byte.
    let mut field = [0; N];
    field.copy_from_slice(&header[at..at + N]);
    field
}

/// Six bytes, and a check of them.
fn moment(milliseconds: u64) -> [u8; 8] {
    let milliseconds = milliseconds.min(LAST_MOMENT);
    (milliseconds << 16 | u64::from(check(milliseconds))).to_be_bytes()
}

fn read_moment(bytes: [u8; 8]) -> Option<u64> {
    let whole = u64::from_be_bytes(bytes);
    let milliseconds = whole >> 16;
    (check(milliseconds) == whole as u16).then_some(milliseconds)
}

/// The complement, for zeros not to be a moment, of the exclusive or of its three parts of 16 bits.
fn check(moment: u64) -> u16 {
    !((moment >> 32) as u16 ^ (moment >> 16) as u16 ^ moment as u16)
}

/// A number that there may be none of, or no end to, which [`u64::MAX`] stands for: the next one, so that none is 0.
fn or_none(number: u64) -> u64 {
    number.wrapping_add(1)
}

/// LEB128, unsigned: seven bits a byte, the lowest first, and the highest bit says that another byte follows.
fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// `None`: it is cut off, has more than 64 bits, or more bytes than it needs.
#[inline(always)]
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        number |= bits << shift;
        if *byte < 0x80 {
            let is_whole = shift < 63 || bits < 2;
            let is_least = bits > 0 || shift == 0;
            return (is_whole && is_least).then_some(number);
        }
        shift += 7;
        if shift > 63 {
            return None;
        }
    }
}

fn take_text(bytes: &mut &[u8], length: u64) -> Result<Arc<str>, EnvelopeError> {
    let damaged = EnvelopeError::Damaged;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (text, rest) = bytes.split_at_checked(length).ok_or(damaged("a text is longer than the whole"))?;
    *bytes = rest;
    std::str::from_utf8(text).map(Arc::from).map_err(|_| damaged("a text is not UTF-8"))
}

/// CRC-32 (that of zlib, PNG and Ethernet) of all but the checksum itself and the two moments.
fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..CHECKSUM_AT]);
    hasher.update(bytes.get(FENCE_AT..).unwrap_or_default());
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64: mutations that repeat themselves.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % n as u64) as usize
        }
    }

    fn example() -> Envelope {
        let copy = FarCopy {
            value: Some((0..200).collect::<Vec<u8>>().into()),
            validator: Some("\"v7\"".into()),
            tags: ["shop:red".into(), "shop:größer".into()].into(),
            age_ms: 17,
            fresh_ms: 60_000,
            stale_ms: 30_000,
            rescue_ms: FarCopy::FOREVER,
            early_us: 1_234,
            cost_us: 56_789,
        };
        Envelope { stamp: 3, fence: 1 << 51, ..Envelope::new(copy, 1_700_000_000_000) }
    }

    #[test]
    fn a_renewed_beginning_is_that_of_the_whole_with_its_value() {
        let mut random = Random(5);
        for length in [0, 1, 7, 64, 200, 5_000, 70_000] {
            let bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
            let old = Envelope { copy: FarCopy { value: Some(bytes.into()), ..example().copy }, ..example() };
            let stored = old.encode();
            let mut new = old.clone();
            // Its numbers take more bytes, fewer, or as many.
            for fresh_ms in [1, 60_001, random.below(1 << 40) as u64, FarCopy::FOREVER] {
                (new.copy.fresh_ms, new.copy.age_ms, new.fence, new.stamp) = (fresh_ms, 0, 77, 4);
                new.copy.value.clone_from(&old.copy.value);
                let whole = new.encode();
                new.copy.value = None;
                let at = stored.len() - length;
                // What is read of it may end within the value.
                for read in [at, at + length / 2, stored.len()] {
                    let (renewed, old) = new.renewed(&stored[..read], stored.len()).unwrap();
                    assert_eq!((&renewed[..], old), (&whole[..whole.len() - length], at), "{length}");
                    assert_eq!(
                        Envelope::decode([&renewed[..], &stored[at..]].concat()),
                        Envelope::decode(whole.clone())
                    );
                }
                for cut in 0..at {
                    assert_eq!(new.renewed(&stored[..cut], stored.len()), None, "cut off");
                }
            }
            for copy in [
                FarCopy { validator: Some("\"v8\"".into()), ..new.copy.clone() },
                FarCopy { validator: None, ..new.copy.clone() },
                FarCopy { tags: ["shop:red".into()].into(), ..new.copy.clone() },
            ] {
                let other = Envelope { copy, ..new.clone() };
                assert_eq!(other.renewed(&stored, stored.len()), None, "another copy");
            }
        }
        let negative = Envelope { copy: FarCopy { value: None, ..example().copy }, ..example() };
        let stored = negative.encode();
        assert_eq!(negative.renewed(&stored, stored.len()), None, "what has no value has no validator to be asked by");
    }

    #[test]
    fn numbers_take_as_few_bytes_as_they_need_and_no_others_are_read() {
        for (number, bytes) in [
            (0, &b"\x00"[..]),
            (127, b"\x7f"),
            (128, b"\x80\x01"),
            (60_001, b"\xe1\xd4\x03"),
            (u64::MAX, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ] {
            let mut written = Vec::new();
            put_number(&mut written, number);
            assert_eq!(written, bytes);
            written.push(7);
            let mut rest = &written[..];
            assert_eq!((take_number(&mut rest), rest), (Some(number), &b"\x07"[..]));
            assert_eq!(take_number(&mut &bytes[..bytes.len() - 1]), None, "cut off");
        }
        for bytes in [&b"\x80\x00"[..], b"\x81\x80\x00", &[0xff; 12], b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"] {
            assert_eq!(take_number(&mut &*bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn moments_have_a_check_of_their_own() {
        for milliseconds in [0, 1, 1_700_000_000_000, LAST_MOMENT] {
            let bytes = moment(milliseconds);
            assert_eq!(read_moment(bytes), Some(milliseconds));
            for bit in 0..64 {
                assert_eq!(read_moment((u64::from_be_bytes(bytes) ^ 1 << bit).to_be_bytes()), None);
            }
        }
        assert_eq!((read_moment([0; 8]), read_moment([0xff; 8])), (None, None));
        assert_eq!(moment(u64::MAX), moment(LAST_MOMENT));
    }

    #[cfg(feature = "json")]
    #[test]
    fn the_vectors_of_the_specification() {
        #[derive(serde::Deserialize)]
        struct Vectors {
            readable: Vec<Vector>,
            unreadable: Vec<Unreadable>,
        }
        #[derive(serde::Deserialize)]
        struct Vector {
            name: String,
            hex: String,
            value_hex: Option<String>,
            validator: Option<String>,
            tags: Vec<String>,
            // As text: not every language has integers of 64 bits in JSON.
            written_at: String,
            ended_at: String,
            stamp: String,
            fence: String,
            age_ms: String,
            fresh_ms: String,
            stale_ms: String,
            rescue_ms: String,
            early_us: String,
            cost_us: String,
        }
        #[derive(serde::Deserialize)]
        struct Unreadable {
            name: String,
            hex: String,
            error: String,
        }
        fn bytes(hex: &str) -> Vec<u8> {
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
        }
        let json = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit/envelope.json")).unwrap();
        let vectors: Vectors = serde_json::from_str(&json).unwrap();
        assert!(vectors.readable.len() >= 4 && vectors.unreadable.len() >= 6);
        for vector in vectors.readable {
            let number = |text: &String| text.parse::<u64>().unwrap();
            let copy = FarCopy {
                value: vector.value_hex.as_deref().map(|hex| bytes(hex).into()),
                validator: vector.validator.as_deref().map(Arc::from),
                tags: vector.tags.iter().map(|tag| Arc::from(tag.as_str())).collect(),
                age_ms: number(&vector.age_ms),
                fresh_ms: number(&vector.fresh_ms),
                stale_ms: number(&vector.stale_ms),
                rescue_ms: number(&vector.rescue_ms),
                early_us: number(&vector.early_us),
                cost_us: number(&vector.cost_us),
            };
            let envelope = Envelope {
                copy,
                written_at: number(&vector.written_at),
                ended_at: number(&vector.ended_at),
                stamp: number(&vector.stamp),
                fence: number(&vector.fence),
            };
            assert_eq!(Envelope::decode(bytes(&vector.hex)), Ok(envelope.clone()), "{}", vector.name);
            assert_eq!(envelope.encode(), bytes(&vector.hex), "{}", vector.name);
        }
        for vector in vectors.unreadable {
            let error = match Envelope::decode(bytes(&vector.hex)) {
                Err(EnvelopeError::Damaged(_)) => "damaged",
                Err(EnvelopeError::Newer(_)) => "newer",
                Err(EnvelopeError::Unknown(_)) => "unknown",
                Ok(_) => "none",
            };
            assert_eq!(error, vector.error, "{}", vector.name);
        }
    }

    #[test]
    fn damage_is_an_error_and_never_another_copy() {
        let envelope = example();
        let bytes = envelope.encode();
        let mut random = Random(17);
        for round in 0..200_000 {
            let mut mutated = bytes.clone();
            match round % 4 {
                // A burst of bits within 32, which the checksum promises to see.
                0 => {
                    let at = random.below(mutated.len());
                    mutated[at] ^= 1 << random.below(8);
                }
                1 => mutated.truncate(random.below(bytes.len())),
                2 => mutated.extend((0..=random.below(20)).map(|byte| byte as u8)),
                _ => {
                    for _ in 0..=random.below(6) {
                        let at = random.below(mutated.len());
                        mutated[at] = random.below(256) as u8;
                    }
                }
            }
            if mutated == bytes {
                continue;
            }
            if let Ok(read) = Envelope::decode(mutated.clone()) {
                // One could hit a moment and its check alike; nothing else.
                assert_eq!((&read.copy, read.fence), (&envelope.copy, envelope.fence), "round {round}");
            }
        }
        for length in 0..bytes.len() {
            assert!(Envelope::decode(bytes[..length].to_vec()).is_err());
        }
        assert!(Envelope::decode("").is_err());
    }

    #[test]
    fn random_bytes_behind_a_right_beginning_do_no_harm() {
        let (mut random, mut read) = (Random(23), 0);
        for _ in 0..50_000 {
            let mut bytes = b"LRDR\x02".to_vec();
            bytes.extend((0..random.below(300)).map(|_| random.below(256) as u8));
            if bytes.len() >= FIXED {
                // Past the checks, so that what is behind them is tried, too; small numbers more than they would be.
                bytes[FLAGS_AT] &= NEGATIVE;
                bytes[WRITTEN_AT..ENDED_AT].copy_from_slice(&moment(random.below(1 << 40) as u64));
                bytes[ENDED_AT..FENCE_AT].copy_from_slice(&moment(u64::MAX));
                if random.below(2) == 0 {
                    bytes[FIXED..].iter_mut().for_each(|byte| *byte &= 0x0f);
                }
                let right = checksum(&bytes);
                bytes[CHECKSUM_AT..WRITTEN_AT].copy_from_slice(&right.to_be_bytes());
            }
            if let Ok(envelope) = Envelope::decode(bytes.clone()) {
                read += 1;
                assert_eq!(envelope.encode(), bytes, "there is one way to write it");
            }
        }
        assert!(read > 1_000, "{read}");
    }

    #[test]
    fn a_tag_and_a_validator_may_be_of_any_length() {
        let mut envelope = example();
        envelope.copy.tags = ["x".repeat(70_000).into(), "".into()].into();
        envelope.copy.validator = Some("y".repeat(130).into());
        assert_eq!(Envelope::decode(envelope.encode()), Ok(envelope));
    }

    #[test]
    fn an_end_leaves_the_windows_behind_it() {
        let mut envelope = example();
        envelope.ended_at = envelope.written_at + 1_000;
        let copy = envelope.clone().copy_at(envelope.written_at + 11_000, Envelope::NOT_ENDED).unwrap();
        assert_eq!((copy.fresh_ms, copy.stale_ms, copy.age_ms), (0, 20_000, 11_017));
        assert_eq!(copy.rescue_ms, FarCopy::FOREVER);
        // The clock was set back, or its reader is behind: what has ended has ended.
        let copy = envelope.clone().copy_at(envelope.written_at - 5_000, Envelope::NOT_ENDED).unwrap();
        assert_eq!((copy.age_ms, copy.fresh_ms, copy.stale_ms), (1_017, 0, 30_000));
        envelope.ended_at = Envelope::NOT_ENDED;
        let copy = envelope.clone().copy_at(envelope.written_at - 5_000, envelope.written_at + 1_000).unwrap();
        assert_eq!((copy.age_ms, copy.fresh_ms), (1_017, 0));
        // And without an end it has aged by nothing.
        let copy = envelope.clone().copy_at(envelope.written_at - 5_000, Envelope::NOT_ENDED).unwrap();
        assert_eq!((copy.age_ms, copy.fresh_ms), (17, 60_000));
    }

    #[test]
    fn no_moment_of_writing_makes_a_copy_fresher_than_its_terms() {
        let mut envelope = example();
        // Outside of the checksum, so a store can fill it in; and so it can be anything.
        for (written_at, fresh_ms) in [(u64::MAX, 0), (u64::MAX - 1, 60_000), (1 << 60, 60_000), (7, u64::MAX - 1)] {
            (envelope.written_at, envelope.copy.fresh_ms) = (written_at, fresh_ms);
            let read = Envelope::decode(envelope.encode()).unwrap();
            for now in [0, 1_700_000_000_000] {
                let copy = read.clone().copy_at(now, Envelope::NOT_ENDED);
                assert!(copy.is_none_or(|copy| copy.fresh_ms <= fresh_ms), "{written_at}");
            }
        }
    }
}
