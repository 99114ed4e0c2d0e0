//! The embedded slow database: tables in memory behind a few connections.
//!
//! It stands for a database server of a size that one pays for, and it is slow for the reasons that those are. A query needs
//! one of [`CONNECTIONS`] connections, and waits in line until it has one. Then it takes its time: log-normal, as the
//! times of real queries nearly are, with a median for each table, and twice as long when all connections are at work as when
//! it is alone, for they share locks, memory and disk. The rows are real: a template counts the products of each
//! category, reviews are summed up one by one, a purchase is refused if somebody else was faster.
//!
//! So a stampede hurts here as it does there: not by its queries alone, but by the line that everybody else then stands in.
//!
//! A read sees the rows as they are when it begins, and answers later. That is the worst that a cache can meet: what it
//! loads may have been changed, and invalidated, on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::goods::{self, CATEGORIES, LANGUAGES, Part, Price, Product, Review, Reviews, Stock, Template};
use crate::synthetic::SplitMix64;

/// How many queries can be at work at once.
pub const CONNECTIONS: usize = 16;

/// How long half of the queries take when the database has nothing else to do, in milliseconds, by table.
const MEDIAN_MS: [f64; 5] = [200.0, 8.0, 4.0, 20.0, 3.0];

/// The standard deviation of the logarithm of a query's time: one of a hundred takes more than twice the median.
const SPREAD: f64 = 0.35;

/// A product's stock when the shop opens.
const FULL: u32 = goods::BOX;

/// Why the database refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The row is not as the writer believes.
    #[error("the stock has changed since it was read: read it again")]
    Changed,
}

struct Rows {
    templates: [u64; LANGUAGES.len()],
    products: Vec<Arc<Product>>,
    prices: Vec<Price>,
    /// The single reviews of each product; their number is the version.
    reviews: Vec<Vec<Review>>,
    stock: Vec<Stock>,
    /// How many pieces were ever taken off the shelves, and put on them.
    sold: u64,
    refilled: u64,
}

/// The database. All methods wait as a client would.
pub struct Database {
    rows: Mutex<Rows>,
    random: Mutex<SplitMix64>,
    connections: Semaphore,
    working: AtomicU64,
    waiting: AtomicU64,
}

impl Database {
    /// A shop's database with so many products.
    pub fn new(products: u32, seed: u64) -> Self {
        Database {
            rows: Mutex::new(Rows {
                templates: [1; LANGUAGES.len()],
                products: (0..products).map(|id| Arc::new(goods::product(id))).collect(),
                prices: (0..products).map(goods::price).collect(),
                reviews: goods::reviews(products, seed),
                stock: vec![Stock { left: FULL, version: 1 }; products as usize],
                sold: 0,
                refilled: 0,
            }),
            random: Mutex::new(SplitMix64::new(seed)),
            connections: Semaphore::new(CONNECTIONS),
            working: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        }
    }

    /// How many queries are at work.
    pub fn working(&self) -> u64 {
        self.working.load(Relaxed)
    }

    /// How many wait for a connection.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// Waits for a connection, and then as long as a query of this table takes; `first` runs when it begins, `then` in the
    /// middle of it.
    async fn query<A, B>(
        &self,
        table: Part,
        first: impl FnOnce(&mut Rows) -> A,
        then: impl FnOnce(&mut Rows, A) -> B,
    ) -> B {
        let waits = Counted::up(&self.waiting);
        // It is never closed.
        let _connection = self.connections.acquire().await;
        drop(waits);
        let _works = Counted::up(&self.working);
        let seen = first(&mut self.rows.lock());
        let alone = MEDIAN_MS[table as usize] * (SPREAD * self.random.lock().normal()).exp();
        let crowd = 1.0 + self.working().saturating_sub(1) as f64 / CONNECTIONS as f64;
        let half = Duration::from_micros((alone * crowd * 500.0) as u64);
        tokio::time::sleep(half).await;
        let answer = then(&mut self.rows.lock(), seen);
        tokio::time::sleep(half).await;
        answer
    }

    async fn read<T>(&self, table: Part, look: impl FnOnce(&mut Rows) -> T) -> T {
        self.query(table, look, |_, seen| seen).await
    }

    async fn write<T>(&self, table: Part, change: impl FnOnce(&mut Rows) -> T) -> T {
        self.query(table, |_| (), |rows, ()| change(rows)).await
    }

