//! What is learned: for each class of entries, the odds of being used again, by age; and what follows from them.

use alloc::{boxed::Box, vec, vec::Vec};

use larder_guest::kit::{Memo, Recollection};

use super::hand::REACH;
use super::past::{BUCKETS, CLASSES, INTERVALS, NOBODY, Past, USES, bucket, bucket_of_float, is_class, start};

/// A figure for each bucket of age.
type ByAge = [f32; BUCKETS];

/// How much the odds of the parents count against a class's own: as much as this many of its intervals.
const PRIOR_WEIGHT: f32 = 32.0;

/// The odds in each bucket where nothing is known: the same in each, so that the hazard falls with the age, as in
/// LRU.
const PRIOR: f32 = 0.2;

/// How much less the odds are for new entries, where nothing is known: most never come back.
const NEW: f32 = 0.2;

/// Parents: all entries, those used so often, and those of such an interval (new entries last, who have none).
const PARENTS: usize = 1 + (USES + 1) + (INTERVALS + 1);

/// Classes that are added up in one step.
const GATHERED: usize = 8;

/// Room for a class in the table of worth.
const ROW: usize = BUCKETS.next_power_of_two();

/// Steps in which the parents learn their odds.
const PARENT_STEPS: usize = 14;
const _: () = assert!(PARENTS.is_multiple_of(PARENT_STEPS));

/// The worth of a slot where nobody is.
pub(super) const NONE: u16 = u16::MAX;

/// How many ages a bucket covers.
const WIDTHS: ByAge = {
    let mut widths = [0.0; BUCKETS];
    let mut b = 0;
    while b < BUCKETS {
        widths[b] = start(b + 1) - start(b);
        b += 1;
    }
    widths
};

/// What was counted of one class, or of several.
#[derive(Clone, Copy, Debug)]
struct Counts {
    /// Intervals that ended with a use, by their length.
    used: ByAge,
    /// Those that ended because the ghost was forgotten.
    lost: ByAge,
    /// Those that last: sampled.
    lasting: ByAge,
}

const NOTHING: Counts = Counts { used: [0.0; BUCKETS], lost: [0.0; BUCKETS], lasting: [0.0; BUCKETS] };

/// Learns the odds and knows what an entry is worth.
#[derive(Debug)]
pub(super) struct Odds {
    /// What keeping an entry of this class and age is worth: its Gittins index as [`quantised`]. Small enough for the
    /// first-level cache, being what every look at a resident needs. A row is a power of two for the same reason.
    worth: Box<[[u16; ROW]; CLASSES]>,
    counts: Box<[Counts; CLASSES]>,
    /// Whether there is anything in the counts of a class.
    known: Box<[bool; CLASSES]>,
    /// By how much the samples of `lasting` must be scaled to stand for all.
    scale: f32,
    /// Sums of the classes in this round, and the odds that follow for each parent.
    sums: Vec<Counts>,
    parents: Vec<ByAge>,
    /// How far this round is: first the classes are added up, then the parents have their turns, then the classes.
    turn: usize,
    /// Rounds begun.
    round: usize,
    /// What remains of each count after this round.
    keep: f32,
}

/// Odds of a use within each bucket for those that reached it: the Kaplan-Meier estimate, drawn towards `prior`.
#[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
fn odds(used: &ByAge, ended: &ByAge, prior: &ByAge) -> ByAge {
    let mut exposed = [0.0; BUCKETS];
    for b in 0..BUCKETS {
        exposed[b] = used[b] + ended[b];
    }
    // Those that reached the next bucket.
    let mut reached = PRIOR_WEIGHT;
    for exposed in exposed.iter_mut().rev() {
        reached += core::mem::replace(exposed, reached);
    }
    let mut odds = [0.0; BUCKETS];
    for b in 0..BUCKETS {
        // Those that ended in this bucket for another reason were exposed to half of it.
        let exposed = exposed[b] + used[b] + 0.5 * ended[b];
        odds[b] = (used[b] + PRIOR_WEIGHT * prior[b]) / exposed;
    }
    odds
}

