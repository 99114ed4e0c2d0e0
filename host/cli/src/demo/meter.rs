//! What the demo counts, and remembers ten times a second.
//!
//! The customers' side only: what was served, from where, how old, and how long a page took from the moment at which the
//! customer asked (not from the one at which somebody had time for it: else a stall would hide itself, which is known as
//! coordinated omission). What the stores were asked is counted at their lines, see [`super::stores`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hdrhistogram::Histogram;
use larder::tiered::{How, Served};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use super::goods::Part;

/// How often a moment is remembered.
pub const TICK: Duration = Duration::from_millis(100);

/// How many moments are remembered: five minutes.
const MOMENTS: usize = 3_000;

/// What one part of the page was served from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Reads that ended.
    pub reads: u64,
    /// Of these, from the process's own memory.
    pub near: u64,
    /// From the far tier.
    pub far: u64,
    /// From the database, by a load of their own or another's.
    pub database: u64,
    /// Reads that failed: there was no copy that might be served, and no database.
    pub failed: u64,
    /// Served stale, while it is refreshed.
    pub stale: u64,
    /// Served old, because the database failed or was slow.
    pub rescued: u64,
    /// That there is no such row.
    pub negative: u64,
    /// Older than what was acknowledged when the read began. There must be none.
    pub wrong: u64,
    /// How old what was served was, in milliseconds, in all.
    pub age_ms: u64,
}

impl Counts {
    /// What came since an earlier moment.
    #[must_use]
    pub fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            reads: self.reads - earlier.reads,
            near: self.near - earlier.near,
            far: self.far - earlier.far,
            database: self.database - earlier.database,
            failed: self.failed - earlier.failed,
            stale: self.stale - earlier.stale,
            rescued: self.rescued - earlier.rescued,
            negative: self.negative - earlier.negative,
            wrong: self.wrong - earlier.wrong,
            age_ms: self.age_ms - earlier.age_ms,
        }
    }

    /// A share of the reads that were served.
    pub fn share(&self, of: u64) -> f64 {
        of as f64 / (self.reads - self.failed).max(1) as f64
    }

    /// How old what was served was on average.
    pub fn mean_age(&self) -> Duration {
        Duration::from_millis(self.age_ms / (self.reads - self.failed).max(1))
    }
}

#[derive(Default)]
struct Tally {
    counts: Mutex<Counts>,
    oldest_ms: AtomicU64,
}

/// How a page ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The customer got it.
    Answered,
    /// The customer was told that there is no such product.
    NotFound,
    /// The customer got an error.
    Failed,
}

/// What came of the pages, and of the purchases and changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Pages that customers asked for.
    pub asked: u64,
    /// Pages that they got, "no such product" included.
    pub answered: u64,
    /// Of these, "no such product".
    pub not_found: u64,
    /// Errors that they got.
    pub failed: u64,
    /// Customers that found the door closed, because too many were waiting.
    pub turned_away: u64,
    /// Pieces that were sold, and the sale acknowledged.
    pub sold: u64,
    /// Purchases that failed, or of which the customer was not told how they ended.
    pub not_sold: u64,
    /// Prices that were changed and invalidated by their key.
    pub price_changes: u64,
    /// Sales in a category, invalidated by a tag.
    pub sales: u64,
    /// Reviews that were written, and expired softly.
    pub reviews: u64,
    /// Changes that were not acknowledged, because a store was cut off.
    pub unacknowledged: u64,
}

impl Totals {
    /// Customers who wait.
    pub fn open(&self) -> u64 {
        self.asked - self.answered - self.failed
    }
}

/// One moment, remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moment {
    /// When, from the beginning.
    pub at: Duration,
    /// What came of the pages until then.
    pub totals: Totals,
    /// What came of the reads until then, by part.
    pub parts: [Counts; 5],
    /// The oldest thing that was served of each part since the moment before.
    pub oldest_ms: [u64; 5],
    /// Loads and saves that were begun until then.
    pub queries: u64,
    /// Those under way, waiting for a connection or at work.
    pub open_queries: u64,
    /// Of these, waiting, where that can be known.
    pub waiting: Option<u64>,
    /// The median time of the pages of the last second, in microseconds; 0 if there were none.
    pub p50_us: u64,
    /// And the 99th percentile.
    pub p99_us: u64,
}

