//! The source over HTTP, against a server in the test.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Json as Body, Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use larder::Tiered;
use larder::tiered::testkit::{SourceSuite, carries_out_once};
use larder::tiered::{Failure, How, HttpSource, Loaded, Save, Source, SourceError, WriteId};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Product {
    name: String,
    price: f64,
}

#[derive(Default)]
struct Shop {
    products: Mutex<HashMap<i64, (Product, u64)>>,
    sold: Mutex<u64>,
    writes: Mutex<HashSet<String>>,
    versions: AtomicU64,
    requests: AtomicU64,
    unchanged: AtomicU64,
    broken: AtomicBool,
}

type Server = State<Arc<Shop>>;

async fn read(State(shop): Server, Path(id): Path<i64>, headers: HeaderMap) -> Response {
    shop.requests.fetch_add(1, Relaxed);
    if shop.broken.load(Relaxed) {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if id == 1 {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let Some((product, version)) = shop.products.lock().unwrap().get(&id).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let tag = format!("\"{version}\"");
    let terms = [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, "max-age=1, stale-if-error=600".into())];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|held| held.as_bytes() == tag.as_bytes()) {
        shop.unchanged.fetch_add(1, Relaxed);
        return (StatusCode::NOT_MODIFIED, terms).into_response();
    }
    (terms, axum::Json(product)).into_response()
}

async fn write(State(shop): Server, Path(id): Path<i64>, Body(product): Body<Product>) -> StatusCode {
    if product.price < 0.0 {
        return StatusCode::UNPROCESSABLE_ENTITY;
    }
    let version = shop.versions.fetch_add(1, Relaxed);
    shop.products.lock().unwrap().insert(id, (product, version));
    StatusCode::NO_CONTENT
}

async fn remove(State(shop): Server, Path(id): Path<i64>) -> StatusCode {
    match shop.products.lock().unwrap().remove(&id) {
        Some(_) => StatusCode::OK,
        None => StatusCode::NOT_FOUND,
    }
}

/// Adds, and remembers the names of what it has done.
async fn sell(State(shop): Server, headers: HeaderMap, Body(amount): Body<u64>) -> StatusCode {
    let name = headers["idempotency-key"].to_str().unwrap().to_string();
    assert!(name.len() == 34 && name.starts_with('"') && name.ends_with('"'), "{name}");
    if shop.writes.lock().unwrap().insert(name) {
        *shop.sold.lock().unwrap() += amount;
    }
    StatusCode::OK
}

/// A response as its query says: `?200&cache-control:no-store`.
async fn say(State(shop): Server, RawQuery(query): RawQuery) -> Response {
    shop.requests.fetch_add(1, Relaxed);
    let query = query.unwrap_or_default();
    let mut parts = query.split('&');
    let status: u16 = parts.next().unwrap().parse().unwrap();
    // A clock that is far ahead, so that no response has an age but what it says.
    let date = [(header::DATE, "Sat, 06 Nov 2094 08:49:37 GMT")];
    let mut response = (StatusCode::from_u16(status).unwrap(), date, "1").into_response();
    for part in parts {
        let (name, value) = part.split_once(':').unwrap();
        response.headers_mut().insert(
            header::HeaderName::from_bytes(name.as_bytes()).unwrap(),
            value.replace("%20", " ").replace("%22", "\"").parse().unwrap(),
        );
    }
    response
}

