//! Under each hostile module a cache goes on: every operation answers, the bound holds, no value is wrong, and the report
//! names the module and what it did.

use larder::{BuildError, Cache, Policy, PolicyError, SwapError, eviction::Fault};

use super::policy;
use crate::hostile::{Guest, HOARD, LOOP, RECURSE, TRAP};

const CAPACITY: u64 = 100;

fn cache(guest: &Guest) -> Cache<u64, u64> {
    Cache::builder().max_capacity(CAPACITY).policy(policy(guest)).build().expect("the module opens")
}

/// What is kept for a key.
fn value(key: u64) -> u64 {
    key * 7 + 1
}

/// Every operation, several times over the capacity. Returns how many entries were there in the end.
fn exercise(cache: &Cache<u64, u64>) -> usize {
    let right =
        |key: u64, found: Option<u64>| assert!(found.is_none_or(|found| found == value(key)), "{key}: {found:?}");
    for round in 0..8 {
        for key in 0..200 {
            let key = key + 100 * round;
            cache.insert(key, value(key));
            right(key, cache.get(&key));
            right(key / 2, cache.get(&(key / 2)));
            assert_eq!(cache.get_with(key + 1, || value(key + 1)), value(key + 1));
            assert_eq!(cache.try_get_with(key + 2, || Ok::<_, ()>(value(key + 2))), Ok(value(key + 2)));
            if key % 5 == 0 {
                right(key, cache.remove(&key));
                assert_eq!(cache.get(&key), None);
                cache.invalidate(&(key + 1));
                assert!(!cache.contains_key(&(key + 1)));
            }
            if key % 7 == 0 {
                assert_eq!(*cache.entry(key).or_insert(value(key)).value(), value(key));
            }
        }
        cache.iter().for_each(|(key, found)| right(key, Some(found)));
        cache.run_pending_tasks();
        assert!(cache.entry_count() <= CAPACITY, "{} entries", cache.entry_count());
        assert!(cache.weighted_size() <= CAPACITY);
    }
    let entries = cache.iter().count();
    cache.invalidate_all();
    cache.run_pending_tasks();
    assert_eq!(cache.iter().count(), 0);
    cache.insert(1, value(1));
    right(1, cache.get(&1));
    entries
}

/// Exercises a cache under the module, and checks that its report holds such a fault, by name. Returns how many entries
/// were there in the end.
fn assert_reported(what: &str, guest: &Guest, expected: impl Fn(&Fault) -> bool) -> usize {
    let cache = cache(guest);
    let entries = exercise(&cache);
    let faults = cache.faults();
    assert!(faults.iter().all(|report| report.module == "hostile"), "{what}: {faults:?}");
    assert!(faults.iter().any(|report| expected(&report.fault)), "{what}: {faults:?}");
    let stats = cache.stats();
    assert!(stats.faults >= faults.len() as u64);
    let fatal = faults.iter().filter(|report| report.fault.is_fatal()).count();
    assert_eq!(stats.traps, fatal as u64, "{what}: {faults:?}");
    entries
}

/// More entries than this are a cache, even if half of them were just removed.
const FULL: usize = CAPACITY as usize / 2;

#[test]
fn a_stopped_policy_leaves_a_cache_that_works() {
    #[allow(clippy::type_complexity)] // What a guest does, and which fault that is.
    let bodies: [(&str, fn(&Fault) -> bool); 4] = [
        (LOOP, |fault| matches!(fault, Fault::Deadline { call: "advance", .. })),
        (TRAP, |fault| matches!(fault, Fault::Trap { call: "advance", .. })),
        (RECURSE, |fault| matches!(fault, Fault::Trap { call: "advance", .. })),
        (HOARD, |fault| matches!(fault, Fault::Memory { call: "advance", .. })),
    ];
    for (body, expected) in bodies {
        assert!(assert_reported(body, &Guest { advance: body, ..Guest::default() }, expected) > FULL);
        assert!(assert_reported(body, &Guest { free: body, ..Guest::default() }, expected) > FULL);
    }
}

