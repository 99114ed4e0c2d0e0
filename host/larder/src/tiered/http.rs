//! A source over HTTP, by [reqwest]: a `GET` for each key.
//!
//! ```no_run
//! use larder::tiered::{HttpSource, Tiered};
//!
//! #[derive(Clone, serde::Serialize, serde::Deserialize)]
//! struct Product {
//!     name: String,
//!     price: f64,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = HttpSource::<i64, Product>::get("https://api.example.com/products/{key}")
//!     .put()
//!     .delete()
//!     .header("authorization", "Bearer …")
//!     .build()?;
//! let products = Tiered::builder().keyspace("products").max_capacity(10_000).source(source).build()?;
//! # let _ = products;
//! # Ok(()) }
//! ```
//!
//! **The key** stands in the URL where `{key}` is, percent-encoded: whatever it holds, it stays within its segment or
//! parameter. A key that cannot (`..` as a segment) is refused.
//!
//! **What the response says counts** (RFC 9111, RFC 5861): how long it is fresh (`s-maxage`, `max-age`, `Expires`, less `Age`),
//! whether it may be served stale or where the server fails, that it is not to be kept (`no-store`, `no-cache`, `private`,
//! `Vary: *`). What it does not say, the keyspace's rule does. `ETag`, else `Last-Modified`, is the validator: a copy that is
//! renewed is asked about, and 304 moves no bytes. To keep what must be asked about each time (`no-cache`) would save bytes,
//! but no round trip; it is not kept.
//!
//! | status | is |
//! |---|---|
//! | 2xx | a value; 204 and 206 are rejected, for they have none, or a part |
//! | 304 | unchanged |
//! | 404, 410 | absent; done, for a removal |
//! | 408, 425, 5xx | unavailable |
//! | 429, 503 | overloaded; until `Retry-After` is over, and at most a minute, the server is not asked at all |
//! | other 4xx, and 3xx | rejected |
//!
//! **Writes** are `PUT` and `DELETE`, with the write's name as `Idempotency-Key`, so that a server which remembers names does
//! nothing twice.
//!
//! Redirects are followed within the host that was asked, and not from `https` to `http`: what answers for a key is what was
//! configured, and a key cannot send requests elsewhere.

mod freshness;

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{
    CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::{BoxFuture, Failure, Key, Loaded, Save, Source, SourceError};
use freshness::{Freshness, retry_after};

/// Where the key stands in a URL.
const PLACE: &str = "{key}";
/// What is encoded: all but what RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// So long a server is left alone at most, whatever it asks for.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Why a source could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpBuildError {
    /// The URL cannot be read, or the key does not stand in its path or query.
    #[error("the URL `{url}`: {why}; write it as https://host/path/{{key}}")]
    Url {
        /// The URL, without secrets.
        url: String,
        /// What is wrong with it.
        why: Cow<'static, str>,
    },
    /// A header's name or value has characters that it cannot have. The value may be secret, and is not repeated.
    #[error("the header `{0}` has a name or a value that HTTP does not allow")]
    Header(String),
    /// The client cannot be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(reqwest::Error),
}

/// Why a request did not do what it was to do.
#[derive(Debug, thiserror::Error)]
#[error("{method} {url}: {why}")]
struct RequestError {
    method: Method,
    /// Without user, password and query, which may be secret.
    url: String,
    #[source]
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("{}", chain(.0))]
    Transport(reqwest::Error),
    #[error("{0}")]
    Status(StatusCode),
    #[error("{0}, to `{1}`, which is not followed: only within the host, and not away from https")]
    Redirect(StatusCode, String),
    #[error("the body is larger than {0} bytes: raise `max_body`, if it may be")]
    TooLarge(usize),
    #[error("the body is not a value: {0}")]
    Value(Box<dyn std::error::Error + Send + Sync>),
    #[error("the value cannot be written: {0}")]
    Unwritable(Box<dyn std::error::Error + Send + Sync>),
    #[error("this key cannot stand there: put it in the query, or encode it")]
    Key,
    #[error("the server asked to be left alone for {0:?} more")]
    Rests(Duration),
    #[error("the source does not do that: call `{0}` when it is set up")]
    NoMethod(&'static str),
}

/// An error with what is behind it: by itself reqwest says little more than that sending failed.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

type Problem = Box<dyn std::error::Error + Send + Sync>;
type Decode<V> = Box<dyn Fn(&[u8]) -> Result<V, Problem> + Send + Sync>;
type Encode<V> = Box<dyn Fn(&V) -> Result<Vec<u8>, Problem> + Send + Sync>;

