//! The tier in Memcached, on a server that these tests start themselves.

use std::sync::Arc;

use crate::servers::Server;
use async_memcached::{AsciiProtocol, Client, MetaProtocol};
use larder::tiered::testkit::TierSuite;
use larder::tiered::{FarCopy, Group, MemcachedTier, Put, Scope, Tier};

fn memcached() -> Option<Server> {
    let program = crate::servers::or_skip("memcached", "memcached")?;
    Some(Server::start(&program, |command, port, _| {
        // As root it wants to be told who to be.
        command.args(["-l", "127.0.0.1", "-u", "root", "-p", &port.to_string()]);
    }))
}

fn at(server: &Server) -> String {
    format!("127.0.0.1:{}", server.port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite() {
    let Some(server) = memcached() else { return };
    let (place, scribbled) = (at(&server), at(&server));
    TierSuite::new(move || {
        let place = place.clone();
        async move {
            let tier = MemcachedTier::builder(&place).max_value_bytes(100_000).connect().await.unwrap();
            Arc::new(tier) as Arc<_>
        }
    })
    .too_large(100_001)
    .scribble(move |key, bytes| {
        let place = scribbled.clone();
        async move {
            let mut client = Client::new(format!("tcp://{place}")).await.unwrap();
            client.meta_set(format!("larder:e:{key}"), bytes.as_slice(), false, None, None).await.unwrap();
        }
    })
    .run()
    .await;
}

fn copy(value: Vec<u8>) -> FarCopy {
    FarCopy {
        value: Some(value.to_vec().into()),
        validator: None,
        tags: ["t".into()].into(),
        age_ms: 0,
        fresh_ms: 600_000,
        stale_ms: 0,
        rescue_ms: 0,
        early_us: 0,
        cost_us: 0,
    }
}

#[tokio::test]
async fn what_a_server_forgets_revives_nothing() {
    let Some(server) = memcached() else { return };
    let (tier, other) =
        (MemcachedTier::connect(&at(&server)).await.unwrap(), MemcachedTier::connect(&at(&server)).await.unwrap());
    let mut client = Client::new(format!("tcp://{}", at(&server))).await.unwrap();
    for lost in [&["larder:c"][..], &["larder:t"], &["larder:t", "larder:c"], &["larder:e:k"], &[]] {
        let token = tier.token("k").await.unwrap();
        assert_eq!(tier.put("k", copy(b"old".to_vec()), token, false).await.unwrap(), Put::Kept);
        let token = tier.get("k").await.unwrap().token.unwrap();
        if lost.is_empty() {
            client.flush_all().await.unwrap();
        }
        for name in lost {
            drop(client.delete(name).await);
        }
        other.invalidate(&Scope::Group(Group::Tag("t".into())), false).await.unwrap();
        assert_eq!(tier.get("k").await.unwrap().copy, None, "{lost:?}");
        let put = tier.put("k", copy(b"late".to_vec()), token, false).await.unwrap();
        assert_eq!(put, Put::Fenced, "{lost:?}");
        assert_eq!(other.get("k").await.unwrap().copy, None, "{lost:?}");
    }
}

#[tokio::test]
async fn what_is_too_large_for_the_server_is_declined() {
    let Some(server) = memcached() else { return };
    let tier = MemcachedTier::builder(&at(&server)).max_value_bytes(10 << 20).connect().await.unwrap();
    let token = tier.token("k").await.unwrap();
    assert_eq!(tier.put("k", copy(vec![1; 2 << 20]), token, false).await.unwrap(), Put::Declined);
    assert_eq!(tier.get("k").await.unwrap().copy, None);
}

#[tokio::test]
async fn what_is_set_up_wrong_says_so() {
    let error = MemcachedTier::connect("127.0.0.1:1").await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1") && error.contains("host:port"), "{error}");
    assert!(MemcachedTier::builder("localhost").prefix("a b").build().is_err());
}
