//! The source over MySQL, against a MariaDB that the test starts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use larder::Tiered;
use larder::tiered::testkit::{SourceSuite, carries_out_once};
use larder::tiered::{Failure, How, Loaded, LoadedMany, MySqlSource, Save, Source, SourceError, WriteId};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use sqlx::{AssertSqlSafe, MySqlPool};

use crate::servers::mariadb;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Product {
    name: String,
    price: f64,
}

const TABLES: &str = "
    create table products (
        id bigint primary key,
        name varchar(200) not null,
        price decimal(10, 2) not null check (price >= 0),
        version varchar(40) not null default uuid()
    );
    create table stock (id bigint primary key, sold bigint not null, last_write char(32));
";

async fn pool(port: u16) -> MySqlPool {
    MySqlPool::connect(&mariadb::url(port)).await.unwrap()
}

async fn run(pool: &MySqlPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_string())).execute(pool).await.unwrap();
}

fn builder(port: u16) -> larder::tiered::mysql::MySqlBuilder<i64, Product> {
    MySqlSource::connect(mariadb::url(port))
        // The key 1 takes its time.
        .load("select id, name, price, version, if(id = 1, sleep(0.3), 0) as nothing from products where id = :key")
        .load_many("select id, name, price, version from products where id in (:keys)")
        .save(
            "insert into products (id, name, price)
             values (:key, json_value(:value, '$.name'), json_value(:value, '$.price'))
             on duplicate key update name = values(name), price = values(price), version = uuid()",
        )
        .save_many(
            "insert into products (id, name, price)
             select * from json_table(:writes, '$[*]' columns (
                 id bigint path '$.key', name varchar(200) path '$.value.name', price decimal(10, 2) path '$.value.price'
             )) as writes
             on duplicate key update name = values(name), price = values(price), version = uuid()",
        )
        .remove("delete from products where id = :key")
        .remove_many("delete from products where id in (:keys)")
        .version_column("version")
}

fn product(n: u64) -> Product {
    Product { name: format!("product {n}"), price: n as f64 / 4.0 }
}

fn failure<T: std::fmt::Debug>(result: Result<T, SourceError>) -> (Failure, String) {
    let error = result.unwrap_err();
    (error.failure(), error.to_string())
}

