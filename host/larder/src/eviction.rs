//! The role `eviction` as the host sees it: what a running policy is told and what it answers.
//!
//! The words and the order of events are those of `wit/eviction.wit`. A policy that runs as a component and one that is
//! linked natively are the same to the cache: both are an [`Eviction`].

use serde::Serialize;

/// A resident of one policy instance: small, dense, reused.
pub type Slot = u32;

/// The expiry of an entry that does not expire.
pub const NEVER: u64 = u64::MAX;

/// The bounds that a policy works in. `limits` in `wit/eviction.wit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// The weight that all residents together may have, 1 or more.
    pub capacity: u64,
    /// How many residents to expect when full; equal to the capacity where every weight is 1.
    pub expected: Option<u32>,
    /// The seed for random choices.
    pub seed: u64,
}

/// Entries as parallel columns; a column that is empty means its default for every entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Their slots.
    pub slots: Vec<Slot>,
    /// Their fingerprints, as many as slots.
    pub fingerprints: Vec<u64>,
    /// Their weights; empty: 1 each.
    pub weights: Vec<u32>,
    /// Their load costs in microseconds; empty: unknown.
    pub costs: Vec<u32>,
    /// Their expiries in milliseconds; empty: none expires.
    pub expiries: Vec<u64>,
}

impl Entries {
    /// Forgets all entries and keeps the memory.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.fingerprints.clear();
        self.weights.clear();
        self.costs.clear();
        self.expiries.clear();
    }
}

/// What happened since the last call. `batch` in `wit/eviction.wit`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The time in milliseconds; never goes back.
    pub now: u64,
    /// Residents that the host took out.
    pub departed: Vec<Slot>,
    /// Residents whose value was replaced by one with another weight, cost or expiry.
    pub changed: Entries,
    /// Residents that were read, each once.
    pub touched: Vec<Slot>,
    /// How often each was; empty: once each.
    pub touches: Vec<u8>,
    /// Entries that came in.
    pub arrived: Entries,
}

impl Batch {
    /// Forgets all events and keeps the memory.
    pub fn clear(&mut self) {
        self.departed.clear();
        self.changed.clear();
        self.touched.clear();
        self.touches.clear();
        self.arrived.clear();
    }

    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.departed.is_empty()
            && self.changed.slots.is_empty()
            && self.touched.is_empty()
            && self.arrived.slots.is_empty()
    }
}

/// The residents in the policy's order. `ranking` in `wit/eviction.wit`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranking {
    /// All residents, the next victim first.
    pub slots: Vec<Slot>,
    /// How often each is used, on a scale of the policy's own; empty: unknown.
    pub uses: Vec<u32>,
}

/// Why a policy was stopped, or what was wrong with its answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[non_exhaustive]
pub enum Fault {
    /// The module trapped: a panic, an out-of-bounds access, a stack overflow.
    #[error("it trapped in `{call}`: {message}")]
    Trap {
        /// The function that was called.
        call: &'static str,
        /// What the trap says, with the module's own panic message where it printed one.
        message: String,
    },
    /// A call took longer than its deadline.
    #[error("`{call}` did not return within {deadline_ms} ms")]
    Deadline {
        /// The function that was called.
        call: &'static str,
        /// The deadline in milliseconds.
        deadline_ms: u64,
    },
    /// The module asked for more memory than it may have.
    #[error("it asked for more than {limit_bytes} bytes of memory in `{call}`")]
    Memory {
        /// The function that was called.
        call: &'static str,
        /// The limit in bytes.
        limit_bytes: usize,
    },
    /// The module handed the host more than any true answer can be, or printed as much at once. The host did not read it.
    #[error("it handed over more than {limit_bytes} bytes at once in `{call}`")]
    TooLarge {
        /// The function that was called.
        call: &'static str,
        /// The limit in bytes.
        limit_bytes: usize,
    },
    /// The answer named a victim that is not resident, or named one twice. The host ignores it.
    #[error("it named slot {slot} as a victim, which is not resident")]
    NotResident {
        /// The slot that it named.
        slot: Slot,
    },
    /// The answer named more victims than there are entries. The host ignores the rest.
    #[error("it answered with {answered} slots, and there are {residents} residents")]
    TooMany {
        /// How many slots it answered with.
        answered: usize,
        /// How many residents there are.
        residents: usize,
    },
    /// The answer left more weight than the capacity. The host evicted the rest itself.
    #[error("it left {excess} more than the capacity; the host chose the rest")]
    TooFew {
        /// By how much the residents were over the capacity.
        excess: u64,
    },
}

impl Fault {
    /// Whether the instance is gone (a trap, a deadline, memory, too large an answer), and not only one answer wrong.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Fault::Trap { .. } | Fault::Deadline { .. } | Fault::Memory { .. } | Fault::TooLarge { .. })
    }
}

/// A running policy for one shard. The cache calls it from one thread at a time.
///
/// Implement it to link a policy natively ([`Policy::native`](crate::Policy::native)); modules are run by the
/// engine, in a store of their own.
pub trait Eviction: Send {
    /// Takes a batch in and appends the victims to `victims`, in the order in which they were chosen.
    ///
    /// # Errors
    /// A fatal [`Fault`]; the instance must not be called again.
    fn advance(&mut self, batch: &Batch, victims: &mut Vec<Slot>) -> Result<(), Fault>;

    /// All residents in order, the next victim first.
    ///
    /// # Errors
    /// A fatal [`Fault`]; the instance must not be called again.
    fn residents(&mut self) -> Result<Ranking, Fault>;

    /// Takes residents over from a predecessor, before any `advance`; appends what it does not want to `victims`.
    ///
    /// # Errors
    /// A fatal [`Fault`]; the instance must not be called again.
    fn adopt(&mut self, residents: &Entries, uses: &[u32], victims: &mut Vec<Slot>) -> Result<(), Fault>;

    /// What it has learned that its ranking does not say, for a successor of the same name; empty: nothing.
    ///
    /// # Errors
    /// A fatal [`Fault`]; the instance must not be called again.
    fn learned(&mut self) -> Result<Vec<u8>, Fault> {
        Ok(Vec::new())
    }

    /// Takes over what a predecessor of the same name had learned, before any `adopt`. Answers whether it could use it.
    ///
    /// # Errors
    /// A fatal [`Fault`]; the instance must not be called again.
    fn recall(&mut self, learned: &[u8]) -> Result<bool, Fault> {
        let _ = learned;
        Ok(false)
    }

    /// The bytes of memory that it holds, as far as is known.
    fn memory(&self) -> usize {
        0
    }
}
