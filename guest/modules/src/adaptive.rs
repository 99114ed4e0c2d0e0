//! Adaptive: Larder's own, and its default. Learns how likely each kind of entry is to be used again, and evicts who
//! promises least hits for the room it takes.
//!
//! # How
//!
//! An entry is described by two things: its **class** (how often it was used, on a logarithmic scale, and its typical
//! interval between uses, two to the octave) and its **age** since the last use. For each class the policy keeps a
//! histogram of the intervals after which entries of that class were used again. From it follow the odds of a use in
//! each bucket of age for those that reach it (the Kaplan-Meier estimate), and from the odds what keeping an entry is
//! worth: the **Gittins index**, the greatest ratio, over all ages at which one might give up, of the chance of a hit
//! by then to the time that room is taken until the hit or then. The victim is a resident of least index for its
//! weight; it may be the newcomer itself.
//!
//! That one rule turns into what each known policy is good at, wherever the odds are those that the policy bets on.
//! Odds that fall with age: LRU. Newcomers that seldom come back: they go first (S3-FIFO, 2Q). A loop, where the odds
//! jump at the age of a turn: the oldest are closest to their hit, so newcomers are refused and what is resident
//! stays (LIRS, MRU). Odds that depend on the number of uses: LFU. A change of phase fades in as the old counts fade
//! out. And it is a mix where the workload is one. Choosing among fixed experts can at best equal the best of them;
//! the odds tell more.
//!
//! Three things make it work:
//!
//! - **Ghosts.** Entries that left are remembered (`ghosts`), with class and time. When one comes back its interval
//!   is counted like a hit's, so that the odds do not depend on what the policy itself chose to evict (LHD must
//!   explore for that), and the entry goes on where it was.
//! - **A census.** Intervals that last are evidence too (a scan's entries are never used again, which nothing
//!   reports). Where the hash of a victim points among the residents and among the ghosts, a few are counted: random
//!   samples of both populations.
//! - **Parents.** Odds of a class are drawn towards the product of what is known by uses alone and by interval alone,
//!   and these towards the odds of all: sparse classes, small caches and beginnings behave sensibly (like LRU that
//!   distrusts newcomers).
//!
//! # Finding the victim
//!
//! A hand goes round over the residents, slot by slot, and takes the first that is worth less than a bound. The bound
//! moves so that one in eight looks finds one: it is the worth that an eighth of the residents do not reach. The
//! hand reads memory in order and the worth of a class and age from a table of 32 KB, and there is no list, no order and
//! no draw. It looks at sixteen slots at once, which needs no branch for each and is done four at a time, and remembers
//! who of them may go until the batch ends; who is chosen is looked at once more. So a look is a nanosecond. Below 49 slots
//! all are looked at.
//!
//! One that comes in takes a slot just behind the hand, and would have a whole turn to itself, which is an eighth of
//! the cache for those that are never used again. So each newcomer is looked at once more soon, after as many victims
//! as are a 64th of the residents. And where the newcomer itself is worth less than the bound, only somebody worth
//! still less goes for it, if one is met in eight looks. Where there are weights, which spread the worth, it is
//! twelve looks rather than eight.
//!
//! Learning is done in small steps, at most two an arrival, and never all at once.
//!
//! # Memory
//!
//! 8 bytes a resident (class and time 4, hash 4) and 16 for its four ghosts of 4 bytes: 24, and 4 more where there
//! are weights; and a 16th of a byte for newcomers on trial. 210 KB of histograms and worth and at least 32 KB of
//! ghosts whatever the size.
//!
//! # Roads not taken, with what they measured
//!
//! Mean hit ratio over 28 cells (seven database, web, CDN, loop and prefix traces, at 0.1, 1, 5 and 10 % of their
//! keys). The best of eleven other policies in each cell, chosen in hindsight, has 35.90.
//!
//! | variant | points |
//! |---|---|
//! | first: uses up to 3, interval by octaves that moves half of the way, 2.25 ghosts, prior weight 4 | 35.63 |
//! | memory of 20 turnovers rather than 5 | + 0.05 |
//! | prior weight of 16 intervals; of 32 | + 0.06; + 0.02 more |
//! | uses up to about 60, by chance; interval by half octaves, the mean of four | + 0.26 |
//! | an eighth of the way rather than a quarter | + 0.02, not taken: slower to follow |
//! | newcomers distrusted at first | + 0.03 |
//! | four ghosts rather than 2.25 | + 0.02; on a storage trace at 1 %, 3.6 rather than 3.2 |
//!
//! How the victim is found, over 12 cells (six of these traces, at 0.1 and 1 %), and on a storage trace at 5 %:
//!
//! | variant | points | storage |
//! |---|---|---|
//! | 16 random draws into a pool of the 32 best, three to five times the work | 19.89 | 21.6 |
//! | the hand passes 64 slots and sorts those below the bound: the next victims | 19.80 | 19.8 |
//! | the same, and the bound moves faster | 19.86 | |
//! | the first below the bound is the victim | 19.91 | 20.3 |
//! | and newcomers looked at again; after a 16th of the residents | 19.89 | 21.6 |
//! | after a 64th; a 128th | 19.90; 19.89 | 21.7; 21.3 |
//! | a 64th, and a look round that finds nobody raises the bound above the least it met | 19.95 | 21.7 |
//! | and by as much again as it took too many looks (24 cells) | + 0.03 | |
//! | six looks rather than eight (24 cells) | - 0.04 | 21.4 |
//! | rounds of learning half as often (28 cells) | - 0.06 | |
//!
//! Not tried further: experts with shadow caches (set dueling, LeCaR, CACHEUS), since the best expert in hindsight,
//! which they approach from below, is already behind.
//!
//! # Papers
//!
//! LHD (Beckmann, Chen, Cidon, NSDI 2018) ranks by hit density, with odds learned from its own evictions; EVA
//! (Beckmann and Sanchez, HPCA 2017) likewise. Gittins, *Bandit processes and dynamic allocation indices* (1979).
//! Kaplan and Meier, *Nonparametric estimation from incomplete observations* (1958). Typical intervals: LRU-K
//! (O'Neil, SIGMOD 1993).