/// Sets a [`HttpSource`] up. From [`HttpSource::get`].
#[must_use]
pub struct HttpBuilder<K, V> {
    url: String,
    decode: Decode<V>,
    encode: Option<(String, Encode<V>, &'static str)>,
    delete: Option<String>,
    headers: Vec<(String, String)>,
    shared: bool,
    ignores: bool,
    timeout: Duration,
    max_body: usize,
    redirects: usize,
    client: Option<Client>,
    kinds: PhantomData<fn() -> K>,
}

impl<K, V> fmt::Debug for HttpBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpBuilder").field("url", &without_secrets(&self.url)).finish_non_exhaustive()
    }
}

impl<K: Key, V: Send + Sync + 'static> HttpBuilder<K, V> {
    fn new(url: String, decode: Decode<V>) -> Self {
        HttpBuilder {
            url,
            decode,
            encode: None,
            delete: None,
            headers: Vec::new(),
            shared: true,
            ignores: false,
            timeout: Duration::from_secs(30),
            max_body: 16 << 20,
            redirects: 5,
            client: None,
            kinds: PhantomData,
        }
    }

    /// Values are saved by a `PUT` to where they are loaded from, as JSON.
    pub fn put(self) -> Self
    where
        V: Serialize,
    {
        let url = self.url.clone();
        self.put_to(url)
    }

    /// The same to another URL.
    pub fn put_to(mut self, url: impl Into<String>) -> Self
    where
        V: Serialize,
    {
        let encode: Encode<V> = Box::new(|value| serde_json::to_vec(value).map_err(Into::into));
        self.encode = Some((url.into(), encode, "application/json"));
        self
    }

    /// The same, with bodies made by a closure, of this media type.
    pub fn put_with(
        mut self,
        url: impl Into<String>,
        media_type: &'static str,
        body: impl Fn(&V) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        self.encode = Some((url.into(), Box::new(move |value| Ok(body(value))), media_type));
        self
    }

    /// Keys are removed by a `DELETE` where they are loaded from.
    pub fn delete(self) -> Self {
        let url = self.url.clone();
        self.delete_at(url)
    }

    /// The same at another URL.
    pub fn delete_at(mut self, url: impl Into<String>) -> Self {
        self.delete = Some(url.into());
        self
    }

    /// A header that goes with each request. Its value is taken to be secret.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// What is kept is for one user alone: `private` responses may be kept, and `s-maxage` means nothing.
    pub fn private_cache(mut self) -> Self {
        self.shared = false;
        self
    }

    /// Has the keyspace's rule decide alone how long values are kept, whatever the responses say. For servers that say it wrong.
    pub fn ignore_cache_control(mut self) -> Self {
        self.ignores = true;
        self
    }

    /// How long a request may take, with its body; 30 s if nothing is said. A client of the caller's own has its own limits, too.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// How many bytes a body may have, after decompression; 16 MiB if nothing is said.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// How many redirects are followed, within the host; 5 if nothing is said.
    pub fn redirects(mut self, most: usize) -> Self {
        self.redirects = most;
        self
    }

    /// A client of the caller's own: its proxies, its certificates, and its redirects.
    pub fn client(mut self, client: Client) -> Self {
        self.client = Some(client);
        self
    }

    /// Builds the source.
    ///
    /// # Errors
    /// [`HttpBuildError`], which says what to change.
    pub fn build(self) -> Result<HttpSource<K, V>, HttpBuildError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let bad = || HttpBuildError::Header(name.clone());
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
            let mut value = HeaderValue::from_str(value).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.append(header, value);
        }
        let client = match self.client {
            Some(client) => client,
            None => client(self.redirects)?,
        };
        let put = self.encode.map(|(url, encode, media)| Ok((Template::parse(&url)?, encode, media))).transpose()?;
        Ok(HttpSource {
            client,
            get: Template::parse(&self.url)?,
            decode: self.decode,
            put,
            delete: self.delete.map(|url| Template::parse(&url)).transpose()?,
            headers,
            shared: self.shared,
            ignores: self.ignores,
            timeout: self.timeout,
            max_body: self.max_body,
            rests_until: Mutex::new(None),
            kinds: PhantomData,
        })
    }
}

fn client(redirects: usize) -> Result<Client, HttpBuildError> {
    // Whoever has chosen another one for the process keeps it.
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        drop(rustls::crypto::ring::default_provider().install_default());
    }
    let within_the_host = redirect::Policy::custom(move |attempt| {
        let to = attempt.url();
        let follows = attempt.previous().last().is_some_and(|from| {
            let upgrades = from.scheme() == "http" && to.scheme() == "https";
            from.host() == to.host()
                && (upgrades
                    || from.scheme() == to.scheme() && from.port_or_known_default() == to.port_or_known_default())
        });
        if follows && attempt.previous().len() <= redirects { attempt.follow() } else { attempt.stop() }
    });
    let client = Client::builder()
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(5))
        .redirect(within_the_host);
    client.build().map_err(HttpBuildError::Client)
}

