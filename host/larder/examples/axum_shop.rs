//! A shop's products as an axum service over PostgreSQL, cached in the process and in Redis.
//!
//! ```sh
//! DATABASE_URL=postgres://shop:secret@localhost/shop REDIS_URL=redis://localhost \
//!     cargo run -p larder --features postgres,redis,json --example axum_shop
//! curl -i localhost:3000/products/1       # Cache-Status says where it was from
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Json, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use larder::Tiered;
use larder::tiered::{Codec, PostgresSource, RedisBus, RedisServer, RedisTier, TieredError};

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Product {
    name: String,
    price: f64,
}

type Products = Tiered<i64, Product>;

type Failed = (StatusCode, String);

/// What the cache cannot help with: the database is down, and there is no old copy either.
fn failed(error: TieredError) -> Failed {
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

async fn show(State(products): State<Products>, Path(id): Path<i64>) -> Result<Response, Failed> {
    let served = products.read(&id).await.map_err(failed)?;
    let status = match served.tier {
        Some(tier) => format!("larder; hit; detail=\"{:?}, tier {tier}\"", served.how),
        None => "larder; fwd=miss; stored".to_string(),
    };
    let product = served.value.ok_or(StatusCode::NOT_FOUND);
    Ok(([("cache-status", status)], product.map(Json)).into_response())
}

async fn change(products: State<Products>, Path(id): Path<i64>, new: Json<Product>) -> Result<StatusCode, Failed> {
    products.insert(id, new.0).await.map_err(failed)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) fn shop(database: &str, redis: &str) -> Result<Router, Box<dyn std::error::Error>> {
    let source = PostgresSource::connect(database)
        .load("select name, price from products where id = :key")
        .save(
            "insert into products select :key, name, price from jsonb_populate_record(null::products, :value)
             on conflict (id) do update set name = excluded.name, price = excluded.price",
        )
        .build()?;
    let redis = RedisServer::at(redis)?;
    let products: Products = Tiered::builder()
        .keyspace("products")
        .max_capacity(100_000)
        .far(RedisTier::builder(&redis).build()?)
        .bus(Arc::new(RedisBus::builder(&redis).build()?))
        .codec(Codec::json())
        .source(source)
        .rule("ttl-ms", Duration::from_secs(60))
        .rule("stale-while-revalidate-ms", Duration::from_secs(10))
        .rule("stale-if-error-ms", Duration::from_secs(86_400))
        .build()?;
    Ok(Router::new().route("/products/{id}", routing::get(show).put(change)).with_state(products))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let shop = shop(&std::env::var("DATABASE_URL")?, &std::env::var("REDIS_URL")?)?;
    Ok(axum::serve(tokio::net::TcpListener::bind("127.0.0.1:3000").await?, shop).await?)
}