mod ghosts;
mod hand;
mod memory;
mod odds;
mod past;
#[cfg(test)]
mod tests;

use alloc::{collections::VecDeque, vec::Vec};

use larder_guest::kit::{BySlot, Weights, evict_until};
use larder_guest::{About, Arrival, Change, Eviction, Limits, Parameters, Refusal, Slot, Victims};

use ghosts::{Ghosts, WAYS};
use hand::{Hand, REACH};
use odds::Odds;
use past::{Past, bucket};

/// Ghosts for each resident.
const GHOSTS: usize = 4;

/// Ghosts at least: a cache of ten entries learns from a longer past than its size would give it.
const LEAST_GHOSTS: usize = 8192;

/// A cache of no more slots is looked through for each victim.
const SMALL: usize = 48;

/// Looks for each victim, on average; and where there are weights, which spread the worth.
const LOOKS: [usize; 2] = [8, 12];

/// After so many times the average, without anybody below the bound, the least will do.
const MOST_LOOKS: usize = 8;

/// By how much the bound moves for each look more or less, in 1024ths of an octave.
const GAIN: i32 = 8;

/// Newcomers are looked at again after so many victims: one in this many residents.
const TRIAL: usize = 64;

/// A victim counts for the census once in so many requests, in a cache of less than 1024 and in others.
const COUNTED: [u64; 2] = [4, 16];

/// How many residents the census counts for each such victim.
const CENSUS: usize = 4;

/// What was learned fades over this many requests for each resident.
const MEMORY: usize = 20;

/// Or over this many, in a small cache.
const LEAST_MEMORY: usize = 4096;

/// Steps of learning that one arrival may take.
const STEPS: usize = 2;

/// Steps in a round, where all classes are known.
const ROUND_STEPS: u64 = 300;

/// Rounds while what was learned fades.
const ROUNDS: u64 = 8;

/// The worth of nobody.
const NONE: i32 = odds::NONE as i32;

/// Residents at which the unit of time is one request; it doubles with them.
const FINE: usize = 4096;

/// Evicts whoever promises least hits for the room it takes. See the [module](self).
#[derive(Debug)]
pub struct Adaptive {
    weights: Weights,
    /// Residents by slot, and the hashes of their keys.
    residents: BySlot<Past>,
    hashes: BySlot<u32>,
    live: usize,
    expected: Option<usize>,
    ghosts: Ghosts,
    /// Who left in this batch: hash, past, and when. They become ghosts together, at its end.
    leaving: Vec<(u32, Past, u32)>,
    odds: Odds,
    /// Requests so far.
    ticks: u64,
    /// A unit of time is 2 to this many requests.
    unit: u32,
    hand: Hand,
    /// Who is worth less than this may go.
    bound: i32,
    /// Newcomers to look at again, the first one first.
    trial: VecDeque<Slot>,
    /// Whether there ever was a weight other than 1.
    weighted: bool,
    /// When the last round of learning began, and when the next one may.
    round_began: u64,
    next_round: u64,
    /// When the next step of learning is due, and how long after it the one after.
    next_step: u64,
    stride: u64,
    /// Whether the next victim counts for the census.
    counts: bool,
    /// Victims that counted, faded as the counts are.
    sampled: f32,
    /// Until the first batch: what a predecessor knew of its residents.
    recalled: Option<memory::Recalled>,
}

