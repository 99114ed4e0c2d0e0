//! One running policy: an instance of a module in a store of its own.

use std::time::Duration;

use wasmtime::{Store, Trap, component::ResourceAny};

use super::{
    Bounds, Compiled,
    generated::{
        EvictionModule,
        exports::larder::policy::{about, eviction, types},
    },
    limits::State,
    ticker,
};
use crate::{
    eviction::{Batch, Entries, Eviction, Fault, Limits, Ranking, Slot},
    policy::{PolicyError, Value},
};

/// What a call may hand the host, in bytes, whatever the number of entries: a card, a message, what is printed at once.
pub(super) const ANSWER: usize = 1 << 20;
/// What a call may hand the host for each entry: its slot and uses, twice.
const ANSWER_PER_ENTRY: usize = 16;
/// What a policy may have learned of each entry, in bytes, on top of [`ANSWER`]: the contract says so.
const LEARNED_PER_ENTRY: usize = 64;
/// How many handles a guest may hold at once: it needs one for the policy, and a few for WASI's streams.
const HANDLES: usize = 1_000;

/// A started module.
pub(super) struct Running {
    store: Store<State>,
    world: EvictionModule,
    bounds: Bounds,
}

/// A store that holds its guest: to its limits of memory and handles, and to the deadline of each call.
pub(super) fn contained(engine: &wasmtime::Engine, state: State) -> Store<State> {
    let mut store = Store::new(engine, state);
    store.limiter(|state| state);
    store.set_max_component_handles(HANDLES);
    let ticking = engine.clone();
    store.epoch_deadline_callback(move |mut store| {
        let may_go_on = store.data_mut().tick(&ticking);
        Ok(if may_go_on { wasmtime::UpdateDeadline::Continue(1) } else { wasmtime::UpdateDeadline::Interrupt })
    });
    store
}

impl Running {
    /// Starts a module: for a policy within `limits`, or only to ask for its card.
    pub(super) fn start(compiled: &Compiled, bounds: Bounds, limits: Option<&Limits>) -> Result<Self, Fault> {
        let mut store = contained(compiled.pre.engine(), State::new(bounds, compiled.declared, limits));
        let deadline = bounds.start_deadline(0);
        begin(&mut store, deadline, ANSWER);
        match compiled.pre.instantiate(&mut store) {
            Ok(world) => Ok(Running { store, world, bounds }),
            Err(error) => Err(fault(&mut store, "start", deadline, &error)),
        }
    }

    /// Calls the guest.
    #[inline]
    fn call<T>(
        &mut self,
        name: &'static str,
        deadline: Duration,
        answer: usize,
        call: impl FnOnce(&mut Store<State>, &EvictionModule) -> wasmtime::Result<T>,
    ) -> Result<T, Fault> {
        begin(&mut self.store, deadline, answer);
        match call(&mut self.store, &self.world) {
            Ok(answer) => {
                if let Some(printed) = self.store.data_mut().wasi.take_printed() {
                    tracing::debug!(call = name, %printed, "a policy module printed");
                }
                Ok(answer)
            }
            Err(error) => Err(fault(&mut self.store, name, deadline, &error)),
        }
    }

    /// The module's card.
    pub(super) fn describe(&mut self) -> Result<about::Description, Fault> {
        self.call("describe", self.bounds.start_deadline(0), ANSWER, |store, world| {
            world.larder_policy_about().call_describe(store)
        })
    }
}

pub(super) fn begin(store: &mut Store<State>, deadline: Duration, answer: usize) {
    let ticks = ticker::ticks(deadline);
    ticker::want(store.engine(), ticks);
    store.set_epoch_deadline(1);
    store.set_hostcall_fuel(answer);
    store.data_mut().begin(ticks);
}

/// What an error of a call means.
#[cold]
pub(super) fn fault(
    store: &mut Store<State>,
    call: &'static str,
    deadline: Duration,
    error: &wasmtime::Error,
) -> Fault {
    let limit_bytes = store.hostcall_fuel();
    let state = store.data_mut();
    let printed = state.wasi.take_printed();
    if let Some(Trap::Interrupt) = error.downcast_ref() {
        return Fault::Deadline { call, deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX) };
    }
    if state.refused_memory {
        return Fault::Memory { call, limit_bytes: state.memory_limit() };
    }
    let cause = error.root_cause();
    // Its type is wasmtime's own, so its text has to tell; a test would notice another.
    if cause.to_string().contains("fuel allocated for hostcalls") {
        return Fault::TooLarge { call, limit_bytes };
    }
    let message = match printed {
        Some(printed) => format!("{cause}; it printed: {printed}"),
        None => cause.to_string(),
    };
    Fault::Trap { call, message }
}

/// Opens a policy of a module.
///
/// # Errors
/// What the module says against its limits or parameters, or what stopped it.
pub(crate) fn open(
    compiled: &Compiled,
    bounds: Bounds,
    limits: &Limits,
    parameters: &[(String, Value)],
) -> Result<Box<dyn Eviction>, PolicyError> {
    let policy = &compiled.description().name;
    let stopped = |fault| PolicyError::Stopped { policy: policy.clone(), fault };
    let mut running = Running::start(compiled, bounds, Some(limits)).map_err(stopped)?;
    let parameters: Vec<_> = parameters
        .iter()
        .map(|(name, value)| eviction::Parameter {
            name,
            value: match value {
                Value::Flag(yes) => types::ValueParam::Flag(*yes),
                Value::Integer(n) => types::ValueParam::Integer(*n),
                Value::Number(x) => types::ValueParam::Number(*x),
                Value::Text(text) => types::ValueParam::Text(text),
            },
        })
        .collect();
    let limits = eviction::Limits { capacity: limits.capacity, expected: limits.expected, seed: limits.seed };
    let deadline = bounds.open_deadline(running.store.data().entries());
    let opened = running.call("open", deadline, ANSWER, |store, world| {
        world.larder_policy_eviction().policy().call_open(store, limits, &parameters)
    });
    match opened.map_err(stopped)? {
        Ok(policy) => Ok(Box::new(Instance { state: Ok(running), policy })),
        Err(refusal) => Err(PolicyError::Refused {
            policy: policy.clone(),
            parameter: (!refusal.parameter.is_empty()).then_some(refusal.parameter),
            message: refusal.message,
        }),
    }
}

