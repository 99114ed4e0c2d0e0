//! What the pattern stack costs: a near hit beside the engine's bare `get`, and one step of the component.
//!
//! ```sh
//! cargo run --release -p larder --example tiered_cost [KEYS]
//! ```

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder::Cache;
use larder::tiered::{FromFn, Tiered};

const READS: usize = 2_000_000;

/// Random bits that repeat themselves: SplitMix64.
fn random(n: u64) -> u64 {
    let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The keys that are read: each as often as any other, or as in most loads, by Zipf's law with the exponent 0.99.
fn keys(count: u64, zipf: bool) -> Vec<u64> {
    let mut sums = Vec::with_capacity(count as usize);
    let mut sum = 0.0;
    for rank in 1..=count {
        sum += if zipf { (rank as f64).powf(-0.99) } else { 1.0 };
        sums.push(sum);
    }
    // Which keys are read often has nothing to do with where they lie.
    let mut keys: Vec<u64> = (0..count).collect();
    keys.sort_by_key(|key| random(*key));
    let draw = |n: usize| random(n as u64 ^ 1 << 63) as f64 / u64::MAX as f64 * sum;
    (0..READS).map(|n| keys[sums.partition_point(|at| *at < draw(n)).min(count as usize - 1)]).collect()
}

/// Hits of a cache and of the stack over one, with the same values: a text that both share lies at one place, so that what
/// differs is what leads to it.
async fn hits<V>(what: &str, count: u64, value: fn(u64) -> V) -> Result<(), Box<dyn std::error::Error>>
where
    V: Clone + Send + Sync + 'static,
{
    let hour = Duration::from_secs(3600);
    let bare = Cache::<u64, V>::builder().max_capacity(2 * count).build()?;
    let ending = Cache::<u64, V>::builder().max_capacity(2 * count).time_to_live(hour).build()?;
    let values: Arc<[V]> = (0..count).map(value).collect();
    let build = |ttl: Option<Duration>| {
        let values = values.clone();
        let source = FromFn::new(move |key: u64| {
            let value = values[key as usize].clone();
            async move { Ok::<_, std::io::Error>(Some(value)) }
        });
        let builder = Tiered::<u64, V>::builder().max_capacity(2 * count).source(source);
        match ttl {
            Some(ttl) => builder.rule("ttl-ms", ttl).build(),
            None => builder.build(),
        }
    };
    let (tiered, tiered_ending) = (build(None)?, build(Some(hour))?);
    for key in 0..count {
        bare.insert(key, values[key as usize].clone());
        ending.insert(key, values[key as usize].clone());
        tiered.get(&key).await?;
        tiered_ending.get(&key).await?;
    }
    let steps = tiered.stats().steps + tiered_ending.stats().steps;
    for zipf in [false, true] {
        let keys = keys(count, zipf);
        let mut best = [f64::MAX; 4];
        for _ in 0..7 {
            for (at, best) in best.iter_mut().enumerate() {
                let began = Instant::now();
                for key in &keys {
                    black_box(match at {
                        0 => bare.get(key),
                        1 => tiered.get(key).await?,
                        2 => ending.get(key),
                        _ => tiered_ending.get(key).await?,
                    });
                }
                *best = best.min(began.elapsed().as_nanos() as f64 / READS as f64);
            }
        }
        let [bare, near, ending, near_ending] = best;
        println!(
            "{what}, {}: bare {bare:.0} ns, near {near:.0} ns, {:.2} times; with an end {ending:.0} ns, \
             {near_ending:.0} ns, {:.2} times",
            if zipf { "Zipf 0.99" } else { "all alike" },
            near / bare,
            near_ending / ending
        );
    }
    println!("steps of the module for these hits: {}", tiered.stats().steps + tiered_ending.stats().steps - steps);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(100_000), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        hits("a number", count, |key| key).await?;
        hits("a shared text", count, |key| -> Arc<str> { format!("{key:0100}").into() }).await?;

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
