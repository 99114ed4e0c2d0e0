//! foyer's in-memory cache, from `foyer-memory`, the crate that `foyer::Cache` is re-exported from.
//!
//! Its default policy is LRU (what the documentation of `with_eviction_config` says of w-TinyLFU no longer holds), so
//! its two scan-resistant ones are variants. `get_or_fetch` is asynchronous only; the synchronous way is `get` and `insert`.

use super::Contender;
use anyhow::Result;
use foyer_memory::{Cache, CacheBuilder, LfuConfig, S3FifoConfig};

pub struct Foyer(Cache<u64, u64>);

impl Contender for Foyer {
    const NAME: &'static str = "foyer";
    const PACKAGE: &'static str = "foyer-memory";
    const CONFIGURATION: &'static str = "`CacheBuilder::new(capacity).build()` (LRU), `get`, then `insert`";

    fn build(capacity: usize) -> Result<Self> {
        Ok(Self(CacheBuilder::new(capacity).build()))
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(&key).map(|entry| *entry.value())
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.insert(key, value);
    }

    #[inline]
    fn get_or_insert(&self, key: u64, value: u64) -> bool {
        let hit = self.get(key).is_some();
        if !hit {
            self.insert(key, value);
        }
        hit
    }

    fn resident(&self) -> Option<usize> {
        Some(self.0.entries())
    }
}

/// Another policy of foyer's, as a contender of its own.
macro_rules! variant {
    ($variant:ident, $name:literal, $config:ty, $configuration:literal) => {
        pub struct $variant(Foyer);

        impl Contender for $variant {
            const NAME: &'static str = $name;
            const PACKAGE: &'static str = Foyer::PACKAGE;
            const CONFIGURATION: &'static str = $configuration;
            const VARIANT: bool = true;

            fn build(capacity: usize) -> Result<Self> {
                Ok(Self(Foyer(CacheBuilder::new(capacity).with_eviction_config(<$config>::default()).build())))
            }

            #[inline]
            fn get(&self, key: u64) -> Option<u64> {
                self.0.get(key)
            }

            #[inline]
            fn insert(&self, key: u64, value: u64) {
                self.0.insert(key, value);
            }

            #[inline]
            fn get_or_insert(&self, key: u64, value: u64) -> bool {
                self.0.get_or_insert(key, value)
            }

            fn resident(&self) -> Option<usize> {
                self.0.resident()
            }
        }
    };
}

variant!(FoyerLfu, "foyer-lfu", LfuConfig, "as foyer, with `LfuConfig::default()` (w-TinyLFU)");
variant!(FoyerS3Fifo, "foyer-s3fifo", S3FifoConfig, "as foyer, with `S3FifoConfig::default()`");
