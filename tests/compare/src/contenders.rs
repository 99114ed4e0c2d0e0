//! The contenders: one file each, every one a thin wrapper that calls the peer as its own documentation says to.
//!
//! Each runs at the defaults of its crate: [`Contender::build`] passes the capacity and nothing else, and
//! [`Contender::CONFIGURATION`] says what that means. The benchmark loops are generic over [`Contender`] and compiled
//! once for each, so nothing stands between a loop and the cache (see `bench.rs`).
//!
//! To add a contender: a file beside these, a line in [`all`].

mod foyer;
mod larder;
mod moka;
mod mutex_lru;
mod quick_cache;
mod tinyufo;

use crate::bench::Bench;
use anyhow::{Context, Result, bail};
use std::marker::PhantomData;

/// The contender that the others are measured against.
pub const BASELINE: &str = "quick_cache";

/// A cache of `u64` to `u64` that can be compared.
pub trait Contender: Send + Sync + Sized + 'static {
    /// As tables and `--only` call it.
    const NAME: &'static str;
    /// The package it comes from, whose version is looked up in Cargo.lock.
    const PACKAGE: &'static str;
    /// How it is built and called, for the reader of the tables.
    const CONFIGURATION: &'static str;
    /// Whether it is a second configuration of a peer, that takes part only where it is asked for by name and in the
    /// comparison of hit ratios.
    const VARIANT: bool = false;

    /// An empty cache of `capacity` entries.
    fn build(capacity: usize) -> Result<Self>;
    /// A read: `None` on a miss.
    fn get(&self, key: u64) -> Option<u64>;
    /// A write, whether the key is there or not.
    fn insert(&self, key: u64, value: u64);
    /// A read that fills on a miss, by the peer's own way of doing so. Whether it was a hit.
    fn get_or_insert(&self, key: u64, value: u64) -> bool;
    /// Performs maintenance that the cache has put off, so that its contents can be counted.
    fn settle(&self) {}
    /// Entries held, for a cache that can tell.
    fn resident(&self) -> Option<usize>;
}

/// A contender by name, before it is built.
pub trait Kind {
    fn name(&self) -> &'static str;
    fn configuration(&self) -> &'static str;
    fn variant(&self) -> bool;
    fn version(&self) -> Result<String>;
    fn build(&self, capacity: usize) -> Result<Box<dyn Bench>>;
}

struct Of<C>(PhantomData<C>);

impl<C: Contender> Kind for Of<C> {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn configuration(&self) -> &'static str {
        C::CONFIGURATION
    }

    fn variant(&self) -> bool {
        C::VARIANT
    }

    fn version(&self) -> Result<String> {
        locked_version(C::PACKAGE)
    }

    fn build(&self, capacity: usize) -> Result<Box<dyn Bench>> {
        let cache = C::build(capacity).with_context(|| format!("building {} with {capacity} entries", C::NAME))?;
        Ok(Box::new(cache))
    }
}

fn of<C: Contender>() -> Box<dyn Kind> {
    Box::new(Of::<C>(PhantomData))
}

/// Every contender, in the order of the tables.
pub fn all() -> Vec<Box<dyn Kind>> {
    vec![
        of::<quick_cache::QuickCache>(),
        of::<moka::Moka>(),
        of::<moka::MokaDrained>(),
        of::<foyer::Foyer>(),
        of::<foyer::FoyerLfu>(),
        of::<foyer::FoyerS3Fifo>(),
        of::<tinyufo::TinyUfo>(),
        of::<mutex_lru::MutexLru>(),
        of::<larder::Larder>(),
        of::<larder::LarderSieve>(),
        of::<larder::LarderS3Fifo>(),
        of::<larder::LarderLru>(),
    ]
}

/// The contenders called `only`, or without names all of them; variants only where `variants` says so.
pub fn select(only: &[String], variants: bool) -> Result<Vec<Box<dyn Kind>>> {
    if let Some(unknown) = only.iter().find(|name| all().iter().all(|kind| kind.name() != name.as_str())) {
        let names: Vec<_> = all().iter().map(|kind| kind.name()).collect();
        bail!("no contender is called {unknown:?}; there are: {}", names.join(", "));
    }
    let chosen = |kind: &dyn Kind| {
        if only.is_empty() { variants || !kind.variant() } else { only.iter().any(|name| name == kind.name()) }
    };
    Ok(all().into_iter().filter(|kind| chosen(kind.as_ref())).collect())
}

/// The contender of that name.
pub fn named(name: &str) -> Result<Box<dyn Kind>> {
    let mut found = select(&[name.to_owned()], true)?;
    found.pop().with_context(|| format!("no contender is called {name:?}"))
}

/// The version that this binary was built with. Cargo tells a crate only its own version, so the lock file is read:
/// its entries are `name = "…"` followed by `version = "…"`.
fn locked_version(package: &str) -> Result<String> {
    const LOCK: &str = include_str!("../Cargo.lock");
    let name = format!("name = \"{package}\"");
    LOCK.lines()
        .skip_while(|line| *line != name)
        .nth(1)
        .and_then(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
        .map(str::to_owned)
        .with_context(|| format!("{package} is not in Cargo.lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each wrapper calls its peer as [`Contender`] says; without this, a wrapper that never hits would only look slow.
    #[test]
    fn contenders_keep_the_contract() -> Result<()> {
        for kind in all() {
            let name = kind.name();
            assert!(!kind.version()?.is_empty(), "{name}");
            let cache = kind.build(1000)?;
            assert_eq!(cache.get_or_insert(&[&[1, 2, 1, 2, 2]]).hits, 3, "{name}: get_or_insert");
            assert_eq!(cache.reads(&[&[1, 2, 3]]).hits, 2, "{name}: get");
            cache.insert_all(&mut (1..=50));
            let two_threads: [&[u64]; 2] = [&[1, 50, 51], &[25]];
            assert_eq!(cache.reads(&two_threads).hits, 3, "{name}: insert");
            assert_eq!(cache.count_resident(&mut (0..100)), 50, "{name}: resident");
            // Enough to evict, and the bound holds once maintenance is done.
            cache.insert_all(&mut (100..10_000));
            let resident = cache.count_resident(&mut (0..10_000));
            assert!((900..=1000).contains(&resident), "{name}: {resident} of 1000");
        }
        Ok(())
    }

    #[test]
    fn selection_by_name() -> Result<()> {
        assert!(select(&[], false)?.iter().all(|kind| !kind.variant()));
        assert!(select(&[], true)?.len() > select(&[], false)?.len());
        assert_eq!(named("foyer-lfu")?.name(), "foyer-lfu");
        assert!(select(&["mocha".to_owned()], true).is_err());
        Ok(())
    }
}
