//! The tier in a Redis Cluster of three masters, which these tests start themselves.

use std::sync::Arc;
use std::time::Duration;

use crate::servers::Server;
use larder::tiered::testkit::{BusSuite, TierSuite};
use larder::tiered::{FarCopy, Put, RedisBus, RedisServer, RedisTier, Scope, Tier};
use redis::Value;
use tokio::time::sleep;

struct Cluster {
    nodes: Vec<Server>,
    bus_ports: Vec<u16>,
}

fn node(command: &mut std::process::Command, port: u16, bus_port: u16, directory: &std::path::Path) {
    command.args(["--bind", "127.0.0.1", "--save", "", "--cluster-enabled", "yes", "--port", &port.to_string()]);
    command.args(["--cluster-port", &bus_port.to_string(), "--cluster-node-timeout", "2000", "--dir"]).arg(directory);
}

async fn ask(port: u16, command: &str) -> Value {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut words = command.split(' ');
    let mut sent = redis::cmd(words.next().unwrap());
    words.for_each(|word| drop(sent.arg(word).clone()));
    sent.query_async(&mut connection).await.unwrap()
}

impl Cluster {
    async fn start() -> Option<Self> {
        let program = crate::servers::or_skip("redis-server", "redis-server")?;
        let bus_ports: Vec<_> = (0..3).map(|_| crate::servers::free_port()).collect();
        let start = |bus_port: &u16| Server::start(&program, |command, port, at| node(command, port, *bus_port, at));
        let nodes: Vec<_> = bus_ports.iter().map(start).collect();
        let cluster = Cluster { nodes, bus_ports };
        let slots = [(0, 5_460), (5_461, 10_922), (10_923, 16_383)];
        for (node, (from, to)) in cluster.nodes.iter().zip(slots) {
            ask(node.port, &format!("CLUSTER ADDSLOTSRANGE {from} {to}")).await;
        }
        for (node, bus_port) in cluster.nodes.iter().zip(&cluster.bus_ports).skip(1) {
            ask(cluster.nodes[0].port, &format!("CLUSTER MEET 127.0.0.1 {} {bus_port}", node.port)).await;
        }
        cluster.is_well().await;
        Some(cluster)
    }

    async fn is_well(&self) {
        for node in &self.nodes {
            for attempt in 0.. {
                let info = redis::from_redis_value::<String>(ask(node.port, "CLUSTER INFO").await).unwrap();
                if info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3") {
                    break;
                }
                assert!(attempt < 1_000, "the Cluster does not come together:\n{info}");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn place(&self) -> RedisServer {
        let urls: Vec<_> = self.nodes.iter().map(|node| format!("redis://127.0.0.1:{}", node.port)).collect();
        RedisServer::cluster(urls.iter().map(String::as_str)).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suites_on_a_cluster() {
    let Some(cluster) = Cluster::start().await else { return };
    let place = cluster.place();
    TierSuite::new(move || {
        let place = place.clone();
        async move { Arc::new(RedisTier::builder(&place).max_value_bytes(100_000).connect().await.unwrap()) as Arc<_> }
    })
    .too_large(100_001)
    .run()
    .await;
    let mut used = 0;
    for node in &cluster.nodes {
        used += usize::from(!matches!(ask(node.port, "DBSIZE").await, Value::Int(0)));
    }
    assert_eq!(used, 3, "keys lie on all masters");
    let place = cluster.place();
    BusSuite::new(move || {
        let place = place.clone();
        async move { Arc::new(RedisBus::builder(&place).build().unwrap()) as Arc<_> }
    })
    .run()
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_comes_back_revives_nothing() {
    let Some(mut cluster) = Cluster::start().await else { return };
    let program = crate::servers::or_skip("redis-server", "redis-server").unwrap();
    let tier = RedisTier::connect(&cluster.place()).await.unwrap();
    let keys: Vec<Arc<str>> = (0..60).map(|at| format!("key {at}").into()).collect();
    let copy = FarCopy {
        value: Some("old".into()),
        validator: None,
        tags: [].into(),
        age_ms: 0,
        fresh_ms: 600_000,
        stale_ms: 0,
        rescue_ms: 0,
        early_us: 0,
        cost_us: 0,
    };
    for key in &keys {
        let token = tier.token(key).await.unwrap();
        assert_eq!(tier.put(key, copy.clone(), token, false).await.unwrap(), Put::Kept);
    }
    ask(cluster.nodes[0].port, "SAVE").await;
    tier.invalidate(&Scope::Keys(keys.clone()), false).await.unwrap();
    let (directory, port) = cluster.nodes.remove(0).kill();
    let bus_port = cluster.bus_ports[0];
    let back = Server::start_in(directory, port, &program, |command, port, at| node(command, port, bus_port, at));
    cluster.nodes.insert(0, back);
    cluster.is_well().await;
    assert!(!matches!(ask(port, "DBSIZE").await, Value::Int(0)), "it has brought copies back: else this tests nothing");
    let names: Vec<&str> = keys.iter().map(|key| &**key).collect();
    let mut answered = 0;
    for attempt in 0.. {
        match tier.get_many(&names).await {
            Ok(looked) => {
                assert!(looked.iter().all(|looked| looked.copy.is_none()), "what was invalidated stays away");
                answered += 1;
                if answered == 20 {
                    break;
                }
            }
            Err(error) => assert!(attempt < 1_000, "it does not come back: {error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
    for key in &keys {
        let token = tier.token(key).await.unwrap();
        assert_eq!(tier.put(key, copy.clone(), token, false).await.unwrap(), Put::Kept);
        assert!(tier.get(key).await.unwrap().copy.is_some());
    }
}
