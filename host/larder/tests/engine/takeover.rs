//! Taking over from another policy: swaps, rollbacks and shadows, where something goes wrong, or goes on, meanwhile.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use larder::eviction::{Batch, Entries, Eviction, Fault, Limits, Ranking, Slot};
use larder::{Cache, Clock, Guard, Policy, SwapError};

use crate::common::eventually;

type Hook = Arc<dyn Fn() + Send + Sync>;

/// What a [`Fifo`] does beside being one.
#[derive(Clone, Default)]
struct Habits {
    /// Called when it has adopted.
    on_adopt: Option<Hook>,
    /// Traps with the first batch.
    traps: bool,
    /// How long it takes for a batch.
    takes: Duration,
    /// Answers with so many slots that there are not when it adopts.
    floods: u32,
}

/// First in, first out; and notes what it is told that cannot be.
struct Fifo {
    capacity: u64,
    order: VecDeque<Slot>,
    known: HashSet<Slot>,
    habits: Habits,
    wrong: Arc<Mutex<Vec<String>>>,
}

impl Fifo {
    fn take(&mut self, entries: &Entries, victims: &mut Vec<Slot>) {
        for &slot in &entries.slots {
            if !self.known.insert(slot) {
                self.wrong.lock().unwrap().push(format!("{slot} arrived, and was there"));
                continue;
            }
            self.order.push_back(slot);
            while self.order.len() as u64 > self.capacity {
                let victim = self.order.pop_front().unwrap();
                self.known.remove(&victim);
                victims.push(victim);
            }
        }
    }
}

impl Eviction for Fifo {
    fn advance(&mut self, batch: &Batch, victims: &mut Vec<Slot>) -> Result<(), Fault> {
        if self.habits.traps {
            return Err(Fault::Trap { call: "advance", message: "a habit".into() });
        }
        thread::sleep(self.habits.takes);
        for slot in &batch.departed {
            if !self.known.remove(slot) {
                self.wrong.lock().unwrap().push(format!("{slot} departed, and was not there"));
            }
            self.order.retain(|known| known != slot);
        }
        self.take(&batch.arrived, victims);
        Ok(())
    }

    fn residents(&mut self) -> Result<Ranking, Fault> {
        Ok(Ranking { slots: self.order.iter().copied().collect(), uses: Vec::new() })
    }

    fn adopt(&mut self, residents: &Entries, _: &[u32], victims: &mut Vec<Slot>) -> Result<(), Fault> {
        self.take(residents, victims);
        victims.extend((0..self.habits.floods).map(|n| u32::MAX - n));
        if let Some(hook) = &self.habits.on_adopt {
            hook();
        }
        Ok(())
    }
}

/// A policy of such habits, by the number of its instance, and what it was told that cannot be.
fn fifo(habits: impl Fn(u32) -> Habits + Send + Sync + 'static) -> (Policy, Arc<Mutex<Vec<String>>>) {
    let wrong = Arc::<Mutex<Vec<String>>>::default();
    let (notes, opened) = (wrong.clone(), AtomicU32::new(0));
    let open = move |limits: &Limits| {
        let habits = habits(opened.fetch_add(1, Ordering::SeqCst));
        let (order, known) = (VecDeque::new(), HashSet::new());
        Ok(Box::new(Fifo { capacity: limits.capacity, order, known, habits, wrong: notes.clone() })
            as Box<dyn Eviction>)
    };
    (Policy::native("strict", open), wrong)
}

fn traps() -> Policy {
    fifo(|_| Habits { traps: true, ..Habits::default() }).0
}

/// Runs beside whoever calls it, and is done when it returns.
fn meanwhile(what: impl Fn() + Send + Sync + 'static) -> Option<Hook> {
    let what = Arc::new(what);
    Some(Arc::new(move || {
        let what = what.clone();
        thread::spawn(move || what()).join().unwrap();
    }))
}

fn cache(capacity: u64, shards: usize, policy: Policy) -> Cache<u64, u64> {
    let cache = Cache::builder().max_capacity(capacity).shards(shards).policy(policy).build().unwrap();
    (0..capacity).for_each(|key| cache.insert(key, key));
    cache
}

