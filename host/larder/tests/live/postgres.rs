//! The source over PostgreSQL, against a server that the test starts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use larder::Tiered;
use larder::tiered::testkit::{SourceSuite, carries_out_once};
use larder::tiered::{Failure, How, Loaded, LoadedMany, PostgresSource, Save, Source, SourceError, WriteId};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use sqlx::{AssertSqlSafe, PgPool};

use crate::servers::postgres;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Product {
    name: String,
    price: f64,
}

const TABLES: &str = "
    create table products (
        id bigint primary key,
        name text not null,
        price numeric(10, 2) not null check (price >= 0),
        version bigint not null default 0
    );
    create sequence versions;
    create table stock (id bigint primary key, sold bigint not null);
    create table writes (id uuid primary key);
";

async fn pool(port: u16) -> PgPool {
    PgPool::connect(&postgres::url(port)).await.unwrap()
}

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_string())).execute(pool).await.unwrap();
}

fn builder(port: u16) -> larder::tiered::postgres::PostgresBuilder<i64, Product> {
    PostgresSource::connect(postgres::url(port))
        // The key 1 takes its time.
        .load(
            "select id, name, price, version, case when id = 1 then pg_sleep(0.3) end as nothing from products where id = :key",
        )
        .load_many("select id, name, price, version from products where id = any(:keys)")
        .save(
            "insert into products
             select :key, v.name, v.price, nextval('versions') from jsonb_to_record(:value) as v (name text, price numeric)
             on conflict (id) do update set name = excluded.name, price = excluded.price, version = excluded.version",
        )
        .save_many(
            "insert into products
             select w.key, w.value->>'name', (w.value->>'price')::numeric, nextval('versions')
             from jsonb_to_recordset(:writes) as w (key bigint, value jsonb)
             on conflict (id) do update set name = excluded.name, price = excluded.price, version = excluded.version",
        )
        .remove("delete from products where id = :key")
        .remove_many("delete from products where id = any(:keys)")
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
    let Some(server) = postgres::start() else { return };
    let pool = pool(server.port).await;
    run(&pool, TABLES).await;
    run(&pool, "insert into products values (1, 'slow', 1, 1)").await;
    let source = builder(server.port).build().unwrap();
    source.check().await.unwrap();
    SourceSuite::new(source, |n| n as i64, product)
        .slow(1)
        .refuses(7, Product { name: "less than nothing".into(), price: -1.0 })
        .unreachable(builder(crate::servers::free_port()).build().unwrap())
        .run()
        .await;
    // Each query for itself, where there is none for many; and over a pool that was there.
    let single = PostgresSource::<i64, Product>::over(pool)
        .load("select name, price from products where id = :key")
        .save(
            "insert into products values (:key, :value->>'name', (:value->>'price')::numeric)
               on conflict (id) do update set name = excluded.name, price = excluded.price",
        )
        .remove("delete from products where id = :key")
        .build()
        .unwrap();
    assert!(!single.loads_many() && !single.saves_many());
    SourceSuite::new(single, |n| n as i64, product).many(100).run().await;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stock {
    sold: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_comes_twice_is_done_once() {
    let Some(server) = postgres::start() else { return };
    let pool = pool(server.port).await;
    run(&pool, TABLES).await;
    run(&pool, "insert into stock values (1, 0)").await;
    let source = PostgresSource::<i64, Stock>::connect(postgres::url(server.port))
        .load("select sold from stock where id = :key")
        .save(
            "with new as (insert into writes (id) values (:write_id::uuid) on conflict do nothing returning id)
             update stock set sold = sold + (:value->>'sold')::bigint from new where stock.id = :key",
        )
        .build()
        .unwrap();
    carries_out_once(&source, &1, &Stock { sold: 1 }, |stock| stock.sold).await;
}

/// As a configuration uses it: keys are text, and values are JSON.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_json_where_there_is_no_type() {
    let Some(server) = postgres::start() else { return };
    let pool = pool(server.port).await;
    run(
        &pool,
        r#"create type mood as enum ('glad', 'sad');
           create domain money_amount as numeric(30, 2);
           create table things (
               id uuid primary key, b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric, t text, v varchar(9),
               c char(3), j json, jb jsonb, ts timestamp, tz timestamptz, d date, ti time, m mood, dom money_amount,
               ta text[], ia int4[], nothing text, ttl_ms int, tags text[], etag bytea);
           insert into things values (
               '6f9619ff-8b86-d011-b42d-00c04fc964ff', true, -2, 4, 9007199254740993, 0.1, 1e300, 19.90, 'grün', 'v', 'ab',
               '{"a": [1]}', '{"b": null}', '2024-02-29 12:34:56.5', '2024-02-29 12:34:56+02', '2024-02-29', '01:02:03',
               'glad', 12345678901234567890.12, '{a,NULL,"b c"}', '{1,2}', null, 1500, '{red,"two words"}', '\x01');"#,
    )
    .await;
    let columns = "id, b, i2, i4, i8, f4, f8, n, t, v, c, j, jb, ts, tz, d, ti, m, dom, ta, ia, nothing, ttl_ms, tags";
    let source = PostgresSource::<String, Json>::over(pool.clone())
        .load(format!("select {columns} from things where id = :key::uuid"))
        .load_many(format!("select {columns} from things where id = any(:keys::uuid[])"))
        .ttl_ms_column("ttl_ms")
        .tags_column("tags")
        .build()
        .unwrap();
    source.check().await.unwrap();
    let key = String::from("6f9619ff-8b86-d011-b42d-00c04fc964ff");
    let expected = json!({
        "id": key, "b": true, "i2": -2, "i4": 4, "i8": 9007199254740993i64, "f4": 0.1, "f8": 1e300, "n": 19.9, "t": "grün",
        "v": "v", "c": "ab ", "j": {"a": [1]}, "jb": {"b": null}, "ts": "2024-02-29T12:34:56.500",
        "tz": "2024-02-29T10:34:56+00:00", "d": "2024-02-29", "ti": "01:02:03", "m": "glad", "dom": "12345678901234567890.12",
        "ta": ["a", null, "b c"], "ia": [1, 2], "nothing": null, "ttl_ms": 1500, "tags": ["red", "two words"],
    });
    let loaded = source.load(&key, None).await.unwrap();
    let wanted = Loaded::value(expected).fresh_for(Duration::from_millis(1500)).tag("red").tag("two words");
    assert_eq!(loaded, wanted);
    let absent = "00000000-0000-0000-0000-000000000000".to_string();
    assert_eq!(each(source.load_many(&[absent, key.clone()]).await), [Loaded::absent(), wanted]);

    // A type that has no form: the message says what to do.
    let bytes = PostgresSource::<String, Json>::over(pool.clone())
        .load("select etag from things where id = :key::uuid")
        .build()
        .unwrap();
    let (kind, message) = failure(bytes.load(&key, None).await);
    assert_eq!(kind, Failure::Rejected);
    assert!(
        message.contains("column `etag`: the type BYTEA has no form in JSON here: cast it in the query"),
        "{message}"
    );
    // A column alone, and a closure.
    let document = PostgresSource::<String, Json>::over(pool.clone())
        .load("select jb from things where id = :key::uuid")
        .json_column("jb")
        .build()
        .unwrap();
    assert_eq!(document.load(&key, None).await.unwrap(), Loaded::value(json!({"b": null})));
    let closure = PostgresSource::<String, Vec<u8>>::over(pool)
        .load_with("select etag from things where id = :key::uuid", |row| sqlx::Row::try_get(row, "etag"))
        .build()
        .unwrap();
    assert_eq!(closure.load(&key, None).await.unwrap(), Loaded::value(vec![1]));
}

/// A query that leaves out what is large where the copy has it.
#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_row_moves_no_document() {
    let Some(server) = postgres::start() else { return };
    let pool = pool(server.port).await;
    run(
        &pool,
        "create table products (id bigint primary key, version bigint not null);
         create table documents (product bigint primary key, document jsonb not null);
         insert into products values (1, 7);
         insert into documents values (1, '{\"large\": true}')",
    )
    .await;
    let query = "select p.id, p.version, d.document from products p
         left join documents d on d.product = p.id and p.version::text is distinct from :version
         where p.id = :key";
    let source = PostgresSource::<i64, Json>::over(pool.clone()).load(query).version_column("version").build().unwrap();
    let row = json!({"id": 1, "version": 7, "document": {"large": true}});
    assert_eq!(source.load(&1, None).await.unwrap(), Loaded::value(row.clone()).validator("7"));
    assert_eq!(source.load(&1, Some("6")).await.unwrap(), Loaded::value(row).validator("7"));
    assert_eq!(source.load(&1, Some("7")).await.unwrap(), Loaded::unchanged());
    // That it is left out can be seen where the row is read.
    let seen = PostgresSource::<i64, bool>::over(pool)
        .load_with(query, |row| {
            sqlx::Row::try_get::<Option<Json>, _>(row, "document").map(|document| document.is_some())
        })
        .build()
        .unwrap();
    assert_eq!(seen.load(&1, Some("7")).await.unwrap(), Loaded::value(false));
    assert_eq!(seen.load(&1, None).await.unwrap(), Loaded::value(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_query_gets_wrong_is_said() {
    let Some(server) = postgres::start() else { return };
    let pool = pool(server.port).await;
    run(&pool, TABLES).await;
    run(&pool, "insert into products select n, 'p' || n, n from generate_series(1, 5000) n").await;
    let source = |one: &str, many: &str| {
        PostgresSource::<i64, Json>::over(pool.clone()).load(one).load_many(many).build().unwrap()
    };
    let place = format!("PostgreSQL at 127.0.0.1:{}/postgres", server.port);

    let all = source(
        "select * from products where :key > 0",
        "select id, name from products where id = any(:keys) or id = 3",
    );
    assert_eq!(
        failure(all.load(&1, None).await),
        (Failure::Rejected, format!("{place}, the query to load: two rows or more for the key `1`: one key, one row"))
    );
    let (kind, message) = failure(all.load_many(&[1, 2]).await);
    assert_eq!(kind, Failure::Rejected);
    assert!(message.contains("a row for the key `3`, which was not asked for"), "{message}");

    let twice = source(
        "select id as a, name as a from products where id = :key",
        "select p.id, p.name from products p, generate_series(1, 2) where p.id = any(:keys)",
    );
    let (_, message) = failure(twice.load_many(&[1, 2]).await);
    assert!(message.contains("two rows or more for the key"), "{message}");
    let (_, message) = failure(twice.load(&1, None).await);
    assert!(message.contains("two columns are called `a`: rename one of them by `as`"), "{message}");

    // What is wrong with the row of one key is an error of that key alone.
    let alone = async |columns: &str, more: &str| {
        let many = format!("select {columns} from products p {more}");
        let products =
            PostgresSource::<i64, Product>::over(pool.clone()).load("select 1 where :key > 0").load_many(many);
        let loaded = products.build().unwrap().load_many(&[1, 2, 6_000]).await.unwrap();
        let [one, two, absent] = <[_; 3]>::try_from(loaded).unwrap();
        assert!(one.unwrap().into_value().is_some());
        (two, absent)
    };
    let columns = "id, case when id <> 2 then name end as name, price, version";
    let (two, absent) = alone(columns, "where id = any(:keys)").await;
    let (kind, message) = failure(two);
    assert_eq!((kind, absent.unwrap()), (Failure::Rejected, Loaded::absent()));
    assert!(message.contains("the row of the key `2` is not a value"), "{message}");
    let rows = ", generate_series(1, case when id = 2 then 2 else 1 end) where id = any(:keys)";
    let (two, absent) = alone("id, name, price, version", rows).await;
    assert_eq!(absent.unwrap(), Loaded::absent());
    assert!(failure(two).1.contains("two rows or more for the key `2`"));
    // Whose a row is that was not asked for, nobody knows: of none that has one.
    let (two, absent) = alone("id, name, price, version", "where id = any(:keys) or id = 3").await;
    assert!(two.unwrap().into_value().is_some());
    assert!(failure(absent).1.contains("a row for the key `3`, which was not asked for"));

    let wrong = source("select nme from products where id = :key", "select id from products where id = any(:keys)");
    let (kind, message) = failure(wrong.load(&1, None).await);
    assert_eq!(kind, Failure::Rejected);
    assert!(message.contains("column \"nme\" does not exist"), "{message}");
    let (_, message) = failure(wrong.check().await);
    assert!(message.contains(&format!("{place}, the query to load:")), "{message}");

    let untagged = PostgresSource::<i64, Json>::over(pool.clone())
        .load("select id from products where id = :key")
        .tags_column("tags")
        .build()
        .unwrap();
    let (_, message) = failure(untagged.load(&1, None).await);
    assert!(message.contains("the row has no column `tags`: select it, or name another"), "{message}");
    let (_, message) = failure(untagged.check().await);
    assert!(message.contains("the query to load: the row has no column `tags`"), "{message}");
    let negative = PostgresSource::<i64, Json>::over(pool.clone())
        .load("select -1 as ttl from products where id = :key")
        .ttl_ms_column("ttl")
        .build()
        .unwrap();
    let (_, message) = failure(negative.load(&1, None).await);
    assert!(message.contains("column `ttl`: -1 is no number of milliseconds"), "{message}");
    let typed = PostgresSource::<i64, Product>::over(pool.clone())
        .load("select name, name as price from products where id = :key")
        .build()
        .unwrap();
    let (_, message) = failure(typed.load(&1, None).await);
    assert!(
        message.contains("the row of the key `1` is not a value: invalid type: string \"p1\", expected f64"),
        "{message}"
    );
    let big = PostgresSource::<u64, Json>::over(pool.clone())
        .load("select id from products where id = :key")
        .build()
        .unwrap();
    let (kind, message) = failure(big.load(&u64::MAX, None).await);
    assert_eq!(kind, Failure::Rejected);
    assert!(message.contains("does not fit a bigint"), "{message}");
    // Nothing of it has broken a connection.
    assert!(big.load(&5, None).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_values_are_bound_and_never_part_of_the_text() {
    let Some(server) = postgres::start() else { return };
    let pool = pool(server.port).await;
    run(&pool, "create table notes (id text primary key, note text not null)").await;
    let source = PostgresSource::<String, Json>::over(pool.clone())
        .load("select note from notes where id = :key")
        .load_many("select id, note from notes where id = any(:keys)")
        .save("insert into notes values (:key, :value->>'note') on conflict (id) do update set note = excluded.note")
        .build()
        .unwrap();
    for evil in [
        "'; drop table notes; --",
        "' or ''='",
        "\\'; drop table notes; --",
        ":key",
        "$1",
        "{a,b}",
        "\"",
        "né\n\u{1F600}",
    ] {
        let (key, value) = (String::from(evil), json!({ "note": evil }));
        source.save(Save::new(&key, Some(&value), WriteId(1))).await.unwrap();
        assert_eq!(source.load(&key, None).await.unwrap(), Loaded::value(value.clone()), "{evil}");
        let many = each(source.load_many(&[key, "' or true --".into()]).await);
        assert_eq!(many[1], Loaded::absent());
    }
    // A text cannot hold it, and the database says so.
    let zero = String::from("a\0b");
    assert_eq!(failure(source.load(&zero, None).await).0, Failure::Rejected);
    // It is refused alone, as its save is.
    let keys: Vec<String> = (0..100).map(|n| if n == 70 { zero.clone() } else { n.to_string() }).collect();
    let value = json!({ "note": "here" });
    source.save(Save::new(&keys[99], Some(&value), WriteId(2))).await.unwrap();
    let many = source.load_many(&keys).await.unwrap();
    let refused = |at: &usize| many[*at].as_ref().is_err_and(|error| error.failure() == Failure::Rejected);
    assert_eq!((0..100).filter(refused).collect::<Vec<_>>(), [70]);
    assert_eq!(many[99].as_ref().unwrap(), &Loaded::value(json!({ "id": "99", "note": "here" })));
    // So is a key that does not become what the query makes of it.
    run(&pool, "create table numbers (id bigint primary key); insert into numbers values (1)").await;
    let numbers = PostgresSource::<String, Json>::over(pool.clone())
        .load("select id from numbers where id = :key::bigint")
        .load_many("select id from numbers where id = any(:keys::bigint[])")
        .build()
        .unwrap();
    let many = numbers.load_many(&["x".into(), "1".into(), "2".into()]).await.unwrap();
    assert!(many[0].is_err() && many[1].is_ok() && many[2].as_ref().unwrap() == &Loaded::absent(), "{many:?}");
    // A bad statement is bad for each of them.
    let bad = PostgresSource::<String, Json>::over(pool.clone())
        .load("select id from no_such_table where id = :key")
        .load_many("select id from no_such_table where id = any(:keys)")
        .build()
        .unwrap();
    assert_eq!(failure(bad.load_many(&["1".into(), "2".into()]).await).0, Failure::Rejected);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_told() {
    let Some(server) = postgres::start() else { return };
    let load = "select 1 where :key is null";
    let build = |url: String| PostgresSource::<String, Json>::connect(url).load(load);
    let mut told = vec![format!("{:?}", build(postgres::url(server.port)))];
    told.push(format!("{:?}", build(postgres::url(server.port)).build().unwrap()));
    for bad in ["postgres://larder:s3cret-word@host:port/db", "s3cret-word", "postgres://larder:s3cret-word@[::/"] {
        let error = build(bad.into()).build().unwrap_err();
        assert!(error.to_string().contains("write it as postgres://user:password@host:5432/database"), "{error}");
        told.extend([format!("{error}"), format!("{error:?}")]);
    }
    let wrong = build(format!("postgres://larder:s3cret-wrong@127.0.0.1:{}/postgres", server.port)).build().unwrap();
    let error = wrong.load(&"a".into(), None).await.unwrap_err();
    assert_eq!(error.failure(), Failure::Unavailable, "the password is put right, and then it works");
    assert!(error.to_string().contains("password authentication failed"), "{error}");
    told.extend([format!("{error}"), format!("{error:?}"), format!("{wrong:?}")]);
    for told in told {
        assert!(!told.contains("s3cret"), "{told}");
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_when_it_is_built() {
    let build = |url: &str| PostgresSource::<String, Json>::connect(url).load("select :key");
    let scheme = build("postgers://larder:s3cret@localhost/shop").build().unwrap_err().to_string();
    assert!(scheme.contains("does not begin as one") && !scheme.contains("s3cret"), "{scheme}");
    assert!(build("postgresql://localhost/shop").build().is_ok());
    let none = build("postgres://localhost/shop").max_connections(0).build().unwrap_err().to_string();
    assert!(none.contains("`max-connections` to 1 or more"), "{none}");
}

#[tokio::test]
async fn a_server_that_takes_a_connection_and_says_nothing() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://larder@{}/shop", silent.local_addr().unwrap());
    let source = PostgresSource::<i64, Json>::connect(url).load("select :key").max_connections(1);
    let source = source.acquire_timeout(Duration::from_millis(100)).build().unwrap();
    let (_, message) = failure(source.load(&1, None).await);
    assert!(message.contains("no connection could be made within 100ms: see whether the server answers"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_as_the_url_says() {
    let Some(server) = postgres::start_with_tls() else { return };
    let load = async |options: String| {
        let url = format!("{}?{options}", postgres::url(server.port));
        let query = "select ssl from pg_stat_ssl where pid = pg_backend_pid() and :key = 1";
        PostgresSource::<i64, Json>::connect(url).load(query).build().unwrap().load(&1, None).await
    };
    let ca = server.directory().join("ca.pem").display().to_string();
    assert_eq!(load("sslmode=disable".into()).await.unwrap(), Loaded::value(json!({"ssl": false})));
    assert_eq!(load("sslmode=require".into()).await.unwrap(), Loaded::value(json!({"ssl": true})));
    let verified = load(format!("sslmode=verify-full&sslrootcert={ca}")).await.unwrap();
    assert_eq!(verified, Loaded::value(json!({"ssl": true})));
    let (kind, message) = failure(load("sslmode=verify-full".into()).await);
    assert_eq!(kind, Failure::Unavailable);
    assert!(message.contains("certificate"), "nobody here knows who has signed it: {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_at_once_and_too_slow_are_told_apart() {
    let Some(server) = postgres::start() else { return };
    let source = PostgresSource::<i64, Json>::connect(postgres::url(server.port))
        .load("select pg_sleep(:key) is null as slept")
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
    assert_eq!(kind, Failure::Unavailable);
    assert!(message.contains("statement timeout"), "{message}");
    assert_eq!(source.load(&0, None).await.unwrap(), Loaded::value(json!({"slept": false})));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_changes_under_prepared_statements() {
    let Some(server) = postgres::start() else { return };
    let pool = pool(server.port).await;
    run(&pool, TABLES).await;
    run(&pool, "insert into products values (1, 'a', 1)").await;
    let source =
        PostgresSource::<i64, Json>::over(pool.clone()).load("select * from products where id = :key").build().unwrap();
    source.load(&1, None).await.unwrap();
    run(&pool, "alter table products alter price type float8, add colour text default 'red'").await;
    for _ in 0..10 {
        let loaded = source.load(&1, None).await.unwrap();
        assert_eq!(loaded, Loaded::value(json!({"id": 1, "name": "a", "price": 1.0, "version": 0, "colour": "red"})));
    }
}

/// The database dies under load, and comes back: readers get old copies, and then new ones, and nobody does anything.
#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted_under_load() {
    let Some(server) = postgres::start() else { return };
    {
        let pool = pool(server.port).await;
        run(&pool, TABLES).await;
        run(&pool, "insert into products select n, 'p' || n, 1 from generate_series(1, 100) n").await;
        pool.close().await;
    }
    let source = PostgresSource::<i64, Product>::connect(postgres::url(server.port))
        .load("select name, price from products where id = :key")
        .load_many("select id, name, price from products where id = any(:keys)")
        .acquire_timeout(Duration::from_secs(2))
        .build()
        .unwrap();
    let cache = Tiered::builder()
        .keyspace("products")
        .max_capacity(1_000)
        .source(source)
        .rule("ttl-ms", Duration::from_millis(50))
        .rule("stale-if-error-ms", Duration::from_secs(600))
        .build()
        .unwrap();
    for id in 1..=100 {
        cache.get(&id).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (fresh, rescued) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut readers = Vec::new();
    for reader in 0..16i64 {
        let (cache, stop, fresh, rescued) = (cache.clone(), stop.clone(), fresh.clone(), rescued.clone());
        readers.push(tokio::spawn(async move {
            let mut n = reader;
            while !stop.load(Relaxed) {
                n = (n * 31 + 7) % 100;
                let served =
                    cache.read(&(n + 1)).await.unwrap_or_else(|error| panic!("a reader sees an error: {error}"));
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
    let server = postgres::start_again(was);
    let pool = pool(server.port).await;
    run(&pool, "update products set price = 2").await;
    let mut tries = 0;
    while !cache.get_many(&(1..=100).collect::<Vec<_>>()).await.iter().flatten().flatten().all(|one| one.price == 2.0) {
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
