//! How long a copy is good for, and when it is refreshed early.
//!
//! # Early refresh
//!
//! XFetch (Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", PVLDB 2015): a read
//! at `now` of a copy that ends at `expiry`, and whose load took `delta`, refreshes if
//!
//! ```text
//! now - delta * beta * ln(rand()) >= expiry            rand() uniform in (0, 1]
//! ```
//!
//! Each read draws for itself, so with `gap = expiry - now` it refreshes with probability `exp(-gap / (delta * beta))`. The
//! paper shows that this family is optimal: no other has as small an early expiry for the same risk of a stampede.
//!
//! *Quiet without approximation.* A hit must not ask a module. When the first read will draw low enough cannot be known
//! beforehand: that depends on how many reads there will be. But the draw has 53 bits, so `-ln(rand())` is never above
//! 53 ln 2 = 36.74, and before `expiry - 36.74 * delta * beta` no read can refresh. Up to there the copy is quiet: not
//! "hardly ever", but never. In the window after it (a second, where a load takes 27 ms) every read draws. The terms
//! carry `delta * beta`, so the host may draw by the same formula from the same bits, and leave out the step of whoever
//! does not refresh; see `early-us` in `wit/patterns.wit`. Either way the times of refreshes are distributed exactly as
//! in the paper, for whatever reads come; a test holds both against it.
//!
//! Roads not taken: to draw one moment a copy, when it is kept (that is the distribution for one read, and much too late
//! for a hundred); to cut the window at a probability of one in a million (the error grows with the rate of reads).
//!
//! # Jitter
//!
//! Only ever shortens: nothing is fresh for longer than its time to live says.

use larder_guest::patterns::{FOREVER, Facts, Incoming, Terms};

use super::rules::{Reading, Rules};

/// The highest value of `-ln(u)`.
const LATEST: f64 = 53.0 * core::f64::consts::LN_2;

/// A number of (0, 1], from 64 random bits.
fn unit(random: u64) -> f64 {
    ((random >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// A part of a duration; all of one without end.
fn share(of: u64, share: f64) -> u64 {
    if of == FOREVER { FOREVER } else { (of as f64 * share) as u64 }
}

/// The terms of a value that was loaded or brought.
pub fn of_incoming(rules: &Rules, incoming: &Incoming, random: u64) -> Terms {
    let said = |source: Option<u64>, rule| if rules.source_ttl { source.unwrap_or(rule) } else { rule };
    let ttl = if incoming.negative { rules.negative_ttl_ms } else { rules.ttl_ms };
    // Where negative answers are not to be kept, the source cannot say otherwise.
    let ttl = if ttl == 0 { 0 } else { said(incoming.fresh_ms, ttl) };
    if ttl == 0 {
        return Terms::NOTHING;
    }
    let fresh =
        if ttl == FOREVER { FOREVER } else { ttl - share(ttl, rules.jitter * (1.0 - unit(random))).min(ttl - 1) };
    // That there is no such key is not served beyond its time: a key that has come into being should show.
    let (stale, rescue) = match incoming.negative {
        true => (0, 0),
        false => (said(incoming.stale_ms, rules.stale_ms), said(incoming.rescue_ms, rules.rescue_ms)),
    };
    let early = (rules.beta * incoming.cost_us as f64) as u64;
    let terms = Terms {
        fresh_ms: fresh,
        stale_ms: stale,
        rescue_ms: rescue,
        near_ms: rules.near_ms,
        quiet_ms: 0,
        early_us: early,
    };
    completed(rules, terms, 0)
}

/// The terms on which a copy from a farther tier is kept in a nearer one: what is left of its own.
pub fn of_copy(rules: &Rules, copy: &Facts) -> Terms {
    let terms = Terms {
        fresh_ms: copy.fresh_ms,
        stale_ms: copy.stale_ms,
        rescue_ms: copy.rescue_ms,
        near_ms: rules.near_ms,
        quiet_ms: 0,
        early_us: copy.early_us,
    };
    completed(rules, terms, copy.age_ms)
}

/// With the quiet time of a copy of this age.
fn completed(rules: &Rules, mut terms: Terms, age_ms: u64) -> Terms {
    if rules.read != Reading::RefreshAhead || terms.fresh_ms == FOREVER {
        terms.early_us = 0;
    }
    Terms { quiet_ms: quiet(rules, &terms, age_ms), ..terms }
}

/// For how long no read of a copy of this age can refresh it.
fn quiet(rules: &Rules, terms: &Terms, age_ms: u64) -> u64 {
    let fresh = terms.fresh_ms.min(terms.near_ms);
    if rules.read != Reading::RefreshAhead {
        return fresh;
    }
    let mut quiet = fresh;
    if rules.eager > 0.0 && fresh != FOREVER {
        quiet = quiet.min(eager_at(rules, age_ms, fresh).saturating_sub(age_ms));
    }
    if terms.early_us > 0 {
        let window_ms = libm::ceil(terms.early_us as f64 * LATEST / 1000.0) as u64;
        quiet = quiet.min(fresh.saturating_sub(window_ms));
    }
    quiet
}

/// The age at which a copy is refreshed eagerly.
fn eager_at(rules: &Rules, age_ms: u64, fresh_ms: u64) -> u64 {
    share(age_ms.saturating_add(fresh_ms), rules.eager)
}

/// Whether this read of a fresh copy refreshes it early.
pub fn is_due(rules: &Rules, copy: &Facts, random: u64) -> bool {
    let eager =
        rules.eager > 0.0 && copy.fresh_ms != FOREVER && copy.age_ms >= eager_at(rules, copy.age_ms, copy.fresh_ms);
    eager || fires(copy.early_us, copy.fresh_ms, random)
}

/// XFetch: whether a read refreshes, `fresh_ms` before the end.
pub fn fires(early_us: u64, fresh_ms: u64, random: u64) -> bool {
    early_us > 0 && early_us as f64 * -libm::log(unit(random)) >= fresh_ms as f64 * 1000.0
}

/// How long to wait before the next attempt: doubled each time, half of it at random, so that those who failed together
/// do not come back together.
pub fn backoff(rules: &Rules, attempts: u8, random: u64) -> u64 {
    const LONGEST_MS: u64 = 60_000;
    let full =
        rules.backoff_ms.saturating_mul(1u64.checked_shl(u32::from(attempts)).unwrap_or(u64::MAX)).min(LONGEST_MS);
    full - share(full, 0.5 * unit(random))
}

/// When a hot key is refreshed again: up to a tenth earlier, so that keys which were named together drift apart.
pub fn again(rules: &Rules, random: u64) -> Option<u64> {
    let every = rules.refresh_every_ms;
    (every > 0).then(|| every - share(every, 0.1 * unit(random)).min(every - 1))
}
