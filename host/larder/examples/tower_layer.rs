//! A tower layer that caches the responses of a service.
//!
//! ```sh
//! cargo run -p larder --example tower_layer
//! ```
//!
//! Cache-aside: a request whose key is cached is answered from the cache. The first one that misses gets a ticket, asks the
//! service and fills its response in; those who come meanwhile wait for it, and if it fails or is dropped, the next one
//! asks. What may be cached, and by which key, the layer is told by a function. (What RFC 9111 says of responses is another
//! matter: this layer keeps what its function says for as long as the rule says.)

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::{Router, routing};
use larder::Tiered;
use larder::tiered::Lookup;
use tower::{Layer, Service, ServiceExt};

/// A response that can be served again: its body is there as a whole.
#[derive(Clone)]
pub(crate) struct Kept {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// Responses with larger bodies are passed on and not kept.
const MOST: usize = 1 << 20;

impl IntoResponse for Kept {
    fn into_response(self) -> Response {
        (self.status, self.headers, self.body).into_response()
    }
}

/// Puts a cache before a service.
#[derive(Clone)]
pub(crate) struct CacheLayer {
    cache: Tiered<String, Kept>,
    /// The key of a request; none: it is not for the cache.
    key: fn(&Request) -> Option<String>,
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cached<S>;

    fn layer(&self, inner: S) -> Cached<S> {
        Cached { layer: self.clone(), inner }
    }
}

/// A service with a cache before it.
#[derive(Clone)]
pub(crate) struct Cached<S> {
    layer: CacheLayer,
    inner: S,
}

impl<S> Service<Request> for Cached<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Whether the service behind is ready matters only to who misses.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Cached { layer, inner } = self.clone();
        Box::pin(async move {
            let Some(key) = (layer.key)(&request) else { return inner.oneshot(request).await };
            let ticket = match layer.cache.lookup(&key).await {
                Ok(Lookup::Hit(served)) => match served.value {
                    Some(kept) => return Ok(marked(kept.into_response(), "larder; hit")),
                    None => None,
                },
                Ok(Lookup::Miss(ticket)) => Some(ticket),
                // A cache that fails is no reason not to answer.
                Err(_) => None,
            };
            let response = inner.oneshot(request).await?;
            let is_small = response.body().size_hint().upper().is_some_and(|size| size <= MOST as u64);
            let (Some(ticket), StatusCode::OK, true) = (ticket, response.status(), is_small) else {
                return Ok(marked(response, "larder; fwd=miss"));
            };
            let (parts, body) = response.into_parts();
            let Ok(body) = axum::body::to_bytes(body, MOST).await else {
                return Ok(StatusCode::BAD_GATEWAY.into_response());
            };
            let kept = Kept { status: parts.status, headers: parts.headers, body };
            // The answer is right, whether or not it could be kept.
            drop(ticket.fill(Some(kept.clone())).await);
            Ok(marked(kept.into_response(), "larder; fwd=miss; stored"))
        })
    }
}

fn marked(mut response: Response, status: &'static str) -> Response {
    response.headers_mut().insert("cache-status", HeaderValue::from_static(status));
    response
}

/// A service with a page that takes its time, and the layer before it; it counts how often the page was made.
pub(crate) fn service(made: &'static AtomicU64) -> Result<Router, Box<dyn std::error::Error>> {
    let cache = Tiered::builder()
        .keyspace("pages")
        .max_capacity(64 << 20)
        .weigher(|_: &String, kept: Option<&Kept>| kept.map_or(0, |kept| kept.body.len() as u32) + 256)
        .rule("ttl-ms", Duration::from_secs(60))
        .build()?;
    let key = |request: &Request| (request.method() == Method::GET).then(|| request.uri().to_string());
    let page = move || async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Html(format!("<h1>made {} times</h1>", made.fetch_add(1, Relaxed) + 1))
    };
    Ok(Router::new().route("/", routing::get(page).post(page)).layer(CacheLayer { cache, key }))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let service = service(&MADE)?;
    for _ in 0..3 {
        let response = service.clone().oneshot(Request::new(Body::empty())).await?;
        println!("{:?}", response.headers()["cache-status"]);
    }
    Ok(())
}
