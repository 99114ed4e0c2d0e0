//! The demo in words: a line a second, and what came of it all.

use std::io::{self, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Serialize;

use super::controls::{Controls, Event, Stampede};
use super::database::Audit;
use super::goods::Part;
use super::meter::{Counts, Moment, Totals};
use crate::output::grouped;

/// What came of it all. The names are those of the JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How long it ran.
    pub seconds: f64,
    /// What the shop ran on.
    pub places: Places,
    /// The modules that were in at the end.
    pub policy: String,
    /// And for the role `patterns`.
    pub patterns: String,
    /// How many modules were swapped.
    pub swaps: u64,
    /// What came of the pages, the purchases and the changes.
    pub totals: Totals,
    /// How long a page took, from the moment at which the customer asked.
    pub page_ms: Percentiles,
    /// What each part of the page was served from.
    pub parts: Vec<PartReport>,
    /// Reads of something older than was acknowledged when they began: there must be none.
    pub wrong_reads: u64,
    /// What the shelves and the books say, if the database can be asked: `opened_with + refilled` is `sold + left`.
    pub audit: Option<Audit>,
    /// Operations that the host finished without the module. There is no reason for any.
    pub fallbacks: u64,
    /// How often the hottest key was expired, and what came of it.
    pub stampedes: Vec<Stampede>,
    /// What happened.
    pub events: Vec<Event>,
    /// How it went, about once a second, for at most the last five minutes.
    pub timeline: Vec<Second>,
}

/// A second of it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Second {
    /// Until when, in seconds from the beginning.
    pub at: f64,
    /// Pages that were answered in it.
    pub answered: u64,
    /// Pages that failed.
    pub failed: u64,
    /// The median time of those that ended, in milliseconds.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// Queries that the database was asked.
    pub queries: u64,
    /// Queries under way at its end.
    pub open_queries: u64,
    /// Parts that were served stale.
    pub stale: u64,
    /// Parts that were served old, because the database failed or was slow.
    pub rescued: u64,
}

impl Second {
    fn between(from: &Moment, to: &Moment) -> Self {
        let sum = |moment: &Moment, of: fn(&Counts) -> u64| moment.parts.iter().map(of).sum::<u64>();
        let grown = |of| sum(to, of) - sum(from, of);
        Second {
            at: to.at.as_secs_f64(),
            answered: to.totals.answered - from.totals.answered,
            failed: to.totals.failed - from.totals.failed,
            p50_ms: to.p50_us as f64 / 1e3,
            p99_ms: to.p99_us as f64 / 1e3,
            queries: to.queries - from.queries,
            open_queries: to.open_queries,
            stale: grown(|counts| counts.stale),
            rescued: grown(|counts| counts.rescued),
        }
    }
}

/// What the shop ran on.
#[derive(Clone, Debug, Serialize)]
pub struct Places {
    /// The source.
    pub database: String,
    /// The far tier.
    pub far: String,
}

/// How long a page took, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// One part of the page.
#[derive(Clone, Debug, Serialize)]
pub struct PartReport {
    /// Which.
    pub part: Part,
    /// What it was served from.
    #[serde(flatten)]
    pub counts: Counts,
    /// Reads that were served without the database, among all that were served.
    pub hit_ratio: f64,
    /// What the database was asked for it: loads that were begun,
    pub loads: u64,
    /// and saves.
    pub saves: u64,
}

impl Report {
    /// How things stand.
    pub async fn of(controls: &Controls, places: &Places) -> Self {
        let shop = &controls.shop;
        let totals = shop.meter.totals();
        let audit = shop.database.audit().await.ok();
        let counts = shop.meter.parts();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let [p50, p99, p999, max] = shop.meter.percentiles([50.0, 99.0, 99.9, 100.0]).map(milliseconds);
        let parts = Part::ALL.map(|part| {
            let (counts, asked) = (counts[part as usize], &shop.asked[part as usize]);
            let (loads, saves) = (asked.loads.load(Relaxed), asked.saves.load(Relaxed));
            PartReport { part, counts, hit_ratio: counts.share(counts.near + counts.far), loads, saves }
        });
        Report {
            seconds: shop.meter.elapsed().as_secs_f64(),
            places: places.clone(),
            policy: controls.policy(),
            patterns: controls.pattern(),
            swaps: controls.swaps(),
            totals,
            page_ms: Percentiles { p50, p99, p999, max },
            parts: parts.into(),
            wrong_reads: counts.iter().map(|counts| counts.wrong).sum(),
            audit,
            fallbacks: shop.fallbacks(),
            stampedes: controls.stampedes(),
            events: controls.events(),
            timeline: {
                let moments: Vec<_> = shop.meter.moments(usize::MAX).into_iter().step_by(10).collect();
                moments.windows(2).map(|pair| Second::between(&pair[0], &pair[1])).collect()
            },
        }
    }