/// A URL without what may be secret: user, password, query and fragment.
fn without_secrets(url: &str) -> String {
    // Nobody knows what it is.
    let Some((scheme, rest)) = url.split_once("://") else { return "…".into() };
    let (before, behind) = rest.rsplit_once('@').unwrap_or(("", rest));
    let end = behind.find(['?', '#']).unwrap_or(behind.len());
    let Some(at) = before.find(['/', '?', '#']) else { return format!("{scheme}://{}", &behind[..end]) };
    // What stands before it may be a password with such a letter in it, which should have been encoded, or a path.
    let host = plain_host(&before[..at]);
    // Or a query, to which the rest belongs, too.
    let is_path = !before.contains(['?', '#']);
    if is_path { format!("{scheme}://{host}…@{}", &behind[..end]) } else { format!("{scheme}://{host}…") }
}

/// The host that a URL begins with, if it looks like one, with what divides it from the rest; or nothing. Behind a colon there
/// may be a port or the beginning of a password, so it ends there.
fn plain_host(authority: &str) -> String {
    let ends = authority.find(']').map_or(0, |bracket| bracket + 1);
    let colon = authority[ends..].find(':').map_or(authority.len(), |colon| ends + colon);
    let (name, port) = authority.split_at(colon);
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    let is_host = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name == "localhost" || name.contains('.') && is_name(name),
    };
    match port.strip_prefix(':') {
        _ if !is_host => String::new(),
        None => format!("{name}/"),
        Some(port) if port.bytes().all(|digit| digit.is_ascii_digit()) => format!("{name}:"),
        Some(_) => String::new(),
    }
}

/// A URL with a place for the key.
#[derive(Debug)]
struct Template {
    url: String,
    /// How many segments its path has, with any key.
    segments: usize,
}

impl Template {
    fn parse(url: &str) -> Result<Template, HttpBuildError> {
        let bad = |why: Cow<'static, str>| HttpBuildError::Url { url: without_secrets(url), why };
        if !url.contains(PLACE) {
            return Err(bad("it has no `{key}`".into()));
        }
        let with = |key: &str| Url::parse(&url.replace(PLACE, key)).map_err(|error| bad(error.to_string().into()));
        let (one, other) = (with("a")?, with("b")?);
        if !matches!(one.scheme(), "http" | "https") {
            return Err(bad("it is neither http nor https".into()));
        }
        let same = |part: fn(&Url) -> Option<&str>| part(&one) == part(&other);
        let origin = one.origin() == other.origin() && one.username() == other.username();
        if !origin || !same(Url::password) || !same(Url::fragment) {
            return Err(bad("`{key}` belongs in the path or the query".into()));
        }
        Ok(Template { url: url.into(), segments: Template::segments(&one) })
    }

    fn segments(url: &Url) -> usize {
        url.path_segments().map_or(0, Iterator::count)
    }

    /// The URL of a key; `None`: the key would change more than its place.
    fn of(&self, key: &str) -> Option<Url> {
        let encoded = utf8_percent_encode(key, ENCODED).to_string();
        let url = Url::parse(&self.url.replace(PLACE, &encoded)).ok()?;
        // A segment `..` is taken away together with the one before it, however it is encoded.
        (Template::segments(&url) == self.segments).then_some(url)
    }
}

/// A [`Source`] over HTTP. See the [module](self).
pub struct HttpSource<K, V> {
    client: Client,
    get: Template,
    decode: Decode<V>,
    put: Option<(Template, Encode<V>, &'static str)>,
    delete: Option<Template>,
    headers: HeaderMap,
    shared: bool,
    ignores: bool,
    timeout: Duration,
    max_body: usize,
    /// What the server has asked for by `Retry-After`.
    rests_until: Mutex<Option<Instant>>,
    kinds: PhantomData<fn() -> K>,
}

impl<K, V> fmt::Debug for HttpSource<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSource").field("url", &without_secrets(&self.get.url)).finish_non_exhaustive()
    }
}

