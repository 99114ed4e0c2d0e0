use super::Contender;
use anyhow::Result;
use quick_cache::sync::Cache;

pub struct QuickCache(Cache<u64, u64>);

impl Contender for QuickCache {
    const NAME: &'static str = super::BASELINE;
    const PACKAGE: &'static str = "quick_cache";
    const CONFIGURATION: &'static str = "`sync::Cache::new(capacity)`, `get_or_insert_with`";

    fn build(capacity: usize) -> Result<Self> {
        Ok(Self(Cache::new(capacity)))
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
        let loaded = self.0.get_or_insert_with(&key, || {
            hit = false;
            Ok::<u64, std::convert::Infallible>(value)
        });
        // `Infallible`: the closure cannot have failed.
        let Ok(_) = loaded;
        hit
    }

    fn resident(&self) -> Option<usize> {
        Some(self.0.len())
    }
}
