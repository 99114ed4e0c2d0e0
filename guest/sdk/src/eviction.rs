//! The role `eviction`: what a policy implements. The words are those of `wit/eviction.wit`.

use alloc::vec::Vec;

use crate::{About, Parameters, Refusal};

/// A resident: dense small integers, so that a policy keeps arrays. See `slot` in `wit/types.wit`.
pub type Slot = u32;

/// The expiry of an entry that does not expire.
pub const NEVER: u64 = u64::MAX;

/// The bounds that a policy works in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The weight that all residents together may have, 1 or more.
    pub capacity: u64,
    /// How many residents to expect when full; equal to the capacity where every weight is 1. A hint for sizing: never
    /// allocate by `capacity`, which may be bytes.
    pub expected: Option<u32>,
    /// The seed for random choices: the same seed and history must give the same decisions.
    pub seed: u64,
}

impl Limits {
    /// Limits for `entries` entries of weight 1.
    pub const fn entries(entries: u32) -> Self {
        Limits { capacity: entries as u64, expected: Some(entries), seed: 0 }
    }
}

/// An entry that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its name from now on; not a resident until now.
    pub slot: Slot,
    /// A well-mixed hash of its key, the same each time the key comes.
    pub fingerprint: u64,
    /// What it counts against the capacity; never 0, and never more than the capacity (such are refused before the
    /// policy sees them).
    pub weight: u32,
    /// What the load took in microseconds; 0 is unknown.
    pub cost: u32,
    /// When it expires, in milliseconds on the clock of [`Eviction::begin`]; [`NEVER`] if it does not.
    pub expires_at: u64,
}

/// A resident whose value was replaced by one with another weight, cost or expiry.
pub type Change = Arrival;

/// Collects the slots that a policy evicts or refuses.
#[derive(Debug, Default)]
pub struct Victims(Vec<Slot>);

impl Victims {
    /// None yet, and room for so many.
    pub(crate) fn with_room(room: usize) -> Self {
        Victims(Vec::with_capacity(room))
    }

    /// Evicts a resident, or refuses the arrival. The policy must forget it: it will not hear of it again.
    #[inline]
    pub fn push(&mut self, slot: Slot) {
        self.0.push(slot);
    }

    /// Those named so far in this batch.
    pub fn as_slice(&self) -> &[Slot] {
        &self.0
    }

    /// The collected slots.
    pub fn into_vec(self) -> Vec<Slot> {
        self.0
    }
}

