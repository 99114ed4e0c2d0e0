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
//!   reports). The draws for a victim and the ghosts' sets are random samples of both populations, and are counted as
//!   such.
//! - **Parents.** Odds of a class are drawn towards the product of what is known by uses alone and by interval alone,
//!   and these towards the odds of all: sparse classes, small caches and beginnings behave sensibly (like LRU that
//!   distrusts newcomers).
//!
//! A victim comes out of a pool of 32 good candidates that 16 draws renew each time; below 49 slots all are looked
//! at. A read costs one record of 8 bytes and one count: no lists, no order.
//!
//! # Memory
//!
//! 8 bytes a resident (class and time 4, hash 4) and 16 for its four ghosts of 4 bytes: 24, and 4 more where there
//! are weights. 175 KB of histograms and at least 32 KB of ghosts whatever the size.
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
//! | 64 draws and a pool of 64 | - 0.04: the odds are the limit, not the draws |
//! | 8 draws rather than 16 | - 0.05 |
//! | newcomers distrusted at first | + 0.03 |
//! | four ghosts rather than 2.25 | + 0.02; on a storage trace at 1 %, 3.6 rather than 3.2 |
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
mod odds;
mod past;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use larder_guest::kit::Weights;
use larder_guest::{About, Arrival, Change, Eviction, Limits, Parameters, Refusal, Slot, Victims};

use ghosts::{Ghosts, WAYS};
use odds::Odds;
use past::{Past, bucket};

/// Ghosts for each resident.
const GHOSTS: usize = 4;

/// Ghosts at least: a cache of ten entries learns from a longer past than its size would give it.
const LEAST_GHOSTS: usize = 8192;

/// Residents drawn at random for each victim.
const DRAWS: usize = 16;

/// Draws that are neighbours, and so on one cache line. Slots are filled in no order that matters, and so neighbours
/// are as good a sample (0.001 points less, measured) at a quarter of the memory reads.
const RUN: usize = 4;

/// How many of those the census counts.
const CENSUS: usize = 4;

/// Candidates that are kept from one victim to the next.
const POOL: usize = 32;

/// What was learned fades over this many requests for each resident.
const MEMORY: usize = 20;

/// Or over this many, in a small cache.
const LEAST_MEMORY: usize = 4096;

/// Classes that one arrival may bring up to date.
const STEPS: usize = 8;

/// Residents at which the unit of time is one request; it doubles with them.
const FINE: usize = 4096;

/// A resident.
#[derive(Clone, Copy, Debug)]
struct Resident {
    past: Past,
    hash: u32,
}

/// Evicts whoever promises least hits for the room it takes. See the [module](self).
#[derive(Debug)]
pub struct Adaptive {
    weights: Weights,
    residents: Vec<Resident>,
    live: usize,
    expected: Option<usize>,
    ghosts: Ghosts,
    odds: Odds,
    /// Requests so far.
    ticks: u64,
    /// A unit of time is 2 to this many requests.
    unit: u32,
    /// Candidates for eviction: what each was worth when it was looked at last, and its slot.
    pool: Vec<(f32, Slot)>,
    /// The place of the candidate that is worth most, when the pool is full.
    most: usize,
    /// The place of the candidate to look at again next.
    turn: usize,
    /// The slot to go on from where draws find nobody.
    hand: usize,
    random: u64,
    /// When the last round of learning began, and when the next one may.
    round_began: u64,
    next_round: u64,
    /// When the next class has its turn, and how long after it the one after.
    next_step: u64,
    stride: u64,
    /// Whether the next victim counts for the census: in a cache that is not small, one in four is enough.
    counts: bool,
    /// Victims that counted, faded as the counts are.
    sampled: f32,
}

impl Adaptive {
    #[inline]
    fn now(&self) -> u32 {
        (self.ticks >> self.unit) as u32
    }

    #[inline]
    fn worth(&self, slot: Slot, now: u32) -> f32 {
        self.odds.worth(self.residents[slot as usize].past, now) / self.weights.get(slot) as f32
    }

    #[inline]
    fn is_resident(&self, slot: Slot) -> bool {
        self.residents[slot as usize].past != Past::ABSENT
    }

    fn draw(&mut self) -> Slot {
        // xorshift64*, and the high bits scaled to the number of slots.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let high = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((high * self.residents.len() as u64) >> 32) as Slot
    }

