//! What a person, or a script, can do to the shop while it runs.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use larder::{Patterns, Policy, PolicyError};
use parking_lot::Mutex;
use serde::Serialize;

use super::goods::{LANGUAGES, Part};
use super::meter::TICK;
use super::shop::{Shop, each_cache, rule, unprotected};

/// One of the things that can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The hottest key goes, and nothing protects the database.
    Unprotected,
    /// The hottest key goes, under its rule.
    Protected,
    /// Cuts the line to the far tier, or mends it.
    Far(bool),
    /// The same for the database.
    Database(bool),
    /// Swaps the module that decides what leaves, for the next in the row.
    Policy,
    /// Swaps the module that decides what an operation does next.
    Patterns,
    /// Customers stop coming, or come again.
    Pause(bool),
}

/// The actions and their words.
const WORDS: [(&str, Action); 10] = [
    ("stampede", Action::Unprotected),
    ("protected", Action::Protected),
    ("kill-far", Action::Far(false)),
    ("restore-far", Action::Far(true)),
    ("kill-database", Action::Database(false)),
    ("restore-database", Action::Database(true)),
    ("swap-policy", Action::Policy),
    ("swap-patterns", Action::Patterns),
    ("pause", Action::Pause(true)),
    ("resume", Action::Pause(false)),
];

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = WORDS.iter().find(|(_, action)| action == self).map_or("", |(word, _)| word);
        f.write_str(word)
    }
}

/// An action at a time, as `--at SECONDS=ACTION` has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cue {
    /// When, from the beginning.
    pub at: Duration,
    /// What.
    pub action: Action,
}

impl FromStr for Cue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = || WORDS.map(|(word, _)| word).join(", ");
        let (at, word) = text.split_once('=').ok_or("write SECONDS=ACTION, such as 5=kill-database")?;
        let seconds: f64 = at.trim_end_matches('s').parse().map_err(|_| format!("{at:?} is no number of seconds"))?;
        let at = Duration::try_from_secs_f64(seconds).map_err(|_| format!("{at:?} is no time to wait"))?;
        let found = WORDS.iter().find(|(known, _)| *known == word);
        let (_, action) = found.ok_or_else(|| format!("{word:?} is none of {}", words()))?;
        Ok(Cue { at, action: *action })
    }
}

/// What there is to see, for whoever does not press keys: everything once, in half a minute.
pub const TOUR: [Cue; 9] = [
    Cue { at: Duration::from_secs(5), action: Action::Unprotected },
    Cue { at: Duration::from_secs(13), action: Action::Protected },
    Cue { at: Duration::from_secs(16), action: Action::Policy },
    Cue { at: Duration::from_secs(17), action: Action::Patterns },
    Cue { at: Duration::from_secs(18), action: Action::Far(false) },
    Cue { at: Duration::from_secs(21), action: Action::Far(true) },
    Cue { at: Duration::from_secs(22), action: Action::Database(false) },
    Cue { at: Duration::from_secs(26), action: Action::Database(true) },
    Cue { at: Duration::from_secs(28), action: Action::Protected },
];

/// The hottest key went, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stampede {
    /// Whether its rule protected the database.
    pub protected: bool,
    /// When, in seconds from the beginning.
    pub at: f64,
    /// How often the database was asked for that one key.
    pub queries: u64,
    /// Seconds until nobody waited for it, or behind it, any more.
    pub lasted: f64,
    /// The most queries that were under way at once, for anything.
    pub most_open_queries: u64,
    /// The worst 99th percentile of the time of a page in any second of it, in milliseconds.
    pub worst_p99_ms: f64,
}

impl fmt::Display for Stampede {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stampede { queries, most_open_queries, worst_p99_ms, .. } = self;
        let rule = if self.protected { "with protection" } else { "without protection" };
        let (plural, most) = if *queries == 1 { ("query", most_open_queries) } else { ("queries", most_open_queries) };
        write!(f, "{rule}: {queries} {plural} for one key, {most} open at once, p99 of a page {worst_p99_ms:.0} ms")
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// When, in seconds from the beginning.
    pub at: f64,
    /// What.
    pub what: String,
}

