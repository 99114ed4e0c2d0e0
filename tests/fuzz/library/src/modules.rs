//! Any bytes are a policy, or patterns, or an error; and what is let in does its caller no harm.

use std::time::Duration;

use larder::{Cache, Patterns, Policy};

/// What a module that a machine made up may take: a tenth of the defaults, so that one which loops is soon stopped.
const DEADLINE: Duration = Duration::from_millis(10);

/// One module.
pub fn check(data: &[u8]) {
    if let Err(error) = Patterns::bytes(data).deadline(DEADLINE).load() {
        assert!(!error.to_string().is_empty());
    }
    let module = match Policy::bytes(data).deadline(DEADLINE).load() {
        Ok(module) => module,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    // Whatever it answers, the cache holds to its bound and keeps what it was given last.
    let policy = Policy::native("fuzzed", move |limits| module.open(limits));
    let Ok(cache) = Cache::builder().max_capacity(20).shards(1).policy(policy).build() else { return };
    for key in 0..100u64 {
        cache.insert(key, key);
        if let Some(found) = cache.get(&(key / 2)) {
            assert_eq!(found, key / 2, "a value is its key's");
        }
    }
    cache.run_pending_tasks();
    assert!(cache.entry_count() <= 20, "{} entries", cache.entry_count());
}
