//! Larder's own policy.

mod ghosts;
mod odds;
mod past;

use alloc::vec::Vec;

use larder_guest::kit::Weights;
use larder_guest::{About, Arrival, Change, Eviction, Limits, Parameters, Refusal, Slot, Victims};

use ghosts::{Ghosts, WAYS};
use odds::Odds;
use past::{Past, bucket};

/// Ghosts for each resident.
const GHOSTS: f64 = 2.25;

/// Ghosts at least: a cache of ten entries learns from a longer past than its size would give it.
const LEAST_GHOSTS: usize = 4096;

/// Residents drawn at random for each victim.
const DRAWS: usize = 16;

/// Candidates that are kept from one victim to the next.
const POOL: usize = 32;

/// Residents at which the unit of time is one request; it doubles with them.
const FINE: usize = 4096;

/// A resident.
#[derive(Clone, Copy, Debug)]
struct Resident {
    past: Past,
    hash: u32,
}

/// Evicts whoever promises least hits for the room it takes.
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
    pool: Vec<Slot>,
    random: u64,
    round_began: u64,
    next_round: u64,
    next_step: u64,
    stride: u64,
    /// Arrivals sampled, faded as the counts are.
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
            let memory = (5 * self.live).max(4096) as f32;
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
        while self.ticks >= self.next_step && !self.odds.rested() {
            self.odds.step();
            self.next_step += self.stride;
        }
    }

    /// Chooses a victim among all, in a small cache, or those drawn and kept.
    fn choose(&mut self, now: u32, newcomer: Slot, first: bool) -> Slot {
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
                    if first {
                        self.odds.met(self.residents[slot as usize].past, now, census / self.live as f32);
                    }
                }
            }
            return best.1;
        }
        let mut scores = [0.0f32; POOL + 1];
        let mut pool = core::mem::take(&mut self.pool);
        pool.retain(|&slot| self.is_resident(slot));
        let mut most = 0;
        for (i, &slot) in pool.iter().enumerate() {
            scores[i] = self.worth(slot, now);
            if scores[i] > scores[most] {
                most = i;
            }
        }
        for i in 0..=DRAWS {
            let slot = if i == DRAWS { newcomer } else { self.draw() };
            if !self.is_resident(slot) || (i == DRAWS && !first) {
                continue;
            }
            if i < 4 && first {
                self.odds.met(self.residents[slot as usize].past, now, census / 4.0);
            }
            let worth = self.worth(slot, now);
            if pool.len() < POOL {
                if !pool.contains(&slot) {
                    scores[pool.len()] = worth;
                    if worth > scores[most] {
                        most = pool.len();
                    }
                    pool.push(slot);
                }
            } else if worth < scores[most] && !pool.contains(&slot) {
                pool[most] = slot;
                scores[most] = worth;
                most = (0..POOL).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(0);
            }
        }
        for (i, &slot) in pool.iter().enumerate() {
            if scores[i] < best.0 {
                best = (scores[i], slot);
            }
        }
        pool.retain(|&slot| slot != best.1);
        self.pool = pool;
        if best.0 == f32::INFINITY {
            // Few residents among many slots: the draws found none.
            return (0..self.residents.len() as Slot).find(|&slot| self.is_resident(slot)).unwrap_or(newcomer);
        }
        best.1
    }

    fn forget(&mut self, slot: Slot, now: u32) {
        let Resident { past, hash } = self.residents[slot as usize];
        self.residents[slot as usize].past = Past::ABSENT;
        self.weights.remove(slot);
        self.live -= 1;
        let odds = &mut self.odds;
        if let Some(gone) = self.ghosts.put(hash, past, now, |ghost| odds.met(ghost, now, 1.0)) {
            odds.lost(gone, now);
        }
        self.sampled += 1.0;
    }

    fn shrink(&mut self, newcomer: Slot, victims: &mut Victims) {
        let now = self.now();
        let mut first = true;
        while self.weights.total() > self.weights.capacity() {
            if self.ghosts.room() == 0 || self.live > 4 * self.ghosts.room() {
                self.ghosts.reserve(((self.live as f64 * GHOSTS) as usize).max(LEAST_GHOSTS));
            }
            let victim = self.choose(now, newcomer, first);
            first = false;
            self.forget(victim, now);
            victims.push(victim);
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
            pool: Vec::with_capacity(POOL + 1),
            random: limits.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6a09_e667_f3bc_c909,
            round_began: 0,
            next_round: 64,
            next_step: 0,
            stride: 1,
            sampled: 0.0,
        })
    }

    fn begin(&mut self, _: u64) {
        self.learn();
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
        self.forget(slot, now);
    }

    fn change(&mut self, change: &Change, victims: &mut Victims) {
        self.weights.remove(change.slot);
        self.weights.add(change.slot, change.weight);
        self.shrink(change.slot, victims);
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
        let past = match self.ghosts.take(hash) {
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
