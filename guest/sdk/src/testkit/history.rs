//! Random histories of a cache.
//!
//! A history speaks of keys and not of slots: what an event means (a touch, an arrival, nothing) depends on what is
//! resident when it happens. So any part of a history is a history, which is what shrinking needs.

use core::fmt;

use super::fingerprint;
use crate::{Limits, NEVER};

/// What an entry comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Its weight.
    pub weight: u32,
    /// Its load cost, in microseconds.
    pub cost: u32,
    /// Milliseconds from its arrival to its expiry.
    pub lives_ms: Option<u32>,
}

impl Terms {
    /// Weight 1, no cost, no expiry.
    pub const PLAIN: Terms = Terms { weight: 1, cost: 0, lives_ms: None };

    pub(super) fn expires_at(&self, now: u64) -> u64 {
        self.lives_ms.map_or(NEVER, |ms| now + u64::from(ms))
    }
}

/// Something that happens to a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A key is asked for, so many times: a touch, or else an arrival.
    Ask(u64, u8, Terms),
    /// A key is taken out, if it is there.
    Remove(u64),
    /// The value of a key is replaced, if it is there.
    Replace(u64, Terms),
}

/// What happens between two batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// Nothing.
    None,
    /// Another instance of the policy adopts the residents, so many at a time.
    Adopt(u16),
}

/// A batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What happens before it.
    pub before: Gap,
    /// Milliseconds since the last one.
    pub elapsed_ms: u32,
    /// What happens.
    pub events: Vec<Event>,
}

/// A cache, and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// The limits of the policy.
    pub limits: Limits,
    /// The batches.
    pub steps: Vec<Step>,
}

/// A splitmix64: the kit needs no more, and no dependency for it.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        fingerprint(self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
    /// From 0 to below `n`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n.max(1))) >> 64) as u64
    }
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub(super) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
    /// From 1 to `most`, each order of magnitude as likely.
    pub(super) fn magnitude(&mut self, most: u64) -> u64 {
        (((most + 1) as f64).powf(self.unit()) as u64).clamp(1, most)
    }
}

impl History {
    /// The history of a seed, of about so many events; every sixteenth has ten times as many, to fill a cache of thousands.
    pub fn random(seed: u64, events: usize) -> Self {
        let mut random = Random(fingerprint(seed));
        let events = if seed % 16 == 15 { events * 10 } else { events };
        // Small caches show most faults, and show them soon.
        let entries = match random.below(8) {
            0 => random.magnitude(4),
            1..=5 => random.magnitude(100),
            _ => random.magnitude((events as u64 / 2).max(100)),
        };
        let heaviest = if random.one_in(2) { 1 } else { random.magnitude(200) };
        let mut capacity = entries;
        if heaviest > 1 {
            capacity = (entries * heaviest / 2).max(1);
        }
        let expected = (heaviest == 1).then_some(entries as u32);
        let limits = Limits { capacity, expected, seed: random.next() };

        let keys = (entries * random.one_of(&[1, 2, 4, 20]) + 1).max(3);
        let batches = random.one_of(&[1, 1, 4, 16, 64, 256]);
        let expiring = random.one_in(2);
        let (removing, replacing) = (random.one_of(&[0, 3, 10]), random.one_of(&[0, 3, 10]));
        let adopting = random.one_of(&[0, 8, 50]);

        let mut steps = Vec::new();
        let (mut workload, mut position, mut total) = (0, 0, 0);
        while total < events {
            let mut step = Step { before: Gap::None, elapsed_ms: 0, events: Vec::new() };
            if adopting > 0 && random.one_in(adopting) {
                step.before = Gap::Adopt(random.one_of(&[1, 7, 1000]));
            }
            if random.one_in(3) {
                step.elapsed_ms = random.magnitude(1_000_000) as u32;
            }
            for _ in 0..random.magnitude(batches) {
                if random.one_in(200) {
                    workload = random.below(4);
                }
                let key = match workload {
                    0 => random.below(keys),
                    1 => random.magnitude(keys) - 1,
                    // A scan: keys that never come again. A loop a little larger than the cache.
                    2 => {
                        keys + {
                            position += 1;
                            position
                        }
                    }
                    _ => {
                        position += 1;
                        position % (entries + entries / 8 + 1)
                    }
                };
                let weight = match random.below(50) {
                    0 if heaviest > 1 => capacity + random.below(3) - random.below(3).min(capacity - 1),
                    _ => random.magnitude(heaviest),
                };
                let lives_ms = (expiring && !random.one_in(4)).then(|| random.magnitude(10_000_000) as u32);
                let cost = if random.one_in(2) { 0 } else { random.magnitude(1_000_000) as u32 };
                let terms = Terms { weight: weight.max(1) as u32, cost, lives_ms };
                let percent = random.below(100);
                let times = if random.one_in(4) { random.magnitude(255) as u8 } else { 1 };
                step.events.push(if percent < removing {
                    Event::Remove(key)
                } else if percent < removing + replacing {
                    Event::Replace(key, terms)
                } else {
                    Event::Ask(key, times, terms)
                });
            }
            total += step.events.len();
            steps.push(step);
        }
        History { limits, steps }
    }

    /// How many events it has.
    pub fn len(&self) -> usize {
        self.steps.iter().map(|step| step.events.len()).sum()
    }

    /// Whether nothing happens in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weight {}", self.weight)?;
        if self.cost > 0 {
            write!(f, ", cost {}", self.cost)?;
        }
        self.lives_ms.map_or(Ok(()), |ms| write!(f, ", expires in {ms} ms"))
    }
}