/// What is kept of a fingerprint.
#[inline]
fn hash_of(fingerprint: u64) -> u32 {
    (fingerprint >> 32) as u32
}

impl Adaptive {
    #[inline]
    fn now(&self) -> u32 {
        (self.ticks >> self.unit) as u32
    }

    /// What a resident is worth for its weight, as a logarithm; most where there is none. Here and below, `W` is
    /// [`weighted`](Self::weighted): each of the two is compiled by itself, for the way without weights is the usual one.
    #[inline]
    fn worth<const W: bool>(&self, slot: Slot, now: u32) -> i32 {
        self.worth_of::<W>(self.residents.get(slot), slot, now)
    }

    #[inline]
    fn worth_of<const W: bool>(&self, past: Past, slot: Slot, now: u32) -> i32 {
        let worth = i32::from(self.odds.worth(past, now));
        if W && worth < NONE { worth - odds::quantised(self.weights.get(slot) as f32) as i32 } else { worth }
    }

    #[inline]
    fn is_resident(&self, slot: Slot) -> bool {
        self.residents.get(slot) != Past::ABSENT
    }

    /// Learns, a class at a time, at a pace that comes round once for each turnover of the cache.
    #[inline]
    fn learn(&mut self) {
        let due = if self.odds.rested() { self.next_round } else { self.next_step };
        if self.ticks >= due {
            self.learn_some();
        }
    }

    #[inline(never)]
    fn learn_some(&mut self) {
        if self.odds.rested() {
            let passed = (self.ticks - self.round_began) as f32;
            let memory = (MEMORY * self.live).max(LEAST_MEMORY) as f32;
            let keep = (1.0 - passed / memory).max(0.5);
            let scale = if self.sampled > 0.0 { self.ghosts.room() as f32 / WAYS as f32 / self.sampled } else { 0.0 };
            self.odds.begin(scale, keep);
            self.sampled *= keep;
            self.round_began = self.ticks;
            let round = (memory as u64 / ROUNDS).min((self.ticks / ROUNDS).max(64));
            self.next_round = self.ticks + round;
            self.stride = round / ROUND_STEPS;
            self.next_step = self.ticks;
        }
        // After many reads without an arrival there is some catching up to do; not all at once.
        for _ in 0..STEPS {
            if self.ticks < self.next_step || self.odds.rested() {
                break;
            }
            self.odds.step();
            self.next_step += self.stride;
        }
    }

    /// Chooses a victim, which may be the newcomer; that one is worth `own`.
    ///
    /// Nothing is called on the usual way: what must live through a call lies on the stack, and is fetched from there each
    /// time.
    #[inline(always)]
    fn choose<const W: bool>(&mut self, now: u32, newcomer: Slot, own: i32) -> Slot {
        if self.residents.values().len() <= SMALL {
            return self.least_of_all::<W>(now, (own, newcomer));
        }
        let sought = own.min(self.bound);
        if self.trial.len() > self.live / TRIAL
            && let Some(slot) = self.trial.pop_front()
            && self.worth::<W>(slot, now) < sought
        {
            self.adapt::<W>(1, own);
            return slot;
        }
        match self.pass::<W>(now, sought) {
            (Some(victim), looks) => {
                self.adapt::<W>(looks, own);
                victim
            }
            (None, looks) => self.search::<W>(now, newcomer, own, looks),
        }
    }

    /// Goes on looking, after so many looks.
    #[inline(never)]
    fn search<const W: bool>(&mut self, now: u32, newcomer: Slot, own: i32, looks: usize) -> Slot {
        let most = LOOKS[usize::from(W)] * if own < self.bound { 1 } else { MOST_LOOKS };
        match self.sweep::<W>(now, own.min(self.bound), looks, most) {
            (Some(victim), looks) => {
                self.adapt::<W>(looks, own);
                victim
            }
            // Nobody is worth less than the newcomer.
            (None, looks) if own < self.bound => {
                self.adapt::<W>(looks, own);
                newcomer
            }
            (None, looks) => {
                // Nobody is worth so little any more: from now on those worth no more than this one may go.
                let (least, victim) = self.least::<W>(now, looks, (own, newcomer));
                self.bound = least + 1 + self.correction::<W>(looks);
                victim
            }
        }
    }

