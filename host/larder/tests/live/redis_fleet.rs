//! Processes over one Redis: real ones, which this test binary starts of itself, and a Redis that is killed under load.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crate::servers::Server;
use larder::tiered::{Codec, FromFn, RedisServer, RedisTier, Tiered};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;
use tokio::time::sleep;

fn redis() -> Option<Server> {
    let program = crate::servers::or_skip("redis-server", "redis-server")?;
    Some(Server::start(&program, redis_on))
}

fn redis_on(command: &mut Command, port: u16, directory: &std::path::Path) {
    command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"]).arg(directory);
}

async fn raw(port: u16) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

const READERS: usize = 2_500;
/// Where the port of Redis is told to a process that this test starts.
const PORT: &str = "LARDER_TEST_REDIS_PORT";
const TTL: Duration = Duration::from_millis(300);

/// A cache whose source counts its loads in Redis, says who loads, and takes as long as `slow` there says.
async fn process(port: u16) -> Tiered<String, String> {
    let connection = raw(port).await;
    let server = RedisServer::at(&format!("redis://127.0.0.1:{port}")).unwrap();
    Tiered::builder()
        .keyspace("fleet")
        .max_capacity(100)
        .far(RedisTier::connect(&server).await.unwrap())
        .codec(Codec::raw())
        .source(FromFn::new(move |key: String| {
            let mut connection = connection.clone();
            async move {
                let load: u64 = connection.incr("loads", 1).await?;
                let () = connection.set("leader", std::process::id()).await?;
                let slow: u64 = connection.get("slow").await?;
                sleep(Duration::from_millis(slow)).await;
                Ok::<_, redis::RedisError>(Some(format!("{key} {load}")))
            }
        }))
        .rule("ttl-ms", TTL)
        .rule("flight", "fleet")
        .tier_timeout(Duration::from_secs(20))
        .build()
        .unwrap()
}

/// What a process does that the tests below start: it reads once for each line, by many readers at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the tests below start it, each in a process of its own"]
async fn child() {
    let port = std::env::var(PORT).expect("started by the tests below").parse().unwrap();
    let cache = process(port).await;
    println!("\nready");
    for line in std::io::stdin().lines() {
        let key = line.unwrap();
        let mut reading = JoinSet::new();
        for _ in 0..READERS {
            let (cache, key) = (cache.clone(), key.clone());
            reading.spawn(async move { cache.get(&key).await });
        }
        let mut values: Vec<_> = reading.join_all().await.into_iter().map(|value| format!("{value:?}")).collect();
        values.sort();
        values.dedup();
        println!("\nread {}", values.join(" and "));
    }
}

struct Started {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Started {
    fn new(port: u16) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        command
            .args(["--exact", "redis_fleet::child", "--ignored", "--nocapture", "--test-threads", "1"])
            .env(PORT, port.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut started = Started { child, output };
        assert_eq!(started.line("ready").as_deref(), Some("ready"));
        started
    }

    fn read(&mut self, key: &str) {
        writeln!(self.child.stdin.as_ref().unwrap(), "{key}").unwrap();
    }

