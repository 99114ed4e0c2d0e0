//! What one instance may take: memory, tables, time.

use std::time::Duration;

use super::{ticker, wasi::Wasi};
use crate::eviction::Limits;

/// What an instance may take, before what its entries add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The memory for a cache of no entries, over what the module's file declares.
    pub(crate) memory: usize,
    /// The deadline of a call with an empty batch.
    pub(crate) deadline: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { memory: 32 << 20, deadline: Duration::from_millis(100) }
    }
}

impl Bounds {
    /// What a policy may remember of one entry and its ghosts: the built-in ones need 20 to 100 bytes.
    const BYTES_PER_ENTRY: usize = 256;
    /// What an event may take on top of the deadline: an interpreted language needs a microsecond or two.
    const PER_EVENT: Duration = Duration::from_micros(4);
    /// What any call that tells of an event may take on top of that for each entry that the policy has heard of: a hash table
    /// over them moves house within one call, now and then.
    const PER_ENTRY: Duration = Duration::from_nanos(200);
    /// To start a module, to open a policy, and to hand residents over takes longer than a batch: a runtime sets itself
    /// up, tables are filled, and grow under the hands of one call for all that come after it.
    const START: u32 = 10;
    /// What to open a policy may take on top of that, at most, however many entries are expected: they are a bound, and may be
    /// any number where the user wants none.
    const MOST_TO_OPEN: Duration = Duration::from_secs(10);
    /// Tables hold functions for indirect calls. A JavaScript engine has some 10,000.
    const TABLE_ELEMENTS: usize = 200_000;

    /// The deadline of a call that tells or asks of so many events, where so many entries were heard of.
    pub(super) fn deadline(&self, events: usize, heard_of: usize) -> Duration {
        self.deadline.saturating_add(times(Self::PER_EVENT, events)).saturating_add(times(Self::PER_ENTRY, heard_of))
    }

    /// The deadline of starting an instance, or of handing so many entries over.
    pub(super) fn start_deadline(&self, entries: usize) -> Duration {
        self.deadline.saturating_mul(Self::START).saturating_add(times(Self::PER_EVENT, entries))
    }

    /// The deadline of opening a policy that is to expect so many entries.
    pub(super) fn open_deadline(&self, expected: usize) -> Duration {
        self.start_deadline(0).saturating_add(times(Self::PER_EVENT, expected).min(Self::MOST_TO_OPEN))
    }
}

fn times(each: Duration, n: usize) -> Duration {
    each.saturating_mul(u32::try_from(n).unwrap_or(u32::MAX))
}

/// What a store holds beside the guest.
pub(super) struct State {
    bounds: Bounds,
    /// What the module's file declares as its memory, which it has before it runs.
    declared: usize,
    /// How many entries the policy was told to expect: a bound, which may be far from what comes.
    expected: usize,
    /// How many the host may have asked it to keep in mind at once.
    heard_of: usize,
    /// What the guest has.
    memory: usize,
    tables: usize,
    /// Whether the guest was refused memory in this call.
    pub(super) refused_memory: bool,
    /// How many more ticks this call may see.
    ticks_left: u32,
    /// The empty world outside.
    pub(super) wasi: Wasi,
}

impl State {
    pub(super) fn new(bounds: Bounds, declared: usize, limits: Option<&Limits>) -> Self {
        State {
            bounds,
            declared,
            expected: limits.and_then(|limits| limits.expected).map_or(0, |expected| expected as usize),
            heard_of: 0,
            memory: 0,
            tables: 0,
            refused_memory: false,
            ticks_left: 0,
            wasi: Wasi::new(limits.map_or(0, |limits| limits.seed)),
        }
    }

    /// The bytes of linear memory that the guest has.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// The bytes of linear memory that the guest may have.
    pub(super) fn memory_limit(&self) -> usize {
        let own = self.bounds.memory.saturating_add(self.entries().saturating_mul(Bounds::BYTES_PER_ENTRY));
        own.saturating_add(self.declared)
    }

    /// How many entries the policy was told to expect, or of how many it has heard: what it may use memory for.
    pub(super) fn entries(&self) -> usize {
        self.expected.max(self.heard_of)
    }

    /// How many entries it has heard of: what it may use time for.
    pub(super) fn heard_of(&self) -> usize {
        self.heard_of
    }

    /// The policy is about to hear of so many entries.
    #[inline]
    pub(super) fn expect(&mut self, entries: usize) {
        self.heard_of = self.heard_of.max(entries);
    }

    /// A call begins that may see so many ticks.
    #[inline]
    pub(super) fn begin(&mut self, ticks: u32) {
        self.ticks_left = ticks;
        self.refused_memory = false;
    }

    /// The call saw a tick. Returns whether it may go on.
    pub(super) fn tick(&mut self, engine: &wasmtime::Engine) -> bool {
        self.ticks_left = self.ticks_left.saturating_sub(1);
        ticker::want(engine, self.ticks_left);
        self.ticks_left > 0
    }
}

impl wasmtime::ResourceLimiter for State {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let held = self.memory.saturating_add(desired.saturating_sub(current));
        if held > self.memory_limit() {
            self.refused_memory = true;
            return Ok(false);
        }
        self.memory = held;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        tracing::debug!(%error, "a policy module's memory could not grow");
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let held = self.tables.saturating_add(desired.saturating_sub(current));
        if held > Bounds::TABLE_ELEMENTS {
            return Ok(false);
        }
        self.tables = held;
        Ok(true)
    }

    // What a component's file asks for, once: there is no way to make more of them later.
    fn instances(&self) -> usize {
        200
    }

    fn tables(&self) -> usize {
        200
    }

    fn memories(&self) -> usize {
        16
    }
}