    /// Who is worth least, of few.
    #[inline(never)]
    fn least_of_all<const W: bool>(&self, now: u32, newcomer: (i32, Slot)) -> Slot {
        let all = (0..self.residents.values().len() as Slot).map(|slot| (self.worth::<W>(slot, now), slot));
        all.fold(newcomer, |least, one| least.min(one)).1
    }

    /// Moves the hand on to somebody who is worth less than what is sought, which is no more than the bound; or for the
    /// most looks, and a few.
    #[inline]
    fn sweep<const W: bool>(&mut self, now: u32, sought: i32, mut looks: usize, most: usize) -> (Option<Slot>, usize) {
        while looks < most {
            if self.hand.is_at_end() {
                self.look_ahead::<W>(now);
            }
            let (found, passed) = self.pass::<W>(now, sought);
            looks += passed;
            if found.is_some() {
                return (found, looks);
            }
        }
        (None, looks)
    }

    /// Moves the hand on to behind the next one that may go, if one was seen ahead: who that is, if it is worth less than what is
    /// sought, and how many the hand passed.
    #[inline(always)]
    fn pass<const W: bool>(&mut self, now: u32, sought: i32) -> (Option<Slot>, usize) {
        let (found, passed) = self.hand.pass(self.residents.values().len());
        // Others may have been told of it since, and the bound has moved.
        let found = found.map(|slot| slot as Slot).filter(|&slot| self.worth::<W>(slot, now) < sought);
        (found, passed)
    }

    /// Looks who of the next is worth less than the bound.
    #[inline]
    fn look_ahead<const W: bool>(&mut self, now: u32) {
        let ahead = &self.residents.values()[self.hand.at..];
        let mut found = 0;
        let looked_at = match ahead.first_chunk::<REACH>() {
            Some(ahead) if !W => {
                found = self.odds.worth_less(ahead, now, self.bound);
                REACH
            }
            _ => {
                let ahead = &ahead[..ahead.len().min(REACH)];
                for (i, past) in ahead.iter().enumerate() {
                    found |= u32::from(self.worth_of::<W>(*past, (self.hand.at + i) as Slot, now) < self.bound) << i;
                }
                ahead.len()
            }
        };
        self.hand.looked(looked_at, found);
    }

    /// Who is worth least of those that the hand passed in so many looks, and of one more; where there is nobody at all, it
    /// goes on.
    #[cold]
    #[inline(never)]
    fn least<const W: bool>(&self, now: u32, looks: usize, mut least: (i32, Slot)) -> (i32, Slot) {
        let len = self.residents.values().len();
        let mut at = (self.hand.at + len - looks.min(len)) % len;
        let mut looked = 0;
        while looked < looks || least.0 == NONE {
            least = least.min((self.worth::<W>(at as Slot, now), at as Slot));
            at = if at + 1 == len { 0 } else { at + 1 };
            looked += 1;
        }
        least
    }

    /// What that many looks say: too many, and the bound must rise.
    #[inline]
    fn correction<const W: bool>(&self, looks: usize) -> i32 {
        (looks as i32 - LOOKS[usize::from(W)] as i32) * GAIN
    }

    /// Moves the bound, unless it was not the bound that was sought for.
    #[inline]
    fn adapt<const W: bool>(&mut self, looks: usize, own: i32) {
        if own >= self.bound {
            self.bound = self.bound.saturating_add(self.correction::<W>(looks));
        }
    }

    /// Counts a random few of the residents and of the ghosts: those where the hash of a victim points.
    #[cold]
    #[inline(never)]
    fn census(&mut self, hash: u32, now: u32) {
        let len = self.residents.values().len();
        let weight = (WAYS * len) as f32 / (CENSUS.min(len) * self.ghosts.room().max(1)) as f32;
        let mut at = ((u64::from(hash) * len as u64) >> 32) as usize;
        for _ in 0..CENSUS.min(len) {
            if self.is_resident(at as Slot) {
                self.odds.met(self.residents.get(at as Slot), now, weight);
            }
            at = if at + 1 == len { 0 } else { at + 1 };
        }
        self.ghosts.sample(hash, now, |ghost| self.odds.met(ghost, now, 1.0));
        self.sampled += 1.0;
        self.counts = false;
    }

