//! The shop: a product page made of five parts, each a keyspace with the rule that suits it, in two processes.
//!
//! The two processes (here: two sets of caches that share nothing but the far tier, the bus and the database) are what
//! makes it a shop and not an example: what one sells, the other must not sell again. A page may be answered by either.
//!
//! [`rule`] is where to look first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::Context;
use larder::tiered::{Bus, Codec, Failure, Key, Source, Tier, Tiered, TieredError};
use larder::{Patterns, Policy, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::books::{Books, BooksError};
use super::goods::{self, LANGUAGES, Part, Price, Product, Reviews, Stock, Template, Versioned};
use super::ledger::Ledger;
use super::meter::{Ending, Meter};
use super::stores::{Asked, Cut, Line, Remote, RemoteBus, RemoteTier, Stores, tag};
use crate::synthetic::SplitMix64;

/// How many processes there are.
pub const PROCESSES: usize = 2;

/// The rule of each part. Times are short, so that a minute of the demo shows what takes a shop an hour.
///
/// **template**: on every page, and dear to make. Refreshed before it ends (`eager`), one load in the whole fleet, and any old
/// one is better than none. A release invalidates it.
///
/// **product**: hardly changes, and nobody minds a name that is a minute old: served stale while it is refreshed. Links to
/// products that are gone are asked for all the time: that there is none is remembered, but not for long.
///
/// **price**: a wrong one costs money, so never stale while it is refreshed; whoever changes one invalidates it, by its key
/// or, for a sale, by the tag of its category. If the database is down, a price of up to a minute is honoured.
///
/// **reviews**: summed up from many rows, and old ones do no harm: refreshed early by chance (XFetch), more so the longer that
/// takes; a new review expires the copies softly.
///
/// **stock**: written through by every purchase, so that both processes see it at once, and else good for some seconds. If
/// the database is down, what was there half a minute ago may be shown; the purchase itself then fails.
pub fn rule(part: Part) -> Vec<(&'static str, Value)> {
    let seconds = |n: i64| Value::Integer(1_000 * n);
    let word = Value::from;
    match part {
        Part::Template => vec![
            ("read", word("refresh-ahead")),
            ("eager", Value::Number(0.8)),
            ("ttl-ms", seconds(60)),
            ("stale-if-error-ms", seconds(86_400)),
            ("flight", word("fleet")),
        ],
        Part::Product => vec![
            ("ttl-ms", seconds(60)),
            ("jitter", Value::Number(0.1)),
            ("stale-while-revalidate-ms", seconds(60)),
            ("stale-if-error-ms", seconds(3_600)),
            ("negative-ttl-ms", seconds(5)),
        ],
        Part::Price => vec![
            ("ttl-ms", seconds(30)),
            ("jitter", Value::Number(0.1)),
            ("stale-if-error-ms", seconds(60)),
            ("negative-ttl-ms", seconds(5)),
        ],
        Part::Reviews => vec![
            ("read", word("refresh-ahead")),
            ("beta", Value::Number(1.0)),
            ("ttl-ms", seconds(30)),
            ("stale-while-revalidate-ms", seconds(60)),
            ("stale-if-error-ms", seconds(3_600)),
            ("negative-ttl-ms", seconds(5)),
            ("flight", word("fleet")),
        ],
        Part::Stock => vec![
            ("write", word("write-through")),
            ("ttl-ms", seconds(10)),
            ("jitter", Value::Number(0.1)),
            ("stale-if-error-ms", seconds(30)),
            ("negative-ttl-ms", seconds(5)),
        ],
    }
}

/// The template's rule without what protects from stampedes: a time to live and no more. Each reader who finds no copy loads
/// one, as with a cache that is a map with an expiry.
pub fn unprotected() -> Vec<(&'static str, Value)> {
    vec![("ttl-ms", Value::Integer(60_000)), ("flight", Value::from("none"))]
}

/// The caches of one process.
pub struct Process {
    /// By language.
    pub templates: Tiered<String, Arc<Template>>,
    /// By number, and so the others.
    pub products: Tiered<u32, Arc<Product>>,
    /// Prices.
    pub prices: Tiered<u32, Arc<Price>>,
    /// Reviews.
    pub reviews: Tiered<u32, Arc<Reviews>>,
    /// Stock.
    pub stock: Tiered<u32, Arc<Stock>>,
}

/// Does the same with all caches of a process, whose types differ.
macro_rules! each_cache {
    ($process:expr, $cache:ident => $do:expr) => {{
        let process: &$crate::demo::shop::Process = $process;
        [
            {
                let $cache = &process.templates;
                $do
            },
            {
                let $cache = &process.products;
                $do
            },
            {
                let $cache = &process.prices;
                $do
            },
            {
                let $cache = &process.reviews;
                $do
            },
            {
                let $cache = &process.stock;
                $do
            },
        ]
    }};
}
pub(super) use each_cache;

/// What a shop is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many products it sells.
    pub products: u32,
    /// How many copies of each part a process keeps.
    pub near: u64,
    /// Who decides what leaves them.
    pub policy: Policy,
    /// Who decides what an operation does next.
    pub patterns: Patterns,
    /// What is drawn at random is drawn from this.
    pub seed: u64,
}