/// The controls of a running demo.
pub struct Controls {
    /// The shop.
    pub shop: Arc<Shop>,
    /// Whether customers stay away.
    pub paused: Arc<AtomicBool>,
    events: Mutex<Vec<Event>>,
    stampedes: Mutex<Vec<Stampede>>,
    /// Whether the hottest key is on its way.
    stampeding: AtomicBool,
    /// What there is to be swapped in, and which is in.
    policies: Vec<Policy>,
    policy: Mutex<usize>,
    patterns: Vec<Patterns>,
    pattern: Mutex<usize>,
    swaps: AtomicU64,
}

impl Controls {
    /// The controls of a shop. Swaps go around through these policies and modules; the first ones are in.
    pub fn new(shop: Arc<Shop>, policies: Vec<Policy>, patterns: Vec<Patterns>) -> Arc<Self> {
        Arc::new(Controls {
            shop,
            paused: Arc::default(),
            events: Mutex::default(),
            stampedes: Mutex::default(),
            stampeding: AtomicBool::new(false),
            policies,
            policy: Mutex::new(0),
            patterns,
            pattern: Mutex::new(0),
            swaps: AtomicU64::new(0),
        })
    }

    /// What happened so far.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().clone()
    }

    /// The stampedes that are over.
    pub fn stampedes(&self) -> Vec<Stampede> {
        self.stampedes.lock().clone()
    }

    /// Whether customers stay away.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// How many modules were swapped.
    pub fn swaps(&self) -> u64 {
        self.swaps.load(Ordering::Relaxed)
    }

    /// The policy that is in.
    pub fn policy(&self) -> String {
        self.policies[*self.policy.lock()].to_string()
    }

    /// The module of patterns that is in.
    pub fn pattern(&self) -> String {
        self.patterns[*self.pattern.lock()].to_string()
    }

    fn say(&self, what: impl Into<String>) {
        let at = self.shop.meter.elapsed().as_secs_f64();
        self.events.lock().push(Event { at, what: what.into() });
    }

    /// Begins an action, which goes on by itself.
    pub fn act(self: &Arc<Self>, action: Action) {
        let me = self.clone();
        match action {
            Action::Far(up) => {
                self.shop.far_line.set(up);
                self.say(match up {
                    true => "the far tier is back, with what it had; it is told what it missed",
                    false => "the far tier is cut off: reads go past it",
                });
            }
            Action::Database(up) => {
                self.shop.database_line.set(up);
                self.say(match up {
                    true => "the database is back",
                    false => "the database is cut off: pages live on old copies, nothing is sold",
                });
            }
            Action::Pause(paused) => {
                self.paused.store(paused, Ordering::Relaxed);
                self.say(if paused { "no more customers" } else { "customers again" });
            }
            Action::Unprotected | Action::Protected => {
                if self.is_paused() || !self.shop.database_line.is_up() {
                    return self.say("a stampede needs customers and a database");
                }
                if self.stampeding.swap(true, Ordering::SeqCst) {
                    return self.say("one stampede at a time");
                }
                tokio::spawn(async move {
                    if let Err(error) = me.stampede(action == Action::Protected).await {
                        me.say(format!("there was no stampede: {error}"));
                    }
                    me.stampeding.store(false, Ordering::SeqCst);
                });
            }
            Action::Policy => drop(tokio::task::spawn_blocking(move || me.swap_policy())),
            Action::Patterns => drop(tokio::task::spawn_blocking(move || me.swap_patterns())),
        }
    }

    /// A new release of the template that most pages need: its copies go, everywhere, at the busiest time.
    async fn stampede(&self, protected: bool) -> anyhow::Result<()> {
        let shop = &self.shop;
        let set = |rules: fn() -> Vec<(&'static str, larder::Value)>| {
            shop.processes.iter().try_for_each(|process| process.templates.set_rules(rules()))
        };
        if !protected {
            set(unprotected)?;
        }
        self.say(format!(
            "a new release: the template `{}` goes, {}",
            LANGUAGES[0],
            if protected { "under its rule" } else { "and nothing protects the database" }
        ));
        let (begun, before) = (shop.meter.elapsed(), shop.hottest_loads());
        let told = shop.release(0).await;
        // Over when the key was loaded, and nobody has waited for half a second.
        let mut calm = 0;
        while told.is_ok() && calm < 5 && shop.meter.elapsed() - begun < Duration::from_secs(60) {
            tokio::time::sleep(TICK).await;
            let templates = shop.asked[Part::Template as usize].open.load(Ordering::Relaxed);
            let level = shop.hottest_loads() > before && templates == 0 && shop.database.waiting().unwrap_or(0) == 0;
            calm = if level { calm + 1 } else { 0 };
        }
        if !protected {
            set(|| rule(Part::Template))?;
        }
        told?;
        let lasted = (shop.meter.elapsed() - begun).saturating_sub(5 * TICK);
        // Pages that waited to the last are in the percentiles of the second after it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let moments = shop.meter.moments(usize::MAX);
        let during = || moments.iter().filter(|moment| moment.at >= begun);
        let stampede = Stampede {
            protected,
            at: begun.as_secs_f64(),
            queries: shop.hottest_loads() - before,
            lasted: lasted.as_secs_f64(),
            most_open_queries: during().map(|moment| moment.open_queries).max().unwrap_or(0),
            worst_p99_ms: during().map(|moment| moment.p99_us).max().unwrap_or(0) as f64 / 1e3,
        };
        self.say(stampede.to_string());
        self.stampedes.lock().push(stampede);
        Ok(())
    }

    fn swap_policy(&self) {
        let mut at = self.policy.lock();
        let next = (*at + 1) % self.policies.len();
        let (from, to) = (self.policies[*at].to_string(), &self.policies[next]);
        let (mut adopted, mut evicted, mut pause) = (0, 0, Duration::ZERO);
        for process in &self.shop.processes {
            for swapped in each_cache!(process, cache => cache.swap_policy(to.clone())) {
                match swapped {
                    Ok(report) => {
                        adopted += report.adopted;
                        evicted += report.evicted;
                        pause = pause.max(report.pause);
                    }
                    Err(error) => return self.say(format!("eviction stays with {from}: {error}")),
                }
            }
        }
        *at = next;
        self.swaps.fetch_add(1, Ordering::Relaxed);
        self.say(format!(
            "eviction: {from} -> {to}, {adopted} entries adopted, {evicted} evicted, longest pause {:.1} ms",
            pause.as_secs_f64() * 1e3
        ));
    }

    fn swap_patterns(&self) {
        let mut at = self.pattern.lock();
        let next = (*at + 1) % self.patterns.len();
        match self.seat_patterns(&self.patterns[next]) {
            Ok(card) => {
                *at = next;
                self.swaps.fetch_add(1, Ordering::Relaxed);
                self.say(format!("patterns: {card} seated anew; what was under way ends with the old one"));
            }
            Err(error) => self.say(format!("the patterns stay as they are: {error}")),
        }
    }

    fn seat_patterns(&self, patterns: &Patterns) -> anyhow::Result<String> {
        let module = patterns.load().map_err(|error: PolicyError| error)?;
        for process in &self.shop.processes {
            for swapped in each_cache!(process, cache => cache.swap_patterns(module.clone())) {
                swapped?;
            }
        }
        let card = module.description();
        Ok(format!("{} {}", card.name, card.version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_has_a_word_and_back() {
        for (word, action) in WORDS {
            assert_eq!(format!("1.5={word}").parse::<Cue>(), Ok(Cue { at: Duration::from_millis(1500), action }));
            assert_eq!(action.to_string(), word);
        }
        for (wrong, why) in
            [("stampede", "SECONDS=ACTION"), ("x=pause", "no number"), ("-1=pause", "no time"), ("1=run", "kill-far")]
        {
            assert!(wrong.parse::<Cue>().expect_err(wrong).contains(why), "{wrong}");
        }
        assert!(TOUR.is_sorted_by_key(|cue| cue.at));
    }
}