    /// Learns, a class at a time, at a pace that comes round once for each turnover of the cache.
    fn learn(&mut self) {
        if self.odds.rested() {
            if self.ticks < self.next_round {
                return;
            }
            let passed = (self.ticks - self.round_began) as f32;
            let memory = (MEMORY * self.live).max(LEAST_MEMORY) as f32;
            let keep = (1.0 - passed / memory).max(0.5);
            let scale = if self.sampled > 0.0 { self.ghosts.room() as f32 / WAYS as f32 / self.sampled } else { 0.0 };
            self.odds.begin(scale, keep);
            self.sampled *= keep;
            self.round_began = self.ticks;
            let round = (self.live as u64).max(512).min((self.ticks / 8).max(64));
            self.next_round = self.ticks + round;
            self.stride = (round / past::CLASSES as u64).max(1);
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

    /// Brings the worth of a candidate up to date; whether it is still resident (it leaves the pool if not).
    fn look_again(&mut self, at: usize, now: u32) -> bool {
        let slot = self.pool[at].1;
        if self.is_resident(slot) {
            self.pool[at].0 = self.worth(slot, now);
            return true;
        }
        self.pool.swap_remove(at);
        false
    }

    fn find_most(&mut self) {
        self.most = 0;
        for (i, candidate) in self.pool.iter().enumerate() {
            if candidate.0 > self.pool[self.most].0 {
                self.most = i;
            }
        }
    }

    /// Chooses a victim among all, in a small cache, or those drawn and kept.
    fn choose(&mut self, now: u32, newcomer: Slot) -> Slot {
        let census =
            if self.live == 0 { 0.0 } else { WAYS as f32 * self.live as f32 / self.ghosts.room().max(1) as f32 };
        let mut best = (f32::INFINITY, newcomer);
        if self.residents.len() <= POOL + DRAWS {
            for slot in 0..self.residents.len() as Slot {
                if self.is_resident(slot) {
                    let worth = self.worth(slot, now);
                    if worth < best.0 {
                        best = (worth, slot);
                    }
                    if self.counts {
                        self.odds.met(self.residents[slot as usize].past, now, census / self.live as f32);
                    }
                }
            }
            return best.1;
        }
        // The worth of a candidate changes slowly, unless it is read: each is looked at again in turn, and any just
        // before it goes.
        if !self.pool.is_empty() {
            let at = self.turn % self.pool.len();
            self.turn = at + 1;
            self.look_again(at, now);
        }
        let (mut start, len) = (0, self.residents.len());
        for i in 0..DRAWS {
            if i % RUN == 0 {
                start = self.draw() as usize / RUN * RUN;
            }
            let slot = (start + i % RUN).min(len - 1) as Slot;
            let past = self.residents[slot as usize].past;
            if past == Past::ABSENT {
                continue;
            }
            if i < CENSUS && self.counts {
                self.odds.met(past, now, census / CENSUS as f32);
            }
            let worth = self.worth(slot, now);
            if self.pool.len() < POOL {
                if self.pool.iter().all(|&(_, other)| other != slot) {
                    self.pool.push((worth, slot));
                }
                if self.pool.len() == POOL {
                    self.find_most();
                }
            } else if worth < self.pool[self.most].0 && self.pool.iter().all(|&(_, other)| other != slot) {
                self.pool[self.most] = (worth, slot);
                self.find_most();
            }
        }
        let own = if self.is_resident(newcomer) { self.worth(newcomer, now) } else { f32::INFINITY };
        while !self.pool.is_empty() {
            let mut least = 0;
            for (i, candidate) in self.pool.iter().enumerate() {
                if candidate.0 < self.pool[least].0 {
                    least = i;
                }
            }
            let (worth, slot) = self.pool[least];
            if own < worth {
                return newcomer;
            }
            if self.look_again(least, now) && self.pool[least].0 <= worth {
                self.pool.swap_remove(least);
                return slot;
            }
        }
        if own < f32::INFINITY {
            return newcomer;
        }
        // Few residents among many slots, and the draws found none: the next one round, which over a turn costs no more
        // than the arrivals that made the slots.
        loop {
            self.hand = (self.hand + 1) % self.residents.len();
            if self.is_resident(self.hand as Slot) {
                return self.hand as Slot;
            }
        }
    }

    fn forget(&mut self, slot: Slot, now: u32) {
        let Resident { past, hash } = self.residents[slot as usize];
        self.residents[slot as usize].past = Past::ABSENT;
        self.weights.remove(slot);
        self.live -= 1;
        let (odds, counts) = (&mut self.odds, self.counts);
        let each = |ghost| {
            if counts {
                odds.met(ghost, now, 1.0);
            }
        };
        if let Some(gone) = self.ghosts.put(hash, past, now, each) {
            self.odds.lost(gone, now);
        }
        if counts {
            self.sampled += 1.0;
            self.counts = false;
        }
    }

    fn shrink(&mut self, newcomer: Slot, victims: &mut Victims) {
        let now = self.now();
        self.counts = self.ticks.is_multiple_of(4) || self.live < 1024;
        while self.weights.total() > self.weights.capacity() {
            self.make_room_for_ghosts();
            let victim = self.choose(now, newcomer);
            self.forget(victim, now);
            victims.push(victim);
        }
    }

    /// There are none before the first eviction: by then the number of residents is known.
    fn make_room_for_ghosts(&mut self) {
        let room = self.ghosts.room();
        if room == 0 {
            // Their time counts in units of a 32nd to a 64th of the residents.
            let coarse = (self.live.max(1).ilog2() + 1).saturating_sub(6).saturating_sub(self.unit);
            self.ghosts.open((GHOSTS * self.live).max(LEAST_GHOSTS), coarse);
        } else if self.live > 2 * room / GHOSTS {
            self.ghosts.double();
        }
    }

    fn double_unit(&mut self) {
        let now = self.now();
        for resident in &mut self.residents {
            resident.past = resident.past.double_unit(now);
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
            residents: Vec::new(),
            live: 0,
            expected,
            ghosts: Ghosts::default(),
            odds: Odds::new(),
            ticks: 0,
            unit,
            pool: Vec::with_capacity(POOL),
            most: 0,
            turn: 0,
            hand: 0,
            random: limits.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6a09_e667_f3bc_c909,
            round_began: 0,
            next_round: 64,
            next_step: 0,
            stride: 1,
            counts: false,
            sampled: 0.0,
        })
    }

    #[inline]
    fn touch(&mut self, slot: Slot, times: u32) {
        self.ticks += u64::from(times);
        let now = self.now();
        let past = self.residents[slot as usize].past;
        let bucket = bucket(past.age(now));
        self.odds.used(past, bucket);
        self.residents[slot as usize].past = past.used(now, bucket);
    }

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        self.ticks += 1;
        self.learn();
        let now = self.now();
        let at = arrival.slot as usize;
        if at >= self.residents.len() {
            if at >= self.residents.capacity() {
                // Exact where the number is known: doubling would cost up to as much again.
                let room = (2 * at).max(64);
                let room = self.expected.map_or(room, |expected| if expected > at { room.min(expected) } else { room });
                self.residents.reserve_exact(room - self.residents.len());
            }
            self.residents.resize(at + 1, Resident { past: Past::ABSENT, hash: 0 });
            if at >> self.unit >= 2 * FINE {
                self.double_unit();
                return self.arrive_at(arrival, self.now(), victims);
            }
        }
        self.arrive_at(arrival, now, victims);
    }

