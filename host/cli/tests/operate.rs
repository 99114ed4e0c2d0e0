//! The commands for operators against a real Redis that a service, played by this test, has filled.

#[path = "../../larder/tests/live/servers/mod.rs"]
mod live;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use larder::tiered::{Loaded, Tiered, Written};
use larder::{Config, tiered};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

fn larder(config: &Path, words: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_larder"))
        .args(words)
        .env("LARDER_CONFIG", config)
        .env("THE_PASSWORD", "sesame")
        .output()
        .expect("larder runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// A configuration over a Redis at this port, with a journal in the directory.
fn write_config(directory: &TempDir, port: u16) -> PathBuf {
    let path = directory.path().join("larder.toml");
    let text = format!(
        r#"
        [tier.shared]
        redis = "redis://:${{THE_PASSWORD}}@127.0.0.1:{port}/"
        [bus.news]
        redis = "redis://:${{THE_PASSWORD}}@127.0.0.1:{port}/"
        [journal]
        path = "journal"
        flush-after = "10ms"
        [keyspace.products]
        capacity = 100
        tiers = ["shared"]
        bus = "news"
        [keyspace.products.rule]
        ttl = "1h"
        stale-while-revalidate = "1h"
        [keyspace.orders]
        capacity = 100
        journal = true
        [keyspace.orders.rule]
        write = "write-behind"
        "#
    );
    std::fs::write(&path, text).expect("a file");
    path
}

fn redis() -> Option<live::Server> {
    redis_with(&[])
}

fn redis_with(options: &[&str]) -> Option<live::Server> {
    let program = live::or_skip("redis-server", "redis-server")?;
    Some(live::Server::start(&program, |command, port, directory| {
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--requirepass", "sesame"]).args(options);
        command.args(["--save", "", "--dir"]).arg(directory);
    }))
}

async fn service(config: &Path) -> Tiered<String, Json> {
    let variable = |name: &str| (name == "THE_PASSWORD").then(|| "sesame".to_string());
    let stores = Config::read(config).unwrap().open_with(variable).await.unwrap();
    stores.keyspace("products").unwrap().build().unwrap()
}

/// Some runtime, which goes on while the commands run.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn an_operator_looks_and_invalidates() {
    let Some(server) = redis() else { return };
    let directory = TempDir::new().unwrap();
    let config = write_config(&directory, server.port);
    let runtime = runtime();
    let products = runtime.block_on(async {
        // The journal is this process's for now, as a service's would be.
        let products = service(&config).await;
        for (key, tag) in [("pear", "fruit"), ("apple", "fruit"), ("leek", "greens")] {
            let loaded = Loaded::value(json!({ "name": key })).tag(tag);
            products.insert(key.into(), Written::with(loaded)).await.unwrap();
        }
        products
    });

    let (code, out, err) = larder(&config, &["keys", "products"]);
    let mut keys: Vec<_> = out.lines().collect();
    keys.sort_unstable();
    assert_eq!((code, keys), (0, vec!["apple", "leek", "pear"]), "{err}");
    let (_, out, _) = larder(&config, &["keys", "products", "--prefix", "pe", "--format", "json"]);
    assert_eq!(serde_json::from_str::<Json>(&out).unwrap(), json!({ "tier": "shared", "key": "pear" }));

    let (code, out, err) = larder(&config, &["get", "products", "pear"]);
    assert_eq!(code, 0, "{err}");
    for word in ["shared (Redis", "fresh for  59m", "tags       fruit", r#"value      {"name":"pear"}"#] {
        assert!(out.contains(word), "{word} is not in\n{out}");
    }
    assert!(!format!("{out}{err}").contains("sesame"));
    let (code, out, _) = larder(&config, &["get", "products", "plum", "--format", "json"]);
    assert_eq!((code, serde_json::from_str::<Json>(&out).unwrap()), (1, json!({ "tier": "shared", "found": false })));

    // The service hears of what the operator does.
    let cached = |key: &str| runtime.block_on(async { products.get_cached(&key.to_string()).await.unwrap() });
    assert!(cached("pear").is_some() && cached("leek").is_some());
    let (code, out, err) = larder(&config, &["invalidate", "products", "--tag", "fruit"]);
    assert_eq!((code, out.trim()), (0, "invalidated in products: tag fruit"), "{err}");
    assert_eq!((cached("pear"), cached("apple")), (None, None));
    assert!(cached("leek").is_some());
    let (code, out, _) = larder(&config, &["tags", "products"]);
    assert!(code == 0 && out.contains("fruit"), "{out}");

    let (code, _, err) = larder(&config, &["invalidate", "products", "leek", "--soft"]);
    assert_eq!(code, 0, "{err}");
    // It is there, and no longer fresh.
    let (code, out, _) = larder(&config, &["get", "products", "leek"]);
    assert!(code == 0 && out.contains("fresh for  0s") && out.contains("stale for  59m"), "{out}");
    let (code, ..) = larder(&config, &["invalidate", "products", "--all"]);
    assert_eq!((code, cached("leek")), (0, None));

    let (code, _, err) = larder(&config, &["invalidate", "products"]);
    assert_eq!(code, 2, "nothing is invalidated without a word on what: {err}");
    let (code, _, err) = larder(&config, &["invalidate", "products", "--prefix", ""]);
    assert!(code == 2 && err.contains("write --all"), "{err}");
    let (code, _, err) = larder(&config, &["keys", "product"]);
    assert!(code == 1 && err.contains("did you mean `products`?"), "{err}");
}

#[test]
fn a_dead_store_is_named() {
    let directory = TempDir::new().unwrap();
    let config = write_config(&directory, live::free_port());
    let (code, _, err) = larder(&config, &["get", "products", "pear"]);
    assert!(code == 1 && err.contains("tier `shared` (Redis"), "{err}");
    let (code, out, _) = larder(&config, &["doctor"]);
    assert_eq!(code, 1);
    assert!(out.lines().any(|line| line.starts_with("FAIL  tier shared: Redis")), "{out}");
    assert!(out.lines().any(|line| line.starts_with("FAIL  bus news: Redis")), "{out}");
    assert!(out.lines().any(|line| line.starts_with("ok    keyspace products")), "{out}");
    assert!(out.lines().any(|line| line.starts_with("FAIL  keyspace orders") && line.contains("write")), "{out}");
    assert!(!out.contains("sesame"), "{out}");
    // What nobody uses is not asked, but must make sense: a service opens it, too.
    let text = "[tier.a]\nredis = 'redis://127.0.0.1:1'\n[source.b]\nhttp = 'http://${NOWHERE_SET}'\n";
    std::fs::write(&config, format!("{text}[keyspace.k]\ncapacity = 1")).unwrap();
    let (code, out, _) = larder(&config, &["doctor"]);
    assert!(code == 1 && out.starts_with("FAIL") && out.contains("source.b.http: the variable NOWHERE_SET"), "{out}");
    for line in ["ok    tier a: no keyspace uses it", "ok    source b: no keyspace uses it"] {
        assert!(out.contains(line), "{out}");
    }
    std::fs::write(&config, "[keyspace.k]\ncapacty = 1").unwrap();
    for (path, says) in [(&*config, "capacity"), (Path::new("nowhere.toml"), "cannot be read")] {
        let (code, out, _) = larder(path, &["doctor"]);
        let named = out.matches(&*path.to_string_lossy()).count();
        assert!(code == 1 && out.contains(says) && named == 1, "the file is named once: {out}");
    }
}

/// A service sets a damaged file aside and begins anew. The doctor says so, and leaves it to the service.
#[test]
fn the_doctor_leaves_a_tier_on_disk_as_it_is() {
    let directory = TempDir::new().unwrap();
    let config = directory.path().join("shop.toml");
    let text = "[tier.own]\ndisk = 'own.cache'\n[keyspace.words]\ncapacity = 10\ntiers = ['own']";
    std::fs::write(&config, text).unwrap();
    let file = directory.path().join("own.cache");
    let says = |code: i32, words: &[&str]| {
        let (exits, out, _) = larder(&config, &["doctor"]);
        let line = out.lines().find(|line| line.contains("tier own:")).unwrap();
        assert!(exits == code && words.iter().all(|word| line.contains(word)), "{words:?} are not in\n{out}");
    };
    says(0, &["ok", "is not there yet"]);
    assert!(!file.exists());

    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let stores = larder::Config::read(&config).unwrap().open().await.unwrap();
        let words = stores.keyspace::<String, String>("words").unwrap().build().unwrap();
        words.insert("a".into(), "b".to_string()).await.unwrap();
        let (_, out, _) = larder(&config, &["doctor"]);
        assert!(out.contains("tier own: a service has it open"), "{out}");
    });
    drop(runtime);
    says(0, &["ok", "own.cache: 1 copies of ", "no service has it open"]);

    let damaged = std::fs::read(&file).unwrap()[..10_000].to_vec();
    std::fs::write(&file, &damaged).unwrap();
    says(1, &["FAIL", "own.cache is damaged", "own.cache.damaged, and begins anew"]);
    assert_eq!(std::fs::read(&file).unwrap(), damaged);
    std::fs::write(&file, [0; 1000]).unwrap();
    says(0, &["ok", "begun and not finished"]);
    assert_eq!(std::fs::read(&file).unwrap(), [0; 1000]);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "the two files, and nothing beside");
    std::fs::write(&config, text.replace("own.cache", "nowhere/own.cache")).unwrap();
    says(1, &["FAIL", "there is no directory", "make it"]);
}