    /// The template of a language.
    pub async fn template(&self, language: &str) -> Option<Arc<Template>> {
        let at = LANGUAGES.iter().position(|known| *known == language)?;
        let look = |rows: &mut Rows| {
            let mut counts = [0; CATEGORIES as usize];
            rows.products.iter().for_each(|product| counts[product.category as usize] += 1);
            Arc::new(goods::template(language, &counts, rows.templates[at]))
        };
        Some(self.read(Part::Template, look).await)
    }

    /// A product.
    pub async fn product(&self, id: u32) -> Option<Arc<Product>> {
        self.read(Part::Product, |rows| rows.products.get(id as usize).cloned()).await
    }

    /// Its price.
    pub async fn price(&self, id: u32) -> Option<Arc<Price>> {
        self.read(Part::Price, |rows| rows.prices.get(id as usize).copied().map(Arc::new)).await
    }

    /// What customers say of it.
    pub async fn reviews(&self, id: u32) -> Option<Arc<Reviews>> {
        let look = |rows: &mut Rows| {
            let all = rows.reviews.get(id as usize)?;
            let stars = all.iter().map(|(stars, _)| f32::from(*stars)).sum::<f32>() / all.len().max(1) as f32;
            let latest = all.iter().rev().take(3).map(|(stars, words)| format!("{stars}/5 {words}")).collect();
            Some(Arc::new(Reviews { count: all.len() as u32, stars, latest, version: all.len() as u64 }))
        };
        self.read(Part::Reviews, look).await
    }

    /// How many there are.
    pub async fn stock(&self, id: u32) -> Option<Arc<Stock>> {
        self.read(Part::Stock, |rows| rows.stock.get(id as usize).copied().map(Arc::new)).await
    }

    /// Sets a stock, if it is the next version of what is there.
    pub async fn set_stock(&self, id: u32, stock: Stock) -> Result<(), Refused> {
        let change = |rows: &mut Rows| match rows.stock.get_mut(id as usize) {
            Some(row) if row.version + 1 == stock.version => {
                let (more, less) = (stock.left.saturating_sub(row.left), row.left.saturating_sub(stock.left));
                *row = stock;
                rows.sold += u64::from(less);
                rows.refilled += u64::from(more);
                Ok(())
            }
            _ => Err(Refused::Changed),
        };
        self.write(Part::Stock, change).await
    }

    /// A new release of a template; its version.
    pub async fn release(&self, language: usize) -> u64 {
        // It is the reading that is dear.
        let change = |rows: &mut Rows| {
            rows.templates[language] += 1;
            rows.templates[language]
        };
        self.write(Part::Price, change).await
    }

    /// Another price for a product; its version.
    pub async fn reprice(&self, id: u32, cents: u32) -> u64 {
        let change = |rows: &mut Rows| {
            let price = &mut rows.prices[id as usize];
            *price = Price { cents, version: price.version + 1, ..*price };
            price.version
        };
        self.write(Part::Price, change).await
    }

    /// So many percent off in a category; the new versions.
    pub async fn sale(&self, category: u32, percent: u32) -> Vec<(u32, u64)> {
        let change = |rows: &mut Rows| {
            let priced = rows.prices.iter_mut().zip(0..).filter(|(price, _)| price.category == category);
            priced
                .map(|(price, id)| {
                    let cents = (price.cents * (100 - percent) / 100).max(100);
                    *price = Price { cents, version: price.version + 1, ..*price };
                    (id, price.version)
                })
                .collect()
        };
        self.write(Part::Price, change).await
    }

    /// A new review.
    pub async fn review(&self, id: u32, review: Review) {
        self.write(Part::Reviews, |rows| rows.reviews[id as usize].push(review)).await;
    }

    /// Whether the shelves and the books agree: what is there, and what was sold and refilled. Asked when the shop is closed.
    pub fn audit(&self) -> Audit {
        let rows = self.rows.lock();
        let left: u64 = rows.stock.iter().map(|stock| u64::from(stock.left)).sum();
        Audit { opened_with: u64::from(FULL) * rows.stock.len() as u64, sold: rows.sold, refilled: rows.refilled, left }
    }
}

/// What the shelves say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Pieces at the beginning.
    pub opened_with: u64,
    /// Pieces that were sold.
    pub sold: u64,
    /// Pieces that came in.
    pub refilled: u64,
    /// Pieces that are left.
    pub left: u64,
}

/// Counts one more until it is dropped: queries end in the middle, too, when the line is cut.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn up(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Relaxed);
        Counted(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
