//! Connections to Redis that go silent: nothing is forwarded, nothing is closed, and new ones work.

use std::time::Duration;

use crate::proxy::{Proxy, Wire};
use crate::servers::{Server, free_port, or_skip};
use larder::tiered::{RedisBus, RedisServer, RedisTier, Tier, TierError};
use tokio::time::{sleep, timeout};

/// What an answer may take.
const ANSWER: Duration = Duration::from_millis(300);

fn redis(options: &[&str]) -> Option<Server> {
    let program = or_skip("redis-server", "redis-server")?;
    Some(Server::start(&program, |command, port, directory| {
        command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"]).arg(directory);
        command.args(options);
    }))
}

/// Waits, and does not end where what is waited for never comes.
async fn until<T>(what: &str, once: impl AsyncFn() -> Option<T>) -> T {
    let waits = async {
        loop {
            if let Some(done) = once().await {
                return done;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), waits).await.unwrap_or_else(|_| panic!("{what}: never"))
}

/// `limit`: the caller's own, which drops the call.
async fn answers_again(proxy: &Proxy, tier: &RedisTier, limit: Option<Duration>) {
    let get = async || match limit {
        Some(limit) => timeout(limit, tier.get("k")).await.unwrap_or(Err(TierError::TimedOut)),
        None => tier.get("k").await,
    };
    get().await.unwrap();
    proxy.turn(Wire::Lost).await;
    let lost = get().await;
    assert!(matches!(lost, Err(TierError::TimedOut)), "with a limit of {limit:?}: {lost:?}");
    proxy.turn(Wire::Whole).await;
    until("it answers", async || get().await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_one_server_is_replaced() {
    let Some(server) = redis(&[]) else { return };
    let proxy = Proxy::to(server.port).await;
    let place = RedisServer::at(&format!("redis://127.0.0.1:{}", proxy.port)).unwrap().timeout(ANSWER);
    let tier = RedisTier::connect(&place).await.unwrap();
    answers_again(&proxy, &tier, None).await;
    answers_again(&proxy, &tier, Some(ANSWER / 3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connections_to_a_cluster_are_replaced() {
    // A Cluster of one, that tells everybody to come through the proxy.
    let (bus_port, announced) = (free_port().to_string(), free_port());
    let port = announced.to_string();
    let options = ["--cluster-enabled", "yes", "--cluster-port", &bus_port, "--cluster-announce-port", &port];
    let Some(server) = redis(&options) else { return };
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("CLUSTER").arg(&["ADDSLOTSRANGE", "0", "16383"]).query_async(&mut connection).await.unwrap();
    let proxy = Proxy::at(announced, server.port).await;
    let place = RedisServer::cluster([&*format!("redis://127.0.0.1:{announced}")]).unwrap().timeout(ANSWER);
    let tier = until("the Cluster is up", async || RedisTier::connect(&place).await.ok()).await;
    answers_again(&proxy, &tier, None).await;
    answers_again(&proxy, &tier, Some(ANSWER / 3)).await;
}

/// Nothing is sent to the bell, so nothing but a question finds that it is deaf.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bell_of_a_bus_is_heard_on_another_connection() {
    let Some(server) = redis(&[]) else { return };
    let proxy = Proxy::to(server.port).await;
    let place = RedisServer::at(&format!("redis://127.0.0.1:{}", proxy.port)).unwrap().timeout(ANSWER);
    let bus = RedisBus::builder(&place).build().unwrap();
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    // The server knows nothing of a connection's silence: it counts those that were given up, too.
    let listen = async |ears: u64| {
        let mut connection = connection.clone();
        let mut ask = redis::cmd("PUBSUB");
        ask.arg("NUMSUB").arg("{larder:bus}bell");
        let (_, there): (String, u64) = ask.query_async(&mut connection).await.unwrap();
        (there == ears && bus.hears()).then_some(())
    };
    until("it listens", async || listen(1).await).await;
    proxy.turn(Wire::Lost).await;
    until("it is deaf", async || (!bus.hears()).then_some(())).await;
    proxy.turn(Wire::Whole).await;
    until("it listens again", async || listen(2).await).await;
}
