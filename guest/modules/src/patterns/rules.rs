//! The rule of a keyspace: what can be set, what it means, and which settings contradict each other.
//!
//! Names, kinds and bounds are checked against [`PARAMETERS`] before; here is what bounds cannot say. A rule that
//! contradicts itself is refused with the parameter and the remedy. Settings that would do nothing are refused, too: who
//! sets `soft-timeout-ms` and nothing that could be served then believes in a protection that is not there.

use larder_guest::patterns::{Abilities, FOREVER, Keyspace, Scope, Tiers};
use larder_guest::{ParameterSpec, Refusal, Value};

/// The longest time that can be set, in milliseconds: more than 250,000 years, and exact as a number.
const LONGEST: i64 = 1 << 53;

const fn duration(name: &'static str, doc: &'static str, default: i64) -> ParameterSpec {
    ParameterSpec::integer(name, doc, default, 0, LONGEST)
}

const fn choice(name: &'static str, doc: &'static str) -> ParameterSpec {
    ParameterSpec { name, doc, default: Value::Text(alloc::string::String::new()), minimum: None, maximum: None }
}

/// What can be set.
pub const PARAMETERS: &[ParameterSpec] = &[
    choice(
        "read",
        "how it is read: cache-aside, read-through or refresh-ahead; read-through if nothing is said and there is a \
         source, else cache-aside",
    ),
    choice(
        "write",
        "how it is written: write-through, write-behind, write-around, write-invalidate or put (in the tiers only); \
         write-invalidate if nothing is said and there is a source to save to, else put",
    ),
    duration("ttl-ms", "how long a copy is fresh, where the source does not say; 0: without end", 0),
    ParameterSpec::flag("source-ttl", "whether the source may say how long a copy is fresh or servable stale", true),
    ParameterSpec::number(
        "jitter",
        "the share of its time to live by which a copy may end earlier, at random",
        0.0,
        0.0,
        1.0,
    ),
    duration("negative-ttl-ms", "how long it is remembered that the source has no such key; 0: not at all", 0),
    duration("stale-while-revalidate-ms", "how long a stale copy is served while it is refreshed in the background", 0),
    duration("stale-if-error-ms", "how long a stale copy is served where the source fails or is slow", 0),
    ParameterSpec::number(
        "eager",
        "refresh-ahead: a read refreshes once this share of the time to live has passed; 0: not",
        0.0,
        0.0,
        1.0,
    ),
    ParameterSpec::number(
        "beta",
        "refresh-ahead: early refresh by chance (XFetch), sooner the longer loads take; 1 is the paper's choice, 0: not",
        0.0,
        0.0,
        1000.0,
    ),
    duration("refresh-every-ms", "refresh-ahead: how often the hot keys that are named are refreshed; 0: not", 0),
    choice("flight", "whose concurrent loads of a key are one: none, process or fleet; process if nothing is said"),
    ParameterSpec::integer("wait-ms", "how long a read waits for another's load of the key", 10_000, 1, LONGEST),
    duration(
        "soft-timeout-ms",
        "after so long a load goes on in the background and a stale copy is served; 0: never",
        0,
    ),
    duration("hard-timeout-ms", "after so long a load is given up; 0: the host's own limit", 0),
    ParameterSpec::integer("retries", "how often a load that failed is tried again", 0, 0, 10),
    ParameterSpec::integer(
        "backoff-ms",
        "the wait before the first retry, doubled for each further one",
        50,
        1,
        60_000,
    ),
    duration("throttle-ms", "how long a copy is served without a further refresh after one was begun or failed", 1_000),
    duration("near-ttl-ms", "how long a copy is fresh in tier 0 at most, before the next tier is asked; 0: no less", 0),
    duration("save-timeout-ms", "how long saving may take; 0: the host's own limit", 0),
    duration("log-wait-ms", "how long a write waits while the journal is full; 0: the host's own limit", 0),
    ParameterSpec::flag(
        "acknowledge-unreached",
        "whether a write or invalidation succeeds though a tier or the bus is down; it is caught up on later, and until \
         then other processes may serve what is old",
        false,
    ),
];

/// How a keyspace is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The application loads what is missing, and fills it in.
    CacheAside,
    /// The cache loads what is missing.
    ReadThrough,
    /// The same, and before it ends.
    RefreshAhead,
}

/// How a keyspace is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// To the source, then to the tiers.
    Through,
    /// To the journal and the tiers; to the source later.
    Behind,
    /// To the source, past the tiers.
    Around,
    /// To the source; then the tiers forget.
    Invalidate,
    /// To the tiers; the application saves for itself.
    Put,
}

