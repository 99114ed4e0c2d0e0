//! What is known of one entry, in 4 bytes.

/// Age buckets: two an octave, over the 24 bits of a stamp.
pub(super) const BUCKETS: usize = 48;

/// Typical intervals told apart, as buckets; longer ones count as the longest.
pub(super) const INTERVALS: usize = 32;

/// Numbers of uses told apart: 1, 2, 3, and from there each about twice the one before.
pub(super) const USES: usize = 7;

/// Classes of entries, as far as they fit in a byte: 5 bits of typical interval, and above them the number of uses. New
/// entries have neither and are class 0.
pub(super) const CLASSES: usize = (USES + 1) * INTERVALS;

/// The class of nobody, being one that there is not: no uses, but an interval.
pub(super) const NOBODY: usize = INTERVALS - 1;

/// Uses counted by chance: up from 1 and 2 always, from 3 in one use of 2, then of 4, and so on; from the last never.
/// The bits of a throw of 24 that must all be 0 (the 25th is 1).
const RISES: [u32; USES + 1] = [0, 0, 0, 1, 3, 7, 15, 1 << 24];

/// The mean of how many intervals the typical one is, by uses.
const AMONG: [u32; USES + 1] = [1, 1, 2, 3, 4, 4, 4, 4];

/// For dividing by that, small numbers as they are.
const RECIPROCALS: [u32; USES + 1] = {
    let mut reciprocals = [0; USES + 1];
    let mut uses = 0;
    while uses <= USES {
        reciprocals[uses] = 0x1_0000 / AMONG[uses] + 1;
        uses += 1;
    }
    reciprocals
};

/// When an entry was used last (24 bits, in units of time that wrap around) and its class (8 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Past(pub(super) u32);

impl Default for Past {
    fn default() -> Self {
        Past::ABSENT
    }
}

impl Past {
    /// Nobody: not resident, or no ghost.
    pub(super) const ABSENT: Past = Past(NOBODY as u32);

    /// An entry that nobody remembers.
    #[inline]
    pub(super) const fn new(now: u32) -> Past {
        Past(now << 8)
    }

    /// One that was last used at `then`, and on the whole `uses` times at intervals of an age in `bucket`.
    pub(super) fn guess(then: u32, uses: u32, bucket: usize) -> Past {
        match (uses as usize).min(USES) {
            0 => Past::new(then),
            uses => Past::of(then, uses, bucket.min(INTERVALS - 1)),
        }
    }

    const fn of(then: u32, uses: usize, interval: usize) -> Past {
        Past::of_class(then, (uses * INTERVALS + interval) as u32)
    }

    /// One last used at `then`, of a class.
    #[inline]
    pub(super) const fn of_class(then: u32, class: u32) -> Past {
        Past(then << 8 | class)
    }

    /// When it was used last.
    #[inline]
    pub(super) const fn then(self, now: u32) -> u32 {
        now.wrapping_sub(self.age(now))
    }

    /// The past that was written down as this word, if there can be such.
    pub(super) fn of_word(word: u32) -> Option<Past> {
        Some(Past(word)).filter(|past| is_class(past.class()))
    }

    #[inline]
    pub(super) const fn class(self) -> usize {
        (self.0 & 0xff) as usize
    }

    /// How often it was used, as far as is told apart.
    #[inline]
    pub(super) const fn uses(self) -> u32 {
        (self.class() / INTERVALS) as u32
    }

    /// Units of time since the last use.
    #[inline]
    pub(super) const fn age(self, now: u32) -> u32 {
        // The class is no more than what is subtracted from: it borrows nothing.
        (now << 8 | 0xff).wrapping_sub(self.0) >> 8
    }

    /// The entry is used again, at an age in `bucket`.
    ///
    /// Its typical interval is the mean of the first four in octaves, and moves a quarter of the way later. Being a
    /// small integer, it is rounded by chance, or it would never move by less than half; the number of uses is
    /// counted by chance too, as Morris did (1978).
    #[inline]
    pub(super) const fn used(self, now: u32, bucket: usize) -> Past {
        let last = (if bucket < INTERVALS { bucket } else { INTERVALS - 1 }) as u32;
        let (uses, typical) = (self.class() / INTERVALS, (self.class() % INTERVALS) as u32);
        let dice = now.wrapping_add(self.0).wrapping_mul(0x9e37_79b9);
        let dice = (dice ^ dice >> 15).wrapping_mul(0x85eb_ca6b) >> 8;
        // No more than there are: from the last one none rises.
        let uses = (uses + ((dice | 1 << 24) & RISES[uses] == 0) as usize) % (USES + 1);
        let among = AMONG[uses];
        let rounding = ((dice >> 12) * among) >> 12;
        let interval = ((typical * (among - 1) + last + rounding) * RECIPROCALS[uses]) >> 16;
        Past::of_class(now, (uses * INTERVALS) as u32 + interval)
    }

    /// The same in a unit of time twice as long: the age is halved, the typical interval an octave less.
    pub(super) const fn double_unit(self, now: u32) -> Past {
        if self.class() == NOBODY {
            return self;
        }
        let then = (now / 2).wrapping_sub(self.age(now) / 2);
        Past::of(then, self.class() / INTERVALS, (self.class() % INTERVALS).saturating_sub(2))
    }
}

/// Whether there are entries of such a class.
pub(super) const fn is_class(class: usize) -> bool {
    class == 0 || INTERVALS <= class && class < CLASSES
}

/// The bucket of an age.
#[inline]
pub(super) const fn bucket(age: u32) -> usize {
    let age = if age == 0 { 1 } else { age };
    // The first two bits, 10 or 11, say which half of the octave.
    let zeros = age.leading_zeros();
    (62 - 2 * zeros + (age << zeros >> 30) - 2) as usize
}

/// The same, in instructions that there are for four numbers at once: a float's exponent and the first bit behind it.
#[inline]
pub(super) const fn bucket_of_float(age: u32) -> u32 {
    let age = if age == 0 { 1 } else { age };
    // Exact, for an age has 24 bits.
    ((age as i32 as f32).to_bits() >> 22) - (127 << 1)
}

/// The least age of a bucket.
pub(super) const fn start(bucket: usize) -> f32 {
    let octave = (1u32 << (bucket / 2)) as f32;
    if bucket.is_multiple_of(2) { octave } else { 1.5 * octave }
}