#[test]
fn a_policy_that_cannot_be_opened_builds_no_cache() {
    for body in [LOOP, TRAP, RECURSE, HOARD] {
        for guest in [
            Guest { start: body, ..Guest::default() },
            Guest { describe: body, ..Guest::default() },
            Guest { open: body, ..Guest::default() },
            Guest { realloc: body, ..Guest::default() },
        ] {
            let built = Cache::<u64, u64>::builder().max_capacity(CAPACITY).policy(policy(&guest)).build();
            assert!(matches!(built, Err(BuildError::Policy(PolicyError::Stopped { .. }))));
        }
    }
}

#[test]
fn a_policy_that_never_names_a_victim_keeps_the_bound() {
    let entries = assert_reported("silent", &Guest::default(), |fault| matches!(fault, Fault::TooFew { .. }));
    assert!(entries > FULL);
}

#[test]
fn a_victim_that_is_not_resident_is_ignored() {
    let far = "(i32.store (i32.const 2048) (i32.const 4000000000)) (call $victims (i32.const 2048) (i32.const 1))";
    assert_reported("far", &Guest { advance: far, ..Guest::default() }, |fault| {
        matches!(fault, Fault::NotResident { slot: 4_000_000_000 })
    });
    // A policy may always evict what has the slot 5, but only once.
    let twice = "(i32.store (i32.const 2048) (i32.const 5)) (i32.store (i32.const 2052) (i32.const 5))
        (call $victims (i32.const 2048) (i32.const 2))";
    assert_reported("twice", &Guest { advance: twice, ..Guest::default() }, |fault| {
        matches!(fault, Fault::NotResident { slot: 5 })
    });
}

#[test]
fn an_answer_too_large_is_ignored_or_stopped() {
    // Slot 0, ten thousand times.
    let many = "(call $victims (i32.const 4096) (i32.const 10000))";
    assert_reported("many", &Guest { advance: many, ..Guest::default() }, |fault| {
        matches!(fault, Fault::TooMany { .. })
    });
    let huge = "(drop (memory.grow (i32.const 200))) (call $victims (i32.const 0) (i32.const 2000000))";
    assert_reported("huge", &Guest { advance: huge, ..Guest::default() }, |fault| {
        matches!(fault, Fault::TooLarge { call: "advance", .. })
    });
}

#[test]
fn a_swap_to_a_hostile_policy_changes_nothing() {
    let cache =
        Cache::<u64, u64>::builder().max_capacity(CAPACITY).policy(Policy::builtin("lru").unwrap()).build().unwrap();
    (0..CAPACITY).for_each(|key| cache.insert(key, value(key)));
    for body in [LOOP, TRAP, RECURSE, HOARD] {
        for guest in [
            Guest { describe: body, ..Guest::default() },
            Guest { open: body, ..Guest::default() },
            Guest { adopt: body, ..Guest::default() },
        ] {
            let error = cache.swap_policy(policy(&guest)).expect_err("the new policy cannot take over");
            match &error {
                SwapError::Fault { module, fault } => assert!(module == "hostile" && fault.is_fatal()),
                SwapError::Policy(PolicyError::Stopped { .. }) => {}
                other => panic!("{other:?}"),
            }
            assert_eq!(cache.policy_name(), "lru");
            assert_eq!(
                (0..CAPACITY).filter(|key| cache.get(key) == Some(value(*key))).count() as u64,
                CAPACITY,
                "{error}"
            );
        }
    }
    assert!(exercise(&cache) > FULL);
}

#[test]
fn a_swap_from_a_hostile_policy_loses_nothing() {
    for body in [LOOP, TRAP, RECURSE, HOARD] {
        let cache = cache(&Guest { residents: body, ..Guest::default() });
        (0..CAPACITY / 2).for_each(|key| cache.insert(key, value(key)));
        let report = cache.swap_policy(Policy::builtin("lru").unwrap()).unwrap();
        assert_eq!((report.from.as_str(), report.to.as_str(), report.evicted), ("hostile", "lru", 0));
        assert!((0..CAPACITY / 2).all(|key| cache.get(&key) == Some(value(key))));
        let faults = cache.faults();
        assert!(faults.iter().any(|report| report.module == "hostile" && report.fault.is_fatal()), "{faults:?}");
        assert!(exercise(&cache) > FULL);
    }
}

