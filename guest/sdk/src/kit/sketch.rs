//! How often a (folded) fingerprint was seen lately, in a few bytes each: a count-min sketch (Cormode and Muthukrishnan) with
//! 4-bit counters and ageing, laid out as in Caffeine: the four counters of a fingerprint lie in one cache line.
//!
//! The road not taken: a Bloom filter before the sketch, the "doorkeeper" of the TinyLFU paper. It saves counters where
//! most keys come once, and costs a second cache line an access; Caffeine left it out too.

use alloc::vec::Vec;

use super::{Memo, Recollection};

/// The greatest count.
const MOST: u64 = 15;
/// Halves sixteen counters at once: the bit that a shift carries over from the neighbour is masked away.
const HALVED: u64 = 0x7777_7777_7777_7777;

/// 128 counters in one cache line: each fingerprint has a counter in each of the four pairs of words.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Block([u64; 8]);

/// A count-min sketch of 4-bit counters that forgets: with every ten additions a resident all counts are halved, and so
/// is the number of additions.
///
/// 8 to 16 bytes a resident. Never larger than the residents call for: it doubles as they come, and keeps its
/// estimates when it does.
#[derive(Clone, Debug)]
pub struct Sketch {
    blocks: Vec<Block>,
    residents: u32,
    additions: u64,
    /// The next block to halve; as many as there are blocks when no halving is under way. One block is halved with each
    /// addition, so that no call pays for all of them.
    halving: usize,
    /// Whether counts were ever halved.
    aged: bool,
}

impl Default for Sketch {
    fn default() -> Self {
        Self::new()
    }
}

impl Sketch {
    /// Residents a block serves: 16 counters each.
    const RESIDENTS_A_BLOCK: u32 = 8;

    /// An empty sketch.
    pub fn new() -> Self {
        Sketch { blocks: alloc::vec![Block([0; 8]); 1], residents: 0, additions: 0, halving: 1, aged: false }
    }

    /// Grows to serve so many residents.
    #[inline]
    pub fn make_room(&mut self, residents: u32) {
        if residents > self.residents {
            self.residents = residents;
            // The block of a fingerprint is chosen by its low bits. With one bit more it is this block or its copy.
            while self.blocks.len() < residents.div_ceil(Self::RESIDENTS_A_BLOCK) as usize {
                self.finish_halving();
                self.blocks.extend_from_within(..);
                self.halving = self.blocks.len();
            }
        }
    }

    /// How often this one was seen lately: at least as often as it was (but for ageing), 15 at most.
    #[inline]
    pub fn estimate(&self, folded: u32) -> u32 {
        let (block, picks) = self.find(folded);
        let words = &self.blocks[block].0;
        let counts = [0, 1, 2, 3].map(|pair| {
            let (word, shift) = pick(pair, picks >> (8 * pair));
            (words[word] >> shift) & MOST
        });
        counts[0].min(counts[1]).min(counts[2]).min(counts[3]) as u32
    }

    /// This one was seen so many times more.
    #[inline]
    pub fn add(&mut self, folded: u32, times: u32) {
        let (block, picks) = self.find(folded);
        let words = &mut self.blocks[block].0;
        let places = [0, 1, 2, 3].map(|pair| pick(pair, picks >> (8 * pair)));
        let counts = places.map(|(word, shift)| (words[word] >> shift) & MOST);
        let least = counts[0].min(counts[1]).min(counts[2]).min(counts[3]);
        let target = (least + u64::from(times)).min(MOST);
        let added = target - least;
        // Conservative update: a counter above the new estimate is so because of others, and stays.
        for ((word, shift), count) in places.into_iter().zip(counts) {
            words[word] += target.saturating_sub(count) << shift;
        }
        self.additions += added;
        if self.halving < self.blocks.len() {
            self.halve_next();
        } else if self.additions >= self.period() {
            self.additions /= 2;
            self.halving = 0;
            self.aged = true;
        }
    }

    /// Whether counts were halved since the beginning: until then none is less than the truth.
    #[inline]
    pub fn has_aged(&self) -> bool {
        self.aged
    }

    /// Writes it down for a successor.
    pub fn write(&self, memo: &mut Memo) {
        memo.reserve(64 * self.blocks.len() + 32);
        memo.word(self.residents);
        memo.long(self.additions);
        memo.word(self.halving as u32);
        memo.word(u32::from(self.aged));
        memo.word(self.blocks.len() as u32);
        memo.append_blocks(self.blocks.iter().map(|block| &block.0));
    }

    /// Reads what a predecessor wrote.
    pub fn read(memo: &mut Recollection<'_>) -> Option<Self> {
        let residents = memo.word()?;
        let additions = memo.long()?;
        let halving = memo.word()? as usize;
        let aged = memo.word()? != 0;
        let blocks = memo.word()? as usize;
        let words = memo.take(blocks.checked_mul(16)?)?;
        let needed = residents.div_ceil(Self::RESIDENTS_A_BLOCK).max(1) as usize;
        // As many as `make_room` makes: with fewer it would make them up at once.
        if !blocks.is_power_of_two() || needed.next_power_of_two() != blocks || halving > blocks {
            return None;
        }
        let blocks = words.chunks_exact(16).map(|words| {
            let mut block = Block([0; 8]);
            for (long, pair) in block.0.iter_mut().zip(words.chunks_exact(2)) {
                *long = u64::from(pair[0]) | u64::from(pair[1]) << 32;
            }
            block
        });
        let mut sketch = Sketch { blocks: blocks.collect(), residents, additions: 0, halving, aged };
        sketch.additions = additions.min(sketch.period());
        Some(sketch)
    }

