//! Larder itself. Its variants have other policies: beside the default they show what a policy costs, and beside one
//! another, with policies that do next to nothing, what the host and the boundary to WebAssembly cost.

use super::Contender;
use anyhow::Result;
use larder::{Cache, Policy};

/// A cache at its defaults with this policy, or with the default one.
fn build(capacity: usize, policy: Option<&str>) -> Result<Cache<u64, u64>> {
    let builder = Cache::builder().max_capacity(u64::try_from(capacity)?);
    Ok(match policy {
        Some(name) => builder.policy(Policy::builtin(name)?).build()?,
        None => builder.build()?,
    })
}

macro_rules! larder {
    ($type:ident, $name:literal, $policy:expr, $configuration:literal, $variant:literal) => {
        pub struct $type(Cache<u64, u64>);

        impl Contender for $type {
            const NAME: &'static str = $name;
            const PACKAGE: &'static str = "larder";
            const CONFIGURATION: &'static str = $configuration;
            const VARIANT: bool = $variant;

            fn build(capacity: usize) -> Result<Self> {
                build(capacity, $policy).map(Self)
            }

            #[inline]
            fn get(&self, key: u64) -> Option<u64> {
                self.0.get(&key)
            }

            #[inline]
            fn insert(&self, key: u64, value: u64) {
                self.0.insert(key, value);
            }

            #[inline]
            fn get_or_insert(&self, key: u64, value: u64) -> bool {
                let mut hit = true;
                self.0.get_with(key, || {
                    hit = false;
                    value
                });
                hit
            }

            fn settle(&self) {
                self.0.run_pending_tasks();
            }

            fn resident(&self) -> Option<usize> {
                usize::try_from(self.0.entry_count()).ok()
            }
        }
    };
}

larder!(Larder, "larder", None, "`Cache::builder().max_capacity(capacity)` (policy `adaptive`), `get_with`", false);
larder!(LarderSieve, "larder-sieve", Some("sieve"), "policy `sieve`", true);
larder!(LarderS3Fifo, "larder-s3-fifo", Some("s3-fifo"), "policy `s3-fifo`", true);
larder!(LarderLru, "larder-lru", Some("lru"), "policy `lru`", true);