/// Both are called `hostile`, so the one is offered what the other has learned.
#[test]
fn what_was_learned_cannot_hurt() {
    let swapped = |from: &Guest, to: &Guest| {
        let cache = cache(from);
        (0..CAPACITY / 2).for_each(|key| cache.insert(key, value(key)));
        let swapped = cache.swap_policy(policy(to));
        assert!((0..CAPACITY / 2).all(|key| cache.get(&key) == Some(value(key))));
        assert!(exercise(&cache) > FULL);
        (swapped, cache.faults())
    };
    let calm = Guest::default();
    assert!(swapped(&calm, &calm).0.unwrap().recalled);
    assert!(!swapped(&calm, &Guest { recall: "(i32.const 0)", ..calm.clone() }).0.unwrap().recalled);
    assert!(
        !swapped(&Guest { learned: "(call $victims (i32.const 0) (i32.const 0))", ..calm.clone() }, &calm)
            .0
            .unwrap()
            .recalled
    );
    // Two MiB; a length that reaches beyond its memory.
    let huge = "(drop (memory.grow (i32.const 200))) (call $victims (i32.const 0) (i32.const 2097152))";
    let beyond = "(call $victims (i32.const 4096) (i32.const -1))";
    for body in [LOOP, TRAP, RECURSE, HOARD, huge, beyond] {
        let (report, faults) = swapped(&Guest { learned: body, ..calm.clone() }, &calm);
        let report = report.expect("the swap goes on without");
        assert_eq!((report.recalled, report.adopted, report.evicted), (false, CAPACITY / 2, 0), "{body}");
        assert!(
            faults.iter().any(|report| report.module == "hostile" && report.fault.is_fatal()),
            "{body}: {faults:?}"
        );
    }
    for body in [LOOP, TRAP, RECURSE, HOARD] {
        let (report, _) = swapped(&calm, &Guest { recall: body, ..calm.clone() });
        assert!(matches!(report, Err(SwapError::Fault { fault, .. }) if fault.is_fatal()), "{body}");
    }
}

#[test]
fn a_ranking_of_nonsense_loses_nothing() {
    // Ten times the slot 0, and of none of them how often it is used.
    let nonsense = "(i32.store (i32.const 1120) (i32.const 4096)) (i32.store (i32.const 1124) (i32.const 10))
        (i64.store (i32.const 1128) (i64.const 0)) (i32.store (i32.const 1136) (i32.const 0)) (i32.const 1120)";
    let cache = cache(&Guest { residents: nonsense, ..Guest::default() });
    (0..CAPACITY / 2).for_each(|key| cache.insert(key, value(key)));
    let report = cache.swap_policy(Policy::builtin("fifo").unwrap()).unwrap();
    assert_eq!(report.evicted, 0);
    assert!((0..CAPACITY / 2).all(|key| cache.get(&key) == Some(value(key))));
    assert!(exercise(&cache) > FULL);
}

#[test]
fn a_hostile_shadow_is_ended_and_nobody_notices() {
    for body in [LOOP, TRAP, RECURSE, HOARD] {
        let cache = Cache::<u64, u64>::builder()
            .max_capacity(CAPACITY)
            .policy(Policy::builtin("lru").unwrap())
            .build()
            .unwrap();
        cache.shadow(policy(&Guest { advance: body, ..Guest::default() }), 1.0).unwrap();
        assert!(exercise(&cache) > FULL);
        let report = cache.end_shadow().unwrap();
        assert_eq!(report.policy, "hostile");
        assert!(report.fault.is_some());
        assert_eq!(cache.stats().traps, 0, "the cache's own policy did nothing wrong");
    }
}

#[test]
fn operations_of_other_threads_answer_while_a_policy_hangs() {
    let cache = Cache::<u64, u64>::builder()
        .max_capacity(10 * CAPACITY)
        .shards(4)
        .policy(policy(&Guest { advance: LOOP, ..Guest::default() }))
        .build()
        .unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cache = cache.clone();
            scope.spawn(move || {
                for i in 0..20_000 {
                    let key = (i * 31 + thread) % 5_000;
                    match cache.get(&key) {
                        Some(found) => assert_eq!(found, value(key)),
                        None => cache.insert(key, value(key)),
                    }
                }
            });
        }
    });
    cache.run_pending_tasks();
    assert!(cache.entry_count() <= 10 * CAPACITY);
    // Each shard has an instance of its own, and each hung once.
    assert_eq!(cache.stats().traps, 4);
}