#[test]
fn the_doctor_finds_all_well() {
    let Some(server) = redis() else { return };
    let directory = TempDir::new().unwrap();
    let config = write_config(&directory, server.port);
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("journal = true", "").replace("write = \"write-behind\"", "");
    std::fs::write(&config, text).unwrap();
    let (code, out, err) = larder(&config, &["doctor", "--format", "json"]);
    assert_eq!(code, 0, "{out}{err}");
    for line in out.lines() {
        assert_eq!(serde_json::from_str::<Json>(line).unwrap()["well"], json!(true), "{line}");
    }
    assert_eq!(out.lines().count(), 6, "the file, the journal, the tier, the bus, two rules: {out}");
    assert!(out.contains("no keyspace uses it"), "the journal: {out}");
    let (_, out, err) = larder(&config, &["keys", "products"]);
    assert_eq!(out, "", "nothing is left: {err}");
}

#[test]
fn the_doctor_finds_a_store_that_takes_nothing() {
    let Some(server) = redis_with(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]) else { return };
    let directory = TempDir::new().unwrap();
    let config = write_config(&directory, server.port);
    let (code, out, _) = larder(&config, &["doctor"]);
    assert_eq!(code, 1);
    let tier = |line: &str| line.starts_with("FAIL  tier shared: Redis") && line.contains("`maxmemory`");
    assert!(out.lines().any(tier), "{out}");
    // Of a full memory, invalidations are still announced: they are what makes room.
    assert!(out.lines().any(|line| line.starts_with("ok    bus news: Redis")), "{out}");
}

