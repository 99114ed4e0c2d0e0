//! Parts that most policies are made of: arrays over slots, no hash maps, no pointers.

mod lists;
mod weights;

pub use lists::Lists;
pub use weights::Weights;