/// The shop.
pub struct Shop {
    /// Its processes.
    pub processes: Vec<Process>,
    /// Its database.
    pub database: Books,
    /// The line to the database.
    pub database_line: Arc<Line>,
    /// The line to the far tier.
    pub far_line: Arc<Line>,
    /// What the database was asked, by part.
    pub asked: [Arc<Asked>; 5],
    /// What customers saw.
    pub meter: Meter,
    ledger: Ledger,
    /// The plan.
    pub plan: Plan,
    next: AtomicU64,
}

/// How a purchase ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purchase {
    /// It is theirs.
    Sold,
    /// It is theirs, but the other process could not be told yet.
    SoldQuietly,
    /// There was none left, or nobody knows whether it was sold: the customer has to ask.
    NotSold,
}

/// Why a change was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The database could not be reached.
    #[error("the database: {0}")]
    Line(#[from] Cut),
    /// The database failed.
    #[error("the database: {0}")]
    Database(#[from] BooksError),
    /// The change is in the database, and some copies could not be told.
    #[error(transparent)]
    Cache(#[from] TieredError),
}

impl Shop {
    /// Opens the shop: a process on each of the stores. What an earlier one has left in the far tier goes: its keys are the
    /// same, and its rows were others.
    ///
    /// # Errors
    /// A module that cannot be used, a far tier that cannot be reached.
    pub async fn open(plan: Plan, database: Books, stores: Vec<Stores>) -> anyhow::Result<Self> {
        // What delays a store has are its own.
        let (database_line, far_line) = (Line::new(), Line::new());
        let asked: [Arc<Asked>; 5] = Default::default();
        let processes = stores.into_iter().zip(plan.seed..).map(|(stores, seed)| {
            let Stores { templates, products, prices, reviews, stock, far, bus } = stores;
            let far: Arc<dyn Tier> = Arc::new(RemoteTier::new(far, far_line.clone()));
            let bus: Arc<dyn Bus> = Arc::new(RemoteBus::new(bus, far_line.clone()));
            let caches = Caches { plan: &plan, seed, far, bus, line: &database_line, asked: &asked };
            Ok(Process {
                templates: caches.build(Part::Template, templates, Some(LANGUAGES[0].to_string()))?,
                products: caches.build(Part::Product, products, None)?,
                prices: caches.build(Part::Price, prices, None)?,
                reviews: caches.build(Part::Reviews, reviews, None)?,
                stock: caches.build(Part::Stock, stock, None)?,
            })
        });
        let processes = processes.collect::<anyhow::Result<Vec<_>>>()?;
        for process in processes.iter().take(1) {
            for forgotten in each_cache!(process, cache => cache.invalidate_all().await) {
                forgotten.context("cannot tell the far tier to forget what an earlier demo has left there")?;
            }
        }
        Ok(Shop {
            processes,
            database,
            database_line,
            far_line,
            asked,
            meter: Meter::new()?,
            ledger: Ledger::new(plan.products as usize),
            plan,
            next: AtomicU64::new(0),
        })
    }

    /// The process that the next request goes to.
    fn process(&self) -> &Process {
        &self.processes[self.next.fetch_add(1, Relaxed) as usize % self.processes.len()]
    }

    /// Reads one part, counts it, and checks that it is not older than it may be.
    async fn read<K: Key, V>(
        &self,
        part: Part,
        cache: &Tiered<K, V>,
        key: &K,
        row: usize,
    ) -> Result<Option<V>, TieredError>
    where
        V: Versioned + Clone + Send + Sync + 'static,
    {
        let floor = self.ledger.floor(part, row);
        match cache.read(key).await {
            Ok(served) => {
                let version = served.value.as_ref().map_or(0, Versioned::version);
                self.meter.served(part, &served, version < floor);
                Ok(served.value)
            }
            Err(error) => {
                self.meter.failed(part);
                Err(error)
            }
        }
    }

    /// The page of a product. `None`: an error.
    pub async fn page(&self, language: usize, id: u32) -> (Ending, String) {
        let process = self.process();
        let (key, row) = (LANGUAGES[language].to_string(), id as usize);
        let (template, product, price, reviews, stock) = tokio::join!(
            self.read(Part::Template, &process.templates, &key, language),
            self.read(Part::Product, &process.products, &id, row),
            self.read(Part::Price, &process.prices, &id, row),
            self.read(Part::Reviews, &process.reviews, &id, row),
            self.read(Part::Stock, &process.stock, &id, row),
        );
        let (Ok(Some(template)), Ok(product), Ok(price)) = (template, product, price) else {
            return (Ending::Failed, String::new());
        };
        let Template { before, after, .. } = &*template;
        let (Some(product), Some(price)) = (product, price) else {
            return (Ending::NotFound, format!("{before}<h1>There is no such product</h1>\n{after}"));
        };
        // A page without reviews, or without a number of pieces, is a page still.
        let reviews = match reviews {
            Ok(Some(reviews)) => {
                let latest: String = reviews.latest.iter().map(|words| format!("  <li>{words}</li>\n")).collect();
                format!("<p>{:.1} of 5 stars, {} reviews</p>\n<ul>\n{latest}</ul>", reviews.stars, reviews.count)
            }
            _ => String::new(),
        };
        let stock = match stock {
            Ok(Some(stock)) if stock.left > 0 => format!("{} in stock", stock.left),
            Ok(_) => "sold out".into(),
            Err(_) => "ask us whether it is in stock".into(),
        };
        let (euros, cents) = (price.cents / 100, price.cents % 100);
        let body = format!(
            "<h1>{}</h1>\n<p>{}</p>\n<p>{euros}.{cents:02} €, {stock}</p>\n{reviews}\n",
            product.name, product.description
        );
        (Ending::Answered, format!("{before}{body}{after}"))
    }

    /// Buys a piece: reads the stock and writes one less through the cache. The database takes it only if it is the next
    /// version of what it has (optimistic locking); whoever was too slow reads again.
    pub async fn buy(&self, id: u32) -> Purchase {
        let (process, row) = (self.process(), id as usize);
        for _ in 0..5 {
            let Ok(Some(stock)) = self.read(Part::Stock, &process.stock, &id, row).await else { break };
            // The last one has been sold: this customer waits while a box is fetched.
            let left = stock.left.checked_sub(1);
            let next = Stock { left: left.unwrap_or(goods::BOX), version: stock.version + 1 };
            match process.stock.insert(id, Arc::new(next)).await {
                Ok(()) => {
                    self.ledger.acknowledge(Part::Stock, row, next.version);
                    if left.is_none() {
                        continue;
                    }
                    self.meter.count(|totals| totals.sold += 1);
                    return Purchase::Sold;
                }
                Err(error) => match error.failure() {
                    // Somebody was faster; or the copy that we read is older than the database, and has to go.
                    Failure::Rejected => {
                        let _ = process.stock.invalidate(&id).await;
                    }
                    // It is saved, and the far tier or the other process does not know yet.
                    Failure::Unreached => {
                        self.meter.count(|totals| totals.unacknowledged += 1);
                        return Purchase::SoldQuietly;
                    }
                    // Whether it was saved nobody knows.
                    _ => break,
                },
            }
        }
        self.meter.count(|totals| totals.not_sold += 1);
        Purchase::NotSold
    }

    /// Changes a price: in the database, past the caches, as the tool of the people in purchasing does; then invalidates it
    /// by its key.
    ///
    /// # Errors
    /// It was not acknowledged.
    pub async fn reprice(&self, id: u32, cents: u32) -> Result<(), ChangeError> {
        let invalidate = self.process().prices.invalidate(&id);
        let version = self.change(self.database.reprice(id, cents), invalidate).await?;
        self.ledger.acknowledge(Part::Price, id as usize, version);
        self.meter.count(|totals| totals.price_changes += 1);
        Ok(())
    }

    /// A sale: some percent off everything in a category, and one invalidation by its tag.
    ///
    /// # Errors
    /// It was not acknowledged.
    pub async fn sale(&self, category: u32, percent: u32) -> Result<usize, ChangeError> {
        let tag = tag(category);
        let invalidate = self.process().prices.invalidate_tag(&tag);
        let versions = self.change(self.database.sale(category, percent), invalidate).await?;
        for (id, version) in &versions {
            self.ledger.acknowledge(Part::Price, *id as usize, *version);
        }
        self.meter.count(|totals| totals.sales += 1);
        Ok(versions.len())
    }

    /// A customer writes a review. The old sum may be shown until there is a new one: a soft invalidation, which promises
    /// nothing about versions.
    ///
    /// # Errors
    /// It was not acknowledged.
    pub(super) async fn review(&self, id: u32, random: &mut SplitMix64) -> Result<(), ChangeError> {
        self.change(self.database.review(id, goods::review(random)), self.process().reviews.expire(&id)).await?;
        self.meter.count(|totals| totals.reviews += 1);
        Ok(())
    }

    /// A new release of a template: all copies of it have to go.
    ///
    /// # Errors
    /// It was not acknowledged.
    pub async fn release(&self, language: usize) -> Result<(), ChangeError> {
        let key = LANGUAGES[language].to_string();
        let version = self.change(self.database.release(language), self.process().templates.invalidate(&key)).await?;
        self.ledger.acknowledge(Part::Template, language, version);
        Ok(())
    }

    /// Changes something in the database, and then tells the caches.
    async fn change<T>(
        &self,
        change: impl Future<Output = Result<T, BooksError>>,
        tell: impl Future<Output = Result<(), TieredError>>,
    ) -> Result<T, ChangeError> {
        let changed = match self.database_line.carry(change).await {
            // Nothing has changed.
            Err(Cut::Before) => Err(Cut::Before.into()),
            // It may have been done: the copies go all the same.
            Err(Cut::Underway) => tell.await.map_err(Into::into).and(Err(Cut::Underway.into())),
            Ok(Err(error)) => tell.await.map_err(Into::into).and(Err(error.into())),
            Ok(Ok(changed)) => tell.await.map(|()| changed).map_err(Into::into),
        };
        if changed.is_err() {
            self.meter.count(|totals| totals.unacknowledged += 1);
        }
        changed
    }

    /// Remembers how things stand.
    pub fn remember(&self) {
        let sum = |of: fn(&Asked) -> &AtomicU64| self.asked.iter().map(|asked| of(asked).load(Relaxed)).sum::<u64>();
        let queries = sum(|asked| &asked.loads) + sum(|asked| &asked.saves);
        self.meter.remember(queries, sum(|asked| &asked.open), self.database.waiting());
    }

    /// How many operations the host finished without the module.
    pub fn fallbacks(&self) -> u64 {
        let of = |process| each_cache!(process, cache => cache.stats().fallbacks).iter().sum::<u64>();
        self.processes.iter().map(of).sum()
    }

    /// How often the hottest key was loaded.
    pub fn hottest_loads(&self) -> u64 {
        self.asked[Part::Template as usize].hottest.load(Relaxed)
    }
}

/// What the caches of a process have in common.
struct Caches<'a> {
    plan: &'a Plan,
    seed: u64,
    far: Arc<dyn Tier>,
    bus: Arc<dyn Bus>,
    line: &'a Arc<Line>,
    asked: &'a [Arc<Asked>; 5],
}

impl Caches<'_> {
    fn build<K: Key, V>(
        &self,
        part: Part,
        source: Arc<dyn Source<K, Arc<V>>>,
        hottest: Option<K>,
    ) -> anyhow::Result<Tiered<K, Arc<V>>>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let Caches { plan, .. } = self;
        let asked = self.asked[part as usize].clone();
        let mut builder = Tiered::builder()
            .keyspace(part.name())
            .max_capacity(if part == Part::Template { 2 * LANGUAGES.len() as u64 } else { plan.near })
            .policy(plan.policy.clone())
            .patterns(plan.patterns.clone())
            .far(self.far.clone())
            .bus(self.bus.clone())
            .source(Remote::new(source, self.line.clone(), asked, hottest))
            // Rows are plain data, and always become JSON; what could not would be no copy.
            .codec(Codec::try_new(
                |row: &Arc<V>| serde_json::to_vec(&**row),
                |bytes| serde_json::from_slice(bytes).map(Arc::new),
            ))
            .seed(self.seed);
        for (name, value) in rule(part) {
            builder = builder.rule(name, value);
        }
        Ok(builder.build()?)
    }
}
