//! When entries expire: a hierarchical timing wheel (Varghese and Lauck, SOSP 87) over slots.
//!
//! Five levels of 64 spokes; a tick is 16 ms, so the wheel spans about 200 days, and what lies beyond waits in the
//! last spoke to be placed again. Scheduling, cancelling and firing take constant time; a cache without expiring
//! entries has no wheel at all, and one with them 12 bytes a slot.

use crate::eviction::{NEVER, Slot};

const LEVELS: usize = 5;
const SPOKES: usize = 64;
const SPOKE_BITS: u32 = 6;
/// A tick is this power of two in milliseconds.
const TICK_BITS: u32 = 4;
const NONE: u32 = u32::MAX;

/// Links of a slot in its spoke.
#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    /// Level and spoke, or `NONE` when the slot is not scheduled.
    spoke: u32,
}

/// The wheel.
pub(crate) struct Timers {
    heads: Vec<u32>,
    links: Vec<Link>,
    /// The tick up to which everything has fired.
    tick: u64,
    scheduled: u64,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Timers { heads: Vec::new(), links: Vec::new(), tick: 0, scheduled: 0 }
    }

    /// Has the slot fire when `at` (in milliseconds) has passed, and no more at whatever was set before.
    #[inline]
    pub(crate) fn schedule(&mut self, slot: Slot, at: u64) {
        self.cancel(slot);
        if at != NEVER {
            self.link(slot, at);
        }
    }

    /// Has the slot not fire.
    #[inline]
    pub(crate) fn cancel(&mut self, slot: Slot) {
        if self.scheduled > 0 {
            self.unlink(slot);
        }
    }

    fn link(&mut self, slot: Slot, at: u64) {
        if self.heads.is_empty() {
            self.heads = vec![NONE; LEVELS * SPOKES];
        }
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, Link { previous: NONE, next: NONE, spoke: NONE });
        }
        let due = ((at >> TICK_BITS) + 1).max(self.tick + 1);
        let ahead = due - self.tick;
        let level = ((63 - ahead.leading_zeros()) / SPOKE_BITS).min(LEVELS as u32 - 1);
        // Beyond the horizon: the spoke that comes last.
        let due = due.min(self.tick + (1 << (SPOKE_BITS * LEVELS as u32)) - 1);
        let spoke = level * SPOKES as u32 + ((due >> (SPOKE_BITS * level)) as u32 & (SPOKES as u32 - 1));
        let next = self.heads[spoke as usize];
        self.links[slot as usize] = Link { previous: NONE, next, spoke };
        if next != NONE {
            self.links[next as usize].previous = slot;
        }
        self.heads[spoke as usize] = slot;
        self.scheduled += 1;
    }

    fn unlink(&mut self, slot: Slot) {
        let Some(&Link { previous, next, spoke }) = self.links.get(slot as usize) else { return };
        if spoke == NONE {
            return;
        }
        match previous {
            NONE => self.heads[spoke as usize] = next,
            previous => self.links[previous as usize].next = next,
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        self.links[slot as usize].spoke = NONE;
        self.scheduled -= 1;
    }

    /// Fires what is due at `now` (in milliseconds), and slots that wait at a coarser level than they should: `due`
    /// answers with the time at which the slot is really to fire, if that is later.
    pub(crate) fn advance(&mut self, now: u64, mut due: impl FnMut(Slot) -> Option<u64>) {
        let target = now >> TICK_BITS;
        if self.scheduled == 0 {
            self.tick = self.tick.max(target);
            return;
        }
        let from = self.tick;
        if target <= from {
            return;
        }
        // At each level, the spokes that the hand passes; a whole turn at most. What is in them and not due is placed
        // anew, nearer.
        let mut fired = Vec::new();
        for level in 0..LEVELS as u32 {
            let (first, last) = (from >> (SPOKE_BITS * level), target >> (SPOKE_BITS * level));
            if first == last {
                break;
            }
            for position in first + 1..=last.min(first + SPOKES as u64) {
                let spoke = level as usize * SPOKES + (position as usize & (SPOKES - 1));
                let mut slot = std::mem::replace(&mut self.heads[spoke], NONE);
                while slot != NONE {
                    let link = &mut self.links[slot as usize];
                    link.spoke = NONE;
                    self.scheduled -= 1;
                    fired.push(slot);
                    slot = link.next;
                }
            }
        }
        self.tick = target;
        for slot in fired {
            if let Some(later) = due(slot) {
                self.schedule(slot, later);
            }
        }
    }

    /// The bytes that it holds.
    pub(crate) fn memory(&self) -> usize {
        self.heads.capacity() * 4 + self.links.capacity() * size_of::<Link>()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    /// Against a plain list of deadlines: nothing fires early, and everything within two ticks of its time.
    #[test]
    fn fires_in_time_and_never_early() {
        let mut state = 1u64;
        let mut random = move |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let mut timers = Timers::new();
        let mut model: Vec<Option<u64>> = vec![None; 300];
        let mut now = 0u64;
        for _ in 0..20_000 {
            match random(4) {
                0 | 1 => {
                    let slot = random(300) as Slot;
                    let span = 1 << random(28);
                    let at = now + random(span);
                    timers.schedule(slot, at);
                    model[slot as usize] = Some(at);
                }
                2 => {
                    let slot = random(300) as Slot;
                    timers.cancel(slot);
                    model[slot as usize] = None;
                }
                _ => {
                    let span = 1 << random(22);
                    now += random(span);
                    timers.advance(now, |slot| {
                        let at = model[slot as usize].expect("only what is scheduled fires");
                        if at > now {
                            return Some(at);
                        }
                        model[slot as usize] = None;
                        None
                    });
                    for at in model.iter().flatten() {
                        assert!(*at + 32 > now, "due at {at}, and it is {now}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_far_future_waits() {
        let mut timers = Timers::new();
        timers.schedule(7, 1 << 47);
        let mut fired = 0;
        let mut now = 0;
        while now < (1 << 47) + 64 {
            now += 1 << 33;
            timers.advance(now, |_| {
                if now < 1 << 47 {
                    return Some(1 << 47);
                }
                fired += 1;
                None
            });
        }
        assert_eq!(fired, 1);
    }
}
