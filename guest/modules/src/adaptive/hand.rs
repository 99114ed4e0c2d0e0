//! The hand that goes round over the residents.

/// How far it looks ahead.
pub(super) const REACH: usize = 16;

/// Goes round over the slots, and looks at a few at once: a loop that leaves when it has found somebody is foreseen
/// wrongly for each, and one that a component runs asks for its deadline at each turn.
#[derive(Debug, Default)]
pub(super) struct Hand {
    /// The slot that it is at.
    pub(super) at: usize,
    /// Slots from there on that were looked at already,
    looked_at: u32,
    /// and a bit for each of them that may go.
    found: u32,
}

impl Hand {
    /// Moves on to behind the next one that may go, of those that were looked at, or behind them all. Answers with that
    /// slot, and how many it passed.
    #[inline]
    pub(super) fn pass(&mut self, slots: usize) -> (Option<usize>, usize) {
        let (found, passed) = match self.found {
            0 => (None, self.looked_at),
            found => (Some(self.at + found.trailing_zeros() as usize), found.trailing_zeros() + 1),
        };
        self.found >>= passed;
        self.looked_at -= passed;
        self.at += passed as usize;
        if self.at == slots {
            self.at = 0;
        }
        (found, passed as usize)
    }

    /// Whether it has passed all that were looked at.
    #[inline]
    pub(super) fn is_at_end(&self) -> bool {
        self.looked_at == 0
    }

    /// Has looked ahead, at so many slots.
    #[inline]
    pub(super) fn looked(&mut self, slots: usize, found: u32) {
        (self.looked_at, self.found) = (slots as u32, found);
    }

    /// What was seen ahead is old.
    pub(super) fn forget(&mut self) {
        (self.looked_at, self.found) = (0, 0);
    }
}
