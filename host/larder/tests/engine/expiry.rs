//! What expired is never returned, and is reclaimed without being asked for.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::eventually;
use larder::{Builder, Cache, Clock, Expiry, Policy, RemovalCause};

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn builder(clock: &Clock) -> Builder<u64, u64> {
    Cache::builder().max_capacity(1000).policy(Policy::builtin("lru").unwrap()).clock(clock.clone())
}

/// Every way to ask.
fn is_there(cache: &Cache<u64, u64>, key: u64) -> bool {
    let answers = [cache.contains_key(&key), cache.peek(&key).is_some(), cache.iter().any(|(k, _)| k == key)];
    assert!(answers.iter().all(|&there| there == answers[0]), "{answers:?}");
    answers[0]
}

#[test]
fn time_to_live_ends_to_the_millisecond_whatever_is_read() {
    let clock = Clock::manual();
    let cache = builder(&clock).time_to_live(millis(100)).build().unwrap();
    cache.insert(1, 1);
    for _ in 0..99 {
        clock.advance(millis(1));
        assert_eq!(cache.get(&1), Some(1));
    }
    clock.advance(millis(1));
    assert!(!is_there(&cache, 1));
    assert_eq!(cache.get(&1), None);
    // Replacing begins anew.
    cache.insert(1, 2);
    clock.advance(millis(60));
    cache.insert(1, 3);
    clock.advance(millis(60));
    assert_eq!(cache.get(&1), Some(3));
}

#[test]
fn time_to_idle_begins_anew_with_a_read() {
    let clock = Clock::manual();
    let cache = builder(&clock).time_to_idle(millis(100)).build().unwrap();
    cache.insert(1, 1);
    for _ in 0..5 {
        clock.advance(millis(99));
        assert_eq!(cache.get(&1), Some(1));
    }
    // To look is not to use.
    clock.advance(millis(99));
    assert!(is_there(&cache, 1));
    clock.advance(millis(1));
    assert_eq!(cache.get(&1), None);
}

#[test]
fn with_both_whichever_comes_first() {
    let clock = Clock::manual();
    let cache = builder(&clock).time_to_live(millis(250)).time_to_idle(millis(100)).build().unwrap();
    cache.insert(1, 1);
    cache.insert(2, 2);
    for _ in 0..2 {
        clock.advance(millis(99));
        assert_eq!(cache.get(&1), Some(1));
    }
    assert_eq!(cache.get(&2), None, "idle");
    clock.advance(millis(51));
    assert_eq!(cache.get(&1), Some(1));
    clock.advance(millis(1));
    assert_eq!(cache.get(&1), None, "it has lived");
}

/// Its deadline is its own: no rule of the cache makes it longer or shorter.
#[test]
fn insert_for_overrides_the_rules() {
    let clock = Clock::manual();
    for (cache, endless) in [
        (builder(&clock), true),
        (builder(&clock).time_to_live(millis(100)), false),
        (builder(&clock).time_to_idle(millis(100)), false),
        (builder(&clock).time_to_live(millis(100)).time_to_idle(millis(50)), false),
    ] {
        let cache = cache.build().unwrap();
        cache.insert_for(1, 1, millis(10));
        cache.insert_for(2, 2, millis(1000));
        clock.advance(millis(5));
        assert_eq!((cache.get(&1), cache.get(&2)), (Some(1), Some(2)));
        clock.advance(millis(5));
        assert_eq!((cache.get(&1), cache.get(&2)), (None, Some(2)));
        clock.advance(millis(989));
        assert_eq!(cache.get(&2), Some(2));
        clock.advance(millis(1));
        assert_eq!(cache.get(&2), None);
        cache.insert_for(3, 3, Duration::ZERO);
        assert_eq!(cache.get(&3), None);
        cache.insert_for(4, 4, Duration::MAX);
        clock.advance(millis(1 << 40));
        assert_eq!(cache.get(&4), Some(4));
        // And then the rules hold again, for the key and for its slot.
        cache.insert(4, 5);
        cache.insert(5, 5);
        clock.advance(millis(200));
        assert_eq!((cache.get(&4).is_some(), cache.get(&5).is_some()), (endless, endless));
    }
}

struct ByValue;

impl Expiry<u64, u64> for ByValue {
    fn expire_after_create(&self, _: &u64, value: &u64) -> Option<Duration> {
        (*value > 0).then(|| millis(*value))
    }

    fn expire_after_read(&self, key: &u64, _: &u64, left: Option<Duration>) -> Option<Duration> {
        match key % 3 {
            0 => left,
            1 => Some(millis(10)),
            _ => None,
        }
    }
}

