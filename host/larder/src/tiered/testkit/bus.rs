//! What a bus promises, as a suite.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::tier::{keys_of, prefix, tag};
use crate::tiered::{BoxFuture, Bus, Listener, News};

type ConnectBus = Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Bus>> + Send + Sync>;

/// The suite of a [`Bus`].
#[must_use]
pub struct BusSuite {
    connect: ConnectBus,
}

impl std::fmt::Debug for BusSuite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusSuite").finish_non_exhaustive()
    }
}

/// A listener that writes down what it hears.
struct Ear {
    heard: Mutex<Vec<News>>,
    trusted_until: Mutex<Option<Instant>>,
}

impl Ear {
    fn on(bus: &Arc<dyn Bus>) -> Arc<Self> {
        let ear = Arc::new(Ear { heard: Mutex::default(), trusted_until: Mutex::default() });
        let listener: Arc<dyn Listener> = ear.clone();
        bus.join(Arc::downgrade(&listener));
        ear
    }

    /// A bus that is never cut off says nothing of trust.
    fn is_trusted(&self) -> bool {
        self.trusted_until.lock().is_none_or(|until| Instant::now() < until)
    }

    fn count(&self, news: &News) -> usize {
        self.heard.lock().iter().filter(|heard| *heard == news).count()
    }
}

impl Listener for Ear {
    fn hear<'a>(&'a self, news: &'a News) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            sleep(Duration::from_millis(3)).await;
            self.heard.lock().push(news.clone());
        })
    }

    fn lose_track(&self) {}

    fn trust_until(&self, until: Instant) {
        *self.trusted_until.lock() = Some(until);
    }
}

impl BusSuite {
    /// The suite of what `connect` connects to: the same bus each time, as another process would.
    pub fn new<F: Future<Output = Arc<dyn Bus>> + Send + 'static>(
        connect: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        BusSuite { connect: Box::new(move || Box::pin(connect())) }
    }

    /// Runs all of it.
    ///
    /// # Panics
    /// At the first promise that is not kept.
    pub async fn run(&self) {
        let mut buses = Vec::new();
        for _ in 0..3 {
            buses.push((self.connect)().await);
        }
        assert!(!buses[0].summary().is_empty(), "a bus says what it is");
        let ears: Vec<_> = buses.iter().map(Ear::on).collect();
        let beside = Ear::on(&buses[0]);
        let end = Instant::now() + Duration::from_secs(60);
        while !ears.iter().chain([&beside]).all(|ear| ear.is_trusted()) {
            assert!(Instant::now() < end, "who joins is trusted before long");
            sleep(Duration::from_millis(5)).await;
        }
        let scopes = [keys_of(&["1", "größe", ""]), keys_of(&[]), tag("a tag, \"quoted\"\n"), prefix("a/"), prefix("")];
        let from: Arc<dyn Listener> = ears[0].clone();
        let mut announced = Vec::new();
        for (at, scope) in scopes.into_iter().enumerate() {
            let news = News { keyspace: "suite".into(), scope, soft: at % 2 == 1 };
            buses[0].announce(&from, news.clone()).await.expect("`announce`");
            for ear in ears[1..].iter().chain([&beside]) {
                let is_done = ear.count(&news) == 1 || !ear.is_trusted();
                assert!(is_done, "when an announcement is acknowledged all have done it, or trust nothing: {news:?}");
            }
            assert_eq!(ears[0].count(&news), 0, "who announces is not told");
            announced.push(news);
        }
        let end = Instant::now() + Duration::from_secs(60);
        while ears[1..].iter().chain([&beside]).any(|ear| ear.heard.lock().len() < announced.len()) {
            assert!(Instant::now() < end, "all hear in the end");
            sleep(Duration::from_millis(5)).await;
        }
        for ear in ears[1..].iter().chain([&beside]) {
            assert_eq!(*ear.heard.lock(), announced, "all is heard once, whole, and in order");
        }
        // Many at once, from everywhere.
        let mut announcing = JoinSet::new();
        for at in 0..60 {
            let (bus, ear) = (buses[at % 3].clone(), ears[at % 3].clone());
            announcing.spawn(async move {
                let from: Arc<dyn Listener> = ear;
                let news = News { keyspace: "suite".into(), scope: keys_of(&[&format!("many/{at}")]), soft: false };
                bus.announce(&from, news.clone()).await.expect("`announce`");
                (at % 3, news)
            });
        }
        for (by, news) in announcing.join_all().await {
            for (at, ear) in ears.iter().enumerate().filter(|(at, _)| *at != by) {
                assert!(ear.count(&news) == 1 || !ear.is_trusted(), "{at} was not told by {by}: {news:?}");
            }
        }
        // One who leaves holds nobody up for ever, and one who is gone is not told.
        drop(buses.pop());
        let news = News { keyspace: "suite".into(), scope: keys_of(&["after"]), soft: false };
        buses[0].announce(&from, news.clone()).await.expect("`announce`");
        assert!(ears[1].count(&news) == 1 || !ears[1].is_trusted(), "who is left hears what is announced");
    }
}
