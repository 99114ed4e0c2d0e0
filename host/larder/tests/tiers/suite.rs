//! The suites of tiers and buses on those that lie in memory. Others pass them on real servers: see `redis.rs`.

use std::sync::Arc;

use larder::tiered::testkit::{BusSuite, TierSuite};
use larder::tiered::{LocalBus, MemoryTier};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    let tier = Arc::new(MemoryTier::new(10_000).unwrap().max_value_bytes(100_000));
    TierSuite::new(move || {
        let tier = tier.clone();
        async move { tier as Arc<_> }
    })
    .too_large(100_001)
    .run()
    .await;
}

#[tokio::test]
async fn the_bus_of_this_process() {
    let bus = Arc::new(LocalBus::new());
    BusSuite::new(move || {
        let bus = bus.clone();
        async move { bus as Arc<_> }
    })
    .run()
    .await;
}