    /// The additions that the counts stand for when they are halved.
    #[inline]
    fn period(&self) -> u64 {
        10 * u64::from(self.residents.max(Self::RESIDENTS_A_BLOCK))
    }

    #[inline]
    fn find(&self, folded: u32) -> (usize, u32) {
        let picks = (u64::from(folded).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
        (folded as usize & (self.blocks.len() - 1), picks)
    }

    fn halve_next(&mut self) {
        for word in &mut self.blocks[self.halving].0 {
            *word = (*word >> 1) & HALVED;
        }
        self.halving += 1;
    }

    fn finish_halving(&mut self) {
        while self.halving < self.blocks.len() {
            self.halve_next();
        }
    }
}

/// The word and the shift of the counter in a pair of words.
#[inline]
fn pick(pair: usize, picks: u32) -> (usize, u32) {
    (2 * pair + (picks & 1) as usize, ((picks >> 1) & 15) * 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::fold;
    use crate::testkit::fingerprint;

    fn folded(key: u64) -> u32 {
        fold(fingerprint(key))
    }

    #[test]
    fn counts_up_to_15() {
        let mut sketch = Sketch::new();
        sketch.make_room(100);
        assert_eq!(sketch.estimate(folded(1)), 0);
        sketch.add(folded(1), 1);
        sketch.add(folded(1), 3);
        assert_eq!(sketch.estimate(folded(1)), 4);
        sketch.add(folded(1), 255);
        assert_eq!(sketch.estimate(folded(1)), 15);
    }

    #[test]
    fn never_less_than_the_truth_and_seldom_more() {
        let mut sketch = Sketch::new();
        sketch.make_room(1000);
        for key in 0..1000 {
            sketch.add(folded(key), (key % 8) as u32);
        }
        let over = |key: u64| sketch.estimate(folded(key)).checked_sub((key % 8) as u32).expect("never less");
        let wrong = (0..1000).filter(|&key| over(key) > 0).count();
        assert!(wrong < 50, "{wrong} of 1000");
        let strangers = (1000..2000).filter(|&key| sketch.estimate(folded(key)) > 0).count();
        assert!(strangers < 50, "{strangers} of 1000");
    }

    #[test]
    fn keeps_its_estimates_when_it_grows() {
        let mut sketch = Sketch::new();
        sketch.make_room(8);
        (0..8).for_each(|key| sketch.add(folded(key), 1 + key as u32 % 4));
        let before: Vec<_> = (0..8).map(|key| sketch.estimate(folded(key))).collect();
        sketch.make_room(100_000);
        assert_eq!((0..8).map(|key| sketch.estimate(folded(key))).collect::<Vec<_>>(), before);
    }

    #[test]
    fn a_successor_counts_on() {
        let mut sketch = Sketch::new();
        sketch.make_room(300);
        (0..900).for_each(|key| sketch.add(folded(key % 350), 1 + key as u32 % 4));
        let mut memo = Memo::new(1);
        sketch.write(&mut memo);
        let bytes = memo.into_bytes();
        let mut memo = Recollection::of(&bytes, 1).unwrap();
        let mut other = Sketch::read(&mut memo).unwrap();
        assert!(memo.is_done());
        for key in 0..5000 {
            sketch.add(folded(key % 700), 1);
            other.add(folded(key % 700), 1);
            assert_eq!(sketch.estimate(folded(key)), other.estimate(folded(key)));
        }
        for length in 4..bytes.len() {
            assert!(Sketch::read(&mut Recollection::of(&bytes[..length], 1).unwrap()).is_none());
        }
    }

    #[test]
    fn halves_every_count_a_block_at_a_time() {
        let mut sketch = Sketch::new();
        sketch.make_room(64);
        (0..63).for_each(|key| sketch.add(folded(key), 10));
        assert!(!sketch.has_aged());
        sketch.add(folded(63), 10);
        assert_eq!(sketch.halving, 0, "640 additions are ten a resident");
        assert!(sketch.has_aged());
        let total = |sketch: &Sketch| (0..64).map(|key| sketch.estimate(folded(key))).sum::<u32>();
        let before = total(&sketch);
        for _ in 0..8 {
            sketch.add(folded(1000), 0);
        }
        assert_eq!(sketch.halving, 8, "as many additions as blocks");
        assert!((before / 2 - 32..=before / 2).contains(&total(&sketch)));
        assert_eq!(sketch.additions, 320);
    }

    #[test]
    fn shares_of_a_shard_are_spread() {
        // A shard may see only fingerprints whose low (or high) bits are the same.
        for shift in [0, 56] {
            let keys: Vec<u64> = (0..200_000).map(fingerprint).filter(|f| (f >> shift) & 0xff == 7).collect();
            let mut sketch = Sketch::new();
            sketch.make_room(keys.len() as u32);
            keys.iter().for_each(|&key| sketch.add(fold(key), 1));
            let wrong = keys.iter().filter(|&&key| sketch.estimate(fold(key)) > 1).count();
            assert!(wrong * 20 < keys.len(), "{wrong} of {}", keys.len());
        }
    }
}