    fn depart(&mut self, slot: Slot) {
        let now = self.now();
        self.counts = false;
        self.forget(slot, now);
    }

    fn change(&mut self, change: &Change, victims: &mut Victims) {
        self.weights.remove(change.slot);
        self.weights.add(change.slot, change.weight);
        self.shrink(change.slot, victims);
    }

    /// The order becomes ages, the last one the youngest; all that were used count as used at intervals as long as a
    /// turnover of the cache.
    fn adopt(&mut self, resident: &Arrival, uses: u32, victims: &mut Victims) {
        self.arrive(resident, victims);
        if self.is_resident(resident.slot) {
            let turnover = self.expected.unwrap_or(self.live).max(self.live) >> self.unit;
            self.residents[resident.slot as usize].past = Past::guess(self.now(), uses, bucket(turnover as u32));
        }
    }

    fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
        let now = self.now();
        let mut order: Vec<(f32, Slot)> = (0..self.residents.len() as Slot)
            .filter(|&slot| self.is_resident(slot))
            .map(|slot| (self.worth(slot, now), slot))
            .collect();
        order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for (_, slot) in order {
            each(slot, self.residents[slot as usize].past.uses());
        }
    }
}

impl Adaptive {
    #[inline]
    fn arrive_at(&mut self, arrival: &Arrival, now: u32, victims: &mut Victims) {
        let hash = (arrival.fingerprint >> 32) as u32;
        let past = match self.ghosts.take(hash, now) {
            Some(past) => {
                let bucket = bucket(past.age(now));
                self.odds.used(past, bucket);
                past.used(now, bucket)
            }
            None => Past::new(now),
        };
        self.residents[arrival.slot as usize] = Resident { past, hash };
        self.weights.add(arrival.slot, arrival.weight);
        self.live += 1;
        self.shrink(arrival.slot, victims);
    }
}
