//! What is learned: for each class of entries, the odds of being used again, by age; and what follows from them.

use alloc::{vec, vec::Vec};

use super::past::{BUCKETS, CLASSES, INTERVALS, Past, USES, bucket, start};

/// A figure for each bucket of age.
type ByAge = [f32; BUCKETS];

/// How much the odds of the parents count against a class's own: as much as this many of its intervals.
const PRIOR_WEIGHT: f32 = 32.0;

/// The odds in each bucket where nothing is known: the same in each, so that the hazard falls with the age, as in
/// LRU.
const PRIOR: f32 = 0.2;

/// How much less the odds are for new entries, where nothing is known: most never come back.
const NEW: f32 = 0.2;

#[derive(Clone, Copy, Debug)]
struct Class {
    /// Whether there is anything in the counts.
    known: bool,
    /// Intervals that ended with a use, by their length.
    used: ByAge,
    /// Those that ended because the ghost was forgotten.
    lost: ByAge,
    /// Those that last: sampled.
    lasting: ByAge,
    /// The Gittins index of an entry of this age.
    worth: ByAge,
}

/// Learns the odds and knows what an entry is worth.
#[derive(Debug)]
pub(super) struct Odds {
    classes: Vec<Class>,
    /// By how much the samples of `lasting` must be scaled to stand for all.
    scale: f32,
    /// Sums of the classes, as of the beginning of this round.
    sums: Sums,
    /// The class whose turn it is; `CLASSES` when the round is over.
    turn: usize,
    /// Rounds begun.
    round: usize,
    /// What remains of each count after this round.
    keep: f32,
}

#[derive(Debug)]
struct Sums {
    all: ByAge,
    by_uses: [ByAge; USES + 1],
    by_interval: [ByAge; INTERVALS + 1],
}

/// Odds of a use within each bucket for those that reached it: the Kaplan-Meier estimate, drawn towards `prior`.
fn odds(used: &ByAge, ended: &ByAge, prior: &ByAge) -> ByAge {
    let mut odds = [0.0; BUCKETS];
    let mut reached = PRIOR_WEIGHT;
    for b in (0..BUCKETS).rev() {
        // Those that ended in this bucket for another reason were exposed to half of it.
        odds[b] = (used[b] + PRIOR_WEIGHT * prior[b]) / (reached + used[b] + 0.5 * ended[b]);
        reached += used[b] + ended[b];
    }
    odds
}

/// The Gittins index for each age: the best ratio, over all ages at which one might stop waiting, of the chance of a
/// use by then to the expected time until the use or then.
///
/// From the greatest age down, a stack of stretches of age whose ratio falls; a stretch is one bucket, or several
/// that are best waited for together.
fn worths(odds: &ByAge) -> ByAge {
    let mut worths = [0.0; BUCKETS];
    // Chance of a use within the stretch, expected time in it, chance to outlast it.
    let mut stretches = [(0.0f32, 0.0f32, 0.0f32); BUCKETS];
    let mut len = 0;
    for b in (0..BUCKETS).rev() {
        let width = start(b + 1) - start(b);
        let (mut chance, mut time, mut outlasts) = (odds[b], width * (1.0 - 0.5 * odds[b]), 1.0 - odds[b]);
        while len > 0 {
            let next = stretches[len - 1];
            if next.0 * time <= chance * next.1 {
                break;
            }
            chance += outlasts * next.0;
            time += outlasts * next.1;
            outlasts *= next.2;
            len -= 1;
        }
        stretches[len] = (chance, time, outlasts);
        len += 1;
        worths[b] = chance / time;
    }
    worths
}

impl Odds {
    pub(super) fn new() -> Self {
        let none = [0.0; BUCKETS];
        let class = Class { known: false, used: none, lost: none, lasting: none, worth: worths(&[PRIOR; BUCKETS]) };
        Odds {
            classes: vec![class; CLASSES],
            scale: 0.0,
            sums: Sums { all: none, by_uses: [none; USES + 1], by_interval: [none; INTERVALS + 1] },
            turn: CLASSES,
            round: 0,
            keep: 1.0,
        }
    }

