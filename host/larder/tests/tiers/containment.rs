//! A patterns module that traps, hangs or answers nonsense fails no read, no write and no invalidation: the host finishes
//! each by itself, and counts it.

use std::sync::Arc;
use std::time::Duration;

use crate::hostile::{Guest, HOARD, LOOP, RECURSE, TRAP};
use crate::world::{Database, Process, ms, numbers};
use larder::tiered::{LocalBus, MemoryTier, Tiered, TieredBuildError};
use larder::{Patterns, Policy, PolicyError, Role};
use tokio::time::sleep;

/// Two processes with this module, over one far tier; the database.
fn processes(guest: &Guest) -> (Vec<Tiered<u64, u64>>, Arc<Database>) {
    let patterns = Patterns::bytes(guest.build()).deadline(Duration::from_millis(20)).memory_limit(1 << 20);
    let database = Database::new(ms(10));
    let far = Arc::new(MemoryTier::new(1_000).unwrap());
    let bus = Arc::new(LocalBus::new());
    let build = |_| {
        // It takes no parameters, so there is no rule.
        let builder = Tiered::builder().keyspace("test").max_capacity(100).source(database.clone()).bus(bus.clone());
        let builder = builder.far(far.clone()).codec(numbers());
        builder.patterns(patterns.clone()).build().unwrap()
    };
    ((0..2).map(build).collect(), database)
}

/// Everything works, for all that the module does.
async fn assert_contained(what: &str, guest: &Guest) {
    let (processes, database) = processes(guest);
    let [one, other] = &processes[..] else { unreachable!() };
    for key in 0..5 {
        assert_eq!(one.get(&key).await.unwrap(), Some(1), "{what}");
    }
    let keys: Vec<u64> = (0..5).collect();
    for value in other.get_many(&keys).await {
        assert_eq!(value.unwrap(), Some(1), "{what}");
    }
    one.insert(3, 2).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(database.value(3), 2, "{what}");
    assert_eq!(other.get(&3).await.unwrap(), Some(2), "{what}");
    database.write(4, 2);
    other.invalidate(&4).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(one.get(&4).await.unwrap(), Some(2), "{what}");
    other.invalidate_tag("none").await.unwrap();
    one.remove(&3).await.unwrap();
    assert_eq!(database.value(3), 0, "{what}");
    let stats = one.stats();
    assert!(stats.fallbacks > 0, "{what}: {stats:?}");
    assert_eq!(stats.loading, 0, "{what}");
}

