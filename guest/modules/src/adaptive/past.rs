//! What is known of one entry, in 4 bytes.

/// Age buckets: two an octave, over the 24 bits of a stamp.
pub(super) const BUCKETS: usize = 48;

/// Typical intervals told apart, as buckets; longer ones count as the longest.
pub(super) const INTERVALS: usize = 32;

/// Numbers of uses told apart: 1, 2, 3, and from there each about twice the one before.
pub(super) const USES: usize = 7;

/// Classes of entries: new ones, and one for each number of uses and typical interval.
pub(super) const CLASSES: usize = 1 + USES * INTERVALS;

/// When an entry was used last (24 bits, in units of time that wrap around) and its class (8 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Past(pub(super) u32);

impl Past {
    /// Nobody: not resident, or no ghost.
    pub(super) const ABSENT: Past = Past(0xff);

    /// An entry that nobody remembers.
    #[inline]
    pub(super) const fn new(now: u32) -> Past {
        Past(now << 8)
    }

    /// One that was last used at `then`, and on the whole `uses` times at intervals of an age in `bucket`.
    pub(super) fn guess(then: u32, uses: u32, bucket: usize) -> Past {
        match (uses as usize).min(USES) {
            0 => Past::new(then),
            uses => Past::of(then, uses - 1, bucket.min(INTERVALS - 1)),
        }
    }

    const fn of(now: u32, uses: usize, interval: usize) -> Past {
        Past(now << 8 | (1 + uses * INTERVALS + interval) as u32)
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

    #[inline]
    pub(super) const fn class(self) -> usize {
        (self.0 & 0xff) as usize
    }

    /// How often it was used, as far as is told apart.
    pub(super) const fn uses(self) -> u32 {
        self.class().div_ceil(INTERVALS) as u32
    }

    /// Units of time since the last use.
    #[inline]
    pub(super) const fn age(self, now: u32) -> u32 {
        (now.wrapping_sub(self.0 >> 8)) & 0xff_ffff
    }

    /// The entry is used again, at an age in `bucket`.
    ///
    /// Its typical interval is the mean of the first four in octaves, and moves a quarter of the way later. Being a
    /// small integer, it is rounded by chance, or it would never move by less than half; the number of uses is
    /// counted by chance too, as Morris did (1978): up from 3 in one use of 2, then of 4, and so on.
    #[inline]
    pub(super) const fn used(self, now: u32, bucket: usize) -> Past {
        let last = if bucket < INTERVALS { bucket } else { INTERVALS - 1 };
        let class = self.class();
        if class == 0 {
            return Past::of(now, 0, last);
        }
        let (uses, typical) = ((class - 1) / INTERVALS, (class - 1) % INTERVALS);
        let dice = now.wrapping_add(self.0).wrapping_mul(0x9e37_79b9);
        let dice = (dice ^ dice >> 15).wrapping_mul(0x85eb_ca6b) >> 8;
        let more = uses + 1 < USES && (uses < 2 || dice & ((1 << (uses - 1)) - 1) == 0);
        let uses = if more { uses + 1 } else { uses };
        let among = if uses < 3 { uses + 1 } else { 4 };
        let rounding = (dice >> 12) as usize % among;
        Past::of(now, uses, (typical * (among - 1) + last + rounding) / among)
    }

    /// The same in a unit of time twice as long: the age is halved, the typical interval an octave less.
    pub(super) const fn double_unit(self, now: u32) -> Past {
        let class = self.class();
        if class == Past::ABSENT.class() {
            return self;
        }
        let then = (now / 2).wrapping_sub(self.age(now) / 2);
        if class == 0 {
            return Past::new(then);
        }
        let (uses, typical) = ((class - 1) / INTERVALS, (class - 1) % INTERVALS);
        Past::of(then, uses, typical.saturating_sub(2))
    }
}

/// The bucket of an age.
#[inline]
pub(super) const fn bucket(age: u32) -> usize {
    let age = if age == 0 { 1 } else { age };
    let octave = age.ilog2();
    let half = if octave == 0 { 0 } else { age >> (octave - 1) & 1 };
    (2 * octave + half) as usize
}

/// The least age of a bucket.
pub(super) const fn start(bucket: usize) -> f32 {
    let octave = (1u32 << (bucket / 2)) as f32;
    if bucket.is_multiple_of(2) { octave } else { 1.5 * octave }
}