/// The counters.
pub struct Meter {
    begun: Instant,
    parts: [Tally; 5],
    totals: Mutex<Totals>,
    pages: Mutex<Histogram<u64>>,
    /// When pages ended in the last second, and what they took.
    recent: Mutex<VecDeque<(Instant, u64)>>,
    moments: Mutex<VecDeque<Moment>>,
}

impl Meter {
    /// Counts from now on.
    ///
    /// # Errors
    /// Never: the histogram's bounds are sound.
    pub fn new() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Meter {
            begun: Instant::now(),
            parts: Default::default(),
            totals: Mutex::default(),
            pages: Mutex::new(Histogram::new_with_bounds(1, 600_000_000, 3)?),
            recent: Mutex::default(),
            moments: Mutex::default(),
        })
    }

    /// How long it counts.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// A read was served.
    pub fn served<V>(&self, part: Part, served: &Served<V>, wrong: bool) {
        let tally = &self.parts[part as usize];
        let age = u64::try_from(served.age.as_millis()).unwrap_or(u64::MAX);
        tally.oldest_ms.fetch_max(age, Relaxed);
        let mut counts = tally.counts.lock();
        counts.reads += 1;
        match served.tier {
            Some(0) => counts.near += 1,
            Some(_) => counts.far += 1,
            None => counts.database += 1,
        }
        counts.stale += u64::from(served.how == How::Stale);
        counts.rescued += u64::from(served.how == How::Rescued);
        counts.negative += u64::from(served.value.is_none());
        counts.wrong += u64::from(wrong);
        counts.age_ms += age;
    }

    /// A read failed.
    pub fn failed(&self, part: Part) {
        let mut counts = self.parts[part as usize].counts.lock();
        counts.reads += 1;
        counts.failed += 1;
    }

    /// A page that was asked for at that time has ended.
    pub fn page(&self, asked: Instant, ending: Ending) {
        let now = Instant::now();
        let took = u64::try_from((now - asked).as_micros()).unwrap_or(u64::MAX).max(1);
        self.pages.lock().saturating_record(took);
        self.recent.lock().push_back((now, took));
        let mut totals = self.totals.lock();
        match ending {
            Ending::Failed => totals.failed += 1,
            Ending::Answered | Ending::NotFound => totals.answered += 1,
        }
        totals.not_found += u64::from(ending == Ending::NotFound);
    }

    /// Something else happened.
    pub fn count(&self, count: impl FnOnce(&mut Totals)) {
        count(&mut self.totals.lock());
    }

    /// What came of the pages so far.
    pub fn totals(&self) -> Totals {
        *self.totals.lock()
    }

    /// What came of the reads so far, by part.
    pub fn parts(&self) -> [Counts; 5] {
        Part::ALL.map(|part| *self.parts[part as usize].counts.lock())
    }

    /// Percentiles of the time of a page since the beginning.
    pub fn percentiles<const N: usize>(&self, of: [f64; N]) -> [Duration; N] {
        let pages = self.pages.lock();
        of.map(|percent| Duration::from_micros(pages.value_at_percentile(percent)))
    }

    /// Remembers how things stand.
    pub fn remember(&self, queries: u64, open_queries: u64, waiting: Option<u64>) {
        let now = Instant::now();
        let mut took: Vec<u64> = {
            let mut recent = self.recent.lock();
            while recent.front().is_some_and(|(ended, _)| now - *ended > Duration::from_secs(1)) {
                recent.pop_front();
            }
            recent.iter().map(|(_, took)| *took).collect()
        };
        took.sort_unstable();
        let at =
            |percent: usize| took.get((took.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0);
        let moment = Moment {
            at: self.elapsed(),
            totals: self.totals(),
            parts: self.parts(),
            oldest_ms: Part::ALL.map(|part| self.parts[part as usize].oldest_ms.swap(0, Relaxed)),
            queries,
            open_queries,
            waiting,
            p50_us: at(50),
            p99_us: at(99),
        };
        let mut moments = self.moments.lock();
        if moments.len() == MOMENTS {
            moments.pop_front();
        }
        moments.push_back(moment);
    }

    /// The last moments, the oldest first.
    pub fn moments(&self, most: usize) -> Vec<Moment> {
        let moments = self.moments.lock();
        moments.iter().skip(moments.len().saturating_sub(most)).copied().collect()
    }
}