/// The Gittins index for each age: the best ratio, over all ages at which one might stop waiting, of the chance of a
/// use by then to the expected time until the use or then.
///
/// From the greatest age down: a stretch is one bucket, or several that are best waited for together, and the ratio of
/// those after it falls.
#[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
fn worths(odds: &ByAge, worths: &mut [u16; ROW]) {
    let mut stretches = Stretches { chance: [0.0; ROW], time: [1.0; ROW], outlasts: [1.0; ROW], ends: ALONE };
    for b in 0..BUCKETS {
        stretches.chance[b] = odds[b];
        stretches.time[b] = WIDTHS[b] * (1.0 - 0.5 * odds[b]);
        stretches.outlasts[b] = 1.0 - odds[b];
    }
    for b in (0..BUCKETS).rev() {
        if stretches.wants_more(b) {
            stretches.join_next(b);
            if stretches.wants_more(b) {
                stretches.join_others(b);
            }
        }
    }
    let Stretches { chance, time, .. } = stretches;
    for b in 0..BUCKETS {
        worths[b] = quantised(chance[b] / time[b]) as u16;
    }
}

/// The stretches that begin with each bucket, and behind them one that is not worth waiting for.
struct Stretches {
    /// The chance of a use within it.
    chance: [f32; ROW],
    /// The expected time in it.
    time: [f32; ROW],
    /// The chance to outlast it.
    outlasts: [f32; ROW],
    /// Where the next one begins.
    ends: [u8; ROW],
}

/// Each bucket by itself.
const ALONE: [u8; ROW] = {
    let mut ends = [0; ROW];
    let mut b = 0;
    while b < ROW {
        ends[b] = b as u8 + 1;
        b += 1;
    }
    ends
};

impl Stretches {
    /// Whether the next stretch is worth waiting for, once one waits for this one.
    #[inline]
    fn wants_more(&self, b: usize) -> bool {
        let (b, next) = (b % ROW, usize::from(self.ends[b % ROW]) % ROW);
        self.chance[next] * self.time[b] > self.chance[b] * self.time[next]
    }

    /// Is one with the next from now on.
    #[inline]
    fn join_next(&mut self, b: usize) {
        let (b, next) = (b % ROW, usize::from(self.ends[b % ROW]) % ROW);
        self.chance[b] += self.outlasts[b] * self.chance[next];
        self.time[b] += self.outlasts[b] * self.time[next];
        self.outlasts[b] *= self.outlasts[next];
        self.ends[b] = self.ends[next];
    }

    /// There are few of these. By themselves, for no number stays in a register in a loop where a component is asked for its
    /// deadline.
    #[inline(never)]
    fn join_others(&mut self, b: usize) {
        while self.wants_more(b) {
            self.join_next(b);
        }
    }
}

/// A bit for each of these that is less than `bound`.
#[cfg(not(target_arch = "wasm32"))]
#[inline]
fn less(numbers: [u16; REACH], bound: u16) -> u32 {
    numbers.iter().rev().fold(0, |bits, number| bits << 1 | u32::from(*number < bound))
}

/// A bit for each of these that is less than `bound`.
#[cfg(target_arch = "wasm32")]
#[inline]
#[target_feature(enable = "simd128")]
fn less(n: [u16; REACH], bound: u16) -> u32 {
    use core::arch::wasm32::{i8x16_bitmask, i8x16_narrow_i16x8, u16x8, u16x8_lt, u16x8_splat};
    let bound = u16x8_splat(bound);
    let first = u16x8_lt(u16x8(n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7]), bound);
    let last = u16x8_lt(u16x8(n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15]), bound);
    u32::from(i8x16_bitmask(i8x16_narrow_i16x8(first, last)))
}

/// The logarithm of a positive number, 1024 to the octave, plus 48 octaves: the exponent of the float and the first
/// bits of its mantissa, which is linear within an octave and so 0.09 octaves off at most.
#[inline]
pub(super) fn quantised(x: f32) -> u32 {
    (x.to_bits() >> 13).saturating_sub((127 - 48) << 10)
}

