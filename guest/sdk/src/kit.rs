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