    /// What keeping the entry is worth: hits to expect for the time that it takes room.
    #[inline]
    pub(super) fn worth(&self, past: Past, now: u32) -> f32 {
        self.classes[past.class()].worth[bucket(past.age(now))]
    }

    /// An interval ended with a use.
    #[inline]
    pub(super) fn used(&mut self, past: Past, bucket: usize) {
        let class = &mut self.classes[past.class()];
        class.known = true;
        class.used[bucket] += 1.0;
    }

    /// An interval will not be followed any longer.
    #[inline]
    pub(super) fn lost(&mut self, past: Past, now: u32) {
        self.classes[past.class()].lost[bucket(past.age(now))] += 1.0;
    }

    /// An interval that lasts, met by chance.
    #[inline]
    pub(super) fn met(&mut self, past: Past, now: u32, weight: f32) {
        self.classes[past.class()].lasting[bucket(past.age(now))] += weight;
    }

    /// Whether the last round is over.
    pub(super) fn rested(&self) -> bool {
        self.turn == CLASSES
    }

    /// Begins a round: the classes will be gone through, a [step](Self::step) each.
    pub(super) fn begin(&mut self, scale: f32, keep: f32) {
        let none = [0.0; BUCKETS];
        let mut used = Sums { all: none, by_uses: [none; USES + 1], by_interval: [none; INTERVALS + 1] };
        let mut ended = Sums { all: none, by_uses: [none; USES + 1], by_interval: [none; INTERVALS + 1] };
        for (c, class) in self.classes.iter().enumerate() {
            let (uses, interval) = place(c);
            for b in 0..BUCKETS {
                used.by_uses[uses][b] += class.used[b];
                used.by_interval[interval][b] += class.used[b];
                let end = class.lost[b] + scale * class.lasting[b];
                ended.by_uses[uses][b] += end;
                ended.by_interval[interval][b] += end;
            }
        }
        for uses in 0..=USES {
            for b in 0..BUCKETS {
                used.all[b] += used.by_uses[uses][b];
                ended.all[b] += ended.by_uses[uses][b];
            }
        }
        let sums = &mut self.sums;
        sums.all = odds(&used.all, &ended.all, &[PRIOR; BUCKETS]);
        for i in 0..=USES {
            let prior = if i == 0 { sums.all.map(|odds| NEW * odds) } else { sums.all };
            sums.by_uses[i] = odds(&used.by_uses[i], &ended.by_uses[i], &prior);
        }
        for i in 0..=INTERVALS {
            sums.by_interval[i] = odds(&used.by_interval[i], &ended.by_interval[i], &sums.all);
        }
        self.scale = scale;
        self.keep = keep;
        self.turn = 0;
        self.round += 1;
    }

    /// Learns what one class is worth, and lets its counts fade.
    pub(super) fn step(&mut self) {
        // Classes of which nothing is known hold what their parents say, and can wait.
        while self.turn % 8 != self.round % 8 && self.classes.get(self.turn).is_some_and(|class| !class.known) {
            self.turn += 1;
        }
        let Some(class) = self.classes.get_mut(self.turn) else { return };
        let (uses, interval) = place(self.turn);
        self.turn += 1;
        let (mut prior, mut ended) = ([0.0; BUCKETS], [0.0; BUCKETS]);
        for b in 0..BUCKETS {
            prior[b] = (self.sums.by_uses[uses][b] * self.sums.by_interval[interval][b] / self.sums.all[b]).min(1.0);
            ended[b] = class.lost[b] + self.scale * class.lasting[b];
        }
        class.worth = worths(&odds(&class.used, &ended, &prior));
        for counts in [&mut class.used, &mut class.lost, &mut class.lasting] {
            counts.iter_mut().for_each(|count| *count *= self.keep);
        }
        class.known = class.used.iter().chain(&class.lost).chain(&class.lasting).sum::<f32>() > 0.01;
    }
}

/// The number of uses and the interval of a class, as indices.
fn place(class: usize) -> (usize, usize) {
    if class == 0 { (0, 0) } else { (1 + (class - 1) / INTERVALS, 1 + (class - 1) % INTERVALS) }
}
