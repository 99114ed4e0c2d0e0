//! The stores that a process of the shop has, and what lies between: lines that can be cut, and counters.
//!
//! Whatever the store is, the embedded one or a real one, the shop reaches it over a [`Line`]. To "kill" a store is to cut
//! its line: calls under way break off, and nobody knows what became of them; new ones are refused. The store keeps what it
//! has, as a server behind a broken switch does, so that old copies are there again when it comes back. That is harder
//! for a cache than a store that has lost everything.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use larder::tiered::{
    BoxFuture, Bus, FarCopy, FromFn, GroupVersion, KeyPage, Listener, Loaded, Looked, News, Put, Save, Scope, Source,
    SourceError, Tier, TierError, Token,
};
use tokio::sync::watch;

use super::database::Database;
use super::goods::{Price, Product, Reviews, Stock, Template};

/// The stores of one process. What they keep, all processes have in common.
pub struct Stores {
    /// Where templates come from.
    pub templates: Arc<dyn Source<String, Arc<Template>>>,
    /// And products,
    pub products: Arc<dyn Source<u32, Arc<Product>>>,
    /// prices,
    pub prices: Arc<dyn Source<u32, Arc<Price>>>,
    /// reviews,
    pub reviews: Arc<dyn Source<u32, Arc<Reviews>>>,
    /// and stock, which is saved, too.
    pub stock: Arc<dyn Source<u32, Arc<Stock>>>,
    /// What lies between memory and the database.
    pub far: Arc<dyn Tier>,
    /// By which the processes hear of each other.
    pub bus: Arc<dyn Bus>,
}

/// The sources of the embedded database, made of closures.
pub fn embedded(database: &Arc<Database>, far: Arc<dyn Tier>, bus: Arc<dyn Bus>) -> Stores {
    /// A source that asks the database by a closure.
    fn asking<K, V, L, F>(
        database: &Arc<Database>,
        ask: impl Fn(Arc<Database>, K) -> F + Send + Sync + 'static,
    ) -> FromFn<K, V>
    where
        K: Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
        L: Into<Loaded<V>>,
        F: Future<Output = L> + Send + 'static,
    {
        let database = database.clone();
        FromFn::new(move |key| {
            let row = ask(database.clone(), key);
            async move { Ok::<_, SourceError>(row.await) }
        })
    }
    let priced = |price: Arc<Price>| {
        let tag = tag(price.category);
        Loaded::value(price).tag(tag)
    };
    let prices =
        asking(
            database,
            move |database, id| async move { database.price(id).await.map_or_else(Loaded::absent, priced) },
        );
    let stock = asking(database, |database, id| async move { database.stock(id).await });
    let shelves = database.clone();
    let stock = stock.saving(move |id, stock: Option<Arc<Stock>>| {
        let database = shelves.clone();
        async move {
            let Some(stock) = stock else { return Err(SourceError::rejected("a product has a stock")) };
            database.set_stock(id, *stock).await.map_err(SourceError::rejected)
        }
    });
    let templates = |database: Arc<Database>, language: String| async move { database.template(&language).await };
    Stores {
        templates: Arc::new(asking(database, templates)),
        products: Arc::new(asking(database, |database, id| async move { database.product(id).await })),
        prices: Arc::new(prices),
        reviews: Arc::new(asking(database, |database, id| async move { database.reviews(id).await })),
        stock: Arc::new(stock),
        far,
        bus,
    }
}

/// The tag of a category, on its prices.
pub fn tag(category: u32) -> String {
    format!("category-{category}")
}

/// The line is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// It was cut before: the call has not left.
    #[error("the line is cut")]
    Before,
    /// It was cut on the way: nobody knows what became of the call.
    #[error("the line was cut on the way")]
    Underway,
}

/// The line to a store.
#[derive(Debug)]
pub struct Line {
    up: watch::Sender<bool>,
}

impl Line {
    /// A line that is up.
    pub fn new() -> Arc<Self> {
        Arc::new(Line { up: watch::Sender::new(true) })
    }

    /// Whether calls come through.
    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Cuts the line, or mends it.
    pub fn set(&self, up: bool) {
        self.up.send_replace(up);
    }

    /// Carries a call.
    pub async fn carry<T>(&self, call: impl Future<Output = T>) -> Result<T, Cut> {
        if !self.is_up() {
            return Err(Cut::Before);
        }
        let mut up = self.up.subscribe();
        let cut = async {
            // The sender is ours: it does not go away.
            let _ = up.wait_for(|up| !up).await;
        };
        tokio::select! {
            biased;
            () = cut => Err(Cut::Underway),
            answer = call => Ok(answer),
        }
    }
}

/// What a source was asked, in all.
#[derive(Debug, Default)]
pub struct Asked {
    /// Loads that were begun.
    pub loads: AtomicU64,
    /// Of these, of the hottest key.
    pub hottest: AtomicU64,
    /// Saves that were begun.
    pub saves: AtomicU64,
    /// Loads and saves under way, waiting for a connection or at work.
    pub open: AtomicU64,
}

struct Open<'a>(&'a AtomicU64);

