//! What the tests of the cache share: random numbers from a seed, values that are counted, and a policy that is audited.
#![allow(dead_code, unreachable_pub)] // Each test uses its part of it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder::Policy;
use larder::eviction::{Batch, Entries, Eviction, Fault, Ranking, Slot};

/// SplitMix64.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Low numbers are much more likely.
    pub fn skewed(&mut self, n: u64) -> u64 {
        let bits = self.below(64 - u64::from(n.leading_zeros())) + 1;
        self.below(1 << bits).min(n - 1)
    }
}

/// Waits until something that another thread does has happened; fails if it never does.
pub fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let began = Instant::now();
    while !happened() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Counts those of its copies that live.
#[derive(Debug, Default)]
pub struct Census(AtomicI64);

impl Census {
    pub fn living(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A value that is counted, and notices if it is dropped twice or read after.
#[derive(Debug)]
pub struct Counted {
    pub value: u64,
    guard: Box<u64>,
    census: Arc<Census>,
}

impl Counted {
    pub fn new(value: u64, census: &Arc<Census>) -> Self {
        census.0.fetch_add(1, Ordering::SeqCst);
        Counted { value, guard: Box::new(!value), census: census.clone() }
    }
}

impl Clone for Counted {
    fn clone(&self) -> Self {
        assert_eq!(*self.guard, !self.value, "what is cloned is alive");
        Counted::new(self.value, &self.census)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        assert_eq!(*self.guard, !self.value, "what is dropped is alive");
        *self.guard = 0;
        self.census.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What the auditor of one instance knows.
#[derive(Debug, Default)]
pub struct Books {
    /// Weights of the residents by slot.
    pub residents: HashMap<Slot, u64>,
    fingerprints: HashMap<Slot, u64>,
    now: u64,
    pub batches: u64,
    pub violations: Vec<String>,
}

impl Books {
    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.violations.len() < 20 {
            self.violations.push(format!("batch {}: {}", self.batches, what()));
        }
    }

    fn weight(&self) -> u64 {
        self.residents.values().sum()
    }
}

/// The books of all instances that a policy opened, in the order in which they were.
pub type Ledger = Arc<Mutex<Vec<Arc<Mutex<Books>>>>>;

/// A policy between whose instances and the cache somebody checks that each keeps the contract of `wit/eviction.wit`.
pub fn audited(policy: Policy) -> (Policy, Ledger) {
    let ledger = Ledger::default();
    let module = policy.load().expect("it loads");
    let books_of = ledger.clone();
    let audited = Policy::native(module.name(), {
        let module = module.clone();
        move |limits| {
            let books = Arc::new(Mutex::new(Books::default()));
            books_of.lock().unwrap().push(books.clone());
            let inner = module.open(limits)?;
            Ok(Box::new(Auditor { inner, books, capacity: limits.capacity }) as Box<dyn Eviction>)
        }
    });
    (audited, ledger)
}

/// Whether no instance, and not the cache, broke the contract.
pub fn assert_clean(ledger: &Ledger) {
    for (at, books) in ledger.lock().unwrap().iter().enumerate() {
        let books = books.lock().unwrap();
        assert!(books.violations.is_empty(), "instance {at}: {:#?}", books.violations);
    }
}

/// Residents and their weight, of the instances that were opened last.
pub fn residents(ledger: &Ledger, instances: usize) -> (u64, u64) {
    let ledger = ledger.lock().unwrap();
    ledger[ledger.len() - instances..]
        .iter()
        .map(|books| books.lock().unwrap())
        .fold((0, 0), |sum, books| (sum.0 + books.residents.len() as u64, sum.1 + books.weight()))
}

struct Auditor {
    inner: Box<dyn Eviction>,
    books: Arc<Mutex<Books>>,
    capacity: u64,
}

fn weight_of(entries: &Entries, at: usize) -> u64 {
    entries.weights.get(at).map_or(1, |&weight| u64::from(weight))
}

fn well_formed(entries: &Entries) -> bool {
    let n = entries.slots.len();
    let column = |len: usize| len == 0 || len == n;
    entries.fingerprints.len() == n
        && column(entries.weights.len())
        && column(entries.costs.len())
        && column(entries.expiries.len())
        && !entries.weights.contains(&0)
}

impl Auditor {
    fn check_answer(&self, books: &mut Books, victims: &[Slot]) {
        for slot in victims {
            let was = books.residents.remove(slot);
            books.check(was.is_some(), || format!("the policy named {slot}, which is not resident"));
        }
        let weight = books.weight();
        books.check(weight <= self.capacity, || format!("the policy left {weight} of {}", self.capacity));
    }
}

impl Eviction for Auditor {
    fn advance(&mut self, batch: &Batch, victims: &mut Vec<Slot>) -> Result<(), Fault> {
        let mut books = self.books.lock().unwrap();
        books.batches += 1;
        let before = books.now;
        books.check(batch.now >= before, || format!("time goes back from {before} to {}", batch.now));
        books.now = batch.now;
        let changed: HashSet<Slot> = batch.changed.slots.iter().copied().collect();
        let departed: HashSet<Slot> = batch.departed.iter().copied().collect();
        let distinct: HashSet<Slot> = batch.touched.iter().copied().collect();
        books.check(distinct.len() == batch.touched.len(), || format!("touched twice: {:?}", batch.touched));
        books.check(changed.len() == batch.changed.slots.len(), || "changed twice".into());
        books.check(changed.is_disjoint(&departed), || "changed and departed".into());
        books.check(well_formed(&batch.changed) && well_formed(&batch.arrived), || "columns of other lengths".into());
        for slot in &batch.departed {
            let was = books.residents.remove(slot);
            books.check(was.is_some(), || format!("{slot} departed, which was not resident"));
        }
        for (at, slot) in batch.changed.slots.iter().enumerate() {
            let was = books.residents.insert(*slot, weight_of(&batch.changed, at));
            books.check(was.is_some(), || format!("{slot} changed, which was not resident"));
            let same = books.fingerprints.get(slot) == batch.changed.fingerprints.get(at);
            books.check(same, || format!("{slot} changed its fingerprint"));
        }
        for slot in &batch.touched {
            let there = books.residents.contains_key(slot);
            books.check(there, || format!("{slot} was touched, which is not resident"));
        }
        for (at, slot) in batch.arrived.slots.iter().enumerate() {
            books.check(!departed.contains(slot), || format!("{slot} departed and arrived"));
            let was = books.residents.insert(*slot, weight_of(&batch.arrived, at));
            books.check(was.is_none(), || format!("{slot} arrived, which was resident"));
            if let Some(&fingerprint) = batch.arrived.fingerprints.get(at) {
                books.fingerprints.insert(*slot, fingerprint);
            }
        }
        let told = victims.len();
        self.inner.advance(batch, victims)?;
        self.check_answer(&mut books, &victims[told..]);
        Ok(())
    }

    fn residents(&mut self) -> Result<Ranking, Fault> {
        let ranking = self.inner.residents()?;
        let mut books = self.books.lock().unwrap();
        let ranked: HashSet<Slot> = ranking.slots.iter().copied().collect();
        let same = ranked.len() == ranking.slots.len() && ranked == books.residents.keys().copied().collect();
        books.check(same, || "the ranking is not of the residents".into());
        Ok(ranking)
    }

    fn adopt(&mut self, entries: &Entries, uses: &[u32], victims: &mut Vec<Slot>) -> Result<(), Fault> {
        let mut books = self.books.lock().unwrap();
        books.check(well_formed(entries), || "columns of other lengths".into());
        for (at, slot) in entries.slots.iter().enumerate() {
            let was = books.residents.insert(*slot, weight_of(entries, at));
            books.check(was.is_none(), || format!("{slot} was adopted twice"));
            books.fingerprints.insert(*slot, entries.fingerprints[at]);
        }
        let told = victims.len();
        self.inner.adopt(entries, uses, victims)?;
        self.check_answer(&mut books, &victims[told..]);
        Ok(())
    }

    fn learned(&mut self) -> Result<Vec<u8>, Fault> {
        self.inner.learned()
    }

    fn recall(&mut self, learned: &[u8]) -> Result<bool, Fault> {
        let mut books = self.books.lock().unwrap();
        let new = books.residents.is_empty();
        books.check(new, || "it is to recall when it has residents already".into());
        drop(books);
        self.inner.recall(learned)
    }

    fn memory(&self) -> usize {
        self.inner.memory()
    }
}
