//! Parts that most policies are made of: arrays over slots, no hash maps, no pointers.

mod by_slot;
mod ghost_queue;
mod ghosts;
mod lists;
mod memo;
mod segments;
mod sketch;
mod weights;

pub use by_slot::BySlot;
pub use ghost_queue::{GhostQueue, fold};
pub use ghosts::Ghosts;
pub use lists::Lists;
pub use memo::{Memo, Recollection};
pub use segments::Segments;
pub use sketch::Sketch;
pub use weights::Weights;

/// Calls `evict_one` until `fits` says so: what each policy does for one that arrives.
///
/// Where all weigh 1, one is enough; so that is done first, and the loop is out of line. In a component whatever is done in a loop
/// goes through memory, for each turn of it may be stopped.
#[inline(always)]
pub fn evict_until<P>(policy: &mut P, fits: impl Fn(&P) -> bool, mut evict_one: impl FnMut(&mut P)) {
    #[cold]
    #[inline(never)]
    fn evict_more<P>(policy: &mut P, fits: impl Fn(&P) -> bool, mut evict_one: impl FnMut(&mut P)) {
        while !fits(policy) {
            evict_one(policy);
        }
    }
    if !fits(policy) {
        evict_one(policy);
        if !fits(policy) {
            evict_more(policy, fits, evict_one);
        }
    }
}