    /// The next line that begins so; none if the process is gone.
    fn line(&mut self, with: &str) -> Option<String> {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            if line.starts_with(with) {
                return Some(line.trim_end().into());
            }
            line.clear();
        }
        None
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_readers_in_four_processes_are_one_load_and_two_if_the_leader_is_killed() {
    let Some(server) = redis() else { return };
    let mut connection = raw(server.port).await;
    let mut started: Vec<_> = (0..4).map(|_| Started::new(server.port)).collect();
    let () = connection.set("slow", 0).await.unwrap();
    for (round, key) in ["first", "second"].into_iter().enumerate() {
        // A copy of it, which then expires.
        started[round].read(key);
        started[round].line("read").unwrap();
        sleep(TTL * 2).await;
        let () = connection.set("slow", 300).await.unwrap();
        let () = connection.del("loads").await.unwrap();
        started.iter_mut().for_each(|process| process.read(key));
        for process in &mut started {
            assert_eq!(process.line("read").unwrap(), format!("read Ok(Some(\"{key} 1\"))"));
        }
        let loads: u64 = connection.get("loads").await.unwrap();
        assert_eq!(loads, 1, "{} readers of an expired key", 4 * READERS);
        let () = connection.set("slow", 0).await.unwrap();
    }
    let () = connection.del("loads").await.unwrap();
    let () = connection.del("leader").await.unwrap();
    // Longer than all that follows: the one that is killed must not end its load before.
    let () = connection.set("slow", 600_000).await.unwrap();
    started.iter_mut().for_each(|process| process.read("third"));
    let leader = loop {
        let leader: Option<u32> = connection.get("leader").await.unwrap();
        match leader {
            Some(leader) => break leader,
            None => sleep(Duration::from_millis(5)).await,
        }
    };
    sleep(Duration::from_millis(200)).await;
    let () = connection.set("slow", 0).await.unwrap();
    let at = started.iter().position(|process| process.child.id() == leader).expect("one of them leads");
    drop(started.remove(at));
    for process in &mut started {
        assert_eq!(process.line("read").unwrap(), "read Ok(Some(\"third 2\"))");
    }
    let loads: u64 = connection.get("loads").await.unwrap();
    assert_eq!(loads, 2, "the one that was killed, and the one that took its place");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_killed_and_comes_back_under_load_is_no_error_to_anyone() {
    let Some(server) = redis() else { return };
    let program = crate::servers::or_skip("redis-server", "redis-server").unwrap();
    let place = RedisServer::at(&format!("redis://127.0.0.1:{}", server.port)).unwrap();
    let cache = Tiered::<u64, String>::builder()
        .keyspace("load")
        .max_capacity(50)
        .far(RedisTier::connect(&place).await.unwrap())
        .codec(Codec::raw())
        .source(FromFn::new(|key: u64| async move {
            sleep(Duration::from_millis(2)).await;
            Ok::<_, std::io::Error>(Some(format!("value {key}")))
        }))
        .rule("ttl-ms", Duration::from_secs(60))
        .tier_timeout(Duration::from_millis(500))
        .build()
        .unwrap();
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut load = JoinSet::new();
    for reader in 0..20u64 {
        let (cache, stop, reads) = (cache.clone(), stop.clone(), reads.clone());
        load.spawn(async move {
            let mut errors = 0;
            // More keys than tier 0 has room for.
            for at in reader * 1_000.. {
                let key = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 & 255;
                match cache.get(&key).await {
                    Ok(value) => assert_eq!(value, Some(format!("value {key}"))),
                    Err(error) => {
                        errors += 1;
                        eprintln!("{error}");
                    }
                }
                reads.fetch_add(1, SeqCst);
                if stop.load(SeqCst) {
                    break;
                }
                sleep(Duration::from_millis(1)).await;
            }
            errors
        });
    }
    let until = async |what: &str, is_so: &dyn Fn() -> bool| {
        for attempt in 0.. {
            if is_so() {
                break;
            }
            assert!(attempt < 6_000, "{what}: {:?}", cache.stats());
            sleep(Duration::from_millis(10)).await;
        }
    };
    let gate = || cache.stats().gates.into_iter().find(|gate| gate.before.contains("Redis")).unwrap();
    until("it is served from Redis", &|| cache.stats().far_hits > 1_000).await;
    assert!(!gate().open);
    let (directory, port) = server.kill();
    until("the breaker opens", &|| gate().open).await;
    let before = reads.load(SeqCst);
    sleep(Duration::from_secs(3)).await;
    until("it goes on without Redis", &|| reads.load(SeqCst) > before + 500).await;
    let far_hits = cache.stats().far_hits;
    let _server = Server::start_in(directory, port, &program, redis_on);
    until("the breaker closes by itself", &|| !gate().open).await;
    until("it is served from Redis again", &|| cache.stats().far_hits > far_hits + 1_000).await;
    stop.store(true, SeqCst);
    assert_eq!(load.join_all().await.into_iter().sum::<u64>(), 0, "no reader had an error");
    assert!(gate().opened >= 1);
    assert_eq!(cache.stats().failures, 0);
}