impl Odds {
    pub(super) fn new() -> Self {
        let mut class = [0; ROW];
        worths(&[PRIOR; BUCKETS], &mut class);
        let mut worth = Box::new([class; CLASSES]);
        worth[NOBODY].fill(NONE);
        Odds {
            worth,
            counts: Box::new([NOTHING; CLASSES]),
            known: Box::new([false; CLASSES]),
            scale: 0.0,
            sums: vec![NOTHING; PARENTS],
            parents: vec![[PRIOR; BUCKETS]; PARENTS],
            turn: CLASSES + PARENTS + CLASSES,
            round: 0,
            keep: 1.0,
        }
    }

    /// What keeping the entry is worth: hits to expect for the time that it takes room, [`quantised`]; [`NONE`] where
    /// there is no entry.
    #[inline]
    pub(super) fn worth(&self, past: Past, now: u32) -> u16 {
        self.worth[past.class()][bucket(past.age(now)) % ROW]
    }

    /// A bit for each of these that is worth less than `bound`.
    #[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
    pub(super) fn worth_less(&self, pasts: &[Past; REACH], now: u32, bound: i32) -> u32 {
        // Where each one's worth lies in the table, for four at a time.
        let mut places = [0u32; REACH];
        for (place, past) in places.iter_mut().zip(pasts) {
            *place = past.class() as u32 * ROW as u32 + bucket_of_float(past.age(now));
        }
        let worth = self.worth.as_flattened();
        less(places.map(|place| worth[place as usize % (CLASSES * ROW)]), bound.clamp(0, i32::from(NONE)) as u16)
    }

    /// An interval ended with a use.
    #[inline]
    pub(super) fn used(&mut self, past: Past, bucket: usize) {
        self.known[past.class()] = true;
        self.counts[past.class()].used[bucket] += 1.0;
    }

    /// An interval will not be followed any longer.
    #[inline]
    pub(super) fn lost(&mut self, past: Past, now: u32) {
        self.counts[past.class()].lost[bucket(past.age(now))] += 1.0;
    }

    /// An interval that lasts, met by chance.
    #[inline]
    pub(super) fn met(&mut self, past: Past, now: u32, weight: f32) {
        self.counts[past.class()].lasting[bucket(past.age(now))] += weight;
    }

    /// Writes the counts down for a successor: what they are worth follows from them.
    pub(super) fn write(&self, memo: &mut Memo) {
        memo.word(BUCKETS as u32);
        memo.word(self.scale.to_bits());
        let classes = self.counts.iter().zip(self.known.iter()).enumerate().filter(|(_, (_, known))| **known);
        memo.word(classes.clone().count() as u32);
        for (class, (counts, _)) in classes {
            memo.word(class as u32);
            for counts in [&counts.used, &counts.lost, &counts.lasting] {
                memo.words(&counts.map(f32::to_bits));
            }
        }
    }

    /// Reads what a predecessor wrote, and learns from it what each class is worth.
    pub(super) fn read(memo: &mut Recollection<'_>) -> Option<Self> {
        /// More than any count gets to; sums of such are numbers still.
        const MOST: f32 = 1e12;
        let count = |bits: u32| Some(f32::from_bits(bits)).filter(|count| (0.0..=MOST).contains(count));
        if memo.word()? != BUCKETS as u32 {
            return None;
        }
        let scale = count(memo.word()?)?;
        let mut odds = Odds::new();
        for _ in 0..memo.word().filter(|classes| *classes <= CLASSES as u32)? {
            let class = memo.word().map(|class| class as usize).filter(|class| is_class(*class))?;
            let counts = &mut odds.counts[class];
            for counts in [&mut counts.used, &mut counts.lost, &mut counts.lasting] {
                let words = memo.words().filter(|words| words.len() == BUCKETS)?;
                for (to, bits) in counts.iter_mut().zip(words) {
                    *to = count(bits)?;
                }
            }
        }
        // Each class has its turn in this round; those without counts learn what their parents say.
        for (class, known) in odds.known.iter_mut().enumerate() {
            *known = is_class(class);
        }
        odds.begin(scale, 1.0);
        while !odds.rested() {
            odds.step();
        }
        Some(odds)
    }

