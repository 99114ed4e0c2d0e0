//! From batches to the methods of a policy, and from the component model to batches.

use alloc::{string::ToString, vec::Vec};
use core::cell::RefCell;

use crate::bindings::exports::larder::policy::{about, eviction, types};
use crate::{About, Arrival, Batch, Entries, Eviction, Limits, Parameters, Refusal, Slot, Value, Victims};

/// One policy for one shard of a cache: takes batches as a host sends them.
///
/// This is what a component runs, and what a native host (a test, a benchmark, a simulator) runs without one.
#[derive(Debug)]
pub struct Shard<P> {
    policy: P,
    capacity: u64,
    residents: usize,
}

impl<P: Eviction> Shard<P> {
    /// Opens the policy.
    ///
    /// # Errors
    /// As [`Eviction::open`].
    pub fn open(limits: &Limits, parameters: &Parameters) -> Result<Self, Refusal> {
        Ok(Shard { policy: P::open(limits, parameters)?, capacity: limits.capacity, residents: 0 })
    }

    /// `advance` in `wit/eviction.wit`.
    pub fn advance(&mut self, batch: &Batch<'_>) -> Vec<Slot> {
        // Where weights are 1 and the cache is full, each arrival pushes out one.
        let mut victims = Victims::with_room(batch.arrived.len());
        self.policy.begin(batch.now);
        for &slot in batch.departed {
            self.policy.depart(slot);
        }
        for i in 0..batch.changed.len() {
            let change = batch.changed.get(i);
            if victims.as_slice().contains(&change.slot) {
                continue;
            }
            if u64::from(change.weight) > self.capacity {
                self.policy.depart(change.slot);
                victims.push(change.slot);
            } else {
                self.policy.change(&change, &mut victims);
            }
        }
        if victims.as_slice().is_empty() {
            self.touch(batch.touched, batch.touches);
        } else {
            let (touched, touches) = still_here(batch, victims.as_slice());
            self.touch(&touched, &touches);
        }
        self.policy.foresee(batch.arrived.fingerprints);
        self.arrive(&batch.arrived, &mut victims);
        self.policy.end();
        let victims = victims.into_vec();
        self.count(batch.arrived.len(), batch.departed.len() + victims.len());
        victims
    }

    // A loop has a function to itself, where a component has the more registers for it; and is the only one to call the policy's,
    // which is inlined then.

    #[inline(never)]
    fn touch(&mut self, touched: &[Slot], touches: &[u8]) {
        for (i, &slot) in touched.iter().enumerate() {
            self.policy.touch(slot, touches.get(i).map_or(1, |&times| u32::from(times)));
        }
    }

    #[inline(never)]
    fn arrive(&mut self, arrived: &Entries<'_>, victims: &mut Victims) {
        for i in 0..arrived.len() {
            let arrival = arrived.get(i);
            if u64::from(arrival.weight) > self.capacity {
                victims.push(arrival.slot);
            } else {
                self.policy.arrive(&arrival, victims);
            }
        }
    }

    /// `residents` in `wit/eviction.wit`: slots and uses.
    pub fn residents(&self) -> (Vec<Slot>, Vec<u32>) {
        let (mut slots, mut uses) = (Vec::with_capacity(self.residents), Vec::with_capacity(self.residents));
        self.policy.residents(&mut |slot, used| {
            slots.push(slot);
            uses.push(used);
        });
        (slots, uses)
    }

    /// `adopt` in `wit/eviction.wit`.
    pub fn adopt(&mut self, residents: &Entries<'_>, uses: &[u32]) -> Vec<Slot> {
        let mut victims = Victims::default();
        for i in 0..residents.len() {
            let resident: Arrival = residents.get(i);
            if u64::from(resident.weight) > self.capacity {
                victims.push(resident.slot);
            } else {
                self.policy.adopt(&resident, uses.get(i).copied().unwrap_or(0), &mut victims);
            }
        }
        let victims = victims.into_vec();
        self.count(residents.len(), victims.len());
        victims
    }

    /// Keeps count of the residents: what is expected is a bound, and no reason to take so much room at once.
    fn count(&mut self, came: usize, left: usize) {
        self.residents = (self.residents + came).saturating_sub(left);
    }

    /// `learned` in `wit/eviction.wit`.
    pub fn learned(&self) -> Vec<u8> {
        self.policy.learned()
    }

    /// `recall` in `wit/eviction.wit`.
    pub fn recall(&mut self, learned: &[u8]) -> bool {
        self.policy.recall(learned)
    }

