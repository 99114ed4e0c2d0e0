//! The envelope: what lies in a shared tier beside a value, so that any process in any language can tell whether it may
//! serve it. `wit/envelope.md` is the specification, byte by byte, and `wit/envelope.json` has vectors of it; this is one
//! implementation.
//!
//! Three things decide its form. **Bytes in a store are not to be trusted**: a header that is damaged, cut off, or of a later
//! version is an error and never a panic or another value, so a checksum covers all that a bit could change in silence.
//! **Moments are those of the tier's own clock**, of which there is one where machines have many: a copy ages alike for all
//! who read it. **A soft invalidation changes sixteen bytes at a fixed place**, so that a script in the store can end the
//! freshness of a value without reading it; those bytes, and the moment of writing, which a store may fill in, are outside
//! the checksum, and each lies there twice instead.
//!
//! Fixed fields rather than a self-describing format (CBOR, protobuf): the header is read at each far hit, a script in Lua has
//! to find its way in it, and any language can read it without a library.

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
/// damaged[130] ^= 1;
/// assert!(Envelope::decode(damaged).is_err());
/// # Ok::<(), larder::tiered::EnvelopeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The value and its terms, as of the moment of writing.
    pub copy: FarCopy,
    /// The moment of writing, in milliseconds of the tier's clock.
    pub written_at: u64,
    /// When a soft invalidation ended its freshness; [`NOT_ENDED`](Self::NOT_ENDED): none has.
    pub ended_at: u64,
    /// In which life of the tier's counters it was written; a copy of another life is absent.
    pub epoch: u64,
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
    #[error("it is of version {0}, and this reads version 1: update this process, or wait until the copy has expired")]
    Newer(u8),
    /// It has something that this version does not know, such as another way of compression.
    #[error("it has flags that this version does not know ({0:#04x}): update this process")]
    Unknown(u8),
}

const MAGIC: [u8; 4] = *b"LRDR";
const VERSION: u8 = 1;
const NEGATIVE: u8 = 1;
/// Without a validator its length says so.
const NONE: u32 = u32::MAX;
const CHECKSUM_AT: usize = 20;
const WRITTEN_AT: usize = 24;
const ENDED_AT: usize = 40;
const FIELDS_AT: usize = 56;
/// Where the validator, the tags and the value begin.
const HEADER: usize = 128;

impl Envelope {
    /// What `ended_at` is where no soft invalidation has reached the copy.
    pub const NOT_ENDED: u64 = u64::MAX;
    /// How many bytes the header takes, beside the validator and the tags.
    pub const HEADER_BYTES: usize = HEADER;

    /// A copy that is written now, in a tier without counters.
    pub fn new(copy: FarCopy, now: u64) -> Self {
        Envelope { copy, written_at: now, ended_at: Self::NOT_ENDED, epoch: 0, stamp: 0, fence: 0 }
    }