    #[inline(always)]
    fn forget(&mut self, slot: Slot, now: u32) {
        let (past, hash) = (self.residents.get(slot), self.hashes.get(slot));
        self.residents.set(slot, Past::ABSENT);
        self.weights.remove(slot);
        self.live -= 1;
        if self.counts {
            self.census(hash, now);
        }
        self.leaving.push((hash, past, now));
    }

    /// Who left is a ghost from now on. There are too many for the processor's caches, and no two are near each other:
    /// their memory is asked for first, and waited for together.
    fn bury(&mut self) {
        self.ghosts.fetch(self.leaving.iter().map(|&(hash, ..)| hash));
        for (hash, past, now) in self.leaving.drain(..) {
            if let Some(gone) = self.ghosts.put(hash, past, now) {
                self.odds.lost(gone, now);
            }
        }
    }

    /// Makes room, where there is too little after one came or changed: its past is this.
    #[inline]
    fn shrink(&mut self, newcomer: Slot, past: Past, victims: &mut Victims) {
        if self.weights.fits(0) {
            return;
        }
        if self.weighted {
            self.shrink_by::<true>(newcomer, past, victims);
        } else {
            self.shrink_by::<false>(newcomer, past, victims);
        }
    }

    #[inline(never)]
    fn shrink_by<const W: bool>(&mut self, newcomer: Slot, past: Past, victims: &mut Victims) {
        let now = self.now();
        let own = self.worth_of::<W>(past, newcomer, now);
        self.counts = self.ticks.is_multiple_of(COUNTED[usize::from(self.live >= 1024)]);
        if W {
            let fits = |policy: &Self| policy.weights.fits(0);
            evict_until(self, fits, |policy| policy.evict_one::<W>(now, newcomer, own, victims));
        } else {
            // Where all weigh 1, one is enough.
            self.evict_one::<W>(now, newcomer, own, victims);
        }
        if self.is_resident(newcomer) {
            self.trial.push_back(newcomer);
        }
    }

    #[inline(always)]
    fn evict_one<const W: bool>(&mut self, now: u32, newcomer: Slot, own: i32, victims: &mut Victims) {
        self.make_room_for_ghosts();
        let victim = self.choose::<W>(now, newcomer, own);
        self.forget(victim, now);
        victims.push(victim);
    }

    /// There are none before the first eviction: by then the number of residents is known.
    #[inline]
    fn make_room_for_ghosts(&mut self) {
        if self.live > 2 * self.ghosts.room() / GHOSTS {
            self.open_ghosts();
        }
    }

    #[cold]
    #[inline(never)]
    fn open_ghosts(&mut self) {
        if self.ghosts.room() > 0 {
            self.ghosts.double();
        } else {
            // Their time counts in units of a 32nd to a 64th of the residents.
            let coarse = (self.live.max(1).ilog2() + 1).saturating_sub(6).saturating_sub(self.unit);
            self.ghosts.open((GHOSTS * self.live).max(LEAST_GHOSTS), coarse);
        }
    }

    fn double_unit(&mut self) {
        self.bury();
        let now = self.now();
        for resident in self.residents.values_mut() {
            *resident = resident.double_unit(now);
        }
        self.ghosts.double_unit(now);
        self.unit += 1;
    }
}

impl Eviction for Adaptive {
    const ABOUT: About = About::new(
        "adaptive",
        env!("CARGO_PKG_VERSION"),
        "Larder's own: learns which entries promise most hits for the room they take",
    );

    fn open(limits: &Limits, _: &Parameters) -> Result<Self, Refusal> {
        let expected = limits.expected.map(|n| n as usize);
        let mut unit = 0;
        while expected.unwrap_or(0) >> unit >= 2 * FINE {
            unit += 1;
        }
        Ok(Adaptive {
            weights: Weights::new(limits),
            residents: BySlot::new(limits),
            hashes: BySlot::new(limits),
            live: 0,
            expected,
            ghosts: Ghosts::default(),
            leaving: Vec::new(),
            odds: Odds::new(),
            ticks: 0,
            unit,
            hand: Hand::default(),
            bound: i32::MIN,
            trial: VecDeque::new(),
            weighted: false,
            round_began: 0,
            next_round: 64,
            next_step: 0,
            stride: 1,
            counts: false,
            sampled: 0.0,
            recalled: None,
        })
    }

    fn begin(&mut self, _: u64) {
        self.begin_anew();
        self.hand.forget();
    }

