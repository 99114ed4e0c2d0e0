//! What the pattern stack costs: a near hit beside the engine's bare `get`, and one step of the component.
//!
//! ```sh
//! cargo run --release -p larder --example tiered_cost [KEYS]
//! ```

use std::hint::black_box;
use std::time::{Duration, Instant};

use larder::Cache;
use larder::tiered::{FromFn, Tiered};

const READS: u64 = 2_000_000;

/// The keys that are read, in an order that no prefetcher knows.
fn keys(reads: u64, keys: u64) -> impl Iterator<Item = u64> {
    (0..reads).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).map(move |key| key % keys)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(100_000), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let bare = Cache::<u64, u64>::builder().max_capacity(2 * count).build()?;
        let ending =
            Cache::<u64, u64>::builder().max_capacity(2 * count).time_to_live(Duration::from_secs(3600)).build()?;
        let build = |ttl: Option<Duration>| {
            let source = FromFn::new(|key: u64| async move { Ok::<_, std::io::Error>(Some(key)) });
            let builder = Tiered::<u64, u64>::builder().max_capacity(2 * count).source(source);
            match ttl {
                Some(ttl) => builder.rule("ttl-ms", ttl).build(),
                None => builder.build(),
            }
        };
        let (tiered, tiered_ending) = (build(None)?, build(Some(Duration::from_secs(3600)))?);
        for key in 0..count {
            bare.insert(key, key);
            ending.insert(key, key);
            tiered.get(&key).await?;
            tiered_ending.get(&key).await?;
        }
        let mut best = [f64::MAX; 4];
        for _ in 0..7 {
            for (at, best) in best.iter_mut().enumerate() {
                let began = Instant::now();
                for key in keys(READS, count) {
                    black_box(match at {
                        0 => bare.get(&key),
                        1 => tiered.get(&key).await?,
                        2 => ending.get(&key),
                        _ => tiered_ending.get(&key).await?,
                    });
                }
                *best = best.min(began.elapsed().as_nanos() as f64 / READS as f64);
            }
        }
        let [bare, near, ending, near_ending] = best;
        println!("a hit, entries without end:  bare {bare:.0} ns, near {near:.0} ns, {:.2} times", near / bare);
        println!(
            "a hit, entries with an end:  bare {ending:.0} ns, near {near_ending:.0} ns, {:.2} times",
            near_ending / ending
        );

        println!("steps of the module for these hits: {}", tiered.stats().steps - 2 * count);

        // A miss of a cache that keeps nothing: three steps, two tasks, a flight.
        let source = FromFn::new(|key: u64| async move {
            Ok::<_, std::io::Error>(larder::tiered::Loaded::value(key).fresh_for(Duration::ZERO))
        });
        let nothing = Tiered::<u64, u64>::builder().max_capacity(10).source(source).build()?;
        const MISSES: u64 = 50_000;
        let (steps, began) = (nothing.stats().steps, Instant::now());
        for key in 0..MISSES {
            nothing.get(&key).await?;
        }
        let each = began.elapsed().as_nanos() as f64 / MISSES as f64;
        let steps = (nothing.stats().steps - steps) as f64 / MISSES as f64;
        println!("a miss that is loaded at no cost: {each:.0} ns, {steps:.1} steps");
        Ok(())
    })
}
