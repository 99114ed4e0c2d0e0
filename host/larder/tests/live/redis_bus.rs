//! The bus through Redis, on a server that these tests start themselves, and through a proxy that cuts processes off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crate::proxy::{Proxy, Wire};
use crate::servers::Server;
use larder::tiered::testkit::BusSuite;
use larder::tiered::{Codec, FromFn, RedisBus, RedisServer, RedisTier, Tiered};
use tokio::time::{sleep, timeout};

fn redis() -> Option<Server> {
    let program = crate::servers::or_skip("redis-server", "redis-server")?;
    Some(Server::start(&program, |command, port, directory| {
        command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"]).arg(directory);
    }))
}

fn at(port: u16) -> RedisServer {
    RedisServer::at(&format!("redis://127.0.0.1:{port}")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite() {
    let Some(server) = redis() else { return };
    let place = at(server.port);
    BusSuite::new(move || {
        let place = place.clone();
        async move { Arc::new(RedisBus::builder(&place).build().unwrap()) as Arc<_> }
    })
    .run()
    .await;
}

/// A process: a cache with a bus of its own.
struct Process {
    cache: Tiered<u64, String>,
    bus: Arc<RedisBus>,
    loads: Arc<AtomicU64>,
}

/// What the source has.
type Value = Arc<AtomicU64>;

impl Process {
    async fn new(port: u16, value: &Value) -> Self {
        let bus = Arc::new(RedisBus::builder(&at(port)).lease(Duration::from_millis(400)).build().unwrap());
        let loads = Arc::new(AtomicU64::new(0));
        let (value, counted) = (value.clone(), loads.clone());
        let cache = Tiered::builder()
            .keyspace("products")
            .max_capacity(1_000)
            .bus(bus.clone())
            .source(FromFn::new(move |key: u64| {
                counted.fetch_add(1, SeqCst);
                let value = value.load(SeqCst);
                async move { Ok::<_, std::io::Error>(Some(format!("{key} is {value}"))) }
            }))
            .rule("ttl-ms", Duration::from_secs(3600))
            .build()
            .unwrap();
        let process = Process { cache, bus, loads };
        process.hears(true).await;
        process
    }

    async fn hears(&self, hears: bool) {
        let waits = async {
            while self.bus.hears() != hears {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), waits).await.unwrap_or_else(|_| panic!("hears: {hears}"));
    }

    async fn get(&self) -> String {
        self.cache.get(&7).await.unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_is_cut_off_serves_nothing_that_it_missed() {
    let Some(server) = redis() else { return };
    let proxy = Proxy::to(server.port).await;
    let value = Value::default();
    let (there, here) = (Process::new(proxy.port, &value).await, Process::new(server.port, &value).await);
    for (round, wire) in [Wire::Cut, Wire::Silent, Wire::Whole, Wire::Cut].into_iter().enumerate() {
        let before = format!("7 is {round}");
        assert_eq!(there.get().await, before);
        let loads = there.loads.load(SeqCst);
        assert_eq!(there.get().await, before);
        assert_eq!(there.loads.load(SeqCst), loads, "{wire:?}: it has a copy");
        proxy.turn(wire).await;
        value.fetch_add(1, SeqCst);
        // Acknowledged, although one member may hear nothing.
        here.cache.invalidate(&7).await.unwrap();
        let after = format!("7 is {}", round + 1);
        assert_eq!(there.get().await, after, "{wire:?}: acknowledged is done, or not trusted");
        if wire != Wire::Whole {
            assert!(!there.bus.hears(), "{wire:?}");
            // One may still join the load before it; a copy that is trusted would serve them all.
            let loads = there.loads.load(SeqCst);
            for _ in 0..100 {
                assert_eq!(there.get().await, after);
            }
            assert!(there.loads.load(SeqCst) > loads, "{wire:?}: what it has is not trusted until it hears again");
            proxy.turn(Wire::Whole).await;
            there.hears(true).await;
        }
        assert_eq!(there.get().await, after, "{wire:?}: what was missed has been caught up on");
        let loads = there.loads.load(SeqCst);
        assert_eq!(there.get().await, after);
        assert_eq!(there.loads.load(SeqCst), loads, "{wire:?}: it has a copy again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_log_has_lost_is_all_dropped() {
    let Some(server) = redis() else { return };
    let proxy = Proxy::to(server.port).await;
    let value = Value::default();
    let (there, here) = (Process::new(proxy.port, &value).await, Process::new(server.port, &value).await);
    assert_eq!(there.get().await, "7 is 0");
    proxy.turn(Wire::Cut).await;
    value.fetch_add(1, SeqCst);
    here.cache.invalidate(&7).await.unwrap();
    // The record is gone before it is read.
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
    proxy.turn(Wire::Whole).await;
    there.hears(true).await;
    assert_eq!(there.get().await, "7 is 1");
    // Nobody knows the members of before: the first announcement takes a lease, and is right all the same.
    value.fetch_add(1, SeqCst);
    here.cache.invalidate(&7).await.unwrap();
    assert_eq!(there.get().await, "7 is 2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_far_tier_and_a_bus_on_one_server() {
    let Some(server) = redis() else { return };
    let mut caches = Vec::new();
    let loads = Arc::new(AtomicU64::new(0));
    for _ in 0..2 {
        let place = at(server.port);
        let counted = loads.clone();
        let cache: Tiered<String, String> = Tiered::builder()
            .keyspace("products")
            .max_capacity(100)
            .far(RedisTier::connect(&place).await.unwrap())
            .bus(Arc::new(RedisBus::builder(&place).build().unwrap()))
            .codec(Codec::raw())
            .source(FromFn::new(move |key: String| {
                let load = counted.fetch_add(1, SeqCst);
                async move { Ok::<_, std::io::Error>(Some(format!("{key} {load}"))) }
            }))
            .rule("ttl-ms", Duration::from_secs(3600))
            .build()
            .unwrap();
        caches.push(cache);
    }
    let key = "k".to_string();
    assert_eq!(caches[0].get(&key).await.unwrap().as_deref(), Some("k 0"));
    // The far tier is written after the answer.
    while caches[1].get_cached(&key).await.unwrap().is_none() {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(caches[1].get(&key).await.unwrap().as_deref(), Some("k 0"));
    caches[0].invalidate(&key).await.unwrap();
    assert_eq!(caches[1].get(&key).await.unwrap().as_deref(), Some("k 1"), "it was told");
    caches[1].invalidate_prefix("").await.unwrap();
    assert_eq!(caches[0].get(&key).await.unwrap().as_deref(), Some("k 2"), "it was told");
    assert_eq!(loads.load(SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_need_no_room() {
    let Some(server) = redis() else { return };
    let value = Value::default();
    let (there, here) = (Process::new(server.port, &value).await, Process::new(server.port, &value).await);
    assert_eq!(there.get().await, "7 is 0");
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).query_async(&mut connection).await.unwrap();
    value.fetch_add(1, SeqCst);
    here.cache.invalidate(&7).await.unwrap();
    assert_eq!(there.get().await, "7 is 1");
    // For longer than the lease that they had.
    sleep(Duration::from_millis(800)).await;
    assert!(there.bus.hears() && here.bus.hears());
    // One that begins only now.
    let late = Process::new(server.port, &value).await;
    assert_eq!(late.get().await, "7 is 1");
}