/// A running policy.
struct Instance {
    /// The guest; or, once it was stopped, why. What it held is free by then.
    state: Result<Running, Fault>,
    policy: ResourceAny,
}

impl Instance {
    /// Calls the guest, and buries it if that stops it.
    #[inline]
    fn call<T>(
        &mut self,
        name: &'static str,
        deadline: impl FnOnce(&Bounds) -> Duration,
        call: impl FnOnce(&mut Store<State>, eviction::GuestPolicy<'_>, ResourceAny) -> wasmtime::Result<T>,
    ) -> Result<T, Fault> {
        let running = self.state.as_mut().map_err(|fault| fault.clone())?;
        let deadline = deadline(&running.bounds);
        let entries = running.store.data().heard_of();
        let bytes = match name {
            "learned" => entries.saturating_mul(LEARNED_PER_ENTRY).saturating_add(ANSWER),
            _ => entries.saturating_mul(ANSWER_PER_ENTRY).max(ANSWER),
        };
        let policy = self.policy;
        let answer = running
            .call(name, deadline, bytes, |store, world| call(store, world.larder_policy_eviction().policy(), policy));
        answer.inspect_err(|fault| self.state = Err(fault.clone()))
    }

    /// Makes room for the entries that the policy is about to hear of.
    #[inline]
    fn expect(&mut self, slots: &[Slot]) {
        if let (Ok(running), Some(highest)) = (&mut self.state, slots.iter().max()) {
            running.store.data_mut().expect(*highest as usize + 1);
        }
    }
}

/// A column that is empty is not sent: each list would cost a call of the guest's allocator.
#[inline]
fn column<T>(column: &[T]) -> Option<&[T]> {
    (!column.is_empty()).then_some(column)
}

/// As the generated code borrows them.
#[inline]
fn borrow(entries: &Entries) -> eviction::Entries<'_> {
    eviction::Entries {
        slots: &entries.slots,
        fingerprints: &entries.fingerprints,
        weights: column(&entries.weights),
        costs: column(&entries.costs),
        expiries: column(&entries.expiries),
    }
}

#[inline]
fn part(entries: &Entries) -> Option<eviction::Entries<'_>> {
    (!entries.slots.is_empty()).then(|| borrow(entries))
}

impl Eviction for Instance {
    fn advance(&mut self, batch: &Batch, victims: &mut Vec<Slot>) -> Result<(), Fault> {
        self.expect(&batch.arrived.slots);
        let events = batch.departed.len() + batch.changed.slots.len() + batch.touched.len() + batch.arrived.slots.len();
        let entries = self.state.as_ref().map_or(0, |running| running.store.data().heard_of());
        let named = self.call(
            "advance",
            |bounds| bounds.deadline(events, entries),
            |store, guest, policy| {
                store.data_mut().wasi.now = batch.now;
                let batch = eviction::Batch {
                    now: batch.now,
                    departed: column(&batch.departed),
                    changed: part(&batch.changed),
                    touched: column(&batch.touched),
                    touches: column(&batch.touches),
                    arrived: part(&batch.arrived),
                };
                guest.call_advance(store, policy, batch)
            },
        )?;
        victims.extend_from_slice(&named);
        Ok(())
    }

    fn residents(&mut self) -> Result<Ranking, Fault> {
        let entries = self.state.as_ref().map_or(0, |running| running.store.data().heard_of());
        let ranking = self.call(
            "residents",
            |bounds| bounds.start_deadline(entries),
            |store, guest, policy| guest.call_residents(store, policy),
        )?;
        Ok(Ranking { slots: ranking.slots, uses: ranking.uses.unwrap_or_default() })
    }

    fn adopt(&mut self, residents: &Entries, uses: &[u32], victims: &mut Vec<Slot>) -> Result<(), Fault> {
        self.expect(&residents.slots);
        let refused = self.call(
            "adopt",
            |bounds| bounds.start_deadline(residents.slots.len()),
            |store, guest, policy| guest.call_adopt(store, policy, borrow(residents), column(uses)),
        )?;
        victims.extend_from_slice(&refused);
        Ok(())
    }

    fn learned(&mut self) -> Result<Vec<u8>, Fault> {
        let entries = self.state.as_ref().map_or(0, |running| running.store.data().heard_of());
        self.call(
            "learned",
            |bounds| bounds.start_deadline(entries),
            |store, guest, policy| guest.call_learned(store, policy),
        )
    }

    fn recall(&mut self, learned: &[u8]) -> Result<bool, Fault> {
        // What it is about to take in says how many entries there will be.
        if let Ok(running) = &mut self.state {
            running.store.data_mut().expect(learned.len() / LEARNED_PER_ENTRY);
        }
        self.call(
            "recall",
            |bounds| bounds.start_deadline(learned.len() / 8),
            |store, guest, policy| guest.call_recall(store, policy, learned),
        )
    }

    fn memory(&self) -> usize {
        self.state.as_ref().map_or(0, |running| running.store.data().memory())
    }
}
