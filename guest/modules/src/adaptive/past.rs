//! What is known of one entry, in 4 bytes.

/// Age buckets: two an octave, over the 24 bits of a stamp.
pub(super) const BUCKETS: usize = 48;

/// Octaves of a typical interval.
const OCTAVES: u32 = 24;

/// Uses told apart: one, two, three or more.
const USES: u32 = 3;

/// Classes of entries: new ones, and for each number of uses and octave of their typical interval one.
pub(super) const CLASSES: usize = 1 + (USES * OCTAVES) as usize;

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

    /// One that was used `uses` times, at a typical interval of an age in `bucket`.
    pub(super) fn guess(now: u32, uses: u32, bucket: usize) -> Past {
        match uses.min(USES) {
            0 => Past::new(now),
            uses => Past(now << 8 | (1 + (uses - 1) * OCTAVES + bucket as u32 / 2)),
        }
    }

    #[inline]
    pub(super) const fn class(self) -> usize {
        (self.0 & 0xff) as usize
    }

    /// How often it was used, as far as is told apart.
    pub(super) const fn uses(self) -> u32 {
        (self.0 & 0xff).div_ceil(OCTAVES)
    }

    /// Units of time since the last use.
    #[inline]
    pub(super) const fn age(self, now: u32) -> u32 {
        (now.wrapping_sub(self.0 >> 8)) & 0xff_ffff
    }

    /// The entry is used again, at an age in `bucket`. Its typical interval moves half of the way, in octaves.
    #[inline]
    pub(super) const fn used(self, now: u32, bucket: usize) -> Past {
        let octave = bucket as u32 / 2;
        let class = match self.0 & 0xff {
            0 => 1 + octave,
            class => {
                let (uses, typical) = ((class - 1) / OCTAVES, (class - 1) % OCTAVES);
                let uses = if uses + 1 < USES { uses + 1 } else { uses };
                1 + uses * OCTAVES + (typical + octave).div_ceil(2)
            }
        };
        Past(now << 8 | class)
    }

    /// The same with its age halved, and its interval one octave less: the unit of time has doubled.
    pub(super) const fn double_unit(self, now: u32) -> Past {
        if self.0 & 0xff == 0xff {
            return self;
        }
        let mut class = self.0 & 0xff;
        if class > 0 && (class - 1) % OCTAVES > 0 {
            class -= 1;
        }
        // The age is halved, and `now` too.
        Past(((now / 2).wrapping_sub(self.age(now) / 2) << 8) | class)
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
