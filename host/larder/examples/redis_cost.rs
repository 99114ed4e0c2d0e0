//! What a miss costs that Redis serves, beside the `redis` crate's own GET and MGET of the same values: ratios of what was
//! measured in turns, so that the machine's speed is the same for both.
//!
//! ```sh
//! cargo run --release -p larder --features redis --example redis_cost [redis://localhost:6379]
//! ```

use std::time::Instant;

use larder::tiered::{Codec, RedisServer, RedisTier, Tier, Tiered};
use redis::AsyncCommands;

/// More keys than tier 0 has room for, read in turn: each read goes to Redis.
const KEYS: usize = 40_000;
const NEAR: u64 = 2_000;
const ROUNDS: usize = 31;
const SINGLE: usize = 300;
const BATCH: usize = 100;
const BATCHES: usize = 10;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn measure(url: &str, size: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut connection = redis::Client::open(redis::ConnectionInfo::set_tcp_settings(
        redis::IntoConnectionInfo::into_connection_info(url)?,
        redis::io::tcp::TcpSettings::default().set_nodelay(true),
    ))?
    .get_multiplexed_async_connection()
    .await?;
    let cache = Tiered::<u32, Vec<u8>>::builder()
        .keyspace(format!("cost{size}"))
        .max_capacity(NEAR)
        .far(RedisTier::connect(&RedisServer::at(url)?).await?)
        .codec(Codec::raw())
        .rule("write", "put")
        .rule("ttl-ms", std::time::Duration::from_secs(600))
        .build()?;
    let names: Vec<_> = (0..KEYS).map(|key| format!("bare{size}:{key}")).collect();
    for (key, name) in names.iter().enumerate() {
        let value = vec![key as u8; size];
        let () = connection.set_ex(name, &value, 600).await?;
        cache.insert(key as u32, value).await?;
    }
    let far_hits = cache.stats().far_hits;
    let (mut gets, mut many, mut many_us) = (Vec::new(), Vec::new(), Vec::new());
    let tier = RedisTier::connect(&RedisServer::at(url)?).await?;
    let (mut alone, mut alone_many) = (Vec::new(), Vec::new());
    let (mut bare_us, mut tiered_us, mut at) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let keys: Vec<_> = (0..SINGLE).map(|offset| (at + offset * 7) % KEYS).collect();
        let began = Instant::now();
        for key in &keys {
            let value: Vec<u8> = connection.get(&names[*key]).await?;
            assert_eq!(value.len(), size);
        }
        let bare = began.elapsed().as_secs_f64();
        let began = Instant::now();
        for key in &keys {
            let value = cache.get(&(*key as u32)).await?;
            assert_eq!(value.map(|value| value.len()), Some(size));
        }
        let tiered = began.elapsed().as_secs_f64();
        gets.push(tiered / bare);
        bare_us.push(bare / SINGLE as f64 * 1e6);
        tiered_us.push(tiered / SINGLE as f64 * 1e6);
        let far_names: Vec<_> = keys.iter().map(|key| format!("cost{size}:{key}")).collect();
        let began = Instant::now();
        for name in &far_names {
            assert!(tier.get(name).await?.copy.is_some());
        }
        alone.push(began.elapsed().as_secs_f64() / bare);
        at += SINGLE * 7 + 1;

        let batches: Vec<Vec<_>> = (0..BATCHES)
            .map(|batch| (0..BATCH).map(|offset| (at + batch * BATCH * 3 + offset * 3) % KEYS).collect())
            .collect();
        let began = Instant::now();
        for batch in &batches {
            let names: Vec<_> = batch.iter().map(|key| &names[*key]).collect();
            let values: Vec<Vec<u8>> = connection.mget(names).await?;
            assert_eq!(values.len(), BATCH);
        }
        let bare = began.elapsed().as_secs_f64();
        let began = Instant::now();
        for batch in &batches {
            let keys: Vec<_> = batch.iter().map(|key| *key as u32).collect();
            for value in cache.get_many(&keys).await {
                assert_eq!(value?.map(|value| value.len()), Some(size));
            }
        }
        many.push(began.elapsed().as_secs_f64() / bare);
        many_us.push(bare / BATCHES as f64 * 1e6);
        let far_names = |batch: &Vec<usize>| batch.iter().map(|key| format!("cost{size}:{key}")).collect();
        let far_names: Vec<Vec<String>> = batches.iter().map(far_names).collect();
        let began = Instant::now();
        for names in &far_names {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            assert_eq!(tier.get_many(&names).await?.len(), BATCH);
        }
        alone_many.push(began.elapsed().as_secs_f64() / bare);
        at += BATCH * BATCHES * 3 + 1;
    }
    let far_hits = cache.stats().far_hits - far_hits;
    let reads = ROUNDS * (SINGLE + BATCH * BATCHES);
    println!(
        "{size:>6} bytes: a miss served by Redis {:.2} × GET (the tier alone {:.2}; {:.0} µs, {:.0} µs); get_many of {BATCH} \
         {:.2} × MGET (the tier alone {:.2}; MGET {:.0} µs); {:.1} % of the reads came from Redis",
        median(gets),
        median(alone),
        median(tiered_us),
        median(bare_us),
        median(many),
        median(alone_many),
        median(many_us),
        far_hits as f64 / reads as f64 * 100.0,
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "redis://127.0.0.1:6379".into());
    for (name, mut builder) in [
        ("one thread", tokio::runtime::Builder::new_current_thread()),
        ("two threads", tokio::runtime::Builder::new_multi_thread()),
    ] {
        println!("{name}:");
        let runtime = builder.worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            for size in [100, 1_000, 10_000] {
                measure(&url, size).await?;
            }
            Ok::<_, Box<dyn std::error::Error>>(())
        })?;
    }
    Ok(())
}