#[test]
fn each_decides_for_itself() {
    let clock = Clock::manual();
    let cache = builder(&clock).expire_after(ByValue).build().unwrap();
    for key in 0..3 {
        cache.insert(key, 50);
    }
    cache.insert(4, 0);
    clock.advance(millis(20));
    for key in [0, 1, 2, 4] {
        assert!(cache.get(&key).is_some());
    }
    clock.advance(millis(9));
    assert!((0..5).filter(|&key| is_there(&cache, key)).eq([0, 1, 2, 4]));
    clock.advance(millis(1));
    assert!((0..5).filter(|&key| is_there(&cache, key)).eq([0, 2]), "reads made 1 and 4 shorter");
    clock.advance(millis(20));
    assert!((0..5).filter(|&key| is_there(&cache, key)).eq([2]), "and 2 endless");
    clock.advance(millis(1 << 40));
    assert!(is_there(&cache, 2));
}

/// With the thread for chores alone: nobody calls the cache after the inserts.
#[test]
fn reclaimed_without_being_asked_for() {
    let heard: Arc<Mutex<Vec<(u64, RemovalCause)>>> = Arc::default();
    let cache = Cache::builder()
        .max_capacity(1000)
        .expire_after(ByValue)
        .eviction_listener({
            let heard = heard.clone();
            move |key, _, cause| heard.lock().unwrap().push((key, cause))
        })
        .build()
        .unwrap();
    for key in 0..500 {
        cache.insert(key * 3, 1 + key % 40);
    }
    // Endless until it is read, and then not: nothing but the read says when.
    cache.insert(1, 0);
    cache.get(&1);
    eventually("all are reclaimed", || heard.lock().unwrap().len() == 501);
    assert_eq!((cache.entry_count(), cache.weighted_size()), (0, 0));
    let mut keys: Vec<_> = heard.lock().unwrap().clone();
    assert!(keys.iter().all(|&(_, cause)| cause == RemovalCause::Expired));
    keys.sort_unstable_by_key(|&(key, _)| key);
    keys.dedup();
    assert_eq!(keys.len(), 501, "each once");
    assert_eq!(cache.stats().expirations, 501);
}

#[test]
fn settling_reclaims_within_two_ticks() {
    let clock = Clock::manual();
    let cache = builder(&clock).build().unwrap();
    let spans = [10u64, 100, 5_000, 70_000, 10_000_000, 1 << 31, 1 << 40];
    for (key, &span) in spans.iter().enumerate() {
        cache.insert_for(key as u64, 0, millis(span));
    }
    let mut now = 0;
    for (at, &span) in spans.iter().enumerate() {
        clock.advance(millis(span - 1 - now));
        cache.run_pending_tasks();
        assert_eq!(cache.entry_count(), (spans.len() - at) as u64, "{span} is not over yet");
        assert!(cache.contains_key(&(at as u64)));
        clock.advance(millis(33));
        now = span + 32;
        cache.run_pending_tasks();
        assert_eq!(cache.entry_count(), (spans.len() - at - 1) as u64, "{span} is over");
    }
}

/// An entry that expired and is replaced left because it expired.
#[test]
fn replacing_what_expired() {
    let clock = Clock::manual();
    let heard: Arc<Mutex<Vec<RemovalCause>>> = Arc::default();
    let cache = builder(&clock)
        .eviction_listener({
            let heard = heard.clone();
            move |_, _, cause| heard.lock().unwrap().push(cause)
        })
        .build()
        .unwrap();
    cache.insert_for(1, 1, millis(10));
    cache.insert(2, 1);
    clock.advance(millis(10));
    cache.insert(1, 2);
    cache.insert(2, 2);
    assert_eq!(*heard.lock().unwrap(), [RemovalCause::Expired, RemovalCause::Replaced]);
    assert_eq!((cache.stats().expirations, cache.stats().replacements), (1, 1));
}

#[test]
fn what_had_expired_is_no_invalidation() {
    let clock = Clock::manual();
    let causes = Arc::<Mutex<Vec<RemovalCause>>>::default();
    let told = causes.clone();
    let cache = Cache::<u64, u64>::builder()
        .max_capacity(10)
        .clock(clock.clone())
        .eviction_listener(move |_, _, cause| told.lock().unwrap().push(cause))
        .build()
        .unwrap();
    cache.insert_for(1, 1, Duration::from_millis(5));
    cache.insert(2, 2);
    clock.advance(Duration::from_millis(6));
    cache.invalidate_all();
    assert_eq!(*causes.lock().unwrap(), [RemovalCause::Expired, RemovalCause::Explicit]);
    assert_eq!((cache.stats().expirations, cache.stats().invalidations), (1, 1));
}
