//! Notes from one policy to its successor: see [`Eviction::learned`](crate::Eviction::learned).

use alloc::vec::Vec;

/// Writes what a policy has learned: numbers in little-endian order, one after the other, without names. The first says
/// what the rest is, so that a successor of another version can tell.
///
/// ```
/// use larder_guest::kit::{Memo, Recollection};
///
/// let mut memo = Memo::new(1);
/// memo.number(0.25);
/// memo.words(&[7, 8, 9]);
/// let bytes = memo.into_bytes();
///
/// let mut recollection = Recollection::of(&bytes, 1).expect("it is of version 1");
/// assert_eq!(recollection.number(), Some(0.25));
/// assert_eq!(recollection.words(), Some(vec![7, 8, 9]));
/// assert_eq!(recollection.words(), None, "that was all");
/// assert!(Recollection::of(&bytes, 2).is_none());
/// ```
#[derive(Clone, Debug)]
pub struct Memo(Vec<u8>);

impl Memo {
    /// An empty one. Count `version` up whenever what is written, or what it means, changes.
    pub fn new(version: u32) -> Self {
        let mut memo = Memo(Vec::new());
        memo.word(version);
        memo
    }

    /// Writes 32 bits.
    pub fn word(&mut self, word: u32) {
        self.0.extend_from_slice(&word.to_le_bytes());
    }

    /// Writes 64 bits.
    pub fn long(&mut self, long: u64) {
        self.0.extend_from_slice(&long.to_le_bytes());
    }

    /// Writes a fraction.
    pub fn number(&mut self, number: f64) {
        self.long(number.to_bits());
    }

    /// Writes how many words there are, and them.
    pub fn words(&mut self, words: &[u32]) {
        self.word(words.len() as u32);
        self.append(words);
    }

    /// Writes how many bytes there are, and them.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }

    /// Writes how many records of `N` words there are, and them.
    pub fn records<const N: usize>(&mut self, records: impl ExactSizeIterator<Item = [u32; N]>) {
        self.word(records.len() as u32);
        let at = self.0.len();
        self.0.resize(at + 4 * N * records.len(), 0);
        for (to, record) in self.0[at..].chunks_exact_mut(4 * N).zip(records) {
            for (to, word) in to.chunks_exact_mut(4).zip(record) {
                to.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// Writes words, without how many: copied as memory is, for operations wait.
    pub(crate) fn append(&mut self, words: &[u32]) {
        let at = self.0.len();
        self.0.resize(at + 4 * words.len(), 0);
        for (to, word) in self.0[at..].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Writes blocks of longs, without how many.
    pub(crate) fn append_blocks<'b>(&mut self, blocks: impl ExactSizeIterator<Item = &'b [u64; 8]>) {
        let at = self.0.len();
        self.0.resize(at + 64 * blocks.len(), 0);
        for (to, block) in self.0[at..].chunks_exact_mut(64).zip(blocks) {
            for (to, long) in to.chunks_exact_mut(8).zip(block) {
                to.copy_from_slice(&long.to_le_bytes());
            }
        }
    }

    /// Makes room for so many more bytes, where it is known beforehand.
    pub fn reserve(&mut self, bytes: usize) {
        self.0.reserve_exact(bytes);
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Reads what a [`Memo`] wrote, and trusts none of it: whatever is not there is `None`, and no length is believed that
/// the bytes do not bear out.
#[derive(Clone, Debug)]
pub struct Recollection<'a>(&'a [u8]);

impl<'a> Recollection<'a> {
    /// The memo of a predecessor, if it is of this version.
    pub fn of(bytes: &'a [u8], version: u32) -> Option<Self> {
        let mut recollection = Recollection(bytes);
        (recollection.word()? == version).then_some(recollection)
    }

    /// Reads 32 bits.
    pub fn word(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*bytes))
    }

    /// Reads 64 bits.
    pub fn long(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*bytes))
    }

    /// Reads a fraction; `None` where it is not finite.
    pub fn number(&mut self) -> Option<f64> {
        self.long().map(f64::from_bits).filter(|number| number.is_finite())
    }

    /// Reads how many words there are, and them.
    pub fn words(&mut self) -> Option<Vec<u32>> {
        let count = self.word()?;
        self.take(usize::try_from(count).ok()?)
    }

    /// Reads how many bytes there are, and them.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let count = usize::try_from(self.word()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Reads how many records of `N` words there are, and them.
    pub fn records<const N: usize>(&mut self) -> Option<Vec<[u32; N]>> {
        let count = usize::try_from(self.word()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(count.checked_mul(4 * N)?)?;
        self.0 = rest;
        let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let record = |bytes: &[u8]| core::array::from_fn(|at| word(&bytes[4 * at..]));
        Some(bytes.chunks_exact(4 * N).map(record).collect())
    }

    /// Reads so many words.
    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        let (bytes, rest) = self.0.split_at_checked(count.checked_mul(4)?)?;
        self.0 = rest;
        Some(bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
    }

    /// Whether all was read.
    pub fn is_done(&self) -> bool {
        self.0.is_empty()
    }
}
