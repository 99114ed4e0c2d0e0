//! The far tier and the bus in Redis.

use std::sync::Arc;

use ::redis::{Client, cmd};
use anyhow::Context;
use larder::tiered::{Bus, RedisBus, RedisServer, RedisTier, Tier};

/// What begins the names of all that the demo keeps there.
pub const PREFIX: &str = "larder-demo";

/// A process's connections to both.
///
/// # Errors
/// The server cannot be reached.
pub async fn connect(url: &str) -> anyhow::Result<(Arc<dyn Tier>, Arc<dyn Bus>)> {
    let server = RedisServer::at(url).context("--redis")?;
    let far = RedisTier::builder(&server).prefix(PREFIX).connect().await.context("--redis")?;
    let bus = RedisBus::builder(&server).prefix(PREFIX).build().context("--redis")?;
    Ok((Arc::new(far), Arc::new(bus)))
}

/// Deletes all that demos have left there; how many keys that was.
///
/// # Errors
/// The server cannot be reached.
pub async fn clean_up(url: &str) -> anyhow::Result<u64> {
    // The address may hold a password, and is not repeated.
    let client = Client::open(url).context("--redis is no address; write redis://user:password@host:6379")?;
    let mut connection = client.get_multiplexed_async_connection().await.context("cannot connect to --redis")?;
    let (mut cursor, mut deleted) = (0u64, 0);
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{{{PREFIX}:*")).arg("COUNT").arg(1_000);
        let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(&mut connection).await?;
        if !keys.is_empty() {
            deleted += cmd("UNLINK").arg(keys).query_async::<u64>(&mut connection).await?;
        }
        if next == 0 {
            return Ok(deleted);
        }
        cursor = next;
    }
}