    /// Prints it for people.
    ///
    /// # Errors
    /// Where `out` cannot be written.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let Report { totals, page_ms, .. } = self;
        let all: u64 = self.parts.iter().map(|part| part.loads + part.saves).sum();
        writeln!(out, "\n{:.0} s on {} and {}", self.seconds, self.places.database, self.places.far)?;
        writeln!(
            out,
            "{} pages asked for: {} answered, {} failed, {} turned away; p50 {}, p99 {}, p99.9 {}, max {}",
            grouped(totals.asked + totals.turned_away),
            grouped(totals.answered),
            grouped(totals.failed),
            grouped(totals.turned_away),
            time(page_ms.p50),
            time(page_ms.p99),
            time(page_ms.p999),
            time(page_ms.max),
        )?;
        writeln!(
            out,
            "{} queries for {} reads; {} pieces sold, {} prices changed, {} sales, {} reviews; {} changes not acknowledged",
            grouped(all),
            grouped(self.parts.iter().map(|part| part.counts.reads).sum()),
            grouped(totals.sold),
            grouped(totals.price_changes),
            grouped(totals.sales),
            grouped(totals.reviews),
            grouped(totals.unacknowledged),
        )?;
        writeln!(out, "\n  part       reads  near %  far %   db %  stale rescued failed    age  loads saves")?;
        for PartReport { part, counts, loads, saves, .. } in &self.parts {
            let percent = |of| 100.0 * counts.share(of);
            writeln!(
                out,
                "  {part:<8} {:>7}  {:>6.1} {:>6.1} {:>6.1} {:>6} {:>7} {:>6} {:>4.1} s {:>6} {:>5}",
                grouped(counts.reads),
                percent(counts.near),
                percent(counts.far),
                percent(counts.database),
                counts.stale,
                counts.rescued,
                counts.failed,
                counts.mean_age().as_secs_f64(),
                loads,
                saves,
            )?;
        }
        if let Some(Audit { opened_with, sold, refilled, left }) = self.audit {
            let [has, had] = [sold + left, opened_with + refilled].map(grouped);
            writeln!(
                out,
                "\nby the books {} pieces were sold; sold and left are {has}, delivered were {had}",
                grouped(sold)
            )?;
        }
        if !self.stampedes.is_empty() {
            writeln!(out, "\nthe hottest key expired")?;
            self.stampedes.iter().try_for_each(|stampede| writeln!(out, "  at {:>4.1} s {stampede}", stampede.at))?;
        }
        writeln!(out, "\nreads older than an acknowledged write or invalidation: {}", self.wrong_reads)
    }
}

/// The head of the lines.
pub const HEAD: &str =
    "     s  pages/s  failed     p50      p99  near %  far %  queries/s  open  stale/s  rescued/s  wrong";

/// A second, from one moment to another, as a line.
pub fn line(from: &Moment, to: &Moment) -> String {
    let seconds = (to.at - from.at).as_secs_f64().max(1e-3);
    let rate = |from: u64, to: u64| (to - from) as f64 / seconds;
    let parts = to.parts.iter().zip(&from.parts).map(|(to, from)| to.since(from)).collect::<Vec<_>>();
    let sum = |of: fn(&Counts) -> u64| parts.iter().map(of).sum::<u64>();
    let served = (sum(|c| c.reads) - sum(|c| c.failed)).max(1) as f64;
    let wrong: u64 = to.parts.iter().map(|counts| counts.wrong).sum();
    format!(
        "{:>6.1}  {:>7.0}  {:>6}  {:>6}  {:>7}  {:>6.1}  {:>5.1}  {:>9.0}  {:>4}  {:>7.0}  {:>9.0}  {:>5}",
        to.at.as_secs_f64(),
        rate(from.totals.answered, to.totals.answered),
        to.totals.failed - from.totals.failed,
        time(to.p50_us as f64 / 1e3),
        time(to.p99_us as f64 / 1e3),
        100.0 * sum(|c| c.near) as f64 / served,
        100.0 * sum(|c| c.far) as f64 / served,
        rate(from.queries, to.queries),
        to.open_queries,
        sum(|c| c.stale) as f64 / seconds,
        sum(|c| c.rescued) as f64 / seconds,
        wrong,
    )
}

/// Milliseconds in three digits and a unit.
pub fn time(milliseconds: f64) -> String {
    match milliseconds {
        ms if ms >= 9_999.5 => format!("{:.0} s", ms / 1e3),
        ms if ms >= 999.5 => format!("{:.1} s", ms / 1e3),
        ms if ms >= 9.95 => format!("{ms:.0} ms"),
        ms if ms >= 0.95 => format!("{ms:.1} ms"),
        ms => format!("{:.0} us", ms * 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_few_digits() {
        let shown = [0.0, 0.049, 0.5, 1.0, 9.94, 10.0, 999.0, 1000.0, 12_000.0].map(time);
        assert_eq!(shown, ["0 us", "49 us", "500 us", "1.0 ms", "9.9 ms", "10 ms", "999 ms", "1.0 s", "12 s"]);
    }
}