/// While there is no policy the host evicts by itself, and a successor hears of the arrivals first: it may have chosen the
/// same victim by itself, and is not to be told twice that it left.
#[test]
fn what_the_host_evicted_departs_once() {
    let cache = cache(10, 1, traps());
    assert_eq!(cache.stats().traps, 1);
    let also = cache.clone();
    let (policy, wrong) = fifo(move |_| {
        let cache = also.clone();
        let traffic = meanwhile(move || (100..102).for_each(|key| cache.insert(key, 0)));
        Habits { on_adopt: traffic, ..Habits::default() }
    });
    cache.swap_policy(policy).unwrap();
    let before = cache.stats();
    (200..300).for_each(|key| cache.insert(key, 0));
    cache.run_pending_tasks();
    assert_eq!(*wrong.lock().unwrap(), Vec::<String>::new());
    let after = cache.stats();
    assert_eq!((after.faults, after.fallback_evictions), (before.faults, before.fallback_evictions));
}

/// A policy that takes a fifth of a millisecond for a batch never gets level with traffic that does not wait for it.
#[test]
fn a_swap_to_a_slower_policy_ends_under_load() {
    let cache = cache(500, 1, Policy::builtin("fifo").unwrap());
    let (policy, _) = fifo(|_| Habits { takes: Duration::from_micros(200), ..Habits::default() });
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = thread::spawn({
        let (cache, stop) = (cache.clone(), stop.clone());
        move || (1000..).take_while(|_| !stop.load(Ordering::SeqCst)).for_each(|key| cache.insert(key, 1))
    });
    let swap = thread::spawn({
        let cache = cache.clone();
        move || cache.swap_policy(policy).unwrap()
    });
    eventually("the swap ends", || swap.is_finished());
    stop.store(true, Ordering::SeqCst);
    traffic.join().unwrap();
    assert_eq!((swap.join().unwrap().to.as_str(), cache.policy_name().as_str()), ("strict", "strict"));
}

#[test]
fn a_successor_that_refuses_more_than_there_is_is_not_seated() {
    let cache = cache(100, 1, Policy::builtin("lru").unwrap());
    let (policy, _) = fifo(|_| Habits { floods: 101, ..Habits::default() });
    let refused = cache.swap_policy(policy);
    assert!(
        matches!(&refused, Err(SwapError::Fault { fault: Fault::TooMany { answered: 101, residents: 100 }, .. })),
        "{refused:?}"
    );
    assert_eq!((cache.policy_name().as_str(), cache.entry_count()), ("lru", 100));
}

/// A shard may trap while others are still being handed over.
#[test]
fn a_trap_before_the_last_shard_is_seated_rolls_back() {
    let cache = cache(100, 2, Policy::builtin("lru").unwrap());
    let also = Mutex::new(Some(cache.clone()));
    let (policy, _) = fifo(move |instance| match instance {
        0 => Habits { traps: true, ..Habits::default() },
        // Taken, so that the policy does not keep its own cache alive.
        _ => also.lock().unwrap().take().map_or_else(Habits::default, |cache| Habits {
            on_adopt: meanwhile(move || (1000..1200).for_each(|key| cache.insert(key, key))),
            ..Habits::default()
        }),
    });
    cache.swap_policy_guarded(policy, Guard { margin: 0.02, reads: u64::MAX }).unwrap();
    assert_eq!(cache.stats().traps, 1);
    eventually("it is rolled back", || cache.policy_name() == "lru");
    assert_eq!(cache.swap_history()[0].rolled_back.as_deref(), Some("it trapped"));
}

