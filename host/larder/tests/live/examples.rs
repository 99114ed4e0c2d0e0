//! The examples do what they say: each is run here as it stands.

#[path = "../../examples/axum_shop.rs"]
#[allow(dead_code)]
mod axum_shop;
#[path = "../../examples/ten_lines.rs"]
mod ten_lines;
#[path = "../../examples/tower_layer.rs"]
#[allow(dead_code)]
mod tower_layer;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::servers::{Server, postgres};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode};
use axum::response::Response;
use tower::ServiceExt;

fn cache_status(response: &Response) -> String {
    response.headers().get("cache-status").map_or(String::new(), |status| status.to_str().unwrap().into())
}

async fn text(response: Response) -> String {
    String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
}

#[test]
fn ten_lines_are_enough() {
    ten_lines::main().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tower_layer() {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let service = tower_layer::service(&MADE).unwrap();
    let ask = async |method: Method, uri: &str| {
        let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
        service.clone().oneshot(request).await.unwrap()
    };
    // A hundred at once are one page.
    let hundred: Vec<_> =
        (0..100).map(|_| tokio::spawn(service.clone().oneshot(Request::new(Body::empty())))).collect();
    let mut stored = 0;
    for response in hundred {
        let response = response.await.unwrap().unwrap();
        stored += u32::from(cache_status(&response) == "larder; fwd=miss; stored");
        assert_eq!(text(response).await, "<h1>made 1 times</h1>");
    }
    assert_eq!((stored, MADE.load(Relaxed)), (1, 1));
    let hit = ask(Method::GET, "/").await;
    assert_eq!(cache_status(&hit), "larder; hit");
    assert_eq!(hit.headers()["content-type"], "text/html; charset=utf-8");
    // Another key, another page; what has no key is not cached, nor what is not found.
    assert_eq!(text(ask(Method::GET, "/?page=2").await).await, "<h1>made 2 times</h1>");
    for n in 3..5 {
        assert_eq!(text(ask(Method::POST, "/").await).await, format!("<h1>made {n} times</h1>"));
    }
    for _ in 0..2 {
        let missing = ask(Method::GET, "/nothing").await;
        assert_eq!((missing.status(), cache_status(&missing).as_str()), (StatusCode::NOT_FOUND, "larder; fwd=miss"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_with_axum() {
    let Some(program) = crate::servers::or_skip("redis-server", "redis-server") else { return };
    let Some(server) = postgres::start() else { return };
    let redis = Server::start(&program, |command, port, directory| {
        command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"]).arg(directory);
    });
    let pool = sqlx::PgPool::connect(&postgres::url(server.port)).await.unwrap();
    sqlx::raw_sql(
        "create table products (id bigint primary key, name text not null, price numeric(10, 2) not null);
         insert into products values (1, 'apple', 0.75)",
    )
    .execute(&pool)
    .await
    .unwrap();
    // As in two processes.
    let open = || axum_shop::shop(&postgres::url(server.port), &format!("redis://127.0.0.1:{}", redis.port)).unwrap();
    let (one, other) = (open(), open());
    let ask = async |shop: &Router, method: Method, uri: &str, body: &'static str| {
        let request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
        shop.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap()
    };
    let first = ask(&one, Method::GET, "/products/1", "").await;
    assert_eq!((first.status(), cache_status(&first).as_str()), (StatusCode::OK, "larder; fwd=miss; stored"));
    assert_eq!(text(first).await, r#"{"name":"apple","price":0.75}"#);
    let served = async |shop: &Router, tier: u32| {
        let expected = format!("larder; hit; detail=\"Fresh, tier {tier}\"");
        // While a process does not hear the others, which a busy machine is enough for, it does not serve from its tier 0.
        for _ in 0..100 {
            let answer = ask(shop, Method::GET, "/products/1", "").await;
            let said = cache_status(&answer);
            assert_eq!(text(answer).await.contains("0.75"), said.starts_with("larder; hit"), "{said}");
            if said == expected {
                return Ok(());
            }
            if tier > 0 || said != "larder; hit; detail=\"Fresh, tier 1\"" {
                return Err(said);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err("it does not hear the others".into())
    };
    for attempt in 0.. {
        // It changes behind the caches' back, so that a hit can be told from a load.
        sqlx::raw_sql("update products set price = 9").execute(&pool).await.unwrap();
        let mut all = Ok(());
        for (shop, tier) in [(&one, 0), (&other, 1), (&other, 0)] {
            if all.is_ok() {
                all = served(shop, tier).await;
            }
        }
        // On a busy machine Redis may answer later than a reader waits for it, who then asks the database.
        let Err(said) = all else { break };
        assert!(attempt < 20, "{said}");
        let put = ask(&one, Method::PUT, "/products/1", r#"{"name":"apple","price":0.75}"#).await;
        assert_eq!(put.status(), StatusCode::NO_CONTENT, "{}", text(put).await);
        ask(&one, Method::GET, "/products/1", "").await;
    }
    // A change by way of one is seen at once by both, and is in the database.
    let changed = ask(&one, Method::PUT, "/products/1", r#"{"name":"apple","price":0.5}"#).await;
    assert_eq!(changed.status(), StatusCode::NO_CONTENT, "{}", text(changed).await);
    for shop in [&one, &other] {
        assert_eq!(text(ask(shop, Method::GET, "/products/1", "").await).await, r#"{"name":"apple","price":0.5}"#);
    }
    let (price,): (f64,) = sqlx::query_as("select price::float8 from products").fetch_one(&pool).await.unwrap();
    assert_eq!(price, 0.5);
    assert_eq!(ask(&one, Method::GET, "/products/2", "").await.status(), StatusCode::NOT_FOUND);
    // The database dies: what is cached is served, what is not is said to be unavailable.
    drop(server);
    assert_eq!(ask(&one, Method::GET, "/products/1", "").await.status(), StatusCode::OK);
    let failed = ask(&one, Method::GET, "/products/3", "").await;
    assert_eq!(failed.status(), StatusCode::SERVICE_UNAVAILABLE);
    let told = text(failed).await;
    assert!(told.contains("cannot be reached") && !told.contains("s3cret"), "{told}");
}