    /// Whether the last round is over.
    pub(super) fn rested(&self) -> bool {
        self.turn >= CLASSES + PARENTS + CLASSES
    }

    /// Begins a round, which goes on by [steps](Self::step).
    pub(super) fn begin(&mut self, scale: f32, keep: f32) {
        self.sums.fill(NOTHING);
        self.scale = scale;
        self.keep = keep;
        self.turn = 0;
        self.round += 1;
    }

    /// The next bit of the round: some classes are added up, or a parent or a class learns its odds.
    #[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
    pub(super) fn step(&mut self) {
        let mut gathered = 0;
        while self.turn < CLASSES && gathered < GATHERED {
            if self.known[self.turn] {
                self.gather(self.turn);
                gathered += 1;
            }
            self.turn += 1;
        }
        if gathered == GATHERED {
            return;
        }
        if self.turn < CLASSES + PARENTS {
            for _ in 0..PARENTS / PARENT_STEPS {
                self.parent(self.turn - CLASSES);
                self.turn += 1;
            }
            return;
        }
        // Classes of which nothing is known hold what their parents say, and can wait.
        loop {
            let class = self.turn - CLASSES - PARENTS;
            if class >= CLASSES
                || self.known[class]
                || class % 8 == self.round % 8 && (class == 0 || class >= INTERVALS)
            {
                break;
            }
            self.turn += 1;
        }
        if !self.rested() {
            self.class(self.turn - CLASSES - PARENTS);
            self.turn += 1;
        }
    }

    /// Adds a class to its parents. All entries are the sum of those by uses, and have their turn later.
    #[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
    fn gather(&mut self, class: usize) {
        let Odds { counts, sums, scale, .. } = self;
        let counts = &counts[class];
        for parent in parents(class) {
            let sum = &mut sums[parent];
            for b in 0..BUCKETS {
                sum.used[b] += counts.used[b];
                sum.lost[b] += counts.lost[b] + *scale * counts.lasting[b];
            }
        }
    }

    #[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
    fn parent(&mut self, parent: usize) {
        if parent == 0 {
            for uses in 0..=USES {
                let (all, some) = self.sums.split_at_mut(1 + uses);
                for b in 0..BUCKETS {
                    all[0].used[b] += some[0].used[b];
                    all[0].lost[b] += some[0].lost[b];
                }
            }
        }
        let prior = match parent {
            0 => [PRIOR; BUCKETS],
            1 => self.parents[0].map(|odds| NEW * odds),
            _ => self.parents[0],
        };
        self.parents[parent] = odds(&self.sums[parent].used, &self.sums[parent].lost, &prior);
    }

    /// Learns what one class is worth, and lets its counts fade.
    #[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
    fn class(&mut self, class: usize) {
        let [by_uses, by_interval] = parents(class).map(|parent| &self.parents[parent]);
        let counts = &mut self.counts[class];
        let all = &self.parents[0];
        let (mut prior, mut ended) = ([0.0; BUCKETS], [0.0; BUCKETS]);
        for b in 0..BUCKETS {
            let product = by_uses[b] * by_interval[b] / all[b];
            // Not `min`, which is a function in WebAssembly.
            prior[b] = if product < 1.0 { product } else { 1.0 };
            ended[b] = counts.lost[b] + self.scale * counts.lasting[b];
        }
        worths(&odds(&counts.used, &ended, &prior), &mut self.worth[class]);
        let mut left = [0.0; BUCKETS];
        for counts in [&mut counts.used, &mut counts.lost, &mut counts.lasting] {
            for b in 0..BUCKETS {
                counts[b] *= self.keep;
                left[b] += counts[b];
            }
        }
        self.known[class] = left.into_iter().sum::<f32>() > 0.01;
    }
}

/// The parents of a class, apart from all entries: by uses and by interval.
fn parents(class: usize) -> [usize; 2] {
    let interval = if class == 0 { INTERVALS } else { class % INTERVALS };
    [1 + class / INTERVALS, 2 + USES + interval]
}
