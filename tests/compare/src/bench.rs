//! The loops that are measured. [`Bench`] is implemented once, for every [`Contender`], so each loop is compiled for
//! each cache; the dynamic call of `dyn Bench` is paid once for half a million operations.

use crate::contenders::Contender;
use anyhow::Result;
use cpu_time::ThreadTime;
use hdrhistogram::Histogram;
use quanta::Clock;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// What the mix does with one key. Keys have 63 bits (see `load::key_of_rank`), so the operation rides in the lowest
/// bit and a benchmark reads one sequence and not two.
#[derive(Clone, Copy)]
pub struct Operation(u64);

impl Operation {
    pub fn read(key: u64) -> Self {
        Self(key << 1)
    }

    pub fn insert(key: u64) -> Self {
        Self(key << 1 | 1)
    }

    #[inline]
    fn perform<C: Contender>(self, cache: &C) -> bool {
        let key = self.0 >> 1;
        if self.0 & 1 == 1 {
            cache.insert(key, key);
            false
        } else {
            cache.get(key).is_some()
        }
    }
}

/// One stretch of work on all threads.
#[derive(Clone, Copy)]
pub struct Stretch {
    pub operations: usize,
    pub hits: usize,
    /// From the first thread's start to the last one's end.
    pub elapsed: Duration,
    /// What the threads spent on a processor, divided by their number.
    pub processor: Duration,
}

impl Stretch {
    /// Elapsed time an operation, on all threads together.
    pub fn nanos_each(&self) -> f64 {
        self.elapsed.as_nanos() as f64 / self.operations as f64
    }

    pub fn hit_ratio(&self) -> f64 {
        self.hits as f64 / self.operations as f64
    }
}

/// A live cache that can be put to work. Each slice of a `&[&[_]]` is the work of one thread.
pub trait Bench: Send + Sync {
    fn name(&self) -> &'static str;
    /// Reads every key.
    fn reads(&self, keys: &[&[u64]]) -> Stretch;
    /// Performs every operation.
    fn mix(&self, operations: &[&[Operation]]) -> Stretch;
    /// Performs every operation and notes what each took, in nanoseconds.
    fn mix_timed(&self, operations: &[&[Operation]], clock: &Clock) -> Result<Histogram<u64>>;
    /// Reads every key, filling on a miss.
    fn get_or_insert(&self, keys: &[&[u64]]) -> Stretch;
    /// Inserts every key, on this thread.
    fn insert_all(&self, keys: &mut dyn Iterator<Item = u64>);
    /// Entries held once maintenance is done; a cache that cannot tell is asked for each of `candidates`.
    fn count_resident(&self, candidates: &mut dyn Iterator<Item = u64>) -> usize;
}

impl<C: Contender> Bench for C {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn reads(&self, keys: &[&[u64]]) -> Stretch {
        stretch(keys, |keys| {
            keys.iter().filter(|key| self.get(**key).inspect(|value| _ = black_box(*value)).is_some()).count()
        })
    }

    fn mix(&self, operations: &[&[Operation]]) -> Stretch {
        stretch(operations, |operations| operations.iter().filter(|operation| operation.perform(self)).count())
    }

    fn mix_timed(&self, operations: &[&[Operation]], clock: &Clock) -> Result<Histogram<u64>> {
        let mut total = new_histogram()?;
        let (_, histograms) = parallel(operations, |operations| -> Result<Histogram<u64>> {
            let mut histogram = new_histogram()?;
            for operation in operations {
                let start = clock.raw();
                black_box(operation.perform(self));
                let end = clock.raw();
                histogram.saturating_record(clock.delta_as_nanos(start, end));
            }
            Ok(histogram)
        });
        for histogram in histograms {
            total.add(histogram?)?;
        }
        Ok(total)
    }

    fn get_or_insert(&self, keys: &[&[u64]]) -> Stretch {
        stretch(keys, |keys| keys.iter().filter(|key| Contender::get_or_insert(self, **key, **key)).count())
    }

    fn insert_all(&self, keys: &mut dyn Iterator<Item = u64>) {
        for key in keys {
            self.insert(key, key);
        }
        self.settle();
    }

    fn count_resident(&self, candidates: &mut dyn Iterator<Item = u64>) -> usize {
        self.settle();
        self.resident().unwrap_or_else(|| candidates.filter(|key| self.get(*key).is_some()).count())
    }
}

/// A histogram of nanoseconds up to a minute, exact to three digits.
pub fn new_histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

fn stretch<T: Sync>(work: &[&[T]], run: impl Fn(&[T]) -> usize + Sync) -> Stretch {
    let (elapsed, results) = parallel(work, |work| {
        let start = ThreadTime::now();
        let hits = run(work);
        (hits, start.elapsed())
    });
    Stretch {
        operations: work.iter().map(|work| work.len()).sum(),
        hits: results.iter().map(|(hits, _)| hits).sum(),
        elapsed,
        processor: results.iter().map(|(_, processor)| *processor).sum::<Duration>() / results.len().max(1) as u32,
    }
}

/// Runs each piece of work on a thread of its own, all starting together. A single piece runs on this thread.
fn parallel<T: Sync, R: Send>(work: &[&[T]], run: impl Fn(&[T]) -> R + Sync) -> (Duration, Vec<R>) {
    let barrier = Barrier::new(work.len());
    let timed = |work: &[T]| {
        barrier.wait();
        let start = Instant::now();
        let result = run(work);
        (start, result, Instant::now())
    };
    let results: Vec<(Instant, R, Instant)> = if let [work] = work {
        vec![timed(work)]
    } else {
        std::thread::scope(|scope| {
            let threads: Vec<_> = work.iter().map(|work| scope.spawn(|| timed(work))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
        })
    };
    let start = results.iter().map(|(start, ..)| *start).min();
    let end = results.iter().map(|(.., end)| *end).max();
    let elapsed = start.zip(end).map_or(Duration::ZERO, |(start, end)| end - start);
    (elapsed, results.into_iter().map(|(_, result, _)| result).collect())
}