impl<'a> Open<'a> {
    fn one(open: &'a AtomicU64) -> Self {
        open.fetch_add(1, Relaxed);
        Open(open)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A source at the end of a line, counted.
pub struct Remote<K, S> {
    source: S,
    line: Arc<Line>,
    asked: Arc<Asked>,
    hottest: Option<K>,
}

impl<K, S> Remote<K, S> {
    /// A source at the end of this line; loads of the `hottest` key are counted besides.
    pub fn new(source: S, line: Arc<Line>, asked: Arc<Asked>, hottest: Option<K>) -> Self {
        Remote { source, line, asked, hottest }
    }
}

impl<K: PartialEq + Send + Sync + 'static, V: Send + Sync + 'static, S: Source<K, V>> Source<K, V> for Remote<K, S> {
    fn loads(&self) -> bool {
        self.source.loads()
    }

    fn saves(&self) -> bool {
        self.source.saves()
    }

    fn load<'a>(&'a self, key: &'a K, validator: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<V>, SourceError>> {
        Box::pin(async move {
            self.asked.loads.fetch_add(1, Relaxed);
            if self.hottest.as_ref() == Some(key) {
                self.asked.hottest.fetch_add(1, Relaxed);
            }
            let _open = Open::one(&self.asked.open);
            self.line.carry(self.source.load(key, validator)).await?
        })
    }

    fn save<'a>(&'a self, save: Save<'a, K, V>) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            self.asked.saves.fetch_add(1, Relaxed);
            let _open = Open::one(&self.asked.open);
            self.line.carry(self.source.save(save)).await?
        })
    }
}

/// A far tier at the end of a line; so is the bus, for with Redis both are one server.
pub struct RemoteTier<T> {
    tier: T,
    line: Arc<Line>,
    /// How long a call is on its way, there and back, beside what the tier itself takes.
    round_trip: Duration,
}

impl<T> RemoteTier<T> {
    /// A tier at the end of this line.
    pub fn new(tier: T, line: Arc<Line>) -> Self {
        RemoteTier { tier, line, round_trip: Duration::ZERO }
    }

    /// The same, farther away.
    #[must_use]
    pub fn round_trip(mut self, time: Duration) -> Self {
        self.round_trip = time;
        self
    }

    async fn carry<A>(&self, call: impl Future<Output = Result<A, TierError>>) -> Result<A, TierError> {
        let carried = self.line.carry(async {
            if !self.round_trip.is_zero() {
                tokio::time::sleep(self.round_trip).await;
            }
            call.await
        });
        carried.await.map_err(|cut| TierError::Unavailable(cut.to_string()))?
    }
}

impl<T: Tier> Tier for RemoteTier<T> {
    fn summary(&self) -> String {
        self.tier.summary()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Looked, TierError>> {
        Box::pin(self.carry(self.tier.get(key)))
    }

    fn get_many<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Looked>, TierError>> {
        Box::pin(self.carry(self.tier.get_many(keys)))
    }

    fn token<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Token, TierError>> {
        Box::pin(self.carry(self.tier.token(key)))
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        copy: FarCopy,
        token: Token,
        write: bool,
    ) -> BoxFuture<'a, Result<Put, TierError>> {
        Box::pin(self.carry(self.tier.put(key, copy, token, write)))
    }

    fn renew<'a>(&'a self, key: &'a str, copy: FarCopy, token: Token) -> BoxFuture<'a, Result<Option<Put>, TierError>> {
        Box::pin(self.carry(self.tier.renew(key, copy, token)))
    }

    fn invalidate<'a>(&'a self, scope: &'a Scope, soft: bool) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(self.carry(self.tier.invalidate(scope, soft)))
    }

    fn leases(&self) -> bool {
        self.tier.leases()
    }

    fn lease<'a>(&'a self, key: &'a str, holder: u64, time: Duration) -> BoxFuture<'a, Result<bool, TierError>> {
        Box::pin(self.carry(self.tier.lease(key, holder, time)))
    }

    fn release<'a>(&'a self, key: &'a str, holder: u64) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(self.carry(self.tier.release(key, holder)))
    }

    fn keys<'a>(
        &'a self,
        prefix: &'a str,
        cursor: Option<&'a str>,
        most: usize,
    ) -> BoxFuture<'a, Result<KeyPage, TierError>> {
        Box::pin(self.carry(self.tier.keys(prefix, cursor, most)))
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupVersion>, TierError>> {
        Box::pin(self.carry(self.tier.groups()))
    }
}

/// A bus at the end of a line.
pub struct RemoteBus {
    bus: Arc<dyn Bus>,
    line: Arc<Line>,
}

impl RemoteBus {
    /// A bus at the end of this line.
    pub fn new(bus: Arc<dyn Bus>, line: Arc<Line>) -> Self {
        RemoteBus { bus, line }
    }
}

impl Bus for RemoteBus {
    fn summary(&self) -> String {
        self.bus.summary()
    }

    fn join(&self, listener: Weak<dyn Listener>) {
        self.bus.join(listener);
    }

    fn announce<'a>(&'a self, from: &'a Arc<dyn Listener>, news: News) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(async move {
            let carried = self.line.carry(self.bus.announce(from, news)).await;
            carried.map_err(|cut| TierError::Unavailable(cut.to_string()))?
        })
    }
}