/// Starts the server; where it listens.
async fn serve() -> (Arc<Shop>, String) {
    let shop = Arc::new(Shop::default());
    let app = Router::new()
        .route("/products/{id}", get(read).put(write).delete(remove))
        .route("/stock/{id}", get(|State(shop): Server| async move { shop.sold.lock().unwrap().to_string() }).put(sell))
        .route("/say/{key}", get(say).put(say).delete(say))
        .route(
            "/echo/{key}/end",
            get(|Path(key): Path<String>, uri: Uri| async move { axum::Json((key, uri.to_string())) }),
        )
        .route("/echo", get(|uri: Uri| async move { axum::Json(((), uri.to_string())) }))
        .route("/moved/{id}", get(|Path(id): Path<i64>| async move { Redirect::permanent(&format!("/products/{id}")) }))
        .route("/round/{id}", get(|Path(id): Path<i64>| async move { Redirect::temporary(&format!("/round/{id}")) }))
        .route("/away/{id}", get(async || Redirect::temporary("http://user:s3cret@localhost:1/products/1?s3cret")))
        .route(
            "/dated/{id}",
            get(|headers: HeaderMap| async move {
                let date = "Sun, 06 Nov 1994 08:49:37 GMT";
                match headers.get(header::IF_MODIFIED_SINCE) {
                    Some(since) if since.as_bytes() == date.as_bytes() => StatusCode::NOT_MODIFIED.into_response(),
                    _ => ([(header::LAST_MODIFIED, date)], "7").into_response(),
                }
            }),
        )
        .with_state(shop.clone());
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (shop, base)
}

fn products(base: &str) -> larder::tiered::http::HttpBuilder<i64, Product> {
    HttpSource::get(format!("{base}/products/{{key}}")).put().delete()
}

fn product(n: u64) -> Product {
    Product { name: format!("product {n}"), price: n as f64 / 4.0 }
}