/// A keyspace's rule, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// How it is read.
    pub read: Reading,
    /// How it is written.
    pub write: Writing,
    /// Its tiers.
    pub tiers: Tiers,
    /// Those that other processes use, too.
    pub shared: Tiers,
    /// Whether there is a source to load from.
    pub loads: bool,
    /// Whether there is a source to save to.
    pub saves: bool,
    /// Whether other processes can be told.
    pub announces: bool,
    /// How long a copy is fresh.
    pub ttl_ms: u64,
    /// Whether the source may say otherwise.
    pub source_ttl: bool,
    /// By which share it may be less.
    pub jitter: f64,
    /// How long a negative copy is fresh; 0: it is not kept.
    pub negative_ttl_ms: u64,
    /// Stale-while-revalidate.
    pub stale_ms: u64,
    /// Stale-if-error.
    pub rescue_ms: u64,
    /// Refresh after this share of the time to live; 0: not.
    pub eager: f64,
    /// XFetch's beta; 0: not.
    pub beta: f64,
    /// The period of scheduled refreshes; 0: none.
    pub refresh_every_ms: u64,
    /// Whose loads are one; `None`: each its own.
    pub flight: Option<Scope>,
    /// How long to wait for a leader.
    pub wait_ms: u64,
    /// The soft time-out of a load; 0: none.
    pub soft_ms: u64,
    /// The hard one; 0: the host's.
    pub hard_ms: u64,
    /// Retries of a load.
    pub retries: u8,
    /// The first wait between them.
    pub backoff_ms: u64,
    /// The quiet time after a refresh was begun or failed.
    pub throttle_ms: u64,
    /// How long a copy is fresh in tier 0 at most.
    pub near_ms: u64,
    /// How long saving may take; 0: the host's limit.
    pub save_ms: u64,
    /// How long to wait for room in the journal; 0: the host's limit.
    pub log_ms: u64,
    /// Whether to acknowledge what has not reached all.
    pub acknowledge_unreached: bool,
}

impl Rules {
    /// Reads and checks a keyspace's rule.
    ///
    /// # Errors
    /// The first contradiction: the parameter at fault, and the remedy.
    pub fn read(keyspace: &Keyspace) -> Result<Rules, Refusal> {
        let Keyspace { parameters: set, abilities, tiers, shared, .. } = keyspace;
        let has = |ability| abilities.contains(ability);
        let ms = |name| set.integer(name).unsigned_abs();
        let read = match set.text("read") {
            "" if has(Abilities::LOADS) => Reading::ReadThrough,
            "" | "cache-aside" => Reading::CacheAside,
            "read-through" => Reading::ReadThrough,
            "refresh-ahead" => Reading::RefreshAhead,
            other => return Err(unknown("read", other, "cache-aside, read-through or refresh-ahead")),
        };
        let write = match set.text("write") {
            "" if has(Abilities::SAVES) => Writing::Invalidate,
            "" | "put" => Writing::Put,
            "write-through" => Writing::Through,
            "write-behind" => Writing::Behind,
            "write-around" => Writing::Around,
            "write-invalidate" => Writing::Invalidate,
            other => {
                let known = "write-through, write-behind, write-around, write-invalidate or put";
                return Err(unknown("write", other, known));
            }
        };
        let flight = match set.text("flight") {
            "" | "process" => Some(Scope::Process),
            "fleet" => Some(Scope::Fleet),
            "none" => None,
            other => return Err(unknown("flight", other, "none, process or fleet")),
        };
        let rules = Rules {
            read,
            write,
            tiers: *tiers,
            shared: *shared,
            loads: has(Abilities::LOADS),
            saves: has(Abilities::SAVES),
            announces: has(Abilities::ANNOUNCES),
            ttl_ms: or_forever(ms("ttl-ms")),
            source_ttl: set.flag("source-ttl"),
            jitter: set.number("jitter"),
            negative_ttl_ms: ms("negative-ttl-ms"),
            stale_ms: ms("stale-while-revalidate-ms"),
            rescue_ms: ms("stale-if-error-ms"),
            eager: set.number("eager"),
            beta: set.number("beta"),
            refresh_every_ms: ms("refresh-every-ms"),
            flight,
            wait_ms: ms("wait-ms"),
            soft_ms: ms("soft-timeout-ms"),
            hard_ms: ms("hard-timeout-ms"),
            retries: set.integer("retries") as u8,
            backoff_ms: ms("backoff-ms"),
            throttle_ms: ms("throttle-ms"),
            near_ms: or_forever(ms("near-ttl-ms")),
            save_ms: ms("save-timeout-ms"),
            log_ms: ms("log-wait-ms"),
            acknowledge_unreached: set.flag("acknowledge-unreached"),
        };
        rules.check(*abilities)?;
        Ok(rules)
    }

