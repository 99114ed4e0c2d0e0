//! What an instance hands over to its successor, beyond the order of the residents: the odds, the ghosts, the clock, and
//! what is known of each resident.

use alloc::vec::Vec;

use larder_guest::Slot;
use larder_guest::kit::{Memo, Recollection};

use super::{Adaptive, Ghosts, Odds, past::Past};

/// Of what is written.
const VERSION: u32 = 1;

/// The greatest unit of time that there can be: slots are 32 bits.
const MOST_UNIT: u32 = 24;

/// What a successor needs until it has adopted the residents.
#[derive(Debug, Default)]
pub(super) struct Recalled {
    /// The hash and the past of each resident, by slot.
    residents: Vec<[u32; 2]>,
    /// Newcomers to look at again.
    trial: Vec<Slot>,
    hand: usize,
}

impl Adaptive {
    /// Writes down what was learned. Operations wait: it is copying, but for the few counts.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut memo = Memo::new(VERSION);
        memo.reserve(8 * self.residents.values().len() + 4 * self.ghosts.room() + (64 << 10));
        memo.long(self.ticks);
        memo.word(self.unit);
        memo.long(self.round_began);
        memo.long(self.next_round);
        memo.number(self.sampled.into());
        memo.word(self.hand.at as u32);
        memo.word(self.bound.cast_unsigned());
        memo.words(&self.trial.iter().copied().collect::<Vec<_>>());
        self.ghosts.write(&mut memo);
        memo.records(self.hashes.values().iter().zip(self.residents.values()).map(|(&hash, past)| [hash, past.0]));
        self.odds.write(&mut memo);
        memo.into_bytes()
    }

    /// Takes over what a predecessor wrote; nothing, if any of it cannot be.
    pub(super) fn read(&mut self, learned: &[u8]) -> Option<()> {
        let mut memo = Recollection::of(learned, VERSION)?;
        let ticks = memo.long().filter(|ticks| *ticks < 1 << 60)?;
        let unit = memo.word().filter(|unit| *unit <= MOST_UNIT)?;
        let round_began = memo.long().filter(|began| *began <= ticks)?;
        // A round takes some requests for each resident.
        let next_round = memo.long().filter(|next| *next <= ticks + (1 << 40))?;
        let sampled = memo.number().filter(|sampled| (0.0..=1e12).contains(sampled))? as f32;
        let (hand, bound) = (memo.word()?, memo.word()?.cast_signed());
        let trial = memo.words()?;
        let ghosts = Ghosts::read(&mut memo)?;
        let residents = memo.records()?;
        let odds = Odds::read(&mut memo)?;
        (self.ticks, self.unit, self.round_began, self.next_round) = (ticks, unit, round_began, next_round);
        (self.ghosts, self.odds, self.sampled) = (ghosts, odds, sampled);
        self.bound = bound;
        self.recalled = Some(Recalled { residents, trial, hand: hand as usize });
        Some(())
    }

    /// What the predecessor knew of a resident.
    pub(super) fn recalled(&self, slot: Slot, hash: u32) -> Option<Past> {
        let [of, past] = *self.recalled.as_ref()?.residents.get(slot as usize)?;
        Past::of_word(past).filter(|_| of == hash)
    }

    /// All residents are adopted.
    pub(super) fn begin_anew(&mut self) {
        if let Some(recalled) = self.recalled.take() {
            let slots = self.residents.values().len();
            self.hand.at = recalled.hand.min(slots.saturating_sub(1));
            self.trial.extend(recalled.trial.into_iter().filter(|&slot| (slot as usize) < slots));
        }
    }
}
