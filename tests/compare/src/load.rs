//! What the caches are asked for: Zipf sequences from a seed, and recorded traces.

use crate::bench::Operation;
use anyhow::{Context, Result, bail};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The exponent of every Zipf load: YCSB's, and what most caches are benchmarked with.
pub const EXPONENT: f64 = 0.99;

/// Spreads dense numbers over 64 bits (SplitMix64's finaliser, a bijection), so that ranks and dense trace ids are as
/// good as hashed keys and no cache profits from their order.
pub fn splitmix64(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The key of rank `rank` among the keys of a Zipf load, from 0. The lowest bit is left for [`Operation`].
pub fn key_of_rank(rank: u64) -> u64 {
    splitmix64(rank) >> 1
}

/// An endless supply of work of one kind, made beforehand: every thread has a sequence of its own, cut into slices.
/// The number of slices is prime, so contenders that take turns all come by every slice.
pub struct Supply<T> {
    threads: Vec<Vec<T>>,
    slice: usize,
    next: usize,
}

impl<T> Supply<T> {
    const SLICES: usize = 17;

    fn new(threads: usize, slice: usize, seed: u64, make: impl Fn(&mut SmallRng) -> T) -> Self {
        let sequence = |thread: u64| {
            let mut random = SmallRng::seed_from_u64(splitmix64(seed ^ (thread << 32)));
            (0..slice * Self::SLICES).map(|_| make(&mut random)).collect()
        };
        Self { threads: (0..threads as u64).map(sequence).collect(), slice, next: 0 }
    }

    /// The next slice for each of the first `threads` threads.
    pub fn take(&mut self, threads: usize) -> Vec<&[T]> {
        let start = self.next % Self::SLICES * self.slice;
        self.next += 1;
        self.threads.iter().take(threads).map(|sequence| &sequence[start..start + self.slice]).collect()
    }
}

fn zipf(keys: usize) -> Result<Zipf<f64>> {
    Zipf::new(keys as f64, EXPONENT).with_context(|| format!("a Zipf distribution over {keys} keys"))
}

fn sample_rank(zipf: &Zipf<f64>, random: &mut SmallRng) -> u64 {
    // Ranks start at 1 and are whole numbers.
    zipf.sample(random) as u64 - 1
}

fn sample(zipf: &Zipf<f64>, random: &mut SmallRng) -> u64 {
    key_of_rank(sample_rank(zipf, random))
}

/// Keys to read, Zipf-distributed over `keys` of them.
pub fn reads(keys: usize, threads: usize, slice: usize, seed: u64) -> Result<Supply<u64>> {
    let zipf = zipf(keys)?;
    Ok(Supply::new(threads, slice, seed, |random| sample(&zipf, random)))
}

/// Ranks of keys to read, without end, for a load that runs until it is stopped: a sequence that came round again would
/// be hit the more often for it.
pub fn ranks(keys: usize, thread: usize, seed: u64) -> Result<impl Iterator<Item = u64>> {
    let zipf = zipf(keys)?;
    let mut random = SmallRng::seed_from_u64(splitmix64(seed ^ ((thread as u64) << 32)));
    Ok(std::iter::repeat_with(move || sample_rank(&zipf, &mut random)))
}

/// Three reads for one insertion, in random order, over `keys` keys.
pub fn mix(keys: usize, threads: usize, slice: usize, seed: u64) -> Result<Supply<Operation>> {
    let zipf = zipf(keys)?;
    Ok(Supply::new(threads, slice, seed, |random| {
        let key = sample(&zipf, random);
        if random.random_range(0..4) == 0 { Operation::insert(key) } else { Operation::read(key) }
    }))
}

/// A sequence of requests.
pub struct Trace {
    pub name: String,
    pub requests: Vec<u64>,
    pub unique: usize,
}

impl Trace {
    fn new(name: String, requests: Vec<u64>) -> Self {
        let unique = requests.iter().collect::<HashSet<_>>().len();
        Self { name, requests, unique }
    }

    /// Zipf over half a million keys, with a scan of 50,000 new keys after every 200,000 requests: for those who have
    /// no trace at hand.
    pub fn synthetic(seed: u64) -> Result<Self> {
        const KEYS: usize = 500_000;
        const BETWEEN: usize = 200_000;
        const SCAN: u64 = 50_000;
        let zipf = zipf(KEYS)?;
        let mut random = SmallRng::seed_from_u64(seed);
        let mut requests = Vec::new();
        for scan in 0..5 {
            requests.extend((0..BETWEEN).map(|_| sample(&zipf, &mut random)));
            let first = KEYS as u64 + scan * SCAN;
            requests.extend((first..first + SCAN).map(key_of_rank));
        }
        Ok(Self::new("zipf-with-scans".to_owned(), requests))
    }

    /// Reads `NAME.u64.zst` (little-endian keys) or `NAME.u64u32.zst` (keys, each followed by a size in bytes, which
    /// is passed over).
    pub fn read(path: &Path) -> Result<Self> {
        let (name, width) =
            name_and_width(path).with_context(|| format!("{}: not a .u64.zst or .u64u32.zst", path.display()))?;
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let mut bytes = Vec::new();
        zstd::Decoder::new(file)
            .and_then(|mut decoder| decoder.read_to_end(&mut bytes))
            .with_context(|| format!("decompressing {}", path.display()))?;
        let records = bytes.chunks_exact(width);
        if !records.remainder().is_empty() || bytes.is_empty() {
            bail!("{}: {} bytes are not a whole number of records of {width}", path.display(), bytes.len());
        }
        let requests =
            records.filter_map(|record| record.first_chunk()).map(|key| splitmix64(u64::from_le_bytes(*key)));
        Ok(Self::new(name, requests.collect()))
    }

    /// The capacity that is `percent` of the unique keys, rounded to the nearest, at least 1.
    pub fn capacity(&self, percent: f64) -> usize {
        ((self.unique as f64 * percent / 100.0).round() as usize).max(1)
    }
}

fn name_and_width(path: &Path) -> Option<(String, usize)> {
    let name = path.file_name()?.to_str()?;
    let as_u64 = name.strip_suffix(".u64.zst").map(|name| (name.to_owned(), 8));
    as_u64.or_else(|| name.strip_suffix(".u64u32.zst").map(|name| (name.to_owned(), 12)))
}

/// The traces in a directory, by name.
pub fn traces_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| name_and_width(path).is_some());
    paths.sort();
    if paths.is_empty() {
        bail!("{}: no .u64.zst or .u64u32.zst in it", directory.display());
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_is_skewed_reproducible_and_differs_by_thread() -> Result<()> {
        let mut supply = reads(1000, 2, 10_000, 7)?;
        let slices = supply.take(2);
        let hottest = slices[0].iter().filter(|key| **key == key_of_rank(0)).count();
        // The first of 1,000 ranks has 1 / sum(k^-0.99) = 12.8 % of the requests.
        assert!((1180..1380).contains(&hottest), "{hottest} of 10,000");
        assert_ne!(slices[0], slices[1]);
        assert_eq!(slices[0], reads(1000, 1, 10_000, 7)?.take(1)[0]);
        Ok(())
    }

    #[test]
    fn supply_comes_round_to_every_slice() -> Result<()> {
        let mut supply = reads(1_000_000, 1, 100, 7)?;
        let seen: HashSet<Vec<u64>> = (0..2 * Supply::<u64>::SLICES).map(|_| supply.take(1)[0].to_vec()).collect();
        assert_eq!(seen.len(), Supply::<u64>::SLICES);
        Ok(())
    }

    #[test]
    fn capacity_rounds_and_is_never_nothing() {
        let trace = Trace { name: String::new(), requests: Vec::new(), unique: 1011 };
        assert_eq!([0.01, 0.1, 1.0, 5.0, 10.0].map(|percent| trace.capacity(percent)), [1, 1, 10, 51, 101]);
    }

    #[test]
    fn traces_are_read_and_truncated_ones_refused() -> Result<()> {
        let directory = std::env::temp_dir().join(format!("larder-compare-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let write = |name: &str, bytes: &[u8]| -> Result<PathBuf> {
            let path = directory.join(name);
            std::fs::write(&path, zstd::encode_all(bytes, 1)?)?;
            Ok(path)
        };
        let sized: Vec<u8> = [1_u64, 2, 1].iter().flat_map(|key| [&key.to_le_bytes()[..], &[9; 4]].concat()).collect();
        let trace = Trace::read(&write("sized.u64u32.zst", &sized)?)?;
        assert_eq!((trace.name.as_str(), trace.unique), ("sized", 2));
        assert_eq!(trace.requests, [1, 2, 1].map(splitmix64));
        assert!(Trace::read(&write("cut.u64.zst", &[0; 12])?).is_err());
        assert!(Trace::read(&write("other.zst", &[0; 8])?).is_err());
        assert_eq!(traces_in(&directory)?.len(), 2);
        Ok(std::fs::remove_dir_all(directory)?)
    }
}
