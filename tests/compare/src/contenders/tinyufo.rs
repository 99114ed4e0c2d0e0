//! TinyUFO keeps a 64-bit hash in place of the key, and cannot say how many entries it holds.

use super::Contender;
use anyhow::Result;
use tinyufo::TinyUfo as Cache;

pub struct TinyUfo(Cache<u64, u64>);

impl Contender for TinyUfo {
    const NAME: &'static str = "TinyUFO";
    const PACKAGE: &'static str = "TinyUFO";
    const CONFIGURATION: &'static str = "`TinyUfo::new(capacity, capacity)`, `get`, then `put`";

    fn build(capacity: usize) -> Result<Self> {
        Ok(Self(Cache::new(capacity, capacity)))
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(&key)
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.put(key, value, 1);
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
        None
    }
}