#[test]
fn a_dead_tier_does_not_hide_the_others() {
    let Some(server) = redis() else { return };
    let directory = TempDir::new().unwrap();
    let config = write_config(&directory, server.port);
    let runtime = runtime();
    runtime.block_on(async {
        let products = service(&config).await;
        let loaded = Loaded::value(json!(1)).tag("re\u{1b}[31md");
        products.insert("pe\u{1b}[2Jar".into(), Written::with(loaded)).await.unwrap();
    });

    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace(r#"tiers = ["shared"]"#, r#"tiers = ["dead", "shared", "own"]"#);
    let dead = live::free_port();
    let text = format!("{text}\n[tier.dead]\nredis = 'redis://127.0.0.1:{dead}'\n[tier.own]\ndisk = 'own.cache'");
    std::fs::write(&config, text).unwrap();
    let (code, out, err) = larder(&config, &["keys", "products"]);
    assert_eq!((code, out.as_str()), (1, "pe\\u{1b}[2Jar\n"), "{err}");
    assert!(err.contains("tier `dead` (Redis"), "{err}");
    let (code, out, err) = larder(&config, &["get", "products", "pe\u{1b}[2Jar"]);
    assert!(code == 1 && out.contains("shared (Redis") && out.contains("re\\u{1b}[31md"), "{out}{err}");
    assert!(err.contains("tier `dead` (Redis"), "{err}");
    let (code, out, err) = larder(&config, &["tags", "products"]);
    assert!(code == 1 && err.contains("tier `dead` (Redis"), "{out}{err}");
    let (code, _, err) = larder(&config, &["get", "products", "pear", "--tier", "own"]);
    assert!(code == 1 && err.contains("the service's own disk"), "{err}");

    // Whatever cannot be reached, the rest is done, and what failed is named.
    let (code, _, err) =
        larder(&config, &["invalidate", "products", "pe\u{1b}[2Jar", "plum", "--tag", "red", "--prefix", "x"]);
    assert_eq!(code, 1, "{err}");
    for words in ["plum", "tag red", "prefix x", "run this again"] {
        assert!(err.contains(words), "{words} is not in\n{err}");
    }
    let (_, out, _) = larder(&config, &["keys", "products", "--tier", "shared"]);
    assert_eq!(out, "");
    let (_, out, _) = larder(&config, &["tags", "products", "--tier", "shared"]);
    assert!(out.contains("red") && out.contains('x'), "{out}");
}

#[test]
fn an_operator_reads_the_journal() {
    let directory = TempDir::new().unwrap();
    let config = write_config(&directory, live::free_port());
    let runtime = runtime();
    runtime.block_on(async {
        let journal = Config::read(&config).unwrap().open_journal().await.unwrap();
        let orders = Tiered::<String, String>::builder()
            .keyspace("orders")
            .max_capacity(10)
            .codec(tiered::Codec::raw())
            .source(
                tiered::FromFn::new(|_: String| async { Ok::<_, std::io::Error>(None::<String>) })
                    .saving(|_, _: Option<String>| async { Err(tiered::SourceError::rejected("the table is gone")) }),
            )
            .journal(journal.clone())
            .rule("write", "write-behind")
            .build()
            .unwrap();
        orders.insert("o-1".into(), "two pears".to_string()).await.unwrap();
        for _ in 0..500 {
            if journal.stats().dead == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (code, _, err) = larder(&config, &["journal", "list"]);
        assert!(code == 1 && err.contains("open already"), "{err}");
        assert_eq!(orders.shutdown(Duration::from_secs(1)).await, 0);
    });
    drop(runtime);

    let (code, out, err) = larder(&config, &["journal", "dead", "--format", "json"]);
    assert_eq!(code, 0, "{err}");
    let letter: Json = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&letter["keyspace"], &letter["key"], &letter["value_bytes"]),
        (&json!("orders"), &json!("o-1"), &json!(9))
    );
    assert!(letter["reason"].as_str().unwrap().contains("the table is gone"));
    let id = letter["id"].as_str().unwrap();
    let (code, out, _) = larder(&config, &["journal", "retry", id]);
    assert!(code == 0 && out.contains("is a write again"), "{out}");
    let (_, out, _) = larder(Path::new("nowhere.toml"), &["journal", "list", "-c", config.to_str().unwrap()]);
    assert!(out.contains(id) && out.contains("orders:o-1"), "{out}");
    let (code, _, err) = larder(&config, &["journal", "discard", id]);
    assert!(code == 1, "it is no dead letter now: {err}");
    let (code, _, err) = larder(&config, &["journal", "discard", "123"]);
    assert!(code == 2 && err.contains("32 hexadecimal"), "{err}");
}

#[test]
fn a_configuration_that_is_not_there_says_how_to_name_one() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("larder.toml");
    for words in [&["keys", "products"][..], &["journal", "list"], &["doctor"]] {
        let (code, out, err) = larder(&path, words);
        assert_eq!(code, 1, "{words:?}: {out}{err}");
        assert!((out + &err).contains("--config or in LARDER_CONFIG"), "{words:?}: {err}");
    }
}