/// The user repairs what the guard is about to undo.
#[test]
fn a_rollback_undoes_nobody_elses_swap() {
    let cache = cache(100, 1, Policy::builtin("lru").unwrap());
    cache.swap_policy_guarded(traps(), Guard::default()).unwrap();
    let also = Mutex::new(Some(cache.clone()));
    let (policy, _) = fifo(move |_| {
        let Some(cache) = also.lock().unwrap().take() else { return Habits::default() };
        // The one before it traps while this one takes over, which takes longer than the chores wait.
        let traffic = meanwhile(move || {
            cache.insert(1000, 0);
            thread::sleep(Duration::from_millis(700));
        });
        Habits { on_adopt: traffic, ..Habits::default() }
    });
    cache.swap_policy(policy).unwrap();
    thread::sleep(Duration::from_millis(700));
    let history = cache.swap_history();
    assert_eq!(history.len(), 2, "{history:?}");
    assert_eq!((cache.policy_name().as_str(), &history[1].rolled_back), ("strict", &None));
}

/// A bound that is never reached is no reason to ask for that much memory.
#[test]
fn a_bound_beyond_any_memory_can_be_swapped_under() {
    let cache = Cache::<u64, u64>::builder()
        .max_capacity(1 << 30)
        .shards(1)
        .policy(Policy::builtin("sieve").unwrap())
        .build()
        .unwrap();
    (0..100).for_each(|key| cache.insert(key, key));
    let report = cache.swap_policy(Policy::builtin("sieve").unwrap()).unwrap();
    assert_eq!((report.adopted, report.recalled, cache.stats().faults), (100, true, 0), "{:?}", cache.faults());
}

/// As its own shadow a policy wins what it wins, also where entries leave that nobody evicts.
#[test]
fn a_shadow_loses_what_the_cache_loses() {
    let policy = || Policy::builtin("lru").unwrap();
    let builder = || Cache::<u64, u64>::builder().max_capacity(100).policy(policy());
    let ratios = |cache: &Cache<u64, u64>, between: &dyn Fn()| {
        cache.shadow(policy(), 1.0).unwrap();
        for _ in 0..20 {
            for _ in 0..2 {
                (0..50).for_each(|key| {
                    cache.get_with(key, || key);
                });
            }
            between();
        }
        let report = cache.end_shadow().unwrap();
        assert_eq!(report.fault, None);
        (report.hit_ratio(), report.shadow_hit_ratio())
    };
    let clock = Clock::manual();
    for idle in [false, true] {
        let span = Duration::from_secs(1);
        let builder = if idle { builder().time_to_idle(span) } else { builder().time_to_live(span) };
        let cache = builder.clock(clock.clone()).build().unwrap();
        assert_eq!(ratios(&cache, &|| clock.advance(Duration::from_secs(2))), (0.5, 0.5));
    }
    let cache = builder().build().unwrap();
    assert_eq!(ratios(&cache, &|| cache.invalidate_all()), (0.5, 0.5));
    assert_eq!(ratios(&cache, &|| (0..50).for_each(|key| cache.invalidate(&key))), (0.5, 0.5));
    assert_eq!(ratios(&cache, &|| cache.invalidate_entries_if(|key, _| key % 2 == 0)), (0.7375, 0.7375));
}

/// What is written anew weighs what it weighs then, and lives for as long.
#[test]
fn a_shadow_hears_of_what_is_replaced() {
    let clock = Clock::manual();
    let cache = Cache::<u64, u64>::builder()
        .max_capacity(100)
        .policy(Policy::builtin("lru").unwrap())
        .weigher(|_, weight| *weight as u32)
        .clock(clock.clone())
        .build()
        .unwrap();
    cache.shadow(Policy::builtin("lru").unwrap(), 1.0).unwrap();
    let second = Duration::from_secs(1);
    cache.insert_for(1, 10, second);
    cache.insert_for(1, 10, 10 * second);
    cache.insert(2, 10);
    clock.advance(2 * second);
    assert_eq!((cache.get(&1), cache.get(&2)), (Some(10), Some(10)));
    // No room for both any more, in either.
    cache.insert(2, 95);
    cache.run_pending_tasks();
    assert_eq!((cache.get(&1), cache.get(&2)), (None, Some(95)));
    let report = cache.end_shadow().unwrap();
    assert_eq!((report.reads, report.hits, report.shadow_hits, report.fault), (4, 3, 3, None));
}