    /// What contradicts itself, or the keyspace.
    fn check(&self, abilities: Abilities) -> Result<(), Refusal> {
        let lacks = |ability| !abilities.contains(ability);
        let ends = self.ttl_ms != FOREVER || self.source_ttl;
        let aside = self.read == Reading::CacheAside;
        let ahead = self.read == Reading::RefreshAhead;
        let saves = matches!(self.write, Writing::Through | Writing::Behind | Writing::Around | Writing::Invalidate);
        // Whether it is wrong, the parameter, why and what to do.
        let faults = [
            (
                !aside && lacks(Abilities::LOADS),
                "read",
                "needs a source to load from: give the keyspace one, or set read to cache-aside",
            ),
            (
                saves && lacks(Abilities::SAVES),
                "write",
                "needs a source to save to: give the keyspace one, or set write to put",
            ),
            (
                self.write == Writing::Behind && lacks(Abilities::LOGS),
                "write",
                "write-behind needs a journal, or what was acknowledged is lost in a crash: give the host one, or set \
                 write to write-through",
            ),
            (
                self.write == Writing::Behind && aside,
                "write",
                "write-behind needs reads that the cache answers from the journal, and under cache-aside the application \
                 loads what is not saved yet: set read to read-through, or write to write-through",
            ),
            (
                self.flight == Some(Scope::Fleet) && lacks(Abilities::LEASES),
                "flight",
                "fleet needs a shared tier with leases: give the keyspace one, or set flight to process",
            ),
            (
                ahead && self.eager == 0.0 && self.beta == 0.0 && self.refresh_every_ms == 0,
                "read",
                "refresh-ahead needs to know when: set beta (to 1), eager or refresh-every-ms, or set read to read-through",
            ),
            (!ahead && self.eager > 0.0, "eager", "is for refresh-ahead: set read to refresh-ahead, or leave it out"),
            (!ahead && self.beta > 0.0, "beta", "is for refresh-ahead: set read to refresh-ahead, or leave it out"),
            (
                !ahead && self.refresh_every_ms > 0,
                "refresh-every-ms",
                "is for refresh-ahead: set read to refresh-ahead, or leave it out",
            ),
            (
                self.eager > 0.0 && !ends,
                "eager",
                "is a share of the time to live, and there is none: set ttl-ms, or allow source-ttl",
            ),
            (
                self.beta > 0.0 && !ends,
                "beta",
                "brings the end of a copy forward, and there is none: set ttl-ms, or allow source-ttl",
            ),
            (
                self.eager >= 1.0,
                "eager",
                "is when the copy ends anyway: set it below 1 (0.8 is usual), or set read to read-through",
            ),
            (
                self.jitter > 0.0 && !ends,
                "jitter",
                "shortens the time to live, and there is none: set ttl-ms, or allow source-ttl",
            ),
            (
                self.refresh_every_ms > 0 && self.refresh_every_ms >= self.ttl_ms,
                "refresh-every-ms",
                "comes after the copy has ended: set it below ttl-ms",
            ),
            (
                aside && self.rescue_ms > 0,
                "stale-if-error-ms",
                "cannot be kept under cache-aside, where the application loads and sees the errors: set read to \
                 read-through, or leave it out",
            ),
            (
                aside && self.stale_ms > 0 && self.flight.is_none(),
                "stale-while-revalidate-ms",
                "needs, under cache-aside, one reader to be told of a miss while the others get the stale copy: set \
                 flight to process or fleet",
            ),
            (
                aside && self.retries > 0,
                "retries",
                "is for loads, which the application does under cache-aside: leave it out",
            ),
            (
                self.soft_ms > 0 && self.rescue_ms == 0,
                "soft-timeout-ms",
                "needs something to be served after it: set stale-if-error-ms, or leave it out",
            ),
            (
                self.soft_ms > 0 && self.hard_ms > 0 && self.soft_ms >= self.hard_ms,
                "soft-timeout-ms",
                "comes after the hard one: set it below hard-timeout-ms",
            ),
            (
                self.near_ms != FOREVER && (self.tiers & 1 == 0 || self.tiers == 1),
                "near-ttl-ms",
                "is for a tier 0 with another behind it: leave it out, or set ttl-ms",
            ),
        ];
        match faults.into_iter().find(|(is_wrong, ..)| *is_wrong) {
            Some((_, parameter, message)) => Err(Refusal::of(parameter, message)),
            None => Ok(()),
        }
    }

    /// The nearest tier that is farther than this one; the nearest of all for `None`.
    pub fn tier_after(&self, tier: Option<u8>) -> Option<u8> {
        let first = tier.map_or(0, |tier| u32::from(tier) + 1);
        let left = u32::from(self.tiers).checked_shr(first)?;
        (left != 0).then(|| (first + left.trailing_zeros()) as u8)
    }

    /// The tiers that are nearer than this one.
    pub fn nearer_than(&self, tier: u8) -> Tiers {
        self.tiers & 1u8.checked_shl(u32::from(tier)).unwrap_or(0).wrapping_sub(1)
    }
}

fn or_forever(ms: u64) -> u64 {
    if ms == 0 { FOREVER } else { ms }
}

fn unknown(parameter: &str, value: &str, known: &str) -> Refusal {
    Refusal::of(parameter, alloc::format!("is `{value}`, which is no such pattern: set it to {known}"))
}
