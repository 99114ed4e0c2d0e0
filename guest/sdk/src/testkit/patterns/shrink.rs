//! Finds a plain history that breaks the same clause: fewer choices, smaller ones, fewer parameters; again until nothing
//! more helps, or the runs are used up.

use super::history::History;
use crate::patterns::{Abilities, Target, Traits};

/// The plainest history found for which `fails` holds; it holds for `history`.
pub(super) fn shrink(mut history: History, runs: usize, fails: &mut dyn FnMut(&History) -> bool) -> History {
    let mut left = runs;
    loop {
        let before = history.clone();
        for simpler in SIMPLER {
            for i in 0.. {
                let mut candidate = history.clone();
                if simpler(&mut candidate, i).is_none() || left == 0 {
                    break;
                }
                if candidate != history {
                    left -= 1;
                    if fails(&candidate) {
                        history = candidate;
                    }
                }
            }
        }
        if history == before || left == 0 {
            return history;
        }
    }
}

/// Makes something plainer, number `i` of its kind; `None` when there is no such thing.
type Simpler = fn(&mut History, usize) -> Option<()>;

const SIMPLER: [Simpler; 9] = [
    |history, i| {
        let keep = history.choices.len() >> (i + 1);
        (i < 8).then(|| history.choices.truncate(keep))
    },
    |history, i| (i == 0).then(|| history.change = None),
    |history, i| {
        (i < history.rule.parameters.len()).then(|| {
            history.rule.parameters.remove(i);
        })
    },
    |history, i| {
        let (_, parameters) = history.change.as_mut()?;
        (i < parameters.len()).then(|| {
            parameters.remove(i);
        })
    },
    |history, i| {
        (i < history.choices.len()).then(|| {
            history.choices.remove(i);
        })
    },
    |history, i| history.choices.get_mut(i).map(|choice| *choice = 0),
    |history, i| history.choices.get_mut(i).map(|choice| *choice /= 2),
    |history, i| {
        let tiers = [0b1, 0b11].get(i)?;
        if history.rule.tiers & tiers == *tiers {
            history.rule.tiers = *tiers;
            history.rule.shared &= tiers;
        }
        Some(())
    },
    |history, i| {
        match i {
            0 => history.traits = Traits::empty(),
            1 => history.target = Target::Key,
            2 => history.rule.shared = 0,
            3 => history.rule.abilities = Abilities::all(),
            4 => history.repeats = false,
            _ => return None,
        }
        Some(())
    },
];
