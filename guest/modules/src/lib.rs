//! Larder's built-in policies: one pure algorithm a file, tested natively. `components/` holds the shells that make
//! components of them.
#![no_std]

extern crate alloc;

pub mod fifo;
