//! The 64 bits that a cell keeps about its entry beside location and weight: when it expires, how often it was read
//! since the policy last heard, and what the policy side knows of the slot. One word, so that a hit looks in one place.

use crate::eviction::NEVER;
use crate::sync::{AtomicU64, Ordering};

const DEADLINE_BITS: u32 = 48;
const DEADLINE: u64 = (1 << DEADLINE_BITS) - 1;
const TOUCH: u64 = 1 << DEADLINE_BITS;
const TOUCHES: u64 = 0xff << DEADLINE_BITS;

/// The policy has been told of the slot's entry, and has not been told, nor said itself, that it left.
pub(crate) const KNOWN: u64 = 1 << 56;
/// The entry left before the policy was told of it: its arrival is to be skipped.
pub(crate) const STRUCK: u64 = 1 << 57;
/// The slot is in the batch that is being put together.
pub(crate) const IN_BATCH: u64 = 1 << 58;

/// Counting stops here: enough for any sketch, and a hot key is then only read, never written.
const MOST_TOUCHES: u64 = 15;

/// A word of a new entry.
pub(crate) fn fresh(expires_at: u64) -> u64 {
    expires_at.min(DEADLINE)
}

/// When the entry expires, in milliseconds of the cache's clock; [`NEVER`] if it does not.
#[inline]
pub(crate) fn expires_at(word: u64) -> u64 {
    match word & DEADLINE {
        DEADLINE => NEVER,
        deadline => deadline,
    }
}

/// Counts a read; answers whether it is the first since the policy last heard.
#[inline]
pub(crate) fn touch(meta: &AtomicU64, word: u64) -> bool {
    let touches = (word & TOUCHES) / TOUCH;
    if touches >= MOST_TOUCHES {
        return false;
    }
    // A lost race is a read that another reader counted, or a flag that changed; only the first touch must not get lost.
    match meta.compare_exchange(word, word + TOUCH, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => touches == 0,
        Err(_) if touches > 0 => false,
        Err(now) => touch(meta, now),
    }
}

/// Takes the count of reads.
pub(crate) fn take_touches(meta: &AtomicU64) -> u8 {
    ((meta.fetch_and(!TOUCHES, Ordering::Relaxed) & TOUCHES) / TOUCH) as u8
}

/// Sets when the entry expires and keeps the rest.
pub(crate) fn set_expires_at(meta: &AtomicU64, expires_at: u64) {
    let deadline = expires_at.min(DEADLINE);
    let mut word = meta.load(Ordering::Relaxed);
    while let Err(now) =
        meta.compare_exchange_weak(word, word & !DEADLINE | deadline, Ordering::Relaxed, Ordering::Relaxed)
    {
        word = now;
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_parts_do_not_disturb_each_other() {
        let meta = AtomicU64::new(fresh(1234) | KNOWN);
        assert!(touch(&meta, meta.load(Ordering::Relaxed)));
        for _ in 0..100 {
            assert!(!touch(&meta, meta.load(Ordering::Relaxed)));
        }
        set_expires_at(&meta, NEVER);
        assert_eq!(expires_at(meta.load(Ordering::Relaxed)), NEVER);
        set_expires_at(&meta, 99);
        assert_eq!(expires_at(meta.load(Ordering::Relaxed)), 99);
        assert_eq!(u64::from(take_touches(&meta)), MOST_TOUCHES);
        assert_eq!(meta.load(Ordering::Relaxed), 99 | KNOWN);
        assert!(touch(&meta, meta.load(Ordering::Relaxed)));
    }
}