impl<K: Key, V: Send + Sync + 'static> HttpSource<K, V> {
    /// Loads by a `GET` of this URL, with the key in place of `{key}`. Bodies become values by serde, from JSON.
    pub fn get(url: impl Into<String>) -> HttpBuilder<K, V>
    where
        V: DeserializeOwned,
    {
        HttpBuilder::new(url.into(), Box::new(|body| serde_json::from_slice(body).map_err(Into::into)))
    }

    /// The same, and bodies become values by a closure.
    pub fn get_with<E: Into<Problem>>(
        url: impl Into<String>,
        value: impl Fn(&[u8]) -> Result<V, E> + Send + Sync + 'static,
    ) -> HttpBuilder<K, V> {
        HttpBuilder::new(url.into(), Box::new(move |body| value(body).map_err(Into::into)))
    }

    /// Sends a request for a key, unless the server has asked to be left alone.
    async fn send(
        &self,
        method: &Method,
        template: &Template,
        key: &K,
        with: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, (Failure, Why)> {
        let rests = self.rests_until.lock().map(|until| until.saturating_duration_since(Instant::now()));
        if let Some(rest) = rests.filter(|rest| !rest.is_zero()) {
            return Err((Failure::Overloaded, Why::Rests(rest)));
        }
        let url = template.of(&key.text()).ok_or((Failure::Rejected, Why::Key))?;
        let request = self.client.request(method.clone(), url).headers(self.headers.clone()).timeout(self.timeout);
        let sent = with(request).send().await;
        let response = sent.map_err(|error| (Failure::Unavailable, Why::Transport(error.without_url())))?;
        let status = response.status();
        let failure = match status.as_u16() {
            200..300 | 304 | 404 | 410 => return Ok(response),
            429 | 503 => {
                if let Some(time) = retry_after(response.headers(), SystemTime::now()) {
                    *self.rests_until.lock() = Some(Instant::now() + time.min(LONGEST_REST));
                }
                // Who is busy has not begun; but what answers so may stand before the server, which has. A load is only asked again.
                if status == StatusCode::SERVICE_UNAVAILABLE && *method != Method::GET {
                    Failure::Unavailable
                } else {
                    Failure::Overloaded
                }
            }
            408 | 425 | 500.. => Failure::Unavailable,
            _ => Failure::Rejected,
        };
        let to = response.headers().get(reqwest::header::LOCATION).filter(|_| status.is_redirection());
        Err((
            failure,
            match to {
                Some(to) => Why::Redirect(status, without_secrets(&String::from_utf8_lossy(to.as_bytes()))),
                None => Why::Status(status),
            },
        ))
    }

    fn error(&self, method: Method, template: &Template, key: &K, (failure, why): (Failure, Why)) -> SourceError {
        let url = without_secrets(&template.url).replace(PLACE, &key.text());
        let error = RequestError { method, url, why };
        match failure {
            Failure::Rejected => SourceError::rejected(error),
            Failure::Overloaded => SourceError::overloaded(error),
            _ => SourceError::unavailable(error),
        }
    }

    async fn load_key(&self, key: &K, validator: Option<&str>) -> Result<Loaded<V>, (Failure, Why)> {
        let response = self
            .send(&Method::GET, &self.get, key, |request| match validator {
                // Entity tags are in quotes, and dates are not.
                Some(tag) if tag.ends_with('"') => request.header(IF_NONE_MATCH, tag),
                Some(date) => request.header(IF_MODIFIED_SINCE, date),
                None => request,
            })
            .await?;
        let status = response.status();
        let text =
            |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(Arc::from);
        let named: Option<Arc<str>> = text(ETAG).or_else(|| text(LAST_MODIFIED));
        let freshness = match self.ignores {
            true => Freshness::default(),
            false => Freshness::of(response.headers(), SystemTime::now(), self.shared),
        };
        let mut loaded = match status.as_u16() {
            404 | 410 => Loaded::absent(),
            304 if validator.is_some() => Loaded::unchanged(),
            204..=206 | 304 => return Err((Failure::Rejected, Why::Status(status))),
            _ => {
                let body = self.body(response).await?;
                let value = (self.decode)(&body).map_err(|error| (Failure::Rejected, Why::Value(error)))?;
                match named {
                    Some(validator) => Loaded::value(value).validator(validator),
                    None => Loaded::value(value),
                }
            }
        };
        let Freshness { fresh, stale, rescue } = freshness;
        for (time, set) in [
            (fresh, Loaded::fresh_for as fn(Loaded<V>, Duration) -> Loaded<V>),
            (stale, Loaded::stale_while_revalidate),
            (rescue, Loaded::stale_if_error),
        ] {
            if let Some(time) = time {
                loaded = set(loaded, time);
            }
        }
        Ok(loaded)
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, (Failure, Why)> {
        let broke = |error: reqwest::Error| (Failure::Unavailable, Why::Transport(error.without_url()));
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broke)? {
            if body.len() + chunk.len() > self.max_body {
                return Err((Failure::Rejected, Why::TooLarge(self.max_body)));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    async fn save_key(&self, save: &Save<'_, K, V>) -> Result<(), SourceError> {
        // A structured string, as the draft of the header has it.
        let id = format!("\"{}\"", save.id);
        let (method, template) = match (save.value, &self.put, &self.delete) {
            (Some(_), Some((put, ..)), _) => (Method::PUT, put),
            (None, _, Some(delete)) => (Method::DELETE, delete),
            (value, ..) => {
                let method = if value.is_some() { Method::PUT } else { Method::DELETE };
                let call = if value.is_some() { "put" } else { "delete" };
                return Err(self.error(method, &self.get, save.key, (Failure::Rejected, Why::NoMethod(call))));
            }
        };
        let body = match (save.value, &self.put) {
            (Some(value), Some((_, encode, media))) => {
                let unwritable = |error| (Failure::Rejected, Why::Unwritable(error));
                let body = encode(value).map_err(unwritable);
                Some((body.map_err(|why| self.error(method.clone(), template, save.key, why))?, *media))
            }
            _ => None,
        };
        let sent = self
            .send(&method, template, save.key, |request| {
                let request = request.header("idempotency-key", id);
                match body {
                    Some((body, media)) => request.header(CONTENT_TYPE, media).body(body),
                    None => request,
                }
            })
            .await;
        let status = sent.map_err(|why| self.error(method.clone(), template, save.key, why))?.status();
        match status.as_u16() {
            200..300 => Ok(()),
            404 | 410 if save.value.is_none() => Ok(()),
            _ => Err(self.error(method, template, save.key, (Failure::Rejected, Why::Status(status)))),
        }
    }
}

impl<K: Key, V: Send + Sync + 'static> Source<K, V> for HttpSource<K, V> {
    fn saves(&self) -> bool {
        self.put.is_some() || self.delete.is_some()
    }

    fn load<'a>(&'a self, key: &'a K, validator: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<V>, SourceError>> {
        Box::pin(async move {
            let loaded = self.load_key(key, validator).await;
            loaded.map_err(|why| self.error(Method::GET, &self.get, key, why))
        })
    }

    fn save<'a>(&'a self, save: Save<'a, K, V>) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move { self.save_key(&save).await })
    }
}

