//! How long something took.

use std::sync::OnceLock;
use std::time::Instant;

/// The processor's own counter, once somebody had the time to find out how fast it counts.
static COUNTER: OnceLock<quanta::Clock> = OnceLock::new();

/// Measures how long something takes. The system's clock, asked before and after, costs as much as a fast load; the
/// processor's counter costs a third of it, where it counts evenly.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stopwatch {
    System(Instant),
    Counter(u64),
}

impl Stopwatch {
    #[inline]
    pub(crate) fn start() -> Self {
        match COUNTER.get() {
            Some(counter) => Stopwatch::Counter(counter.raw()),
            None => Stopwatch::System(Instant::now()),
        }
    }

    /// Nanoseconds since it was started.
    #[inline]
    pub(crate) fn elapsed_nanos(self) -> u64 {
        match (self, COUNTER.get()) {
            (Stopwatch::Counter(began), Some(counter)) => counter.delta_as_nanos(began, counter.raw()),
            (Stopwatch::System(began), _) => u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX),
            (Stopwatch::Counter(_), None) => 0,
        }
    }

    /// Compares the processor's counter with the system's clock, which takes up to a fifth of a second: for a thread that
    /// has nothing else to do. Until then the latter is asked.
    pub(crate) fn calibrate() {
        COUNTER.get_or_init(quanta::Clock::new);
    }
}