fn each<V>(loaded: Result<LoadedMany<V>, SourceError>) -> Vec<Loaded<V>> {
    loaded.unwrap().into_iter().map(|loaded| loaded.unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_source() {
    let Some(server) = mariadb::start() else { return };
    let pool = pool(server.port).await;
    run(&pool, TABLES).await;
    run(&pool, "insert into products (id, name, price) values (1, 'slow', 1)").await;
    let source = builder(server.port).build().unwrap();
    source.check().await.unwrap();
    SourceSuite::new(source, |n| n as i64, product)
        .slow(1)
        .refuses(7, Product { name: "less than nothing".into(), price: -1.0 })
        .unreachable(builder(crate::servers::free_port()).build().unwrap())
        .run()
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_comes_twice_is_done_once() {
    let Some(server) = mariadb::start() else { return };
    let pool = pool(server.port).await;
    run(&pool, TABLES).await;
    run(&pool, "insert into stock values (1, 0, null)").await;
    #[derive(Clone, Debug, Serialize, Deserialize)]
    struct Stock {
        sold: u64,
    }
    // The row knows which write was its last: those of one key come in order.
    let source = MySqlSource::<i64, Stock>::connect(mariadb::url(server.port))
        .load("select sold from stock where id = :key")
        .save(
            "update stock set sold = sold + json_value(:value, '$.sold'), last_write = :write_id
             where id = :key and not (last_write <=> :write_id)",
        )
        .build()
        .unwrap();
    carries_out_once(&source, &1, &Stock { sold: 1 }, |stock| stock.sold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_json_where_there_is_no_type() {
    let Some(server) = mariadb::start() else { return };
    let pool = pool(server.port).await;
    run(
        &pool,
        r#"create table things (
               id varchar(40) primary key, b bool, i1 tinyint, i8 bigint, u8 bigint unsigned, f4 float, f8 double,
               n decimal(10, 2), big decimal(30, 2), t text, c char(3), j json, dt datetime(3), ts timestamp, d date, ti time,
               y year, e enum('glad', 'sad'), s set('a', 'b'), bin blob, nothing text, ttl_ms int, tags json);
           insert into things values (
               'one', true, -2, 9007199254740993, 18446744073709551615, 0.1, 1e300, 19.90, 12345678901234567890.12, 'grün',
               'ab', '{"a": [1]}', '2024-02-29 12:34:56.5', '2024-02-29 12:34:56', '2024-02-29', '101:02:03', 2024, 'glad',
               'a,b', 'bytes', null, 1500, '["red", 7]');"#,
    )
    .await;
    let columns = "id, b, i1, i8, u8, f4, f8, n, big, t, c, j, dt, ts, d, ti, y, e, s, bin, nothing, ttl_ms, tags";
    let source = MySqlSource::<String, Json>::over(pool.clone())
        .load(format!("select {columns} from things where id = :key"))
        .load_many(format!("select {columns} from things where id in (:keys)"))
        .ttl_ms_column("ttl_ms")
        .tags_column("tags")
        .build()
        .unwrap();
    source.check().await.unwrap();
    let expected = json!({
        "id": "one", "b": true, "i1": -2, "i8": 9007199254740993i64, "u8": u64::MAX, "f4": 0.1, "f8": 1e300, "n": 19.9,
        "big": "12345678901234567890.12", "t": "grün", "c": "ab", "j": "{\"a\": [1]}", "dt": "2024-02-29T12:34:56.500",
        "ts": "2024-02-29T12:34:56+00:00", "d": "2024-02-29", "ti": "101:02:03", "y": 2024, "e": "glad", "s": "a,b",
        "bin": "bytes", "nothing": null, "ttl_ms": 1500, "tags": "[\"red\", 7]",
    });
    let wanted = Loaded::value(expected).fresh_for(Duration::from_millis(1500)).tag("red").tag("7");
    let key = String::from("one");
    assert_eq!(source.load(&key, None).await.unwrap(), wanted);
    assert_eq!(each(source.load_many(&["none".into(), key.clone()]).await), [Loaded::absent(), wanted]);
    let document = MySqlSource::<String, Json>::over(pool.clone())
        .load("select j from things where id = :key")
        .json_column("j")
        .build()
        .unwrap();
    assert_eq!(document.load(&key, None).await.unwrap(), Loaded::value(json!({"a": [1]})));
    let bytes = MySqlSource::<String, Json>::over(pool)
        .load("select unhex('ff') as raw from things where id = :key")
        .build()
        .unwrap();
    let (kind, message) = failure(bytes.load(&key, None).await);
    assert_eq!(kind, Failure::Rejected);
    assert!(message.contains("column `raw`: bytes have no form in JSON here"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_query_gets_wrong_is_said_and_parameters_are_bound() {
    let Some(server) = mariadb::start() else { return };
    let pool = pool(server.port).await;
    run(&pool, TABLES).await;
    run(&pool, "insert into products (id, name, price) values (1, 'a', 1), (2, 'b', 1), (3, 'c', 1)").await;
    run(&pool, "create table notes (id varchar(100) primary key, note text not null)").await;
    let place = format!("MySQL at 127.0.0.1:{}/shop", server.port);
    let all = MySqlSource::<u64, Json>::over(pool.clone())
        .load("select * from products where :key > 0")
        .load_many("select id from products where id in (:keys) or id = 3")
        .build()
        .unwrap();
    assert_eq!(
        failure(all.load(&1, None).await),
        (Failure::Rejected, format!("{place}, the query to load: two rows or more for the key `1`: one key, one row"))
    );
    let (kind, message) = failure(all.load_many(&[1, 2]).await);
    assert_eq!(kind, Failure::Rejected);
    assert!(message.contains("a row for the key `3`, which was not asked for"), "{message}");
    assert_eq!(failure(all.load(&u64::MAX, None).await).0, Failure::Rejected, "an unsigned bigint is one, too");
    let wrong = MySqlSource::<u64, Json>::over(pool.clone()).load("select nme from products where id = :key");
    let (kind, message) = failure(wrong.build().unwrap().check().await);
    assert_eq!(kind, Failure::Rejected);
    assert!(message.contains("Unknown column 'nme'"), "{message}");
    let untagged = MySqlSource::<u64, Json>::over(pool.clone()).load("select name from products where id = :key");
    let (_, message) = failure(untagged.tags_column("tags").build().unwrap().check().await);
    assert!(message.contains("the query to load: the row has no column `tags`"), "{message}");

    let notes = MySqlSource::<String, Json>::over(pool)
        .load("select note from notes where id = :key")
        .load_many("select id, note from notes where id in (:keys)")
        .save(
            "insert into notes values (:key, json_value(:value, '$.note')) on duplicate key update note = values(note)",
        )
        .build()
        .unwrap();
    for evil in
        ["'; drop table notes; -- ", "' or ''='", "\\' or 1 -- ", ":key", "?", "\"", "`", "né\n\u{1F600}", "a\0b"]
    {
        let (key, value) = (String::from(evil), json!({ "note": evil }));
        notes.save(Save::new(&key, Some(&value), WriteId(1))).await.unwrap();
        assert_eq!(notes.load(&key, None).await.unwrap(), Loaded::value(value.clone()), "{evil}");
        let many = each(notes.load_many(&[key, "' or true -- ".into(), "x".into()]).await);
        assert_eq!(many[1..], [Loaded::absent(), Loaded::absent()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_apart_and_no_secret_is_told() {
    let Some(server) = mariadb::start() else { return };
    let source = MySqlSource::<i64, Json>::connect(mariadb::url(server.port))
        .load("select sleep(:key) as slept")
        .max_connections(1)
        .acquire_timeout(Duration::from_millis(300))
        .statement_timeout(Duration::from_millis(1_500))
        .build()
        .unwrap();
    let source = Arc::new(source);
    while source.load(&0, None).await.is_err() {}
    let long = tokio::spawn({
        let source = source.clone();
        async move { source.load(&10, None).await }
    });
    let mut loaded = Ok(Loaded::absent());
    for _ in 0..10_000 {
        loaded = source.load(&0, None).await;
        if loaded.is_err() {
            break;
        }
    }
    let (kind, message) = failure(loaded);
    assert_eq!(kind, Failure::Overloaded);
    assert!(message.contains("no connection came free within 300ms, of 1 at most"), "{message}");
    let (kind, message) = failure(long.await.unwrap());
    assert_eq!(kind, Failure::Unavailable, "{message}");
    assert_eq!(source.load(&0, None).await.unwrap(), Loaded::value(json!({"slept": 0})));

    let load = "select 1 where :key is null";
    let build = |url: String| MySqlSource::<String, Json>::connect(url).load(load);
    let mut told = vec![format!("{:?}", build(mariadb::url(server.port)))];
    for bad in ["mysql://larder:s3cret-word@host:port/db", "s3cret-word", "mysql://larder:s3cret-word@[::/"] {
        let error = build(bad.into()).build().unwrap_err();
        assert!(error.to_string().contains("write it as mysql://user:password@host:3306/database"), "{error}");
        told.extend([format!("{error}"), format!("{error:?}")]);
    }
    let wrong = build(format!("mysql://larder:s3cret-wrong@127.0.0.1:{}/shop", server.port)).build().unwrap();
    let error = wrong.load(&"a".into(), None).await.unwrap_err();
    assert_eq!(error.failure(), Failure::Unavailable, "the password is put right, and then it works");
    assert!(error.to_string().contains("Access denied"), "{error}");
    told.extend([format!("{error}"), format!("{error:?}"), format!("{wrong:?}")]);
    for told in told {
        assert!(!told.contains("s3cret"), "{told}");
    }
}

/// The database dies under load, and comes back: readers get old copies, and then new ones, and nobody does anything.
#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted_under_load() {
    let Some(server) = mariadb::start() else { return };
    {
        let pool = pool(server.port).await;
        run(&pool, TABLES).await;
        run(&pool, "insert into products (id, name, price) select seq, 'p', 1 from seq_1_to_100").await;
        pool.close().await;
    }
    let cache = Tiered::builder()
        .keyspace("products")
        .max_capacity(1_000)
        .source(builder(server.port).build().unwrap())
        .rule("ttl-ms", Duration::from_millis(50))
        .rule("stale-if-error-ms", Duration::from_secs(600))
        .build()
        .unwrap();
    let keys: Vec<i64> = (2..=100).collect();
    assert!(cache.get_many(&keys).await.iter().all(|got| matches!(got, Ok(Some(_)))));
    let stop = Arc::new(AtomicBool::new(false));
    let (fresh, rescued) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut readers = Vec::new();
    for reader in 0..16i64 {
        let (cache, stop, fresh, rescued) = (cache.clone(), stop.clone(), fresh.clone(), rescued.clone());
        readers.push(tokio::spawn(async move {
            let mut n = reader;
            while !stop.load(Relaxed) {
                n = (n * 31 + 7) % 99;
                let served =
                    cache.read(&(n + 2)).await.unwrap_or_else(|error| panic!("a reader sees an error: {error}"));
                assert!(served.value.is_some());
                let how = if served.how == How::Rescued { &rescued } else { &fresh };
                how.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }));
    }
    let until = async |what: &AtomicU64, more: u64| {
        let goal = what.load(Relaxed) + more;
        while what.load(Relaxed) < goal && readers.iter().all(|reader| !reader.is_finished()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    until(&fresh, 500).await;
    assert_eq!(rescued.load(Relaxed), 0);
    let was = server.kill();
    until(&rescued, 500).await;
    let server = mariadb::start_again(was);
    run(&pool(server.port).await, "update products set price = 2, version = uuid()").await;
    let mut tries = 0;
    while !cache.get_many(&keys).await.iter().flatten().flatten().all(|one| one.price == 2.0) {
        assert!(tries < 600, "it is not back to normal");
        tries += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = rescued.load(Relaxed);
    until(&fresh, 500).await;
    assert_eq!(rescued.load(Relaxed), before, "back to normal");
    stop.store(true, Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    eprintln!("served {} as they should be, {} rescued", fresh.load(Relaxed), rescued.load(Relaxed));
}
