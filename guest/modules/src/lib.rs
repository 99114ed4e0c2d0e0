//! Larder's built-in policies, one pure algorithm a file, and the [`patterns`], one table a file; tested natively. `components/` holds the shells that make
//! components of them.
#![no_std]

extern crate alloc;

pub mod adaptive;
pub mod arc;
pub mod fifo;
pub mod lfu;
pub mod lirs;
pub mod lru;
pub mod patterns;
pub mod random;
pub mod s3_fifo;
pub mod sieve;
pub mod ttl;
pub mod two_q;
pub mod w_tinylfu;

#[cfg(test)]
mod testing;