    /// The policy itself.
    pub fn policy(&self) -> &P {
        &self.policy
    }
}

/// What was touched of a batch, and how often, without those who are gone: a change may have pushed out what is touched later
/// in the batch, which the host could not know.
#[inline(never)]
fn still_here(batch: &Batch<'_>, gone: &[Slot]) -> (Vec<Slot>, Vec<u8>) {
    let mut gone = gone.to_vec();
    gone.sort_unstable();
    let times = |i| batch.touches.get(i).copied().unwrap_or(1);
    let touched = batch.touched.iter().enumerate().filter(|(_, slot)| gone.binary_search(slot).is_err());
    touched.map(|(i, &slot)| (slot, times(i))).unzip()
}

/// The resource `policy` of a component.
#[doc(hidden)]
pub struct Component<P>(RefCell<Shard<P>>);

/// A column that is not there is an empty one.
fn column<T>(column: &Option<Vec<T>>) -> &[T] {
    column.as_deref().unwrap_or_default()
}

fn entries(e: &eviction::Entries) -> Entries<'_> {
    Entries {
        slots: &e.slots,
        fingerprints: &e.fingerprints,
        weights: column(&e.weights),
        costs: column(&e.costs),
        expiries: column(&e.expiries),
    }
}

fn refused(refusal: Refusal) -> eviction::Refusal {
    eviction::Refusal { parameter: refusal.parameter, message: refusal.message }
}

impl<P: Eviction> eviction::GuestPolicy for Component<P> {
    fn open(
        limits: eviction::Limits,
        parameters: Vec<types::Parameter>,
    ) -> Result<eviction::Policy, eviction::Refusal> {
        let set = parameters.into_iter().map(|p| {
            let value = match p.value {
                types::Value::Flag(yes) => Value::Flag(yes),
                types::Value::Integer(n) => Value::Integer(n),
                types::Value::Number(x) => Value::Number(x),
                types::Value::Text(text) => Value::Text(text),
            };
            (p.name, value)
        });
        let parameters = Parameters::of(&P::ABOUT, set).map_err(refused)?;
        let limits = Limits { capacity: limits.capacity, expected: limits.expected, seed: limits.seed };
        let shard = Shard::<P>::open(&limits, &parameters).map_err(refused)?;
        Ok(eviction::Policy::new(Component(RefCell::new(shard))))
    }

    fn advance(&self, batch: eviction::Batch) -> Vec<Slot> {
        self.0.borrow_mut().advance(&Batch {
            now: batch.now,
            departed: column(&batch.departed),
            changed: batch.changed.as_ref().map(entries).unwrap_or_default(),
            touched: column(&batch.touched),
            touches: column(&batch.touches),
            arrived: batch.arrived.as_ref().map(entries).unwrap_or_default(),
        })
    }

    fn residents(&self) -> eviction::Ranking {
        let (slots, uses) = self.0.borrow().residents();
        eviction::Ranking { slots, uses: Some(uses) }
    }

    fn adopt(&self, residents: eviction::Entries, uses: Option<Vec<u32>>) -> Vec<Slot> {
        self.0.borrow_mut().adopt(&entries(&residents), column(&uses))
    }

    fn learned(&self) -> Vec<u8> {
        self.0.borrow().learned()
    }

    fn recall(&self, learned: Vec<u8>) -> bool {
        self.0.borrow_mut().recall(&learned)
    }
}

/// The card of a policy, as `about` exports it.
#[doc(hidden)]
pub fn describe<P: Eviction>() -> about::Description {
    description(&P::ABOUT, types::Role::Eviction)
}

/// A card, as `about` exports it for a module of this role.
pub(crate) fn description(card: &About, role: types::Role) -> about::Description {
    let value = |v: &Value| match v {
        Value::Flag(yes) => types::Value::Flag(*yes),
        Value::Integer(n) => types::Value::Integer(*n),
        Value::Number(x) => types::Value::Number(*x),
        Value::Text(text) => types::Value::Text(text.clone()),
    };
    about::Description {
        name: card.name.to_string(),
        version: card.version.to_string(),
        summary: card.summary.to_string(),
        roles: alloc::vec![role],
        parameters: card
            .parameters
            .iter()
            .map(|spec| about::ParameterSpec {
                name: spec.name.to_string(),
                doc: spec.doc.to_string(),
                default: value(&spec.default),
                minimum: spec.minimum,
                maximum: spec.maximum,
            })
            .collect(),
    }
}