#[cfg(test)]
mod tests {
    use super::without_secrets;

    #[test]
    fn nothing_of_a_password_is_printed() {
        for (url, printed) in [
            ("https://host/path/{key}?token=secret#secret", "https://host/path/{key}"),
            ("https://me:secret@host:8443/path/{key}?at=secret", "https://host:8443/path/{key}"),
            ("https://me:sec@ret@host/{key}", "https://host/{key}"),
            ("https://me:secret/secret@host/{key}", "https://…@host/{key}"),
            ("https://me:80/secret@host/{key}?secret", "https://…@host/{key}"),
            ("https://me:secret?secret@host/{key}", "https://…"),
            ("https://me:secret#secret@host/{key}", "https://…"),
            ("https://host/{key}?mail=secret@secret&secret", "https://…"),
            ("me:secret@host/{key}", "…"),
            ("https://api.example.com/@scope/{key}", "https://api.example.com/…@scope/{key}"),
            ("https://api.example.com:8443/@scope/{key}?secret", "https://api.example.com:…@scope/{key}"),
            ("http://localhost:80/a@b/{key}", "http://localhost:…@b/{key}"),
            ("http://[::1]:80/a@b/{key}", "http://[::1]:…@b/{key}"),
            ("http://[::1]/a@b/{key}", "http://[::1]/…@b/{key}"),
            ("https://api.example.com/{key}?mail=secret@secret", "https://api.example.com/…"),
            ("https://api.example.com?mail=secret@secret", "https://api.example.com/…"),
            ("https://me.you:12/secret@host/{key}", "https://me.you:…@host/{key}"),
            ("https://me.you:secret/secret@host/{key}", "https://…@host/{key}"),
            ("https://me:secret@sec.ret/secret@host/{key}", "https://…@host/{key}"),
            ("https://sec]:ret/secret@host/{key}", "https://…@host/{key}"),
            ("https://[secret]/secret@host/{key}", "https://…@host/{key}"),
            ("https://me%3asec.ret/secret@host/{key}", "https://…@host/{key}"),
            ("https://…:é/secret@host/{key}", "https://…@host/{key}"),
            ("https:///secret@host/{key}", "https://…@host/{key}"),
            ("://@", "://"),
        ] {
            assert_eq!(without_secrets(url), printed, "{url}");
        }
    }
}