fn failure<T: std::fmt::Debug>(result: Result<T, SourceError>) -> (Failure, String) {
    let error = result.unwrap_err();
    (error.failure(), error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_source() {
    let (_, base) = serve().await;
    let nowhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    SourceSuite::new(products(&base).build().unwrap(), |n| n as i64, product)
        .slow(1)
        .refuses(7, Product { name: "less than nothing".into(), price: -1.0 })
        .unreachable(products(&format!("http://{nowhere}")).build().unwrap())
        .many(300)
        .run()
        .await;
    let stock = HttpSource::<i64, u64>::get(format!("{base}/stock/{{key}}")).put().build().unwrap();
    carries_out_once(&stock, &1, &1, |sold| *sold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stays_in_its_place() {
    let (_, base) = serve().await;
    let segment = HttpSource::<String, (String, String)>::get(format!("{base}/echo/{{key}}/end")).build().unwrap();
    let query = HttpSource::<String, ((), String)>::get(format!("{base}/echo?a=1&k={{key}}&z=2")).build().unwrap();
    for key in
        ["a/b", "a?b=c#d", "ü \u{1F600}", "%2e%2e%2f", "a&z=3", "{key}", "a+b", "../..", "..;", "\\..\\", "@host", "\n"]
    {
        let key = String::from(key);
        let (echoed, _) = segment.load(&key, None).await.unwrap().into_value().expect("it goes nowhere else");
        assert_eq!(echoed, key);
        let ((), uri) = query.load(&key, None).await.unwrap().into_value().unwrap();
        assert_eq!(uri.matches(['&', '=', '?']).count(), 6, "{uri}");
        assert!(uri.starts_with("/echo?a=1&k=") && uri.ends_with("&z=2"), "{uri}");
    }
    for key in ["..", "."] {
        let (kind, message) = failure(segment.load(&key.into(), None).await);
        assert_eq!(kind, Failure::Rejected);
        assert!(message.contains("this key cannot stand there"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_response_says_counts() {
    let (_, base) = serve().await;
    let say = async |query: &str| {
        let source = HttpSource::<i64, i64>::get(format!("{base}/say/{{key}}?{query}")).build().unwrap();
        source.load(&1, None).await
    };
    let seconds = Duration::from_secs;
    assert_eq!(say("200").await.unwrap(), Loaded::value(1));
    assert_eq!(say("200&cache-control:max-age=60").await.unwrap(), Loaded::value(1).fresh_for(seconds(60)));
    let zero = Duration::ZERO;
    assert_eq!(
        say("200&cache-control:no-store").await.unwrap(),
        Loaded::value(1).fresh_for(zero).stale_while_revalidate(zero).stale_if_error(zero)
    );
    assert_eq!(
        say("200&cache-control:max-age=60,%20stale-while-revalidate=5,%20stale-if-error=7&age:10&etag:W/\"x\"")
            .await
            .unwrap(),
        Loaded::value(1)
            .fresh_for(seconds(50))
            .stale_while_revalidate(seconds(5))
            .stale_if_error(seconds(7))
            .validator("W/\"x\"")
    );
    assert_eq!(say("404&cache-control:max-age=9").await.unwrap(), Loaded::absent().fresh_for(seconds(9)));
    assert_eq!(say("410").await.unwrap(), Loaded::absent());
    for (status, kind) in [
        (204, Failure::Rejected),
        (206, Failure::Rejected),
        (304, Failure::Rejected),
        (400, Failure::Rejected),
        (401, Failure::Rejected),
        (408, Failure::Unavailable),
        (429, Failure::Overloaded),
        (500, Failure::Unavailable),
        (503, Failure::Overloaded),
    ] {
        let (failed, message) = failure(say(&status.to_string()).await);
        assert_eq!(failed, kind, "{status}");
        assert!(message.starts_with(&format!("GET {base}/say/1: {status}")), "{message}");
    }
    // Where the server says it wrong.
    let deaf = HttpSource::<i64, i64>::get(format!("{base}/say/{{key}}?200&cache-control:no-store"));
    assert_eq!(deaf.ignore_cache_control().build().unwrap().load(&1, None).await.unwrap(), Loaded::value(1));
    // By date, where there is no tag.
    let dated = HttpSource::<i64, i64>::get(format!("{base}/dated/{{key}}")).build().unwrap();
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    assert_eq!(dated.load(&1, None).await.unwrap(), Loaded::value(7).validator(date));
    assert_eq!(dated.load(&1, Some(date)).await.unwrap(), Loaded::unchanged());
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_write_was_done_is_in_doubt_where_the_server_is() {
    let (_, base) = serve().await;
    for (status, kind) in [
        (400, Failure::Rejected),
        (408, Failure::Unavailable),
        (409, Failure::Rejected),
        (429, Failure::Overloaded),
        (500, Failure::Unavailable),
        (502, Failure::Unavailable),
        (503, Failure::Unavailable),
        (504, Failure::Unavailable),
    ] {
        let source = HttpSource::<i64, i64>::get(format!("{base}/say/{{key}}?{status}")).put().delete();
        let source = source.build().unwrap();
        for value in [Some(&1), None] {
            let (failed, message) = failure(source.save(Save::new(&1, value, WriteId(1))).await);
            assert_eq!(failed, kind, "{message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_a_rest_gets_it() {
    let (shop, base) = serve().await;
    let source = HttpSource::<i64, i64>::get(format!("{base}/say/{{key}}?503&retry-after:1")).build().unwrap();
    for _ in 0..20 {
        let (kind, message) = failure(source.load(&1, None).await);
        assert_eq!(kind, Failure::Overloaded);
        assert!(message.contains("503") || message.contains("asked to be left alone for"), "{message}");
    }
    assert_eq!(shop.requests.load(Relaxed), 1);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    drop(source.load(&1, None).await);
    assert_eq!(shop.requests.load(Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_bodies_and_secrets() {
    let (shop, base) = serve().await;
    shop.products.lock().unwrap().insert(5, (product(5), 1));
    let from = |path: &str| HttpSource::<i64, Json>::get(format!("{base}/{path}/{{key}}"));
    let moved = from("moved").build().unwrap().load(&5, None).await.unwrap();
    assert_eq!(moved.into_value().unwrap(), json!({"name": "product 5", "price": 1.25}));
    let (kind, message) = failure(from("moved").redirects(0).build().unwrap().load(&5, None).await);
    assert_eq!(kind, Failure::Rejected, "{message}");
    let (kind, message) = failure(from("round").build().unwrap().load(&5, None).await);
    assert_eq!(kind, Failure::Rejected, "{message}");
    let (kind, message) = failure(from("away").build().unwrap().load(&5, None).await);
    assert_eq!(kind, Failure::Rejected);
    assert!(
        message.contains("307 Temporary Redirect, to `http://localhost:1/products/1`, which is not followed"),
        "{message}"
    );
    let (kind, message) = failure(from("products").max_body(10).build().unwrap().load(&5, None).await);
    assert_eq!(kind, Failure::Rejected);
    assert!(message.contains("the body is larger than 10 bytes: raise `max_body`"), "{message}");
    let typed = HttpSource::<i64, Vec<u8>>::get(format!("{base}/products/{{key}}")).build().unwrap();
    let (kind, message) = failure(typed.load(&5, None).await);
    assert_eq!(kind, Failure::Rejected);
    assert!(message.contains("the body is not a value: invalid type: map"), "{message}");
    let raw = HttpSource::<i64, Vec<u8>>::get_with(format!("{base}/products/{{key}}"), |body| {
        Ok::<_, std::io::Error>(body.to_vec())
    });
    let raw = raw.build().unwrap().load(&5, None).await.unwrap().into_value().unwrap();
    assert!(raw.starts_with(b"{\"name\""));

    for (url, why) in [
        ("http://host/products", "it has no `{key}`"),
        ("http://{key}/products", "`{key}` belongs in the path or the query"),
        ("http://user:{key}@host/", "`{key}` belongs in the path or the query"),
        ("http://host/#{key}", "`{key}` belongs in the path or the query"),
        ("ftp://host/{key}", "it is neither http nor https"),
        ("http://us3cret:s3cret@host:port/{key}?s3cret", "invalid port number"),
        ("{key}", "relative URL without a base"),
    ] {
        let builder = HttpSource::<i64, Json>::get(url);
        let error = builder.build().unwrap_err();
        let text = error.to_string();
        assert!(text.contains(why) && text.ends_with("write it as https://host/path/{key}"), "{url}: {text}");
        assert!(!text.contains("s3cret") && !format!("{error:?}").contains("s3cret"), "{error:?}");
    }
    let nowhere = HttpSource::<i64, Json>::get("http://us3cret:s3cret@127.0.0.1:1/{key}?token=s3cret")
        .header("authorization", "Bearer s3cret");
    assert!(!format!("{nowhere:?}").contains("s3cret"));
    let nowhere = nowhere.build().unwrap();
    let error = nowhere.load(&1, None).await.unwrap_err();
    assert!(error.to_string().starts_with("GET http://127.0.0.1:1/1: "), "{error}");
    assert!(!format!("{nowhere:?} {error} {error:?}").contains("s3cret"), "{error:?}");
    let bad = HttpSource::<i64, Json>::get("http://host/{key}").header("a", "s3cret\n").build().unwrap_err();
    assert!(!format!("{bad} {bad:?}").contains("s3cret"), "{bad:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_cache() {
    let (shop, base) = serve().await;
    shop.products.lock().unwrap().insert(5, (product(5), 1));
    let cache = Tiered::builder()
        .keyspace("products")
        .max_capacity(100)
        .source(products(&base).build().unwrap())
        .build()
        .unwrap();
    for _ in 0..10 {
        assert_eq!(cache.get(&5).await.unwrap(), Some(product(5)));
    }
    assert_eq!(shop.requests.load(Relaxed), 1);
    // Past the second that the server has said, it is asked whether the copy is still right.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(cache.get(&5).await.unwrap(), Some(product(5)));
    assert_eq!((shop.requests.load(Relaxed), shop.unchanged.load(Relaxed)), (2, 1));
    // It is down, and has said that old copies will do then.
    shop.broken.store(true, Relaxed);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let served = cache.read(&5).await.unwrap();
    assert_eq!((served.value, served.how), (Some(product(5)), How::Rescued));
    shop.broken.store(false, Relaxed);
    cache.insert(5, product(6)).await.unwrap();
    assert_eq!(cache.get(&5).await.unwrap(), Some(product(6)));
    cache.remove(&5).await.unwrap();
    assert_eq!(cache.get(&5).await.unwrap(), None);
    assert!(shop.products.lock().unwrap().is_empty());
}