#[tokio::test(start_paused = true)]
async fn a_module_that_has_to_be_stopped() {
    for (what, step) in [("traps", TRAP), ("hangs", LOOP), ("recurses", RECURSE), ("hoards", HOARD)] {
        let guest = Guest::stepping(step);
        assert_contained(what, &guest).await;
        let (processes, _) = processes(&guest);
        for key in 0..100 {
            processes[0].get(&key).await.unwrap();
        }
        let stats = processes[0].stats();
        assert!(stats.instances_dropped >= 2, "each step is asked of a second instance: {stats:?}");
        assert!(stats.instances_dropped < 20, "a module that fails every step is rested: {stats:?}");
        assert!(stats.fallbacks >= 100, "{stats:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_module_that_answers_nonsense() {
    let byte = |at: u32, value: u8| format!("(i32.store8 (i32.const {at}) (i32.const {value}))");
    let long = |at: u32| format!("(i64.store (i32.const {at}) (i64.const -1))");
    let cases = [
        ("looks in a tier that is not there", 0, byte(2064, 7)),
        ("looks in a tier that cannot be", 0, byte(2064, 255)),
        ("looks in tier 1 for ever", 0, byte(2064, 1)),
        ("joins for ever", 1, long(2072)),
        ("loads, and loads again", 2, String::new()),
        ("loads on a condition that cannot be met", 2, byte(2080, 1)),
        ("keeps nothing nowhere", 3, String::new()),
        ("keeps what is not there", 3, byte(2064, 1) + &byte(2065, 3)),
        ("saves", 4, String::new()),
        ("logs", 5, String::new()),
        ("drops", 6, byte(2064, 3)),
        ("expires", 7, byte(2064, 3)),
        ("waits for ever", 8, long(2064)),
        ("buries", 9, String::new()),
        ("serves what is not there", 10, String::new()),
        ("serves what was not loaded", 10, byte(2064, 1)),
        ("serves what was brought", 10, byte(2064, 2)),
        ("serves a rescued copy", 10, byte(2065, 2)),
        ("begins again at once", 12, byte(2064, 1)),
        ("an action that there is not", 99, String::new()),
    ];
    for (what, action, more) in cases {
        assert_contained(what, &Guest::answering(action, &more)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_module_is_replaced_by_a_better_one_while_it_fails() {
    let (processes, database) = processes(&Guest::stepping(TRAP));
    processes[0].get(&7).await.unwrap();
    assert_eq!(processes[0].stats().near_hits, 0);
    processes[0].swap_patterns(Patterns::builtin().load().unwrap()).unwrap();
    processes[0].get(&7).await.unwrap();
    let loads = database.loads();
    processes[0].get(&7).await.unwrap();
    assert_eq!((processes[0].stats().near_hits, database.loads()), (1, loads));
}

#[tokio::test(start_paused = true)]
async fn hot_keys_are_refreshed_again_after_faults_of_the_module() {
    let database = Database::new(ms(10));
    let schedule: [(&str, larder::Value); 2] = [("read", "refresh-ahead".into()), ("refresh-every-ms", 500.into())];
    let nothing = [] as [(&str, larder::Value); 0];
    let build = || {
        let cache = Tiered::<u64, u64>::builder().max_capacity(100).source(database.clone());
        cache.rule("read", "refresh-ahead").rule("refresh-every-ms", ms(500)).build().unwrap()
    };
    let fail = |cache: &Tiered<u64, u64>| {
        cache.set_rules(nothing.clone()).unwrap();
        cache.swap_patterns(Patterns::bytes(Guest::stepping(TRAP).build()).load().unwrap()).unwrap();
    };
    let recover = |cache: &Tiered<u64, u64>| {
        cache.swap_patterns(Patterns::builtin().load().unwrap()).unwrap();
        cache.set_rules(schedule.clone()).unwrap();
    };
    // One that is refreshed already, and one whose very first refresh meets the fault.
    let (early, late) = (build(), build());
    early.keep_hot(7);
    sleep(ms(2_000)).await;
    fail(&early);
    fail(&late);
    late.keep_hot(7);
    sleep(ms(5_000)).await;
    for cache in [&early, &late] {
        assert!(cache.stats().fallbacks > 0);
        recover(cache);
        let loads = database.loads();
        sleep(ms(5_000)).await;
        assert!(database.loads() >= loads + 5, "{} loads in 5 s", database.loads() - loads);
    }
}

#[test]
fn a_module_that_does_not_open_is_an_error_at_once() {
    let build = |patterns| {
        let far = Arc::new(MemoryTier::new(1).unwrap());
        let builder = Process::over(&Database::new(ms(1)), far, &Arc::new(LocalBus::new()));
        builder.patterns(patterns).build().unwrap_err()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _in = runtime.enter();
    // A rule that it does not take.
    let error = build(Patterns::bytes(Guest::stepping(TRAP).build())).to_string();
    assert!(error.contains("takes no parameter `ttl-ms`"), "{error}");
    // A component, but of nothing.
    let error = Patterns::bytes(&b"\0asm\x0d\0\x01\0"[..]).load().unwrap_err();
    assert!(matches!(error, PolicyError::WrongWorld { .. }), "{error}");
    assert!(error.to_string().contains("larder:policy/about@0.1.0"), "{error}");
    // A module of patterns is no policy for eviction, and is told where it belongs.
    for policy in [Policy::bytes(Guest::stepping(TRAP).build()).load().map(drop), Policy::builtin("patterns").map(drop)]
    {
        let error = policy.unwrap_err();
        assert!(matches!(error, PolicyError::OtherRole { role: Role::Patterns, .. }), "{error}");
        assert!(
            error.to_string().contains("it is a module of patterns") && error.to_string().contains("Patterns::file")
        );
    }
    let guest = Guest { open: TRAP, ..Guest::stepping(TRAP) };
    let builder = Tiered::<u64, u64>::builder().max_capacity(1).patterns(Patterns::bytes(guest.build()));
    assert!(matches!(builder.build().unwrap_err(), TieredBuildError::Rule(_)));
}
