//! Who comes to the shop: customers, and the people who run it.
//!
//! Customers arrive as strangers do, at exponential intervals, and do not wait for each other: if the shop is slow, more
//! and more are waiting, as in life. What they look at follows Zipf's law. Some follow links to products that are gone, and
//! some buy. Meanwhile prices change, categories go on sale, and reviews are written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::goods::{self, LANGUAGES};
use super::meter::Ending;
use super::shop::Shop;
use crate::synthetic::{SplitMix64, Zipf};

/// The exponent of Zipf's law. Breslau et al. (INFOCOM 99) found 0.64 to 0.83 for pages behind a proxy, and later studies of
/// shops and videos about 1: this is the textbook's.
const SKEW: f64 = 1.0;

/// Of a hundred customers, how many follow a link to a product that is gone.
const LOST: u64 = 2;

/// Of a hundred customers, how many buy what they look at.
const BUYERS: u64 = 3;

/// How many can wait at once; who comes then is turned away.
const MOST_WAITING: u64 = 10_000;

/// Customers, so many a second, until the task is dropped.
pub async fn browse(shop: Arc<Shop>, rate: f64, paused: Arc<AtomicBool>) {
    let products = shop.plan.products;
    let popular = Zipf::new(SKEW, u64::from(products));
    let mut random = SplitMix64::new(shop.plan.seed);
    let mut next = Instant::now();
    loop {
        let now = Instant::now();
        if paused.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            next = Instant::now();
            continue;
        }
        // Whoever came while this task had to wait asked when they came.
        while next <= now {
            let id = match random.below(100) < LOST {
                true => products + random.below(50) as u32,
                false => popular.sample(&mut random) as u32 - 1,
            };
            let language = match random.below(10) {
                0..7 => 0,
                7..9 => 1,
                _ => 2,
            };
            let buys = random.below(100) < BUYERS;
            if shop.meter.totals().open() < MOST_WAITING {
                shop.meter.count(|totals| totals.asked += 1);
                tokio::spawn(visit(shop.clone(), next, language, id, buys));
            } else {
                shop.meter.count(|totals| totals.turned_away += 1);
            }
            next += Duration::from_secs_f64(random.exponential() / rate);
        }
        tokio::time::sleep_until(next).await;
    }
}

async fn visit(shop: Arc<Shop>, asked: Instant, language: usize, id: u32, buys: bool) {
    debug_assert!(language < LANGUAGES.len());
    let (ending, html) = shop.page(language, id).await;
    shop.meter.page(asked, ending);
    drop(html);
    if buys && ending == Ending::Answered {
        shop.buy(id).await;
    }
}

/// Those who run the shop: every 250 ms somebody changes a price, every 400 ms somebody writes a review, and every
/// 5 s a category is on sale. What they look after is popular, too.
pub async fn run(shop: Arc<Shop>, paused: Arc<AtomicBool>) {
    let popular = Zipf::new(SKEW, u64::from(shop.plan.products));
    let mut random = SplitMix64::new(!shop.plan.seed);
    for step in 1u64.. {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if paused.load(Ordering::Relaxed) {
            continue;
        }
        let id = popular.sample(&mut random) as u32 - 1;
        // None of them waits for the others; what is not acknowledged is counted where it happens.
        if step.is_multiple_of(5) {
            let (shop, cents) = (shop.clone(), 500 + random.below(9_500) as u32);
            tokio::spawn(async move { shop.reprice(id, cents).await });
        }
        if step.is_multiple_of(8) {
            let (shop, mut random) = (shop.clone(), SplitMix64::new(random.below(u64::MAX)));
            tokio::spawn(async move { shop.review(id, &mut random).await });
        }
        if step.is_multiple_of(100) {
            let (shop, percent) = (shop.clone(), 5 + random.below(20) as u32);
            tokio::spawn(async move { shop.sale(goods::category(id), percent).await });
        }
    }
}