/// A policy: who leaves when the cache is full, and who is let in.
///
/// Methods run in the order of the contract in `wit/eviction.wit`: for each batch `begin`, then every `depart`, every
/// `change`, every `touch`, `foresee`, every `arrive`, `end`. No method may cost more than (amortised) constant time, but for
/// `residents`, `learned` and `recall`.
///
/// # The contract
///
/// 1. After each `arrive` and `change`, the weight of the residents is at most `limits.capacity`.
/// 2. A victim is a resident, or the arrival itself (which refuses it), and is named once.
/// 3. What was named as a victim, or departed, is forgotten; ghosts remember fingerprints, not slots.
/// 4. The same limits, parameters and history give the same victims.
///
/// The [test kit](crate::testkit) checks all four, and shrinks the history that breaks one.
pub trait Eviction: Sized + 'static {
    /// The module's card.
    const ABOUT: About;

    /// Opens a policy with no residents.
    ///
    /// # Errors
    /// A [`Refusal`] that names the parameter and the remedy, where parameters contradict each other. Names, kinds and
    /// bounds have been checked against [`About`] already.
    fn open(limits: &Limits, parameters: &Parameters) -> Result<Self, Refusal>;

    /// A batch begins, at `now` in milliseconds.
    fn begin(&mut self, _now: u64) {}

    /// The fingerprints of the batch's arrivals, before the first of them. Nothing to decide yet: where ghosts take more
    /// memory than the processor's caches hold, a policy that looks at all of their places here waits for memory once, and
    /// not with each arrival.
    fn foresee(&mut self, _fingerprints: &[u64]) {}

    /// The batch ends: what can wait until here, such as remembering who left, waits for memory once, too.
    fn end(&mut self) {}

    /// A resident was read `times` times since the last batch (1 to 255).
    fn touch(&mut self, slot: Slot, times: u32);

    /// An entry came in after a miss. Names victims until it fits, or names it.
    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims);

    /// A resident was taken out by the host.
    fn depart(&mut self, slot: Slot);

    /// A resident has another weight, cost or expiry now. The default lets it depart and arrive anew, which is right for
    /// any policy, but loses its place where there is one to keep.
    fn change(&mut self, change: &Change, victims: &mut Victims) {
        self.depart(change.slot);
        self.arrive(change, victims);
    }

    /// Calls `each` with every resident, the next victim first, and how often it was used on a scale where 0 is "not
    /// since it came". A successor adopts them in this order.
    fn residents(&self, each: &mut dyn FnMut(Slot, u32));

    /// Takes a resident over from a predecessor, the next victim first, before the first batch. The default lets it
    /// arrive, and be touched if it was used.
    fn adopt(&mut self, resident: &Arrival, uses: u32, victims: &mut Victims) {
        let before = victims.as_slice().len();
        self.arrive(resident, victims);
        if uses > 0 && !victims.as_slice()[before..].contains(&resident.slot) {
            self.touch(resident.slot, uses.min(255));
        }
    }

    /// What a successor of the same name should know beyond the order of the residents: ghosts, sketches, how it has
    /// tuned itself. Bytes of the policy's own making; [`Memo`](crate::kit::Memo) helps, and the kit's structures write
    /// themselves into one. At most 1 MiB and 64 bytes for each resident. The default has learned nothing.
    ///
    /// Operations may wait for it: copy here, and compute in [`Self::recall`].
    fn learned(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over what a predecessor had [`learned`](Self::learned), before any [`Self::adopt`], and answers whether it
    /// could. The bytes may be of another version, other parameters, other limits: check what you rely on. Where it
    /// answers no, the policy must be as it was opened.
    fn recall(&mut self, _learned: &[u8]) -> bool {
        false
    }
}

/// Entries as parallel columns; an empty column means its default for every entry. `entries` in `wit/eviction.wit`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entries<'a> {
    /// Their slots.
    pub slots: &'a [Slot],
    /// Their fingerprints, as many as slots.
    pub fingerprints: &'a [u64],
    /// Their weights; empty: 1 each.
    pub weights: &'a [u32],
    /// Their load costs in microseconds; empty: unknown.
    pub costs: &'a [u32],
    /// Their expiries; empty: [`NEVER`].
    pub expiries: &'a [u64],
}

impl Entries<'_> {
    /// How many there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Entry `i`.
    ///
    /// # Panics
    /// If `i` is not less than [`Self::len`], or the columns are of different lengths.
    #[inline]
    pub fn get(&self, i: usize) -> Arrival {
        let or = |column: &[u32], default| if column.is_empty() { default } else { column[i] };
        Arrival {
            slot: self.slots[i],
            fingerprint: self.fingerprints[i],
            weight: or(self.weights, 1),
            cost: or(self.costs, 0),
            expires_at: if self.expiries.is_empty() { NEVER } else { self.expiries[i] },
        }
    }
}

/// What happened since the last call. `batch` in `wit/eviction.wit`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch<'a> {
    /// The time in milliseconds.
    pub now: u64,
    /// Residents that the host took out.
    pub departed: &'a [Slot],
    /// Residents with another weight, cost or expiry.
    pub changed: Entries<'a>,
    /// Residents that were read.
    pub touched: &'a [Slot],
    /// How often each was; empty: once each.
    pub touches: &'a [u8],
    /// Entries that came in.
    pub arrived: Entries<'a>,
}