    /// The bytes to be stored.
    pub fn encode(&self) -> Vec<u8> {
        let FarCopy { value, validator, tags, age_ms, fresh_ms, stale_ms, rescue_ms, early_us, cost_us } = &self.copy;
        let value_bytes = value.as_deref().unwrap_or_default();
        // A validator or a tag that is too long for its field is left out, and a copy without one of its tags could outlive
        // that tag's invalidation: so it is kept on terms that allow nothing.
        let validator = validator.as_deref().filter(|text| (text.len() as u64) < u64::from(NONE));
        let fits = |tag: &&Arc<str>| tag.len() <= usize::from(u16::MAX);
        let is_whole = tags.len() <= usize::from(u16::MAX) && tags.iter().all(|tag| fits(&tag));
        let tags: Vec<_> = tags.iter().filter(fits).take(usize::from(u16::MAX)).collect();
        let tag_bytes: usize = tags.iter().map(|tag| 2 + tag.len()).sum();
        let terms = |ms: u64| if is_whole { ms } else { 0 };

        let whole = HEADER + validator.map_or(0, str::len) + tag_bytes + value_bytes.len();
        let mut bytes = Vec::with_capacity(whole);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, if value.is_none() { NEGATIVE } else { 0 }]);
        bytes.extend_from_slice(&(tags.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&validator.map_or(NONE, |text| text.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&(tag_bytes as u32).to_be_bytes());
        bytes.extend_from_slice(&(value_bytes.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for moment in [self.written_at, self.written_at, self.ended_at, self.ended_at] {
            bytes.extend_from_slice(&moment.to_be_bytes());
        }
        let of_copy = [*age_ms, terms(*fresh_ms), terms(*stale_ms), terms(*rescue_ms), *early_us, *cost_us];
        for field in [self.epoch, self.stamp, self.fence].into_iter().chain(of_copy) {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        bytes.extend_from_slice(validator.unwrap_or_default().as_bytes());
        for tag in tags {
            bytes.extend_from_slice(&(tag.len() as u16).to_be_bytes());
            bytes.extend_from_slice(tag.as_bytes());
        }
        bytes.extend_from_slice(value_bytes);
        let checksum = checksum(&bytes);
        bytes[CHECKSUM_AT..WRITTEN_AT].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// How many bytes come before the value.
    #[cfg(any(test, feature = "redis"))]
    pub(crate) fn beginning(&self) -> usize {
        Envelope { copy: FarCopy { value: None, ..self.copy.clone() }, ..self.clone() }.encode().len()
    }

    /// What takes the place of the beginning of an envelope of so many bytes, for it to be this one with the value that it has.
    /// `None`: it is not of this validator and these tags, or has no value.
    ///
    /// The checksum is told from the old one without the value: CRC-32 is linear, so two messages that differ in their
    /// beginnings have checksums that differ as those of the beginnings do, moved on over as many bytes as follow.
    #[cfg(any(test, feature = "redis"))]
    pub(crate) fn renewed(&self, old: &[u8], whole: usize) -> Option<Vec<u8>> {
        let copy = FarCopy { value: Some(Bytes::new()), ..self.copy.clone() };
        let mut new = Envelope { copy, ..self.clone() }.encode();
        // All before the value's length, and all behind the header.
        if old.len() != new.len() || old[..16] != new[..16] || old[HEADER..] != new[HEADER..] {
            return None;
        }
        let number = |at: usize| u32::from_be_bytes([old[at], old[at + 1], old[at + 2], old[at + 3]]);
        let follow = u64::from(number(16));
        if old.len() as u64 + follow != whole as u64 {
            return None;
        }
        new[16..CHECKSUM_AT].copy_from_slice(&old[16..CHECKSUM_AT]);
        let moved_on = |checksum: u32| {
            let mut hasher = crc32fast::Hasher::new_with_initial(checksum);
            hasher.combine(&crc32fast::Hasher::new_with_initial_len(0, follow));
            hasher.finalize()
        };
        let checksum = number(CHECKSUM_AT) ^ moved_on(checksum(old)) ^ moved_on(checksum(&new));
        new[CHECKSUM_AT..WRITTEN_AT].copy_from_slice(&checksum.to_be_bytes());
        Some(new)
    }

    /// The epoch and the stamp of what was stored, if it is an envelope; whether it is one, [`Self::decode`] says.
    #[cfg(feature = "redis")]
    #[inline]
    pub(crate) fn peek(bytes: &[u8]) -> Option<(u64, u64)> {
        let header = bytes.first_chunk::<HEADER>()?;
        let number = |index: usize| u64::from_be_bytes(field(header, FIELDS_AT + 8 * index));
        Some((number(0), number(1)))
    }

    /// Reads what was stored. The value is a part of these bytes, and not a copy.
    ///
    /// # Errors
    /// [`EnvelopeError`]: it counts as absent.
    pub fn decode(bytes: impl Into<Bytes>) -> Result<Self, EnvelopeError> {
        let mut bytes: Bytes = bytes.into();
        let damaged = EnvelopeError::Damaged;
        let (magic, version) = (bytes.get(..4), bytes.get(4).copied());
        let (Some(magic), Some(version)) = (magic, version) else { return Err(damaged("it is too short")) };
        if *magic != MAGIC || version == 0 {
            return Err(damaged("it does not begin as an envelope does"));
        }
        if version > VERSION {
            return Err(EnvelopeError::Newer(version));
        }
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Err(damaged("it is too short")) };
        let u32_at = |at| u32::from_be_bytes(field(header, at));
        let u64_at = |at| u64::from_be_bytes(field(header, at));
        if u32_at(CHECKSUM_AT) != checksum(&bytes) {
            return Err(damaged("its checksum is wrong"));
        }
        let flags = header[5];
        if flags & !NEGATIVE != 0 {
            return Err(EnvelopeError::Unknown(flags));
        }
        let twice = |at: usize| if u64_at(at) == u64_at(at + 8) { Ok(u64_at(at)) } else { Err(damaged("its moments")) };
        let (written_at, ended_at) = (twice(WRITTEN_AT)?, twice(ENDED_AT)?);

        let mut rest = &bytes[HEADER..];
        let mut take = |length: usize| {
            let (taken, left) = rest.split_at_checked(length).ok_or(damaged("a part is longer than the whole"))?;
            rest = left;
            Ok(taken)
        };
        let text = |bytes| std::str::from_utf8(bytes).map(Arc::from).map_err(|_| damaged("a text is not UTF-8"));
        let validator = match u32_at(8) {
            NONE => None,
            length => Some(text(take(length as usize)?)?),
        };
        let mut tag_bytes = take(u32_at(12) as usize)?;
        let tag_count = usize::from(u16::from_be_bytes(field(header, 6)));
        let mut tags: Vec<Arc<str>> = Vec::with_capacity(tag_count.min(tag_bytes.len() / 2));
        while let [high, low, after @ ..] = tag_bytes {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let (tag, after) = after.split_at_checked(length).ok_or(damaged("a tag is longer than its list"))?;
            tags.push(text(tag)?);
            tag_bytes = after;
        }
        if !tag_bytes.is_empty() || tags.len() != tag_count {
            return Err(damaged("its tags are not as many as it says"));
        }
        let value = take(u32_at(16) as usize)?;
        if !rest.is_empty() {
            return Err(damaged("there is something behind it"));
        }
        let is_negative = flags & NEGATIVE != 0;
        if is_negative && !value.is_empty() {
            return Err(damaged("a negative copy has a value"));
        }
        let number = |index: usize| u64::from_be_bytes(field(header, FIELDS_AT + 8 * index));
        let copy = FarCopy {
            value: None,
            validator,
            // An empty list that is made anew is an allocation.
            tags: if tags.is_empty() { Arc::default() } else { tags.into() },
            age_ms: number(3),
            fresh_ms: number(4),
            stale_ms: number(5),
            rescue_ms: number(6),
            early_us: number(7),
            cost_us: number(8),
        };
        let mut envelope =
            Envelope { copy, written_at, ended_at, epoch: number(0), stamp: number(1), fence: number(2) };
        if !is_negative {
            // The value is what comes last, so it is what is left of the bytes. (A slice would be a second handle on them, which
            // takes an allocation.)
            let begin = bytes.len() - value.len();
            bytes.advance(begin);
            envelope.copy.value = Some(bytes);
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

/// A field of a header. (Inlined, its place is known to lie there; a check for each field took half the time of reading one.)
#[inline(always)]
fn field<const N: usize>(header: &[u8; HEADER], at: usize) -> [u8; N] {
    // Not `array::from_fn`, which goes byte by byte.
    let mut field = [0; N];
    field.copy_from_slice(&header[at..at + N]);
    field
}

/// CRC-32 (that of zlib, PNG and Ethernet) of all but the checksum itself and the two moments.
fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..CHECKSUM_AT]);
    hasher.update(bytes.get(FIELDS_AT..).unwrap_or_default());
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
        Envelope { epoch: 1 << 50, stamp: 3, fence: 1 << 51, ..Envelope::new(copy, 1_700_000_000_000) }
    }

    #[test]
    fn a_renewed_beginning_is_that_of_the_whole_with_its_value() {
        let mut random = Random(5);
        for length in [0, 1, 7, 64, 200, 5_000, 70_000] {
            let bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
            let old = Envelope { copy: FarCopy { value: Some(bytes.into()), ..example().copy }, ..example() };
            let stored = old.encode();
            let mut new = old.clone();
            (new.copy.fresh_ms, new.copy.age_ms, new.fence, new.stamp) = (random.below(1 << 40) as u64, 0, 77, 4);
            let whole = new.encode();
            new.copy.value = None;
            let at = new.beginning();
            assert_eq!(at + length, stored.len());
            let renewed = new.renewed(&stored[..at], stored.len()).unwrap();
            assert_eq!(renewed, whole[..at], "{length}");
            assert_eq!(Envelope::decode([&renewed[..], &stored[at..]].concat()), Envelope::decode(whole));

            assert_eq!(new.renewed(&stored[..at], stored.len() + 1), None, "another length");
            for copy in [
                FarCopy { validator: Some("\"v8\"".into()), ..new.copy.clone() },
                FarCopy { validator: None, ..new.copy.clone() },
                FarCopy { tags: ["shop:red".into()].into(), ..new.copy.clone() },
            ] {
                let other = Envelope { copy, ..new.clone() };
                let at = other.beginning().min(stored.len());
                assert_eq!(other.renewed(&stored[..at], stored.len()), None, "another copy");
            }
        }
        let negative = Envelope { copy: FarCopy { value: None, ..example().copy }, ..example() };
        let stored = negative.encode();
        assert_eq!(negative.renewed(&stored, stored.len()), None, "what has no value has no validator to be asked by");
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
            epoch: String,
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
                epoch: number(&vector.epoch),
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
                // One could hit both of a moment's places alike; nothing else.
                assert_eq!((&read.copy, read.epoch), (&envelope.copy, envelope.epoch), "round {round}");
            }
        }
        for length in 0..bytes.len() {
            assert!(Envelope::decode(bytes[..length].to_vec()).is_err());
        }
        assert!(Envelope::decode("").is_err());
    }

    #[test]
    fn random_bytes_behind_a_right_beginning_do_no_harm() {
        let mut random = Random(23);
        for _ in 0..50_000 {
            let mut bytes = b"LRDR\x01".to_vec();
            bytes.extend((0..random.below(300)).map(|_| random.below(256) as u8));
            if bytes.len() >= HEADER {
                // Past the checksum, so that what is behind it is tried, too.
                let right = checksum(&bytes);
                bytes[CHECKSUM_AT..WRITTEN_AT].copy_from_slice(&right.to_be_bytes());
                if random.below(2) == 0 {
                    bytes[8..20].fill(0);
                    bytes[14] = random.below(2) as u8;
                    let right = checksum(&bytes);
                    bytes[CHECKSUM_AT..WRITTEN_AT].copy_from_slice(&right.to_be_bytes());
                }
            }
            drop(Envelope::decode(bytes));
        }
    }

    #[test]
    fn a_copy_that_cannot_name_all_its_tags_may_not_be_served() {
        let mut envelope = example();
        envelope.copy.tags = ["x".repeat(70_000).into()].into();
        let read = Envelope::decode(envelope.encode()).unwrap();
        assert_eq!(read.clone().copy_at(read.written_at, Envelope::NOT_ENDED), None);
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
