//! The engine: caches and their policies.

mod common;
mod hostile;

mod api;
mod concurrency;
mod containment;
mod expiry;
mod loading;
mod model;
mod mutations;
mod takeover;
