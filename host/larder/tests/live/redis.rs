//! The tier in Redis, on servers that these tests start themselves.

use std::sync::Arc;
use std::time::Duration;

use crate::servers::Server;
use larder::tiered::testkit::TierSuite;
use larder::tiered::{Envelope, FarCopy, Group, Put, RedisServer, RedisTier, Scope, Tier, TierError};
use tokio::time::sleep;

/// A server that keeps nothing on disk, with further options.
fn redis(options: &'static [&'static str]) -> Option<Server> {
    let program = crate::servers::or_skip("redis-server", "redis-server")?;
    Some(Server::start(&program, |command, port, directory| {
        command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"]).arg(directory);
        command.args(options);
    }))
}

fn at(server: &Server) -> RedisServer {
    RedisServer::at(&format!("redis://127.0.0.1:{}", server.port)).unwrap()
}

async fn raw(server: &Server) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

fn copy(value: &str) -> FarCopy {
    FarCopy {
        value: Some(value.to_owned().into()),
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

async fn set(tier: &RedisTier, key: &str, value: &str) {
    let token = tier.token(key).await.unwrap();
    assert_eq!(tier.put(key, copy(value), token, false).await.unwrap(), Put::Kept);
}

async fn value(tier: &RedisTier, key: &str) -> Option<String> {
    let looked = tier.get(key).await.unwrap();
    looked.copy.map(|copy| String::from_utf8(copy.value.unwrap().to_vec()).unwrap())
}

fn keys(key: &str) -> Scope {
    Scope::Keys(vec![key.into()])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_on_one_server() {
    let Some(server) = redis(&[]) else { return };
    let place = at(&server);
    let connection = raw(&server).await;
    TierSuite::new(move || {
        let place = place.clone();
        async move { Arc::new(RedisTier::builder(&place).max_value_bytes(100_000).connect().await.unwrap()) as Arc<_> }
    })
    .too_large(100_001)
    .scribble(move |key, bytes| {
        let mut connection = connection.clone();
        async move {
            let name = format!("{{larder:0}}e:{key}");
            let _: () = redis::cmd("SET").arg(name).arg(bytes).query_async(&mut connection).await.unwrap();
        }
    })
    .run()
    .await;
}

/// What has not changed is given new terms, and its value stays where it is: so the server counts.
#[tokio::test]
async fn a_value_that_is_renewed_is_not_moved() {
    let Some(server) = redis(&[]) else { return };
    let (tier, mut connection) = (RedisTier::connect(&at(&server)).await.unwrap(), raw(&server).await);
    let moved = async |connection: &mut redis::aio::MultiplexedConnection| -> u64 {
        let info: redis::InfoDict = redis::cmd("INFO").arg("stats").query_async(connection).await.unwrap();
        info.get::<u64>("total_net_input_bytes").unwrap() + info.get::<u64>("total_net_output_bytes").unwrap()
    };
    let old = FarCopy { validator: Some("v1".into()), fresh_ms: 1_000, ..copy(&"x".repeat(100_000)) };
    let token = tier.token("k").await.unwrap();
    assert_eq!(tier.put("k", old.clone(), token, false).await.unwrap(), Put::Kept);
    let terms = FarCopy { value: None, fresh_ms: 600_000, ..old.clone() };
    // Once with the text of the script.
    for _ in 0..2 {
        assert_eq!(tier.renew("k", terms.clone(), token).await.unwrap(), Some(Put::Kept));
    }
    let before = moved(&mut connection).await;
    assert_eq!(tier.renew("k", terms, token).await.unwrap(), Some(Put::Kept));
    let moved = moved(&mut connection).await - before;
    assert!(moved < 20_000, "{moved} bytes, of which a few thousand are the server's answer to us");
    let renewed = tier.get("k").await.unwrap().copy.unwrap();
    assert_eq!(renewed.value, old.value);
    assert!(renewed.fresh_ms > 500_000, "{renewed:?}");
    let lives: u64 = redis::cmd("PTTL").arg("{larder:0}e:k").query_async(&mut connection).await.unwrap();
    assert!(lives > 500_000, "and Redis has it for as long: {lives}");
}

/// Numbers in an envelope take as many bytes as they need, and the server has to find its way among them, too.
#[tokio::test]
async fn windows_of_any_length_are_renewed_and_ended_where_they_lie() {
    const FOREVER: u64 = FarCopy::FOREVER;
    let Some(server) = redis(&[]) else { return };
    let (tier, mut connection) = (RedisTier::connect(&at(&server)).await.unwrap(), raw(&server).await);
    let text = "v".repeat(200);
    let windows =
        [(600_000, 0, 1), (126, 127, 600_000), (FOREVER, 600_000, 0), (600_000, FOREVER, 128), (1, 0, FOREVER)];
    for (at, (fresh_ms, stale_ms, rescue_ms)) in windows.into_iter().enumerate() {
        let key = format!("k{at}");
        let terms = FarCopy { validator: Some("v1".into()), fresh_ms, stale_ms, rescue_ms, ..copy(&text) };
        let token = tier.token(&key).await.unwrap();
        assert_eq!(tier.put(&key, terms.clone(), token, false).await.unwrap(), Put::Kept);
        // Each of the others in turn, and these again.
        for (fresh_ms, stale_ms, rescue_ms) in windows.into_iter().chain([windows[at]]) {
            let terms = FarCopy { value: None, cost_us: stale_ms, fresh_ms, stale_ms, rescue_ms, ..terms.clone() };
            assert_eq!(tier.renew(&key, terms, token).await.unwrap(), Some(Put::Kept));
        }
        assert_eq!(value(&tier, &key).await.as_deref(), Some(&*text));

        tier.invalidate(&keys(&key), true).await.unwrap();
        let ended = tier.get(&key).await.unwrap();
        let left = stale_ms.max(rescue_ms);
        // Where only some milliseconds were left, they may be over.
        if let Some(copy) = ended.copy {
            assert_eq!((copy.fresh_ms, copy.value.as_deref()), (0, Some(text.as_bytes())));
            assert!(copy.stale_ms <= stale_ms && copy.rescue_ms <= rescue_ms && !ended.damaged, "{copy:?}");
        } else {
            assert!(left < 1_000 && !ended.damaged, "{at}");
        }
        let lives: i64 =
            redis::cmd("PTTL").arg(format!("{{larder:0}}e:{key}")).query_async(&mut connection).await.unwrap();
        match left {
            FOREVER => assert_eq!(lives, -1, "{at}"),
            600_000 => assert!((500_000..=600_000).contains(&lives), "{at}: {lives}"),
            _ => assert!(lives < 1_000, "{at}: {lives}"),
        }
    }
}

/// Who misses is asked for tokens along with the copies; who finds all is not, until one is missing.
#[tokio::test]
async fn many_keys_are_one_round_trip() {
    let Some(server) = redis(&[]) else { return };
    let (tier, mut connection) = (RedisTier::connect(&at(&server)).await.unwrap(), raw(&server).await);
    let asked = async |connection: &mut redis::aio::MultiplexedConnection| -> u64 {
        let stats: String = redis::cmd("INFO").arg("commandstats").query_async(connection).await.unwrap();
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_hmget:calls=")).unwrap();
        line.split(',').next().unwrap().parse().unwrap()
    };
    let keys: Vec<Arc<str>> = (0..50).map(|key| format!("k{key}").into()).collect();
    let (all, but_one) = (&keys[..], &keys[1..]);
    for key in but_one {
        set(&tier, key, "value").await;
    }
    // A bucket's counters are asked for with the copies; and once more for tokens that were left out and are needed.
    for (keys, round_trips, with_tokens) in
        [(all, 1, 50), (all, 1, 50), (but_one, 1, 49), (but_one, 1, 0), (all, 2, 1), (all, 1, 50)]
    {
        let before = asked(&mut connection).await;
        let names: Vec<&str> = keys.iter().map(|key| &**key).collect();
        let looked = tier.get_many(&names).await.unwrap();
        assert_eq!(asked(&mut connection).await - before, round_trips);
        assert_eq!(looked.iter().filter(|looked| looked.token.is_some()).count(), with_tokens);
        for (key, looked) in keys.iter().zip(&looked).filter(|(_, looked)| looked.copy.is_none()) {
            assert_eq!(looked.token.unwrap(), tier.token(key).await.unwrap());
        }
    }
}

/// The server's clock is asked for now and then, and counted on from there.
#[tokio::test]
async fn the_time_is_not_asked_with_each_read() {
    let Some(server) = redis(&[]) else { return };
    let (tier, mut connection) = (RedisTier::connect(&at(&server)).await.unwrap(), raw(&server).await);
    let mut copy = copy("value");
    (copy.fresh_ms, copy.stale_ms, copy.rescue_ms) = (60_000, 60_000, 0);
    let token = tier.token("k").await.unwrap();
    assert_eq!(tier.put("k", copy, token, true).await.unwrap(), Put::Kept);
    let began = std::time::Instant::now();
    let mut ages = Vec::new();
    for _ in 0..200 {
        let copy = tier.get("k").await.unwrap().copy.unwrap();
        assert!(copy.fresh_ms + copy.age_ms <= 60_000 + began.elapsed().as_millis() as u64);
        ages.push(copy.age_ms);
        sleep(Duration::from_millis(1)).await;
    }
    let most = began.elapsed().as_millis() as u64 / 100 + 1;
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_time:calls=")).unwrap();
    let asked: u64 = line.split(',').next().unwrap().parse().unwrap();
    // Scripts ask, too: the one that began, that of the token and that of the value.
    assert!(asked <= most + 3, "{asked} times in {most} tenths of a second");
    assert!(ages.last().unwrap() >= &150, "it ages: {ages:?}");
    // What was ended is not fresh, to who has counted on as to who asks.
    tier.invalidate(&keys("k"), true).await.unwrap();
    let ended = tier.get("k").await.unwrap().copy.unwrap();
    assert_eq!(ended.fresh_ms, 0);
}

/// A bucket's counters and its entries go together, whoever takes them away.
#[tokio::test]
async fn what_a_server_forgets_revives_nothing() {
    let Some(server) = redis(&[]) else { return };
    let (tier, other) =
        (RedisTier::connect(&at(&server)).await.unwrap(), RedisTier::connect(&at(&server)).await.unwrap());
    let mut connection = raw(&server).await;
    for forget in [&["FLUSHALL"][..], &["UNLINK", "{larder:0}c"]] {
        set(&tier, "k", "old").await;
        let token = tier.get("k").await.unwrap().token.unwrap();
        let _: redis::Value = redis::cmd(forget[0]).arg(&forget[1..]).query_async(&mut connection).await.unwrap();
        // Invalidated while there are no counters.
        other.invalidate(&keys("k"), false).await.unwrap();
        other.invalidate(&Scope::Group(Group::Tag("t".into())), false).await.unwrap();
        assert_eq!(tier.put("k", copy("late"), token, false).await.unwrap(), Put::Fenced);
        assert_eq!(value(&other, "k").await, None, "a copy of another epoch is absent");
        assert_eq!(tier.put("k", copy("late"), token, false).await.unwrap(), Put::Fenced);
        set(&other, "k", "new").await;
        assert_eq!(value(&tier, "k").await.as_deref(), Some("new"));
    }
}

/// Nothing more is kept where the memory is full; what is there can be taken away, and nobody gets what was.
#[tokio::test]
async fn a_full_memory_holds_no_invalidation_up() {
    let Some(server) = redis(&[]) else { return };
    let (tier, mut connection) = (RedisTier::connect(&at(&server)).await.unwrap(), raw(&server).await);
    let group = |group| Scope::Group(group);
    for (key, scope, soft) in [
        ("hard", keys("hard"), false),
        ("soft", keys("soft"), true),
        ("prefix", group(Group::Prefix("pre".into())), false),
        ("tag", group(Group::Tag("t".into())), true),
    ] {
        let stale = FarCopy { stale_ms: 600_000, ..copy("old") };
        let token = tier.token(key).await.unwrap();
        assert_eq!(tier.put(key, stale, token, false).await.unwrap(), Put::Kept);
        let _: () = redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).query_async(&mut connection).await.unwrap();
        assert!(matches!(tier.put("more", copy("more"), token, false).await, Err(TierError::Refused(_))));
        tier.invalidate(&scope, soft).await.unwrap();
        // Another process, that begins now, sees it as well.
        let other = RedisTier::connect(&at(&server)).await.unwrap();
        for tier in [&tier, &other] {
            let fresh = tier.get(key).await.unwrap().copy.map(|copy| copy.fresh_ms);
            assert_eq!(fresh, soft.then_some(0), "{key}");
        }
        let _: () = redis::cmd("CONFIG").arg(&["SET", "maxmemory", "0"]).query_async(&mut connection).await.unwrap();
        assert_eq!(tier.put(key, copy("late"), token, false).await.unwrap(), Put::Fenced, "{key}");
    }
    // A write that is not to be kept takes away what is there.
    set(&tier, "large", "old").await;
    let small = RedisTier::builder(&at(&server)).max_value_bytes(10).connect().await.unwrap();
    let token = small.token("large").await.unwrap();
    let _: () = redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).query_async(&mut connection).await.unwrap();
    assert_eq!(small.put("large", copy("more than ten bytes"), token, true).await.unwrap(), Put::Declined);
    assert_eq!(value(&tier, "large").await, None);
}

/// A server that comes back with a snapshot brings back copies that were invalidated after it.
#[tokio::test]
async fn a_server_that_comes_back_with_an_old_state_revives_nothing() {
    let Some(server) = redis(&[]) else { return };
    let program = crate::servers::or_skip("redis-server", "redis-server").unwrap();
    let (tier, other) =
        (RedisTier::connect(&at(&server)).await.unwrap(), RedisTier::connect(&at(&server)).await.unwrap());
    set(&tier, "invalidated", "old").await;
    set(&tier, "kept", "right").await;
    let token = tier.token("late").await.unwrap();
    let mut connection = raw(&server).await;
    let _: () = redis::cmd("SAVE").query_async(&mut connection).await.unwrap();
    tier.invalidate(&keys("invalidated"), false).await.unwrap();
    tier.invalidate(&keys("late"), false).await.unwrap();
    let (directory, port) = server.kill();
    let server = Server::start_in(directory, port, &program, |command, port, directory| {
        command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"]).arg(directory);
    });
    let mut connection = raw(&server).await;
    let there: bool = redis::cmd("EXISTS").arg("{larder:0}e:invalidated").query_async(&mut connection).await.unwrap();
    assert!(there, "the server has brought it back: otherwise this tests nothing");
    // A tier whose connection broke says so once or a few times, and goes on by itself.
    let mut late = Err(larder::tiered::TierError::TimedOut);
    for _ in 0..500 {
        late = other.put("late", copy("late"), token, false).await;
        if late.is_ok() {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    // Whether it lands in what is about to be thrown away does not matter: nobody gets it.
    late.unwrap();
    for tier in [&tier, &other] {
        let mut looked = tier.get("invalidated").await;
        for _ in 0..500 {
            if looked.is_ok() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
            looked = tier.get("invalidated").await;
        }
        assert_eq!(looked.unwrap().copy, None);
        assert_eq!(value(tier, "late").await, None);
        assert_eq!(value(tier, "kept").await, None, "nobody knows what had happened to it");
    }
    set(&tier, "kept", "again").await;
    assert_eq!(value(&other, "kept").await.as_deref(), Some("again"));
}

#[tokio::test]
async fn a_connection_that_is_cut_is_made_again() {
    let Some(server) = redis(&[]) else { return };
    let tier = RedisTier::connect(&at(&server)).await.unwrap();
    set(&tier, "k", "v").await;
    let mut connection = raw(&server).await;
    let _: i64 = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("normal")
        .arg("SKIPME")
        .arg("yes")
        .query_async(&mut connection)
        .await
        .unwrap();
    let mut failures = 0;
    while tier.get("k").await.is_err() {
        failures += 1;
        assert!(failures < 500);
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(value(&tier, "k").await.as_deref(), Some("v"), "the server had not restarted: the copy is there");
}

#[tokio::test]
async fn operators_see_keys_and_groups() {
    let Some(server) = redis(&[]) else { return };
    let tier = RedisTier::connect(&at(&server)).await.unwrap();
    for at in 0..300 {
        set(&tier, &format!("shop:{at}"), "v").await;
    }
    set(&tier, "shop*:x", "v").await;
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = tier.keys("shop:", cursor.as_deref(), 50).await.unwrap();
        found.extend(page.keys);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 300);
    assert_eq!(tier.keys("shop*:", None, 10_000).await.unwrap().keys, vec![Arc::from("shop*:x")]);
    assert!(tier.keys("", Some("nonsense"), 10).await.is_err());
    tier.invalidate(&Scope::Group(Group::Tag("red".into())), false).await.unwrap();
    tier.invalidate(&Scope::Group(Group::Prefix("".into())), true).await.unwrap();
    let mut groups = tier.groups().await.unwrap();
    groups.sort_by_key(|version| version.hard.max(version.soft));
    let seen: Vec<_> = groups.iter().map(|version| (&version.group, version.hard, version.soft)).collect();
    assert_eq!(seen, [(&Group::Tag("red".into()), 1, 0), (&Group::Prefix("".into()), 0, 2)]);
}

async fn run(connection: &mut redis::aio::MultiplexedConnection, words: &[&str]) -> redis::Value {
    redis::cmd(words[0]).arg(&words[1..]).query_async(connection).await.unwrap()
}

/// Whoever wrote a list, say, under the name of an entry.
#[tokio::test]
async fn a_key_of_another_kind_is_absent_and_replaced() {
    let Some(server) = redis(&[]) else { return };
    let (tier, mut connection) = (RedisTier::connect(&at(&server)).await.unwrap(), raw(&server).await);
    let spoil = async |connection: &mut redis::aio::MultiplexedConnection| {
        run(connection, &["DEL", "{larder:0}e:k"]).await;
        run(connection, &["HSET", "{larder:0}e:k", "a", "b"]).await;
    };
    let type_of = async |connection: &mut redis::aio::MultiplexedConnection| {
        redis::from_redis_value::<String>(run(connection, &["TYPE", "{larder:0}e:k"]).await).unwrap()
    };
    for write in [false, true] {
        spoil(&mut connection).await;
        let looked = tier.get("k").await.unwrap();
        assert!(looked.copy.is_none() && looked.damaged);
        let many = tier.get_many(&["k", "other"]).await.unwrap();
        assert!(many.iter().all(|looked| looked.copy.is_none()));
        let validated = FarCopy { validator: Some("v".into()), value: None, ..copy("") };
        assert_eq!(tier.renew("k", validated, looked.token.unwrap()).await.unwrap(), None);
        assert_eq!(tier.put("k", copy("new"), looked.token.unwrap(), write).await.unwrap(), Put::Kept);
        assert_eq!(value(&tier, "k").await.as_deref(), Some("new"));
    }
    for soft in [false, true] {
        spoil(&mut connection).await;
        tier.invalidate(&keys("k"), soft).await.unwrap();
        assert_eq!(type_of(&mut connection).await, "none");
    }
}

#[tokio::test]
async fn counters_that_are_none_are_named_with_the_remedy() {
    let Some(server) = redis(&[]) else { return };
    let (tier, mut connection) = (RedisTier::connect(&at(&server)).await.unwrap(), raw(&server).await);
    for wrong in [
        &["SET", "{larder:0}c", "somebody else's"][..],
        &["HSET", "{larder:0}c", "epoch", "banana"],
        &["HSET", "{larder:0}c", "n", "banana"],
    ] {
        set(&tier, "k", "value").await;
        let token = tier.token("k").await.unwrap();
        run(&mut connection, wrong).await;
        let (tag, keys) = (Scope::Group(Group::Tag("t".into())), keys("k"));
        let mut errors = vec![tier.get("k").await.unwrap_err(), tier.token("k").await.unwrap_err()];
        errors.extend(tier.get_many(&["k", "l"]).await.err());
        errors.extend(tier.put("k", copy("new"), token, true).await.err());
        errors.extend(tier.invalidate(&tag, false).await.err());
        errors.extend(tier.invalidate(&keys, false).await.err());
        assert!(errors.len() >= 3);
        for error in errors {
            let text = error.to_string();
            assert!(matches!(&error, TierError::Refused(refusal) if refusal.is_outage), "{wrong:?}: {text}");
            assert!(text.contains("DEL '{larder:0}c'") && !text.contains("cannot be reached"), "{wrong:?}: {text}");
        }
        run(&mut connection, &["DEL", "{larder:0}c"]).await;
        assert_eq!(value(&tier, "k").await, None, "the remedy is one");
    }
}

#[tokio::test]
async fn what_a_later_version_wrote_is_left_alone_by_fills() {
    let Some(server) = redis(&[]) else { return };
    let (tier, mut connection) = (RedisTier::connect(&at(&server)).await.unwrap(), raw(&server).await);
    let mut newer = Envelope::new(copy("newer"), 0).encode();
    newer[4] += 1;
    let is_there = async |connection: &mut redis::aio::MultiplexedConnection| {
        let there = redis::cmd("GET").arg("{larder:0}e:k").query_async::<Vec<u8>>(connection).await.unwrap();
        there == newer
    };
    let write = async |connection: &mut redis::aio::MultiplexedConnection| {
        redis::cmd("SET").arg("{larder:0}e:k").arg(&newer[..]).query_async::<()>(connection).await.unwrap();
    };
    write(&mut connection).await;
    let looked = tier.get("k").await.unwrap();
    assert!(looked.copy.is_none() && !looked.damaged);
    assert_eq!(tier.newer(), 1);
    let token = looked.token.unwrap();
    for copy in [copy("old"), FarCopy { fresh_ms: 0, ..copy("old") }] {
        assert_eq!(tier.put("k", copy, token, false).await.unwrap(), Put::Fenced);
        assert!(is_there(&mut connection).await);
    }
    // What is written may not be lost.
    assert_eq!(tier.put("k", copy("written"), token, true).await.unwrap(), Put::Kept);
    assert_eq!(value(&tier, "k").await.as_deref(), Some("written"));
    for soft in [false, true] {
        write(&mut connection).await;
        tier.invalidate(&keys("k"), soft).await.unwrap();
        assert!(!is_there(&mut connection).await);
        set(&tier, "k", "filled").await;
    }
}

/// A server that says no says it to whoever reads the error, with what is to be done.
#[tokio::test]
async fn what_a_server_refuses_is_told_with_the_remedy() {
    let said = |error: &dyn std::fmt::Display, words: &[&str]| {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
        assert!(text.contains("refuses") && !text.contains("cannot be reached") && !text.contains("sesame"), "{text}");
    };
    let Some(server) = redis(&["--requirepass", "sesame"]) else { return };
    said(&RedisTier::connect(&at(&server)).await.unwrap_err(), &["NOAUTH", "set the password"]);
    let wrong = at(&server).credentials(None, "not sesame");
    said(&RedisTier::connect(&wrong).await.unwrap_err(), &["user and the password", &server.port.to_string()]);

    let right = at(&server).credentials(None, "sesame");
    let tier = RedisTier::connect(&right).await.unwrap();
    let client = redis::Client::open(format!("redis://:sesame@127.0.0.1:{}", server.port)).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let refused =
        |error: &TierError, outage: bool| matches!(error, TierError::Refused(told) if told.is_outage == outage);
    set(&tier, "k", "value").await;

    // Reads are answered while the memory is full, so that it is no outage.
    run(&mut connection, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let token = tier.token("k").await.unwrap();
    let error = tier.put("k", copy("more"), token, false).await.unwrap_err();
    said(&error, &["OOM", "maxmemory"]);
    assert!(refused(&error, false));
    assert_eq!(value(&tier, "k").await.as_deref(), Some("value"));
    run(&mut connection, &["CONFIG", "SET", "maxmemory", "0"]).await;

    run(&mut connection, &["ACL", "SETUSER", "app", "on", ">sesame", "~*", "+@all", "-hmget"]).await;
    let error = RedisTier::connect(&at(&server).credentials(Some("app"), "sesame")).await.unwrap_err();
    said(&error, &["can't run this command", "ACL LOG"]);

    run(&mut connection, &["REPLICAOF", "127.0.0.1", "1"]).await;
    let error = tier.invalidate(&keys("k"), false).await.unwrap_err();
    said(&error, &["read only replica", "set the address of its primary"]);
    assert!(refused(&error, true));
}

#[tokio::test]
async fn what_is_set_up_wrong_says_so() {
    let error = RedisServer::at("localhost:6379").unwrap_err().to_string();
    assert!(error.contains("redis://host:port"), "{error}");
    let nowhere = RedisServer::at("redis://user:secret@127.0.0.1:1").unwrap().timeout(Duration::from_millis(500));
    let error = RedisTier::connect(&nowhere).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1") && !error.contains("secret"), "{error}");
    let error = RedisTier::builder(&nowhere).prefix("a{b").build().unwrap_err().to_string();
    assert!(error.contains("leave it out"), "{error}");
    assert!(RedisTier::builder(&nowhere).buckets(0).build().is_err());
    assert!(RedisServer::cluster([]).is_err());
}