    fn foresee(&mut self, fingerprints: &[u64]) {
        self.ghosts.fetch(fingerprints.iter().map(|&fingerprint| hash_of(fingerprint)));
    }

    fn end(&mut self) {
        self.bury();
    }

    #[inline(always)]
    fn touch(&mut self, slot: Slot, times: u32) {
        self.ticks += u64::from(times);
        let now = self.now();
        let past = &mut self.residents.values_mut()[slot as usize];
        let bucket = bucket(past.age(now));
        self.odds.used(*past, bucket);
        *past = past.used(now, bucket);
    }

    #[inline(always)]
    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        self.ticks += 1;
        self.learn();
        self.make_room(arrival.slot);
        self.arrive_at(arrival, self.now(), victims);
    }

    fn depart(&mut self, slot: Slot) {
        let now = self.now();
        self.counts = false;
        self.forget(slot, now);
    }

    fn change(&mut self, change: &Change, victims: &mut Victims) {
        self.weights.remove(change.slot);
        self.weighted |= change.weight != 1;
        self.weights.add(change.slot, change.weight);
        self.shrink(change.slot, self.residents.get(change.slot), victims);
    }

    /// The order becomes ages, the last one the youngest; all that were used count as used at intervals as long as a
    /// turnover of the cache. Where the predecessor said more of a resident, that holds.
    fn adopt(&mut self, resident: &Arrival, uses: u32, victims: &mut Victims) {
        let hash = hash_of(resident.fingerprint);
        if let Some(past) = self.recalled(resident.slot, hash) {
            self.make_room(resident.slot);
            self.settle(resident, past, hash, victims);
            return;
        }
        self.arrive(resident, victims);
        if self.is_resident(resident.slot) {
            let turnover = self.expected.unwrap_or(self.live).max(self.live) >> self.unit;
            self.residents.set(resident.slot, Past::guess(self.now(), uses, bucket(turnover as u32)));
        }
    }

    fn learned(&self) -> Vec<u8> {
        self.write()
    }

    fn recall(&mut self, learned: &[u8]) -> bool {
        self.read(learned).is_some()
    }

    /// Operations wait for the answer: a counting sort, over worth to a 32nd of an octave.
    fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
        /// The worth of an entry of the greatest weight is no less than this.
        const LEAST: i32 = -(80 << 10);
        const STEPS: usize = ((NONE - LEAST) >> 5) as usize + 1;
        let now = self.now();
        let worth = |slot| if self.weighted { self.worth::<true>(slot, now) } else { self.worth::<false>(slot, now) };
        let step = |slot| ((worth(slot) - LEAST).max(0) as usize >> 5).min(STEPS - 1);
        let mut steps = Vec::with_capacity(self.live);
        let mut places = alloc::vec![0u32; STEPS];
        for slot in (0..self.residents.values().len() as Slot).filter(|&slot| self.is_resident(slot)) {
            let step = step(slot);
            places[step] += 1;
            steps.push((slot, step as u32));
        }
        let mut next = 0;
        for place in &mut places {
            next += core::mem::replace(place, next);
        }
        let mut order = alloc::vec![0; steps.len()];
        for (slot, step) in steps {
            let place = &mut places[step as usize];
            order[*place as usize] = slot;
            *place += 1;
        }
        for slot in order {
            each(slot, self.residents.get(slot).uses());
        }
    }
}

impl Adaptive {
    #[inline]
    fn make_room(&mut self, slot: Slot) {
        let at = slot as usize;
        if at >= self.residents.values().len() {
            self.residents.set(slot, Past::ABSENT);
            if at >> self.unit >= 2 * FINE {
                self.double_unit();
            }
        }
    }

    #[inline]
    fn arrive_at(&mut self, arrival: &Arrival, now: u32, victims: &mut Victims) {
        let hash = hash_of(arrival.fingerprint);
        let past = match self.ghosts.take(hash, now) {
            Some(past) => {
                let bucket = bucket(past.age(now));
                self.odds.used(past, bucket);
                past.used(now, bucket)
            }
            None => Past::new(now),
        };
        self.settle(arrival, past, hash, victims);
    }

    /// There is a new resident.
    #[inline(always)]
    fn settle(&mut self, arrival: &Arrival, past: Past, hash: u32, victims: &mut Victims) {
        self.residents.set(arrival.slot, past);
        self.hashes.set(arrival.slot, hash);
        self.weighted |= arrival.weight != 1;
        self.weights.add(arrival.slot, arrival.weight);
        self.live += 1;
        self.shrink(arrival.slot, past, victims);
    }
}
